//! CUDA graphs: a sequence of launches that is replayed with one call.

use super::context::check;
use super::{CudaError, Stream};

/// A recorded sequence of launches. Addresses and numbers are those of the recording.
#[derive(Debug)]
pub struct Graph {
    graph: cuda_bindings::CUgraph,
    executable: cuda_bindings::CUgraphExec,
    stream: Stream,
}

// SAFETY: both handles may be used from any thread; the driver synchronises internally.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launches` launches on the stream it is given. Nothing runs yet.
    ///
    /// # Errors
    /// What `launches` returns, or [`CudaError::Driver`].
    pub fn capture<E: From<CudaError>>(
        stream: &Stream,
        launches: impl FnOnce(&Stream) -> Result<(), E>,
    ) -> Result<Self, E> {
        stream.context().bind()?;
        let mode = cuda_bindings::CUstreamCaptureMode_enum_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the context is current and this stream is not being recorded.
        let status = unsafe { cuda_bindings::cuStreamBeginCapture_v2(stream.handle(), mode) };
        check(status, "beginning to record a graph")?;
        let recorded = launches(stream);
        let mut graph = std::ptr::null_mut();
        // SAFETY: recording was begun above and is ended on every path.
        let status = unsafe { cuda_bindings::cuStreamEndCapture(stream.handle(), &mut graph) };
        let graph = check(status, "recording a graph").map(|()| graph);
        let graph = match (recorded, graph) {
            (Ok(()), Ok(graph)) => graph,
            (Ok(()), Err(error)) => return Err(error.into()),
            (Err(error), graph) => {
                if let Ok(graph) = graph {
                    // SAFETY: the graph was made above and nobody else has it.
                    let _ = unsafe { cuda_bindings::cuGraphDestroy(graph) };
                }
                return Err(error);
            }
        };
        let mut recorded = Self { graph, executable: std::ptr::null_mut(), stream: stream.clone() };
        // SAFETY: the graph is valid and the out-pointer is ours.
        let status = unsafe {
            cuda_bindings::cuGraphInstantiateWithFlags(&mut recorded.executable, graph, 0)
        };
        check(status, "preparing a graph")?;
        // SAFETY: both handles are valid.
        let status = unsafe { cuda_bindings::cuGraphUpload(recorded.executable, stream.handle()) };
        check(status, "uploading a graph")?;
        stream.synchronize()?;
        Ok(recorded)
    }

    /// Replays it.
    ///
    /// # Safety
    /// Every buffer that was recorded still lives, and nothing else uses them meanwhile.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.context().bind()?;
        // SAFETY: the executable graph is valid; the caller vouches for its buffers.
        let status = unsafe { cuda_bindings::cuGraphLaunch(self.executable, stream.handle()) };
        check(status, "launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Errors here mean that the context is gone, and the graph with it.
        let _ = self.stream.synchronize();
        // SAFETY: both handles are this graph's own and destroyed once.
        unsafe {
            if !self.executable.is_null() {
                let _ = cuda_bindings::cuGraphExecDestroy(self.executable);
            }
            let _ = cuda_bindings::cuGraphDestroy(self.graph);
        }
    }
}

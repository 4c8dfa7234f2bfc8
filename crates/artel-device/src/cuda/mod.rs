//! NVIDIA GPUs: contexts, streams, events, graphs, memory, and kernels compiled ahead of time.
//!
//! The driver is opened at run time: a program with this feature starts on a machine without a GPU
//! and gets [`CudaError::NoDriver`] when it asks for one. Kernels are written in cuTile Rust, or in
//! [assembly](Assembly) where that cannot say what is needed. A [`KernelSpec`] names one
//! specialisation of one kernel; [`Kernels`] turns specifications into
//! loaded kernels, from kernel packs first, by compiling only where a toolkit is at hand. The same
//! code that loads the kernels of an operation also lists them, for packing on a machine without
//! a GPU.

mod arguments;
mod assembly;
mod compiler;
mod context;
mod error;
mod graph;
mod kernels;
mod memory;
mod pack;
mod spec;
mod tensor_map;

pub use arguments::Arguments;
pub use assembly::Assembly;
pub use compiler::{Compiler, compile_all, compiled_kernels};
pub use context::{Architecture, Context, Event, Stream, device_count};
pub use error::CudaError;
pub use graph::Graph;
pub use kernels::{Kernel, Kernels};
pub use memory::{DeviceBuffer, DeviceSlice, DeviceSliceMut, PinnedBuffer, TableColumns};
pub use pack::{KernelPack, PackedKernel};
pub use spec::KernelSpec;
pub use tensor_map::{TensorAxis, TensorMap};

//! Kernels to machine code, without a GPU: the front end in this process, then `tileiras`; or
//! `ptxas` alone.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use cutile_compiler::cuda_tile_runtime_utils::{TileirasOptions, run_tileiras, tileiras_binary};

use super::spec::Code;
use super::{Architecture, CudaError, KernelSpec, PackedKernel};

/// The front end recurses deeply.
const STACK_BYTES: usize = 256 << 20;

static COMPILED: AtomicUsize = AtomicUsize::new(0);

/// How many kernels this process has compiled so far.
pub fn compiled_kernels() -> usize {
    COMPILED.load(Ordering::Relaxed)
}

/// An installed toolkit.
#[derive(Debug, Clone)]
pub struct Compiler {
    version: String,
}

impl Compiler {
    /// The toolkit that `CUTILE_TILEIRAS_PATH`, `CUDA_TOOLKIT_PATH`, `CUDA_HOME`, the usual folders
    /// or `PATH` lead to, in this order.
    ///
    /// # Errors
    /// [`CudaError::NoToolkit`] when there is none, or it does not answer.
    pub fn find() -> Result<Self, CudaError> {
        let program = tileiras_binary();
        let no_toolkit =
            |why: String| CudaError::NoToolkit { why: format!("{}: {why}", program.display()) };
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|error| no_toolkit(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().map(str::trim).find(|line| line.contains("release"));
        let version = version.or_else(|| text.lines().map(str::trim).find(|line| !line.is_empty()));
        match version {
            Some(version) if output.status.success() => Ok(Self { version: version.to_owned() }),
            _ => Err(no_toolkit("it does not tell its version".to_owned())),
        }
    }

    /// What it calls itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Machine code of one kernel.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with what the compiler said.
    pub fn compile(
        &self,
        spec: &KernelSpec,
        architecture: Architecture,
    ) -> Result<PackedKernel, CudaError> {
        let failed = |why: String| CudaError::Compile {
            kernel: spec.key(),
            architecture: architecture.to_string(),
            why,
        };
        if !spec.runs_on(architecture) {
            return Err(failed("the architecture lacks instructions that it needs".to_owned()));
        }
        let to_cubin = || match *spec.code() {
            Code::Assembly(ref assembly) => assembly.assemble(architecture),
            Code::Tiles(module, name) => {
                let compiler = spec.compiler(module, name, architecture);
                let artifacts = compiler.compile().map_err(|e| e.to_string())?;
                let bytecode = artifacts.bytecode().map_err(|e| e.to_string())?;
                let options = TileirasOptions::from_compile_options(&spec.options());
                run_tileiras(&bytecode, architecture.name(), &options).map_err(|e| e.to_string())
            }
        };
        // The front end panics on some errors; a thread of its own turns that into an error.
        let cubin = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread =
                builder.spawn_scoped(scope, to_cubin).map_err(|e| failed(e.to_string()))?;
            match thread.join() {
                Ok(result) => result.map_err(failed),
                Err(_) => Err(failed("the compiler panicked".to_owned())),
            }
        })?;
        COMPILED.fetch_add(1, Ordering::Relaxed);
        Ok(PackedKernel {
            key: spec.key(),
            architecture,
            source_hash: spec.source_hash(),
            compiler: self.version.clone(),
            cubin,
        })
    }
}

/// Compiles all `specs` on all cores; `done` is told after each. The first error ends it.
///
/// # Errors
/// [`CudaError::Compile`].
pub fn compile_all(
    compiler: &Compiler,
    specs: &[KernelSpec],
    architecture: Architecture,
    done: impl Fn(&KernelSpec) + Sync,
) -> Result<Vec<PackedKernel>, CudaError> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(specs.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(specs.len());
    let work = || {
        while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = compiler.compile(spec, architecture);
            if result.is_err() {
                next.store(specs.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
            done(spec);
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

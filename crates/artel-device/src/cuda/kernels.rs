//! Specifications to loaded kernels.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::context::check;
use super::spec::Code;
use super::{
    Architecture, Arguments, Compiler, Context, CudaError, KernelPack, KernelSpec, Stream,
    compile_all,
};

/// Where kernels come from. Operations ask it for every kernel that they may launch, once.
///
/// On a GPU they are loaded. Without one they are only listed, by the same code, so that a pack can
/// be made of them.
pub struct Kernels {
    source: Source,
}

enum Source {
    List { architecture: Architecture, specs: Vec<KernelSpec>, keys: HashSet<String> },
    Open(Loader),
}

struct Loader {
    context: Context,
    packs: Vec<KernelPack>,
    compiler: Option<Compiler>,
    loaded: HashMap<String, Kernel>,
}

impl Kernels {
    /// Lists what is asked for.
    pub fn list(architecture: Architecture) -> Self {
        let (specs, keys) = (Vec::new(), HashSet::new());
        Self { source: Source::List { architecture, specs, keys } }
    }

    /// Loads what is asked for from `packs`, later ones first; what none of them has is compiled
    /// if there is a `compiler`.
    pub fn open(context: &Context, packs: Vec<KernelPack>, compiler: Option<Compiler>) -> Self {
        let (context, loaded) = (context.clone(), HashMap::new());
        Self { source: Source::Open(Loader { context, packs, compiler, loaded }) }
    }

    /// What kernels are made for.
    pub fn architecture(&self) -> Architecture {
        match &self.source {
            Source::List { architecture, .. } => *architecture,
            Source::Open(loader) => loader.context.architecture(),
        }
    }

    /// What was listed, each specialisation once.
    pub fn specs(&self) -> &[KernelSpec] {
        match &self.source {
            Source::List { specs, .. } => specs,
            Source::Open(_) => &[],
        }
    }

    /// Compiles those of `specs` that no pack has, on all cores, so that [`get`](Self::get) finds
    /// them; `done` is told after each.
    ///
    /// # Errors
    /// [`CudaError::MissingKernels`] when there is no compiler, [`CudaError::Compile`].
    pub fn prepare(
        &mut self,
        specs: &[KernelSpec],
        done: impl Fn(&KernelSpec) + Sync,
    ) -> Result<(), CudaError> {
        let Source::Open(loader) = &mut self.source else { return Ok(()) };
        let architecture = loader.context.architecture();
        let missing: Vec<KernelSpec> =
            specs.iter().filter(|spec| loader.find(spec).is_none()).cloned().collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let Some(compiler) = &loader.compiler else {
            return Err(CudaError::MissingKernels {
                count: missing.len(),
                first: first.key(),
                architecture: architecture.to_string(),
            });
        };
        let mut compiled = KernelPack::default();
        for kernel in compile_all(compiler, &missing, architecture, done)? {
            compiled.insert(kernel);
        }
        loader.packs.push(compiled);
        Ok(())
    }

    /// The kernel that `spec` describes.
    ///
    /// # Errors
    /// [`CudaError::MissingKernels`], [`CudaError::Compile`] or [`CudaError::Driver`].
    pub fn get(&mut self, spec: &KernelSpec) -> Result<Kernel, CudaError> {
        match &mut self.source {
            Source::List { specs, keys, .. } => {
                if keys.insert(spec.key()) {
                    specs.push(spec.clone());
                }
                Ok(Kernel::listed(spec))
            }
            Source::Open(loader) => {
                if let Some(kernel) = loader.loaded.get(&spec.key()) {
                    return Ok(kernel.clone());
                }
                if loader.find(spec).is_none() {
                    self.prepare(std::slice::from_ref(spec), |_| {})?;
                }
                self.load(spec)
            }
        }
    }

    fn load(&mut self, spec: &KernelSpec) -> Result<Kernel, CudaError> {
        let Source::Open(loader) = &mut self.source else { return Ok(Kernel::listed(spec)) };
        let cubin =
            loader.find(spec).expect("this is a bug: a kernel that was prepared is missing");
        // SAFETY: the image is whole: it comes from the compiler or from a pack, whose SHA-256 was
        // compared.
        let module = unsafe { loader.context.inner().load_module_from_bytes(cubin) };
        let function = module
            .and_then(|module| module.load_function(&spec.symbol()))
            .map_err(CudaError::driver("loading a kernel"))?;
        let block = Block::of(spec);
        // SAFETY: the function belongs to the context that is current, and lives.
        let status = unsafe {
            cuda_bindings::cuFuncSetAttribute(
                function.cu_function(),
                cuda_bindings::CUfunction_attribute_enum_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                block.shared_bytes as i32,
            )
        };
        check(status, "giving a kernel its shared memory")?;
        let kernel = Kernel {
            inner: Arc::new(Loaded {
                key: spec.key(),
                block,
                function: Some(function),
                programmatic: spec.is_programmatic()
                    && loader.context.architecture().has_programmatic_launch(),
            }),
        };
        loader.loaded.insert(spec.key(), kernel.clone());
        Ok(kernel)
    }
}

impl Loader {
    fn find(&self, spec: &KernelSpec) -> Option<&[u8]> {
        let architecture = self.context.architecture();
        let mut packs = self.packs.iter().rev();
        packs.find_map(|pack| pack.find(spec, architecture)).map(|kernel| kernel.cubin.as_slice())
    }
}

/// One kernel, ready to launch; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Kernel {
    inner: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: String,
    block: Block,
    function: Option<cuda_core::Function>,
    programmatic: bool,
}

/// What a launch gives to each block.
#[derive(Debug, Clone, Copy)]
struct Block {
    threads: u32,
    shared_bytes: u32,
}

impl Block {
    fn of(spec: &KernelSpec) -> Self {
        match spec.code() {
            Code::Assembly(code) => {
                Self { threads: code.threads as u32, shared_bytes: code.shared_bytes as u32 }
            }
            // The compiler of tiles fixes both, so one thread is asked for.
            Code::Tiles(..) => Self { threads: 1, shared_bytes: 0 },
        }
    }
}

impl Kernel {
    fn listed(spec: &KernelSpec) -> Self {
        let (key, block) = (spec.key(), Block::of(spec));
        Self { inner: Arc::new(Loaded { key, block, function: None, programmatic: false }) }
    }

    /// Its specialisation.
    pub fn key(&self) -> &str {
        &self.inner.key
    }

    /// Whether launches may overlap the end of the work ahead of them.
    pub fn is_programmatic(&self) -> bool {
        self.inner.programmatic
    }

    /// Launches `grid` blocks; an empty grid launches nothing.
    ///
    /// # Safety
    /// `arguments` are those of the kernel in order and kind, and everything that it reads or
    /// writes through them on this grid lies inside the memory that they point to.
    ///
    /// # Errors
    /// [`CudaError::NotLoaded`], [`CudaError::Alignment`] or [`CudaError::Driver`].
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [usize; 3],
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let function = self.function()?;
        arguments.check_alignment(&self.inner.key)?;
        if grid.contains(&0) {
            return Ok(());
        }
        stream.context().bind()?;
        let mut arguments = arguments;
        let (mut addresses, count) = arguments.addresses();
        let [x, y, z] = grid.map(|blocks| blocks as u32);
        let parameters = &mut addresses[..count];
        let Block { threads, shared_bytes: shared } = self.inner.block;
        // SAFETY: the function belongs to this context and lives as long as `self`.
        let function = unsafe { function.cu_function() };
        let launch = match self.inner.programmatic {
            true => cuda_core::launch_kernel_pdl,
            false => cuda_core::launch_kernel,
        };
        // SAFETY: every parameter is made of words that outlive the call; the caller vouches for what
        // they mean.
        unsafe { launch(function, (x, y, z), (threads, 1, 1), shared, stream.handle(), parameters) }
            .map_err(CudaError::driver("launching a kernel"))
    }

    fn function(&self) -> Result<&cuda_core::Function, CudaError> {
        let kernel = || CudaError::NotLoaded { kernel: self.inner.key.clone() };
        self.inner.function.as_ref().ok_or_else(kernel)
    }
}

impl Context {
    /// Waits for everything on the GPU; an error of a kernel that failed comes out here.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the context is current.
        check(unsafe { cuda_bindings::cuCtxSynchronize() }, "waiting for the GPU")
    }
}

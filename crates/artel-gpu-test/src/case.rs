use std::fmt::Display;

use artel_device::cuda::Kernels;
use libtest_mimic::Failed;

use crate::Gpu;

/// The second half of a test: with its kernels loaded, on the device. Panics when it fails.
pub(crate) type Run = Box<dyn FnOnce(&Gpu) -> Result<(), Failed> + Send>;

/// The first half: asks for the kernels of the test; also called without a GPU, to list them.
pub(crate) type Load = Box<dyn Fn(&mut Kernels) -> Result<Run, Failed>>;

/// One test.
pub struct Case {
    pub(crate) name: String,
    pub(crate) load: Load,
}

impl Case {
    /// A test that loads kernels with `load` and checks with `run` what they compute.
    pub fn new<L: Clone + Send + 'static, E: Display>(
        name: impl Into<String>,
        load: impl Fn(&mut Kernels) -> Result<L, E> + 'static,
        run: impl Fn(&Gpu, &L) -> Result<(), E> + Clone + Send + 'static,
    ) -> Self {
        let load = move |kernels: &mut Kernels| -> Result<Run, Failed> {
            let (loaded, run) = (load(kernels)?, run.clone());
            Ok(Box::new(move |gpu| Ok(run(gpu, &loaded)?)))
        };
        Self { name: name.into(), load: Box::new(load) }
    }
}

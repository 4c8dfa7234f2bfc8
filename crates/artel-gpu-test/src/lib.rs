//! The harness of tests that run on a GPU: they fail, never skip, where there is none.
//!
//! `ARTEL_KERNELS=FILE` names a kernel pack to load kernels from; what it lacks is compiled if a
//! toolkit is installed. `ARTEL_TEST_KERNELS=FILE` only compiles what the tests need into a pack,
//! without a GPU, for a machine that has one but no toolkit (`ARTEL_ARCHITECTURE`, sm_90 unless
//! told otherwise).

#![cfg(feature = "cuda")]

mod case;
mod gpu;

use std::path::Path;
use std::process::ExitCode;

use artel_device::cuda::{
    Architecture, Compiler, CudaError, KernelPack, KernelSpec, Kernels, compile_all,
};
pub use case::Case;
pub use gpu::Gpu;
pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Trial};

/// The `main` of a test program: does what the command line and the environment ask for. `cases`
/// makes the tests anew each time.
pub fn main(cases: fn() -> Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let result = match std::env::var_os("ARTEL_TEST_KERNELS") {
        Some(path) => build_pack(cases(), Path::new(&path), arguments.filter.as_deref())
            .map(|()| ExitCode::SUCCESS),
        None if arguments.list => {
            let trials = cases().into_iter().map(|case| Trial::test(case.name, || Ok(())));
            Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
        }
        None => run(cases, arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Compiles every kernel of every test whose name contains `filter`.
fn build_pack(cases: Vec<Case>, path: &Path, filter: Option<&str>) -> Result<(), CudaError> {
    let architecture = match std::env::var("ARTEL_ARCHITECTURE") {
        Ok(name) => name.parse()?,
        Err(_) => Architecture::Sm90,
    };
    let kernels = all_kernels(&cases, architecture, filter);
    let (specs, left_out): (Vec<KernelSpec>, Vec<KernelSpec>) =
        kernels.specs().iter().cloned().partition(|spec| spec.runs_on(architecture));
    let mut pack = KernelPack::default();
    for kernel in compile_all(&Compiler::find()?, &specs, architecture, |_| {})? {
        pack.insert(kernel);
    }
    pack.save(path)?;
    println!("{} kernels for {architecture} in {}", pack.len(), path.display());
    println!("{} cannot run there", left_out.len());
    Ok(())
}

fn all_kernels(cases: &[Case], architecture: Architecture, filter: Option<&str>) -> Kernels {
    let mut kernels = Kernels::list(architecture);
    for case in cases.iter().filter(|case| case.is_chosen(filter)) {
        drop((case.load)(&mut kernels).expect("listing needs no GPU"));
    }
    kernels
}

/// Runs the tests in order; the GPU is one.
fn run(cases: fn() -> Vec<Case>, mut arguments: Arguments) -> Result<ExitCode, CudaError> {
    let packs = match std::env::var_os("ARTEL_KERNELS") {
        Some(path) => vec![KernelPack::load(Path::new(&path))?],
        None => Vec::new(),
    };
    let gpu = Gpu::open()?;
    let mut kernels = Kernels::open(gpu.stream.context(), packs, Compiler::find().ok());
    let filter = arguments.filter.as_deref();
    let wanted = all_kernels(&cases(), kernels.architecture(), filter);
    kernels.prepare(wanted.specs(), |_| {})?;
    let chosen = cases().into_iter().filter(|case| case.is_chosen(filter));
    let trials = chosen.map(|case| {
        let run = (case.load)(&mut kernels);
        let gpu = gpu.clone();
        Trial::test(case.name, move || run.and_then(|run| run(&gpu)))
    });
    let trials = trials.collect();
    arguments.test_threads = Some(1);
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

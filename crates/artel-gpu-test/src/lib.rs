//! The harness of tests that run on a GPU: they fail, never skip, where there is none.
//!
//! `ARTEL_KERNELS=FILE` names a kernel pack to load kernels from; what it lacks is compiled if a
//! toolkit is installed. `ARTEL_TEST_KERNELS=FILE` only compiles what the tests need into a pack,
//! without a GPU, for a machine that has one but no toolkit (`ARTEL_ARCHITECTURE`, sm_90 unless
//! told otherwise). `ARTEL_TEST_PART=I/N` runs every Nth of the tests from the Ith, so that several
//! processes share them.

#![cfg(feature = "cuda")]

mod case;
mod chosen;
mod gpu;

use std::path::Path;
use std::process::ExitCode;

use artel_device::cuda::{
    Architecture, Compiler, CudaError, KernelPack, KernelSpec, Kernels, compile_all,
};
pub use case::Case;
use chosen::Chosen;
pub use gpu::Gpu;
pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Trial};

/// The `main` of a test program: does what the command line and the environment ask for. `cases`
/// makes the tests anew each time.
pub fn main(cases: fn() -> Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let part = std::env::var("ARTEL_TEST_PART").ok();
    let chosen = match Chosen::new(arguments.filter.clone(), part.as_deref()) {
        Ok(chosen) => chosen,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::FAILURE;
        }
    };
    let result = match std::env::var_os("ARTEL_TEST_KERNELS") {
        Some(path) => build_pack(&chosen.of(cases()), Path::new(&path)).map(|()| ExitCode::SUCCESS),
        None if arguments.list => {
            let trials =
                chosen.of(cases()).into_iter().map(|case| Trial::test(case.name, || Ok(())));
            Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
        }
        None => run(|| chosen.of(cases()), arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Compiles every kernel of these tests.
fn build_pack(cases: &[Case], path: &Path) -> Result<(), CudaError> {
    let architecture = match std::env::var("ARTEL_ARCHITECTURE") {
        Ok(name) => name.parse()?,
        Err(_) => Architecture::Sm90,
    };
    let kernels = all_kernels(cases, architecture);
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

fn all_kernels(cases: &[Case], architecture: Architecture) -> Kernels {
    let mut kernels = Kernels::list(architecture);
    for case in cases {
        drop((case.load)(&mut kernels).expect("listing needs no GPU"));
    }
    kernels
}

/// Runs the tests in order; the GPU is one.
fn run(cases: impl Fn() -> Vec<Case>, mut arguments: Arguments) -> Result<ExitCode, CudaError> {
    let packs = match std::env::var_os("ARTEL_KERNELS") {
        Some(path) => vec![KernelPack::load(Path::new(&path))?],
        None => Vec::new(),
    };
    let gpu = Gpu::open()?;
    let mut kernels = Kernels::open(gpu.stream.context(), packs, Compiler::find().ok());
    let wanted = all_kernels(&cases(), kernels.architecture());
    kernels.prepare(wanted.specs(), |_| {})?;
    let trials = cases().into_iter().map(|case| {
        let run = (case.load)(&mut kernels);
        let gpu = gpu.clone();
        Trial::test(case.name, move || run.and_then(|run| run(&gpu)))
    });
    let trials = trials.collect();
    arguments.test_threads = Some(1);
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

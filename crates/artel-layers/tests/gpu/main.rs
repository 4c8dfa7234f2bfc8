//! Every kernel against its reference, on GPU 0. Fails, never skips, where there is no GPU.
//!
//! `ARTEL_KERNELS=FILE` names a kernel pack to load kernels from; what it lacks is compiled if a
//! toolkit is installed. `ARTEL_TEST_KERNELS=FILE` only compiles what the tests need into a pack,
//! without a GPU, for a machine that has one but no toolkit (`ARTEL_ARCHITECTURE`, sm_90 unless
//! told otherwise).

mod attention;
mod embedding;
mod gpu;
mod linear;
mod rms_norm;
mod rope;
mod sample;

use std::path::Path;
use std::process::ExitCode;

use artel_device::cuda::{
    Architecture, Compiler, CudaError, KernelPack, KernelSpec, Kernels, compile_all,
};
use gpu::{Case, Gpu};
use libtest_mimic::{Arguments, Failed, Trial};

/// All tests, operation by operation.
fn cases() -> Vec<Case> {
    [
        rms_norm::cases(),
        linear::cases(),
        rope::cases(),
        attention::cases(),
        embedding::cases(),
        sample::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let result = match std::env::var_os("ARTEL_TEST_KERNELS") {
        Some(path) => {
            build_pack(Path::new(&path), arguments.filter.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        None if arguments.list => Ok(libtest_mimic::run(&arguments, listed()).exit_code()),
        None => run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn listed() -> Vec<Trial> {
    cases().into_iter().map(|case| Trial::test(case.name, || Ok(()))).collect()
}

/// Compiles every kernel of every test whose name contains `filter`.
fn build_pack(path: &Path, filter: Option<&str>) -> Result<(), CudaError> {
    let architecture = match std::env::var("ARTEL_ARCHITECTURE") {
        Ok(name) => name.parse()?,
        Err(_) => Architecture::Sm90,
    };
    let kernels = all_kernels(architecture, filter);
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

/// The tests whose name contains `filter`.
fn chosen(filter: Option<&str>) -> impl Iterator<Item = Case> {
    cases().into_iter().filter(move |case| filter.is_none_or(|filter| case.name.contains(filter)))
}

fn all_kernels(architecture: Architecture, filter: Option<&str>) -> Kernels {
    let mut kernels = Kernels::list(architecture);
    for case in chosen(filter) {
        drop((case.load)(&mut kernels).expect("listing needs no GPU"));
    }
    kernels
}

/// Runs the tests in order; the GPU is one.
fn run(mut arguments: Arguments) -> Result<ExitCode, CudaError> {
    let packs = match std::env::var_os("ARTEL_KERNELS") {
        Some(path) => vec![KernelPack::load(Path::new(&path))?],
        None => Vec::new(),
    };
    let gpu = Gpu::open()?;
    let mut kernels = Kernels::open(gpu.stream.context(), packs, Compiler::find().ok());
    let filter = arguments.filter.as_deref();
    kernels.prepare(all_kernels(kernels.architecture(), filter).specs(), |_| {})?;
    let trials = chosen(filter).map(|case| {
        let run = (case.load)(&mut kernels);
        let gpu = gpu.clone();
        Trial::test(case.name, move || run.and_then(|run| run(&gpu)).map_err(Failed::from))
    });
    let trials = trials.collect();
    arguments.test_threads = Some(1);
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

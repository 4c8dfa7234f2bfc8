//! Models on GPU 0 against the same models on the CPU; how to run it stands in `artel_gpu_test`.

mod cases;
mod models;
mod session;

use std::process::ExitCode;

fn main() -> ExitCode {
    artel_gpu_test::main(cases::cases)
}

//! The engine on GPU 0 against the engine on the CPU, on the bundled model; how to run it stands in
//! `artel_gpu_test`.

mod cases;
mod problems;
mod subject;

use std::process::ExitCode;

fn main() -> ExitCode {
    artel_gpu_test::main(cases::cases)
}

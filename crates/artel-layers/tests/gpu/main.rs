//! Every kernel against its reference, on GPU 0; how to run it stands in `artel_gpu_test`.

mod attention;
mod embedding;
mod exchange;
mod feed;
mod linear;
mod numbers;
mod rms_norm;
mod rope;
mod sample;
mod single;

use std::process::ExitCode;

use artel_gpu_test::Case;

/// All tests, operation by operation.
fn cases() -> Vec<Case> {
    [
        rms_norm::cases(),
        linear::cases(),
        rope::cases(),
        attention::cases(),
        embedding::cases(),
        exchange::cases(),
        feed::cases(),
        sample::cases(),
        single::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    artel_gpu_test::main(cases)
}

//! Every kernel against its reference, on GPU 0; how to run it stands in `artel_gpu_test`.

mod activation;
mod assignment;
mod combine;
mod count;
mod cuda;
mod decode;
mod gate;
mod gating;
mod input_weight;
mod layer;
mod map_and_record;
mod packing;
mod prefill;
mod quant_activations;
mod router;
mod shared;

use std::process::ExitCode;

use artel_gpu_test::Case;

/// All tests, operation by operation.
fn cases() -> Vec<Case> {
    [
        packing::cases(),
        prefill::cases(),
        router::cases(),
        shared::cases(),
        gate::cases(),
        map_and_record::cases(),
        combine::cases(),
        count::cases(),
        quant_activations::cases(),
        assignment::cases(),
        activation::cases(),
        decode::cases(),
        layer::cases(),
        gating::cases(),
        input_weight::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    artel_gpu_test::main(cases)
}

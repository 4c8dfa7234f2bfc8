//! One token of one sequence, mapped back to hidden states.

use artel_device::cuda::PinnedBuffer;
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::cuda::CacheSlices;
use artel_layers::attention::decode::cuda::DecodeWorkspace;
use artel_layers::attention::decode::single::cuda::SingleAttention;
use artel_layers::linear::cuda::{LinearNumbers, LinearShape, LinearWeight, LinearWorkspace};
use artel_layers::linear::reference as linear;
use artel_layers::linear::single::cuda::ProjectAttention;
use half::bf16;

use super::{Layer, Paged, Sequence, layer, parameters, sequences};
use crate::linear::{Weight, assert_near};
use crate::numbers::numbers;
use crate::single::{TOLERANCE, exact};

/// On both sides of a block, a step, a part, the parts that are added at once and all that have room.
const LENGTHS: [usize; 20] =
    [1, 2, 15, 16, 17, 48, 63, 64, 65, 127, 128, 129, 576, 577, 1000, 1088, 2048, 2049, 4097, 9000];

pub fn cases() -> Vec<Case> {
    let windows =
        [1, 16, 65, 1000].map(|window| Layer { window: Some(window), ..layer(32, 4, 128) });
    let others =
        [(layer(32, 4, 128), 2048, 8), (layer(48, 8, 128), 2048, 8), (layer(4, 1, 128), 256, 1)];
    let others = others.into_iter().chain(windows.map(|layer| (layer, 256, 8)));
    others.map(|(layer, outputs, parts)| case(layer, outputs, parts)).collect()
}

type Kernels = Option<(SingleAttention, ProjectAttention)>;

fn case(layer: Layer, outputs: usize, parts: usize) -> Case {
    let inputs = layer.shape.output_width();
    let shape = LinearShape { outputs, inputs, numbers: LinearNumbers::Fp8Block128, bias: false };
    let name = format!("attention::single::{}_to_{outputs}", layer.name());
    let load = move |kernels: &mut _| {
        let project = ProjectAttention::load(kernels, shape, &layer.shape, parts)?;
        Ok::<Kernels, LayersError>(SingleAttention::load(kernels, &layer.shape)?.zip(project))
    };
    Case::new(name, load, move |gpu, kernels| {
        let Some(kernels) = kernels else {
            assert!(gpu.stream.context().architecture().to_string() != "sm_90", "no kernel");
            return Ok(());
        };
        for length in LENGTHS {
            let first = check(gpu, kernels, (&layer, shape, parts), length)?;
            let again = check(gpu, kernels, (&layer, shape, parts), length)?;
            assert_eq!(first, again, "two runs give the same bits");
        }
        Ok(())
    })
}

fn check(
    gpu: &Gpu,
    (attention, project): &(SingleAttention, ProjectAttention),
    (layer, shape, parts): (&Layer, LinearShape, usize),
    length: usize,
) -> Result<Vec<f32>, LayersError> {
    let outputs = shape.outputs;
    let sequence = Sequence::<bf16>::new(&layer.shape, length, length);
    let queries = numbers::<bf16>(layer.shape.query_width(), 31);
    let mixed = layer.expected(&queries, &sequence);
    let mixed: Vec<bf16> = mixed.into_iter().map(|value| bf16::from_f32(value as f32)).collect();
    let weight = Weight::new::<bf16>(shape);
    let expected = linear::forward(&weight.host, 1, &exact(&mixed));

    let Paged { mut keys, mut values, tables, lengths, table_stride, sequences: count } =
        Paged::new(gpu, &layer.shape, &[sequence]);
    let (queries, sinks) = (gpu.upload(&queries), gpu.upload(&layer.sinks()));
    let (bytes, scales) = (gpu.upload(&weight.bytes), gpu.upload(&weight.scales));
    let weight = LinearWeight { numbers: bytes.slice(), scales: scales.slice(), bias: None };
    let mut workspace = DecodeWorkspace::new(gpu.stream.context(), &layer.shape, count)?;
    let mut sums = LinearWorkspace::new(gpu.stream.context(), 1)?;
    let cache = CacheSlices { keys: keys.slice_mut(), values: values.slice_mut() };
    let sequences = sequences(&tables, &lengths, [table_stride, count]);
    let (operands, parameters) = ((queries.slice(), &cache), parameters(layer, &sinks));
    let stream = &gpu.stream;
    let of_keys = attention.launch(stream, operands, &sequences, &parameters, &mut workspace)?;
    project.launch(stream, &of_keys, weight, &mut sums)?;
    let mut found = PinnedBuffer::<f32>::zeroed(gpu.stream.context(), parts * outputs)?;
    found.read_from(stream, sums.parts(1).sums.range(0, parts * outputs)?)?;
    let found: Vec<f32> = (0..outputs)
        .map(|at| found.as_slice().chunks(outputs).map(|part| part[at]).sum())
        .collect();
    assert_near(&found, &expected, (outputs, TOLERANCE));
    Ok(found)
}

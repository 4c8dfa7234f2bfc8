//! The rest of a decoder block: norms, linear maps, rotation, attention, sampling.
//!
//! Weights and keys are cold: launches take turns at copies that are more than the GPU's cache.

use anyhow::Result;
use artel_device::cuda::{Context, DeviceBuffer, Kernels, Stream};
use artel_layers::attention::AttentionShape;
use artel_layers::linear::cuda::{
    Linear, LinearNumbers, LinearRows, LinearShape, LinearWeight, LinearWorkspace,
};
use artel_layers::rms_norm::cuda::{Delta, NormRows, Normalize, Residual};
use half::bf16;

use super::attention::AttentionSteps;
use super::cuda::{Report, noise, times, upload};
use super::rows::numbers as numbers_of;
use super::sample::SampleStep;
use super::{Floor, LAUNCHES, Only};

/// Bytes that launches go through before they come back to the first: four times the cache.
const COLD_BYTES: usize = 200 << 20;

/// Most tokens of a step that is measured.
const TOKENS_MAX: usize = 16384;

/// What a decoder block is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    pub(super) name: &'static str,
    hidden: usize,
    pub(super) attention: AttentionShape,
    pub(super) rotary_dim: usize,
    vocabulary: usize,
    numbers: LinearNumbers,
}

/// Qwen3-30B-A3B and MiniMax-M2.5.
fn shapes() -> [BlockShape; 2] {
    let heads = |query_heads, kv_heads| AttentionShape {
        query_heads,
        kv_heads,
        key_dim: 128,
        value_dim: 128,
        values: artel_layers::attention::ValueStorage::Own,
    };
    [
        BlockShape {
            name: "Qwen3-30B",
            hidden: 2048,
            attention: heads(32, 4),
            rotary_dim: 128,
            vocabulary: 151_936,
            numbers: LinearNumbers::Plain,
        },
        BlockShape {
            name: "M2.5",
            hidden: 3072,
            attention: heads(48, 8),
            rotary_dim: 64,
            vocabulary: 200_064,
            numbers: LinearNumbers::Fp8Block128,
        },
    ]
}

/// Copies of something of `bytes` bytes that are more than the cache.
pub(super) fn cold_copies(bytes: usize) -> usize {
    COLD_BYTES.div_ceil(bytes.max(1)).clamp(1, LAUNCHES)
}

/// Every kernel that is measured.
pub(super) struct BlockSteps {
    shapes: Vec<ShapeSteps>,
}

struct ShapeSteps {
    shape: BlockShape,
    norm: Normalize<f32, bf16>,
    maps: Vec<(&'static str, LinearShape, Linear<bf16>)>,
    head: (LinearShape, Linear<bf16>),
    attention: AttentionSteps,
    sample: SampleStep,
}

impl BlockSteps {
    pub(super) fn load(kernels: &mut Kernels) -> Result<Self> {
        let shapes = shapes().into_iter().map(|shape| ShapeSteps::load(kernels, shape));
        Ok(Self { shapes: shapes.collect::<Result<_>>()? })
    }

    pub(super) fn measure(
        &self,
        stream: &Stream,
        only: &Only,
        report: &mut Report<'_>,
    ) -> Result<()> {
        self.shapes.iter().try_for_each(|steps| steps.measure(stream, only, report))
    }
}

impl ShapeSteps {
    fn load(kernels: &mut Kernels, shape: BlockShape) -> Result<Self> {
        let BlockShape { hidden, attention, vocabulary, numbers, .. } = shape;
        let map = |outputs, inputs| LinearShape { outputs, inputs, numbers, bias: false };
        let joint = attention.query_width() + attention.key_width() + attention.value_width();
        let maps = [("qkv", map(joint, hidden)), ("o", map(hidden, attention.output_width()))];
        let mut loaded = Vec::new();
        for (name, map) in maps {
            loaded.push((name, map, Linear::load(kernels, map, TOKENS_MAX)?));
        }
        let head = LinearShape { numbers: LinearNumbers::Plain, ..map(vocabulary, hidden) };
        Ok(Self {
            shape,
            norm: Normalize::load(kernels, hidden, 1e-6, Residual::Add)?,
            maps: loaded,
            head: (head, Linear::load(kernels, head, 64)?),
            attention: AttentionSteps::load(kernels, shape)?,
            sample: SampleStep::load(kernels, shape.name, vocabulary)?,
        })
    }

    fn measure(&self, stream: &Stream, only: &Only, report: &mut Report<'_>) -> Result<()> {
        if only.wants("norm") {
            for tokens in [1, 64, 8192] {
                self.norm(stream, tokens, report)?;
            }
        }
        if only.wants("linear") {
            self.linear(stream, report)?;
        }
        if only.wants("attention") {
            self.attention.measure(stream, report)?;
        }
        if only.wants("sample") {
            for rows in [1, 64] {
                self.sample.measure(stream, rows, report)?;
            }
        }
        Ok(())
    }

    fn linear(&self, stream: &Stream, report: &mut Report<'_>) -> Result<()> {
        let name = self.shape.name;
        let mut workspace = LinearWorkspace::new(stream.context(), TOKENS_MAX)?;
        for (map, shape, linear) in &self.maps {
            let weights = Weights::new(stream.context(), shape)?;
            for tokens in [1, 8, 64, 256, 1024, 8192] {
                let times = weights.times(stream, (linear, &mut workspace), tokens)?;
                report(&format!("{name} {map}"), tokens, weights.floor(tokens), &times);
            }
        }
        let (shape, linear) = &self.head;
        let weights = Weights::new(stream.context(), shape)?;
        for tokens in [1, 64] {
            let times = weights.times(stream, (linear, &mut workspace), tokens)?;
            report(&format!("{name} head"), tokens, weights.floor(tokens), &times);
        }
        Ok(())
    }

    fn norm(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let BlockShape { name, hidden, .. } = self.shape;
        let mut residual = upload(stream, &noise(tokens * hidden))?;
        let delta = upload(stream, &numbers_of(tokens * hidden))?;
        let weight = upload(stream, &noise(hidden))?;
        let mut out = DeviceBuffer::<bf16>::zeroed(stream.context(), tokens * hidden)?;
        let times = times(stream, |stream, _| {
            let (hidden, delta) = (residual.slice_mut(), Delta::Rows(delta.slice()));
            let rows = NormRows { hidden, delta, weight: weight.slice(), tokens };
            self.norm.launch(stream, &rows, &mut out.slice_mut())
        })?;
        let bytes = tokens * hidden * (4 + 4 + 2 + 2);
        report(&format!("{name} add and norm"), tokens, Floor::bytes(bytes), &times);
        Ok(())
    }
}

/// Copies of one weight.
struct Weights {
    shape: LinearShape,
    numbers: DeviceBuffer<u8>,
    scales: DeviceBuffer<f32>,
    copies: usize,
}

impl Weights {
    fn new(context: &Context, shape: &LinearShape) -> Result<Self> {
        let copies = cold_copies(Self::bytes(shape));
        let scales = match shape.numbers {
            LinearNumbers::Plain => 0,
            LinearNumbers::Fp8Block128 => {
                (shape.outputs.div_ceil(128) * shape.inputs.div_ceil(128)).next_multiple_of(4)
            }
        };
        let numbers = small_bytes(context, copies * Self::bytes(shape))?;
        let ones = vec![1.0; copies * scales];
        let scales = DeviceBuffer::from_host(context, &ones)?;
        Ok(Self { shape: *shape, numbers, scales, copies })
    }

    fn bytes(shape: &LinearShape) -> usize {
        let number = if shape.numbers == LinearNumbers::Plain { 2 } else { 1 };
        shape.outputs * shape.inputs * number
    }

    fn floor(&self, tokens: usize) -> Floor {
        let LinearShape { outputs, inputs, numbers, .. } = self.shape;
        let row = inputs * if numbers == LinearNumbers::Plain { 2 } else { 1 } + 2 * outputs;
        let operations = 2.0 * (tokens * outputs * inputs) as f64;
        Floor::bytes(Self::bytes(&self.shape) + tokens * row).or_operations(operations, numbers)
    }

    fn times(
        &self,
        stream: &Stream,
        (linear, workspace): (&Linear<bf16>, &mut LinearWorkspace),
        tokens: usize,
    ) -> Result<Vec<f64>> {
        let LinearShape { outputs, inputs, numbers, .. } = self.shape;
        let padded = Linear::<bf16>::padded(tokens);
        let rows = upload(stream, &numbers_of(padded * inputs))?;
        let codes = small_bytes(stream.context(), padded * inputs)?;
        let row_scales = upload(stream, &vec![1.0f32; padded * inputs.div_ceil(128)])?;
        let mut out = DeviceBuffer::<bf16>::zeroed(stream.context(), padded * outputs)?;
        let bytes = Self::bytes(&self.shape);
        let scales = self.scales.len() / self.copies;
        times(stream, |stream, launch| {
            let copy = launch % self.copies;
            let weight = LinearWeight {
                numbers: self.numbers.slice().range(copy * bytes, bytes)?,
                scales: self.scales.slice().range(copy * scales, scales)?,
                bias: None,
            };
            let rows = match numbers {
                LinearNumbers::Plain => LinearRows::Plain(rows.slice()),
                LinearNumbers::Fp8Block128 => {
                    LinearRows::Fp8 { codes: codes.slice(), scales: row_scales.slice() }
                }
            };
            linear.launch(stream, workspace, tokens, (rows, weight), &mut out.slice_mut())
        })
    }
}

/// Bytes that are small numbers of both signs, in bfloat16 as in FP8.
fn small_bytes(context: &Context, len: usize) -> Result<DeviceBuffer<u8>> {
    const PATTERN: usize = 1 << 24;
    let byte = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 24) as u8 & 0xbf;
    let pattern: Vec<u8> = (0..PATTERN.min(len)).map(byte).collect();
    let mut bytes = DeviceBuffer::new(context, len)?;
    for start in (0..len).step_by(PATTERN) {
        bytes.write(start, &pattern[..PATTERN.min(len - start)])?;
    }
    Ok(bytes)
}

//! Linear maps on the GPU: maps that read the same rows are one, their outputs side by side.

use artel_device::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernels, Stream};
use artel_layers::linear::Linear as HostLinear;
use artel_layers::linear::cuda::{
    FEW_ROWS_MAX, Linear, LinearNumbers, LinearRows, LinearShape, LinearWeight, LinearWorkspace,
};
use artel_moe::quant::{AnyMatrix, BLOCK, WeightMatrix};
use half::bf16;

use super::rows::CodeRows;
use super::upload::Upload;
use crate::{ModelError, Result};

/// What the kernels of `maps` must know, which read the same rows.
///
/// Weights in FP8 blocks stay what they are, where the next map begins with a block of its own; all
/// other formats are multiplied as bfloat16, to which they are rounded once.
pub(super) fn shape_of(maps: &[&HostLinear]) -> LinearShape {
    let in_blocks = maps.iter().all(|map| matches!(map.weight(), AnyMatrix::Fp8Block128(_)));
    let (_, first) = maps.split_last().expect("this is a bug: no linear map");
    let begins_blocks = first.iter().all(|map| map.outputs().is_multiple_of(BLOCK));
    LinearShape {
        outputs: maps.iter().map(|map| map.outputs()).sum(),
        inputs: maps[0].inputs(),
        numbers: match in_blocks && begins_blocks {
            true => LinearNumbers::Fp8Block128,
            false => LinearNumbers::Plain,
        },
        bias: maps.iter().any(|map| map.bias().is_some()),
    }
}

/// Whether rows are multiplied as codes.
pub(super) fn reads_codes(shape: &LinearShape) -> bool {
    shape.numbers == LinearNumbers::Fp8Block128
}

/// Codes of a row that the map reads.
pub(super) fn codes_width(shape: &LinearShape) -> usize {
    if reads_codes(shape) { shape.inputs } else { 0 }
}

/// Asks for the kernels of a map.
pub(super) fn load(
    kernels: &mut Kernels,
    shape: LinearShape,
    tokens_max: usize,
) -> Result<Linear<bf16>> {
    let architecture = kernels.architecture();
    if reads_codes(&shape) && !architecture.has_fp8() {
        let why = format!("{architecture} does not multiply it; convert with --format bf16");
        return Err(ModelError::NotOnGpu { what: "a linear map in FP8", why });
    }
    Ok(Linear::load(kernels, shape, tokens_max)?)
}

/// The weights of maps that read the same rows, one below the other.
#[derive(Debug)]
pub(super) struct MapWeights {
    numbers: DeviceBuffer<u8>,
    scales: DeviceBuffer<f32>,
    bias: Option<DeviceBuffer<f32>>,
}

impl MapWeights {
    /// Copies the weights.
    pub(super) fn upload(upload: &mut Upload<'_>, maps: &[&HostLinear]) -> Result<Self> {
        let shape = shape_of(maps);
        let number_bytes = if reads_codes(&shape) { 1 } else { size_of::<bf16>() };
        let mut numbers = upload.context().buffer(shape.outputs * shape.inputs * number_bytes)?;
        let (mut written, mut scales) = (0, Vec::new());
        for map in maps {
            match map.weight() {
                AnyMatrix::Fp8Block128(matrix) if reads_codes(&shape) => {
                    upload.write(&mut numbers, &mut written, matrix.numbers())?;
                    let blocks = matrix.rows().div_ceil(BLOCK) * matrix.columns().div_ceil(BLOCK);
                    scales.extend((0..blocks).map(|block| matrix.scales().get(block)));
                }
                AnyMatrix::Bf16(matrix) => {
                    upload.write(&mut numbers, &mut written, matrix.numbers())?;
                }
                other => upload.write_rounded(&mut numbers, &mut written, other)?,
            }
        }
        let scales = DeviceBuffer::from_host(upload.context(), &scales)?;
        let bias = match shape.bias {
            true => Some(DeviceBuffer::from_host(upload.context(), &biases(maps))?),
            false => None,
        };
        Ok(Self { numbers, scales, bias })
    }

    /// Plain numbers as a table of rows.
    pub(super) fn table(&self) -> DeviceSlice<'_, bf16> {
        self.numbers.slice().cast()
    }

    /// What a kernel reads.
    pub(super) fn slices(&self) -> LinearWeight<'_> {
        LinearWeight {
            numbers: self.numbers.slice(),
            scales: self.scales.slice(),
            bias: self.bias.as_ref().map(DeviceBuffer::slice),
        }
    }
}

/// The biases one after the other, zeros for a map without.
fn biases(maps: &[&HostLinear]) -> Vec<f32> {
    let bias = |map: &&HostLinear| match map.bias() {
        Some(bias) => bias.to_vec(),
        None => vec![0.0; map.outputs()],
    };
    maps.iter().flat_map(bias).collect()
}

/// Products of a step: their stream, the memory that they share, and the rows in use.
pub(super) struct Products<'a> {
    pub(super) stream: &'a Stream,
    pub(super) workspace: &'a mut LinearWorkspace,
    pub(super) tokens: usize,
}

impl Products<'_> {
    /// Maps plain rows, or codes where the map reads them, to `out`.
    pub(super) fn launch(
        &mut self,
        (kernels, weights): (&Linear<bf16>, &MapWeights),
        rows: MapRows<'_>,
        out: &mut DeviceSliceMut<'_, bf16>,
    ) -> Result<()> {
        let operands = (rows.slices(), weights.slices());
        Ok(kernels.launch(self.stream, self.workspace, self.tokens, operands, out)?)
    }

    /// As [`launch`](Self::launch), unless the map leaves so few rows in parts, which the next launch
    /// adds.
    pub(super) fn launch_in_parts(
        &mut self,
        (kernels, weights): (&Linear<bf16>, &MapWeights),
        rows: MapRows<'_>,
        out: &mut DeviceSliceMut<'_, bf16>,
    ) -> Result<Left> {
        if kernels.parts().is_none() || self.tokens > FEW_ROWS_MAX {
            self.launch((kernels, weights), rows, out)?;
            return Ok(Left::Rows);
        }
        let operands = (rows.slices(), weights.slices());
        let (stream, workspace) = (self.stream, &mut *self.workspace);
        Ok(Left::Parts(kernels.launch_parts(stream, workspace, self.tokens, operands)?))
    }
}

/// What a map left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Rows.
    Rows,
    /// Parts of so many rows, in the memory of linear maps.
    Parts(usize),
}

/// What a map reads.
#[derive(Clone, Copy)]
pub(super) enum MapRows<'a> {
    Plain(&'a DeviceBuffer<bf16>),
    Codes(&'a CodeRows),
}

impl<'a> MapRows<'a> {
    fn slices(self) -> LinearRows<'a, bf16> {
        match self {
            Self::Plain(rows) => LinearRows::Plain(rows.slice()),
            Self::Codes(rows) => {
                LinearRows::Fp8 { codes: rows.codes.slice(), scales: rows.scales.slice() }
            }
        }
    }
}

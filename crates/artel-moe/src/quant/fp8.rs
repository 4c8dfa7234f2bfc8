//! What all FP8 formats share: a matrix of codes, how activations meet it, and how kernels read it.

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;

use super::e4m3::{E4M3_MAX, e4m3_from_f32, e4m3_to_f32, round_to_e4m3};
use super::{ActivationScales, Element, NumberFormat, ScaleGrid, Scales, WeightMatrix};
use super::{check_cut, columns_of, elements_of};
use crate::MoeError;

/// Rows and columns of a weight block, and elements of an activation group.
pub const BLOCK: usize = 128;

/// Smallest magnitude that an activation scale is made for, so that zeros have one.
const SMALLEST_MAGNITUDE: f32 = 1e-10;

/// A format whose weights are e4m3 codes and whose activations are quantised on the fly.
pub(crate) trait Fp8Format: NumberFormat<Activation = bf16> {}

/// `[rows, columns]` e4m3 codes, row-major, over shared bytes.
#[derive(Debug, Clone)]
pub(super) struct Fp8Codes {
    buffer: HostBuffer,
    pub rows: usize,
    pub columns: usize,
}

impl Fp8Codes {
    pub fn new(buffer: HostBuffer, rows: usize, columns: usize) -> Result<Self, MoeError> {
        MoeError::check_shape("FP8 codes", rows.saturating_mul(columns), buffer.len())?;
        Ok(Self { buffer, rows, columns })
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.buffer.as_bytes()
    }

    pub fn cut_rows(&self, rows: &Range<usize>) -> Result<Self, MoeError> {
        check_cut("rows of a matrix", rows, self.rows)?;
        let buffer = elements_of::<u8>(&self.buffer, rows, self.columns);
        Ok(Self { buffer, rows: rows.len(), columns: self.columns })
    }

    pub fn cut_columns(&self, columns: &Range<usize>) -> Result<Self, MoeError> {
        check_cut("columns of a matrix", columns, self.columns)?;
        let buffer = HostBuffer::from_vec(columns_of(self.as_bytes(), self.columns, columns));
        Ok(Self { buffer, rows: self.rows, columns: columns.len() })
    }

    /// Writes one row as float32; `scale` is asked for each column.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32], scale: impl Fn(usize) -> f32) {
        let codes = &self.as_bytes()[row * self.columns..(row + 1) * self.columns];
        for (column, (out, &code)) in out.iter_mut().zip(codes).enumerate() {
            *out = e4m3_to_f32(code) * scale(column);
        }
    }
}

/// The largest magnitude of `values` and `largest`; NaN does not count.
pub(super) fn largest_magnitude(largest: f32, values: &[f32]) -> f32 {
    values.iter().fold(largest, |largest, value| largest.max(value.abs()))
}

/// The scale of weights: their largest magnitude becomes 448. Zeros have scale 1, and so have
/// numbers so small that their scale would be subnormal: they round to zero.
pub(super) fn weight_scale(largest: f32) -> f32 {
    let exact = largest / E4M3_MAX;
    if exact.is_normal() { exact } else { 1.0 }
}

/// What a scale is multiplied by to try others: larger ones over an octave, within which codes meet the
/// numbers in every way that there is, and a few that cut the largest number off.
const SCALE_FACTORS: [f32; 13] =
    [1.0, 1.06, 1.13, 1.2, 1.28, 1.37, 1.47, 1.6, 1.78, 0.97, 0.93, 0.88, 0.82];

/// The scale that numbers ask for, and others beside it.
pub(super) fn weight_scales(usual: f32) -> [f32; SCALE_FACTORS.len()] {
    SCALE_FACTORS.map(|factor| usual * factor)
}

/// What a code makes of a number.
#[inline(always)]
pub(super) fn rounded_weight(value: f32, scale: f32) -> f32 {
    round_to_e4m3(value / scale) * scale
}

/// Codes of weights with one scale. NaN becomes the NaN code.
pub(super) fn quantize_weights(values: &[f32], scale: f32, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = e4m3_from_f32(value / scale);
    }
}

/// The scale of activations by themselves: `max(absmax, 1e-10) / 448`; NaN does not count.
#[inline(always)]
pub(crate) fn activation_scale(values: &[bf16]) -> f32 {
    let mut largest = 0.0;
    for value in values {
        let magnitude = Element::to_f32(*value).abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    scale_for(largest)
}

/// The scale of activations whose largest magnitude is known.
#[inline(always)]
pub(crate) fn scale_for(largest: f32) -> f32 {
    largest.max(SMALLEST_MAGNITUDE) / E4M3_MAX
}

/// The scale of a whole row where there is one: the weights' own, or else what its numbers ask for.
#[inline(always)]
pub(crate) fn row_scale(
    scales: ActivationScales,
    input_scale: Option<f32>,
    dynamic: impl FnOnce() -> f32,
) -> Option<f32> {
    match scales {
        ActivationScales::None | ActivationScales::Group | ActivationScales::Int8Row => None,
        ActivationScales::Row => Some(input_scale.unwrap_or_else(dynamic)),
    }
}

/// Quantises one group of at most [`BLOCK`] activations: `out` becomes e4m3 values, and
/// `out * scale` is the quantised input. The scale is the row's where it has one.
#[inline(always)]
pub(crate) fn quantize_group(group: &[bf16], row_scale: Option<f32>, out: &mut [f32]) -> f32 {
    let scale = row_scale.unwrap_or_else(|| activation_scale(group));
    for (out, value) in out.iter_mut().zip(group) {
        *out = round_to_e4m3(Element::to_f32(*value) / scale);
    }
    scale
}

/// A run of columns that share an activation group and a weight scale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Never empty, and inside of one group.
    pub columns: Range<usize>,
    /// Activation group: 128 columns each.
    pub group: usize,
    /// Column of the weight scales.
    pub scale: usize,
}

impl Segment {
    /// Where the columns are inside their group.
    pub fn in_group(&self) -> Range<usize> {
        self.columns.start - self.group * BLOCK..self.columns.end - self.group * BLOCK
    }
}

/// All columns of a matrix in segments. Weight blocks begin `offset` columns before the matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments {
    columns: usize,
    offset: usize,
}

impl Segments {
    /// Number of segments: one a group, or two where weight blocks end inside of groups.
    pub fn len(self) -> usize {
        let groups = self.columns.div_ceil(BLOCK);
        if self.offset == 0 {
            return groups;
        }
        // The last group may end before the weight block does.
        let last = self.columns - groups.saturating_sub(1) * BLOCK;
        2 * groups - usize::from(groups > 0 && last <= BLOCK - self.offset)
    }

    #[inline(always)]
    pub fn get(self, index: usize) -> Segment {
        let (group, part) = if self.offset == 0 { (index, 0) } else { (index / 2, index % 2) };
        let first = group * BLOCK;
        let middle = first + BLOCK - self.offset;
        let columns = if part == 0 { first..middle } else { middle..first + BLOCK };
        let columns = columns.start..columns.end.min(self.columns);
        Segment { columns, group, scale: group + part }
    }

    pub fn iter(self) -> impl Iterator<Item = Segment> {
        (0..self.len()).map(move |index| self.get(index))
    }
}

/// Some rows of FP8 weights as kernels read them. Blocks of weights do not end inside the panel.
#[derive(Clone, Copy)]
pub(crate) struct Fp8Panel<'a> {
    /// `[rows, columns]`.
    pub codes: &'a [u8],
    pub rows: usize,
    pub columns: usize,
    pub segments: Segments,
    scales: &'a [f32],
    scale_step: usize,
    row_scales: Option<&'a [f32]>,
}

impl<'a> Fp8Panel<'a> {
    pub fn new<M: WeightMatrix>(matrix: &'a M, rows: Range<usize>) -> Self {
        let columns = matrix.columns();
        let (grid, Scales::F32(scales)) = (matrix.scale_grid(), matrix.scales()) else {
            panic!("this is a bug: FP8 codes with scales that are not float32");
        };
        let panel = Self {
            codes: &matrix.numbers()[rows.start * columns..rows.end * columns],
            rows: rows.len(),
            columns,
            segments: Segments { columns, offset: 0 },
            scales,
            scale_step: 0,
            row_scales: None,
        };
        match grid {
            ScaleGrid::Tensor => panel,
            ScaleGrid::Channel => Self { scales: &[1.0], row_scales: Some(&scales[rows]), ..panel },
            ScaleGrid::Block { column_offset, .. } => Self {
                segments: Segments { columns, offset: column_offset },
                scales: &scales[grid.index(rows.start, 0, columns)..],
                scale_step: 1,
                ..panel
            },
            ScaleGrid::None | ScaleGrid::Groups { .. } => {
                panic!("this is a bug: FP8 codes with {grid:?}")
            }
        }
    }

    /// The scale of all weights in a segment, but for scales of rows.
    #[inline(always)]
    pub fn scale(&self, segment: &Segment) -> f32 {
        self.scales[segment.scale * self.scale_step]
    }

    /// Multiplies products `[tokens][pitch]` by the scales of the panel's rows, if they have any.
    pub fn scale_rows(&self, out: &mut [f32], pitch: usize) {
        let Some(row_scales) = self.row_scales else {
            return;
        };
        for out in out.chunks_mut(pitch) {
            out.iter_mut().zip(row_scales).for_each(|(out, scale)| *out *= scale);
        }
    }
}

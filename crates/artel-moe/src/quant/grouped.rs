//! What the formats share whose weights have a scale per group of neighbours in a row, and whose
//! activations stay as they are: INT4, INT8, NVFP4, MXFP4 and MXFP8.

use std::marker::PhantomData;
use std::ops::Range;

use artel_device::HostBuffer;
use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use super::{Fit, MatrixTensors, NumberFormat, ScaleGrid, Scales, WeightMatrix};
use super::{check_cut, columns_of, e2m1_to_f32, e4m3_to_f32, elements_of, room};
use crate::MoeError;

/// Smallest group that kernels read: columns of one step of theirs share at most two scales.
pub(crate) const SMALLEST_GROUP: usize = 16;

/// What the stored numbers mean before they are scaled. All values are exact in bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 0 to 15 stand for -8 to 7.
    Int4,
    /// FP4.
    E2m1,
    /// -128 to 127, two's complement.
    Int8,
    /// FP8.
    E4m3,
}

impl Code {
    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int4 | Self::E2m1 => 4,
            Self::Int8 | Self::E4m3 => 8,
        }
    }

    /// The number that a code stands for.
    pub const fn value(self, code: u8) -> f32 {
        match self {
            Self::Int4 => (code & 15) as f32 - 8.0,
            Self::E2m1 => e2m1_to_f32(code),
            Self::Int8 => code as i8 as f32,
            Self::E4m3 => e4m3_to_f32(code),
        }
    }

    /// The values of the codes of four bits.
    pub(crate) const fn nibble_values(self) -> [f32; 16] {
        let mut values = [0.0; 16];
        let mut code = 0;
        while code < 16 {
            values[code] = self.value(code as u8);
            code += 1;
        }
        values
    }

    /// Bytes of a row.
    pub(crate) const fn row_bytes(self, columns: usize) -> usize {
        match self.bits() {
            4 => columns.div_ceil(2),
            _ => columns,
        }
    }
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleCode {
    /// float32.
    F32,
    /// FP8, for [`GroupedMatrix`] with a scale of all of it.
    E4m3,
    /// Powers of two.
    E8m0,
}

impl ScaleCode {
    const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::E4m3 | Self::E8m0 => 1,
        }
    }

    /// `bytes` of them as scales.
    fn scales(self, buffer: &HostBuffer) -> Scales<'_> {
        match self {
            Self::F32 => Scales::F32(buffer.as_slice()),
            Self::E4m3 => Scales::E4m3(buffer.as_bytes()),
            Self::E8m0 => Scales::E8m0(buffer.as_bytes()),
        }
    }
}

/// A format whose weights are codes with a scale per group.
pub trait GroupedFormat: NumberFormat<Activation = bf16, Matrix = GroupedMatrix<Self>> {
    /// The numbers.
    const CODE: Code;
    /// The scales.
    const SCALE: ScaleCode;
}

/// `[rows, columns]` codes and `[rows, ceil(columns / group)]` scales: number `[n, k]` is
/// `(value(code[n, k]) - zero_point[n, k / group]) * scale[n, k / group] * global`.
///
/// Two codes of four bits share a byte, the even column in its low half; a row begins with a byte of
/// its own.
#[derive(Debug, Clone)]
pub struct GroupedMatrix<F> {
    codes: HostBuffer,
    scales: HostBuffer,
    zero_points: Option<HostBuffer>,
    global: f32,
    rows: usize,
    columns: usize,
    group: usize,
    format: PhantomData<F>,
}

impl<F: GroupedFormat> GroupedMatrix<F> {
    /// A matrix over codes and scales that share a scale among `group` neighbours.
    ///
    /// # Errors
    /// [`MoeError`] when codes or scales have the wrong number of bytes, or the group is neither a
    /// power of two of at least 16 nor the whole row.
    pub(super) fn from_parts(
        codes: HostBuffer,
        scales: HostBuffer,
        [rows, columns]: [usize; 2],
        group: usize,
    ) -> Result<Self, MoeError> {
        let group = check_group(group, columns)?;
        let row_bytes = F::CODE.row_bytes(columns);
        MoeError::check_shape("codes (bytes)", rows.saturating_mul(row_bytes), codes.len())?;
        let scale_bytes = rows.saturating_mul(columns.div_ceil(group) * F::SCALE.bytes());
        MoeError::check_shape("scales of groups (bytes)", scale_bytes, scales.len())?;
        let scales = if F::SCALE == ScaleCode::F32 { scales.aligned_for::<f32>() } else { scales };
        let format = PhantomData;
        Ok(Self { codes, scales, zero_points: None, global: 1.0, rows, columns, group, format })
    }

    /// The same with zero points, one for each scale: `i8`, what is subtracted from the value of a
    /// code.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when there is another number of them than of scales.
    pub(super) fn with_zero_points(self, zero_points: HostBuffer) -> Result<Self, MoeError> {
        let groups = self.rows * self.groups();
        MoeError::check_shape("zero points", groups, zero_points.len())?;
        Ok(Self { zero_points: Some(zero_points), ..self })
    }

    /// The same with a scale of all numbers.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a scale that is not finite.
    pub(super) fn with_global_scale(self, global: f32) -> Result<Self, MoeError> {
        if global.is_finite() {
            return Ok(Self { global, ..self });
        }
        Err(MoeError::config("global scale of weights", global, "a finite number"))
    }

    /// Quantises a matrix whose rows `row` writes as float32. `quantize` turns the numbers of a group
    /// into codes, one a byte, and returns their scale, with what `fit` says of their columns.
    ///
    /// # Errors
    /// As [`GroupedMatrix::from_parts`], and [`MoeError`] when the matrix is too large or `fit` is for
    /// another one.
    pub(super) fn quantize_groups<S: Pod + Send + Sync>(
        [rows, columns]: [usize; 2],
        (group, fit): (usize, Fit<'_>),
        row: impl Fn(usize, &mut [f32]) + Sync,
        quantize: impl Fn(&[f32], Fit<'_>, &mut [u8]) -> (S, i8) + Sync,
    ) -> Result<(Self, Vec<i8>), MoeError> {
        fit.check(columns)?;
        let group = check_group(group, columns)?;
        let (row_bytes, groups) = (F::CODE.row_bytes(columns), columns.div_ceil(group));
        let mut codes = room::<u8>(rows, row_bytes)?;
        let mut scales = room::<S>(rows, groups)?;
        let mut zero_points = room::<i8>(rows, groups)?;
        codes
            .par_chunks_mut(row_bytes.max(1))
            .zip(scales.par_chunks_mut(groups.max(1)))
            .zip(zero_points.par_chunks_mut(groups.max(1)))
            .enumerate()
            .for_each_init(
                || (vec![0f32; columns], vec![0u8; columns]),
                |(values, wide), (index, ((codes, scales), zero_points))| {
                    row(index, values);
                    let parts = values.chunks(group).zip(wide.chunks_mut(group));
                    let out = scales.iter_mut().zip(zero_points);
                    for (index, ((values, wide), out)) in parts.zip(out).enumerate() {
                        let fit = fit.cut(index * group..index * group + values.len());
                        (*out.0, *out.1) = quantize(values, fit, wide);
                    }
                    pack(F::CODE, wide, codes);
                },
            );
        let (codes, scales) = (HostBuffer::from_vec(codes), HostBuffer::from_vec(scales));
        Ok((Self::from_parts(codes, scales, [rows, columns], group)?, zero_points))
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Scales of a row.
    fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    fn row_bytes(&self) -> usize {
        F::CODE.row_bytes(self.columns)
    }
}

/// A group that kernels can read; one that is not smaller than a row covers it, whatever its size.
fn check_group(group: usize, columns: usize) -> Result<usize, MoeError> {
    if group >= columns && group > 0 {
        return Ok(columns.next_power_of_two().max(SMALLEST_GROUP));
    }
    if group.is_power_of_two() && group >= SMALLEST_GROUP {
        return Ok(group);
    }
    let allowed = format!("a power of two, at least {SMALLEST_GROUP}, or all {columns} of a row");
    Err(MoeError::config("weights that share a scale", group, allowed))
}

/// Codes, one a byte, as a row stores them.
fn pack(code: Code, wide: &[u8], codes: &mut [u8]) {
    match code.bits() {
        4 => {
            for (packed, pair) in codes.iter_mut().zip(wide.chunks(2)) {
                *packed = pair[0] & 15 | pair.get(1).map_or(0, |odd| odd << 4);
            }
        }
        _ => codes.copy_from_slice(wide),
    }
}

impl<F: GroupedFormat> WeightMatrix for GroupedMatrix<F> {
    const NUMBER_BITS: usize = F::CODE.bits();

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let nibble_values = const { F::CODE.nibble_values() };
        let (scales, zero_points) = (self.scales(), self.zero_points());
        let codes = &self.numbers()[row * self.row_bytes()..];
        for (index, out) in out[..self.columns].chunks_mut(self.group).enumerate() {
            let place = row * self.groups() + index;
            let zero_point = zero_points.map_or(0.0, |all| f32::from(all[place] as i8));
            let (scale, first) = (scales.get(place), index * self.group);
            for (column, out) in (first..).zip(out) {
                let value = match F::CODE.bits() {
                    4 => nibble_values[usize::from(codes[column / 2] >> (column % 2 * 4) & 15)],
                    _ => F::CODE.value(codes[column]),
                };
                *out = (value - zero_point) * scale * self.global;
            }
        }
    }

    fn numbers(&self) -> &[u8] {
        self.codes.as_bytes()
    }

    fn scale_grid(&self) -> ScaleGrid {
        ScaleGrid::Groups { columns: self.group }
    }

    fn scales(&self) -> Scales<'_> {
        F::SCALE.scales(&self.scales)
    }

    fn zero_points(&self) -> Option<&[u8]> {
        self.zero_points.as_ref().map(HostBuffer::as_bytes)
    }

    fn global_scale(&self) -> Option<f32> {
        (F::SCALE == ScaleCode::E4m3).then_some(self.global)
    }

    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError> {
        let MatrixTensors { numbers, scales, zero_points, global_scale, .. } = tensors;
        let shape = [self.rows, self.columns];
        let matrix = Self::from_parts(numbers, scales, shape, self.group)?;
        let matrix = matrix.with_global_scale(global_scale.unwrap_or(1.0))?;
        match zero_points {
            Some(zero_points) => matrix.with_zero_points(zero_points),
            None => Ok(matrix),
        }
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        check_cut("rows of a matrix", &rows, self.rows)?;
        let groups = self.groups();
        let zero_points = self.zero_points.as_ref();
        Ok(Self {
            codes: elements_of::<u8>(&self.codes, &rows, self.row_bytes()),
            scales: elements_of::<u8>(&self.scales, &rows, groups * F::SCALE.bytes()),
            zero_points: zero_points.map(|all| elements_of::<u8>(all, &rows, groups)),
            rows: rows.len(),
            ..self.clone()
        })
    }

    /// A matrix that begins inside a group has smaller groups, each with the scale of the one that it
    /// lay in: from column 192 on, groups of 128 become groups of 64.
    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        check_cut("columns of a matrix", &columns, self.columns)?;
        let one_group = self.group >= self.columns;
        let group = match columns.start.trailing_zeros() {
            _ if one_group => self.group,
            zeros => self.group.min(1 << zeros.min(usize::BITS - 1)),
        };
        let per_byte = 8 / F::CODE.bits();
        if group < SMALLEST_GROUP || !columns.start.is_multiple_of(per_byte) {
            let allowed = format!("a multiple of {SMALLEST_GROUP}, where groups share a scale");
            return Err(MoeError::config("first column of a shard", columns.start, allowed));
        }
        let bytes = columns.start / per_byte..columns.end.div_ceil(per_byte);
        let mut codes = columns_of(self.codes.as_bytes(), self.row_bytes(), &bytes);
        if !columns.end.is_multiple_of(per_byte) {
            // Another shard's column.
            codes.chunks_mut(bytes.len()).for_each(|row| row[bytes.len() - 1] &= 15);
        }
        let places: Vec<usize> = (columns.start..columns.end)
            .step_by(group.min(columns.len().max(1)))
            .map(|column| column / self.group)
            .collect();
        let scale_bytes = F::SCALE.bytes();
        let repeated = |all: &HostBuffer, size: usize| {
            let rows = all.as_bytes().chunks((self.groups() * size).max(1));
            let copies = rows.flat_map(|row| {
                places.iter().flat_map(|place| &row[place * size..(place + 1) * size])
            });
            HostBuffer::from_vec(copies.copied().collect::<Vec<u8>>())
        };
        let scales = repeated(&self.scales, scale_bytes);
        let aligned = |buffer: HostBuffer| match F::SCALE {
            ScaleCode::F32 => buffer.aligned_for::<f32>(),
            ScaleCode::E4m3 | ScaleCode::E8m0 => buffer,
        };
        Ok(Self {
            codes: HostBuffer::from_vec(codes),
            scales: aligned(scales),
            zero_points: self.zero_points.as_ref().map(|all| repeated(all, 1)),
            columns: columns.len(),
            group: check_group(group, columns.len())?,
            ..self.clone()
        })
    }
}

/// Some rows as kernels read them.
#[derive(Clone, Copy)]
pub(crate) struct GroupedPanel<'a> {
    /// `[rows][row_bytes]`.
    pub codes: &'a [u8],
    pub row_bytes: usize,
    pub rows: usize,
    pub columns: usize,
    /// Columns that share a scale: a power of two from [`SMALLEST_GROUP`] on.
    pub group: usize,
    /// Scales of a row.
    pub groups: usize,
    pub global: f32,
    scales: Scales<'a>,
    zero_points: Option<&'a [u8]>,
}

impl<'a> GroupedPanel<'a> {
    pub fn new<F: GroupedFormat>(matrix: &'a GroupedMatrix<F>, rows: Range<usize>) -> Self {
        let (row_bytes, groups) = (matrix.row_bytes(), matrix.groups());
        let of_rows = rows.start * groups..rows.end * groups;
        let scales = match matrix.scales() {
            Scales::F32(scales) => Scales::F32(&scales[of_rows.clone()]),
            Scales::E4m3(scales) => Scales::E4m3(&scales[of_rows.clone()]),
            Scales::E8m0(scales) => Scales::E8m0(&scales[of_rows.clone()]),
        };
        Self {
            codes: &matrix.numbers()[rows.start * row_bytes..rows.end * row_bytes],
            row_bytes,
            rows: rows.len(),
            columns: matrix.columns,
            group: matrix.group,
            groups,
            global: matrix.global,
            scales,
            zero_points: matrix.zero_points().map(|all| &all[of_rows]),
        }
    }

    /// Whether the numbers have zero points.
    pub fn has_zero_points(&self) -> bool {
        self.zero_points.is_some()
    }

    /// Scales of groups `groups` of a row as float32.
    #[inline(always)]
    pub fn write_scales(&self, row: usize, groups: Range<usize>, out: &mut [f32]) {
        let range = row * self.groups + groups.start..row * self.groups + groups.end;
        match self.scales {
            Scales::F32(scales) => out[..groups.len()].copy_from_slice(&scales[range]),
            Scales::E4m3(scales) => {
                for (out, &code) in out.iter_mut().zip(&scales[range]) {
                    *out = e4m3_without_branches(code);
                }
            }
            Scales::E8m0(scales) => {
                for (out, &code) in out.iter_mut().zip(&scales[range]) {
                    *out = e8m0_without_branches(code);
                }
            }
        }
    }

    /// What is added to the values of codes of groups `groups` of a row: minus the zero points.
    #[inline(always)]
    pub fn write_offsets(&self, row: usize, groups: Range<usize>, out: &mut [f32]) {
        if let Some(zero_points) = self.zero_points {
            let range = row * self.groups + groups.start..row * self.groups + groups.end;
            for (out, &zero_point) in out.iter_mut().zip(&zero_points[range]) {
                *out = -f32::from(zero_point as i8);
            }
        }
    }
}

/// As [`e4m3_to_f32`], in a form that becomes vectors: exponent and mantissa moved to where float32
/// has them are the value over `2^120`, subnormals included.
#[inline(always)]
fn e4m3_without_branches(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let value = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
}

/// As [`super::e8m0_to_f32`], in a form that becomes vectors.
#[inline(always)]
fn e8m0_without_branches(code: u8) -> f32 {
    let value = f32::from_bits(u32::from(code) << 23);
    let value = if code == 255 { f32::NAN } else { value };
    if code == 0 { f32::from_bits(1 << 22) } else { value }
}

#[cfg(test)]
mod tests {
    use super::super::e8m0_to_f32;
    use super::*;

    #[test]
    fn scales_without_branches_are_the_same() {
        for code in 0..=255u8 {
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(same(e4m3_without_branches(code), e4m3_to_f32(code)), "{code}");
            assert!(same(e8m0_without_branches(code), e8m0_to_f32(code)), "{code}");
        }
    }
}

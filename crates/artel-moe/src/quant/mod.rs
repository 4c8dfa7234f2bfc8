//! Number formats: one file per format, and a format is a type.
//!
//! A weight matrix is kept as the checkpoint stores it (`[rows, columns]`, row-major: one row is
//! one output feature) and widened in registers when it is used.

mod any;
pub mod activations;
mod bfloat16;
mod e2m1;
mod e4m3;
mod e8m0;
mod fit;
mod float16;
mod float32;
mod formats;
mod fp8;
mod fp8_block128;
mod fp8_channel;
mod fp8_tensor;
mod grouped;
mod int4_w4a16;
mod int8_w8a16;
mod int8_w8a8;
mod mxfp4;
mod mxfp8;
mod nvfp4;
pub mod reference;
mod scales;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_fit;
#[cfg(test)]
mod tests_of_groups;

pub use any::{AnyMatrix, Format};
use artel_device::HostBuffer;
pub use bfloat16::Bf16;
use bytemuck::Pod;
pub use e2m1::{E2M1_MAX, e2m1_from_f32, e2m1_to_f32};
pub use e4m3::{E4M3_MAX, e4m3_from_f32, e4m3_to_f32};
pub use e8m0::e8m0_to_f32;
pub use fit::Fit;
pub use float16::F16;
pub use float32::F32;
pub(crate) use formats::{each_format, for_each_format, map_format};
pub(crate) use formats::{match_and_wrap_format, match_format};
pub use fp8::BLOCK;
pub(crate) use fp8::{
    Fp8Format, Fp8Panel, Segment, activation_scale, quantize_group, row_scale, scale_for,
};
pub use fp8_block128::{Fp8Block128, Fp8BlockMatrix};
pub use fp8_channel::{Fp8Channel, Fp8ChannelMatrix};
pub use fp8_tensor::{Fp8Tensor, Fp8TensorMatrix};
pub(crate) use grouped::GroupedPanel;
pub use grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use half::{bf16, f16};
pub use int4_w4a16::{Int4Matrix, Int4W4A16, ZeroPoints};
pub(crate) use int8_w8a8::quantize_row_to_int8;
pub use int8_w8a8::{INT8_MAX, Int8ChannelMatrix, Int8W8A8, int8_from_f32};
pub use int8_w8a16::{Int8GroupMatrix, Int8W8A16};
pub use mxfp4::{Mxfp4, Mxfp4Matrix};
pub use mxfp8::{Mxfp8, Mxfp8Matrix};
pub use nvfp4::{Nvfp4, Nvfp4Matrix};
use rayon::prelude::*;
pub use scales::{ScaleGrid, Scales};
use std::ops::Range;

use crate::MoeError;

/// A number that hidden states and dense weights are made of.
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// Name as people write it: `f32`, `f16`, `bf16`.
    const NAME: &'static str;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

macro_rules! element {
    ($type:ty, $name:literal, $to:expr, $from:expr) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                $from(value)
            }
        }
    };
}
element!(f32, "f32", std::convert::identity, std::convert::identity);
element!(f16, "f16", f16::to_f32, f16::from_f32);
element!(bf16, "bf16", bf16_to_f32, bf16_from_f32);

/// Without branches, so that loops over it become vectors.
#[inline(always)]
fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// As above; NaN stays NaN.
#[inline(always)]
fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    bf16::from_bits(if value.is_nan() { quiet_nan } else { rounded } as u16)
}

/// Which activations share a scale when a product quantises them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationScales {
    /// They are not quantised.
    None,
    /// 128 neighbouring columns of a row, from the first column on.
    Group,
    /// A row; or all rows, where the weights say which scale.
    Row,
    /// A row, and they become int8 instead of FP8.
    Int8Row,
}

/// How weights are stored and what flows between the steps.
pub trait NumberFormat: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Name as people write it.
    const NAME: &'static str;
    /// How a product quantises its activations.
    const ACTIVATION_SCALES: ActivationScales;
    /// Hidden states and intermediates: the type of the one cast at the end of each step.
    type Activation: Element;
    /// One weight matrix.
    type Matrix: WeightMatrix;
    /// A matrix whose rows `row` writes as float32, rounded to nearest with scales that `fit` asks for.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large to be addressed, or `fit` is for another one.
    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self::Matrix, MoeError>;
}

/// What a matrix stores besides its shape: see the methods of [`WeightMatrix`] of the same names.
#[derive(Debug, Clone)]
pub struct MatrixTensors {
    /// As bytes.
    pub numbers: HostBuffer,
    /// As bytes.
    pub scales: HostBuffer,
    /// One `i8` for each scale.
    pub zero_points: Option<HostBuffer>,
    /// Of all numbers.
    pub global_scale: Option<f32>,
    /// Of all activations.
    pub input_scale: Option<f32>,
}

/// One weight matrix `[rows, columns]` in its stored format.
pub trait WeightMatrix: Send + Sync + Clone + std::fmt::Debug + 'static {
    /// Bits of one stored number.
    const NUMBER_BITS: usize;
    /// Output features.
    fn rows(&self) -> usize;
    /// Input features.
    fn columns(&self) -> usize;
    /// Bytes that one use of the whole matrix reads, scales included.
    fn bytes(&self) -> usize {
        let zero_points = self.zero_points().map_or(0, <[u8]>::len);
        self.numbers().len() + self.scales().bytes().len() + zero_points
    }
    /// Writes one row as float32; `out` holds `columns` values. Exact.
    fn dequantize_row(&self, row: usize, out: &mut [f32]);
    /// The stored numbers `[rows, columns]` as bytes. Where two share a byte, the even column is in
    /// the low half, and a row begins with a byte of its own.
    fn numbers(&self) -> &[u8];
    /// Which numbers share a scale.
    fn scale_grid(&self) -> ScaleGrid {
        ScaleGrid::None
    }
    /// The scales in the shape that the grid has, row by row.
    fn scales(&self) -> Scales<'_> {
        Scales::F32(&[])
    }
    /// What is subtracted from a number before it is scaled, one for each scale: as `i8`, from the
    /// middle of the numbers.
    fn zero_points(&self) -> Option<&[u8]> {
        None
    }
    /// What all scales are multiplied by, in formats that have such a scale.
    fn global_scale(&self) -> Option<f32> {
        None
    }
    /// The scale of all activations that this matrix meets, where it was measured beforehand.
    fn input_scale(&self) -> Option<f32> {
        None
    }
    /// A matrix of the same shape and grid of scales over other tensors.
    ///
    /// # Errors
    /// [`MoeError`] when lengths differ from this one's, or a scale is not allowed.
    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError>;
    /// Some rows, over the same bytes.
    ///
    /// # Errors
    /// [`MoeError::Config`] for rows that are not there.
    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError>;
    /// Some columns, copied so that they are row-major again.
    ///
    /// # Errors
    /// [`MoeError::Config`] for columns that are not there.
    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError>;
}

/// A matrix of plain numbers, row-major, over shared bytes.
#[derive(Debug, Clone)]
pub struct DenseMatrix<T> {
    buffer: HostBuffer,
    rows: usize,
    columns: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> DenseMatrix<T> {
    /// A matrix over `buffer`; copies the bytes only when their address is odd for `T`.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the buffer does not hold `rows * columns` numbers.
    pub fn new(buffer: HostBuffer, rows: usize, columns: usize) -> Result<Self, MoeError> {
        let expected = rows.saturating_mul(columns).saturating_mul(size_of::<T>());
        MoeError::check_shape("a dense weight matrix (bytes)", expected, buffer.len())?;
        let buffer = buffer.aligned_for::<T>();
        Ok(Self { buffer, rows, columns, element: std::marker::PhantomData })
    }

    /// A matrix whose rows `row` writes as float32, rounded to nearest.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the matrix is too large to be addressed.
    pub fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let mut elements = room::<T>(rows, columns)?;
        elements.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
            || vec![0.0; columns],
            |wide, (index, out)| {
                row(index, wide);
                out.iter_mut().zip(wide).for_each(|(out, wide)| *out = T::from_f32(*wide));
            },
        );
        Self::new(HostBuffer::from_vec(elements), rows, columns)
    }

    /// All numbers, row-major.
    pub fn elements(&self) -> &[T] {
        self.buffer.as_slice()
    }
}

impl<T: Element> WeightMatrix for DenseMatrix<T> {
    const NUMBER_BITS: usize = 8 * size_of::<T>();

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let start = row * self.columns;
        for (out, element) in out.iter_mut().zip(&self.elements()[start..start + self.columns]) {
            *out = element.to_f32();
        }
    }

    fn numbers(&self) -> &[u8] {
        self.buffer.as_bytes()
    }

    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError> {
        let MatrixTensors { numbers, scales, .. } = tensors;
        MoeError::check_shape("scales of plain numbers (bytes)", 0, scales.len())?;
        Self::new(numbers, self.rows, self.columns)
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        check_cut("rows of a matrix", &rows, self.rows)?;
        let buffer = elements_of::<T>(&self.buffer, &rows, self.columns);
        Ok(Self { buffer, rows: rows.len(), ..self.clone() })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        check_cut("columns of a matrix", &columns, self.columns)?;
        let buffer = HostBuffer::from_vec(columns_of(self.elements(), self.columns, &columns));
        Ok(Self { buffer, columns: columns.len(), ..self.clone() })
    }
}

/// Zeros for the numbers of a matrix.
fn room<T: Pod>(rows: usize, columns: usize) -> Result<Vec<T>, MoeError> {
    let bytes = rows.checked_mul(columns).and_then(|size| size.checked_mul(size_of::<T>()));
    match bytes.filter(|&bytes| bytes <= isize::MAX as usize) {
        Some(_) => Ok(vec![T::zeroed(); rows * columns]),
        None => Err(MoeError::config("rows of a matrix", rows, "what memory can address")),
    }
}

/// Checks that a part of a matrix is inside of it.
fn check_cut(what: &'static str, cut: &Range<usize>, size: usize) -> Result<(), MoeError> {
    if cut.start <= cut.end && cut.end <= size {
        return Ok(());
    }
    Err(MoeError::config(what, format!("{}..{}", cut.start, cut.end), format!("inside 0..{size}")))
}

/// Rows `rows` of `buffer`, which holds rows of `columns` numbers of type `T`. They must be there.
fn elements_of<T>(buffer: &HostBuffer, rows: &Range<usize>, columns: usize) -> HostBuffer {
    let pitch = columns * size_of::<T>();
    let part = buffer.slice(rows.start * pitch..rows.end * pitch);
    part.unwrap_or_else(|why| panic!("this is a bug: rows were not checked: {why}"))
}

/// A copy of columns `part` of rows of `columns` numbers. They must be there.
fn columns_of<T: Copy>(elements: &[T], columns: usize, part: &Range<usize>) -> Vec<T> {
    elements.chunks(columns.max(1)).flat_map(|row| &row[part.clone()]).copied().collect()
}

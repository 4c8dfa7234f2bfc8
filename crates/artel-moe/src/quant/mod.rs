//! Number formats: one file per format, and a format is a type.
//!
//! A weight matrix is kept as the checkpoint stores it (`[rows, columns]`, row-major: one row is
//! one output feature) and widened in registers when it is used.

mod bfloat16;
mod float16;
mod float32;
mod fp8_block128;

use artel_device::HostBuffer;
pub use bfloat16::Bf16;
use bytemuck::Pod;
pub use float16::F16;
pub use float32::F32;
pub(crate) use fp8_block128::quantize_group;
pub use fp8_block128::{BLOCK, E4M3_MAX, Fp8Block128, Fp8BlockMatrix, e4m3_from_f32, e4m3_to_f32};
use half::{bf16, f16};
use rayon::prelude::*;

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

/// How weights are stored and what flows between the steps.
pub trait NumberFormat: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Name as people write it.
    const NAME: &'static str;
    /// Hidden states and intermediates: the type of the one cast at the end of each step.
    type Activation: Element;
    /// One weight matrix.
    type Matrix: WeightMatrix;
}

/// One weight matrix `[rows, columns]` in its stored format.
pub trait WeightMatrix: Send + Sync + Clone + std::fmt::Debug + 'static {
    /// Output features.
    fn rows(&self) -> usize;
    /// Input features.
    fn columns(&self) -> usize;
    /// Bytes that one use of the whole matrix reads, scales included.
    fn bytes(&self) -> usize;
    /// Writes one row as float32; `out` holds `columns` values. Exact.
    fn dequantize_row(&self, row: usize, out: &mut [f32]);
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

    /// All numbers, row-major.
    pub fn elements(&self) -> &[T] {
        self.buffer.as_slice()
    }
}

impl<T: Element> WeightMatrix for DenseMatrix<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.buffer.len()
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let start = row * self.columns;
        for (out, element) in out.iter_mut().zip(&self.elements()[start..start + self.columns]) {
            *out = element.to_f32();
        }
    }
}

/// A weight matrix whose format the checkpoint chose.
#[derive(Debug, Clone)]
pub enum AnyMatrix {
    /// float32.
    F32(DenseMatrix<f32>),
    /// IEEE half precision.
    F16(DenseMatrix<f16>),
    /// bfloat16.
    Bf16(DenseMatrix<bf16>),
    /// FP8 e4m3 with a float32 scale per 128x128 block.
    Fp8Block128(Fp8BlockMatrix),
}

impl AnyMatrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        self.as_weight_matrix(|matrix| matrix.rows())
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.as_weight_matrix(|matrix| matrix.columns())
    }

    /// Bytes that one use of the whole matrix reads, scales included.
    pub fn bytes(&self) -> usize {
        self.as_weight_matrix(|matrix| matrix.bytes())
    }

    /// Name of the format.
    pub fn format_name(&self) -> &'static str {
        self.format().name()
    }

    /// Writes one row as float32; `out` holds `columns` values. Exact.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.as_weight_matrix(|matrix| matrix.dequantize_row(row, out));
    }

    fn as_weight_matrix<R>(&self, read: impl FnOnce(&dyn DynWeightMatrix) -> R) -> R {
        match self {
            Self::F32(matrix) => read(matrix),
            Self::F16(matrix) => read(matrix),
            Self::Bf16(matrix) => read(matrix),
            Self::Fp8Block128(matrix) => read(matrix),
        }
    }
}

/// Names of the formats, to ask for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// float32.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// FP8 e4m3 with a float32 scale per 128x128 block.
    Fp8Block128,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Fp8Block128];

    /// Name as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => F32::NAME,
            Self::F16 => F16::NAME,
            Self::Bf16 => Bf16::NAME,
            Self::Fp8Block128 => Fp8Block128::NAME,
        }
    }
}

impl std::str::FromStr for Format {
    type Err = MoeError;

    fn from_str(name: &str) -> Result<Self, MoeError> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            MoeError::config("number format", name, format!("one of {names}"))
        })
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl AnyMatrix {
    /// Format of the numbers.
    pub fn format(&self) -> Format {
        match self {
            Self::F32(_) => Format::F32,
            Self::F16(_) => Format::F16,
            Self::Bf16(_) => Format::Bf16,
            Self::Fp8Block128(_) => Format::Fp8Block128,
        }
    }

    /// The same matrix in another format, rounded to nearest. Shares the bytes when the format is
    /// the same.
    ///
    /// # Errors
    /// [`MoeError`] when the result is too large to be addressed.
    pub fn convert(&self, format: Format) -> Result<Self, MoeError> {
        let (rows, columns) = (self.rows(), self.columns());
        if format == self.format() {
            return Ok(self.clone());
        }
        Ok(match format {
            Format::F32 => Self::F32(self.to_dense()?),
            Format::F16 => Self::F16(self.to_dense()?),
            Format::Bf16 => Self::Bf16(self.to_dense()?),
            Format::Fp8Block128 => {
                let row = |row, out: &mut [f32]| self.dequantize_row(row, out);
                Self::Fp8Block128(Fp8BlockMatrix::quantize(rows, columns, row)?)
            }
        })
    }

    fn to_dense<T: Element>(&self) -> Result<DenseMatrix<T>, MoeError> {
        let (rows, columns) = (self.rows(), self.columns());
        let mut elements = vec![T::from_f32(0.0); rows * columns];
        elements.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
            || vec![0.0; columns],
            |wide, (row, out)| {
                self.dequantize_row(row, wide);
                out.iter_mut().zip(wide).for_each(|(out, wide)| *out = T::from_f32(*wide));
            },
        );
        DenseMatrix::new(HostBuffer::from_vec(elements), rows, columns)
    }
}

/// [`WeightMatrix`] without `Clone`, so that it can be a trait object.
trait DynWeightMatrix {
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    fn bytes(&self) -> usize;
    fn dequantize_row(&self, row: usize, out: &mut [f32]);
}

impl<M: WeightMatrix> DynWeightMatrix for M {
    fn rows(&self) -> usize {
        WeightMatrix::rows(self)
    }

    fn columns(&self) -> usize {
        WeightMatrix::columns(self)
    }

    fn bytes(&self) -> usize {
        WeightMatrix::bytes(self)
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        WeightMatrix::dequantize_row(self, row, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bfloat16_rounds_as_the_standard_type_does(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            prop_assert!(ours.to_bits() == theirs.to_bits());
            let (wide, expected) = (Element::to_f32(ours), ours.to_f32());
            prop_assert!(wide == expected || wide.is_nan() && expected.is_nan());
        }
    }
}

//! Formats that are chosen while the program runs: the one of a checkpoint, or one asked for.

use std::ops::Range;

use artel_device::HostBuffer;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Bf16, DenseMatrix, Element, F16, F32, NumberFormat, WeightMatrix};
use super::{
    Fp8Block128, Fp8BlockMatrix, Fp8Channel, Fp8ChannelMatrix, Fp8Tensor, Fp8TensorMatrix,
};
use crate::MoeError;

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
    /// FP8 e4m3 with a float32 scale per matrix.
    Fp8Tensor(Fp8TensorMatrix),
    /// FP8 e4m3 with a float32 scale per row.
    Fp8Channel(Fp8ChannelMatrix),
}

/// Runs the same expression on the matrix of whichever format.
macro_rules! each_matrix {
    ($any:expr, $matrix:ident => $run:expr) => {
        match $any {
            AnyMatrix::F32($matrix) => $run,
            AnyMatrix::F16($matrix) => $run,
            AnyMatrix::Bf16($matrix) => $run,
            AnyMatrix::Fp8Block128($matrix) => $run,
            AnyMatrix::Fp8Tensor($matrix) => $run,
            AnyMatrix::Fp8Channel($matrix) => $run,
        }
    };
}

/// As above for an expression that makes a matrix of the same format.
macro_rules! map_matrix {
    ($any:expr, $matrix:ident => $run:expr) => {
        match $any {
            AnyMatrix::F32($matrix) => AnyMatrix::F32($run),
            AnyMatrix::F16($matrix) => AnyMatrix::F16($run),
            AnyMatrix::Bf16($matrix) => AnyMatrix::Bf16($run),
            AnyMatrix::Fp8Block128($matrix) => AnyMatrix::Fp8Block128($run),
            AnyMatrix::Fp8Tensor($matrix) => AnyMatrix::Fp8Tensor($run),
            AnyMatrix::Fp8Channel($matrix) => AnyMatrix::Fp8Channel($run),
        }
    };
}

impl AnyMatrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        each_matrix!(self, matrix => matrix.rows())
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        each_matrix!(self, matrix => matrix.columns())
    }

    /// Bytes that one use of the whole matrix reads, scales included.
    pub fn bytes(&self) -> usize {
        each_matrix!(self, matrix => matrix.bytes())
    }

    /// Name of the format.
    pub fn format_name(&self) -> &'static str {
        self.format().name()
    }

    /// Writes one row as float32; `out` holds `columns` values. Exact.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        each_matrix!(self, matrix => matrix.dequantize_row(row, out));
    }

    /// As [`WeightMatrix::cut_rows`].
    ///
    /// # Errors
    /// [`MoeError::Config`] for rows that are not there.
    pub fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        Ok(map_matrix!(self, matrix => matrix.cut_rows(rows)?))
    }

    /// As [`WeightMatrix::cut_columns`].
    ///
    /// # Errors
    /// [`MoeError::Config`] for columns that are not there.
    pub fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        Ok(map_matrix!(self, matrix => matrix.cut_columns(columns)?))
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
    /// FP8 e4m3 with a float32 scale per matrix.
    Fp8Tensor,
    /// FP8 e4m3 with a float32 scale per row.
    Fp8Channel,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::F16, Self::Bf16, Self::Fp8Block128, Self::Fp8Tensor, Self::Fp8Channel];

    /// Name as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => F32::NAME,
            Self::F16 => F16::NAME,
            Self::Bf16 => Bf16::NAME,
            Self::Fp8Block128 => Fp8Block128::NAME,
            Self::Fp8Tensor => Fp8Tensor::NAME,
            Self::Fp8Channel => Fp8Channel::NAME,
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
            Self::Fp8Tensor(_) => Format::Fp8Tensor,
            Self::Fp8Channel(_) => Format::Fp8Channel,
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
        let row = |row, out: &mut [f32]| self.dequantize_row(row, out);
        Ok(match format {
            Format::F32 => Self::F32(self.to_dense()?),
            Format::F16 => Self::F16(self.to_dense()?),
            Format::Bf16 => Self::Bf16(self.to_dense()?),
            Format::Fp8Block128 => Self::Fp8Block128(Fp8BlockMatrix::quantize(rows, columns, row)?),
            Format::Fp8Tensor => Self::Fp8Tensor(Fp8TensorMatrix::quantize(rows, columns, row)?),
            Format::Fp8Channel => Self::Fp8Channel(Fp8ChannelMatrix::quantize(rows, columns, row)?),
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

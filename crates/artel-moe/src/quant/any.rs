//! Formats that are chosen while the program runs: the one of a checkpoint, or one asked for.

use std::ops::Range;

use super::{Fit, NumberFormat, WeightMatrix, each_format, for_each_format, map_format};
use crate::MoeError;

/// The enums over the formats.
macro_rules! define_any_matrix {
    (() $($(#[doc = $doc:literal])* $Format:ident $field:ident)*) => {
        /// A weight matrix whose format the checkpoint chose.
        #[derive(Debug, Clone)]
        pub enum AnyMatrix {
            $($(#[doc = $doc])* $Format(<super::$Format as NumberFormat>::Matrix),)*
        }

        /// Names of the formats, to ask for one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Format {
            $($(#[doc = $doc])* $Format,)*
        }

        impl Format {
            /// All of them.
            pub const ALL: [Self; [$(stringify!($Format)),*].len()] = [$(Self::$Format),*];

            /// Name as people write it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Format => super::$Format::NAME,)*
                }
            }

            /// What it is, in a sentence.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$Format => concat!($($doc),*).trim_ascii(),)*
                }
            }

            /// Bits of one stored number.
            pub const fn number_bits(self) -> usize {
                match self {
                    $(Self::$Format => {
                        <super::$Format as NumberFormat>::Matrix::NUMBER_BITS
                    })*
                }
            }
        }

        impl AnyMatrix {
            /// Format of the numbers.
            pub fn format(&self) -> Format {
                match self {
                    $(Self::$Format(_) => Format::$Format,)*
                }
            }

            /// Writes rows of float32 in another format.
            fn quantize(
                format: Format,
                [rows, columns]: [usize; 2],
                fit: Fit<'_>,
                row: impl Fn(usize, &mut [f32]) + Sync,
            ) -> Result<Self, MoeError> {
                Ok(match format {
                    $(Format::$Format => {
                        Self::$Format(super::$Format::quantize(rows, columns, fit, row)?)
                    })*
                })
            }
        }
    };
}
for_each_format!(define_any_matrix());

impl AnyMatrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        each_format!(AnyMatrix, self, |matrix| matrix.rows())
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        each_format!(AnyMatrix, self, |matrix| matrix.columns())
    }

    /// Bytes that one use of the whole matrix reads, scales included.
    pub fn bytes(&self) -> usize {
        each_format!(AnyMatrix, self, |matrix| matrix.bytes())
    }

    /// Name of the format.
    pub fn format_name(&self) -> &'static str {
        self.format().name()
    }

    /// Writes one row as float32; `out` holds `columns` values. Exact.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        each_format!(AnyMatrix, self, |matrix| matrix.dequantize_row(row, out));
    }

    /// As [`WeightMatrix::cut_rows`].
    ///
    /// # Errors
    /// [`MoeError::Config`] for rows that are not there.
    pub fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        Ok(map_format!(AnyMatrix => AnyMatrix, self, |matrix| matrix.cut_rows(rows)?))
    }

    /// As [`WeightMatrix::cut_columns`].
    ///
    /// # Errors
    /// [`MoeError::Config`] for columns that are not there.
    pub fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        Ok(map_format!(AnyMatrix => AnyMatrix, self, |matrix| matrix.cut_columns(columns)?))
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
    /// The same matrix in another format, rounded to nearest. Shares the bytes when the format is
    /// the same.
    ///
    /// # Errors
    /// [`MoeError`] when the result is too large to be addressed.
    pub fn convert(&self, format: Format) -> Result<Self, MoeError> {
        self.convert_fitted(format, Fit::Weights)
    }

    /// The same with scales that `fit` asks for.
    ///
    /// # Errors
    /// As [`AnyMatrix::convert`], and when `fit` is for a matrix of another size.
    pub fn convert_fitted(&self, format: Format, fit: Fit<'_>) -> Result<Self, MoeError> {
        if format == self.format() {
            return Ok(self.clone());
        }
        let shape = [self.rows(), self.columns()];
        Self::quantize(format, shape, fit, |row, out| self.dequantize_row(row, out))
    }
}

//! What kernels know of weights in words.

use crate::quant::BLOCK;

/// What a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordCode {
    /// Eight codes of four bits, 0 to 15, and a float32 scale with a zero point for each group.
    Int4,
    /// Eight e2m1 numbers, and a power of two for each group of 32.
    Mxfp4,
    /// Eight e2m1 numbers, an e4m3 scale for each group of 16 and a float32 scale for each matrix.
    Nvfp4,
    /// Four integers, and a float32 scale for each group.
    Int8,
    /// Four integers, and a float32 scale for each row; activations become INT8, too.
    Int8Rows,
    /// Four e4m3 numbers, and a power of two for each group of 32.
    Mxfp8,
}

/// Weights in words, as kernels are made for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordFormat {
    /// The codes.
    pub code: WordCode,
    /// Columns that share a scale: a power of two from 16 to 128.
    pub group: usize,
}

impl WordFormat {
    /// Columns that one word of a row holds.
    pub const fn columns_per_word(&self) -> usize {
        match self.code {
            WordCode::Int4 | WordCode::Mxfp4 | WordCode::Nvfp4 => 8,
            WordCode::Int8 | WordCode::Int8Rows | WordCode::Mxfp8 => 4,
        }
    }

    /// Bytes of the numbers that kernels read words as: those of INT8 are what is multiplied.
    pub const fn number_bytes(&self) -> usize {
        match self.code {
            WordCode::Int8 | WordCode::Int8Rows => 1,
            WordCode::Int4 | WordCode::Mxfp4 | WordCode::Nvfp4 | WordCode::Mxfp8 => 4,
        }
    }

    /// Columns of 32 words, in planes of 128: words of four-bit codes hold two.
    pub const fn columns_per_step(&self) -> usize {
        32 * self.columns_per_word()
    }

    /// Columns of a row with those that fill its last step.
    pub const fn padded(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.columns_per_step())
    }

    /// Scales in one word.
    pub const fn scales_per_word(&self) -> usize {
        match self.code {
            WordCode::Mxfp4 | WordCode::Nvfp4 | WordCode::Mxfp8 => 4,
            WordCode::Int4 | WordCode::Int8 | WordCode::Int8Rows => 1,
        }
    }

    /// Words of scales that 128 columns of a row have.
    pub const fn scale_words_per_plane(&self) -> usize {
        BLOCK / self.group / self.scales_per_word()
    }

    /// Columns of one product.
    pub const fn depth(&self) -> usize {
        match self.code {
            WordCode::Mxfp4 | WordCode::Nvfp4 | WordCode::Mxfp8 => 32,
            WordCode::Int4 | WordCode::Int8 | WordCode::Int8Rows => self.group,
        }
    }

    /// Copies that a product has of a row: its two parts as integers, or one for each group.
    pub const fn copies(&self) -> usize {
        match self.code {
            WordCode::Int8 => 2,
            WordCode::Int8Rows => 1,
            _ => self.depth() / self.group,
        }
    }

    /// Columns of a copy: parts in floating point follow each other.
    pub const fn product_columns(&self) -> usize {
        match self.code {
            WordCode::Int8 | WordCode::Int8Rows => self.depth(),
            _ => 2 * self.depth(),
        }
    }

    /// Products that 128 columns take.
    pub const fn products_per_plane(&self) -> usize {
        BLOCK / self.depth()
    }

    /// Whether there are kernels that widen them to bfloat16, whose products have a scale a plane.
    pub const fn is_widened(&self) -> bool {
        match self.code {
            WordCode::Mxfp4 | WordCode::Nvfp4 | WordCode::Mxfp8 => true,
            WordCode::Int4 | WordCode::Int8 => self.group == BLOCK,
            WordCode::Int8Rows => false,
        }
    }

    /// Whether the sums of groups of activations are needed, for zero points.
    pub const fn has_zero_points(&self) -> bool {
        matches!(self.code, WordCode::Int4)
    }
}

use super::BLOCK;

/// Which numbers of a matrix share a float32 scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleGrid {
    /// Plain numbers have no scale.
    None,
    /// All of them.
    Tensor,
    /// Those of a row.
    Channel,
    /// Those of a 128x128 block. A matrix that was cut out of another keeps the other's blocks: its
    /// first number lies `row_offset` rows and `column_offset` columns inside a block.
    Block {
        /// Below 128.
        row_offset: usize,
        /// Below 128.
        column_offset: usize,
    },
}

impl ScaleGrid {
    /// Blocks that begin with the matrix.
    pub const BLOCKS: Self = Self::Block { row_offset: 0, column_offset: 0 };

    /// Rows and columns of the scales of a matrix `[rows, columns]`.
    pub fn shape(self, rows: usize, columns: usize) -> [usize; 2] {
        match self {
            Self::None => [0, 0],
            Self::Tensor => [1, 1],
            Self::Channel => [rows, 1],
            Self::Block { row_offset, column_offset } => [
                row_offset.saturating_add(rows).div_ceil(BLOCK),
                column_offset.saturating_add(columns).div_ceil(BLOCK),
            ],
        }
    }

    /// Where in the scales, row by row, the one of a number is; `columns` are the matrix's.
    pub fn index(self, row: usize, column: usize, columns: usize) -> usize {
        match self {
            Self::None | Self::Tensor => 0,
            Self::Channel => row,
            Self::Block { row_offset, column_offset } => {
                let scale_columns = (column_offset + columns).div_ceil(BLOCK);
                (row_offset + row) / BLOCK * scale_columns + (column_offset + column) / BLOCK
            }
        }
    }
}

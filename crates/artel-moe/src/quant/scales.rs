use super::{BLOCK, e4m3_to_f32, e8m0_to_f32};

/// Which numbers of a matrix share a scale.
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
    /// Neighbours in a row, from its first column on.
    Groups {
        /// How many.
        columns: usize,
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
            Self::Groups { columns: group } => [rows, columns.div_ceil(group)],
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
            Self::Groups { columns: group } => row * columns.div_ceil(group) + column / group,
            Self::Block { row_offset, column_offset } => {
                let scale_columns = (column_offset + columns).div_ceil(BLOCK);
                (row_offset + row) / BLOCK * scale_columns + (column_offset + column) / BLOCK
            }
        }
    }
}

/// The scales of a matrix as they are stored, row by row in the shape of its [`ScaleGrid`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scales<'a> {
    /// float32.
    F32(&'a [f32]),
    /// e4m3 codes.
    E4m3(&'a [u8]),
    /// e8m0 codes: powers of two.
    E8m0(&'a [u8]),
}

impl<'a> Scales<'a> {
    /// One of them. Scales of a matrix that are the same for all of it are not in it.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(scales) => scales[index],
            Self::E4m3(scales) => e4m3_to_f32(scales[index]),
            Self::E8m0(scales) => e8m0_to_f32(scales[index]),
        }
    }

    /// As they lie in memory.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::F32(scales) => bytemuck::cast_slice(scales),
            Self::E4m3(scales) | Self::E8m0(scales) => scales,
        }
    }
}

#[cfg(feature = "cuda")]
use crate::MoeError;
use crate::activation::Gating;
use crate::grouped_gemm::EXACT_DEPTH;
use crate::quant::BLOCK;
use crate::quant::activations::Granularity;

/// How the weights of both products are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightNumbers {
    /// As the activations.
    Plain,
    /// FP8 with a scale for `w13` and `w2` blocks of so many rows and columns; see
    /// [`StackLayout`](crate::weights::StackLayout). Blocks have at most 128 columns, and activations
    /// a scale for 128 columns; or blocks have all columns, and activations a scale per row.
    Fp8Blocks {
        /// Rows and columns that share a scale in the first product.
        w13: [usize; 2],
        /// The same in the second product.
        w2: [usize; 2],
    },
}

impl WeightNumbers {
    /// Rows and columns that share a scale in each product.
    pub fn scale_blocks(&self) -> [Option<[usize; 2]>; 2] {
        match *self {
            Self::Plain => [None, None],
            Self::Fp8Blocks { w13, w2 } => [Some(w13), Some(w2)],
        }
    }
}

/// Sizes of the experts of one layer, as this rank has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeShape {
    /// `E`.
    pub experts: usize,
    /// `K` of a token.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// `I`.
    pub intermediate_size: usize,
    /// Format of `w13` `[E, 2, I, H]` and `w2` `[E, H, I]`.
    pub numbers: WeightNumbers,
    /// What becomes of gate and up.
    pub gating: Gating,
}

impl DecodeShape {
    /// Rows and columns that share a scale in each product.
    pub fn scale_blocks(&self) -> [Option<[usize; 2]>; 2] {
        self.numbers.scale_blocks()
    }

    /// What shares a scale of the activations of each product, where they have scales.
    pub fn granularities(&self) -> [Option<Granularity>; 2] {
        let [w13, w2] = self.scale_blocks();
        let under = |block: Option<[usize; 2]>, columns| {
            block.map(|[_, scale_columns]| Granularity::under(scale_columns, columns))
        };
        [under(w13, self.hidden_size), under(w2, self.intermediate_size)]
    }

    /// Columns and depth that tiles of each product must divide.
    pub(super) fn tile_limits(&self) -> [Option<[usize; 2]>; 2] {
        let [w13, w2] = self.scale_blocks();
        [
            w13.map(|block| tile_limit(block, self.hidden_size)),
            w2.map(|block| tile_limit(block, self.intermediate_size)),
        ]
    }
}

/// Columns and depth that a tile must divide, for weights with `features_in` columns and scales of
/// such blocks. Where scales come last, they may differ within a tile.
pub(super) fn tile_limit([rows, columns]: [usize; 2], features_in: usize) -> [usize; 2] {
    match Granularity::under(columns, features_in) {
        Granularity::Rows => [ANY_COLUMNS, BLOCK],
        Granularity::Groups => [rows, columns],
    }
}

/// From so many rows on, tiles are as tall as the registers hold.
const MANY_ROWS: usize = 64;

/// More columns than a tile has.
const ANY_COLUMNS: usize = 1 << 16;

/// Sizes of the work of one block of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeTile {
    /// Rows of activations: of the direct form at least the tokens, of the aligned form its blocks.
    pub rows: usize,
    /// Weight rows, of gate and of up each where both are computed.
    pub columns: usize,
    /// Input features of a step.
    pub depth: usize,
    /// Warps that compute, 4 or 8.
    pub warps: usize,
    /// Blocks that are to share a multiprocessor.
    pub occupancy: usize,
}

impl DecodeTile {
    const fn new([rows, columns, depth, warps, occupancy]: [usize; 5]) -> Self {
        Self { rows, columns, depth, warps, occupancy }
    }

    /// The fastest of each product that was measured for so many tokens in the direct form; at most
    /// 64 tokens.
    pub fn direct(shape: &DecodeShape, tokens: usize) -> [Self; 2] {
        let rows = tokens.next_power_of_two().max(8);
        let tiles = match (shape.numbers, tokens) {
            (WeightNumbers::Plain, 0..=1) => [[32, 128, 4, 4], [64, 64, 4, 4]],
            (WeightNumbers::Plain, 2) => [[32, 128, 4, 3], [128, 64, 4, 2]],
            (WeightNumbers::Plain, _) => [[32, 128, 4, 3], [128, 128, 4, 2]],
            (_, 0..=1) => [[32, 128, 4, 4], [128, 128, 4, 3]],
            (_, 2) => [[64, 128, 4, 2], [128, 128, 4, 3]],
            (_, 3..=4) => [[32, 128, 4, 3], [128, 128, 4, 3]],
            _ => [[64, 128, 4, 2], [128, 128, 4, 2]],
        };
        Self::fitted(shape, rows, tiles)
    }

    /// The fastest of each product that was measured for so many tokens in the aligned form.
    pub fn aligned(shape: &DecodeShape, tokens: usize) -> [Self; 2] {
        // Rows of an expert, were they spread evenly.
        let share = tokens * shape.top_k / shape.experts.max(1);
        let (rows, tiles) = match (shape.numbers, share) {
            (WeightNumbers::Plain, 0..=4) => (8, [[64, 128, 4, 1], [128, 64, 4, 3]]),
            (WeightNumbers::Plain, 5..=8) => (16, [[64, 128, 4, 1], [128, 64, 4, 3]]),
            (WeightNumbers::Plain, 9..=16) => (32, [[64, 128, 4, 1], [64, 64, 4, 3]]),
            (WeightNumbers::Plain, _) => (64, [[128, 64, 8, 1], [128, 64, 4, 1]]),
            (_, 0..=4) => (8, [[128, EXACT_DEPTH, 4, 2], [128, 128, 4, 2]]),
            _ => (16, [[128, EXACT_DEPTH, 4, 2], [128, 128, 4, 2]]),
        };
        Self::fitted(shape, rows, tiles)
    }

    /// All tiles of the first and of the second product that are worth measuring for blocks of
    /// `rows` rows; none for many rows of FP8, whose sums need the registers of two tiles.
    pub fn candidates(shape: &DecodeShape, direct: bool, rows: usize) -> [Vec<Self>; 2] {
        if !rows.is_power_of_two() {
            return Self::split_candidates(shape, rows);
        }
        let many = rows >= MANY_ROWS && !direct;
        if many && shape.numbers != WeightNumbers::Plain {
            return [Vec::new(), Vec::new()];
        }
        let pairs: &[[usize; 4]] = match (shape.numbers, direct) {
            (WeightNumbers::Plain, _) if many => &[[128, 64, 8, 1], [128, 64, 4, 1]],
            (WeightNumbers::Plain, true) => {
                &[[32, 128, 4, 4], [32, 128, 4, 3], [64, 64, 4, 2], [64, 128, 4, 2]]
            }
            (WeightNumbers::Plain, false) => {
                &[[64, 128, 4, 1], [64, 64, 4, 3], [64, 64, 4, 2], [128, 64, 4, 1]]
            }
            (_, true) => &[[32, 128, 4, 4], [32, 128, 4, 3], [64, 128, 4, 2], [64, 128, 4, 3]],
            (_, false) => {
                &[[128, EXACT_DEPTH, 4, 2], [128, EXACT_DEPTH, 4, 3], [128, EXACT_DEPTH, 8, 2]]
            }
        };
        let seconds: &[[usize; 4]] = match shape.numbers {
            WeightNumbers::Plain if many => {
                &[[128, 64, 4, 1], [128, 64, 8, 1], [256, 64, 8, 1], [64, 64, 4, 3]]
            }
            WeightNumbers::Plain => &[
                [128, 64, 4, 2],
                [128, 64, 4, 3],
                [64, 64, 4, 4],
                [64, 64, 4, 3],
                [128, 128, 4, 2],
            ],
            _ => &[[128, 128, 4, 2], [128, 128, 4, 3], [128, 128, 4, 4], [64, 128, 4, 3]],
        };
        let fitted = |tiles: &[[usize; 4]], product: usize| {
            let mut all: Vec<Self> = Vec::new();
            for &tile in tiles {
                let tile = Self::fitted(shape, rows, [tile; 2])[product];
                if !all.contains(&tile) {
                    all.push(tile);
                }
            }
            all
        };
        [fitted(pairs, 0), fitted(seconds, 1)]
    }

    /// The same for blocks whose rows are the sum of two powers of two.
    fn split_candidates(shape: &DecodeShape, rows: usize) -> [Vec<Self>; 2] {
        if shape.numbers != WeightNumbers::Plain {
            return [Vec::new(), Vec::new()];
        }
        let firsts: &[[usize; 4]] = &[[128, 64, 8, 1]];
        let seconds: &[[usize; 4]] = &[[64, 64, 4, 3], [128, 64, 4, 2], [64, 64, 4, 4]];
        [firsts, seconds].map(|tiles| {
            let tile = |&[columns, depth, warps, occupancy]: &[usize; 4]| {
                Self::new([rows, columns, depth, warps, occupancy])
            };
            tiles.iter().map(tile).collect()
        })
    }

    /// Tiles with no more rows and columns than share a scale.
    fn fitted(shape: &DecodeShape, rows: usize, tiles: [[usize; 4]; 2]) -> [Self; 2] {
        let limits = shape.tile_limits().map(|limit| limit.unwrap_or([usize::MAX; 2]));
        let fit = |[columns, depth, warps, occupancy]: [usize; 4], limit: [usize; 2]| {
            Self::new([rows, columns.min(limit[0]), depth.min(limit[1]), warps, occupancy])
        };
        [fit(tiles[0], limits[0]), fit(tiles[1], limits[1])]
    }

    /// The two powers of two that its rows are the sum of, the larger first; none where they are one
    /// power of two.
    #[cfg(feature = "cuda")]
    pub(super) fn split_rows(&self) -> Option<[usize; 2]> {
        let larger = (self.rows / 2 + 1).next_power_of_two();
        (!self.rows.is_power_of_two()).then(|| [larger, self.rows - larger])
    }

    /// Checks what a kernel needs of its tile, whose columns and depth divide `limit`.
    #[cfg(feature = "cuda")]
    pub(super) fn check(&self, limit: Option<[usize; 2]>) -> Result<(), MoeError> {
        let [rows, tail] = self.split_rows().unwrap_or([self.rows; 2]);
        let splits = limit.is_none() || rows == tail;
        let powers =
            [rows, tail, self.columns, self.depth].iter().all(|size| size.is_power_of_two());
        if !powers || !splits || tail < 8 || !matches!(self.warps, 4 | 8) || self.occupancy == 0 {
            let allowed = "powers of two, at least 8 rows, 4 or 8 warps; without scales also rows that \
                           are a sum of two powers";
            return Err(MoeError::config("a decode tile", format!("{self:?}"), allowed));
        }
        match limit {
            Some([columns, depth])
                if columns % self.columns != 0 || depth % self.depth != 0 || self.depth > BLOCK =>
            {
                let allowed = format!("columns and depth that divide {columns} and {depth}");
                Err(MoeError::config("a decode tile", format!("{self:?}"), allowed))
            }
            _ => Ok(()),
        }
    }
}

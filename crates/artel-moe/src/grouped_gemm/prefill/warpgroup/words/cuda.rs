//! Loading and launching.

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream, TensorAxis, TensorMap,
};
use bytemuck::Pod;
use half::bf16;

use super::super::text::{Numbers, Sizes, source};
use super::super::{BLOCK_ROWS, EXPERTS_MAX, ROW_BYTES, Side};
use super::{WordsTile, tiles};
use crate::MoeError;
use crate::grouped_gemm::prefill::cuda::Blocks;
use crate::weights::words::WordLayout;

/// Weights that a warpgroup multiplies.
const OF_GROUP: usize = 64;
/// Columns of a row in one half of a plane.
const HALF: usize = 64;

/// One product of weights in words, for blocks of [`BLOCK_ROWS`] rows.
#[derive(Debug, Clone)]
pub struct WarpgroupWords {
    kernel: Kernel,
    sizes: Sizes,
    layout: WordLayout,
}

/// Rows of a product, `[halves of planes, capacity, 64]` in the order of lanes.
#[derive(Debug, Clone, Copy)]
pub struct HalfRows<'a> {
    /// Their numbers.
    pub numbers: DeviceSlice<'a, bf16>,
    /// Rows that there is room for.
    pub capacity: usize,
}

/// Weights of all experts.
#[derive(Debug, Clone, Copy)]
pub struct WordSlices<'a> {
    /// Their words, as bytes.
    pub words: DeviceSlice<'a, u8>,
    /// Scales of groups, also as words.
    pub scales: DeviceSlice<'a, f32>,
    /// A scale for each part of each expert.
    pub globals: DeviceSlice<'a, f32>,
}

impl WarpgroupWords {
    /// Asks for the kernel of `experts` matrices in tiles as `tile` says. Two parts are gate and
    /// up, which become `silu(gate) * up` in bfloat16; of one part the result is of type `out`, `bf16` or
    /// `f16`.
    ///
    /// # Errors
    /// [`MoeError`] when there is none for the weights, or it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &WordLayout,
        experts: usize,
        tile: WordsTile,
        out: &'static str,
    ) -> Result<Self, MoeError> {
        let WordLayout { format, parts, rows: features, columns } = *layout;
        if !features.is_multiple_of(8) || experts > EXPERTS_MAX {
            let allowed = format!("features by 8, at most {EXPERTS_MAX} experts");
            return Err(MoeError::config("weights in words", format!("{layout:?}"), allowed));
        }
        if !tiles(format.code).contains(&tile) {
            let (found, allowed) = (format!("{tile:?}"), format!("{:?}", tiles(format.code)));
            return Err(MoeError::config("a tile of weights in words", found, allowed));
        }
        let groups = tile.weights / OF_GROUP;
        let numbers = Numbers::Words { format, rows_max: tile.rows, groups };
        let sizes = Sizes {
            experts,
            features,
            columns,
            parts,
            numbers,
            side: Side::Short,
            out,
            is_ahead: false,
        };
        let assembly = Assembly {
            text: source(&sizes).into(),
            threads: sizes.threads(),
            shared_bytes: sizes.shared_bytes(),
        };
        let WordsTile { rows, weights } = tile;
        let generics = [experts, features, columns, parts, rows, weights, format.group];
        let name = "grouped_gemm/warpgroup_words";
        let spec = KernelSpec::assembly(name, assembly, "multiply", Architecture::Sm90)
            .element(out)
            .generics([format.code as i32])
            .generics(generics.map(|size| size as i32))
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, sizes, layout: *layout })
    }

    /// `out` = `rows` times weights over `positions` positions, a multiple of [`BLOCK_ROWS`]: of two parts
    /// `[halves of planes, capacity, 64]` with room for `out_capacity` rows, of one part `[positions, N]`. The
    /// blocks of an expert are neighbours. Rows of a block of no expert stay as they are.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch<O: Pod>(
        &self,
        stream: &Stream,
        (blocks, positions): (Blocks<'_>, usize),
        rows: HalfRows<'_>,
        weights: WordSlices<'_>,
        (out, out_capacity): (&mut DeviceSliceMut<'_, O>, usize),
    ) -> Result<(), MoeError> {
        self.check((blocks, positions), rows, weights)?;
        let Sizes { features, parts, .. } = self.sizes;
        let stored = match parts {
            2 => self.layout.format.padded(features) * out_capacity,
            _ => features * positions,
        };
        out.expect_len("output of a product", stored * 2 / size_of::<O>())?;
        MoeError::check_shape("room for rows", positions.max(out_capacity), out_capacity)?;
        if positions == 0 {
            return Ok(());
        }
        let arguments = Arguments::new()
            .tensor_map(&self.weight_map(weights.words)?)
            .tensor_map(&self.row_map(rows)?)
            .slice_mut(out)
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded)
            .slice(weights.scales)
            .slice(weights.globals)
            .size(out_capacity);
        let tiles = positions / BLOCK_ROWS * self.sizes.column_tiles();
        let grid = [tiles.min(stream.context().multiprocessors()?), 1, 1];
        // SAFETY: the arguments are the kernel's; the sizes of all were checked, rows are stored within
        // blocks in use, and what a box has over the edges of its tensor is not read.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }

    fn check(
        &self,
        (blocks, positions): (Blocks<'_>, usize),
        rows: HalfRows<'_>,
        weights: WordSlices<'_>,
    ) -> Result<(), MoeError> {
        let Sizes { experts, columns, parts, .. } = self.sizes;
        if !positions.is_multiple_of(BLOCK_ROWS) {
            let allowed = format!("a multiple of {BLOCK_ROWS}");
            return Err(MoeError::config("positions", positions, allowed));
        }
        blocks.expert_ids.expect_len("experts of blocks", positions / BLOCK_ROWS)?;
        blocks.num_tokens_post_padded.expect_len("padded rows", 1)?;
        MoeError::check_shape("room for rows", positions.max(rows.capacity), rows.capacity)?;
        let count = self.layout.format.padded(columns) * rows.capacity;
        rows.numbers.expect_len("rows in halves of planes", count)?;
        weights.words.expect_len("words", 4 * experts * self.layout.words_per_expert())?;
        weights.scales.expect_len("scales", experts * self.layout.scales_per_expert())?;
        weights.globals.expect_len("scales of parts", experts * parts)?;
        Ok(())
    }

    fn weight_map(&self, words: DeviceSlice<'_, u8>) -> Result<TensorMap, MoeError> {
        let Sizes { experts, features, parts, .. } = self.sizes;
        let row = 4 * self.layout.row_words();
        let axes = [
            TensorAxis { len: row, stride: 1, of_box: ROW_BYTES },
            TensorAxis { len: features, stride: row, of_box: self.sizes.tile_features() },
            TensorAxis { len: parts, stride: features * row, of_box: parts },
            TensorAxis { len: experts, stride: parts * features * row, of_box: 1 },
        ];
        Ok(TensorMap::new(words, &axes)?)
    }

    fn row_map(&self, rows: HalfRows<'_>) -> Result<TensorMap, MoeError> {
        let halves = self.layout.format.padded(self.sizes.columns) / HALF;
        let axes = [
            TensorAxis { len: HALF, stride: 1, of_box: HALF },
            TensorAxis { len: rows.capacity, stride: HALF, of_box: BLOCK_ROWS },
            TensorAxis { len: halves, stride: rows.capacity * HALF, of_box: 1 },
        ];
        Ok(TensorMap::new(rows.numbers, &axes)?)
    }
}

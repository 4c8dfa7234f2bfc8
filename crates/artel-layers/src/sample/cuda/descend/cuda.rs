//! One level of a descent.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::{RANK_LEVELS, Stage, shift};
use crate::LayersError;
use crate::sample::cuda::{CHUNK, check_vocabulary};

#[cutile::module]
mod kernels {
    use crate::sample::cuda::descend::sums::cuda::descend_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// One level: what the level before found, then the sums of this one. Grid: rows, chunks of `C`.
    /// `before_*` describe the level before, stage -1 when there is none; `stage` -1 when the level
    /// before was the last of all.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn descend<
        const V: i32,
        const C: i32,
        const B: i32,
        const CP: i32,
        const PDL: i32,
    >(
        logits: *mut f32,
        largests: *mut f32,
        temperatures: *mut f32,
        top_ks: *mut i32,
        top_ps: *mut f32,
        least: *mut f32,
        uniforms: *mut f64,
        partials: *mut f64,
        words: *mut i32,
        numbers: *mut f64,
        tokens: *mut i32,
        parity: i32,
        before_stage: i32,
        before_first: i32,
        before_part: i32,
        before_unit: i32,
        before_last: i32,
        stage: i32,
        part: i32,
        shift: i32,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        let (rows, chunks): (i32, i32) = (get_num_tile_blocks().0, ceil_div(V, C));
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is one of each for a row.
        let (draws, about): (i32, [f32; 3]) =
            unsafe { row_numbers(temperatures, largests, least, row, ready) };
        // A row without a token to choose keeps what was found so far: none.
        if draws == 1i32 {
            let old: i32 = (1i32 - parity) * rows + row;
            let new: i32 = parity * rows + row;
            let before: [i32; 5] =
                [before_stage, before_first, before_part, before_unit, before_last];
            let place: [i32; 4] = [old, old * chunks, chunks, row];
            // SAFETY: the launch before wrote state and sums of this row, the host what it wants.
            let (state, sums): ([i32; 5], [Tile<f64, { [1] }>; 3]) = unsafe {
                take_over::<CP>(
                    partials, words, numbers, top_ks, top_ps, uniforms, tokens, before, place,
                    stage, ready,
                )
            };
            if chunk == 0i32 {
                // SAFETY: there is room for the state of each row, twice.
                unsafe { store_state(words, numbers, new, state, sums, ready) };
            }
            if stage >= 0i32 {
                // SAFETY: there is one of each for a row, and the sums of each chunk, twice.
                unsafe {
                    let found: Tile<f64, { [16] }> = sums_of_chunk::<V, C, B>(
                        logits,
                        state,
                        [stage, part, shift],
                        row,
                        chunk * C,
                        about,
                        ready,
                    );
                    store_sums(partials, new * chunks + chunk, found, ready);
                };
            }
        }
    }
}

/// Tokens that a block looks at together.
const TOGETHER: usize = 256;

/// What each row asks for; `[rows]` each.
#[derive(Debug, Clone, Copy)]
pub struct DescentRows<'a> {
    /// Largest adjusted logits.
    pub largests: DeviceSlice<'a, f32>,
    /// Rows of temperature 0 are passed over.
    pub temperatures: DeviceSlice<'a, f32>,
    /// 0 keeps all.
    pub top_ks: DeviceSlice<'a, i32>,
    /// In (0, 1].
    pub top_ps: DeviceSlice<'a, f32>,
    /// `ln(min_p)`.
    pub least: DeviceSlice<'a, f32>,
    /// Random numbers in [0, 1).
    pub uniforms: DeviceSlice<'a, f64>,
}

/// What one level leaves to the next: room for [`Descend::partials_len`] and the like.
#[derive(Debug)]
pub struct DescentState<'a> {
    /// `[2, rows, chunks, 16]`.
    pub partials: DeviceSliceMut<'a, f64>,
    /// `[2, rows, 8]`.
    pub words: DeviceSliceMut<'a, i32>,
    /// `[2, rows, 4]`.
    pub numbers: DeviceSliceMut<'a, f64>,
}

/// One level of a stage; the first of a stage adds up everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// What is looked for.
    pub stage: Stage,
    /// From 0, or from [`RANK_LEVELS`] where no row is cut.
    pub level: usize,
    /// Whether it is the first of its stage.
    pub is_first: bool,
}

impl Level {
    fn stage_number(self) -> i32 {
        match self.stage {
            Stage::TopK => 0,
            Stage::TopP => 1,
            Stage::Draw => 2,
        }
    }

    fn part(self) -> i32 {
        i32::from(self.level >= RANK_LEVELS)
    }
}

/// The kernel of one vocabulary.
#[derive(Debug, Clone)]
pub struct Descend {
    kernel: Kernel,
    vocabulary: usize,
}

impl Descend {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a vocabulary without kernels, [`LayersError::Cuda`] when the kernel
    /// is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        check_vocabulary(vocabulary)?;
        let chunks = vocabulary.div_ceil(CHUNK).next_power_of_two();
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("sample/descend", module, "kernels", "descend")
            .generics([vocabulary, CHUNK, TOGETHER, chunks].map(|size| size as i32))
            .pointers(["logits", "largests", "temperatures", "top_ks", "top_ps", "least"])
            .pointers(["uniforms", "partials", "words", "numbers", "tokens"])
            .warps(8)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, vocabulary })
    }

    /// Numbers of `partials` for `rows` rows.
    pub fn partials_len(&self, rows: usize) -> usize {
        2 * rows * self.vocabulary.div_ceil(CHUNK) * 16
    }

    /// Runs `levels` on `logits` `[rows, V]` and writes the tokens that the last one finds.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or a launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        logits: DeviceSlice<'_, f32>,
        rows: &DescentRows<'_>,
        levels: &[Level],
        state: &mut DescentState<'_>,
        tokens: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        rows.largests.expect_len("largest logits of rows", count)?;
        rows.temperatures.expect_len("temperatures of rows", count)?;
        rows.top_ks.expect_len("top-k of rows", count)?;
        rows.top_ps.expect_len("top-p of rows", count)?;
        rows.least.expect_len("min-p of rows", count)?;
        rows.uniforms.expect_len("random numbers of rows", count)?;
        state.partials.expect_len("partial sums of a descent", self.partials_len(count))?;
        state.words.expect_len("places of a descent", 16 * count)?;
        state.numbers.expect_len("sums of a descent", 8 * count)?;
        tokens.expect_len("chosen tokens", count)?;
        let chunks = self.vocabulary.div_ceil(CHUNK);
        for launch in 0..=levels.len() {
            let level = levels.get(launch).copied();
            let before = launch.checked_sub(1).and_then(|before| levels.get(before).copied());
            let arguments = Arguments::new()
                .slice(logits)
                .slice(rows.largests)
                .slice(rows.temperatures)
                .slice(rows.top_ks)
                .slice(rows.top_ps)
                .slice(rows.least)
                .slice(rows.uniforms)
                .slice_mut(&state.partials)
                .slice_mut(&state.words)
                .slice_mut(&state.numbers)
                .slice_mut(tokens)
                .i32((launch % 2) as i32);
            let ends =
                before.is_some_and(|before| level.is_none_or(|level| level.stage != before.stage));
            let arguments = match before {
                None => arguments.i32(-1).i32(0).i32(0).i32(0).i32(0),
                Some(before) => arguments
                    .i32(before.stage_number())
                    .i32(i32::from(before.is_first))
                    .i32(before.part())
                    .i32(1 << shift(before.level))
                    .i32(i32::from(ends)),
            };
            let arguments = match level {
                None => arguments.i32(-1).i32(0).i32(0),
                Some(level) => {
                    arguments.i32(level.stage_number()).i32(level.part()).size(shift(level.level))
                }
            };
            // The last launch only reads what the level before found.
            let grid = [count, if level.is_some() { chunks } else { 1 }, 1];
            // SAFETY: the arguments are the kernel's, with the lengths checked above.
            unsafe { self.kernel.launch(stream, grid, arguments) }?;
        }
        Ok(())
    }
}

//! A block adds the parts of some heads of a sequence, in order, to rows or to the FP8 codes of rows.
//!
//! Bytes: for each part in use `query_heads * (D + 2)` float32. At few sequences the time is that of a
//! launch.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::BLOCK;
use artel_moe::quant::activations::cuda::QuantizedRows;

use super::super::Cut;
use super::text;
use crate::LayersError;
use crate::attention::AttentionShape;

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use crate::attention::decode::cuda::decode_code::*;
    use artel_moe::cuda::device_code::*;
    use artel_moe::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// The sum of part `part` of `HB` heads whose parts begin at `start`, where it is below `count`: zero
    /// otherwise.
    unsafe fn sum_of<const HB: i32, const D: i32>(
        sums: *mut f32,
        start: Tile<i32, { [HB] }>,
        part: i32,
        count: i32,
        after: Token,
    ) -> Tile<f32, { [HB, D] }> {
        let is_part: Tile<bool, { [HB] }> = below(splat::<HB>(part), count);
        let always: Tile<bool, { [D] }> = constant(true, const_shape![D]);
        let mask: Tile<bool, { [HB, D] }> = block_mask(is_part, always);
        let row: Tile<i32, { [HB] }> = start + splat::<HB>(part);
        let offsets: Tile<i64, { [HB, D] }> = block_offsets(row, D, count_from::<D>(0i32));
        // SAFETY: the caller vouches for the parts in use.
        let values: Tile<f32, { [HB, D] }> = unsafe { gather_block(sums, offsets, mask, after) };
        let nothing: Tile<f32, { [HB, D] }> = constant(0.0f32, const_shape![HB, D]);
        select(mask, values, nothing)
    }

    /// The number of part `part` of the heads, `other` where it is not in use.
    unsafe fn number_of<const HB: i32>(
        numbers: *mut f32,
        start: Tile<i32, { [HB] }>,
        part: i32,
        count: i32,
        other: Tile<f32, { [HB] }>,
        after: Token,
    ) -> Tile<f32, { [HB] }> {
        let is_part: Tile<bool, { [HB] }> = below(splat::<HB>(part), count);
        let at: Tile<i32, { [HB] }> = start + splat::<HB>(part);
        // SAFETY: the caller vouches for the parts in use.
        let found: Tile<f32, { [HB] }> = unsafe { gather(numbers, at, is_part, 0.0f32, after) };
        select(is_part, found, other)
    }

    fn across_columns<const HB: i32, const D: i32>(
        heads: Tile<f32, { [HB] }>,
    ) -> Tile<f32, { [HB, D] }> {
        let heads: Tile<f32, { [HB, 1] }> = heads.reshape(const_shape![HB, 1]);
        heads.broadcast(const_shape![HB, D])
    }

    /// Sum, largest logit and total weight of some parts with four more of them, from part `a` on.
    unsafe fn add_four<const HB: i32, const D: i32>(
        sum: Tile<f32, { [HB, D] }>,
        top: Tile<f32, { [HB] }>,
        seen: Tile<f32, { [HB] }>,
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        start: Tile<i32, { [HB] }>,
        a: i32,
        count: i32,
        after: Token,
    ) -> (Tile<f32, { [HB, D] }>, Tile<f32, { [HB] }>, Tile<f32, { [HB] }>) {
        let unused: Tile<f32, { [HB] }> = lowest::<HB>();
        let none: Tile<f32, { [HB] }> = constant(0.0f32, const_shape![HB]);
        let b: i32 = a + 1i32;
        let c: i32 = a + 2i32;
        let d: i32 = a + 3i32;
        // SAFETY: parts in use were written.
        let of_a: Tile<f32, { [HB, D] }> = unsafe { sum_of::<HB, D>(sums, start, a, count, after) };
        // SAFETY: parts in use were written.
        let of_b: Tile<f32, { [HB, D] }> = unsafe { sum_of::<HB, D>(sums, start, b, count, after) };
        // SAFETY: parts in use were written.
        let of_c: Tile<f32, { [HB, D] }> = unsafe { sum_of::<HB, D>(sums, start, c, count, after) };
        // SAFETY: parts in use were written.
        let of_d: Tile<f32, { [HB, D] }> = unsafe { sum_of::<HB, D>(sums, start, d, count, after) };
        // SAFETY: parts in use were written.
        let top_a: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(largests, start, a, count, unused, after) };
        // SAFETY: parts in use were written.
        let top_b: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(largests, start, b, count, unused, after) };
        // SAFETY: parts in use were written.
        let top_c: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(largests, start, c, count, unused, after) };
        // SAFETY: parts in use were written.
        let top_d: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(largests, start, d, count, unused, after) };
        // SAFETY: parts in use were written.
        let total_a: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(totals, start, a, count, none, after) };
        // SAFETY: parts in use were written.
        let total_b: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(totals, start, b, count, none, after) };
        // SAFETY: parts in use were written.
        let total_c: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(totals, start, c, count, none, after) };
        // SAFETY: parts in use were written.
        let total_d: Tile<f32, { [HB] }> =
            unsafe { number_of::<HB>(totals, start, d, count, none, after) };
        let new_top: Tile<f32, { [HB] }> =
            max_tile(max_tile(top, max_tile(top_a, top_b)), max_tile(top_c, top_d));
        let relative: Tile<f32, { [HB] }> = finite::<HB>(new_top);
        let kept: Tile<f32, { [HB] }> = exp2(top - relative, ftz::Disabled);
        let weight_a: Tile<f32, { [HB] }> = exp2(top_a - relative, ftz::Disabled);
        let weight_b: Tile<f32, { [HB] }> = exp2(top_b - relative, ftz::Disabled);
        let weight_c: Tile<f32, { [HB] }> = exp2(top_c - relative, ftz::Disabled);
        let weight_d: Tile<f32, { [HB] }> = exp2(top_d - relative, ftz::Disabled);
        let seen: Tile<f32, { [HB] }> = seen * kept
            + total_a * weight_a
            + total_b * weight_b
            + total_c * weight_c
            + total_d * weight_d;
        let sum: Tile<f32, { [HB, D] }> = sum * across_columns::<HB, D>(kept)
            + of_a * across_columns::<HB, D>(weight_a)
            + of_b * across_columns::<HB, D>(weight_b)
            + of_c * across_columns::<HB, D>(weight_c)
            + of_d * across_columns::<HB, D>(weight_d);
        (sum, new_top, seen)
    }

    /// The mean of the values that `HB` heads from `first_row` on have seen, four of their `count` parts
    /// at a time; `PARTS` is the room for parts. `sink`: logits that take part without a value.
    unsafe fn mean_of_parts<const HB: i32, const D: i32, const PARTS: i32>(
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        sink: Tile<f32, { [HB] }>,
        first_row: i32,
        count: i32,
        after: Token,
    ) -> Tile<f32, { [HB, D] }> {
        let start: Tile<i32, { [HB] }> = count_from::<HB>(first_row) * splat::<HB>(PARTS);
        let mut top: Tile<f32, { [HB] }> = sink;
        let mut seen: Tile<f32, { [HB] }> = exp2(sink - finite::<HB>(sink), ftz::Disabled);
        let mut sum: Tile<f32, { [HB, D] }> = constant(0.0f32, const_shape![HB, D]);
        for turn in 0i32..ceil_div(count, 4i32) {
            // SAFETY: parts in use were written.
            let (with, highest, total): (
                Tile<f32, { [HB, D] }>,
                Tile<f32, { [HB] }>,
                Tile<f32, { [HB] }>,
            ) = unsafe {
                add_four::<HB, D>(
                    sum,
                    top,
                    seen,
                    sums,
                    largests,
                    totals,
                    start,
                    4i32 * turn,
                    count,
                    after,
                )
            };
            sum = with;
            top = highest;
            seen = total;
        }
        let zero: Tile<f32, { [HB, D] }> = constant(0.0f32, const_shape![HB, D]);
        let seen: Tile<f32, { [HB, D] }> = across_columns::<HB, D>(seen);
        select(eq_tile(seen, zero), zero, sum / seen)
    }

    /// The sinks of heads as powers of two, which nobody writes.
    unsafe fn sinks_of<const HB: i32, const SINKS: i32>(
        sinks: *mut f32,
        head: Tile<i32, { [HB] }>,
    ) -> Tile<f32, { [HB] }> {
        let mut sink: Tile<f32, { [HB] }> = lowest::<HB>();
        if SINKS == 1i32 {
            // SAFETY: the caller vouches for the heads.
            let logit: Tile<f32, { [HB] }> = unsafe { read(sinks, head) };
            let log2_e: Tile<f32, { [HB] }> = constant(1.442695f32, const_shape![HB]);
            sink = logit * log2_e;
        }
        sink
    }

    /// Stores the scale of each head.
    unsafe fn store_found<const HB: i32>(
        scales: *mut f32,
        place: Tile<i32, { [HB] }>,
        found: Tile<f32, { [HB, 1] }>,
        after: Token,
    ) {
        let found: Tile<f32, { [HB] }> = found.reshape(const_shape![HB]);
        let every: Tile<bool, { [HB] }> = constant(true, const_shape![HB]);
        // SAFETY: the caller vouches for the places.
        unsafe { scatter(scales, place, every, found, after) };
    }

    /// Grid: sequences, blocks of `HB` query heads. `SINKS`: the heads' sinks take part. `CODES`: codes
    /// and scales are stored, a scale for the `D` columns of a head, otherwise rows.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn add_parts<
        A: ElementType,
        const QH: i32,
        const D: i32,
        const BK: i32,
        const PARTS: i32,
        const PART_MIN: i32,
        const SINKS: i32,
        const HB: i32,
        const CODES: i32,
        const PDL: i32,
    >(
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        lengths: *mut i32,
        sinks: *mut f32,
        out: *mut A,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        window: i32,
        row_stride: i32,
        group_stride: i32,
        least: f32,
        most: f32,
    ) {
        let (sequence, block, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: what it reads before it waits is older than every kernel that may still run.
        let early: Token = unsafe { release::<PDL>() };
        // SAFETY: there is a length for each sequence.
        let length: i32 = unsafe { load_i32(lengths, sequence, early) };
        let keys_cut: [i32; 4] = cut::<BK, PARTS, PART_MIN>(length, window);
        let head: Tile<i32, { [HB] }> = count_from::<HB>(block * HB);
        // SAFETY: there is a sink for each head.
        let sink: Tile<f32, { [HB] }> = unsafe { sinks_of::<HB, SINKS>(sinks, head) };
        // SAFETY: launched as its specification says, after whatever wrote the parts.
        let ready: Token = unsafe { wait::<PDL>(early) };
        let first_row: i32 = sequence * QH + block * HB;
        // SAFETY: there is room for `PARTS` parts of every head, and those in use were written.
        let mean: Tile<f32, { [HB, D] }> = unsafe {
            mean_of_parts::<HB, D, PARTS>(
                sums,
                largests,
                totals,
                sink,
                first_row,
                keys_cut[3],
                ready,
            )
        };
        let rounded: Tile<A, { [HB, D] }> = convert_tile(mean);
        let column: Tile<i32, { [D] }> = count_from::<D>(0i32);
        let offsets: Tile<i64, { [HB, D] }> = block_offsets(count_from::<HB>(first_row), D, column);
        let always: Tile<bool, { [HB, D] }> = constant(true, const_shape![HB, D]);
        if CODES == 1i32 {
            let values: Tile<f32, { [HB, D] }> = convert_tile(rounded);
            let found: Tile<f32, { [HB, 1] }> = group_scales::<HB, D, 1, D>(values, least, most);
            let code: Tile<f8e4m3fn, { [HB, D] }> = to_codes::<HB, D, 1, D>(values, found);
            // SAFETY: codes have a row for each sequence.
            unsafe { scatter_block(codes, offsets, always, code, ready) };
            let place: Tile<i32, { [HB] }> =
                head * splat::<HB>(group_stride) + splat::<HB>(sequence * row_stride);
            // SAFETY: there is a scale for each head of each sequence.
            unsafe { store_found::<HB>(scales, place, found, ready) };
        } else {
            // SAFETY: out has a row for each sequence.
            unsafe { scatter_block(out, offsets, always, rounded, ready) };
        }
    }
}

/// Most heads of a block.
const HEADS_MAX: usize = 4;

/// Where the result goes.
#[derive(Debug)]
pub enum DecodeOut<'a, 'b, A: HalfElement> {
    /// Rows `[S, query_heads * D]`.
    Rows(&'a mut DeviceSliceMut<'b, A>),
    /// Their codes, a scale for a head: see `DecodeSum::makes_codes`.
    Codes(&'a mut QuantizedRows<'b>),
}

/// What attention left in parts.
#[derive(Debug, Clone, Copy)]
pub struct DecodeParts<'a> {
    pub(crate) sums: DeviceSlice<'a, f32>,
    pub(crate) largests: DeviceSlice<'a, f32>,
    pub(crate) totals: DeviceSlice<'a, f32>,
    pub(crate) lengths: DeviceSlice<'a, i32>,
    pub(crate) sinks: Option<DeviceSlice<'a, f32>>,
    pub(crate) window: i32,
}

/// The sum of parts.
#[derive(Debug, Clone)]
pub(in crate::attention) struct DecodeSum<A> {
    rows: Kernel,
    codes: Option<Kernel>,
    shape: AttentionShape,
    has_sinks: bool,
    element: PhantomData<A>,
}

impl<A: HalfElement> DecodeSum<A> {
    /// Asks for the kernels.
    pub(in crate::attention) fn load(
        kernels: &mut Kernels,
        (shape, cut): (AttentionShape, Cut),
        has_sinks: bool,
    ) -> Result<Self, LayersError> {
        let makes_codes = shape.value_dim == BLOCK && kernels.architecture().has_fp8();
        let in_assembly = kernels.architecture() == Architecture::Sm90
            && (A::NAME, shape.value_dim) == ("bf16", text::WIDTH)
            && !has_sinks;
        let mut get = |codes| match in_assembly {
            true => kernels.get(&assembly_spec((&shape, cut), codes)),
            false => kernels.get(&spec(A::NAME, (&shape, cut), has_sinks, codes)),
        };
        let (rows, codes) = (get(false)?, makes_codes.then(|| get(true)));
        Ok(Self { rows, codes: codes.transpose()?, shape, has_sinks, element: PhantomData })
    }

    /// Whether a head is a group of codes with one scale, and there are such codes on this GPU.
    pub(in crate::attention) fn makes_codes(&self) -> bool {
        self.codes.is_some()
    }

    /// Adds the parts of `count` sequences.
    pub(in crate::attention) fn launch(
        &self,
        stream: &Stream,
        count: usize,
        parts: DecodeParts<'_>,
        out: DecodeOut<'_, '_, A>,
    ) -> Result<(), LayersError> {
        let AttentionShape { query_heads, .. } = self.shape;
        let width = self.shape.output_width();
        let arguments = Arguments::new()
            .slice(parts.sums)
            .slice(parts.largests)
            .slice(parts.totals)
            .slice(parts.lengths);
        let arguments = match (self.has_sinks, parts.sinks) {
            (false, None) => arguments.no_slice(),
            (true, Some(sinks)) => {
                sinks.expect_len("the attention sinks", query_heads)?;
                arguments.slice(sinks)
            }
            _ => panic!("this is a bug: sinks and their use must come together"),
        };
        let grid = [count, query_heads / block_heads(query_heads), 1];
        match (out, &self.codes) {
            (DecodeOut::Rows(out), _) => {
                out.expect_len("the output of attention", count * width)?;
                let arguments = arguments.slice_mut(out).no_slice().no_slice().i32(parts.window);
                let arguments = arguments.size(0).size(0).f32(0.0).f32(0.0);
                // SAFETY: the arguments are the kernel's, with the lengths checked here and by the
                // caller.
                unsafe { self.rows.launch(stream, grid, arguments) }?;
            }
            (DecodeOut::Codes(out), Some(kernel)) => {
                out.expect_rows(count, width, query_heads)?;
                let [row_stride, group_stride] = out.scale_strides(query_heads);
                let arguments = arguments
                    .no_slice()
                    .slice_mut(&out.codes)
                    .slice_mut(&out.scales)
                    .i32(parts.window)
                    .size(row_stride)
                    .size(group_stride)
                    .f32(out.bounds.least)
                    .f32(out.bounds.most);
                // SAFETY: as above.
                unsafe { kernel.launch(stream, grid, arguments) }?;
            }
            _ => panic!("this is a bug: codes of heads that are no groups"),
        }
        Ok(())
    }
}

/// Heads of a block: a power of two that divides them.
fn block_heads(query_heads: usize) -> usize {
    (1 << query_heads.trailing_zeros()).min(HEADS_MAX)
}

/// The kernel in assembly, a warp for each head.
fn assembly_spec((shape, cut): (&AttentionShape, Cut), codes: bool) -> KernelSpec {
    let heads = [shape.query_heads, block_heads(shape.query_heads)];
    let Cut { step_keys, parts_max, part_keys_min } = cut;
    let text = text::source(cut, heads, codes).into();
    let shared_bytes = heads[1] * text::table_bytes(cut);
    let assembly = Assembly { text, threads: 32 * heads[1], shared_bytes };
    let sizes = [step_keys, parts_max, part_keys_min, usize::from(codes)];
    let sizes = heads.into_iter().chain(sizes).map(|size| size as i32);
    KernelSpec::assembly("attention/decode_sum", assembly, "add", Architecture::Sm90)
        .generics(sizes)
        .programmatic()
}

fn spec(
    element: &str,
    (shape, cut): (&AttentionShape, Cut),
    has_sinks: bool,
    codes: bool,
) -> KernelSpec {
    let heads = block_heads(shape.query_heads);
    let Cut { step_keys, parts_max, part_keys_min } = cut;
    let sizes = [shape.query_heads, shape.value_dim, step_keys, parts_max, part_keys_min];
    let block = [usize::from(has_sinks), heads, usize::from(codes)];
    let module = kernels::__module_ast_self;
    let spec = KernelSpec::new("attention/decode_sum", module, "kernels", "add_parts")
        .element(element)
        .generics(sizes.into_iter().chain(block).map(|size| size as i32))
        .pointers(["sums", "largests", "totals", "lengths", "sinks", "out", "codes", "scales"])
        .warps(4)
        .programmatic();
    if codes { spec.needs(Architecture::Sm90) } else { spec }
}

//! Weights with a scale per group in float32 vectors: packed codes are widened in registers, and the
//! sum over a group is scaled before it is added.
//!
//! Activations of codes of four bits are stored as the codes come out of their bytes: of each 32
//! columns first the even ones, then the odd ones. Each output has one chain of additions whatever the
//! number of rows, so a row's result does not depend on which other rows are computed with it.

use std::marker::PhantomData;
use std::ops::Range;

use artel_device::cpu::Vectorized;
use half::bf16;

use super::vector::{Lanes, Load};
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{Code, Element, GroupedFormat, GroupedMatrix, GroupedPanel};

/// Columns of one step; operand rows are padded to whole steps.
const STEP: usize = 32;

/// Columns whose scales are widened at a time.
const CHUNK: usize = 4096;

/// Scales of a chunk in the smallest groups.
const SCALES: usize = CHUNK / 16;

/// Bytes ahead of those in use that are asked for.
const AHEAD: usize = 1024;

/// The kernel of a vector type for weights with a scale per group.
pub(super) struct GroupedKernel<V>(PhantomData<V>);

impl<V> GroupedKernel<V> {
    pub const NEW: Self = Self(PhantomData);
}

fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(STEP)
}

impl<V: Load<f32> + Load<u8> + Load<i8>, F: GroupedFormat> Kernel<F> for GroupedKernel<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn tile_words(&self, columns: usize) -> usize {
        TILE_ROWS * pitch(columns)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        let outs = tile.chunks_exact_mut(pitch(rows.columns()));
        for (index, out) in outs.enumerate().take(rows.len()) {
            let steps = out.chunks_exact_mut(STEP).zip(rows.row(index).chunks(STEP));
            for (out, x) in steps {
                out.fill(0.0);
                for (column, x) in x.iter().enumerate() {
                    let place = match F::CODE.bits() {
                        4 => column / 2 + column % 2 * (STEP / 2),
                        _ => column,
                    };
                    out[place] = Element::to_f32(*x);
                }
            }
        }
    }

    fn multiply(
        &self,
        weights: &GroupedMatrix<F>,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        let panel = GroupedPanel::new(weights, panel);
        let (format, vector) = (PhantomData::<F>, PhantomData::<V>);
        // SAFETY: this kernel is only handed out where the processor has the instructions.
        unsafe { V::call(Work { panel, x, out, format, vector }) };
    }
}

/// A panel and what it is multiplied with.
struct Work<'a, F, V> {
    panel: GroupedPanel<'a>,
    x: Operand<'a>,
    out: &'a mut [f32],
    format: PhantomData<F>,
    vector: PhantomData<V>,
}

impl<V: Load<f32> + Load<u8> + Load<i8>, F: GroupedFormat> Vectorized for Work<'_, F, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: only `Lanes::call` runs this.
        unsafe { multiply::<V, F>(self.panel, self.x, self.out) }
    }
}

/// One weight row times four activation rows at a time.
#[inline(always)]
unsafe fn multiply<V: Load<f32> + Load<u8> + Load<i8>, F: GroupedFormat>(
    panel: GroupedPanel<'_>,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let pitch = pitch(panel.columns);
    for tile in 0..x.tiles() {
        let (values, rows) = (x.tile(tile), x.tile_rows(tile));
        for row in 0..panel.rows {
            let mut c = 0;
            while c < rows {
                let x = &values[c * pitch..];
                let out = &mut out[(tile * TILE_ROWS + c) * PANEL_ROWS + row..];
                // SAFETY: the caller's; a tile has 16 rows of which these are inside.
                c += unsafe {
                    match (panel.group, panel.has_zero_points(), c + 4 <= rows) {
                        (16, _, true) => small_groups::<V, F, 4>(&panel, row, x, out),
                        (16, _, false) => small_groups::<V, F, 1>(&panel, row, x, out),
                        (_, true, true) => dots::<V, F, 4, true>(&panel, row, x, out),
                        (_, true, false) => dots::<V, F, 1, true>(&panel, row, x, out),
                        (_, false, true) => dots::<V, F, 4, false>(&panel, row, x, out),
                        (_, false, false) => dots::<V, F, 1, false>(&panel, row, x, out),
                    }
                };
            }
        }
    }
}

/// The codes of the step of 32 columns from `column` on, padded where the row ends in it.
#[inline(always)]
pub(super) fn step_codes<'a, F: GroupedFormat>(
    panel: &GroupedPanel<'a>,
    row: usize,
    column: usize,
    padded: &'a mut [u8; STEP],
) -> *const u8 {
    let bytes = STEP * F::CODE.bits() / 8;
    let first = column * F::CODE.bits() / 8;
    let codes = &panel.codes[row * panel.row_bytes..(row + 1) * panel.row_bytes];
    if first + bytes <= codes.len() {
        return codes[first..first + bytes].as_ptr();
    }
    *padded = [0; STEP];
    padded[..codes.len() - first].copy_from_slice(&codes[first..]);
    padded.as_ptr()
}

/// The values of vector `index` of a step: [`Lanes::COUNT`] numbers as the operand has them.
#[inline(always)]
pub(super) unsafe fn values<V: Load<u8> + Load<i8>, F: GroupedFormat>(
    codes: *const u8,
    nibbles: &[f32; 16],
) -> [V; 2] {
    // SAFETY: the caller's: a vector's codes are there, or two for codes of eight bits.
    unsafe {
        match F::CODE {
            Code::Int4 | Code::E2m1 => V::nibbles(codes, nibbles),
            Code::Int8 => {
                let codes = codes.cast::<i8>();
                [<V as Load<i8>>::load(codes), <V as Load<i8>>::load(codes.add(V::COUNT))]
            }
            Code::E4m3 => {
                [<V as Load<u8>>::load(codes), <V as Load<u8>>::load(codes.add(V::COUNT))]
            }
        }
    }
}

/// How a step is read: pairs of vectors, where their codes and their two operands begin.
#[inline(always)]
fn places<V: Lanes, F: GroupedFormat>(pair: usize) -> (usize, [usize; 2]) {
    let first = pair * V::COUNT;
    match F::CODE.bits() {
        4 => (first, [first, first + STEP / 2]),
        _ => (2 * first, [2 * first, 2 * first + V::COUNT]),
    }
}

/// Row `row` times the `C` activation rows at `x`; returns `C`. Groups of 32 columns or more.
#[inline(always)]
unsafe fn dots<V, F, const C: usize, const ZERO_POINTS: bool>(
    panel: &GroupedPanel<'_>,
    row: usize,
    x: &[f32],
    out: &mut [f32],
) -> usize
where
    V: Load<f32> + Load<u8> + Load<i8>,
    F: GroupedFormat,
{
    let (pitch, nibbles) = (pitch(panel.columns), const { &F::CODE.nibble_values() });
    assert!(x.len() >= C * pitch);
    let mut padded = [0; STEP];
    let (mut scales, mut offsets) = ([0f32; SCALES], [0f32; SCALES]);
    // SAFETY: steps of codes are whole or a padded copy, and rows of `x` are padded to whole steps
    // (checked above). The caller has the instruction set.
    unsafe {
        let mut totals = [V::zero(); C];
        for chunk in (0..panel.columns).step_by(CHUNK) {
            let end = (chunk + CHUNK).min(panel.columns);
            let groups = chunk / panel.group..end.div_ceil(panel.group);
            panel.write_scales(row, groups.clone(), &mut scales);
            panel.write_offsets(row, groups.clone(), &mut offsets);
            for (index, group) in groups.enumerate() {
                let offset = V::splat(offsets[index]);
                let mut sums = [V::zero(); C];
                let columns = chunk.max(group * panel.group)..end.min((group + 1) * panel.group);
                for column in columns.step_by(STEP) {
                    let codes = step_codes::<F>(panel, row, column, &mut padded);
                    V::prefetch(codes.wrapping_add(AHEAD));
                    for pair in 0..STEP / 2 / V::COUNT {
                        let (place, operands) = places::<V, F>(pair);
                        let weights = values::<V, F>(codes.add(place), nibbles);
                        for (weight, first) in weights.into_iter().zip(operands) {
                            let weight = if ZERO_POINTS { weight.add(offset) } else { weight };
                            for (c, sum) in sums.iter_mut().enumerate() {
                                let x = V::load(x.as_ptr().add(c * pitch + column + first));
                                *sum = weight.multiply_add(x, *sum);
                            }
                        }
                    }
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = sum.multiply_add(V::splat(scales[index]), *total);
                }
            }
        }
        finish::<V, F, C>(panel, totals, out)
    }
}

/// As [`dots`] for groups of 16 columns: two in a step.
#[inline(always)]
unsafe fn small_groups<V, F, const C: usize>(
    panel: &GroupedPanel<'_>,
    row: usize,
    x: &[f32],
    out: &mut [f32],
) -> usize
where
    V: Load<f32> + Load<u8> + Load<i8>,
    F: GroupedFormat,
{
    let (pitch, nibbles) = (pitch(panel.columns), const { &F::CODE.nibble_values() });
    assert!(x.len() >= C * pitch && panel.group * 2 == STEP);
    let mut padded = [0; STEP];
    // One more than there can be: the last step may have a single group.
    let (mut scales, mut offsets) = ([0f32; SCALES + 1], [0f32; SCALES + 1]);
    // SAFETY: as in `dots`.
    unsafe {
        let mut totals = [V::zero(); C];
        for chunk in (0..panel.columns).step_by(CHUNK) {
            let end = (chunk + CHUNK).min(panel.columns);
            let groups = chunk / 16..end.div_ceil(16);
            scales[groups.len()] = 0.0;
            panel.write_scales(row, groups.clone(), &mut scales);
            panel.write_offsets(row, groups, &mut offsets);
            for column in (chunk..end).step_by(STEP) {
                let codes = step_codes::<F>(panel, row, column, &mut padded);
                V::prefetch(codes.wrapping_add(AHEAD));
                let group = (column - chunk) / 16;
                for pair in 0..STEP / 2 / V::COUNT {
                    let (place, operands) = places::<V, F>(pair);
                    let weights = values::<V, F>(codes.add(place), nibbles);
                    let scales = spread::<V, F>(scales.as_ptr().add(group), pair);
                    let offsets = spread::<V, F>(offsets.as_ptr().add(group), pair);
                    for (half, first) in operands.into_iter().enumerate() {
                        let weight = weights[half].add(offsets[half]);
                        let weight = weight.multiply_add(scales[half], V::zero());
                        for (c, total) in totals.iter_mut().enumerate() {
                            let x = V::load(x.as_ptr().add(c * pitch + column + first));
                            *total = weight.multiply_add(x, *total);
                        }
                    }
                }
            }
        }
        finish::<V, F, C>(panel, totals, out)
    }
}

/// The scales of the vectors of pair `pair` of a step, from those of its two groups. A pair of long
/// vectors is the whole step.
#[inline(always)]
pub(super) unsafe fn spread<V: Lanes, F: GroupedFormat>(from: *const f32, pair: usize) -> [V; 2] {
    let columns = 2 * V::COUNT;
    // SAFETY: the caller's: two numbers are there.
    unsafe {
        match (columns, F::CODE.bits()) {
            (STEP, 4) => [V::halves(from); 2],
            (STEP, _) => [V::splat(*from), V::splat(*from.add(1))],
            _ => [V::splat(*from.add(pair * columns / 16)); 2],
        }
    }
}

/// Sums of the lanes, times what all numbers are multiplied by.
#[inline(always)]
unsafe fn finish<V: Lanes, F: GroupedFormat, const C: usize>(
    panel: &GroupedPanel<'_>,
    totals: [V; C],
    out: &mut [f32],
) -> usize {
    let factor = match F::CODE {
        Code::E4m3 => V::E4M3_SCALE * panel.global,
        Code::Int4 | Code::E2m1 | Code::Int8 => panel.global,
    };
    for (c, total) in totals.into_iter().enumerate() {
        // SAFETY: the caller's.
        out[c * PANEL_ROWS] = unsafe { total.total() } * factor;
    }
    C
}

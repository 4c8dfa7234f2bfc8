//! Dot products of weight rows with activation rows in float32 vectors, for every format.
//!
//! Weights are widened in registers. Each output has one chain of multiply-adds over `K` and one
//! fixed tree at its end, whatever the number of rows, so a row's result does not depend on
//! which other rows are computed with it.

use std::marker::PhantomData;
use std::ops::Range;

use artel_device::cpu::Vectorized;
use half::{bf16, f16};

use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{
    BLOCK, Element, Fp8Format, Fp8Panel, activation_scale, quantize_group, row_scale,
};
use crate::quant::{Bf16, DenseMatrix, F16, F32, WeightMatrix};

/// Operand rows are padded to this many numbers, the widest vector.
const ROW_MULTIPLE: usize = 16;

/// Weight rows that are asked for before they are read: far enough to hide the memory.
const ROWS_AHEAD: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A float32 vector of one instruction set.
///
/// # Safety
/// Implementors' functions may only be called inside [`Lanes::call`], which may only be called
/// where the processor has the instruction set; the kernels are handed out on that condition.
pub(super) unsafe trait Lanes: Copy + Send + Sync + 'static {
    /// float32 numbers in a vector: a divisor of 16.
    const COUNT: usize;
    /// What widened e4m3 codes must be multiplied by: a power of two, so exact.
    const E4M3_SCALE: f32;
    /// Instruction set, for the plan.
    const NAME: &'static str;

    /// Runs `work` compiled for the instruction set.
    unsafe fn call<W: Vectorized>(work: W) -> W::Output;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    /// `self * factor + sum`.
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The values of the low and of the high halves of [`Lanes::COUNT`] bytes.
    unsafe fn nibbles(from: *const u8, values: &[f32; 16]) -> [Self; 2];
    /// The first number at `from` in the first half of the lanes, the second in the other.
    unsafe fn halves(from: *const f32) -> Self;
    /// The sum of all lanes in a fixed order.
    unsafe fn total(self) -> f32;
    /// Asks for the cache line at `from`, which may lie outside of any allocation.
    unsafe fn prefetch(from: *const u8);
}

/// Reads a vector of stored numbers as float32.
///
/// # Safety
/// As for [`Lanes`]; the pointer must be readable for [`Lanes::COUNT`] numbers.
pub(super) unsafe trait Load<T>: Lanes {
    unsafe fn load(from: *const T) -> Self;
}

/// The kernel of a vector type, for all formats.
pub(super) struct VectorKernel<V>(PhantomData<V>);

impl<V> VectorKernel<V> {
    pub const NEW: Self = Self(PhantomData);
}

/// A panel of weight rows and what it is multiplied with.
struct Panel<'a, V, T> {
    weights: &'a [T],
    columns: usize,
    rows: usize,
    x: Operand<'a>,
    out: &'a mut [f32],
    vector: PhantomData<V>,
}

impl<V: Load<T> + Load<f32>, T: Element> Vectorized for Panel<'_, V, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: only `Lanes::call` runs this.
        unsafe { multiply::<V, T>(self) }
    }
}

macro_rules! dense_kernel {
    ($($format:ty, $element:ty);*) => { $(
        impl<V: Load<$element> + Load<f32>> Kernel<$format> for VectorKernel<V> {
            fn name(&self) -> &'static str {
                V::NAME
            }

            fn tile_words(&self, columns: usize) -> usize {
                TILE_ROWS * columns.next_multiple_of(ROW_MULTIPLE)
            }

            fn pack(&self, rows: GatheredRows<'_, $element>, tile: &mut [f32]) {
                let pitch = rows.columns().next_multiple_of(ROW_MULTIPLE);
                for (index, out) in tile.chunks_exact_mut(pitch).take(rows.len()).enumerate() {
                    for (out, x) in out.iter_mut().zip(rows.row(index)) {
                        *out = x.to_f32();
                    }
                    out[rows.columns()..].fill(0.0);
                }
            }

            fn multiply(
                &self,
                weights: &DenseMatrix<$element>,
                panel: Range<usize>,
                x: Operand<'_>,
                out: &mut [f32],
            ) {
                let columns = weights.columns();
                let rows = panel.len();
                let weights = &weights.elements()[panel.start * columns..panel.end * columns];
                let vector = PhantomData::<V>;
                // SAFETY: this kernel is only handed out where the processor has the instructions.
                unsafe { V::call(Panel { weights, columns, rows, x, out, vector }) };
            }
        }
    )* };
}
dense_kernel!(F32, f32; F16, f16; Bf16, bf16);

/// All pairs of weight row and activation row, four by four.
#[inline(always)]
unsafe fn multiply<V: Load<T> + Load<f32>, T: Element>(panel: Panel<'_, V, T>) {
    let pitch = panel.columns.next_multiple_of(ROW_MULTIPLE);
    for tile in 0..panel.x.tiles() {
        let (x, rows) = (panel.x.tile(tile), panel.x.tile_rows(tile));
        let out = &mut panel.out[tile * TILE_ROWS * PANEL_ROWS..];
        let mut n = 0;
        while n < panel.rows {
            let weights = &panel.weights[n * panel.columns..];
            let step = if n + 4 <= panel.rows { 4 } else { 1 };
            let mut row = 0;
            while row < rows {
                let (x, out) = (&x[row * pitch..], &mut out[row * PANEL_ROWS + n..]);
                let group = Group { weights, columns: panel.columns, x, pitch };
                // SAFETY: the caller's; `step` rows of weights and `taken` rows of `x` are there.
                unsafe {
                    row += match (step, rows - row) {
                        (4, 4..) => dots::<V, T, 4, 4>(group, out),
                        (4, _) => dots::<V, T, 4, 1>(group, out),
                        (_, 4..) => dots::<V, T, 1, 4>(group, out),
                        _ => dots::<V, T, 1, 1>(group, out),
                    };
                }
            }
            n += step;
        }
    }
}

/// Rows that start at `weights` and at `x`, `columns` and `pitch` apart.
#[derive(Clone, Copy)]
struct Group<'a, T> {
    weights: &'a [T],
    columns: usize,
    x: &'a [f32],
    pitch: usize,
}

/// `R` weight rows times `C` activation rows; returns `C`.
#[inline(always)]
unsafe fn dots<V: Load<T> + Load<f32>, T: Element, const R: usize, const C: usize>(
    group: Group<'_, T>,
    out: &mut [f32],
) -> usize {
    let Group { weights, columns, x, pitch } = group;
    assert!(weights.len() >= R * columns && x.len() >= C * pitch && pitch >= columns);
    // SAFETY: the rows lie inside the slices (checked above); full vectors end at or before
    // `columns`, the tail is read from a padded copy, and rows of `x` are padded to a multiple of
    // every vector. The caller has the instruction set.
    unsafe {
        let mut sums = [[V::zero(); C]; R];
        let full = columns / V::COUNT * V::COUNT;
        let mut k = 0;
        while k < full {
            let x: [V; C] = std::array::from_fn(|c| V::load(x.as_ptr().add(c * pitch + k)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let from = weights.as_ptr().add(r * columns + k);
                V::prefetch(from.wrapping_add(ROWS_AHEAD * columns).cast());
                let weight: V = V::load(from);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weight.multiply_add(x, *sum);
                }
            }
            k += V::COUNT;
        }
        if full < columns {
            let x: [V; C] = std::array::from_fn(|c| V::load(x.as_ptr().add(c * pitch + full)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let mut tail = [T::from_f32(0.0); ROW_MULTIPLE];
                let rest = &weights[r * columns + full..(r + 1) * columns];
                tail[..rest.len()].copy_from_slice(rest);
                let weight: V = V::load(tail.as_ptr());
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weight.multiply_add(x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                out[c * PANEL_ROWS + r] = sum.total();
            }
        }
    }
    C
}

/// Numbers of an FP8 operand row; the scales `[groups][16]` of a tile follow its rows.
fn fp8_pitch(columns: usize) -> usize {
    columns.next_multiple_of(BLOCK)
}

impl<V: Load<u8> + Load<f32>, F: Fp8Format> Kernel<F> for VectorKernel<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn tile_words(&self, columns: usize) -> usize {
        TILE_ROWS * (fp8_pitch(columns) + columns.div_ceil(BLOCK))
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        let pitch = fp8_pitch(rows.columns());
        let (values, scales) = tile.split_at_mut(TILE_ROWS * pitch);
        for (index, out) in values.chunks_exact_mut(pitch).take(rows.len()).enumerate() {
            let row = rows.row(index);
            let dynamic = || activation_scale(row);
            let row_scale = row_scale(F::ACTIVATION_SCALES, rows.input_scale(), dynamic);
            let groups = out.chunks_exact_mut(BLOCK).zip(row.chunks(BLOCK));
            for (group, (out, x)) in groups.enumerate() {
                out[x.len()..].fill(0.0);
                let scale = quantize_group(x, row_scale, &mut out[..x.len()]);
                scales[group * TILE_ROWS + index] = scale;
            }
        }
    }

    fn multiply(&self, weights: &F::Matrix, panel: Range<usize>, x: Operand<'_>, out: &mut [f32]) {
        let weights = Fp8Panel::new(weights, panel);
        let vector = PhantomData::<V>;
        // SAFETY: this kernel is only handed out where the processor has the instructions.
        unsafe { V::call(Fp8Work { weights, x, out: &mut *out, vector }) };
        weights.scale_rows(out, PANEL_ROWS);
    }
}

/// A panel of FP8 weight rows and what it is multiplied with.
struct Fp8Work<'a, V> {
    weights: Fp8Panel<'a>,
    x: Operand<'a>,
    out: &'a mut [f32],
    vector: PhantomData<V>,
}

impl<V: Load<u8> + Load<f32>> Vectorized for Fp8Work<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: only `Lanes::call` runs this.
        unsafe { multiply_fp8::<V>(self) }
    }
}

/// One weight row times four activation rows at a time.
#[inline(always)]
unsafe fn multiply_fp8<V: Load<u8> + Load<f32>>(work: Fp8Work<'_, V>) {
    let Fp8Work { weights, x, out, .. } = work;
    let columns = weights.columns;
    for tile in 0..x.tiles() {
        let (values, x_scales) = x.tile(tile).split_at(TILE_ROWS * fp8_pitch(columns));
        for row in 0..weights.rows {
            let codes = &weights.codes[row * columns..(row + 1) * columns];
            let work = Fp8Row { panel: &weights, codes, x_scales };
            let mut c = 0;
            while c < x.tile_rows(tile) {
                let out = &mut out[(tile * TILE_ROWS + c) * PANEL_ROWS + row..];
                // SAFETY: the caller's; a tile has 16 rows of which these are inside.
                c += unsafe {
                    if c + 4 <= x.tile_rows(tile) {
                        dots_fp8::<V, 4>(work, &values[c * fp8_pitch(columns)..], c, out)
                    } else {
                        dots_fp8::<V, 1>(work, &values[c * fp8_pitch(columns)..], c, out)
                    }
                };
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Fp8Row<'a> {
    panel: &'a Fp8Panel<'a>,
    codes: &'a [u8],
    x_scales: &'a [f32],
}

/// One weight row times the `C` activation rows at `x`, which are rows `first..` of their tile.
#[inline(always)]
unsafe fn dots_fp8<V: Load<u8> + Load<f32>, const C: usize>(
    row: Fp8Row<'_>,
    x: &[f32],
    first: usize,
    out: &mut [f32],
) -> usize {
    let pitch = fp8_pitch(row.codes.len());
    assert!(x.len() >= C * pitch);
    // SAFETY: every block of codes is whole or a padded copy, and rows of `x` are padded to whole
    // blocks (checked above). The caller has the instruction set.
    unsafe {
        let mut sums = [V::zero(); C];
        let mut padded: [u8; BLOCK];
        for segment in row.panel.segments.iter() {
            let group = segment.group;
            let codes = &row.codes[segment.columns.clone()];
            for line in (0..codes.len()).step_by(LINE) {
                V::prefetch(codes.as_ptr().wrapping_add(ROWS_AHEAD * row.codes.len() + line));
            }
            let codes = if codes.len() == BLOCK {
                codes.as_ptr()
            } else {
                padded = [0; BLOCK];
                padded[segment.in_group()].copy_from_slice(codes);
                padded.as_ptr()
            };
            let mut block = [V::zero(); C];
            let mut k = 0;
            while k < BLOCK {
                let weight: V = V::load(codes.add(k));
                for (c, sum) in block.iter_mut().enumerate() {
                    let x: V = V::load(x.as_ptr().add(c * pitch + group * BLOCK + k));
                    *sum = weight.multiply_add(x, *sum);
                }
                k += V::COUNT;
            }
            let scale = row.panel.scale(&segment);
            for (c, (sum, block)) in sums.iter_mut().zip(block).enumerate() {
                let scale = scale * row.x_scales[group * TILE_ROWS + first + c];
                *sum = block.multiply_add(V::splat(scale * V::E4M3_SCALE), *sum);
            }
        }
        for (c, sum) in sums.iter().enumerate() {
            out[c * PANEL_ROWS] = sum.total();
        }
    }
    C
}

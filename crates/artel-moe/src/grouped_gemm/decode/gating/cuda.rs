//! What becomes of gate and up where they are multiplied.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{Arguments, DeviceSlice};

use crate::activation::Gating;
use crate::activation::cuda::Function;

/// Device functions for biases and the activation.
#[cutile::module]
pub mod decode_gating {
    use crate::activation::gate::cuda::gate_code::*;
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// As [`gated_halves`] of a product whose upper half is gate.
    pub unsafe fn gated_product<
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const BN: i32,
        const BM: i32,
        const HB: i32,
    >(
        product: Tile<f32, { [BN, BM] }>,
        biases: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [HB, BM] }> {
        let halves: Tile<f32, { [2, HB, BM] }> = product.reshape(const_shape![2, HB, BM]);
        let zero: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let one: Tile<i32, { [] }> = scalar_to_tile(1i32);
        let gate: Tile<f32, { [1, HB, BM] }> = extract(halves, [zero, zero, zero]);
        let up: Tile<f32, { [1, HB, BM] }> = extract(halves, [one, zero, zero]);
        let gate: Tile<f32, { [HB, BM] }> = gate.reshape(const_shape![HB, BM]);
        let up: Tile<f32, { [HB, BM] }> = up.reshape(const_shape![HB, BM]);
        // SAFETY: the caller vouches for the biases.
        unsafe { gated_halves::<KIND, PA, PB, BIAS, HB, BM>(gate, up, biases, place, after) }
    }

    /// The activation `KIND` with the parameters whose bits are `PA` and `PB`, of gate and up, with
    /// `BIAS` after `biases` `[E, 2, I]`. `place` is expert, column tile and `I`. Neither is rounded
    /// first: where codes follow, a rounded bit more or less would move some of them to their
    /// neighbours.
    pub unsafe fn gated_halves<
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const HB: i32,
        const BM: i32,
    >(
        gate: Tile<f32, { [HB, BM] }>,
        up: Tile<f32, { [HB, BM] }>,
        biases: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [HB, BM] }> {
        let mut g: Tile<f32, { [HB, BM] }> = gate;
        let mut u: Tile<f32, { [HB, BM] }> = up;
        if BIAS == 1i32 {
            let first: i32 = place[1] * HB;
            let row: i32 = place[0] * 2i32;
            // SAFETY: the caller vouches for `2 * I` biases of the expert.
            let of_gate: Tile<f32, { [HB, BM] }> =
                unsafe { biases_of::<HB, BM>(biases, row, first, place[2], after) };
            // SAFETY: as above.
            let of_up: Tile<f32, { [HB, BM] }> =
                unsafe { biases_of::<HB, BM>(biases, row + 1i32, first, place[2], after) };
            g = gate + of_gate;
            u = up + of_up;
        }
        let mut out: Tile<f32, { [HB, BM] }> = g;
        if KIND == 0i32 {
            out = silu_and_multiply::<HB, BM>(g, u);
        }
        if KIND > 0i32 {
            out = gated::<KIND, HB, BM>(g, u, float_of(PA), float_of(PB));
        }
        out
    }

    /// `silu(gate) * up`, rounded as IEEE 754 says.
    pub fn silu_and_multiply<const HB: i32, const BM: i32>(
        gate: Tile<f32, { [HB, BM] }>,
        up: Tile<f32, { [HB, BM] }>,
    ) -> Tile<f32, { [HB, BM] }> {
        let ones: Tile<f32, { [HB, BM] }> = constant(1.0f32, const_shape![HB, BM]);
        let bottom: Tile<f32, { [HB, BM] }> = ones + exp(negf(gate));
        gate / bottom * up
    }

    /// The number with these bits.
    pub fn float_of(bits: i32) -> f32 {
        let bits: Tile<i32, { [] }> = scalar_to_tile(bits);
        let value: Tile<f32, { [] }> = bitcast(bits);
        tile_to_scalar(value)
    }

    /// Columns `first ..` of row `row` of `biases`, `size` numbers a row, beside each other; zero behind
    /// the end of the row.
    pub unsafe fn biases_of<const B: i32, const BM: i32>(
        biases: *mut f32,
        row: i32,
        first: i32,
        size: i32,
        after: Token,
    ) -> Tile<f32, { [B, BM] }> {
        let column: Tile<i32, { [B] }> = count_from::<B>(first);
        let start: Tile<i32, { [B] }> = broadcast_scalar(row * size, const_shape![B]);
        // SAFETY: the caller vouches for the row.
        let bias: Tile<f32, { [B] }> =
            unsafe { gather(biases, column + start, below(column, size), 0.0f32, after) };
        let bias: Tile<f32, { [B, 1] }> = bias.reshape(const_shape![B, 1]);
        bias.broadcast(const_shape![B, BM])
    }
}

/// The constants that a kernel that activates takes behind all others: function, parameters, biases.
pub(crate) fn gating_constants(gating: &Gating) -> [i32; 4] {
    let Function { kind, parameters: [a, b], .. } = gating.activation.into();
    [kind, bits_of(a), bits_of(b), i32::from(gating.biases)]
}

/// A number as a constant of kernels: parameters of activations are positive.
fn bits_of(parameter: f32) -> i32 {
    parameter.to_bits() as i32
}

/// `arguments` and the biases that a kernel takes behind all others, if it takes any.
pub(crate) fn with_biases(arguments: Arguments, biases: Option<DeviceSlice<'_, f32>>) -> Arguments {
    match biases {
        Some(biases) => arguments.slice(biases),
        None => arguments.no_slice(),
    }
}

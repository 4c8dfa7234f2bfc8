//! Device functions that widen words to bfloat16.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// From words to bfloat16 numbers, two in a word: one instruction widens two weights. `F` says what
/// words hold, as in the other products; INT8 in rows is not widened. A plane of 128 columns gives
/// two tiles of 64: bytes 0 and 2 of its words, and bytes 1 and 3.
#[cutile::module]
pub mod word_halves {
    use cutile::core::*;

    /// `value` everywhere.
    pub fn all<const BN: i32>(value: i32) -> Tile<i32, { [BN, 32] }> {
        let words: Tile<i32, { [BN, 32] }> = broadcast_scalar(value, const_shape![BN, 32]);
        words
    }

    /// Bits `mask` of words times a power of two: a shift to the left, of which bits may fall out.
    pub fn up<const BN: i32>(
        words: Tile<i32, { [BN, 32] }>,
        power: i32,
        mask: i32,
    ) -> Tile<i32, { [BN, 32] }> {
        andi(words * all::<BN>(power), all::<BN>(mask))
    }

    /// Bits `mask` of words after a shift to the right.
    pub fn down<const BN: i32>(
        words: Tile<i32, { [BN, 32] }>,
        places: i32,
        mask: i32,
    ) -> Tile<i32, { [BN, 32] }> {
        andi(shri(words, all::<BN>(places)), all::<BN>(mask))
    }

    /// Integers of up to seven bits in both halves of each word, more by 128: the bits of 128 are theirs
    /// and those of the integer.
    pub fn above_128<const BN: i32>(codes: Tile<i32, { [BN, 32] }>) -> Tile<i32, { [BN, 32] }> {
        // 0x4300 twice.
        ori(codes, all::<BN>(1124090624i32))
    }

    /// What INT8 numbers above 128 have too much, of even or odd bytes: 128, or 256 where they are
    /// negative.
    pub fn too_much<const BN: i32, const ODD: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut signs: Tile<i32, { [BN, 32] }> = andi(x, all::<BN>(8388736i32));
        if ODD == 1i32 {
            signs = down::<BN>(x, 8i32, 8388736i32);
        }
        above_128::<BN>(signs)
    }

    /// Bytes 0 and 2 of the lower plane. e2m1 numbers are over 2^126: their sign is bfloat16's, their
    /// exponent and mantissa lie at bits 8 to 6.
    pub fn lower_even<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut halves: Tile<i32, { [BN, 32] }> =
            ori(up::<BN>(x, 256i32, -2147450880i32), up::<BN>(x, 16i32, 29360576i32));
        if F == 0i32 {
            halves = above_128::<BN>(andi(x, all::<BN>(983055i32)));
        }
        if F == 3i32 {
            halves = above_128::<BN>(andi(x, all::<BN>(8323199i32)));
        }
        halves
    }

    /// Bytes 1 and 3 of the lower plane.
    pub fn lower_odd<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut halves: Tile<i32, { [BN, 32] }> =
            ori(andi(x, all::<BN>(-2147450880i32)), down::<BN>(x, 4i32, 29360576i32));
        if F == 0i32 {
            halves = above_128::<BN>(down::<BN>(x, 8i32, 983055i32));
        }
        if F == 3i32 {
            halves = above_128::<BN>(down::<BN>(x, 8i32, 8323199i32));
        }
        halves
    }

    /// Bytes 0 and 2 of the upper plane, whose e2m1 numbers have their parts in three places.
    pub fn upper_even<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut halves: Tile<i32, { [BN, 32] }> = ori(
            ori(up::<BN>(x, 1024i32, -2147450880i32), up::<BN>(x, 4i32, 16777472i32)),
            up::<BN>(x, 64i32, 12583104i32),
        );
        if F == 0i32 {
            halves = above_128::<BN>(down::<BN>(x, 4i32, 983055i32));
        }
        halves
    }

    /// Bytes 1 and 3 of the upper plane.
    pub fn upper_odd<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut halves: Tile<i32, { [BN, 32] }> = ori(
            ori(up::<BN>(x, 4i32, -2147450880i32), down::<BN>(x, 6i32, 16777472i32)),
            down::<BN>(x, 2i32, 12583104i32),
        );
        if F == 0i32 {
            halves = above_128::<BN>(down::<BN>(x, 12i32, 983055i32));
        }
        halves
    }

    /// Words as the halves that they consist of.
    pub fn halves_of<const BN: i32, const NW: i32, const NB: i32, const NH: i32>(
        words: Tile<i32, { [BN, 32] }>,
    ) -> Tile<bf16, { [BN, 64] }> {
        let words: Tile<i32, { [NW] }> = words.reshape(const_shape![NW]);
        let bytes: Tile<u8, { [NB] }> = pack(words);
        let halves: Tile<bf16, { [NH] }> = unpack(bytes);
        halves.reshape(const_shape![BN, 64])
    }

    /// `halves` less a number for each row.
    pub fn less<const BN: i32>(
        halves: Tile<bf16, { [BN, 64] }>,
        rows: Tile<f32, { [BN] }>,
    ) -> Tile<bf16, { [BN, 64] }> {
        let rows: Tile<bf16, { [BN] }> = convert_tile(rows);
        let rows: Tile<bf16, { [BN, 1] }> = rows.reshape(const_shape![BN, 1]);
        halves - rows.broadcast(const_shape![BN, 64])
    }

    /// `halves` times a factor for each of `G` groups of a row, which have `W` of them each.
    pub fn times<const BN: i32, const G: i32, const W: i32>(
        halves: Tile<bf16, { [BN, 64] }>,
        factors: Tile<bf16, { [BN, G] }>,
    ) -> Tile<bf16, { [BN, 64] }> {
        let factors: Tile<bf16, { [BN, G, 1] }> = factors.reshape(const_shape![BN, G, 1]);
        let factors: Tile<bf16, { [BN, G, W] }> = factors.broadcast(const_shape![BN, G, W]);
        halves * factors.reshape(const_shape![BN, 64])
    }

    /// e4m3 bytes of words times 2^118: e2m1 numbers over 2^126 times these are their products over 2^8,
    /// without rounding.
    pub fn e4m3_factors<const BN: i32, const SW: i32, const SB: i32>(
        words: Tile<i32, { [BN, 2] }>,
    ) -> Tile<bf16, { [BN, 8] }> {
        let words: Tile<i32, { [SW] }> = words.reshape(const_shape![SW]);
        let bytes: Tile<u8, { [SB] }> = pack(words);
        let bytes: Tile<u8, { [BN, 8] }> = bytes.reshape(const_shape![BN, 8]);
        let scales: Tile<f8e4m3fn, { [BN, 8] }> = bitcast(bytes);
        let scales: Tile<f32, { [BN, 8] }> = convert_tile(scales);
        let unit: Tile<f32, { [BN, 8] }> =
            constant(332306998946228968225951765070086144.0f32, const_shape![BN, 8]);
        let scales: Tile<bf16, { [BN, 8] }> = convert_tile(scales * unit);
        scales
    }

    /// The four exponents of each word as powers of two over 2^65, at most 2^127: e2m1 numbers over
    /// 2^126 times these are their products over 2^64.
    pub fn exponent_factors<const BN: i32, const SB: i32>(
        words: Tile<i32, { [BN] }>,
    ) -> Tile<bf16, { [BN, 4] }> {
        let bytes: Tile<u8, { [SB] }> = pack(words);
        let bytes: Tile<u8, { [BN, 4] }> = bytes.reshape(const_shape![BN, 4]);
        let bytes: Tile<i8, { [BN, 4] }> = bitcast(bytes);
        let wide: Tile<i32, { [BN, 4] }> = exti(bytes);
        let low: Tile<i32, { [BN, 4] }> = broadcast_scalar(255i32, const_shape![BN, 4]);
        let less: Tile<i32, { [BN, 4] }> = broadcast_scalar(62i32, const_shape![BN, 4]);
        let most: Tile<i32, { [BN, 4] }> = broadcast_scalar(254i32, const_shape![BN, 4]);
        let exponents: Tile<i32, { [BN, 4] }> = mini(andi(wide, low) + less, most);
        let place: Tile<i32, { [BN, 4] }> = broadcast_scalar(8388608i32, const_shape![BN, 4]);
        let factors: Tile<f32, { [BN, 4] }> = bitcast(exponents * place);
        let factors: Tile<bf16, { [BN, 4] }> = convert_tile(factors);
        factors
    }

    /// The lowest byte of each word.
    pub fn low_bytes<const BN: i32>(words: Tile<i32, { [BN] }>) -> Tile<f32, { [BN] }> {
        let low: Tile<i32, { [BN] }> = broadcast_scalar(255i32, const_shape![BN]);
        itof(andi(words, low), rounding::NearestEven)
    }
}

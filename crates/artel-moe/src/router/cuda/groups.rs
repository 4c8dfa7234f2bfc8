//! Which groups of experts may be selected.

/// Which groups of experts may be selected.
#[cutile::module]
pub mod group_code {
    use crate::router::cuda::numbers::number_code::*;
    use cutile::core::*;

    /// Keys of the best groups; those of the others become the lowest.
    pub fn keep_best_groups<
        const NE: i32,
        const WIDTH: i32,
        const PADDED_GROUPS: i32,
        const GROUPS_KEPT: i32,
        const BIAS: i32,
    >(
        key: Tile<i32, { [NE] }>,
    ) -> Tile<i32, { [NE] }> {
        let key: Tile<i32, { [PADDED_GROUPS, WIDTH] }> =
            key.reshape(const_shape![PADDED_GROUPS, WIDTH]);
        let lowest: Tile<i32, { [PADDED_GROUPS, WIDTH] }> =
            constant(-2147483647i32, const_shape![PADDED_GROUPS, WIDTH]);
        let mut worth: Tile<i32, { [PADDED_GROUPS] }> = reduce_max(key, 1i32);
        if BIAS == 1i32 {
            worth = two_best::<PADDED_GROUPS, WIDTH>(key, worth);
        }
        let own: Tile<i32, { [PADDED_GROUPS, 1] }> = worth.reshape(const_shape![PADDED_GROUPS, 1]);
        let own: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            own.broadcast(const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let other: Tile<i32, { [1, PADDED_GROUPS] }> =
            worth.reshape(const_shape![1, PADDED_GROUPS]);
        let other: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            other.broadcast(const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let number: Tile<i32, { [PADDED_GROUPS] }> = iota(const_shape![PADDED_GROUPS]);
        let own_number: Tile<i32, { [PADDED_GROUPS, 1] }> =
            number.reshape(const_shape![PADDED_GROUPS, 1]);
        let own_number: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            own_number.broadcast(const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let other_number: Tile<i32, { [1, PADDED_GROUPS] }> =
            number.reshape(const_shape![1, PADDED_GROUPS]);
        let other_number: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            other_number.broadcast(const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let wins_tie: Tile<bool, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            eq_tile(other, own) & lt_tile(other_number, own_number);
        let beats: Tile<bool, { [PADDED_GROUPS, PADDED_GROUPS] }> = gt_tile(other, own) | wins_tie;
        let one: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            constant(1i32, const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let none: Tile<i32, { [PADDED_GROUPS, PADDED_GROUPS] }> =
            constant(0i32, const_shape![PADDED_GROUPS, PADDED_GROUPS]);
        let rank: Tile<i32, { [PADDED_GROUPS] }> = reduce_sum(select(beats, one, none), 1i32);
        let rank: Tile<i32, { [PADDED_GROUPS, 1] }> = rank.reshape(const_shape![PADDED_GROUPS, 1]);
        let rank: Tile<i32, { [PADDED_GROUPS, WIDTH] }> =
            rank.broadcast(const_shape![PADDED_GROUPS, WIDTH]);
        let kept: Tile<i32, { [PADDED_GROUPS, WIDTH] }> =
            broadcast_scalar(GROUPS_KEPT, const_shape![PADDED_GROUPS, WIDTH]);
        let key: Tile<i32, { [PADDED_GROUPS, WIDTH] }> = select(lt_tile(rank, kept), key, lowest);
        key.reshape(const_shape![NE])
    }

    /// Key of the sum of the two best of each group, `best` the keys of the best.
    pub fn two_best<const G: i32, const WIDTH: i32>(
        key: Tile<i32, { [G, WIDTH] }>,
        best: Tile<i32, { [G] }>,
    ) -> Tile<i32, { [G] }> {
        let lowest: Tile<i32, { [G, WIDTH] }> = constant(-2147483647i32, const_shape![G, WIDTH]);
        let past_all: Tile<i32, { [G, WIDTH] }> = broadcast_scalar(WIDTH, const_shape![G, WIDTH]);
        let member: Tile<i32, { [WIDTH] }> = iota(const_shape![WIDTH]);
        let member: Tile<i32, { [1, WIDTH] }> = member.reshape(const_shape![1, WIDTH]);
        let member: Tile<i32, { [G, WIDTH] }> = member.broadcast(const_shape![G, WIDTH]);
        let best_key: Tile<i32, { [G, 1] }> = best.reshape(const_shape![G, 1]);
        let best_key: Tile<i32, { [G, WIDTH] }> = best_key.broadcast(const_shape![G, WIDTH]);
        let candidate: Tile<i32, { [G, WIDTH] }> = select(eq_tile(key, best_key), member, past_all);
        let winner: Tile<i32, { [G] }> = reduce_min(candidate, 1i32);
        let winner: Tile<i32, { [G, 1] }> = winner.reshape(const_shape![G, 1]);
        let winner: Tile<i32, { [G, WIDTH] }> = winner.broadcast(const_shape![G, WIDTH]);
        let rest: Tile<i32, { [G, WIDTH] }> = select(eq_tile(member, winner), lowest, key);
        let second: Tile<i32, { [G] }> = reduce_max(rest, 1i32);
        // A group of one has no second best, a padding group not even a best.
        let none: Tile<i32, { [G] }> = constant(-2147483647i32, const_shape![G]);
        let sum: Tile<f32, { [G] }> = from_order_key::<G>(best) + from_order_key::<G>(second);
        select(eq_tile(second, none), best, order_key::<G>(sum))
    }
}

use super::super::{LayerPlan, ReplicaTable, tables};

/// Which copy of an expert a token uses.
///
/// Most loaded rank over mean rank in the simulation of `balance.rs` (32 ranks, top-8 of 256
/// experts, lognormal loads, a balanced placement):
///
/// | slots, tokens a rank | `TokenHash` | `Salted` |
/// |---|---|---|
/// | 288, 1 | 2.55 | 1.80 |
/// | 384, 1 | 3.01 | 1.79 |
/// | 288, 16 | 1.22 | 1.19 |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRule {
    /// The published rule (vLLM pull request #40810): Knuth's multiplicative hash of the token
    /// index modulo the number of copies. For 2, 4 and 8 copies that is the token index modulo
    /// the copies, and every rank begins with copy 0: with one token a rank all of them meet
    /// there. Kept for comparison.
    TokenHash,
    /// A mixed hash of token, expert and salt, whose high bits pick the copy. Spreads from the
    /// first token on.
    Salted(ReplicaSalt),
    /// The same hash picks a part of the expert's tokens, and the plan's shares say whose part that
    /// is: a copy gets its share of the tokens, where the other rules give every copy the same.
    Shares(ReplicaSalt),
}

/// What sets the choices of one rank and layer apart from those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaSalt(u32);

impl ReplicaSalt {
    /// For ranks that each send their own tokens to the experts (all-to-all).
    pub fn of_rank(ep_rank: usize, layer: usize) -> Self {
        // Odd multipliers keep (rank, layer) apart before mixing; rank 0 must not share the salt
        // of replicated tokens.
        let rank = (ep_rank as u32).wrapping_add(1).wrapping_mul(0x85eb_ca77);
        Self(mix(rank.wrapping_add((layer as u32).wrapping_mul(0xc2b2_ae3d))))
    }

    /// For ranks that all see the same tokens (all-gather): these must agree on every choice, or
    /// a pair is computed twice or never.
    pub fn of_replicated_tokens(layer: usize) -> Self {
        Self(mix((layer as u32).wrapping_mul(0xc2b2_ae3d)))
    }

    /// What is mixed into every choice.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// Copy by the published rule: `hash(token) mod copies`.
pub(super) fn token_hash(token: usize, copies: usize) -> usize {
    let hash = (token as u64).wrapping_mul(0x9e37_79b9) & 0xffff_ffff;
    (hash % copies as u64) as usize
}

/// Copy by the salted rule. The product's upper half scales the hash to 0..copies by its high
/// bits, without a division.
pub(super) fn salted_hash(salt: ReplicaSalt, token: usize, expert: i32, copies: usize) -> usize {
    ((u64::from(salted_bits(salt, token, expert)) * copies as u64) >> 32) as usize
}

/// The part of its expert's tokens that a token belongs to, below [`ReplicaTable::PARTS`].
pub(super) fn salted_part(salt: ReplicaSalt, token: usize, expert: i32) -> u16 {
    let parts = u64::from(ReplicaTable::PARTS);
    ((u64::from(salted_bits(salt, token, expert)) * parts) >> 32) as u16
}

/// Parts of an expert's tokens that its copies up to and with this one get.
pub(super) fn parts_up_to(plan: &LayerPlan, expert: i32, copy: usize) -> u16 {
    let shares = plan.shares.of_slots();
    let copies = &plan.placement.replicas(expert)[..=copy];
    tables::threshold(copies.iter().map(|&slot| shares[slot as usize]).sum())
}

fn salted_bits(salt: ReplicaSalt, token: usize, expert: i32) -> u32 {
    let seed = (token as u32).wrapping_mul(0x9e37_79b9) ^ salt.0;
    mix(seed.wrapping_add((expert as u32).wrapping_mul(0x27d4_eb2f)))
}

/// Every input bit changes every output bit with probability near one half: the finaliser of
/// MurmurHash3 (Appleby, public domain).
fn mix(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_hash_has_its_published_values() {
        assert_eq!([0, 1, 2].map(|token| token_hash(token, 1 << 40)), [0, 0x9e3779b9, 0x3c6ef372]);
        assert_eq!([0, 1, 2].map(|token| token_hash(token, 2)), [0, 1, 0]);
        assert_eq!([0, 1, 2].map(|token| token_hash(token, 4)), [0, 1, 2]);
        // Only the low 32 bits of the product count, also for absurd indices.
        assert_eq!(token_hash(usize::MAX, 1 << 40), 0x61c8_8647);
    }

    #[test]
    fn powers_of_two_make_the_published_hash_a_remainder() {
        for copies in [2, 4, 8] {
            assert!((0..1000).all(|token| token_hash(token, copies) == token % copies));
        }
    }

    #[test]
    fn salted_choices_are_legal_and_even_over_tokens_ranks_layers_and_experts() {
        for copies in 1..=9 {
            let choose = |token, rank, layer, expert| {
                salted_hash(ReplicaSalt::of_rank(rank, layer), token, expert, copies)
            };
            let along: [Vec<usize>; 4] = [
                (0..4000).map(|token| choose(token, 0, 0, 0)).collect(),
                (0..4000).map(|rank| choose(0, rank, 0, 0)).collect(),
                (0..4000).map(|layer| choose(0, 0, layer, 0)).collect(),
                (0..4000).map(|expert| choose(0, 0, 0, expert)).collect(),
            ];
            for choices in along {
                let mut counts = vec![0usize; copies];
                choices.iter().for_each(|&choice| counts[choice] += 1);
                let mean = 4000 / copies;
                let off = counts.iter().map(|&count| count.abs_diff(mean)).max().unwrap();
                // Five standard deviations of a fair draw.
                assert!((off as f64) < 5.0 * (mean as f64).sqrt() + 1.0, "{counts:?}");
            }
        }
    }

    #[test]
    fn replicated_tokens_have_a_salt_of_their_own() {
        for layer in 0..64 {
            let shared = ReplicaSalt::of_replicated_tokens(layer);
            assert!((0..1024).all(|rank| ReplicaSalt::of_rank(rank, layer) != shared));
        }
    }
}

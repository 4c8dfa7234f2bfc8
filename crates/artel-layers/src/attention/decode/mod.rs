//! Attention of one new token a sequence, which is bound by reading its keys and values.
//!
//! The keys of a sequence are cut into parts of at least [`Cut::part_keys_min`], into at most so many that
//! one sequence fills the GPU. How they are cut depends on the length of the sequence alone; how many
//! blocks of threads share the parts depends on the batch, which changes no bit. A second launch adds
//! the parts in order.
//!
//! Example: 4 key-value heads, so at most 64 parts. A sequence of 1000 keys has 8 parts, seven of 128
//! keys and one of 104; one of 20,000 has 63 parts, 62 of 320 and one of 160.
//!
//! Sources: Dao et al., "Flash-Decoding", 2023; Milakov and Gimelshein, 2018.

pub mod cuda;
pub mod single;
pub(crate) mod sum;

use super::{AttentionShape, ValueStorage};

/// How the keys of a sequence are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Keys that are multiplied at a time; parts are whole multiples.
    pub step_keys: usize,
    /// Fewest keys of a part, but for the last.
    pub part_keys_min: usize,
    /// Most parts of a sequence: enough blocks of threads for two on each multiprocessor of an H200, or
    /// one where a block sums up whole latent vectors.
    pub parts_max: usize,
}

impl Cut {
    /// For the heads of a shape. Of a latent vector a part leaves more than its keys are, so its parts
    /// are longer.
    pub fn of(shape: &AttentionShape) -> Self {
        let parts = |blocks: usize, sharing: usize| (blocks / sharing.max(1)).next_power_of_two();
        let (part_keys_min, parts_max) = match shape.values {
            ValueStorage::Own => (128, parts(256, shape.kv_heads).clamp(8, 128)),
            ValueStorage::KeyPrefix => {
                (256, parts(128, shape.query_heads.div_ceil(64)).clamp(8, 64))
            }
        };
        Self { step_keys: 64, part_keys_min, parts_max }
    }

    /// Keys of each part, and parts, of a sequence whose token sees `keys` keys: what the kernel
    /// computes.
    pub fn parts(&self, keys: usize) -> (usize, usize) {
        let share = keys.div_ceil(self.parts_max).next_multiple_of(self.step_keys);
        let part = share.max(self.part_keys_min);
        (part, keys.div_ceil(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(query_heads: usize, kv_heads: usize, values: ValueStorage) -> AttentionShape {
        AttentionShape { query_heads, kv_heads, key_dim: 128, value_dim: 128, values }
    }

    #[test]
    fn the_example_of_the_documentation() {
        let cut = Cut::of(&shape(32, 4, ValueStorage::Own));
        assert_eq!(cut.parts(1000), (128, 8));
        assert_eq!(cut.parts(20_000), (320, 63));
    }

    #[test]
    fn no_sequence_has_more_parts_than_there_is_room_for() {
        let own = [1, 2, 3, 4, 8, 16, 96].map(|heads| shape(96, heads, ValueStorage::Own));
        let latent = [1, 16, 128, 200].map(|heads| shape(heads, 1, ValueStorage::KeyPrefix));
        for shape in own.into_iter().chain(latent) {
            let cut = Cut::of(&shape);
            for keys in (0..10_000).chain([65_536, 1 << 20, (1 << 20) + 1]) {
                let (part, count) = cut.parts(keys);
                assert!(count <= cut.parts_max && count * part >= keys);
                assert!(part.is_multiple_of(cut.step_keys));
            }
        }
    }
}

//! Attention of one new token a sequence, which is bound by reading its keys and values.
//!
//! The keys of a sequence are cut into parts of at least [`PART_KEYS_MIN`], into at most so many that
//! one sequence fills the GPU. How they are cut depends on the length of the sequence alone; how many
//! blocks of threads share the parts depends on the batch, which changes no bit. A second launch adds
//! the parts in order.
//!
//! Example: 4 key-value heads, so at most 64 parts. A sequence of 1000 keys has 8 parts, seven of 128
//! keys and one of 104; one of 20,000 has 63 parts, 62 of 320 and one of 160.
//!
//! Sources: Dao et al., "Flash-Decoding", 2023; Milakov and Gimelshein, 2018.

pub mod cuda;
mod sum;

/// Fewest keys of a part, but for the last.
pub const PART_KEYS_MIN: usize = 128;

/// Keys that are multiplied at a time; parts are whole multiples.
pub const STEP_KEYS: usize = 64;

/// Most parts of a sequence: enough blocks of threads for two on each multiprocessor of an H200.
pub fn parts_max(kv_heads: usize) -> usize {
    (256 / kv_heads.max(1)).next_power_of_two().clamp(8, 128)
}

/// Keys of each part, and parts, of a sequence whose token sees `keys` keys: what the kernel computes.
pub fn parts(keys: usize, kv_heads: usize) -> (usize, usize) {
    let share = keys.div_ceil(parts_max(kv_heads)).next_multiple_of(STEP_KEYS);
    let part = share.max(PART_KEYS_MIN);
    (part, keys.div_ceil(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        assert_eq!(parts(1000, 4), (128, 8));
        assert_eq!(parts(20_000, 4), (320, 63));
    }

    #[test]
    fn no_sequence_has_more_parts_than_there_is_room_for() {
        for kv_heads in [1, 2, 3, 4, 8, 16, 96] {
            for keys in (0..10_000).chain([65_536, 1 << 20, (1 << 20) + 1]) {
                let (part, count) = parts(keys, kv_heads);
                assert!(count <= parts_max(kv_heads) && count * part >= keys);
                assert!(part.is_multiple_of(STEP_KEYS));
            }
        }
    }
}

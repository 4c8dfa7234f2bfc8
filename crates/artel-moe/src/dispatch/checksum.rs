//! Four lanes of multiply and rotate: as fast as memory, and every change within one word changes the
//! sum, since each step maps different lanes to different lanes.

const LANES: usize = 4;

/// An odd number without pattern: the golden ratio in 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A checksum of `bytes` for somebody who also knows `seed`.
pub(super) fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let mut lanes: [u64; LANES] = std::array::from_fn(|lane| add(seed, lane as u64));
    let (blocks, rest) = bytes.as_chunks::<{ 8 * LANES }>();
    let mut last = [0; 8 * LANES];
    last[..rest.len()].copy_from_slice(rest);
    for block in blocks.iter().chain([&last]) {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = add(*lane, u64::from_le_bytes(*word));
        }
    }
    lanes.into_iter().fold(bytes.len() as u64, add)
}

fn add(lane: u64, word: u64) -> u64 {
    (lane ^ word).wrapping_mul(FACTOR).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes: Vec<u8> = (0..101).map(|i| (i * 37) as u8).collect();
        let whole = checksum(1, &bytes);
        assert_ne!(whole, checksum(2, &bytes));
        assert_ne!(checksum(1, &[]), checksum(1, &[0]));
        assert_ne!(checksum(1, &bytes[..100]), checksum(1, &[&bytes[..100], &[0]].concat()));
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[position] ^= 1 << bit;
                assert_ne!(checksum(1, &changed), whole, "byte {position}, bit {bit}");
            }
        }
    }
}

//! Numbers as bytes.

/// Most bytes of a varint of 64 bits.
pub(super) const VARINT_BYTES_MAX: usize = 10;

/// Appends seven bits a byte, the lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a varint off the front; `None` when the bytes end or it exceeds 64 bits.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends counts: a 0 is followed by the number of further zeros.
pub(super) fn put_counts(out: &mut Vec<u8>, counts: impl Iterator<Item = i32>) {
    let mut zeros = 0u64;
    let put_zeros = |out: &mut Vec<u8>, zeros: &mut u64| {
        if let Some(further) = zeros.checked_sub(1) {
            out.push(0);
            put_varint(out, further);
        }
        *zeros = 0;
    };
    for count in counts {
        match u64::try_from(count) {
            Ok(count) if count > 0 => {
                put_zeros(out, &mut zeros);
                put_varint(out, count);
            }
            _ => zeros += 1,
        }
    }
    put_zeros(out, &mut zeros);
}

/// Reads exactly `wanted` counts from all of `bytes`, or says what is wrong with them.
pub(super) fn take_counts(mut bytes: &[u8], wanted: usize) -> Result<Vec<i32>, &'static str> {
    let mut counts = Vec::new();
    while counts.len() < wanted {
        let count = take_varint(&mut bytes).ok_or("too few numbers")?;
        match i32::try_from(count) {
            Err(_) => return Err("a count above 2147483647"),
            Ok(0) => {
                let further = take_varint(&mut bytes).ok_or("a run of zeros without its length")?;
                if further >= (wanted - counts.len()) as u64 {
                    return Err("a run of zeros beyond the last expert");
                }
                counts.resize(counts.len() + 1 + further as usize, 0);
            }
            Ok(count) => counts.push(count),
        }
    }
    if bytes.is_empty() { Ok(counts) } else { Err("more bytes than counts") }
}

/// The FNV-1a hash of 32 bits (Fowler, Noll and Vo): tells torn writes and flipped bits.
pub(super) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

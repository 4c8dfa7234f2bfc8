//! NumPy's `.npy` files, version 1.0: a header that is a Python literal, then the numbers.

use std::io::{self, Write};

/// Bytes before the numbers are a multiple of this, as the format asks.
const ALIGNMENT: usize = 64;

/// Writes `values` as a little-endian float32 array `[values.len() / columns, columns]`.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_matrix(out: &mut impl Write, values: &[f32], columns: usize) -> io::Result<()> {
    let rows = values.len() / columns.max(1);
    assert_eq!(rows * columns, values.len(), "this is a bug: rows of unequal length");
    out.write_all(&header(rows, columns))?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

fn header(rows: usize, columns: usize) -> Vec<u8> {
    let mut literal =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let fixed = b"\x93NUMPY\x01\x00".len() + size_of::<u16>();
    while !(fixed + literal.len() + 1).is_multiple_of(ALIGNMENT) {
        literal.push(' ');
    }
    literal.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((literal.len() as u16).to_le_bytes());
    bytes.extend(literal.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_says_the_shape() {
        let mut file = Vec::new();
        write_matrix(&mut file, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3).unwrap();
        let header_length = usize::from(u16::from_le_bytes([file[8], file[9]]));
        assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
        assert_eq!((10 + header_length) % ALIGNMENT, 0);
        let literal = std::str::from_utf8(&file[10..10 + header_length]).unwrap();
        assert!(literal.contains("'shape': (2, 3)") && literal.ends_with('\n'), "{literal:?}");
        let numbers = &file[10 + header_length..];
        assert_eq!(numbers.len(), 24);
        assert_eq!(numbers[20..], 6f32.to_le_bytes());
    }
}

//! NumPy's `.npy` files, version 1.0: a header that is a Python literal, then the numbers.

use std::io::{self, Write};

use anyhow::{Context, bail, ensure};

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

/// Shape and values of an array of integers of up to 64 bits, in C order.
///
/// # Errors
/// For other files, numbers or orders, and for files that end too early.
pub fn read_integers(bytes: &[u8]) -> anyhow::Result<(Vec<usize>, Vec<i64>)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").context("not a file of numpy.save")?;
    let (length, rest) = match *rest {
        [1, _, a, b, ref rest @ ..] => (usize::from(u16::from_le_bytes([a, b])), rest),
        [2 | 3, _, a, b, c, d, ref rest @ ..] => (u32::from_le_bytes([a, b, c, d]) as usize, rest),
        _ => bail!("a version of NumPy's format other than 1 to 3"),
    };
    let (literal, data) = rest.split_at_checked(length).context("the header is cut off")?;
    let literal = std::str::from_utf8(literal).context("the header is not text")?;
    let field = |name: &str| {
        let after = literal.split_once(&format!("'{name}':")).map(|(_, after)| after.trim_start());
        after.with_context(|| format!("the header has no {name}"))
    };
    ensure!(field("fortran_order")?.starts_with("False"), "the array is in Fortran's order");
    let descr = field("descr")?.trim_start_matches('\'');
    let descr = descr.split('\'').next().unwrap_or_default();
    let shape = field("shape")?.trim_start_matches('(').split(')').next().unwrap_or_default();
    let shape = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape: Vec<usize> = shape
        .map(|size| size.parse().with_context(|| format!("a size of {size}")))
        .collect::<anyhow::Result<_>>()?;
    let width = match descr {
        "|i1" | "|u1" => 1,
        "<i2" | "<u2" => 2,
        "<i4" | "<u4" => 4,
        "<i8" => 8,
        _ => bail!("numbers of type {descr}, but must be little-endian integers"),
    };
    let count = shape.iter().try_fold(width, |count: usize, &size| count.checked_mul(size));
    ensure!(count == Some(data.len()), "{} bytes for {descr} {shape:?}", data.len());
    let signed = descr.contains('i');
    Ok((shape, data.chunks_exact(width).map(|bytes| integer(bytes, signed)).collect()))
}

/// A little-endian number of up to eight bytes.
fn integer(bytes: &[u8], signed: bool) -> i64 {
    let negative = signed && bytes.last().is_some_and(|byte| *byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
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

    fn array(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let literal =
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((literal.len() as u16).to_le_bytes());
        file.extend(literal.as_bytes());
        file.extend(data);
        file
    }

    #[test]
    fn integers_of_every_width_are_read() {
        let read =
            |descr, data: &[u8]| read_integers(&array(descr, "False", "(2, 1, 1)", data)).unwrap();
        assert_eq!(read("|i1", &[1, 255]), (vec![2, 1, 1], vec![1, -1]));
        assert_eq!(read("|u1", &[1, 255]).1, [1, 255]);
        assert_eq!(read("<i2", &[1, 1, 255, 255]).1, [257, -1]);
        assert_eq!(read("<u2", &[1, 1, 255, 255]).1, [257, 65535]);
        assert_eq!(read("<i4", &[7, 0, 0, 0, 254, 255, 255, 255]).1, [7, -2]);
        let wide: Vec<u8> = [1i64 << 40, -3].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(read("<i8", &wide).1, [1 << 40, -3]);
        let line = read_integers(&array("|i1", "False", "(3,)", &[1, 2, 3])).unwrap();
        assert_eq!(line.0, [3]);
    }

    #[test]
    fn files_that_hold_no_integers_are_refused() {
        let said = |file: &[u8]| read_integers(file).unwrap_err().to_string();
        assert!(said(b"PK").contains("numpy.save"));
        assert!(said(b"\x93NUMPY\x09\x00").contains("version"));
        assert!(said(&array("<f4", "False", "(1,)", &[0; 4])).contains("type <f4"));
        assert!(said(&array("<i4", "True", "(1,)", &[0; 4])).contains("Fortran"));
        assert!(said(&array("<i4", "False", "(2,)", &[0; 4])).contains("4 bytes for <i4 [2]"));
        let huge = format!("({}, {})", usize::MAX, usize::MAX);
        assert!(said(&array("<i4", "False", &huge, &[])).contains("0 bytes"));
        let whole = array("<i4", "False", "(1,)", &[0; 4]);
        for length in 0..whole.len() {
            assert!(read_integers(&whole[..length]).is_err());
        }
    }
}

//! The definition.

use super::Piece;

/// Copies the pieces of both buffers.
///
/// # Panics
/// When a piece leaves its buffer.
pub fn bring(pieces: &[Piece], from: [&[i32]; 2], to: [&mut [i32]; 2]) {
    for &Piece { buffer, start, len } in pieces {
        to[buffer][start..start + len].copy_from_slice(&from[buffer][start..start + len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let (mut first, mut second) = ([0; 3], [0; 2]);
        let pieces = [Piece { buffer: 0, start: 1, len: 2 }, Piece { buffer: 1, start: 0, len: 1 }];
        bring(&pieces, [&[1, 2, 3], &[4, 5]], [&mut first, &mut second]);
        assert_eq!((first, second), ([0, 2, 3], [4, 0]));
    }
}

//! The definition.

/// Overwrites `ids` `[R]` with tokens of `chosen` where `sources` `[R]` names one; a source beyond
/// them gives -1, no token.
pub fn feed(ids: &mut [i32], sources: &[i32], chosen: &[i32]) {
    for (id, &source) in ids.iter_mut().zip(sources) {
        if let Ok(source) = usize::try_from(source) {
            *id = chosen.get(source).copied().unwrap_or(-1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let mut ids = [5, 0, 0];
        feed(&mut ids, &[-1, 2, 0], &[7, 8, 9]);
        assert_eq!(ids, [5, 9, 7]);
        feed(&mut ids, &[3, -1], &[7, 8, 9]);
        assert_eq!(ids, [-1, 9, 7], "a source beyond the tokens, a row without source");
    }
}

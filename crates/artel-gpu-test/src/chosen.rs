use crate::Case;

/// Which tests run.
pub(crate) struct Chosen {
    /// What their names contain.
    filter: Option<String>,
    /// Every so manieth of these, from which on: a part of the tests, for a process of several.
    part: Option<(usize, usize)>,
}

impl Chosen {
    /// `part` is `I/N`: part I of N, counted from 1.
    ///
    /// # Errors
    /// What is wrong with `part`.
    pub(crate) fn new(filter: Option<String>, part: Option<&str>) -> Result<Self, String> {
        Ok(Self { filter, part: part.map(parse_part).transpose()? })
    }

    /// Of `cases` those that run.
    pub(crate) fn of(&self, cases: Vec<Case>) -> Vec<Case> {
        let named = |case: &Case| self.filter.as_ref().is_none_or(|part| case.name.contains(part));
        let named = cases.into_iter().filter(named);
        match self.part {
            Some((first, step)) => named.skip(first).step_by(step).collect(),
            None => named.collect(),
        }
    }
}

fn parse_part(text: &str) -> Result<(usize, usize), String> {
    let numbers =
        text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    match numbers {
        Some((part, of)) if (1..=of).contains(&part) => Ok((part - 1, of)),
        _ => {
            Err(format!("ARTEL_TEST_PART is {text:?}; expected I/N with 1 <= I <= N, such as 3/14"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases() -> Vec<Case> {
        let case = |name| Case::new(name, |_| Ok::<(), String>(()), |_, ()| Ok(()));
        ["a::1", "a::2", "b::1", "a::3", "b::2"].map(case).into()
    }

    fn names(filter: Option<&str>, part: Option<&str>) -> Vec<String> {
        let chosen = Chosen::new(filter.map(str::to_owned), part).unwrap();
        chosen.of(cases()).into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn parts_make_the_whole() {
        assert_eq!(names(None, None).len(), 5);
        assert_eq!(names(Some("a::"), None), ["a::1", "a::2", "a::3"]);
        assert_eq!(names(Some("a::"), Some("1/2")), ["a::1", "a::3"]);
        assert_eq!(names(Some("a::"), Some("2/2")), ["a::2"]);
        let mut all: Vec<_> = (1..=3).flat_map(|i| names(None, Some(&format!("{i}/3")))).collect();
        all.sort();
        assert_eq!(all, ["a::1", "a::2", "a::3", "b::1", "b::2"]);
        assert!(names(None, Some("7/7")).is_empty());
    }

    #[test]
    fn wrong_parts_are_refused() {
        for part in ["", "1", "0/3", "4/3", "a/b", "1/0", "-1/2"] {
            let error = Chosen::new(None, Some(part)).err().unwrap();
            assert!(error.contains("expected I/N"), "{error}");
        }
    }
}

//! Stop strings in text that arrives in pieces.

/// Finds the first stop string and never lets a part of one out.
///
/// Example: stop strings ["END"], pieces "a E", "N", "ough", "t END": the text let out is "a ", "",
/// "ENough", "t ", and the last piece stops.
#[derive(Debug, Clone)]
pub(crate) struct StopMatcher {
    strings: Vec<String>,
    /// The end of the text so far, as far as it could be the beginning of a stop string.
    held: String,
    stopped: Option<String>,
}

/// What a piece of text did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matched {
    /// Text that certainly belongs to the answer.
    pub(crate) text: String,
    /// The stop string that came behind it.
    pub(crate) stopped: Option<String>,
}

impl StopMatcher {
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new(), stopped: None }
    }

    /// Adds a piece; what comes after a stop string is dropped.
    pub(crate) fn push(&mut self, piece: &str) -> Matched {
        if self.stopped.is_some() {
            return Matched { text: String::new(), stopped: self.stopped.clone() };
        }
        self.held += piece;
        let found =
            self.strings.iter().filter_map(|string| Some((self.held.find(string)?, string)));
        if let Some((start, string)) = found.min_by_key(|&(start, _)| start) {
            self.stopped = Some(string.clone());
            self.held.truncate(start);
            return Matched { text: std::mem::take(&mut self.held), stopped: self.stopped.clone() };
        }
        let tail = self.held.split_off(self.certain());
        Matched { text: std::mem::replace(&mut self.held, tail), stopped: None }
    }

    /// What was held back, once no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes before the longest end of the held text with which a stop string begins.
    fn certain(&self) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        let begins = |start: &usize| {
            let tail = &self.held[*start..];
            self.strings.iter().any(|string| string.starts_with(tail))
        };
        let starts = (earliest..self.held.len()).filter(|&start| self.held.is_char_boundary(start));
        starts.into_iter().find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text let out for each piece, and whether the last one stopped.
    fn run(strings: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(strings.iter().map(|&text| text.to_owned()).collect());
        let mut texts = Vec::new();
        for piece in pieces {
            let matched = matcher.push(piece);
            texts.push(matched.text);
            if let Some(string) = matched.stopped {
                assert!(strings.contains(&string.as_str()));
                assert_eq!(matcher.push("more").text + &matcher.finish(), "", "after a stop");
                return (texts, true);
            }
        }
        texts.push(matcher.finish());
        (texts, false)
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        assert_eq!(run(&[], &["a", "", "bc"]).0, ["a", "", "bc", ""]);
    }

    #[test]
    fn a_stop_string_over_several_pieces() {
        let (texts, stopped) = run(&["END"], &["a E", "N", "ough", "t END", "x"]);
        assert_eq!(
            (texts.as_slice(), stopped),
            (&["a ", "", "ENough", "t "].map(String::from)[..], true)
        );
        assert_eq!(run(&["END"], &["E", "N"]), (["", "", "EN"].map(String::from).to_vec(), false));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), (vec!["a".to_owned()], true));
        assert_eq!(run(&["abcd", "bc"], &["ab", "c"]), (vec![String::new(), "a".to_owned()], true));
    }

    #[test]
    fn a_repeated_beginning_is_not_lost() {
        let (texts, stopped) = run(&["aab"], &["a", "a", "a", "a", "b"]);
        assert_eq!((texts.concat().as_str(), stopped), ("aa", true));
    }

    #[test]
    fn characters_of_several_bytes() {
        let (texts, stopped) = run(&["日本"], &["今日", "は日", "本"]);
        assert_eq!((texts.concat().as_str(), stopped), ("今日は", true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]).0.concat(), "café?");
    }

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "xENDyENxxEENDz";
        for first in 0..text.len() {
            for second in first..text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let (texts, stopped) = run(&["EEND", "ENxy"], &pieces);
                assert_eq!((texts.concat().as_str(), stopped), ("xENDyENxx", true), "{pieces:?}");
            }
        }
    }
}

//! Finding the answer in a completion. Each scanner is a regular expression written out.

/// What stands for the answer when a completion has none.
pub const INVALID: &str = "[invalid]";

/// The first match of `#### (\-?[0-9\.\,]+)`.
pub fn strict_match(text: &str) -> &str {
    for (start, marker) in text.match_indices("#### ") {
        let tail = &text[start + marker.len()..];
        let digits = usize::from(tail.starts_with('-'));
        let end = digits + run_of(&tail[digits..], b"0123456789.,");
        if end > digits {
            return &tail[..end];
        }
    }
    INVALID
}

/// The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
pub fn flexible_extract(text: &str) -> &str {
    let mut found = INVALID;
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit() || "-$.,".contains(c)) {
        let tail = &rest[start..];
        let digits = usize::from(tail.starts_with('-'));
        let run = run_of(&tail[digits..], b"$0123456789.,");
        let is_number = match run {
            0 => false,
            1 => tail.as_bytes()[digits].is_ascii_digit(),
            _ => true,
        };
        let end = (digits + run).max(1);
        if is_number {
            found = &tail[..end];
        }
        rest = &tail[end..];
    }
    found
}

/// What is compared: without `,` and `$`, without all up to the last `#### `, without a period at
/// the end, in lower case.
pub fn normalize(answer: &str) -> String {
    let answer = answer.replace([',', '$'], "");
    let number = answer.rsplit_once("#### ").map_or(&*answer, |(_, number)| number);
    number.strip_suffix('.').unwrap_or(number).to_lowercase()
}

/// How many bytes at the start of `text` are of `class`.
fn run_of(text: &str, class: &[u8]) -> usize {
    text.bytes().take_while(|byte| class.contains(byte)).count()
}

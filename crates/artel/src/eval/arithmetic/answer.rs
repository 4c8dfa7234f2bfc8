//! Reading the final answer out of a reply.

/// The integer after the last `####` of a reply.
///
/// Tolerates what models write around it: spaces, a currency sign, thousands separators, a trailing
/// period or `.00`, and text after the number. A number with a fraction is no integer: `None`.
pub fn extract_answer(text: &str) -> Option<i64> {
    let (_, tail) = text.rsplit_once("####")?;
    let tail = tail.trim_start();
    let (negative, tail) = match tail.strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, tail),
    };
    let tail = tail.strip_prefix('$').unwrap_or(tail).trim_start();
    let end = tail.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(tail.len());
    let magnitude: i64 = tail[..end].replace(',', "").parse().ok()?;
    let fraction = tail[end..].strip_prefix('.').unwrap_or("");
    let fraction_is_zero =
        fraction.chars().take_while(char::is_ascii_digit).all(|digit| digit == '0');
    fraction_is_zero.then_some(if negative { -magnitude } else { magnitude })
}

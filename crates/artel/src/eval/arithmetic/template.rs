//! Sentence forms: text with alternatives `[a|b|c]` and slots `{key}`.
//!
//! ```text
//! "{A} [buys|picks up] {n} more {item}[| for {A.his} collection]."
//! choose -> "{A} picks up {n} more {item}."            (the shape of the sentence)
//! fill   -> "Priya picks up six more stickers."
//! ```

use super::dice::Dice;
use super::words::{Noun, Person};

/// What a slot holds.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// A quantity.
    Number(i64),
    /// `{key}` is the plural, `{key.1}` the singular.
    Noun(&'static Noun),
    /// `{key}` is the name, `{key.he}`, `{key.him}` and `{key.his}` the pronouns.
    Person(Person),
    /// Any other text.
    Text(String),
}

/// How numbers are written in one text.
#[derive(Debug, Clone, Copy)]
pub(super) struct NumberStyle {
    /// Numbers up to twelve as words, where no sign is attached to them.
    pub(super) words: bool,
    /// `1,250` rather than `1250`.
    pub(super) separators: bool,
}

/// Resolves the alternatives of a form, innermost choices included; an unchosen branch draws
/// nothing. The slots stay.
pub(super) fn choose(form: &str, dice: &mut Dice) -> String {
    let mut out = String::with_capacity(form.len());
    let mut rest = form;
    while let Some(open) = rest.find('[') {
        out.push_str(&rest[..open]);
        let (branches, after) = branches(&rest[open..]);
        out.push_str(&choose(dice.pick(&branches), dice));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The top-level branches of the bracket that `text` starts with, and what follows it.
fn branches(text: &str) -> (Vec<&str>, &str) {
    let (mut depth, mut start, mut found) = (0, 1, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b'|' if depth == 1 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            b']' => {
                depth -= 1;
                if depth == 0 {
                    found.push(&text[start..at]);
                    return (found, &text[at + 1..]);
                }
            }
            _ => {}
        }
    }
    panic!("this is a bug: unclosed bracket in {text:?}")
}

/// What the slots of a text are filled with, and how.
#[derive(Clone, Copy)]
pub(super) struct Filling<'s> {
    /// Later slots hide earlier ones of the same key.
    pub(super) slots: &'s [(&'static str, Slot)],
    /// How numbers are written.
    pub(super) style: NumberStyle,
    /// The sentences before this one: who is not named there has no pronoun yet.
    pub(super) told: &'s [String],
}

/// A whole sentence: [`fill`], with single spaces, a capital first letter and `an` before vowels.
pub(super) fn sentence(form: &str, filling: Filling) -> String {
    let filled = fill(form, filling);
    let words: Vec<&str> = filled.split_whitespace().collect();
    let text = words.join(" ").replace(" .", ".").replace(" ,", ",").replace(" ?", "?");
    with_final_stop(capitalised(&with_articles(&text)))
}

/// A sentence that asks ends with a question mark, one that commands with a period.
fn with_final_stop(mut text: String) -> String {
    let stop = match text.split(' ').next() {
        Some("What" | "How" | "Which") => '?',
        Some("Find" | "Calculate") => '.',
        _ => return text,
    };
    if text.ends_with(['.', '?']) {
        text.pop();
        text.push(stop);
    }
    text
}

/// Puts the slots into a chosen form.
pub(super) fn fill(form: &str, filling: Filling) -> String {
    let mut out = String::with_capacity(form.len() + 32);
    let mut rest = form;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let close = open + rest[open..].find('}').expect("this is a bug: unclosed slot");
        let after = &rest[close + 1..];
        push_slot(&mut out, &rest[open + 1..close], after, filling);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn push_slot(out: &mut String, key: &str, after: &str, filling: Filling) {
    let Filling { slots, style, told } = filling;
    let (base, part) = key.split_once('.').unwrap_or((key, ""));
    let slot = slots.iter().rev().find(|(name, _)| *name == base);
    let (_, slot) = slot.unwrap_or_else(|| panic!("this is a bug: no slot {key:?}"));
    match slot {
        Slot::Number(n) => {
            let signed = out.ends_with(['$', '-', '+']) || after.starts_with(['%', '/']);
            let style = NumberStyle { words: style.words && !signed, ..style };
            out.push_str(&number(*n, style));
        }
        Slot::Noun(noun) => out.push_str(if part == "1" { noun.one } else { noun.many }),
        Slot::Person(person) => {
            let named = |text: &String| text.contains(&person.name);
            let gender = person.gender;
            let known = named(out) || told.iter().any(named);
            let mention = person.mention(known);
            out.push_str(match part {
                _ if !known => &mention,
                "" => &mention,
                "he" => gender.he(),
                "him" => gender.him(),
                "his" => gender.his(),
                _ => panic!("this is a bug: no pronoun {key:?}"),
            });
            out.push_str(if part == "his" && !known { "'s" } else { "" });
        }
        Slot::Text(text) => out.push_str(text),
    }
}

/// A number as text: `seven`, `7`, `1,250` or `1250`.
pub(super) fn number(n: i64, style: NumberStyle) -> String {
    const WORDS: [&str; 13] = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve",
    ];
    match usize::try_from(n) {
        Ok(small) if style.words && small < WORDS.len() => WORDS[small].to_string(),
        _ if style.separators && n >= 1000 => format!("{},{:03}", n / 1000, n % 1000),
        _ => n.to_string(),
    }
}

/// `a` becomes `an` before a vowel sound.
fn with_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    for word in text.split_inclusive(' ') {
        if ends_with_article(&out) && starts_with_vowel_sound(word) {
            out.insert(out.len() - 1, 'n');
        }
        out.push_str(word);
    }
    out
}

fn ends_with_article(text: &str) -> bool {
    let before = text.strip_suffix("a ").or_else(|| text.strip_suffix("A "));
    before.is_some_and(|before| before.is_empty() || before.ends_with([' ', '"', '(']))
}

fn starts_with_vowel_sound(word: &str) -> bool {
    let consonant_sound = ["uni", "use", "one", "eu"].iter().any(|start| word.starts_with(start));
    let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
    let spoken_with_vowel = digits.starts_with('8') || matches!(digits, "11" | "18");
    let hour = word.starts_with("hour");
    hour || spoken_with_vowel
        || (!consonant_sound
            && word.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']))
}

/// The first letter in upper case, also after a sentence ends inside the text.
fn capitalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at_start = true;
    let mut after_stop = false;
    for c in text.chars() {
        if at_start && c.is_alphanumeric() {
            out.extend(c.to_uppercase());
            at_start = false;
        } else {
            out.push(c);
        }
        at_start |= after_stop && c == ' ';
        after_stop = matches!(c, '.' | '?' | '!');
    }
    out
}

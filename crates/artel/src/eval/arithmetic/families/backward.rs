//! The end is known and the beginning is asked for.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{BAKES, KEEPSAKES, PRODUCE};

/// Somebody gives things away until a known rest is left. The solution undoes the events from the
/// last to the first, so the events are drawn backwards and told forwards.
pub(super) fn emptied(s: &mut Story) -> Option<()> {
    s.person("A");
    let items = s.dice().pick(&[KEEPSAKES, PRODUCE, BAKES]);
    s.noun("item", items);
    s.say(&["{A} [has|had] some {item}.", "{A} starts with an unknown number of {item}."]);
    let left = s.draw("z", 4, 60);
    let steps = s.dice().between(2, 3);
    let mut value = left;
    let mut told = Vec::new();
    for _ in 0..steps {
        let n = s.dice().between(3, 40);
        let (form, next) = match s.dice().below(4) {
            0 => (
                format!("{{A.he}} [got|received] {n} more {{item}}."),
                s.step(
                    value,
                    Subtract,
                    n,
                    "Before {A.he} got {n0} {item}, there were {=}."
                        .replace("{n0}", &n.to_string())
                        .as_str(),
                )?,
            ),
            1 => (
                "{A.he} [gave away|sold|lost] half of the {item}.".to_string(),
                s.step(
                    value,
                    Multiply,
                    2,
                    "Before half of them were gone, there were {=} {item}.",
                )?,
            ),
            _ => (
                format!(
                    "{{A.he}} [gave|sold] {n} {{item}} to [a friend|a neighbor|{{A.his}} sister]."
                ),
                s.step(
                    value,
                    Add,
                    n,
                    &format!("Before {{A.he}} parted with {n} {{item}}, there were {{=}}."),
                )?,
            ),
        };
        told.push(form);
        value = next;
    }
    for form in told.iter().rev() {
        s.say(&[&format!("[|Then ]{form}"), &format!("[After that|Next|Later], {form}")]);
    }
    s.noise(&["{A} is {d} years old.", "This took {d} minutes."]);
    s.say(&["Now {A.he} has {z} {item} left.", "In the end, {z} {item} [are left|remain]."]);
    s.say(&[
        "How many {item} did {A} have [at first|in the beginning|at the start]?",
        "[What was|Find] the number of {item} at the start.",
    ]);
    Some(())
}

/// A number that somebody thinks of.
pub(super) fn number_riddle(s: &mut Story) -> Option<()> {
    s.person("A");
    let start = s.draw("a", 2, 60);
    s.say(&[
        "{A} thinks of the number {a}.",
        "{A} starts with [the number|] {a}.",
        "{A} writes down the number {a}.",
    ]);
    let mut value = start;
    for turn in 0..s.dice().between(2, 4) {
        s.text("it", if turn == 0 { "it" } else { "[it|the result]" });
        let (form, next) = link(s, value)?;
        let before = if turn == 0 { "[|First, ]" } else { "[Then |Next, |After that, ]" };
        s.say(&[&format!("{before}{{A.he}} {form}.")]);
        value = next;
    }
    s.noise(&["{A} is {d} years old."]);
    s.say(&[
        "What [number|] does {A.he} get?",
        "What is the [result|final number]?",
        "Which number does {A} end up with?",
    ]);
    Some(())
}

/// One change of the number and what becomes of it.
fn link(s: &mut Story, value: i64) -> Option<(&'static str, i64)> {
    Some(match s.dice().below(6) {
        0 => {
            let n = s.draw("n", 2, 90);
            ("adds {n}[| to it]", s.step(value, Add, n, "Adding {n} gives {=}.")?)
        }
        1 => {
            let n = s.draw("n", 2, 60);
            (
                "[subtracts {n}|takes away {n}]",
                s.step(value, Subtract, n, "Taking away {n} gives {=}.")?,
            )
        }
        2 => {
            let n = s.draw("n", 3, 9);
            ("multiplies {it} by {n}", s.step(value, Multiply, n, "Multiplying by {n} gives {=}.")?)
        }
        3 => {
            let n = s.draw("n", 3, 9);
            ("divides {it} by {n}", s.step(value, Divide, n, "Dividing by {n} gives {=}.")?)
        }
        4 => ("doubles it", s.step(value, Multiply, 2, "Doubling gives {=}.")?),
        _ => ("[halves it|takes half of it]", s.step(value, Divide, 2, "Half of it is {=}.")?),
    })
}

//! Things done a little every day.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::nouns;

/// A long task worked off at two paces.
pub(super) fn book(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("a book", "page", "reads"),
        ("a novel", "page", "reads"),
        ("a test", "question", "answers"),
        ("a poem", "line", "learns"),
        ("a quilt", "square", "sews"),
        ("a wall", "brick", "lays"),
        ("a puzzle", "piece", "places"),
        ("a song book", "song", "practices"),
    ];
    let (whole, unit, verb) = s.dice().pick(&scenes);
    s.text("whole", whole);
    s.text("unit", unit);
    s.text("does", verb);
    let (pace, days) = (s.draw("m", 5, 40), s.draw("q", 2, 9));
    let done = Multiply.apply(pace, days)?;
    let total = done + s.dice().between(10, 200);
    s.set("g", total);
    let does = [
        "{A.he} {does} {m} {unit}s [a day|each day|every day] for {q} days.",
        "For {q} days, {A.he} {does} {m} {unit}s [a|per] day.",
    ];
    if s.dice().chance(70) {
        s.say(&[
            "{A} [is working on|has|starts] {whole} [with|of] {g} {unit}s.",
            "There are {g} {unit}s in {whole} that {A} wants to finish.",
        ]);
        s.say(&does);
    } else {
        s.text("whole", whole.trim_start_matches("a "));
        s.say(&does);
        s.say(&["The {whole} has {g} {unit}s.", "There are {g} {unit}s in the {whole}."]);
    }
    s.noise(&[
        "{A} is {d} years old.",
        "{A} drinks {d} cups of tea in that time.",
        "{A.his} friend has {d} pens.",
    ]);
    s.step(pace, Multiply, days, "{A} {does} {=} {unit}s.")?;
    let mut left = s.step(total, Subtract, done, "{=} {unit}s are left.")?;
    if s.dice().chance(30) {
        let more = s.draw("k", 5, 60);
        s.say(&[
            "On the weekend, {A.he} {does} {k} more {unit}s.",
            "Then {A.he} {does} another {k} {unit}s.",
        ]);
        left = s.step(left, Subtract, more, "After that, {=} {unit}s are left.")?;
    }
    rest_of_book(s, left)
}

/// What is asked about the `left` units of the task.
fn rest_of_book(s: &mut Story, left: i64) -> Option<()> {
    if s.dice().chance(55) {
        let divisors: Vec<i64> = (2..=12).filter(|d| left % d == 0 && left > *d).collect();
        if divisors.is_empty() {
            return None;
        }
        let k = s.draw_of("c", &divisors);
        if s.dice().chance(50) {
            s.say(&[
                "How many days does {A.he} need for the rest at {c} {unit}s a day?",
                "If {A.he} then {does} {c} {unit}s a day, how many more days does {A.he} need?",
            ]);
            s.step(left, Divide, k, "{A.he} needs {=} more days.")?;
        } else {
            s.say(&["{A.he} wants to finish in {c} more days. How many {unit}s is that per day?"]);
            s.step(left, Divide, k, "That is {=} {unit}s per day.")?;
        }
    } else {
        s.say(&[
            "How many {unit}s are left?",
            "How many {unit}s does {A.he} still have to do?",
            "How many more {unit}s are there?",
        ]);
    }
    Some(())
}

/// Time spent on practice; minutes and hours.
pub(super) fn practice(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text(
        "what",
        "[plays the piano|practices the violin|studies Spanish|trains for a race|does \
     yoga|paints|learns chess|codes]",
    );
    let (minutes, days) = (s.dice().between(2, 18) * 5, s.draw("q", 2, 7));
    s.set("m", minutes);
    s.say(&[
        "{A} {what} for {m} minutes [a day|every day], {q} days a week.",
        "Each week, {A} {what} on {q} days for {m} minutes each time.",
    ]);
    s.noise(&[
        "{A} started this {d} months ago.",
        "A lesson costs ${d}.",
        "{A.his} teacher has {d} other students.",
    ]);
    let mut week = s.step(minutes, Multiply, days, "That is {=} minutes a week.")?;
    if s.dice().chance(40) {
        let extra = s.dice().between(2, 18) * 10;
        s.set("k", extra);
        s.say(&[
            "On [Sunday|Saturday], {A.he} adds {k} [more|] minutes.",
            "{A.he} [also|] has a lesson of {k} minutes every week.",
        ]);
        week = s.step(week, Add, extra, "With the extra time, it is {=} minutes a week.")?;
    }
    if s.dice().chance(50) {
        let weeks = s.draw("c", 2, 12);
        s.say(&[
            "How many minutes is that in {c} weeks?",
            "How many minutes does {A.he} spend on this in {c} weeks?",
        ]);
        s.step(week, Multiply, weeks, "In {c} weeks, that is {=} minutes.")?;
    } else {
        let weeks = s.draw("c", 2, 12);
        let total = s.step(week, Multiply, weeks, "In {c} weeks, that is {=} minutes.")?;
        s.say(&[
            "How many hours is that in {c} weeks?",
            "How many hours does {A.he} spend on this in {c} weeks?",
        ]);
        s.step(total, Divide, 60, "That is {=} hours.")?;
    }
    Some(())
}

/// A routine with two parts, over days.
pub(super) fn routine(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        (nouns!["push-up", "squat", "jump", "stretch" / "stretches"] as &[_], "does", "do"),
        (
            nouns!["glass of water" / "glasses of water", "cup of tea" / "cups of tea"],
            "drinks",
            "drink",
        ),
        (nouns!["page", "story" / "stories", "poem"], "writes", "write"),
        (nouns!["new word", "word", "verse"], "learns", "learn"),
        (nouns!["letter", "package", "newspaper"], "delivers", "deliver"),
        (nouns!["dollar"], "saves", "save"),
        (nouns!["sketch" / "sketches", "photo"], "makes", "make"),
    ];
    let (items, does, base) = s.dice().pick(&scenes);
    s.noun("item", items);
    s.text("does", does);
    s.text("do", base);
    let (morning, evening) = (s.draw("a", 2, 40), s.draw("b", 2, 40));
    let days = s.draw("q", 2, 12);
    s.text("rest", "[every day|each day]");
    s.say(&[
        "{rest}, {A} {does} {a} {item} in the morning and {b} [{item}|] in the evening.",
        "{A} {does} {a} {item} before lunch and {b} [more|] after lunch {rest}.",
    ]);
    s.noise(&[
        "{A} gets up at {d} minutes past six.",
        "{A.his} brother is {d} years old.",
        "{A} has a notebook with {d} sheets.",
    ]);
    let daily = s.step(morning, Add, evening, "{A} {does} {=} {item} a day.")?;
    let total = s.step(daily, Multiply, days, "In {q} days, {A.he} {does} {=} {item}.")?;
    match s.dice().below(4) {
        0 => {
            let skipped = s.draw("k", 2, 30);
            s.say(&["How many {item} does {A.he} {do} in {q} days if {A.he} leaves out {k} of \
             them?"]);
            s.step(total, Subtract, skipped, "Without those, it is {=} {item}.")?;
        }
        1 => {
            let goal = total + s.dice().between(3, 80);
            s.set("k", goal);
            s.say(&[
                "{A.his} goal is {k} {item}. How many are missing after {q} days?",
                "After {q} days of this, how many {item} are missing to reach {k}?",
            ]);
            s.step(goal, Subtract, total, "{=} {item} are missing.")?;
        }
        2 => {
            let before = s.draw("k", 3, 90);
            s.say(&[
                "The week before, it was {k} {item}. How many {item} is that in all after {q} \
                 days?",
                "{A.he} had {k} {item} from before. How many {item} is that in all after {q} days?",
            ]);
            s.step(total, Add, before, "With the earlier ones, it is {=} {item}.")?;
        }
        _ => s.say(&[
            "How many {item} does {A.he} {do} in {q} days?",
            "How many {item} is that in {q} days?",
        ]),
    }
    Some(())
}

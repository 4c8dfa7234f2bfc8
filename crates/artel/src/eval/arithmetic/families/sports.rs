//! Points, laps and ages.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;

/// Baskets or goals of two values.
pub(super) fn points(s: &mut Story) -> Option<()> {
    s.person("A");
    s.person("B");
    let scenes = [
        ("baskets", 2, "long shots", 3),
        ("wins", 3, "bonus games", 5),
        ("red balls", 4, "blue balls", 6),
        ("easy levels", 10, "hard levels", 25),
        ("small fish", 5, "big fish", 20),
        ("short words", 3, "long words", 8),
        ("tries", 5, "penalty kicks", 3),
    ];
    let (x, p, y, u) = s.dice().pick(&scenes);
    s.text("x", x);
    s.text("y", y);
    s.set("p", p);
    s.set("u", u);
    let (q, r) = (s.draw("q", 2, 25), s.draw("r", 2, 12));
    s.say(&[
        "In a [game|contest|tournament], {x} are worth {p} points each and {y} are worth {u} \
         points each.",
        "{A} plays a game that gives {p} points for each of the {x} and {u} points for each of \
         the {y}.",
    ]);
    s.noise(&[
        "The game lasts {d} minutes.",
        "{A} wears the number {d}.",
        "{d} people are watching.",
    ]);
    s.say(&["{A} [gets|has] {q} {x} and {r} {y}.", "{A} finishes with {r} {y} and {q} {x}."]);
    let one = s.step(q, Multiply, p, "The {x} give {=} points.")?;
    let two = s.step(r, Multiply, u, "The {y} give {=} points.")?;
    let sum = s.step(one, Add, two, "{A} has {=} points.")?;
    match s.dice().below(4) {
        0 => {
            let other = s.draw("k", 5, 99);
            s.say(&[
                "{B} has {k} points. How many points more than {B} does {A} have?",
                "How many points is {A} ahead of {B}, who has {k} points?",
            ]);
            s.step(sum, Subtract, other, "{A} is ahead by {=} points.")?;
        }
        1 => {
            let penalty = s.draw("k", 2, 20);
            s.say(&[
                "For breaking a rule, {A} loses {k} points. How many points does {A} have in \
             the end?",
            ]);
            s.step(sum, Subtract, penalty, "After the penalty, {A} has {=} points.")?;
        }
        2 => {
            let goal = sum + s.dice().between(3, 90);
            s.set("k", goal);
            s.say(&["{A} needs {k} points to win. How many points are missing?"]);
            s.step(goal, Subtract, sum, "{=} points are missing.")?;
        }
        _ => s.say(&["How many points does {A} have?", "What is {A}'s [score|total score]?"]),
    }
    Some(())
}

/// Laps of a track over days.
pub(super) fn laps(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("does", "[swims|runs|skates|cycles|walks]");
    let length = s.draw_of("m", &[20, 25, 50, 100, 200, 400]);
    let (count, days) = (s.draw("q", 2, 10), s.draw("r", 2, 7));
    s.say(&[
        "{A} {does} {q} laps of {m} meters [every day|a day].",
        "A lap is {m} meters long, and {A} {does} {q} laps each day.",
    ]);
    s.noise(&[
        "The [pool|track] opened {d} years ago.",
        "{A} has {d} medals.",
        "{A} needs {d} minutes to get there.",
    ]);
    let day = s.step(count, Multiply, length, "{A} {does} {=} meters a day.")?;
    if s.dice().chance(40) {
        let more = s.dice().between(1, 9) * 100;
        s.set("k", more);
        s.say(&["On Saturday, {A.he} {does} {k} meters more than on other days. How many meters \
         is that in {r} days, one of which is a Saturday?"]);
        let usual = s.step(day, Multiply, days, "In {r} usual days, it is {=} meters.")?;
        s.step(usual, Add, more, "With the extra on Saturday, it is {=} meters.")?;
    } else {
        s.say(&[
            "How many meters is that in {r} days?",
            "How far does {A.he} go in {r} days, in meters?",
        ]);
        s.step(day, Multiply, days, "In {r} days, that is {=} meters.")?;
    }
    Some(())
}

/// Ages of a family.
pub(super) fn ages(s: &mut Story) -> Option<()> {
    for key in ["A", "B", "C"] {
        s.person(key);
    }
    let a = s.draw("a", 3, 20);
    s.say(&["{A} is {a} years old.", "{A} [turned|turns] {a} [today|this year]."]);
    let b = match s.dice().below(3) {
        0 => {
            let k = s.draw("n", 2, 4);
            s.say(&["{B} is {n} times as old as {A}."]);
            s.step(a, Multiply, k, "{B} is {=} years old.")?
        }
        1 => {
            let n = s.draw("n", 2, 30);
            s.say(&["{B} is {n} years older than {A}."]);
            s.step(a, Add, n, "{B} is {=} years old.")?
        }
        _ => {
            s.say(&["{B} is half as old as {A}.", "{B} is half {A}'s age."]);
            s.step(a, Divide, 2, "{B} is {=} years old.")?
        }
    };
    s.noise(&[
        "They live at {d} Mill Road.",
        "{A} has {d} classmates.",
        "{B} is {d} inches taller than {A}.",
    ]);
    let n = s.draw("m", 2, 12);
    let (word, operation) = s.dice().pick(&[("older", Add), ("younger", Subtract)]);
    s.text("word", word);
    s.say(&["{C} is {m} years {word} than {B}."]);
    let c = s.step(b, operation, n, "{C} is {=} years old.")?;
    match s.dice().below(4) {
        0 => {
            let later = s.draw("k", 2, 20);
            s.say(&[
                "How old will {C} be in {k} years?",
                "What will {C}'s age be {k} years from now?",
            ]);
            s.step(c, Add, later, "In {k} years, {C} will be {=}.")?;
        }
        1 => {
            s.say(&["What is the sum of the ages of {A} and {C}?"]);
            s.step(a, Add, c, "The sum is {=}.")?;
        }
        2 => {
            let both = s.step(a, Add, b, "{A} and {B} are {=} together.")?;
            s.say(&[
                "What is the sum of all three ages?",
                "How old are the three of them together?",
            ]);
            s.step(both, Add, c, "All three are {=} together.")?;
        }
        _ => s.say(&["How old is {C}?", "Find {C}'s age."]),
    }
    Some(())
}

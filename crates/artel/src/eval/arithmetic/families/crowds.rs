//! Parts of a crowd, and rows of seats.

use super::super::story::Operation::{Add, Divide, Multiply, Percent, Subtract};
use super::super::story::Story;
use super::super::words::nouns;

/// A group, the part of it that does one thing, and the part of the rest that does another.
pub(super) fn part_of_crowd(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun(
        "item",
        nouns![
            "student",
            "guest",
            "worker",
            "person" / "people",
            "child" / "children",
            "player",
            "visitor",
            "teacher",
            "runner"
        ],
    );
    s.text(
        "where",
        "[in a school|at a camp|at a festival|in a village|at a conference|in a \
     company|on a ship]",
    );
    let total = s.dice().between(3, 100) * s.dice().pick(&[4, 4, 10, 12]);
    s.set("g", total);
    let deeds = [
        ("play football", "sing in a choir", "read books"),
        ("drink tea", "drink coffee", "drink juice"),
        ("wear hats", "wear glasses", "wear scarves"),
        ("speak Spanish", "speak Hindi", "speak French"),
        ("come by bus", "come by bike", "come on foot"),
        ("like swimming", "like tennis", "like chess"),
    ];
    let (x, y, z) = s.dice().pick(&deeds);
    s.text("x", x);
    s.text("y", y);
    s.text("z", z);
    s.say(&["There are {g} {item} {where}.", "{A} counts {g} {item} {where}."]);
    let first = part(s, total, "{=} {item} {x}.")?;
    s.say(&["{part} of [them|the {item}] {x}.", "Of these {item}, {part} {x}."]);
    s.noise(&[
        "{d} of them were born in May.",
        "{A}'s [brother|sister] is {d} years old.",
        "It is {d} degrees outside.",
    ]);
    let rest = s.step(total, Subtract, first, "The other {=} {item} do not.")?;
    if s.dice().chance(40) {
        s.say(&["How many of the {item} do not {x}?", "The rest {y}. How many {item} {y}?"]);
        return Some(());
    }
    second_part(s, rest)
}

/// What is asked about the `rest` of the crowd.
fn second_part(s: &mut Story, rest: i64) -> Option<()> {
    if s.dice().chance(50) {
        let second = part(s, rest, "{=} {item} {y}.")?;
        s.say(&[
            "{part} of the rest {y}[, and the others {z}|].",
            "Of the [others|rest], {part} {y}.",
        ]);
        if s.steps() < 4 && s.dice().chance(60) {
            s.say(&["How many {item} neither {x} nor {y}?"]);
            s.step(rest, Subtract, second, "That leaves {=} {item}.")?;
        } else {
            s.say(&["How many {item} {y}?", "Find the number of {item} who {y}."]);
        }
    } else {
        let second = s.draw("k", 2, 60);
        s.say(&[
            "Of the [others|rest], {k} {y}. How many {item} neither {x} nor {y}?",
            "{k} of the rest {y}, and all others {z}. How many {item} {z}?",
        ]);
        s.step(rest, Subtract, second, "{=} {item} remain.")?;
    }
    Some(())
}

/// Draws a part of `whole` into the slot `part` and works it out.
fn part(s: &mut Story, whole: i64, line: &str) -> Option<i64> {
    if s.dice().chance(50) {
        let percent = s.draw_of("c", &[10, 20, 25, 50, 75]);
        s.text("part", "{c}%");
        return s.step(whole, Percent, percent, line);
    }
    let fractions = [
        ("half", 2),
        ("a third", 3),
        ("one third", 3),
        ("a quarter", 4),
        ("one fifth", 5),
        ("a tenth", 10),
    ];
    let (words, divisor) = s.dice().pick(&fractions);
    s.text("part", words);
    s.step(whole, Divide, divisor, line)
}

/// Rows of seats, some of them taken.
pub(super) fn seats(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("hall", "[theater|cinema|stadium block|classroom|church|airplane|concert hall|tent]");
    let (rows, each) = (s.draw("q", 3, 25), s.draw("m", 4, 30));
    s.say(&[
        "A {hall} has {q} rows of {m} seats[| each].",
        "There are {q} rows in a {hall}, [and each row has {m} seats|with {m} seats in every \
         row].",
    ]);
    let seats = s.step(rows, Multiply, each, "The {hall} has {=} seats.")?;
    let seats = if s.dice().chance(35) {
        let more = s.draw("n", 5, 60);
        s.say(&["{n} [folding chairs|extra seats] are added[| along the walls]."]);
        s.step(seats, Add, more, "With the extra ones, there are {=} seats.")?
    } else {
        seats
    };
    s.noise(&[
        "The doors open {d} minutes early.",
        "{A} has been there {d} times.",
        "The {hall} was built {d} years ago.",
    ]);
    match s.dice().below(3) {
        0 => {
            let empty = s.draw("k", 3, 90);
            s.say(&[
                "If {k} seats are [empty|free], how many people are sitting?",
                "{k} seats stay empty. How many seats are taken?",
            ]);
            s.step(seats, Subtract, empty, "{=} seats are taken.")?;
        }
        1 => {
            let taken = part(s, seats, "{=} seats are taken.")?;
            s.say(&[
                "{part} of the seats are taken. How many seats are free?",
                "On one evening, {part} of the seats are [sold|taken]. How many are still free?",
            ]);
            s.step(seats, Subtract, taken, "{=} seats are free.")?;
        }
        _ => {
            let price = s.draw("k", 2, 12);
            s.say(&[
                "Every seat is sold for ${k}. How much money is that?",
                "If all seats are sold at ${k} each, how much [money|] comes in?",
            ]);
            s.step(seats, Multiply, price, "That is {=$}.")?;
        }
    }
    Some(())
}

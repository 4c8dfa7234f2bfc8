//! Dozens, hours, weights, tanks, legs.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{BAKES, PRODUCE, SNACKS, nouns};

/// Things by the dozen.
pub(super) fn dozens(s: &mut Story) -> Option<()> {
    s.person_or_role("A");
    let items = s.dice().pick(&[PRODUCE, BAKES, nouns!["egg", "rose", "pencil", "golf ball"]]);
    s.noun("item", items);
    let (dozens, used) = (s.draw("q", 2, 12), s.draw("n", 2, 60));
    s.say(&[
        "{A} [buys|has|gets] {q} dozen {item}.",
        "There are {q} dozen {item} in {A}'s [kitchen|basket|shop].",
    ]);
    let mut count = s.step(dozens, Multiply, 12, "{q} dozen are {=} {item}.")?;
    s.noise(&[
        "{A} paid ${d} for the basket.",
        "{A} is {d} years old.",
        "{A} came home at {d} minutes past five.",
    ]);
    if s.dice().chance(70) {
        s.say(&[
            "{A.he} [uses|gives away|sells] {n} of them.",
            "{n} of the {item} are [sold|used|given away].",
        ]);
        count = s.step(count, Subtract, used, "{=} {item} are left.")?;
    } else {
        s.say(&["Then {A.he} gets {n} more.", "A neighbor brings {n} more {item}."]);
        count = s.step(count, Add, used, "Then there are {=} {item}.")?;
    }
    match s.dice().below(3) {
        0 => {
            let people = s.draw("k", 2, 9);
            s.say(&[
                "{k} people share them equally. How many {item} does each of them get?",
                "If {k} friends divide them equally, how many does each get?",
            ]);
            s.step(count, Divide, people, "Each gets {=} {item}.")?;
        }
        1 => {
            let price = s.draw("k", 2, 6);
            s.say(&["All of the {item} {A.he} has now are sold for ${k} each. How much is that?"]);
            s.step(count, Multiply, price, "That is {=$}.")?;
        }
        _ => s.say(&[
            "How many {item} does {A} have [now|in the end]?",
            "How many {item} are there now?",
        ]),
    }
    Some(())
}

/// Hours and minutes.
pub(super) fn clock(s: &mut Story) -> Option<()> {
    s.person("A");
    let hours = s.draw("q", 2, 8);
    let total = s.step(hours, Multiply, 60, "{A} has {=} minutes.")?;
    s.say(&[
        "{A} has {q} hours [to prepare a party|for the housework|before the train leaves].",
        "{A} plans {q} hours of work [on Saturday|for today].",
    ]);
    let scenes = [
        ("cooking", "cleaning"),
        ("reading", "drawing"),
        ("math", "history"),
        ("shopping", "packing"),
        ("sewing", "ironing"),
        ("the garden", "the garage"),
    ];
    let (x, y) = s.dice().pick(&scenes);
    s.text("x", x);
    s.text("y", y);
    let first = s.dice().between(2, 18) * 5;
    s.set("a", first);
    s.noise(&["{A} has {d} pens.", "{A} is {d} years old.", "The radio plays {d} songs."]);
    let mut left = s.step(total, Subtract, first, "After {x}, {=} minutes are left.")?;
    if s.dice().chance(65) {
        let second = s.dice().between(2, 18) * 5;
        s.set("b", second);
        s.say(&[
            "{A.he} spends {a} minutes on {x} and {b} minutes on {y}.",
            "{x} takes {A.him} {a} minutes, and {y} takes {b} minutes.",
        ]);
        left = s.step(left, Subtract, second, "After {y}, {=} minutes are left.")?;
    } else {
        s.say(&["{A.he} spends {a} minutes on {x}.", "{x} takes {A.him} {a} minutes."]);
    }
    if s.dice().chance(40) {
        let tasks = s.draw("k", 2, 9);
        s.say(&["The remaining time is divided equally among {k} other tasks. How many minutes \
         does each task get?"]);
        s.step(left, Divide, tasks, "Each task gets {=} minutes.")?;
    } else {
        s.say(&[
            "How many minutes are left?",
            "How many minutes does {A.he} have left[| for other things]?",
        ]);
    }
    Some(())
}

/// A container and its contents on a scale.
pub(super) fn weights(s: &mut Story) -> Option<()> {
    s.person("A");
    let items =
        s.dice().pick(&[PRODUCE, SNACKS, nouns!["book", "brick", "bottle", "can", "stone"]]);
    s.noun("item", items);
    s.text("unit", "[ounces|grams]");
    s.text("box", "[box|crate|suitcase|basket|bag]");
    let (count, each, empty) = (s.draw("q", 3, 40), s.draw("m", 2, 9), s.draw("k", 3, 40));
    s.say(&[
        "{A} puts {q} {item} of {m} {unit} each into a {box} that weighs {k} {unit} when it is \
         empty.",
        "An empty {box} weighs {k} {unit}. {A} fills it with {q} {item}, and each of them weighs \
         {m} {unit}.",
    ]);
    s.noise(&["The {box} is {d} centimeters wide.", "{A} bought it {d} weeks ago."]);
    let inside = s.step(count, Multiply, each, "The {item} weigh {=} {unit}.")?;
    let full = s.step(inside, Add, empty, "With the {box}, it is {=} {unit}.")?;
    match s.dice().below(3) {
        0 => {
            let boxes = s.draw("r", 2, 9);
            s.say(&[
                "How much do {r} such loads weigh, in {unit}?",
                "How many {unit} are {r} loads like this one?",
            ]);
            s.step(full, Multiply, boxes, "{r} of them weigh {=} {unit}.")?;
        }
        1 => {
            let limit = full + s.dice().between(2, 90);
            s.set("r", limit);
            s.say(&[
                "It may weigh {r} {unit} at most. How many {unit} can still be added?",
                "How many {unit} are missing to the limit of {r} {unit}?",
            ]);
            s.step(limit, Subtract, full, "{=} {unit} can be added.")?;
        }
        _ => s.say(&[
            "How much does the full {box} weigh, in {unit}?",
            "What is the weight of everything in {unit}?",
        ]),
    }
    Some(())
}

/// A tank that is filled and drained.
pub(super) fn tank(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("tank", "[tank|pool|barrel|pond|bathtub]");
    s.text("unit", "[liters|gallons]");
    let out = s.draw("u", 2, 20);
    let net = s.dice().between(2, 30);
    let (inflow, minutes) = (s.set("p", out + net), s.draw("q", 2, 12));
    s.say(&[
        "Each minute, {p} {unit} of water flow into a {tank} and {u} {unit} leak out.",
        "A hose brings {p} {unit} a minute into {A}'s {tank}, but {u} {unit} a minute run out \
         through a hole.",
    ]);
    s.noise(&["The {tank} is {d} years old.", "The hose is {d} feet long."]);
    let rate = s.step(inflow, Subtract, out, "The {tank} gains {=} {unit} a minute.")?;
    if s.dice().chance(40) {
        let goal = Multiply.apply(rate, minutes)?;
        s.set("g", goal);
        s.say(&[
            "After how many minutes does the empty {tank} hold {g} {unit}?",
            "How many minutes does it take to get {g} {unit} into the empty {tank}?",
        ]);
        s.step(goal, Divide, rate, "It takes {=} minutes.")?;
        return Some(());
    }
    let gained = s.step(rate, Multiply, minutes, "In {q} minutes, it gains {=} {unit}.")?;
    if s.dice().chance(60) {
        let start = s.draw("k", 10, 400);
        s.say(&[
            "At first, it holds {k} {unit}. How many {unit} are in it after {q} minutes?",
            "How much water, in {unit}, is in it after {q} minutes if there were {k} {unit} \
             before?",
        ]);
        s.step(start, Add, gained, "Then it holds {=} {unit}.")?;
    } else {
        s.say(&["How many {unit} does it gain in {q} minutes?"]);
    }
    Some(())
}

/// Legs and wheels.
pub(super) fn legs_and_wheels(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("cows", 4, "hens", 2, "legs"),
        ("spiders", 8, "beetles", 6, "legs"),
        ("horses", 4, "ducks", 2, "legs"),
        ("cars", 4, "bicycles", 2, "wheels"),
        ("tricycles", 3, "wagons", 4, "wheels"),
        ("chairs", 4, "stools", 3, "legs"),
        ("trucks", 6, "motorbikes", 2, "wheels"),
        ("squares", 4, "triangles", 3, "sides"),
    ];
    let (x, p, y, u, part) = s.dice().pick(&scenes);
    s.text("x", x);
    s.text("y", y);
    s.text("part", part);
    s.set("p", p);
    s.set("u", u);
    let (q, r) = (s.draw("q", 2, 40), s.draw("r", 2, 40));
    s.say(&[
        "{A} [sees|counts] {q} {x} and {r} {y}.",
        "There are {r} {y} and {q} {x}[| in a picture that {A} draws| near {A}'s house].",
    ]);
    s.noise(&["It is {d} degrees warm.", "{A} is {d} years old."]);
    let told = s.dice().chance(50);
    if told {
        s.say(&["Each of the {x} has {p} {part}, and each of the {y} has {u}."]);
    }
    let one = s.step(q, Multiply, p, "The {x} have {=} {part}.")?;
    let two = s.step(r, Multiply, u, "The {y} have {=} {part}.")?;
    if one > two && s.dice().chance(30) {
        s.say(&["How many more {part} do the {x} have than the {y}?"]);
        s.step(one, Subtract, two, "The {x} have {=} more {part}.")?;
    } else {
        s.say(&[
            "How many {part} do they have [altogether|in total]?",
            "How many {part} is that in all?",
        ]);
        s.step(one, Add, two, "Together, they have {=} {part}.")?;
    }
    Some(())
}

/// A class in which some do one thing and the others another.
pub(super) fn class(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("girls", "boys", "students"),
        ("adults", "children", "people"),
        ("beginners", "experts", "players"),
        ("red tulips", "yellow tulips", "tulips"),
        ("cats", "dogs", "animals"),
        ("full seats", "empty seats", "seats"),
    ];
    let (x, y, all) = s.dice().pick(&scenes);
    s.text("x", x);
    s.text("y", y);
    s.text("all", all);
    let some = s.draw("a", 4, 60);
    let others = s.dice().between(4, 60);
    let total = s.set("g", some + others);
    s.say(&[
        "{A} counts {g} {all}. {a} of them are {x} and the [rest|others] are {y}.",
        "Of {g} {all}, {a} are {x}. All the others are {y}.",
        "There are {g} {all}, and {a} of them are {x}. The remaining ones are {y}.",
    ]);
    let others = s.step(total, Subtract, some, "There are {=} {y}.")?;
    s.noise(&["{A} needs {d} seconds to count them.", "{A} is {d} years old."]);
    match s.dice().below(3) {
        0 => {
            let k = s.draw("k", 2, 6);
            s.say(&[
                "Later, there are {k} times as many {y}. How many {y} are there then?",
                "The next year, the number of {y} is {k} times as large. How many {y} are there?",
            ]);
            s.step(others, Multiply, k, "Then there are {=} {y}.")?;
        }
        1 => {
            let n = s.draw("k", 2, 40);
            s.say(&[
                "Then {k} more {y} [come|are added]. How many {y} are there now?",
                "How many {y} are there after {k} more are added?",
            ]);
            s.step(others, Add, n, "Now there are {=} {y}.")?;
        }
        _ if others > some => {
            s.say(&[
                "How many more {y} than {x} are there?",
                "By how much does the number of {y} exceed that of {x}?",
            ]);
            s.step(others, Subtract, some, "There are {=} more {y}.")?;
        }
        _ => {
            s.say(&[
                "How many more {x} than {y} are there?",
                "How many {x} more than {y} are there?",
            ]);
            s.step(some, Subtract, others, "There are {=} more {x}.")?;
        }
    }
    Some(())
}

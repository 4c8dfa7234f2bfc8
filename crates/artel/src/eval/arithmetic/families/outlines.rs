//! Rectangles and buildings.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::nouns;

const PLOTS: &str = "[garden|field|yard|playground|pool|meadow|court|paddock]";

/// The outline of a rectangle and what goes along it.
pub(super) fn fence(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("plot", PLOTS);
    let (one, many) = s.dice().pick(&[("meter", "meters"), ("foot", "feet"), ("yard", "yards")]);
    s.text("one", one);
    s.text("unit", many);
    let (length, width) = (s.draw("l", 6, 60), s.draw("w", 3, 40));
    if width >= length {
        return None;
    }
    s.say(&[
        "{A} has a rectangular {plot} that is {l} {unit} long and {w} {unit} wide.",
        "A rectangular {plot} [measures|is] {l} {unit} by {w} {unit}.",
        "The length of {A}'s [rectangular|] {plot} is {l} {unit}, and its width is {w} {unit}.",
    ]);
    s.noise(&[
        "There are {d} trees next to it.",
        "{A} bought it {d} years ago.",
        "The grass is {d} millimeters high.",
    ]);
    let sides =
        s.step(length, Add, width, "[Two sides|One long and one short side] measure {=} {unit}.")?;
    let around = s.step(sides, Multiply, 2, "The way around is {=} {unit}.")?;
    match s.dice().below(4) {
        0 => {
            let gate = s.draw("k", 2, 9);
            s.say(&[
                "A fence goes all around, except for a gate of {k} {unit}. How many {unit} of \
             fence are needed?",
            ]);
            s.step(around, Subtract, gate, "The fence is {=} {unit} long.")?;
        }
        1 => {
            let price = s.draw("k", 2, 12);
            s.say(&["A fence around it costs ${k} [per|a] {one}. How much does the fence cost?"]);
            s.step(around, Multiply, price, "The fence costs {=$}.")?;
        }
        2 => {
            let laps = s.draw("k", 2, 12);
            s.say(&[
                "{A} [runs|walks] around it {k} times. How many {unit} is that?",
                "How far does {A} go in walking {k} times around it, in {unit}?",
            ]);
            s.step(around, Multiply, laps, "{k} rounds are {=} {unit}.")?;
        }
        _ => s.say(&[
            "How many {unit} of [fence|rope|hedge] are needed to go around it?",
            "What is its perimeter in {unit}?",
        ]),
    }
    Some(())
}

/// An area and what covers it.
pub(super) fn floor(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("room", "[room|kitchen|hall|terrace|wall|roof|garage floor|classroom floor]");
    let (length, width) = (s.draw("l", 4, 40), s.draw("w", 3, 12));
    s.say(&[
        "A {room} is {l} feet long and {w} feet wide.",
        "{A} [tiles|covers|paints] a {room} of {l} feet by {w} feet.",
    ]);
    s.noise(&["The house is {d} years old.", "{A} has {d} [helpers on the phone|old brushes]."]);
    let area = s.step(length, Multiply, width, "The area is {=} square feet.")?;
    let area = if s.dice().chance(45) {
        let cut = s.draw("n", 4, 40);
        s.say(&[
            "{n} square feet of it are [left out|already done|not needed].",
            "An area of {n} square feet stays [free|as it is].",
        ]);
        s.step(area, Subtract, cut, "{=} square feet must be covered.")?
    } else {
        area
    };
    let per = s.draw_of("k", &[2, 3, 4, 5, 6, 8, 10, 12]);
    let price = s.draw("p", 2, 30);
    if s.dice().chance(50) {
        s.say(&["One [box of tiles|can of paint|roll] covers {k} square feet."]);
        let packs = s.step(area, Divide, per, "That needs {=} of them.")?;
        if s.steps() < 4 && s.dice().chance(60) {
            s.say(&[
                "Each one costs ${p}. How much does {A} pay?",
                "At ${p} each, how much does the material cost?",
            ]);
            s.step(packs, Multiply, price, "The material costs {=$}.")?;
        } else {
            s.say(&["How many does {A} need?", "How many of them are needed?"]);
        }
    } else {
        s.say(&[
            "The work costs ${k} per square foot. How much does it cost?",
            "At ${k} a square foot, how much must be paid?",
        ]);
        s.step(area, Multiply, per, "The cost is {=$}.")?;
    }
    Some(())
}

/// Floors, apartments and what is in them.
pub(super) fn building(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("building", "floor", "apartment"),
        ("hotel", "floor", "room"),
        ("school", "hallway", "classroom"),
        ("ship", "deck", "cabin"),
        ("office tower", "level", "office"),
        ("hospital", "wing", "room"),
    ];
    let (house, level, unit) = s.dice().pick(&scenes);
    s.text("house", house);
    s.text("level", level);
    s.text("unit", unit);
    s.noun("item", nouns!["window", "lamp", "chair", "door", "plug", "mirror", "radiator"]);
    let (levels, units, each) = (s.draw("q", 2, 20), s.draw("r", 2, 12), s.draw("m", 2, 9));
    s.say(&[
        "A {house} has {q} {level}s with {r} {unit}s on each {level}.",
        "There are {r} {unit}s on every {level} of a {house}, and there are {q} {level}s.",
    ]);
    s.noise(&[
        "The {house} is {d} meters from the river.",
        "{A} works there {d} hours a week.",
        "The elevator holds {d} people.",
    ]);
    s.say(&["Each {unit} has {m} {item}.", "There are {m} {item} in [each|every] {unit}."]);
    let count = s.step(levels, Multiply, units, "The {house} has {=} {unit}s.")?;
    let things = s.step(count, Multiply, each, "They have {=} {item}.")?;
    match s.dice().below(3) {
        0 => {
            let done = s.draw("k", 3, 90);
            s.say(&[
                "{A} has to [clean|check|repair] all of the {item} and has finished {k} of them. \
                 How many {item} are left?",
                "If {k} {item} are removed, how many {item} remain?",
            ]);
            s.step(things, Subtract, done, "{=} {item} remain.")?;
        }
        1 => {
            let rate = s.draw("k", 2, 12);
            s.say(&[
                "{A} [cleans|checks] {k} {item} an hour. How many hours does {A.he} need for \
             all of them?",
            ]);
            s.step(things, Divide, rate, "{A} needs {=} hours.")?;
        }
        _ => s.say(&[
            "How many {item} does the {house} have?",
            "How many {item} are there in total?",
        ]),
    }
    Some(())
}

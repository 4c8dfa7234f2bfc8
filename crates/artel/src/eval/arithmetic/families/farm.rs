//! Feeding animals, and what a farm yields.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{ANIMALS, PRODUCE, nouns};

/// Animals and their food.
pub(super) fn feed(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun("item", ANIMALS);
    s.noun("other", ANIMALS);
    s.text("unit", "[kilogram|pound|bucket|cup]");
    let (q, m) = (s.draw("q", 2, 25), s.draw("m", 2, 9));
    let mixed = s.dice().chance(50);
    let mut daily = s.step(q, Multiply, m, "The {item} eat {=} {unit}s a day.")?;
    if mixed {
        let (r, u) = (s.draw("r", 2, 12), s.draw("u", 2, 9));
        s.say(&[
            "{A} has {q} {item} and {r} {other}.",
            "On {A}'s farm there are {r} {other} and {q} {item}.",
        ]);
        s.say(&[
            "Each {item.1} eats {m} {unit}s of [feed|food] a day and each {other.1} eats {u} \
             {unit}s.",
            "A {item.1} needs {m} {unit}s of feed a day, and a {other.1} needs {u}[| {unit}s].",
        ]);
        let second = s.step(r, Multiply, u, "The {other} eat {=} {unit}s a day.")?;
        daily = s.step(daily, Add, second, "[Together|In total], they eat {=} {unit}s a day.")?;
    } else {
        s.say(&[
            "{A} has {q} {item}[. Each of them eats| that each eat] {m} {unit}s of [feed|food] a \
             day.",
            "Every day, {A} feeds {m} {unit}s to each of {A.his} {q} {item}.",
        ]);
    }
    s.noise(&[
        "The barn is {d} years old.",
        "The fence is {d} meters long.",
        "{A} has {d} [apple trees|hats].",
    ]);
    if s.dice().chance(45) {
        let days = s.draw("k", 2, 12);
        s.say(&[
            "How many {unit}s of feed are needed for {k} days?",
            "How much feed, in {unit}s, does {A} need for {k} days?",
        ]);
        s.step(daily, Multiply, days, "For {k} days, that is {=} {unit}s.")?;
    } else if !mixed || s.dice().chance(50) {
        let days = s.dice().between(2, 20);
        let stock = s.set("k", Multiply.apply(daily, days)?);
        s.say(&[
            "{A} has {k} {unit}s of feed in the barn. For how many days is that enough?",
            "How many days will {k} {unit}s of feed last?",
        ]);
        s.step(stock, Divide, daily, "The feed lasts {=} days.")?;
    } else {
        s.say(&[
            "How many {unit}s of feed do they eat in a day?",
            "How much feed is needed each day, in {unit}s?",
        ]);
    }
    Some(())
}

/// A yield per animal, tree or row; kept, packed, sold.
pub(super) fn harvest(s: &mut Story) -> Option<()> {
    s.person_or_role("A");
    let eggs = s.dice().chance(35);
    if eggs {
        s.noun("item", nouns!["egg"]);
        s.text("source", "[hens|ducks|geese]");
    } else {
        s.noun("item", PRODUCE);
        s.text("source", "[rows|beds|fields|patches]");
    }
    let (q, m) = (s.draw("q", 3, 25), s.draw("m", 2, 24));
    if eggs {
        s.say(&[
            "{A} has {q} {source}, and each of them lays {m} eggs a month.",
            "On a farm, {q} {source} lay {m} eggs each.",
        ]);
    } else {
        s.say(&[
            "{A} harvests {q} {source} of {item}, and each gives {m} {item}.",
            "{A} [gets|picks] {m} {item} from each of {A.his} {q} {source}.",
        ]);
    }
    s.noise(&[
        "The farm has {d} [gates|sheds].",
        "The tractor is {d} years old.",
        "It rained for {d} days.",
    ]);
    let mut total = s.step(q, Multiply, m, "{A} gets {=} {item}.")?;
    if s.dice().chance(60) {
        let kept = s.draw("k", 2, 40);
        s.say(&[
            "{A.his} family [eats|keeps] {k} of them.",
            "{k} {item} [are bad|get broken|go to the neighbors].",
        ]);
        total = s.step(total, Subtract, kept, "{=} {item} are left.")?;
    }
    if s.dice().chance(50) {
        let dozen = s.dice().pick(&[4, 5, 6, 8, 10, 12, 12]);
        s.set("c", dozen);
        s.say(&[
            "The [rest|others] are packed into boxes of {c}.",
            "{A.he} puts {c} {item} into each box.",
        ]);
        let boxes = s.step(total, Divide, dozen, "That fills {=} boxes.")?;
        if s.steps() < 4 && s.dice().chance(70) {
            let price = s.draw("p", 2, 12);
            s.say(&[
                "A box is sold for ${p}. How much does {A} earn?",
                "If a box costs ${p}, how much money does {A.he} get for all boxes?",
            ]);
            s.step(boxes, Multiply, price, "{A} earns {=$}.")?;
        } else {
            s.say(&["How many boxes does {A.he} fill?", "How many boxes are there?"]);
        }
    } else {
        let price = s.draw("p", 2, 9);
        s.say(&[
            "{A.he} sells the {item} that [are left|{A.he} has] for ${p} each. How much [money|] \
             does {A.he} [make|get]?",
            "At ${p} each, how much are the [remaining|] {item} worth?",
        ]);
        s.step(total, Multiply, price, "They are worth {=$}.")?;
    }
    Some(())
}

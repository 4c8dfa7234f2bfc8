//! Budgets, resale, allowances, subscriptions, two shops.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{GOODS, nouns};

/// Money that is left after one thing buys others.
pub(super) fn budget(s: &mut Story) -> Option<()> {
    s.person_or_role("A");
    s.noun("first", GOODS);
    s.noun("item", GOODS);
    let price = s.draw("p", 2, 12);
    let count = s.dice().between(2, 12);
    let spent = s.draw("u", 5, 60);
    let total = s.set("g", spent + Multiply.apply(price, count)?);
    s.say(&[
        "{A} has ${g}[| to spend].",
        "{A} got ${g} for {A.his} birthday.",
        "{A} takes ${g} to the [store|market].",
    ]);
    s.say(&[
        "{A.he} [buys|pays for] a {first.1} that costs ${u}.",
        "First, {A.he} spends ${u} on a {first.1}.",
    ]);
    s.noise(&[
        "The shop is {d} blocks away.",
        "There are {d} {item} in the window.",
        "{A} is {d} years old.",
    ]);
    let rest = s.step(total, Subtract, spent, "{A} has {=$} left.")?;
    s.say(&[
        "With the [rest|remaining money], {A.he} buys {item} at ${p} each. How many {item} does \
         {A.he} get?",
        "How many {item} at ${p} each can {A.he} buy with the rest?",
    ]);
    s.step(rest, Divide, price, "{A.he} gets {=} {item}.")?;
    Some(())
}

/// Bought at one price, sold at another.
pub(super) fn resale(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun("item", GOODS);
    let buy = s.draw("p", 2, 30);
    let margin = s.dice().between(2, 20);
    let (sell, count) = (s.set("u", buy + margin), s.draw("q", 3, 60));
    s.say(&[
        "{A} buys {q} {item} for ${p} each and sells them for ${u} each.",
        "{A} sells {item} for ${u} each that cost {A.him} ${p} each. {A.he} sells {q} of them.",
        "A {item.1} costs {A} ${p} and is sold for ${u}. [Last week|In May], {A} sold {q} \
         {item}.",
    ]);
    s.noise(&[
        "{A.his} shop opens at {d} minutes past eight.",
        "{A} has {d} customers a day.",
        "The shop has {d} shelves.",
    ]);
    let each = s.step(sell, Subtract, buy, "{A} makes {=$} on each {item.1}.")?;
    let profit = s.step(each, Multiply, count, "On {q} {item}, that is {=$}.")?;
    if s.dice().chance(40) {
        let cost = s.draw("k", 5, 90);
        s.say(&[
            "The [stall|shop] costs ${k} in rent. How much profit is left?",
            "If {A.he} pays ${k} for advertising, how much profit does {A.he} keep?",
        ]);
        s.step(profit, Subtract, cost, "After that, {=$} is left.")?;
    } else {
        s.say(&[
            "How much profit does {A} make?",
            "What is {A.his} [profit|total profit]?",
            "How much does {A.he} gain?",
        ]);
    }
    Some(())
}

/// Money in and money out every week.
pub(super) fn allowance(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("unit", "[week|month]");
    let spends = s.draw("u", 3, 60);
    let saved = s.dice().between(2, 40);
    s.set("p", spends + saved);
    let weeks = s.draw("q", 2, 12);
    s.say(&[
        "{A} [gets|earns] ${p} [a|every] {unit} and spends ${u} of it.",
        "Every {unit}, {A} receives ${p} and spends ${u}[| on food| on bus tickets].",
        "{A} makes ${p} per {unit}, but {A.his} costs are ${u} per {unit}.",
    ]);
    s.noise(&[
        "{A} has {d} friends.",
        "{A.his} school has {d} classrooms.",
        "{A} is {d} years old.",
    ]);
    let each = s.step(spends + saved, Subtract, spends, "{A} saves {=$} a {unit}.")?;
    if s.dice().chance(35) {
        let goal = Multiply.apply(each, weeks)?;
        s.set("g", goal);
        s.say(&[
            "How many {unit}s does {A.he} need to save ${g}?",
            "After how many {unit}s has {A.he} saved ${g}?",
        ]);
        s.step(goal, Divide, each, "{A.he} needs {=} {unit}s.")?;
        return Some(());
    }
    let total = s.step(each, Multiply, weeks, "In {q} {unit}s, {A.he} saves {=$}.")?;
    if s.dice().chance(50) {
        let start = s.draw("k", 5, 200);
        s.say(&[
            "{A.he} had ${k} at the beginning. How much does {A.he} have after {q} {unit}s?",
            "If {A.he} starts with ${k}, how much money does {A.he} have in {q} {unit}s?",
        ]);
        s.step(start, Add, total, "With the ${k}, {A.he} has {=$}.")?;
    } else {
        s.say(&[
            "How much does {A.he} save in {q} {unit}s?",
            "How much money does {A.he} have saved after {q} {unit}s?",
        ]);
    }
    Some(())
}

/// A regular fee and a fee to be paid once.
pub(super) fn subscription(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("what", "[gym|phone plan|streaming service|dance school|swimming club|music school]");
    let (fee, once, months) = (s.draw("p", 5, 60), s.draw("u", 10, 150), s.draw("q", 3, 12));
    s.say(&[
        "A {what} costs ${p} a month, plus ${u} once at the start.",
        "{A} signs up for a {what}: ${u} to join and ${p} every month.",
        "The {what} [charges|asks for] ${p} a month and a single fee of ${u}.",
    ]);
    s.noise(&[
        "{A} has used it for {d} days.",
        "There are {d} other members.",
        "It is {d} minutes away.",
    ]);
    let monthly = s.step(fee, Multiply, months, "{q} months cost {=$}.")?;
    let total = s.step(monthly, Add, once, "With the single fee, it is {=$}.")?;
    match s.dice().below(3) {
        0 => {
            let off = s.draw("k", 5, 60);
            s.say(&["{A} gets ${k} back as a student. How much does {A} pay for {q} months?"]);
            s.step(total, Subtract, off, "{A} pays {=$}.")?;
        }
        1 => {
            let people = s.draw("k", 2, 4);
            s.say(&[
                "How much do {k} people pay for {q} months?",
                "{A} and {A.his} family, {k} people in all, join for {q} months. How much do they \
                 pay?",
            ]);
            s.step(total, Multiply, people, "{k} people pay {=$}.")?;
        }
        _ => s.say(&["How much does {A} pay for {q} months?", "What do {q} months cost in total?"]),
    }
    Some(())
}

/// The same thing in two shops.
pub(super) fn two_shops(s: &mut Story) -> Option<()> {
    s.person("A");
    let items = s.dice().pick(&[GOODS, GOODS, nouns!["ticket", "concert ticket", "ferry ticket"]]);
    s.noun("item", items);
    let (first, second) = s.dice().pick(&[
        ("the corner shop", "the supermarket"),
        ("the first store", "the second store"),
        ("the market", "the mall"),
        ("the old town", "the new mall"),
    ]);
    s.text("x", first);
    s.text("y", second);
    let low = s.draw("u", 2, 40);
    let difference = s.dice().between(2, 15);
    let (high, count) = (s.set("p", low + difference), s.draw("q", 2, 12));
    s.say(&[
        "In {x}, a {item.1} costs ${p}. In {y}, it costs ${u}.",
        "A {item.1} is ${p} in {x} but only ${u} in {y}.",
        "{A} compares prices: one {item.1} costs ${u} in {y} and ${p} in {x}.",
    ]);
    s.noise(&["{A} walks {d} minutes to {x}.", "{A} has been there {d} times."]);
    if s.dice().chance(50) {
        let each = s.step(high, Subtract, low, "Each {item.1} is {=$} cheaper in {y}.")?;
        s.say(&[
            "How much does {A} save by buying {q} {item} in {y}?",
            "{A} buys {q} {item} in {y}. How much money does {A.he} save?",
        ]);
        s.step(each, Multiply, count, "On {q} {item}, {A} saves {=$}.")?;
        return Some(());
    }
    let more = s.draw("r", 2, 9);
    s.say(&[
        "{A} buys {q} {item} in {x} and {r} in {y}.",
        "{A.he} gets {r} of them in {y} and {q} in {x}.",
    ]);
    let one = s.step(count, Multiply, high, "In {x}, {A} pays {=$}.")?;
    let two = s.step(more, Multiply, low, "In {y}, {A} pays {=$}.")?;
    s.say(&["How much does {A} pay [altogether|in total]?", "What do all the {item} cost?"]);
    s.step(one, Add, two, "In total, {A} pays {=$}.")?;
    Some(())
}

//! Pooling and dividing.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{BAKES, CONTAINERS, KEEPSAKES, PRODUCE, SNACKS};

/// People put things together and divide them.
pub(super) fn pool(s: &mut Story) -> Option<()> {
    for key in ["A", "B", "C"] {
        s.person(key);
    }
    let items = s.dice().pick(&[KEEPSAKES, PRODUCE, BAKES]);
    s.noun("item", items);
    let (a, b) = (s.draw("a", 5, 90), s.draw("b", 5, 90));
    let three = s.dice().chance(45);
    let mut sum = s.step(a, Add, b, "{A} and {B} [bring|have] {=} {item}.")?;
    if three {
        let c = s.draw("c", 5, 90);
        s.say(&[
            "{A} [brings|has] {a} {item}, {B} [brings|has] {b}[| {item}], and {C} [brings|has] \
             {c}.",
            "{A} puts {a} {item} on the table, {B} adds {b}, and {C} adds {c}.",
        ]);
        sum = s.step(sum, Add, c, "With {C}, that is {=} {item}.")?;
    } else {
        s.say(&[
            "{A} [brings|has] {a} {item} and {B} [brings|has] {b}[| {item}].",
            "{A} puts {a} {item} into a bowl, and {B} adds {b} [{item}|more].",
        ]);
    }
    s.noise(&[
        "They have known each other for {d} years.",
        "{B} lives {d} minutes away.",
        "{A} is {d} years old.",
    ]);
    if s.dice().chance(45) {
        let gone = s.draw("e", 3, 50);
        s.say(&[
            "They [give away|lose|keep aside] {e} of them.",
            "{e} {item} are [bad|broken|missing].",
        ]);
        sum = s.step(sum, Subtract, gone, "{=} {item} are left.")?;
    }
    let parts = s.draw("k", 2, 10);
    s.say(&[
        "[They share the {item}|The {item} are shared] equally among {k} [children|people]. How \
         many does each get?",
        "They put the {item} into {k} [bags|boxes] with the same number in each. How many {item} \
         are in one?",
        "If the {item} are divided into {k} equal parts, how many are in each part?",
    ]);
    let share = s.step(sum, Divide, parts, "Each part has {=} {item}.")?;
    debug_assert!(share >= 2);
    Some(())
}

/// Packs that are opened, eaten from and shared.
pub(super) fn packs(s: &mut Story) -> Option<()> {
    s.person("A");
    let items = s.dice().pick(&[SNACKS, KEEPSAKES, BAKES]);
    s.noun("item", items);
    s.noun("pack", CONTAINERS);
    let (q, m, each) = (s.draw("q", 2, 12), s.draw("m", 4, 24), s.draw("r", 2, 9));
    let divides_first = s.dice().chance(45);
    s.say(&[
        "{A} has {q} {pack} of {item} with {m} {item} in each {pack.1}.",
        "Each of {A}'s {q} {pack} [holds|contains] {m} {item}.",
        "{A} buys {q} {pack}. There are {m} {item} in each [of them|{pack.1}].",
    ]);
    let total = s.step(q, Multiply, m, "{A} has {=} {item}.")?;
    s.noise(&[
        "A {pack.1} weighs {d} ounces.",
        "{A} carried them for {d} minutes.",
        "The shop had {d} other {pack}.",
    ]);
    if divides_first {
        let share = s.step(total, Divide, each, "Each [child|one] gets {=} {item}.")?;
        s.say(&[
            "{A.he} divides [them|the {item}] equally among {r} children.",
            "{r} children share all {item} equally.",
        ]);
        let eaten = s.draw("k", 2, 12);
        if s.dice().chance(50) {
            s.say(&[
                "Each child [eats|uses up|loses] {k} {item}. How many {item} does each child \
             have left?",
            ]);
            s.step(share, Subtract, eaten, "Each child has {=} {item} left.")?;
        } else {
            s.say(&["One of them, who had {k} {item} before, counts again. How many {item} does \
             that child have now?"]);
            s.step(share, Add, eaten, "That child has {=} {item}.")?;
        }
    } else {
        let people = s.draw("k", 2, 9);
        s.say(&[
            "{k} [children|friends|neighbors] get {r} {item} each.",
            "{A.he} gives {r} {item} to each of {A.his} {k} [friends|cousins|students].",
        ]);
        let given = s.step(people, Multiply, each, "{A} gives away {=} {item}.")?;
        s.say(&[
            "How many {item} are left?",
            "How many {item} does {A.he} keep?",
            "How many {item} remain for {A}?",
        ]);
        s.step(total, Subtract, given, "{A} keeps {=} {item}.")?;
    }
    Some(())
}

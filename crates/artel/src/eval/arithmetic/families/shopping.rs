//! Buying things.

use super::super::story::Operation::{Add, Divide, Multiply, Percent, Subtract};
use super::super::story::Story;
use super::super::words::{GOODS, Noun, PRODUCE, SNACKS};

const SHOP_NOISE: &[&str] = &[
    "The [shop|store] is {d} minutes away[| on foot].",
    "A [hat|magazine|chair] costs ${d}, but {A} does not buy one.",
    "{A} waits in line for {d} minutes.",
    "{A} is {d} years old.",
    "There are {d} people in the [shop|store].",
];

fn goods(s: &mut Story) -> &'static [Noun] {
    s.dice().pick(&[GOODS, GOODS, SNACKS, PRODUCE])
}

/// Two kinds of things; then the total, the change, or the share of each person.
pub(super) fn basket(s: &mut Story) -> Option<()> {
    s.person("A");
    let nouns = goods(s);
    s.noun("item", nouns);
    s.noun("other", nouns);
    let price_max = if std::ptr::eq(nouns, GOODS) { 40 } else { 9 };
    let (q, p) = (s.draw("q", 2, 12), s.draw("p", 1, price_max));
    let single = s.dice().chance(35);
    let (r, u) = (if single { 1 } else { s.draw("r", 2, 9) }, s.draw("u", 1, price_max));
    if single {
        s.say(&[
            "{A} [buys|bought] {q} {item} for ${p} each and a {other.1} for ${u}.",
            "{A} needs {q} {item} and one {other.1}. The {item} cost ${p} each and the {other.1} \
             costs ${u}.",
            "At the store, a {item.1} costs ${p}. {A} gets {q} of them, and also a {other.1} for \
             ${u}.",
        ]);
    } else {
        s.say(&[
            "{A} [buys|bought] {q} {item} at ${p} each and {r} {other} at ${u} each.",
            "A {item.1} costs ${p} and a {other.1} costs ${u}. {A} buys {q} {item} and {r} \
             {other}.",
            "{A} went shopping and got {q} {item} for ${p} each[.| there.] {A.he} also got {r} \
             {other} for ${u} each.",
            "Each {item.1} is ${p} and each {other.1} is ${u}. {A} [orders|pays for] {q} {item} \
             and {r} {other}.",
        ]);
    }
    s.noise(SHOP_NOISE);
    let first = s.step(q, Multiply, p, "The {item} cost {=$}.")?;
    let second = if single { u } else { s.step(r, Multiply, u, "The {other} cost {=$}.")? };
    let total = s.step(first, Add, second, "[Together|In total], that is {=$}.")?;
    pay(s, total)
}

/// What is asked about a bill of `total` dollars.
fn pay(s: &mut Story, total: i64) -> Option<()> {
    match s.dice().below(5) {
        0 | 1 => {
            let bill = s.dice().pick(&[20, 50, 100, 100, 200, 500]);
            s.set("bill", bill);
            s.say(&[
                "{A.he} pays with [${bill}|a total of ${bill}]. How much change does {A.he} get?",
                "If {A.he} had ${bill}, how much [money|] does {A.he} have left?",
                "How much is left of the ${bill} {A.he} had with {A.him}?",
            ]);
            s.step(bill, Subtract, total, "{A.he} [has|gets] {=$} [left|back].")?;
        }
        2 => {
            let friends = s.draw("k", 2, 8);
            s.say(&[
                "{k} people [split|share] the bill equally. How much does each [person|of them] \
                 pay?",
                "If {k} friends pay for this in equal shares, how much is one share in dollars?",
            ]);
            s.step(total, Divide, friends, "Each pays {=$}.")?;
        }
        3 => {
            let coupon = s.draw("k", 2, 25);
            s.say(&[
                "{A.he} has a coupon for ${k} off. How much does {A.he} pay?",
                "Shipping is not charged, and a gift card covers ${k}. How much must {A} still \
                 pay?",
            ]);
            s.step(total, Subtract, coupon, "{A} pays {=$}.")?;
        }
        _ => s.say(&[
            "How much [money|] does {A.he} spend [in total|altogether|in all]?",
            "What is the total [cost|price][| in dollars]?",
            "How many dollars does {A.he} pay[| in total]?",
            "Calculate the total cost.",
        ]),
    }
    Some(())
}

/// One kind of thing in packs, or with a fee, over several visits.
pub(super) fn bulk(s: &mut Story) -> Option<()> {
    s.person_or_role("A");
    let nouns = goods(s);
    s.noun("item", nouns);
    let (packs, each, price) = (s.draw("q", 2, 9), s.draw("m", 2, 12), s.draw("p", 2, 9));
    s.say(&[
        "{A} [buys|orders] {q} [packs|boxes] of {item}. Each [of them|one] has {m} {item}, and \
         every {item.1} costs ${p}.",
        "{A} wants {q} sets of {m} {item} each, and a single {item.1} costs ${p}.",
        "[For a party|For the office|For school], {A} buys {item} at ${p} apiece. {A.he} gets {q} \
         boxes with {m} {item} in each.",
    ]);
    s.noise(SHOP_NOISE);
    let count = s.step(packs, Multiply, each, "{A} [buys|gets] {=} {item}.")?;
    let cost = s.step(count, Multiply, price, "[They cost|That costs] {=$}.")?;
    match s.dice().below(3) {
        0 => {
            let fee = s.draw("k", 3, 30);
            s.say(&[
                "[Delivery|Shipping] costs ${k}. How much does {A.he} pay [in total|altogether]?",
                "With a delivery fee of ${k}, what is the total cost?",
            ]);
            s.step(cost, Add, fee, "With the delivery, {A.he} pays {=$}.")?;
            Some(())
        }
        1 => pay(s, cost),
        _ => {
            s.say(&["How much does {A.he} [pay|spend]?", "What does all of this cost?"]);
            Some(())
        }
    }
}

/// A price reduced by a percentage, or raised, for one or several things.
pub(super) fn discount(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun("item", GOODS);
    let price = s.dice().between(2, 60) * s.dice().pick(&[1, 2, 5, 10]);
    s.set("p", price);
    let percent = s.draw_of("c", &[10, 20, 25, 50]);
    let count = if s.dice().chance(60) { s.draw("q", 2, 9) } else { 1 };
    let more = s.dice().chance(25);
    s.text("off", if more { "more expensive" } else { "cheaper" });
    s.say(&[
        "A {item.1} [costs|is priced at] ${p}.",
        "The [usual|regular|normal] price of a {item.1} is ${p}.",
        "{A} wants to buy a {item.1} that [costs|is sold for] ${p}.",
    ]);
    s.noise(SHOP_NOISE);
    if more {
        s.say(&[
            "The price [goes up|rises|increases] by {c}%.",
            "Next week it will be {c}% more expensive.",
        ]);
    } else {
        s.say(&[
            "[Today|During a sale], it is {c}% off.",
            "The store [offers|gives] a {c}% discount.",
            "Its price is reduced by {c}%.",
        ]);
    }
    let part = s.step(
        price,
        Percent,
        percent,
        if more { "The price goes up by {=$}." } else { "The discount is {=$}." },
    )?;
    let operation = if more { Add } else { Subtract };
    let new_price = s.step(price, operation, part, "The new price is {=$}.")?;
    if count == 1 {
        if s.dice().chance(50) {
            return pay(s, new_price);
        }
        s.say(&["What is the new price?", "How much does {A} pay for one {item.1} then?"]);
        return Some(());
    }
    let cost = s.step(count, Multiply, new_price, "{q} {item} cost {=$}.")?;
    if s.dice().chance(40) {
        s.text("item", "{q} {item}");
        s.say(&["{A} buys {q} of them at that price."]);
        return pay(s, cost);
    }
    s.say(&[
        "How much do {q} {item} cost at [that|the new] price?",
        "How much does {A} pay for {q} {item} at the new price?",
    ]);
    Some(())
}

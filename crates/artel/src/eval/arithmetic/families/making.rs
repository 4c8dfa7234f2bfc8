//! Producing, packing and selling.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{BAKES, CONTAINERS, Noun, nouns};

/// A maker, what is made, and what it is made by.
struct Workshop {
    maker: &'static str,
    items: &'static [Noun],
    unit: &'static str,
}

const WORKSHOPS: &[Workshop] = &[
    Workshop { maker: "[a bakery|a cafe]", items: BAKES, unit: "[tray|pan]" },
    Workshop {
        maker: "[a factory|a small company]",
        items: nouns![
            "toy",
            "lamp",
            "chair",
            "radio",
            "clock",
            "shirt",
            "phone",
            "battery" / "batteries"
        ],
        unit: "[hour|day|shift]",
    },
    Workshop {
        maker: "[a potter|an artist]",
        items: nouns!["cup", "bowl", "plate", "vase", "tile"],
        unit: "[day|week]",
    },
    Workshop {
        maker: "[a print shop|a printer]",
        items: nouns!["poster", "card", "booklet", "flyer", "calendar"],
        unit: "[minute|hour]",
    },
    Workshop {
        maker: "[a tailor|a seamstress]",
        items: nouns!["dress" / "dresses", "curtain", "coat", "flag", "pillow"],
        unit: "[day|week]",
    },
    Workshop {
        maker: "[a candy maker|a chocolate shop]",
        items: nouns!["chocolate", "lollipop", "caramel", "candy bar"],
        unit: "[pan|mold]",
    },
    Workshop {
        maker: "[a carpenter|a workshop]",
        items: nouns!["stool", "birdhouse", "frame", "shelf" / "shelves", "door"],
        unit: "[day|month]",
    },
];

/// So many a batch, minus the broken ones, packed or sold.
pub(super) fn batches(s: &mut Story) -> Option<()> {
    s.person("A");
    let shop = &WORKSHOPS[s.dice().below(WORKSHOPS.len())];
    s.noun("item", shop.items);
    s.noun("pack", CONTAINERS);
    s.text("maker", shop.maker);
    s.text("unit", shop.unit);
    let (each, count) = (s.draw("m", 4, 60), s.draw("q", 2, 12));
    let by_time = ["day", "hour", "week"].iter().any(|unit| shop.unit.contains(unit));
    if by_time {
        s.say(&[
            "{maker} makes {m} {item} [a|every|each] {unit}.",
            "{maker} [produces|makes] {m} {item} per {unit}.",
        ]);
        s.say(&["The work goes on for {q} {unit}s.", "This lasts for {q} {unit}s."]);
    } else {
        s.say(&[
            "{maker} makes {q} {unit}s of {m} {item} each.",
            "Each {unit} gives {m} {item}, and {maker} makes {q} of them.",
        ]);
    }
    s.noise(&[
        "The owner, {A}, is {d} years old.",
        "The building has {d} windows.",
        "{A} works there and drinks {d} cups of tea a week.",
    ]);
    let mut made = s.step(count, Multiply, each, "[They make|That makes] {=} {item}.")?;
    if s.dice().chance(55) {
        let bad = s.draw("k", 2, 30);
        s.say(&[
            "{k} {item} [are broken|are damaged|cannot be sold].",
            "Of these, {k} [{item}|] are [kept|thrown away|given to the workers].",
        ]);
        made = s.step(made, Subtract, bad, "{=} {item} are left.")?;
    }
    if s.dice().chance(50) {
        let size = s.draw("c", 2, 12);
        s.say(&[
            "The {item} are packed into {pack} of {c}.",
            "{c} {item} go into [each|one] {pack.1}.",
        ]);
        let packs = s.step(made, Divide, size, "They fill {=} {pack}.")?;
        if s.steps() < 4 && s.dice().chance(65) {
            let price = s.draw("p", 2, 20);
            s.say(&[
                "[A|One|Each] {pack.1} [sells for|costs] ${p}. How much are all {pack} worth?",
                "If every {pack.1} is sold for ${p}, how much money comes in?",
            ]);
            s.step(packs, Multiply, price, "The {pack} bring in {=$}.")?;
        } else {
            s.say(&["How many {pack} are filled?", "How many {pack} are needed?"]);
        }
    } else {
        let price = s.draw("p", 2, 12);
        s.say(&[
            "Each {item.1} is sold for ${p}. How much money [is earned|comes in]?",
            "How much do the {item} bring in at ${p} each?",
        ]);
        s.step(made, Multiply, price, "They bring in {=$}.")?;
    }
    Some(())
}

/// A recipe scaled to more people.
pub(super) fn recipe(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("dish", "[soup|stew|pancakes|curry|lasagna|bread|rice pudding|fruit salad]");
    s.noun(
        "item",
        nouns![
            "egg",
            "cup of flour" / "cups of flour",
            "tomato" / "tomatoes",
            "carrot",
            "spoon of sugar" / "spoons of sugar",
            "onion",
            "cup of milk" / "cups of milk",
            "potato" / "potatoes"
        ],
    );
    let (need, serves, factor) = (s.draw("m", 2, 9), s.draw("r", 2, 12), s.dice().between(2, 9));
    let people = s.set("g", serves * factor);
    s.say(&[
        "A recipe for {dish} [uses|needs|calls for] {m} {item} and serves {r} people.",
        "{A} has a recipe for {dish}: {m} {item} are enough for {r} people.",
    ]);
    s.noise(&[
        "The {dish} must cook for {d} minutes.",
        "The pot holds {d} cups.",
        "{A} learned the recipe {d} years ago.",
    ]);
    s.say(&[
        "{A.he} [cooks|wants to cook] for {g} people.",
        "[Tonight|On Sunday], {g} people will come to eat.",
    ]);
    let times = s.step(people, Divide, serves, "{A} makes the recipe {=} times.")?;
    let total = s.step(times, Multiply, need, "{A.he} needs {=} {item}.")?;
    match s.dice().below(3) {
        0 => {
            let have = s.draw("k", 2, total.min(20));
            s.say(&[
                "{A.he} already has {k} {item}. How many more does {A.he} need?",
                "If {k} {item} are in the kitchen already, how many more must {A.he} buy?",
            ]);
            s.step(total, Subtract, have, "{A.he} must buy {=} {item}.")?;
        }
        1 => {
            let spare = s.draw("k", 2, 12);
            s.say(&["To be safe, {A.he} wants {k} extra {item}. How many {item} does {A.he} \
             take?"]);
            s.step(total, Add, spare, "With the extra ones, {A.he} takes {=} {item}.")?;
        }
        _ => s.say(&[
            "How many {item} does {A.he} need?",
            "[What is|Find] the number of {item} {A.he} needs.",
        ]),
    }
    Some(())
}

/// A stand that sells something and has costs.
pub(super) fn stand(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun(
        "item",
        nouns![
            "cup of lemonade" / "cups of lemonade",
            "glass of juice" / "glasses of juice",
            "bowl of ice cream" / "bowls of ice cream",
            "bunch of flowers" / "bunches of flowers",
            "hot dog",
            "bag of popcorn" / "bags of popcorn",
            "painting",
            "smoothie"
        ],
    );
    let (sold, price, cost) = (s.draw("q", 8, 90), s.draw("p", 2, 9), s.draw("k", 5, 80));
    s.say(&[
        "{A} [runs|opens|has] a stand and sells {q} {item} for ${p} each.",
        "At a stand, {A} sells {item} at ${p} each. {A.he} sells {q} of them.",
    ]);
    s.noise(&[
        "The stand is {d} [steps|meters] from {A.his} house.",
        "{d} people just look and buy nothing.",
    ]);
    s.say(&[
        "{A.he} [spends|spent] ${k} on [supplies|ingredients|material].",
        "The [supplies|ingredients] cost {A.him} ${k}.",
    ]);
    let income = s.step(sold, Multiply, price, "{A} takes in {=$}.")?;
    let profit = s.step(income, Subtract, cost, "{A.his} profit is {=$}.")?;
    match s.dice().below(3) {
        0 => {
            let share = s.draw("c", 2, 6);
            s.say(&["{A.he} shares the profit equally with friends, {c} people in all. How much \
             does each of them get?"]);
            s.step(profit, Divide, share, "Each gets {=$}.")?;
        }
        1 => {
            let days = s.draw("c", 2, 9);
            s.say(&[
                "How much profit does {A.he} make in {c} days like this one?",
                "If every day is the same, what is {A.his} profit in {c} days?",
            ]);
            s.step(profit, Multiply, days, "In {c} days, the profit is {=$}.")?;
        }
        _ => s.say(&[
            "How much profit does {A.he} make?",
            "What is {A.his} profit?",
            "How much money does {A.he} have after paying the costs?",
        ]),
    }
    Some(())
}

//! Quantities told by comparison: twice as many as, 5 fewer than, half as many as.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{ANIMALS, BAKES, KEEPSAKES, Noun, PRODUCE, nouns};

/// What people do to things, in the past tense and the base form, and where.
struct Deed {
    past: &'static str,
    base: &'static str,
    items: &'static [Noun],
    places: &'static str,
}

const DEEDS: &[Deed] = &[
    Deed {
        past: "picked",
        base: "pick",
        items: PRODUCE,
        places: "[| at the farm| in the orchard]",
    },
    Deed {
        past: "collected",
        base: "collect",
        items: KEEPSAKES,
        places: "[| this year| last month]",
    },
    Deed { past: "baked", base: "bake", items: BAKES, places: "[| for the fair| for the party]" },
    Deed {
        past: "sold",
        base: "sell",
        items: nouns!["ticket", "raffle ticket", "calendar", "magazine"],
        places: "[| at school| for charity]",
    },
    Deed {
        past: "read",
        base: "read",
        items: nouns!["page", "book", "story" / "stories", "article"],
        places: "[| this week| on vacation]",
    },
    Deed {
        past: "scored",
        base: "score",
        items: nouns!["point", "goal"],
        places: "[| this season| in the tournament]",
    },
    Deed {
        past: "planted",
        base: "plant",
        items: nouns!["tree", "tulip", "bush" / "bushes", "seed"],
        places: "[| in the park| in spring]",
    },
    Deed {
        past: "caught",
        base: "catch",
        items: nouns!["fish" / "fish", "crab", "trout" / "trout"],
        places: "[| at the lake]",
    },
    Deed {
        past: "took",
        base: "take",
        items: nouns!["photo", "picture"],
        places: "[| on the trip| at the zoo]",
    },
    Deed { past: "made", base: "make", items: KEEPSAKES, places: "[| for the bazaar]" },
    Deed {
        past: "walked",
        base: "walk",
        items: nouns!["mile", "kilometer", "block"],
        places: "[| on Sunday| last week]",
    },
    Deed {
        past: "solved",
        base: "solve",
        items: nouns!["puzzle", "math problem", "riddle"],
        places: "[| in class| yesterday]",
    },
    Deed {
        past: "sent",
        base: "send",
        items: nouns!["letter", "message", "postcard", "email"],
        places: "[| last week| in May]",
    },
    Deed {
        past: "washed",
        base: "wash",
        items: nouns!["car", "dish" / "dishes", "window"],
        places: "[| this morning]",
    },
    Deed {
        past: "saved",
        base: "save",
        items: nouns!["dollar"],
        places: "[| this month| in June]",
    },
];

/// Draws how one quantity compares to `value` into the slot `rel`, as "3 times as many {item} as"
/// or "5 more {item} than", and without the last word into `rel_short`.
fn relate(s: &mut Story, value: i64, line: &str) -> Option<i64> {
    match s.dice().below(5) {
        0 => {
            let n = s.draw("n", 2, 40);
            set_relation(s, "{n} more {item}", "than");
            s.step(value, Add, n, line)
        }
        1 => {
            let n = s.draw("n", 2, value.min(40));
            set_relation(s, "{n} [fewer|fewer|less] {item}", "than");
            s.step(value, Subtract, n, line)
        }
        2 => {
            let k = s.draw("n", 2, 7);
            let words = if k == 2 { "[twice|two times]" } else { "{n} times" };
            set_relation(s, &format!("{words} as many {{item}}"), "as");
            s.step(value, Multiply, k, line)
        }
        3 => {
            let parts =
                [("half", 2), ("half", 2), ("a third", 3), ("one third", 3), ("a quarter", 4)];
            let (words, divisor) = s.dice().pick(&parts);
            set_relation(s, &format!("{words} as many {{item}}"), "as");
            s.step(value, Divide, divisor, line)
        }
        _ => {
            let (n, k) = (s.draw("n", 2, 20), s.dice().between(2, 4));
            let times = ["twice", "three times", "four times"][k as usize - 2];
            s.text("times", times);
            let (word, operation) = s.dice().pick(&[("more", Add), ("fewer", Subtract)]);
            set_relation(s, &format!("{{n}} {word} than {{times}} as many {{item}}"), "as");
            let many = s.step(value, Multiply, k, "[First, |]{times} as many as {ref} is {=}.")?;
            s.step(many, operation, n, line)
        }
    }
}

fn set_relation(s: &mut Story, form: &str, last_word: &str) {
    s.text("rel_short", form);
    s.text("rel", &format!("{{rel_short}} {last_word}"));
}

/// Two or three people compared.
pub(super) fn people(s: &mut Story) -> Option<()> {
    let deed = &DEEDS[s.dice().below(DEEDS.len())];
    for key in ["A", "B", "C"] {
        s.person(key);
    }
    s.noun("item", deed.items);
    s.text("did", deed.past);
    s.text("do", deed.base);
    s.text("where", deed.places);
    let high = s.dice().pick(&[15, 60, 60]);
    let a = s.draw("a", 3, high);
    s.say(&["{A} {did} {a} {item}{where}.", "{A} {did} {a} {item}{where}."]);
    s.text("ref", "{A}");
    let b = relate(s, a, "{B} {did} {rel} {ref}, so {=} {item}.")?;
    s.say(&["{B} {did} {rel} {A}[| did].", "{B} {did} {rel} {A}."]);
    s.noise(&[
        "{A} is {d} years old.",
        "{B} [went home after|stayed for] {d} minutes.",
        "{A} has {d} cousins.",
    ]);
    let three = s.dice().chance(55);
    let mut values = vec![a, b];
    if three {
        values.push(third_person(s, a, b)?);
    }
    if s.dice().chance(25) {
        s.shuffle_sentences(0);
    }
    ask_people(s, &values)
}

const THIRD_LINE: &str = "{C} {did} {rel} {ref}, so {=} {item}.";

/// The third of the people, compared to the first, to the second or to both.
fn third_person(s: &mut Story, a: i64, b: i64) -> Option<i64> {
    if s.dice().chance(20) {
        let both = s.step(a, Add, b, "{A} and {B} together {did} {=} {item}.")?;
        if s.dice().chance(50) {
            s.say(&["{C} {did} half as many {item} as {A} and {B} together."]);
            return s.step(both, Divide, 2, "{C} {did} {=} {item}.");
        }
        let n = s.draw("n", 2, 30);
        s.say(&["{C} {did} {n} more {item} than {A} and {B} together."]);
        return s.step(both, Add, n, "{C} {did} {=} {item}.");
    }
    if s.dice().chance(30) {
        let c = relate(s, a, THIRD_LINE)?;
        s.say(&["{C} {did} {rel} {A}.", "{C} {did} {rel} {A}[| did]."]);
        return Some(c);
    }
    s.text("ref", "{B}");
    let c = relate(s, b, THIRD_LINE)?;
    s.say(&["{C} {did} {rel} {B}.", "{C} {did} {rel} {B}[| did]."]);
    Some(c)
}

fn ask_people(s: &mut Story, values: &[i64]) -> Option<()> {
    let (first, last) = (values[0], values[values.len() - 1]);
    s.text("last", if values.len() == 3 { "{C}" } else { "{B}" });
    match s.dice().below(4) {
        0 if last > first => {
            s.say(&["How many more {item} did {last} {do} than {A}?"]);
            s.step(last, Subtract, first, "{last} {did} {=} more {item} than {A}.")?;
        }
        0 | 1 if values.len() == 3 => {
            s.say(&[
                "How many {item} did {C} {do}?",
                "[What is|Find] the number of {item} that {C} {did}.",
            ]);
        }
        2 => {
            let group = s.draw("k", 2, 8);
            let sum = add_up(s, values)?;
            s.say(&[
                "[They|The friends] [split|divide] everything into {k} equal parts. How many \
                 {item} are in each part?",
                "If all [of|] the {item} are divided into {k} equal groups, how many {item} are \
                 in a group?",
            ]);
            s.step(sum, Divide, group, "Each group has {=} {item}.")?;
        }
        _ => {
            add_up(s, values)?;
            s.say(&[
                "How many {item} did they {do} [altogether|in total|in all|together]?",
                "[What is|Find] the total number of {item} they {did}.",
                "How many {item} did [all of them|the friends] {do} together?",
            ]);
        }
    }
    Some(())
}

fn add_up(s: &mut Story, values: &[i64]) -> Option<i64> {
    let mut sum = values[0];
    for (at, value) in values.iter().enumerate().skip(1) {
        let last = at + 1 == values.len();
        let line =
            if last { "[Together|In total], that is {=} {item}." } else { "{A} and {B} make {=}." };
        sum = s.step(sum, Add, *value, line)?;
    }
    Some(sum)
}

/// One person or team over several days.
pub(super) fn days(s: &mut Story) -> Option<()> {
    let deed = &DEEDS[s.dice().below(DEEDS.len())];
    s.person("A");
    s.noun("item", deed.items);
    s.text("did", deed.past);
    s.text("do", deed.base);
    let calendars = [
        ["on Monday", "on Tuesday", "on Wednesday"],
        ["on Friday", "on Saturday", "on Sunday"],
        ["in March", "in April", "in May"],
        ["in April", "in May", "in June"],
        ["in September", "in October", "in November"],
        ["on Tuesday", "on Wednesday", "on Thursday"],
        ["at the first stop", "at the second stop", "at the third stop"],
        ["in the first week", "in the second week", "in the third week"],
        ["in the morning", "in the afternoon", "in the evening"],
    ];
    let calendar = s.dice().pick(&calendars);
    for (key, day) in ["x", "y", "z"].into_iter().zip(calendar) {
        s.text(key, day);
    }
    let a = s.draw("a", 4, 80);
    s.text("ref", "{x}");
    let b = relate(s, a, "{y}, {A} {did} {rel} {ref}, so {=} {item}.")?;
    if s.dice().chance(30) {
        s.say(&[
            "{A} {did} {a} {item} {x}, and then {A.he} {did} {rel_short} {y}.",
            "{x}, {A} {did} {a} {item}, and {y}, {A.he} {did} {rel_short}.",
        ]);
    } else {
        s.say(&["{x}, {A} {did} {a} {item}.", "{A} {did} {a} {item} {x}."]);
        s.say(&["{y}, {A.he} {did} {rel} {x}.", "Then, {y}, {A.he} {did} {rel} {x}."]);
    }
    s.noise(&[
        "It was {d} degrees outside.",
        "{A} is {d} years old.",
        "{A.his} [team|class] has {d} [members|students].",
    ]);
    let mut values = vec![a, b];
    if s.dice().chance(50) {
        s.text("ref", "{y}");
        values.push(relate(s, b, "{z}, {A} {did} {rel} {ref}, so {=} {item}.")?);
        s.say(&["{z}, {A.he} {did} {rel} {y}.", "Then, {z}, {A.he} {did} {rel} {y}."]);
    }
    let mut sum = values[0];
    for value in &values[1..] {
        sum = s.step(sum, Add, *value, "[So far|Together], that is {=} {item}.")?;
    }
    if values.len() == 2 && s.dice().chance(40) {
        s.say(&[
            "How many {item} did {A} {do} [altogether|in total] {x} and {y}?",
            "How many {item} did {A} {do} {x} and {y} together?",
        ]);
        return Some(());
    }
    s.say(&[
        "How many {item} did {A} {do} [altogether|in total|in all]?",
        "[What is|Find] the total number of {item} that {A} {did}.",
        "How many {item} did {A} {do} in that time?",
    ]);
    Some(())
}

/// Three places that hold things.
pub(super) fn places(s: &mut Story) -> Option<()> {
    let scenes: [(&[Noun], [&str; 3]); 6] = [
        (KEEPSAKES, ["the red box", "the blue box", "the green box"]),
        (
            nouns!["book", "dictionary" / "dictionaries"],
            ["the top shelf", "the middle shelf", "the bottom shelf"],
        ),
        (ANIMALS, ["the first farm", "the second farm", "the third farm"]),
        (nouns!["student", "desk", "chair"], ["the [art|music] room", "the gym", "the [lab|hall]"]),
        (
            nouns!["car", "bike", "truck"],
            ["the first floor of a garage", "the second floor", "the third floor"],
        ),
        (nouns!["house", "shop", "apartment"], ["Oak Street", "Maple Street", "River Road"]),
    ];
    let (items, names) = s.dice().pick(&scenes);
    s.noun("item", items);
    for (key, name) in ["x", "y", "z"].into_iter().zip(names) {
        s.text(key, name);
    }
    let a = s.draw("a", 6, 90);
    s.say(&["{x} has {a} {item}.", "[We know that|Suppose] {x} has {a} {item}."]);
    s.text("ref", "{x}");
    let b = relate(s, a, "{y} has {rel} {ref}, so {=} {item}.")?;
    s.say(&["{y} has {rel} {x}.", "{y}[, by contrast,|] has {rel} {x}."]);
    s.noise(&["{x} was painted {d} days ago.", "It takes {d} minutes to count them."]);
    s.text("ref", "{y}");
    let c = relate(s, b, "{z} has {rel} {ref}, so {=} {item}.")?;
    s.say(&["{z} has {rel} {y}.", "{z}[, in turn,|] has {rel} {y}."]);
    if s.steps() < 3 && s.dice().chance(70) {
        let both = s.step(a, Add, b, "{x} and {y} have {=} {item}.")?;
        s.step(both, Add, c, "[All three|Together, they] have {=} {item}.")?;
        s.say(&[
            "How many {item} are there in total?",
            "How many {item} do all three have together?",
        ]);
    } else {
        s.say(&["How many {item} does {z} have?", "Find how many {item} {z} has."]);
    }
    Some(())
}

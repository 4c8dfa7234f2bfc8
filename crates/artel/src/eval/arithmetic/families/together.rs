//! Two or three people: giving to each other, working together, averages.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::{KEEPSAKES, PRODUCE, nouns};

/// One gives some of their things to the other.
pub(super) fn transfer(s: &mut Story) -> Option<()> {
    s.person("A");
    s.person("B");
    let items = s.dice().pick(&[KEEPSAKES, PRODUCE]);
    s.noun("item", items);
    let (a, b) = (s.draw("a", 12, 95), s.draw("b", 4, 95));
    s.say(&[
        "{A} has {a} {item} and {B} has {b}[| {item}].",
        "{A} owns {a} {item}, while {B} owns {b}.",
        "{B} has {b} {item}. {A} has {a} {item}.",
    ]);
    s.noise(&[
        "They are both {d} years old.",
        "They met {d} days ago.",
        "{A} lives {d} steps from {B}.",
    ]);
    let n = s.draw("n", 2, a / 2);
    s.say(&[
        "{A} gives {n} of {A.his} {item} to {B}.",
        "Then {B} gets {n} {item} from {A}.",
        "[One day|After school], {A} hands {n} {item} over to {B}.",
    ]);
    let after_b = s.step(b, Add, n, "{B} now has {=} {item}.")?;
    if s.dice().chance(30) {
        let extra = s.draw("e", 2, 30);
        s.say(&[
            "[Later|The next day], {B} [buys|finds] {e} more[| {item}].",
            "{B} also gets {e} {item} from {B.his} [aunt|uncle].",
        ]);
        s.step(after_b, Add, extra, "Then {B} has {=} {item}.")?;
        s.say(&[
            "How many {item} does {B} have [now|in the end]?",
            "Find the number of {item} {B} has [now|in the end].",
        ]);
        return Some(());
    }
    let after_a = s.step(a, Subtract, n, "{A} now has {=} {item}.")?;
    if after_a > after_b {
        s.say(&[
            "How many more {item} does {A} have than {B} now?",
            "How many {item} more than {B} does {A} have after that?",
        ]);
        s.step(after_a, Subtract, after_b, "{A} has {=} more {item}.")?;
    } else {
        s.say(&[
            "How many more {item} does {B} have than {A} now?",
            "By how many {item} is {B} ahead of {A} then?",
        ]);
        s.step(after_b, Subtract, after_a, "{B} has {=} more {item}.")?;
    }
    Some(())
}

/// Two workers at their own pace.
pub(super) fn teamwork(s: &mut Story) -> Option<()> {
    s.person("A");
    s.person("B");
    let scenes = [
        (nouns!["envelope", "letter"] as &[_], "folds", "fold"),
        (nouns!["apple", "potato" / "potatoes", "carrot"], "peels", "peel"),
        (nouns!["box" / "boxes", "present"], "wraps", "wrap"),
        (nouns!["plate", "window", "glass" / "glasses"], "cleans", "clean"),
        (nouns!["page", "form"], "types", "type"),
        (nouns!["brick", "tile"], "lays", "lay"),
        (nouns!["shirt", "dress" / "dresses"], "irons", "iron"),
        (nouns!["mushroom", "berry" / "berries", "flower"], "picks", "pick"),
    ];
    let (items, does, base) = s.dice().pick(&scenes);
    s.noun("item", items);
    s.text("does", does);
    s.text("do", base);
    s.text("unit", "[hour|minute|day]");
    let (p, q) = (s.draw("p", 3, 30), s.draw("q", 3, 30));
    s.say(&[
        "{A} {does} {p} {item} [every|per] {unit}, and {B} {does} {q}.",
        "In one {unit}, {A} {does} {p} {item} and {B} {does} {q} [{item}|of them].",
    ]);
    s.noise(&[
        "{B} is {d} years old.",
        "They [play|hear] {d} songs while they work.",
        "The room has {d} lamps.",
    ]);
    let both = s.step(p, Add, q, "Together, they {do} {=} {item} per {unit}.")?;
    if s.dice().chance(50) {
        let time = s.draw("k", 2, 12);
        s.say(&["They work together for {k} {unit}s."]);
        let total = s.step(both, Multiply, time, "In {k} {unit}s, they {do} {=} {item}.")?;
        if s.dice().chance(50) {
            let goal = total + s.dice().between(5, 150);
            s.set("g", goal);
            s.say(&[
                "There are {g} {item} in all. How many are left to {do}?",
                "How many of {g} {item} are not done after that?",
            ]);
            s.step(goal, Subtract, total, "{=} {item} are left.")?;
        } else {
            s.say(&["How many {item} do they {do}[| in that time]?"]);
        }
    } else {
        let time = s.dice().between(2, 12);
        let goal = Multiply.apply(both, time)?;
        s.set("g", goal);
        s.say(&[
            "How many {unit}s do they need for {g} {item} if they work together?",
            "Working together, in how many {unit}s can they {do} {g} {item}?",
        ]);
        s.step(goal, Divide, both, "They need {=} {unit}s.")?;
    }
    Some(())
}

/// The mean of a few numbers.
pub(super) fn average(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("scored", "points", "games"),
        ("read", "pages", "days"),
        ("sold", "tickets", "days"),
        ("ran", "minutes", "mornings"),
        ("got", "emails", "days"),
        ("saved", "dollars", "weeks"),
        ("caught", "fish", "trips"),
    ];
    let (did, what, times) = s.dice().pick(&scenes);
    s.text("did", did);
    s.text("what", what);
    s.text("times", times);
    let (a, b, c) = (s.draw("a", 4, 95), s.draw("b", 4, 95), s.draw("c", 4, 95));
    s.say(&[
        "In three {times}, {A} {did} {a}, {b} and {c} {what}.",
        "{A} {did} {a} {what} the first time, {b} the second time and {c} the third time.",
    ]);
    s.noise(&["{A} is {d} years old.", "It was {d} degrees outside."]);
    let two = s.step(a, Add, b, "The first two make {=} {what}.")?;
    let sum = s.step(two, Add, c, "All three make {=} {what}.")?;
    match s.dice().below(3) {
        0 => {
            let goal = sum + s.dice().between(4, 90);
            s.set("g", goal);
            s.say(&[
                "How many more {what} does {A} need to reach {g}?",
                "{A.his} goal is {g} {what}. How many are missing?",
            ]);
            s.step(goal, Subtract, sum, "{=} {what} are missing.")?;
        }
        1 => s.say(&["How many {what} is that in [total|all]?", "What is the total?"]),
        _ => {
            s.say(&[
                "What is the average number of {what}?",
                "How many {what} is that on average?",
                "Find the mean of the three numbers.",
            ]);
            s.step(sum, Divide, 3, "The average is {=} {what}.")?;
        }
    }
    Some(())
}

/// A number that grows by the same amount every time.
pub(super) fn growth(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("runs", "run", "kilometers", "week"),
        ("reads", "read", "pages", "day"),
        ("does", "do", "push-ups", "day"),
        ("saves", "save", "dollars", "month"),
        ("plants", "plant", "trees", "year"),
        ("learns", "learn", "words", "week"),
        ("writes", "write", "lines", "evening"),
        ("swims", "swim", "laps", "day"),
    ];
    let (does, base, what, unit) = s.dice().pick(&scenes);
    s.text("does", does);
    s.text("do", base);
    s.text("what", what);
    s.text("unit", unit);
    s.text("at", if matches!(unit, "day" | "evening") { "on" } else { "in" });
    let a = s.draw("a", 4, 60);
    s.say(&[
        "{A} {does} {a} {what} {at} the first {unit}.",
        "{at} the first {unit}, {A} {does} {a} {what}.",
    ]);
    s.noise(&["{A} is {d} years old.", "{A.his} sister has {d} books."]);
    if s.dice().chance(60) {
        let n = s.draw("n", 2, 20);
        s.say(&[
            "Every {unit} after that, {A.he} {does} {n} more than {at} the {unit} before.",
            "From then on, {A.he} adds {n} {what} each {unit}.",
        ]);
        let b = s.step(a, Add, n, "{at} the second {unit}, it is {=} {what}.")?;
        let c = s.step(b, Add, n, "{at} the third {unit}, it is {=} {what}.")?;
        return ask_growth(s, b, c);
    }
    s.say(&["{at} every {unit} that follows, {A.he} {does} twice as [many|many {what}] as {at} \
     the {unit} before."]);
    let b = s.step(a, Multiply, 2, "{at} the second {unit}, it is {=} {what}.")?;
    let c = s.step(b, Multiply, 2, "{at} the third {unit}, it is {=} {what}.")?;
    ask_growth(s, b, c)
}

fn ask_growth(s: &mut Story, second: i64, third: i64) -> Option<()> {
    if s.dice().chance(50) {
        s.say(&[
            "How many {what} does {A} {do} {at} the third {unit}?",
            "How many {what} is it {at} the third {unit}?",
        ]);
        return Some(());
    }
    s.say(&["How many {what} does {A} {do} {at} the second and third {unit} together?"]);
    s.step(second, Add, third, "Together, that is {=} {what}.")?;
    Some(())
}

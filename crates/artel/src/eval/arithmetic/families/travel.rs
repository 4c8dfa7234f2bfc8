//! Distances, speeds and fuel.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;

const ROAD_NOISE: &[&str] = &[
    "{A.his} bag weighs {d} [kilograms|pounds].",
    "{A} listens to {d} songs on the way.",
    "{A} took {d} photos.",
    "There are {d} traffic lights on the way.",
    "A ticket costs ${d}.",
];

/// One or two legs at given speeds, then the total, the difference, or what remains.
pub(super) fn legs(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("unit", "[mile|kilometer]");
    let vehicles = [
        ("drives", 30, 80),
        ("rides a bike", 8, 25),
        ("travels by train", 40, 99),
        ("sails", 5, 20),
        ("runs", 5, 12),
        ("travels by bus", 30, 60),
    ];
    let (verb, slow, fast) = s.dice().pick(&vehicles);
    s.text("go", verb);
    let (v, w) = (s.draw("v", slow, fast), s.draw("w", slow, fast));
    let (h, k) = (s.draw("h", 2, 9), s.draw("k", 2, 9));
    s.say(&[
        "{A} {go} for {h} hours at {v} {unit}s per hour.",
        "For {h} hours, {A} {go} at a [steady|] speed of {v} {unit}s [an|per] hour.",
    ]);
    let first = s.step(v, Multiply, h, "[In the first part|First], {A} covers {=} {unit}s.")?;
    let second = if s.dice().chance(60) {
        s.noise(ROAD_NOISE);
        s.say(&[
            "Then {A.he} [goes on|continues] for {k} [more|] hours at {w} {unit}s per hour.",
            "After a [break|rest], {A.he} {go} for another {k} hours at {w} {unit}s per hour.",
        ]);
        s.step(w, Multiply, k, "Then {A.he} covers {=} {unit}s.")?
    } else {
        let more = s.draw("w", 10, 200);
        s.say(&[
            "[The next day|Later], {A.he} travels {w} more {unit}s.",
            "Then {A.he} [goes|travels] another {w} {unit}s.",
        ]);
        s.noise(ROAD_NOISE);
        more
    };
    let total = s.step(first, Add, second, "[In total|Altogether], {A.he} travels {=} {unit}s.")?;
    if s.dice().chance(45) {
        let trip = total + s.dice().between(5, 150);
        s.set("g", trip);
        s.say(&[
            "The whole trip is {g} {unit}s long. How many {unit}s are left?",
            "How far is {A.he} from the end of {A.his} {g}-{unit} trip?",
        ]);
        s.step(trip, Subtract, total, "{=} {unit}s are left.")?;
    } else {
        s.say(&[
            "How [far|many {unit}s] does {A.he} travel [in total|altogether]?",
            "[What is|Find] the total distance [in {unit}s|{A.he} covers].",
        ]);
    }
    Some(())
}

/// The same way again and again.
pub(super) fn commute(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("unit", "[mile|kilometer|block]");
    s.text("place", "[school|work|the gym|the library|the office|the stable|the pool]");
    s.text("go", "[walks|cycles|drives|jogs]");
    let (way, days) = (s.draw("v", 2, 30), s.draw("q", 2, 7));
    s.say(&[
        "{A} {go} {v} {unit}s to {place} and the same way back [home|], {q} days a week.",
        "{place} is {v} {unit}s from {A}'s home. {A.he} {go} there and back {q} [days|times] a \
         week.",
    ]);
    s.noise(ROAD_NOISE);
    let round =
        s.step(way, Multiply, 2, "[A round trip|The way there and back] is {=} {unit}s.")?;
    let week = s.step(round, Multiply, days, "In a week, {A} covers {=} {unit}s.")?;
    match s.dice().below(3) {
        0 => {
            let weeks = s.draw("k", 2, 10);
            s.say(&[
                "How many {unit}s is that in {k} weeks?",
                "How far does {A.he} go in {k} weeks?",
            ]);
            s.step(week, Multiply, weeks, "In {k} weeks, that is {=} {unit}s.")?;
        }
        1 => {
            let extra = s.draw("k", 2, 40);
            s.say(&["On Sundays, {A.he} [also goes|goes] on a trip of {k} {unit}s. How many \
             {unit}s is that in a week, all together?"]);
            s.step(week, Add, extra, "With the trip, it is {=} {unit}s.")?;
        }
        _ => s.say(&[
            "How many {unit}s does {A.he} cover in a week[| this way]?",
            "What distance does {A.he} cover each week?",
        ]),
    }
    Some(())
}

/// A distance, a consumption and a price.
pub(super) fn fuel(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("car", "[car|van|truck|motorbike]");
    let (rate, gallons, price) = (
        s.draw_of("v", &[8, 9, 10, 11, 12, 20, 25, 50]),
        s.dice().between(3, 20),
        s.draw("p", 2, 6),
    );
    let distance = Multiply.apply(rate, gallons)?;
    if s.dice().chance(50) {
        s.set("g", distance);
        s.say(&["{A} plans a trip of {g} miles.", "{A} has to drive {g} miles."]);
    } else {
        let first = s.dice().between(distance / 4, distance / 2).max(2);
        let second = distance - first;
        s.set("a", first);
        s.set("b", second);
        s.say(&[
            "{A} drives {a} miles on [Saturday|Monday] and {b} miles on [Sunday|Friday].",
            "{A} drives {a} miles to the coast and then {b} miles to the mountains.",
        ]);
        s.step(first, Add, second, "{A} drives {=} miles.")?;
    }
    s.noise(ROAD_NOISE);
    s.say(&[
        "{A.his} {car} goes {v} miles on [a|one] gallon of gas.",
        "{A.his} {car} needs one gallon of gas for every {v} miles.",
    ]);
    s.step(distance, Divide, rate, "{A} needs {=} gallons.")?;
    let cost = s.step(gallons, Multiply, price, "The gas costs {=$}.")?;
    if s.steps() < 4 && s.dice().chance(40) {
        let toll = s.draw("k", 3, 40);
        s.say(&[
            "Gas costs ${p} a gallon[, and| and] the tolls cost ${k}. How much does the trip \
         cost?",
        ]);
        s.step(cost, Add, toll, "With the tolls, the trip costs {=$}.")?;
    } else {
        s.say(&[
            "If gas costs ${p} a gallon, how much does {A.he} pay for gas?",
            "How much does the gas cost at ${p} per gallon?",
        ]);
    }
    Some(())
}

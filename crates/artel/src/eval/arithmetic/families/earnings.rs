//! Wages and savings.

use super::super::story::Operation::{Add, Divide, Multiply, Percent, Subtract};
use super::super::story::Story;

const JOBS: &str =
    "[waiter|cashier|driver|painter|gardener|tutor|nurse|mechanic|barber|baker|guide|welder]";

const WORK_NOISE: &[&str] = &[
    "{A} lives {d} minutes from work.",
    "{A.his} boss is {d} years old.",
    "There are {d} other people in the [company|team].",
    "{A} has worked there for {d} weeks.",
];

/// Hourly pay over hours and days, then an expense, a tax or a bonus.
pub(super) fn wages(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("job", JOBS);
    let (pay, hours, days) = (s.draw("p", 6, 30), s.draw("h", 2, 9), s.draw("q", 2, 12));
    s.say(&[
        "{A} [works as a {job} and|] earns ${p} [an hour|per hour].",
        "{A} is a {job} who is paid ${p} for every hour of work.",
        "As a {job}, {A} makes ${p} per hour.",
    ]);
    s.noise(WORK_NOISE);
    let long = s.dice().chance(60);
    if !long {
        let total_hours = s.draw("h", 5, 60);
        s.say(&[
            "[This week|Last week], {A.he} worked {h} hours.",
            "{A.he} works for {h} hours[| in all].",
        ]);
        let earned = s.step(pay, Multiply, total_hours, "{A} earns {=$}.")?;
        return spend(s, earned);
    }
    s.say(&[
        "{A.he} works {h} hours a day for {q} days.",
        "[This month|Last month], {A.he} worked {q} days, {h} hours [a|each] day.",
    ]);
    let earned = if s.dice().chance(50) {
        let daily = s.step(pay, Multiply, hours, "{A} earns {=$} a day.")?;
        s.step(daily, Multiply, days, "In {q} days, {A.he} earns {=$}.")?
    } else {
        let worked = s.step(hours, Multiply, days, "{A} works {=} hours.")?;
        s.step(worked, Multiply, pay, "{A.he} earns {=$}.")?
    };
    if s.dice().chance(30) {
        s.say(&[
            "How much does {A.he} earn [in total|altogether]?",
            "How much [money|] does {A.he} make?",
        ]);
        return Some(());
    }
    spend(s, earned)
}

/// What becomes of the money.
fn spend(s: &mut Story, earned: i64) -> Option<()> {
    match s.dice().below(4) {
        0 => {
            let percent = s.draw_of("c", &[10, 20, 25, 50]);
            s.say(&[
                "{A.he} [saves|puts aside|pays taxes of|gives away] {c}% of [it|{A.his} pay].",
                "{c}% of the money goes to [rent|taxes|{A.his} parents].",
            ]);
            let part = s.step(earned, Percent, percent, "{c}% of the money is {=$}.")?;
            s.say(&["How much [money|] is left?", "How much does {A.he} have [left|after that]?"]);
            s.step(earned, Subtract, part, "{A} has {=$} left.")?;
        }
        1 => {
            let cost = s.draw("k", 10, 200);
            s.text("thing", "[shoes|food|a gift|a bicycle|books|a phone|a coat|rent]");
            s.say(&[
                "{A.he} [spends|pays] ${k} [on|for] {thing}. How much [money|] does {A.he} have \
                 left?",
                "How much is left after {A.he} spends ${k} on {thing}?",
            ]);
            s.step(earned, Subtract, cost, "{A} has {=$} left.")?;
        }
        2 => {
            let tip = s.draw("k", 5, 90);
            s.say(&[
                "{A.he} also gets ${k} in [tips|bonuses]. How much does {A.he} make in total?",
                "With a bonus of ${k}, how much does {A.he} receive?",
            ]);
            s.step(earned, Add, tip, "With the extra money, {A.he} gets {=$}.")?;
        }
        _ => {
            let parts = s.draw("k", 2, 6);
            s.say(&[
                "{A.he} divides the money equally among {k} [savings jars|children|accounts]. \
             How much goes to each?",
            ]);
            s.step(earned, Divide, parts, "Each gets {=$}.")?;
        }
    }
    Some(())
}

/// Two jobs, or weekdays and weekends, at different rates.
pub(super) fn two_jobs(s: &mut Story) -> Option<()> {
    s.person("A");
    let scenes = [
        ("mowing lawns", "washing cars"),
        ("babysitting", "walking dogs"),
        ("on weekdays", "on weekends"),
        ("at the cafe", "at the library"),
        ("tutoring", "painting fences"),
        ("during the day", "at night"),
    ];
    let (first, second) = s.dice().pick(&scenes);
    s.text("x", first);
    s.text("y", second);
    let (p, u) = (s.draw("p", 5, 30), s.draw("u", 5, 30));
    let (q, r) = (s.draw("q", 2, 20), s.draw("r", 2, 20));
    s.say(&[
        "{A} [makes|earns] ${p} an hour {x} and ${u} an hour {y}.",
        "{A} is paid ${p} per hour {x}, but ${u} per hour {y}.",
    ]);
    s.noise(WORK_NOISE);
    s.say(&[
        "[This week|In June], {A.he} works {q} hours {x} and {r} hours {y}.",
        "{A.he} spent {r} hours {y} and {q} hours {x}.",
    ]);
    let one = s.step(p, Multiply, q, "{A} earns {=$} {x}.")?;
    let two = s.step(u, Multiply, r, "{A.he} earns {=$} {y}.")?;
    match s.dice().below(3) {
        0 => {
            s.say(&["How much more does {A.he} earn {x} than {y}?"]);
            s.step(one, Subtract, two, "The difference is {=$}.")?;
        }
        1 => {
            let sum = s.step(one, Add, two, "In total, {A.he} earns {=$}.")?;
            return spend(s, sum);
        }
        _ => {
            s.say(&[
                "How much does {A.he} earn [altogether|in total]?",
                "What are {A.his} total earnings?",
                "How much money is that in all?",
            ]);
            s.step(one, Add, two, "In total, {A.he} earns {=$}.")?;
        }
    }
    Some(())
}

/// Saving up for something.
pub(super) fn savings_goal(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("thing", "[bicycle|guitar|laptop|camera|tablet|telescope|drone|desk|tent|violin|phone]");
    s.text("unit", "[week|month|day]");
    let (goal, saved) = (s.dice().between(8, 60) * 10, s.draw("q", 10, 90));
    s.set("g", goal);
    s.say(&[
        "{A} wants to buy a {thing} that costs ${g}.",
        "A {thing} costs ${g}, and {A} is saving for it.",
        "{A} needs ${g} for a {thing}.",
    ]);
    s.say(&["{A.he} already has ${q}.", "So far, {A.he} has saved ${q}."]);
    s.noise(&[
        "{A} is {d} years old.",
        "{A.his} old {thing} is {d} months old.",
        "{A} visited {d} shops.",
    ]);
    let mut missing = s.step(goal, Subtract, saved, "{A} still needs {=$}.")?;
    if s.dice().chance(45) {
        let gift = s.draw("r", 5, 60);
        s.say(&[
            "{A.his} [grandfather|aunt|mother] gives {A.him} ${r}.",
            "{A.he} also gets ${r} for {A.his} birthday.",
        ]);
        missing = s.step(missing, Subtract, gift, "With the gift, {A.he} needs {=$} more.")?;
    }
    let divisors: Vec<i64> = (2..=12).chain([20, 25, 50]).filter(|d| missing % d == 0).collect();
    if divisors.is_empty() {
        return None;
    }
    if s.dice().chance(50) {
        let rate = s.draw_of("k", &divisors);
        s.say(&[
            "If {A.he} saves ${k} [a|every|each] {unit}, how many {unit}s [will it take|does \
             {A.he} need]?",
            "{A.he} can put aside ${k} per {unit}. After how many {unit}s can {A.he} buy the \
             {thing}?",
        ]);
        s.step(missing, Divide, rate, "{A.he} needs {=} {unit}s.")?;
    } else {
        let time = s.draw_of("k", &divisors);
        s.say(&[
            "{A.he} wants to buy it in {k} {unit}s. How much must {A.he} save [each|per] {unit}?",
            "How much does {A.he} have to save every {unit} to get the {thing} in {k} {unit}s?",
        ]);
        s.step(missing, Divide, time, "{A.he} must save {=$} each {unit}.")?;
    }
    Some(())
}

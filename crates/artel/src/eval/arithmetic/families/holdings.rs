//! A quantity that grows and shrinks: somebody or some place holds things, gains some, loses some.

use super::super::story::Operation::{Add, Divide, Multiply, Percent, Subtract};
use super::super::story::Story;
use super::settings::{SETTINGS, Setting};

/// What may happen to the quantity.
#[derive(Clone, Copy)]
enum Event {
    Gain,
    GainInGroups,
    Lose,
    LosePart,
    LosePercent,
    Double,
}

const EVENTS: [Event; 8] = [
    Event::Gain,
    Event::Gain,
    Event::GainInGroups,
    Event::Lose,
    Event::Lose,
    Event::LosePart,
    Event::LosePercent,
    Event::Double,
];

/// A start, one to three events, and what is left, or how it is packed or sold.
pub(super) fn tell(s: &mut Story) -> Option<()> {
    let setting = s.dice().pick(SETTINGS);
    s.person_or_role("A");
    s.noun("item", setting.items);
    let steps_wanted = s.dice().between(2, 4) as usize;
    let mut held = start(s, setting)?;
    s.noise(setting.noise);
    let ending_steps = usize::from(s.dice().chance(35));
    while s.steps() + ending_steps < steps_wanted {
        let event = s.dice().pick(&EVENTS);
        held = happen(s, setting, event, held)?;
    }
    s.noise(setting.noise);
    if ending_steps == 0 {
        s.say(setting.ask);
        Some(())
    } else {
        ending(s, setting, held)
    }
}

fn start(s: &mut Story, setting: &Setting) -> Option<i64> {
    if s.dice().chance(60) || setting.start_in_groups.is_empty() {
        let (low, high) = s.dice().pick(&[(3, 15), (8, 40), (20, 99), (20, 99), (100, 480)]);
        let n = s.draw("n", low, high);
        s.say(setting.start);
        return Some(n);
    }
    let groups = s.draw("g", 2, 12);
    let each = s.draw("m", 3, 25);
    s.say(setting.start_in_groups);
    s.step(groups, Multiply, each, setting.started)
}

fn happen(s: &mut Story, setting: &Setting, event: Event, held: i64) -> Option<i64> {
    match event {
        Event::Gain => {
            let high = s.dice().pick(&[9, 30, 90]);
            let n = s.draw("n", 2, high);
            s.say(setting.gain);
            s.step(held, Add, n, setting.now)
        }
        Event::GainInGroups => {
            let (groups, each) = (s.draw("g", 2, 9), s.draw("m", 3, 12));
            s.say(setting.gain_in_groups);
            let gained = s.step(groups, Multiply, each, setting.gained)?;
            s.step(held, Add, gained, setting.now)
        }
        Event::Lose => {
            let high = s.dice().pick(&[9, 30, 95]);
            let n = s.draw("n", 2, held.min(high));
            s.say(setting.lose);
            s.step(held, Subtract, n, setting.left)
        }
        Event::LosePart => {
            let parts = [("half", 2), ("a third", 3), ("a quarter", 4), ("one fourth", 4)];
            let more = [("half", 2), ("one third", 3), ("a fifth", 5), ("one fifth", 5)];
            let (words, divisor) = s.dice().pick(&[parts, more].concat());
            s.text("part", words);
            s.say(setting.lose_part);
            let lost = s.step(held, Divide, divisor, setting.lost)?;
            s.step(held, Subtract, lost, setting.left)
        }
        Event::LosePercent => {
            let percent = s.draw_of("p", &[10, 20, 25, 50, 75]);
            s.text("part", "{p}%");
            s.say(setting.lose_part);
            let lost = s.step(held, Percent, percent, setting.lost)?;
            s.step(held, Subtract, lost, setting.left)
        }
        Event::Double => {
            let (words, factor) = s.dice().pick(&[("doubles", 2), ("triples", 3), ("doubles", 2)]);
            s.text("doubles", words);
            s.say(setting.double);
            s.step(held, Multiply, factor, setting.now)
        }
    }
}

fn ending(s: &mut Story, setting: &Setting, held: i64) -> Option<()> {
    if s.dice().chance(50) {
        let groups = s.draw("k", 2, 10);
        s.say(setting.split);
        s.step(held, Divide, groups, setting.split_line)?;
    } else {
        let price = s.draw("k", 2, 12);
        s.say(setting.price);
        s.step(held, Multiply, price, setting.price_line)?;
    }
    Some(())
}

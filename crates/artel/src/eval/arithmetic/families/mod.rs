//! The families of stories. Each draws a chain of operations and tells it in its own words.

mod backward;
mod comparison;
mod crowds;
mod earnings;
mod events;
mod farm;
mod holdings;
mod making;
mod measures;
mod money;
mod outlines;
mod reading;
mod settings;
mod sharing;
mod shopping;
mod sports;
mod together;
mod travel;

use super::dice::Dice;
use super::story::{Draft, Story};

/// Tells a story of the family; `None` if the quantities drawn break a limit.
type Family = fn(&mut Story) -> Option<()>;

/// Each family with its weight: the ones with more shapes come up more.
const FAMILIES: &[(Family, usize)] = &[
    (holdings::tell, 10),
    (comparison::people, 8),
    (comparison::days, 2),
    (comparison::places, 2),
    (shopping::basket, 4),
    (shopping::bulk, 1),
    (shopping::discount, 1),
    (events::takings, 1),
    (events::guests, 1),
    (earnings::wages, 1),
    (earnings::two_jobs, 1),
    (earnings::savings_goal, 1),
    (travel::legs, 1),
    (travel::commute, 1),
    (travel::fuel, 1),
    (making::batches, 2),
    (making::recipe, 1),
    (making::stand, 1),
    (crowds::part_of_crowd, 1),
    (crowds::seats, 1),
    (outlines::fence, 1),
    (outlines::floor, 1),
    (outlines::building, 1),
    (reading::book, 1),
    (reading::practice, 1),
    (reading::routine, 1),
    (backward::emptied, 1),
    (backward::number_riddle, 1),
    (sharing::pool, 1),
    (sharing::packs, 1),
    (sports::points, 1),
    (sports::laps, 1),
    (sports::ages, 1),
    (farm::feed, 1),
    (farm::harvest, 1),
    (together::transfer, 1),
    (together::teamwork, 1),
    (together::average, 1),
    (together::growth, 1),
    (money::budget, 1),
    (money::resale, 1),
    (money::allowance, 1),
    (money::subscription, 1),
    (money::two_shops, 1),
    (measures::dozens, 1),
    (measures::clock, 1),
    (measures::weights, 1),
    (measures::tank, 1),
    (measures::legs_and_wheels, 1),
    (measures::class, 1),
];

/// One problem of any family.
pub(super) fn draft(dice: &mut Dice) -> Draft {
    let family = pick_family(dice);
    loop {
        let mut story = Story::new(dice);
        if family(&mut story).is_none() {
            continue;
        }
        story.join_sentences();
        if let Some(draft) = story.finish() {
            return draft;
        }
    }
}

fn pick_family(dice: &mut Dice) -> Family {
    let total = FAMILIES.iter().map(|(_, weight)| weight).sum();
    let mut ticket = dice.below(total);
    for (family, weight) in FAMILIES {
        if ticket < *weight {
            return *family;
        }
        ticket -= weight;
    }
    panic!("this is a bug: ticket {ticket} is beyond the weights")
}

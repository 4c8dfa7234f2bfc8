//! The settings of the holdings family: the words for one kind of holder each.

mod people;
mod places;

use super::super::words::Noun;
use people::{BAKERY, COLLECTION, FARM, MONEY, PANTRY, STALL};
use places::{LIBRARY, NURSERY, POND, SCHOOL, STORE, TRAIN, WAREHOUSE};

/// The sentence forms of one setting. `{n}` is a quantity, `{g}` groups of `{m}`, `{part}` a
/// fraction ("half", "20%"), `{doubles}` a verb, `{k}` the number or price of the ending.
pub(super) struct Setting {
    pub(super) items: &'static [Noun],
    pub(super) start: &'static [&'static str],
    pub(super) start_in_groups: &'static [&'static str],
    pub(super) started: &'static str,
    pub(super) gain: &'static [&'static str],
    pub(super) gain_in_groups: &'static [&'static str],
    pub(super) gained: &'static str,
    pub(super) lose: &'static [&'static str],
    pub(super) lose_part: &'static [&'static str],
    pub(super) lost: &'static str,
    pub(super) double: &'static [&'static str],
    pub(super) now: &'static str,
    pub(super) left: &'static str,
    pub(super) ask: &'static [&'static str],
    pub(super) split: &'static [&'static str],
    pub(super) split_line: &'static str,
    pub(super) price: &'static [&'static str],
    pub(super) price_line: &'static str,
    pub(super) noise: &'static [&'static str],
}

pub(super) const SETTINGS: &[&Setting] = &[
    &COLLECTION,
    &COLLECTION,
    &PANTRY,
    &LIBRARY,
    &BAKERY,
    &STALL,
    &STORE,
    &NURSERY,
    &POND,
    &SCHOOL,
    &TRAIN,
    &WAREHOUSE,
    &FARM,
    &MONEY,
    &MONEY,
];

use std::{fmt, str::FromStr};

use rand_chacha::ChaCha8Rng;

use super::sample::uniform;
use crate::{
    MoeError,
    eplb::{LayerPlan, Placement},
};

/// Which copy of an expert serves a pair of token and expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyRule {
    /// A hash of the token: every copy alike.
    Hash,
    /// A hash of the token, copies in proportion to the plan's shares.
    Shares,
    /// Quotas of the batch: every source rank fills its own tokens in, without asking the others;
    /// a single source rank stands for tokens that all ranks see.
    WaterFill,
    /// The nearest copy, always the same one for a source rank: its own, one of its node, any.
    Nearest,
    /// One copy for each expert, so that ranks have few active experts.
    FewExperts,
}

impl CopyRule {
    /// Every rule with its name.
    const NAMES: [(&str, Self); 5] = [
        ("hash", Self::Hash),
        ("shares", Self::Shares),
        ("water-fill", Self::WaterFill),
        ("nearest", Self::Nearest),
        ("few-experts", Self::FewExperts),
    ];

    /// The name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Shares => "shares",
            Self::WaterFill => "water-fill",
            Self::Nearest => "nearest",
            Self::FewExperts => "few-experts",
        }
    }
}

impl FromStr for CopyRule {
    type Err = MoeError;

    fn from_str(text: &str) -> Result<Self, MoeError> {
        let named = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        let allowed = || Self::NAMES.map(|(name, _)| name).join(", ");
        let refuse = || MoeError::config("rule for copies", text, format!("one of {}", allowed()));
        named.map(|(_, rule)| rule).ok_or_else(refuse)
    }
}

impl fmt::Display for CopyRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Adds pairs to slots `[P]`, each to a copy drawn alike or by the plan's shares.
pub(super) fn draw_copies(
    counts: &[i32],
    plan: &LayerPlan,
    by_share: bool,
    random: &mut ChaCha8Rng,
    slot_loads: &mut [f64],
) {
    let of_slots = plan.shares.of_slots();
    for (expert, &count) in counts.iter().enumerate() {
        let copies = replicas(&plan.placement, expert);
        if let [only] = copies {
            slot_loads[*only as usize] += f64::from(count);
            continue;
        }
        for _ in 0..count {
            let mut at = uniform(random);
            let position = match by_share {
                false => (at * copies.len() as f64) as usize,
                true => {
                    let ends_in = |slot: &i32| {
                        at -= of_slots[*slot as usize];
                        at < 0.0
                    };
                    copies.iter().position(ends_in).unwrap_or(copies.len() - 1)
                }
            };
            slot_loads[copies[position] as usize] += 1.0;
        }
    }
}

/// Adds pairs of the experts `[L]` to the copies `[L]` that all of them take.
pub(super) fn add_to_copies(counts: &[i32], copies: &[i32], slot_loads: &mut [f64]) {
    for (&count, &slot) in counts.iter().zip(copies) {
        slot_loads[slot as usize] += f64::from(count);
    }
}

/// Adds quotas `[P]` to slots.
pub(super) fn add_quotas(quotas: &[u32], slot_loads: &mut [f64]) {
    slot_loads.iter_mut().zip(quotas).for_each(|(load, quota)| *load += f64::from(*quota));
}

fn replicas(placement: &Placement, expert: usize) -> &[i32] {
    placement.replicas(expert as i32)
}

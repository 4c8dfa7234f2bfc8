use super::Placement;
use crate::MoeError;

/// Which part of its expert's tokens each slot gets, `[P]`. The parts of an expert add up to 1; an
/// empty slot gets none. Changing shares balances load without moving a single weight.
///
/// ```
/// use artel_moe::eplb::{Placement, Shares};
/// let placement = Placement::new(vec![0, 1, 0, -1], 2)?;
/// assert_eq!(Shares::equal(&placement).of_slots(), [0.5, 1.0, 0.5, 0.0]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Shares(Vec<f64>);

/// How far the parts of an expert may be from 1 in sum.
const SUM_TOLERANCE: f64 = 1e-6;

impl Shares {
    /// Every copy of an expert gets the same part.
    pub fn equal(placement: &Placement) -> Self {
        let counts = placement.logical_replica_count();
        let share = |&logical: &i32| {
            usize::try_from(logical).map_or(0.0, |logical| 1.0 / f64::from(counts[logical]))
        };
        Self(placement.physical_to_logical().iter().map(share).collect())
    }

    /// Shares that somebody computed.
    ///
    /// # Errors
    /// [`MoeError`] for a share below 0 or above 1, one of an empty slot, or an expert whose shares
    /// do not add up to 1.
    pub fn new(of_slots: Vec<f64>, placement: &Placement) -> Result<Self, MoeError> {
        MoeError::check_shape("shares", placement.num_physical(), of_slots.len())?;
        let mut sums = vec![0.0; placement.num_logical()];
        let slots = of_slots.iter().zip(placement.physical_to_logical());
        for (slot, (&share, &logical)) in slots.enumerate() {
            let (most, sum) = match usize::try_from(logical) {
                Ok(logical) => (1.0, Some(&mut sums[logical])),
                Err(_) => (0.0, None),
            };
            if !(0.0..=most + SUM_TOLERANCE).contains(&share) {
                return Err(MoeError::element("shares", slot, share, format!("0 to {most}")));
            }
            sum.into_iter().for_each(|sum| *sum += share);
        }
        match sums.iter().position(|sum| (sum - 1.0).abs() > SUM_TOLERANCE) {
            None => Ok(Self(of_slots)),
            Some(expert) => {
                let what = "sums of the shares of experts";
                Err(MoeError::element(what, expert, sums[expert], "1"))
            }
        }
    }

    /// Shares in proportion to weights `[P]`, such as loads that somebody computed. An expert whose
    /// copies all have weight 0 is shared evenly.
    ///
    /// # Errors
    /// [`MoeError`] for a weight that is negative or not finite, or one of an empty slot.
    pub fn in_proportion(weights: &[f64], placement: &Placement) -> Result<Self, MoeError> {
        MoeError::check_shape("weights of slots", placement.num_physical(), weights.len())?;
        let mut sums = vec![0.0; placement.num_logical()];
        for (slot, (&weight, &logical)) in
            weights.iter().zip(placement.physical_to_logical()).enumerate()
        {
            let expert = usize::try_from(logical).ok();
            if !(weight >= 0.0 && weight.is_finite()) || expert.is_none() && weight > 0.0 {
                let allowed = if expert.is_some() { "0 or more, and finite" } else { "0" };
                return Err(MoeError::element("weights of slots", slot, weight, allowed));
            }
            expert.into_iter().for_each(|expert| sums[expert] += weight);
        }
        let Self(mut shares) = Self::equal(placement);
        let slots = shares.iter_mut().zip(weights).zip(placement.physical_to_logical());
        for ((share, weight), &logical) in slots {
            if let Some(&sum) = usize::try_from(logical).ok().and_then(|expert| sums.get(expert))
                && sum > 0.0
            {
                *share = weight / sum;
            }
        }
        Self::new(shares, placement)
    }

    /// The part of each slot, `[P]`.
    pub fn of_slots(&self) -> &[f64] {
        &self.0
    }

    /// Load of each slot, `[P]`, when the experts have `load` `[L]`.
    pub fn slot_loads(&self, placement: &Placement, load: &[f64]) -> Vec<f64> {
        let of_slot = |(&share, &logical): (&f64, &i32)| {
            usize::try_from(logical).map_or(0.0, |logical| share * load[logical])
        };
        self.0.iter().zip(placement.physical_to_logical()).map(of_slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        let placement = Placement::new(vec![0, 1, 0, -1], 2).unwrap();
        let shares = Shares::new(vec![0.25, 1.0, 0.75, 0.0], &placement).unwrap();
        assert_eq!(shares.slot_loads(&placement, &[8.0, 3.0]), [2.0, 3.0, 6.0, 0.0]);
        for wrong in [
            vec![0.5, 1.0, 0.25, 0.0],
            vec![0.5, 1.0, 0.5, 0.5],
            vec![-0.5, 1.0, 1.5, 0.0],
            vec![f64::NAN, 1.0, 0.5, 0.0],
            vec![0.5, 1.0, 0.5],
        ] {
            assert!(Shares::new(wrong, &placement).is_err());
        }
    }

    #[test]
    fn weights_become_shares() {
        let placement = Placement::new(vec![0, 1, 0, -1, 1], 2).unwrap();
        let shares = Shares::in_proportion(&[3.0, 0.0, 1.0, 0.0, 0.0], &placement).unwrap();
        assert_eq!(shares.of_slots(), [0.75, 0.5, 0.25, 0.0, 0.5]);
        for wrong in [
            vec![-1.0, 1.0, 1.0, 0.0, 1.0],
            vec![f64::NAN, 1.0, 1.0, 0.0, 1.0],
            vec![f64::MAX, 1.0, f64::MAX, 0.0, 1.0],
            vec![1.0, 1.0, 1.0, 0.5, 1.0],
            vec![1.0; 4],
        ] {
            assert!(Shares::in_proportion(&wrong, &placement).is_err(), "{wrong:?}");
        }
    }
}

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
}

//! Combine: the weighted sum over the `K` slots of each token, back in token order.
//!
//! `out[t] = sum over k of weights[t, k] * rows[t * K + k]`, in float32, `k` ascending, and one cast
//! at the end. Zero experts add `identity[t] * hidden_states[t]` before the slots. A slot whose expert is not computed here is skipped: its row is never read.
//!
//! Example, `K = 2`: ids `[3, -1]`, weights `[0.25, 0.75]` and rows `[[8], [anything]]` give `[2]`.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub use cpu::combine;

use crate::MoeError;

/// Which experts are computed here.
#[derive(Debug, Clone, Copy)]
pub enum Locality<'a> {
    /// All of `0..num_experts`.
    All {
        /// `E`.
        num_experts: usize,
    },
    /// Those whose entry is not negative; one entry per global expert.
    Map(&'a [i32]),
}

impl Locality<'_> {
    /// Whether the row of a slot with this expert has been computed.
    #[inline]
    pub fn computes(&self, expert: i32) -> bool {
        let Ok(expert) = usize::try_from(expert) else { return false };
        match self {
            Self::All { num_experts } => expert < *num_experts,
            Self::Map(map) => map.get(expert).is_some_and(|&local| local >= 0),
        }
    }
}

/// What each row is multiplied by.
#[derive(Debug, Clone, Copy)]
pub enum RowWeights<'a> {
    /// One: the router's weights are applied in another step.
    One,
    /// The router's weight of each (token, slot), `[T, K]`.
    Routed(&'a [f32]),
}

impl RowWeights<'_> {
    /// Weight of one (token, slot).
    #[inline(always)]
    pub fn of(&self, pair: usize) -> f32 {
        match self {
            Self::One => 1.0,
            Self::Routed(weights) => weights[pair],
        }
    }

    pub(crate) fn check(&self, pairs: usize) -> Result<(), MoeError> {
        match self {
            Self::One => Ok(()),
            Self::Routed(weights) => MoeError::check_shape("router weights", pairs, weights.len()),
        }
    }
}

/// The slots of all tokens.
#[derive(Debug, Clone, Copy)]
pub struct Slots<'a> {
    /// Expert of each (token, slot), `[T, K]`.
    pub ids: &'a [i32],
    /// Weight of each (token, slot).
    pub weights: RowWeights<'a>,
    /// `K`.
    pub top_k: usize,
    /// Which experts have rows.
    pub locality: Locality<'a>,
}

/// What zero experts add: a share of each token's unchanged hidden state.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a, A> {
    /// Share of each token, `[T]`.
    pub weights: &'a [f32],
    /// `[T, H]`.
    pub hidden_states: &'a [A],
}

/// What is combined.
#[derive(Debug, Clone, Copy)]
pub struct Combine<'a, A> {
    /// The slots of all tokens.
    pub slots: Slots<'a>,
    /// Output of the experts, `[T * K, H]`.
    pub rows: &'a [A],
    /// Added first, where the router has zero experts.
    pub identity: Option<Identity<'a, A>>,
}

impl<A> Combine<'_, A> {
    /// Checks all shapes against `out` numbers of output, and returns `H`.
    fn hidden_size(&self, out: usize) -> Result<usize, MoeError> {
        let hidden_size = self.slots.hidden_size(self.rows.len(), out)?;
        if let Some(identity) = &self.identity {
            let tokens = self.slots.ids.len() / self.slots.top_k;
            MoeError::check_shape("identity weights", tokens, identity.weights.len())?;
            MoeError::check_shape(
                "hidden states of the identity",
                out,
                identity.hidden_states.len(),
            )?;
        }
        Ok(hidden_size)
    }
}

impl Slots<'_> {
    /// Checks that `rows` is `[T * K, H]` and `out` `[T, H]`, and returns `H`.
    fn hidden_size(&self, rows: usize, out: usize) -> Result<usize, MoeError> {
        if self.top_k == 0 || !self.ids.len().is_multiple_of(self.top_k) {
            let allowed = format!("a divisor of the {} slots", self.ids.len());
            return Err(MoeError::config("top_k", self.top_k, allowed));
        }
        self.weights.check(self.ids.len())?;
        let tokens = self.ids.len() / self.top_k;
        let hidden_size = out.checked_div(tokens).unwrap_or(0);
        MoeError::check_shape("combined hidden states", tokens * hidden_size, out)?;
        MoeError::check_shape("rows to combine", tokens * self.top_k * hidden_size, rows)?;
        Ok(hidden_size)
    }
}

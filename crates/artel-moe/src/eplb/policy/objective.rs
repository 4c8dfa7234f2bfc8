use super::{Batch, Copies, few_experts, water_fill};
use crate::MoeError;

/// What makes a rank slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Computing tokens: [`water_fill`].
    Tokens,
    /// Reading the weights of experts that have tokens at all: [`few_experts`].
    ActiveExperts,
}

impl Objective {
    /// The objective of a batch with so many tokens an expert that has any. Below the knee of the
    /// roofline, `knee` tokens an expert, weights are read for longer than tokens are computed.
    ///
    /// ```
    /// use artel_moe::eplb::policy::Objective;
    /// assert_eq!(Objective::for_batch(4.0, 64.0), Objective::ActiveExperts);
    /// assert_eq!(Objective::for_batch(64.0, 64.0), Objective::Tokens);
    /// ```
    pub fn for_batch(tokens_per_active_expert: f64, knee: f64) -> Self {
        if tokens_per_active_expert < knee { Self::ActiveExperts } else { Self::Tokens }
    }
}

/// Pairs of each slot, `[P]`, under an objective. A rank that deals out its tokens alone cannot know
/// which experts the others activate: for [`Batch::OfRank`] the objective must be
/// [`Objective::Tokens`].
///
/// # Errors
/// [`MoeError`] for counts `[L]` of other experts, a rank that does not exist, or a batch of one rank
/// under [`Objective::ActiveExperts`].
pub fn quotas(
    objective: Objective,
    counts: &[u32],
    copies: &Copies,
    batch: Batch,
) -> Result<Vec<u32>, MoeError> {
    match (objective, batch) {
        (Objective::Tokens, _) => water_fill(counts, copies, batch),
        (Objective::ActiveExperts, Batch::Replicated) => few_experts(counts, copies),
        (Objective::ActiveExperts, Batch::OfRank(_)) => {
            let allowed = "Tokens for the batch of one rank";
            Err(MoeError::config("objective", "ActiveExperts", allowed))
        }
    }
}

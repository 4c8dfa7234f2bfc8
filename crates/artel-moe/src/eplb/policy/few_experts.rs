use super::{Batch, Copies, water_fill::fill};
use crate::MoeError;

/// Quotas `[P]` with which every expert that has pairs is computed by one slot alone, and the rank
/// with most such experts has as few as possible (METRO, arXiv 2512.09277). With few tokens an
/// expert costs the reading of its weights, whatever its number of tokens: splitting its pairs reads
/// the weights twice. All ranks must know the `counts` `[L]` of all tokens, or each of them picks
/// another copy.
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::{Copies, few_experts}};
/// let placement = Placement::new(vec![0, 1, 0, 2], 3)?;
/// let copies = Copies::new(&placement, &Cluster::new(2, 2)?)?;
/// assert_eq!(few_experts(&[8, 0, 2], &copies)?, [8, 0, 0, 2]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError::Shape`] for counts of other experts.
pub fn few_experts(counts: &[u32], copies: &Copies) -> Result<Vec<u32>, MoeError> {
    // An expert is one whole thing that weighs 1: the same problem as that of whole pairs.
    let active: Vec<u32> = counts.iter().map(|&count| count.min(1)).collect();
    let seats = fill(&active, copies, Batch::Replicated)?;
    let mut quotas = vec![0; copies.num_physical()];
    for (seat, active) in seats.into_iter().enumerate() {
        if active > 0 {
            let slot = copies.slots_of(seat)[0] as usize;
            quotas[slot] = counts[copies.expert_of[seat] as usize];
        }
    }
    Ok(quotas)
}

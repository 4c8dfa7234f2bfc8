use std::fmt;

/// Pairs times this must not exceed the number of experts for the direct form: then only a small
/// share of the experts is active and hardly any of them twice.
pub const SPARSITY_FACTOR: usize = 4;

/// Which form of assignment serves a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssignmentPath {
    /// One pair a block; nothing is sorted.
    Direct,
    /// Pairs sorted by expert, and why.
    Aligned(AlignedBecause),
}

/// What rules the direct form out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlignedBecause {
    /// Some experts live on other ranks, so ids must be translated.
    ExpertMap,
    /// Weights live in host memory; the direct form reads an expert once for each of its pairs
    /// and would do so across the bus.
    HostWeights,
    /// The batch activates too many experts.
    ManyPairs,
    /// Kernels for integer weights with scales by group need sorted ids.
    GroupedIntegerWeights,
}

impl fmt::Display for AlignedBecause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ExpertMap => "experts are spread over ranks",
            Self::HostWeights => "weights live in host memory",
            Self::ManyPairs => "tokens * top_k * 4 exceeds the number of experts",
            Self::GroupedIntegerWeights => "integer weights with group scales need sorted ids",
        })
    }
}

/// Everything the choice between direct and aligned depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathQuery {
    /// Tokens of the batch, `T`.
    pub tokens: usize,
    /// Experts a token, `K`.
    pub top_k: usize,
    /// Experts of the whole model, `E`, not only of this rank.
    pub num_experts: usize,
    /// Whether ids pass through an expert map.
    pub has_expert_map: bool,
    /// Whether expert weights live in host memory and are read across the bus.
    pub weights_on_host: bool,
    /// Whether weights are integers (4 or 8 bits) with scales by group of input columns.
    pub grouped_integer_weights: bool,
}

/// The rule of vLLM's low-latency assignment (pull request #39016): direct when nothing speaks
/// against it and `tokens * top_k * 4 <= num_experts`.
///
/// ```
/// use artel_moe::assignment::{PathQuery, AssignmentPath, AlignedBecause, choose_path};
/// let minimax = PathQuery { tokens: 8, top_k: 8, num_experts: 256, ..PathQuery::default() };
/// assert_eq!(choose_path(&minimax), AssignmentPath::Direct);
/// let larger = PathQuery { tokens: 9, ..minimax };
/// assert_eq!(choose_path(&larger), AssignmentPath::Aligned(AlignedBecause::ManyPairs));
/// ```
pub fn choose_path(query: &PathQuery) -> AssignmentPath {
    let pairs = query.tokens.saturating_mul(query.top_k);
    if query.has_expert_map {
        AssignmentPath::Aligned(AlignedBecause::ExpertMap)
    } else if query.weights_on_host {
        AssignmentPath::Aligned(AlignedBecause::HostWeights)
    } else if query.grouped_integer_weights {
        AssignmentPath::Aligned(AlignedBecause::GroupedIntegerWeights)
    } else if pairs.saturating_mul(SPARSITY_FACTOR) > query.num_experts {
        AssignmentPath::Aligned(AlignedBecause::ManyPairs)
    } else {
        AssignmentPath::Direct
    }
}

/// Most tokens that the direct form serves by the count of pairs alone; 0 when it serves none.
pub fn direct_tokens_max(top_k: usize, num_experts: usize) -> usize {
    num_experts / SPARSITY_FACTOR / top_k.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_where_the_published_rule_has_it() {
        for (num_experts, top_k, tokens_max) in
            [(256, 8, 8), (128, 8, 4), (128, 4, 8), (8, 2, 1), (32, 4, 2), (7, 2, 0), (512, 22, 5)]
        {
            let query = |tokens| PathQuery { tokens, top_k, num_experts, ..PathQuery::default() };
            assert_eq!(choose_path(&query(tokens_max)), AssignmentPath::Direct);
            let beyond = choose_path(&query(tokens_max + 1));
            assert_eq!(beyond, AssignmentPath::Aligned(AlignedBecause::ManyPairs));
            assert_eq!(direct_tokens_max(top_k, num_experts), tokens_max);
        }
    }

    #[test]
    fn every_other_condition_rules_it_out_alone() {
        let fits = PathQuery { tokens: 1, top_k: 2, num_experts: 8, ..PathQuery::default() };
        let mapped = PathQuery { has_expert_map: true, ..fits };
        let on_host = PathQuery { weights_on_host: true, ..fits };
        let integer = PathQuery { grouped_integer_weights: true, ..fits };
        for (query, why) in [
            (mapped, AlignedBecause::ExpertMap),
            (on_host, AlignedBecause::HostWeights),
            (integer, AlignedBecause::GroupedIntegerWeights),
        ] {
            assert_eq!(choose_path(&query), AssignmentPath::Aligned(why));
        }
    }

    #[test]
    fn huge_counts_do_not_wrap() {
        let tokens = usize::MAX / 2;
        let query = PathQuery { tokens, top_k: 8, num_experts: 256, ..PathQuery::default() };
        assert_eq!(choose_path(&query), AssignmentPath::Aligned(AlignedBecause::ManyPairs));
        assert_eq!(direct_tokens_max(0, 256), 64);
    }
}

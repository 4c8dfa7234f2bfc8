//! MoePlan: what serves which batch sizes on the CPU of the host.

use std::fmt;

use artel_device::cpu::{CpuFeatures, Isa};

use crate::assignment::AssignmentPath;
use crate::config::{MoeConfig, Parallelism};
use crate::grouped_gemm::{GemmFormat, TILE_ROWS};

/// Tokens that pass through the layer at a time unless the caller wants otherwise. Beyond some
/// hundred rows an expert, reading weights again costs little and intermediates would fill memory.
pub const TOKENS_PER_STEP: usize = 4096;

/// How one range of batch sizes is served.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// Smallest batch, in tokens.
    pub tokens_min: usize,
    /// Largest batch.
    pub tokens_max: usize,
    /// How pairs are brought to their experts.
    pub assignment: PlannedAssignment,
    /// Instruction set and units of the products.
    pub kernel: &'static str,
    /// Why this and nothing else.
    pub because: String,
}

impl PlanEntry {
    /// Assignment and kernel in a few words.
    pub fn path(&self) -> String {
        format!("{}, {}", self.assignment, self.kernel)
    }
}

impl fmt::Display for PlannedAssignment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => formatter.pad("direct"),
            Self::Aligned { block_size } => formatter.pad(&format!("aligned/{block_size}")),
        }
    }
}

/// The form of assignment that serves a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlannedAssignment {
    /// One pair a block, nothing is sorted.
    Direct,
    /// Sorted by expert and padded.
    Aligned {
        /// Pairs a block holds.
        block_size: usize,
    },
}

/// What serves every batch size of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct MoePlan {
    format: &'static str,
    isa: Isa,
    tokens_per_step: usize,
    entries: Vec<PlanEntry>,
}

impl MoePlan {
    /// The plan of a layer with experts of format `F` on this processor.
    pub fn new<F: GemmFormat>(config: &MoeConfig, features: CpuFeatures) -> Self {
        let aligned = |tokens_min, because: &str| aligned::<F>(tokens_min, features, because);
        let entries = match config.parallelism() {
            Parallelism::Expert(_) => {
                vec![aligned(1, "experts are spread over ranks, so ids are translated")]
            }
            Parallelism::Single | Parallelism::Tensor { .. } => {
                let direct = PlanEntry {
                    tokens_max: 1,
                    assignment: PlannedAssignment::Direct,
                    because: "one token's experts differ, so there is nothing to sort".to_owned(),
                    ..aligned(1, "")
                };
                vec![direct, aligned(2, "each expert is read once for all its rows")]
            }
        };
        Self { format: F::NAME, isa: features.isa(), tokens_per_step: TOKENS_PER_STEP, entries }
    }

    /// The plan of a layer whose experts are computed by so many ranks on this processor.
    pub fn on_ranks<F: GemmFormat>(ranks: usize, features: CpuFeatures) -> Self {
        let features = features.with_invariant_rows();
        let because = format!("{ranks} ranks compute rows alike, so that experts may move");
        let entries = vec![aligned::<F>(1, features, &because)];
        Self { format: F::NAME, isa: features.isa(), tokens_per_step: TOKENS_PER_STEP, entries }
    }

    /// The same with every batch served by one form of assignment, for comparisons.
    pub fn with_assignment(mut self, assignment: AssignmentPath) -> Self {
        let (assignment, because) = match assignment {
            AssignmentPath::Direct => (PlannedAssignment::Direct, "asked for: direct".to_owned()),
            AssignmentPath::Aligned(why) => {
                (PlannedAssignment::Aligned { block_size: TILE_ROWS }, why.to_string())
            }
        };
        let last = self.entries.pop().expect("this is a bug: a plan without entries");
        self.entries = vec![PlanEntry { tokens_min: 1, assignment, because, ..last }];
        self
    }

    /// Number format of the experts.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Strongest instruction set used.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Larger batches are cut into steps of so many tokens.
    pub fn tokens_per_step(&self) -> usize {
        self.tokens_per_step
    }

    /// All ranges of batch sizes, ascending and without gaps.
    pub fn entries(&self) -> &[PlanEntry] {
        &self.entries
    }

    /// What serves a step of `tokens` tokens.
    pub fn entry(&self, tokens: usize) -> &PlanEntry {
        let entry = self.entries.iter().find(|entry| tokens <= entry.tokens_max);
        entry.expect("this is a bug: a step longer than the plan's")
    }
}

/// All batches of `tokens_min` tokens and more, sorted by expert.
fn aligned<F: GemmFormat>(tokens_min: usize, features: CpuFeatures, because: &str) -> PlanEntry {
    PlanEntry {
        tokens_min,
        tokens_max: TOKENS_PER_STEP,
        assignment: PlannedAssignment::Aligned { block_size: TILE_ROWS },
        kernel: F::kernel(features).name(),
        because: because.to_owned(),
    }
}

impl fmt::Display for MoePlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "experts in {} on {}", self.format, self.isa)?;
        writeln!(formatter, "{:>12}  {:<12} {:<20} because", "tokens", "assignment", "kernel")?;
        for entry in &self.entries {
            let tokens = format!("{}-{}", entry.tokens_min, entry.tokens_max);
            let PlanEntry { assignment, kernel, because, .. } = entry;
            writeln!(formatter, "{tokens:>12}  {assignment:<12} {kernel:<20} {because}")?;
        }
        write!(formatter, "larger batches run in steps of {} tokens", self.tokens_per_step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::assignment::AlignedBecause;
    use crate::config::MoeShape;
    use crate::eplb::{EpRank, ExpertMap, ExpertPlacement};
    use crate::quant::Bf16;

    fn config() -> MoeConfig {
        let shape = MoeShape { hidden_size: 8, intermediate_size: 8, num_experts: 4, top_k: 2 };
        MoeConfig::new(shape, Activation::Silu).unwrap()
    }

    #[test]
    fn every_batch_size_has_one_entry() {
        let plan = MoePlan::new::<Bf16>(&config(), CpuFeatures::detect());
        assert_eq!(plan.entry(0).assignment, PlannedAssignment::Direct);
        assert_eq!(plan.entry(1).assignment, PlannedAssignment::Direct);
        assert_eq!(plan.entry(2).assignment, PlannedAssignment::Aligned { block_size: 16 });
        assert_eq!(plan.entry(TOKENS_PER_STEP).tokens_min, 2);
        for pair in plan.entries().windows(2) {
            assert_eq!(pair[0].tokens_max + 1, pair[1].tokens_min);
        }
    }

    #[test]
    fn spread_experts_are_always_sorted_and_choices_can_be_forced() {
        let map = ExpertMap::new(4, ExpertPlacement::Linear, EpRank::new(0, 2).unwrap()).unwrap();
        let config = config().with_parallelism(Parallelism::Expert(map)).unwrap();
        let plan = MoePlan::new::<Bf16>(&config, CpuFeatures::detect());
        assert!(matches!(plan.entry(1).assignment, PlannedAssignment::Aligned { .. }));
        let forced = plan.clone().with_assignment(AssignmentPath::Direct);
        assert_eq!(forced.entry(4000).assignment, PlannedAssignment::Direct);
        let because = AssignmentPath::Aligned(AlignedBecause::ManyPairs);
        assert_eq!(forced.with_assignment(because).entry(1).tokens_min, 1);
        assert!(plan.to_string().contains("aligned/16"), "{plan}");
    }
}

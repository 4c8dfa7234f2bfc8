use std::fmt;

use crate::MoeError;

/// What turns the logit of every expert into its score, in float32. A score that comes out NaN or
/// infinite counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoringFunction {
    /// `exp(x - max) / sum`, over all experts of the token.
    Softmax,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `sqrt(ln(1 + exp(x)))` (DeepSeek-V4).
    SqrtSoftplus,
}

/// How the scores of the selected experts become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalization {
    /// The score is the weight.
    AsIs,
    /// Divided by the sum over the selected experts; by 1 when that sum is not positive.
    Renormalize,
}

/// What turns the logits of the selected experts into weights when selection looks at the logits
/// themselves. A logit that is NaN or infinite is selected last and weighs 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectedFunction {
    /// Softmax over the selected experts alone.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// The logit is the weight.
    Logit,
}

/// Whether experts are scored before or after they are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Every expert is scored, the best scores are selected.
    BeforeSelection(ScoringFunction, Normalization),
    /// The best logits are selected, then only these are scored.
    AfterSelection(SelectedFunction),
}

/// Which experts may be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    TopK,
    /// Only those of the best groups. Experts are split evenly into `groups` runs of consecutive
    /// ids; a group is worth the sum of its two best keys when there is a selection bias and its
    /// best key otherwise.
    Grouped {
        /// Number of groups, `n_group`; divides the number of logits.
        groups: usize,
        /// Groups whose experts stay selectable, `topk_group`.
        groups_kept: usize,
    },
}

/// Whether a learned number per expert is added to the score for selection. Weights never see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectionBias {
    /// Selection looks at the scores.
    None,
    /// Selection looks at score + bias (`e_score_correction_bias`).
    PerExpert,
}

/// How a model picks experts: three independent choices. The functions name the published ones.
///
/// Sources: Switch and Mixtral (softmax), DeepSeek-V2 and -V3 technical reports (groups, bias),
/// the model code of MiniMax-M2, Llama 4 and DeepSeek-V4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingMethod {
    /// When and how experts are scored.
    pub scoring: Scoring,
    /// Which experts may be selected.
    pub selection: Selection,
    /// Whether selection is biased.
    pub bias: SelectionBias,
}

impl RoutingMethod {
    /// Softmax over all experts; the scores of the best are the weights.
    pub const fn softmax() -> Self {
        Self::scored(ScoringFunction::Softmax, Normalization::AsIs)
    }

    /// Softmax over all experts, weights renormalised (Mixtral, Qwen3).
    pub const fn softmax_renormalize() -> Self {
        Self::scored(ScoringFunction::Softmax, Normalization::Renormalize)
    }

    /// The best logits, then softmax over these (gpt-oss).
    pub const fn top_k_then_softmax() -> Self {
        Self::selected(SelectedFunction::Softmax)
    }

    /// Sigmoid scores as weights.
    pub const fn sigmoid() -> Self {
        Self::scored(ScoringFunction::Sigmoid, Normalization::AsIs)
    }

    /// Sigmoid scores, weights renormalised.
    pub const fn sigmoid_renormalize() -> Self {
        Self::scored(ScoringFunction::Sigmoid, Normalization::Renormalize)
    }

    /// MiniMax-M2: sigmoid scores selected with a bias, unbiased weights renormalised.
    pub const fn minimax2() -> Self {
        Self::sigmoid_renormalize().with_bias()
    }

    /// DeepSeek-V2: softmax scores of the best groups.
    pub const fn deepseek_v2(groups: usize, groups_kept: usize) -> Self {
        Self::softmax().with_groups(groups, groups_kept)
    }

    /// DeepSeek-V3, GLM-4.5: sigmoid scores selected with a bias from the best groups, unbiased
    /// weights renormalised.
    pub const fn deepseek_v3(groups: usize, groups_kept: usize) -> Self {
        Self::minimax2().with_groups(groups, groups_kept)
    }

    /// DeepSeek-V4: square root of softplus, weights renormalised. Its biased layers add
    /// [`with_bias`](Self::with_bias).
    pub const fn deepseek_v4() -> Self {
        Self::scored(ScoringFunction::SqrtSoftplus, Normalization::Renormalize)
    }

    /// Llama 4: the best logit, weighed by its sigmoid. Made for top-1, and its weight multiplies
    /// the expert's input, not its output.
    pub const fn llama4() -> Self {
        Self::selected(SelectedFunction::Sigmoid)
    }

    /// The best logits, which are also the weights.
    pub const fn top_k_logits() -> Self {
        Self::selected(SelectedFunction::Logit)
    }

    /// The same method with a selection bias.
    pub const fn with_bias(self) -> Self {
        Self { bias: SelectionBias::PerExpert, ..self }
    }

    /// The same method restricted to the best groups.
    pub const fn with_groups(self, groups: usize, groups_kept: usize) -> Self {
        Self { selection: Selection::Grouped { groups, groups_kept }, ..self }
    }

    /// The name this method has in vLLM and FlashInfer. Groups are part of the name only together
    /// with a bias, scaling never is.
    pub const fn published_type(&self) -> RoutingMethodType {
        use RoutingMethodType as Name;
        let (function, normalization) = match self.scoring {
            Scoring::AfterSelection(SelectedFunction::Softmax) => return Name::Renormalize,
            Scoring::AfterSelection(SelectedFunction::Sigmoid) => return Name::Llama4,
            Scoring::AfterSelection(SelectedFunction::Logit) => return Name::TopK,
            Scoring::BeforeSelection(function, normalization) => (function, normalization),
        };
        match (function, normalization, self.bias, self.selection) {
            (ScoringFunction::SqrtSoftplus, Normalization::Renormalize, ..) => Name::DeepseekV4,
            (ScoringFunction::SqrtSoftplus, ..) => Name::Unspecified,
            (
                ScoringFunction::Sigmoid,
                Normalization::Renormalize,
                SelectionBias::PerExpert,
                Selection::Grouped { .. },
            ) => Name::DeepSeekV3,
            (
                ScoringFunction::Sigmoid,
                Normalization::Renormalize,
                SelectionBias::PerExpert,
                Selection::TopK,
            ) => Name::MiniMax2,
            (_, _, SelectionBias::PerExpert, _) => Name::Unspecified,
            (ScoringFunction::Sigmoid, Normalization::Renormalize, ..) => Name::SigmoidRenorm,
            (ScoringFunction::Sigmoid, Normalization::AsIs, ..) => Name::Sigmoid,
            (ScoringFunction::Softmax, Normalization::Renormalize, ..) => Name::RenormalizeNaive,
            (ScoringFunction::Softmax, Normalization::AsIs, ..) => Name::Default,
        }
    }

    const fn scored(function: ScoringFunction, normalization: Normalization) -> Self {
        Self {
            scoring: Scoring::BeforeSelection(function, normalization),
            selection: Selection::TopK,
            bias: SelectionBias::None,
        }
    }

    const fn selected(function: SelectedFunction) -> Self {
        Self {
            scoring: Scoring::AfterSelection(function),
            selection: Selection::TopK,
            bias: SelectionBias::None,
        }
    }
}

/// Names and numbers of routing methods as vLLM (`RoutingMethodType`) and FlashInfer publish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum RoutingMethodType {
    /// Softmax, then top-k.
    Default = 0,
    /// Top-k, then softmax.
    Renormalize = 1,
    /// Sigmoid, bias, groups by the sum of their two best, top-k, renormalised.
    DeepSeekV3 = 2,
    /// Top-1, then sigmoid.
    Llama4 = 3,
    /// Softmax, top-k, renormalised.
    RenormalizeNaive = 4,
    /// The logits of the top-k.
    TopK = 5,
    /// Sigmoid, top-k, renormalised.
    SigmoidRenorm = 6,
    /// Sigmoid, bias, top-k, renormalised.
    MiniMax2 = 7,
    /// Sigmoid, top-k.
    Sigmoid = 8,
    /// Any other combination.
    Unspecified = 9,
    /// Square root of softplus, top-k, renormalised.
    DeepseekV4 = 100,
}

impl fmt::Display for RoutingMethodType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// Experts that every token uses, run as if they had been routed to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusedSharedExperts {
    /// How many: their ids are `E .. E + count`, appended behind the routed ones.
    pub count: usize,
    /// Weight of each; the routed scaling factor does not touch it.
    pub weight: f32,
}

/// A legal router: what the constructor refuses cannot exist.
///
/// ```
/// use artel_moe::router::{RouterConfig, RoutingMethod};
/// let config = RouterConfig::new(RoutingMethod::deepseek_v3(8, 4), 256, 8)?
///     .with_routed_scaling_factor(2.5)?;
/// assert_eq!(config.method().published_type().to_string(), "DeepSeekV3");
/// assert!(RouterConfig::new(RoutingMethod::softmax(), 4, 5).is_err(), "5 of 4 experts");
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    method: RoutingMethod,
    num_experts: usize,
    top_k: usize,
    routed_scaling_factor: f32,
    shared: FusedSharedExperts,
    zero_experts: usize,
}

impl RouterConfig {
    /// Most experts a router knows: ids must survive packing into 16 bits.
    pub const EXPERTS_MAX: usize = 1 << 15;

    /// A router over `num_experts` experts that picks `top_k` of them for each token.
    ///
    /// # Errors
    /// [`MoeError::Config`] for counts or groups that do not fit together.
    pub fn new(method: RoutingMethod, num_experts: usize, top_k: usize) -> Result<Self, MoeError> {
        let config = Self {
            method,
            num_experts,
            top_k,
            routed_scaling_factor: 1.0,
            shared: FusedSharedExperts { count: 0, weight: 1.0 },
            zero_experts: 0,
        };
        config.checked()
    }

    /// Multiplies every routed weight by `factor`, after normalisation.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the factor is not finite.
    pub fn with_routed_scaling_factor(mut self, factor: f32) -> Result<Self, MoeError> {
        self.routed_scaling_factor = factor;
        self.checked()
    }

    /// Appends `count` shared experts with a fixed `weight` behind the routed ones of each token.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the ids leave their range or the weight is not finite.
    pub fn with_fused_shared_experts(
        mut self,
        count: usize,
        weight: f32,
    ) -> Result<Self, MoeError> {
        self.shared = FusedSharedExperts { count, weight };
        self.checked()
    }

    /// Adds `count` experts that return their input unchanged (LongCat). Their logits follow
    /// those of the real experts; where one is selected the result is id 0 with weight 0, and its
    /// weight is added to [`Routing::identity_weights`](super::Routing::identity_weights).
    ///
    /// # Errors
    /// [`MoeError::Config`] when the ids leave their range or the groups no longer fit.
    pub fn with_zero_experts(mut self, count: usize) -> Result<Self, MoeError> {
        self.zero_experts = count;
        self.checked()
    }

    /// How experts are picked.
    pub fn method(&self) -> RoutingMethod {
        self.method
    }

    /// Routed experts that have weights, `E`.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Experts picked for each token, without fused shared ones.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Factor on every routed weight.
    pub fn routed_scaling_factor(&self) -> f32 {
        self.routed_scaling_factor
    }

    /// Shared experts appended to each token.
    pub fn fused_shared_experts(&self) -> FusedSharedExperts {
        self.shared
    }

    /// Experts that return their input.
    pub fn zero_experts(&self) -> usize {
        self.zero_experts
    }

    /// Logits of one token: real experts, then zero experts.
    pub fn num_logits(&self) -> usize {
        self.num_experts + self.zero_experts
    }

    /// Slots of one token in the result, `K`: picked and shared experts.
    pub fn slots(&self) -> usize {
        self.top_k + self.shared.count
    }

    fn checked(self) -> Result<Self, MoeError> {
        let counts = [self.num_experts, self.shared.count, self.zero_experts];
        let total = counts.iter().fold(0usize, |total, &count| total.saturating_add(count));
        if self.num_experts == 0 || total > Self::EXPERTS_MAX {
            let allowed = format!("1 to {} with shared and zero experts", Self::EXPERTS_MAX);
            return Err(MoeError::config("num_experts", total, allowed));
        }
        if self.top_k == 0 || self.top_k > self.num_logits() {
            let allowed = format!("1 to the number of experts, {}", self.num_logits());
            return Err(MoeError::config("top_k", self.top_k, allowed));
        }
        if !self.routed_scaling_factor.is_finite() {
            let value = self.routed_scaling_factor;
            return Err(MoeError::config("routed_scaling_factor", value, "finite"));
        }
        if !self.shared.weight.is_finite() {
            return Err(MoeError::config("shared expert weight", self.shared.weight, "finite"));
        }
        self.check_method()?;
        Ok(self)
    }

    fn check_method(&self) -> Result<(), MoeError> {
        let plain =
            self.method.selection == Selection::TopK && self.method.bias == SelectionBias::None;
        if matches!(self.method.scoring, Scoring::AfterSelection(_)) && !plain {
            let value = format!("{:?}", self.method);
            let allowed = "without groups and bias when experts are scored after selection";
            return Err(MoeError::config("method", value, allowed));
        }
        let Selection::Grouped { groups, groups_kept } = self.method.selection else {
            return Ok(());
        };
        if groups == 0 || !self.num_logits().is_multiple_of(groups) {
            let allowed = format!("a divisor of the number of experts, {}", self.num_logits());
            return Err(MoeError::config("n_group", groups, allowed));
        }
        let selectable = groups_kept.saturating_mul(self.num_logits() / groups);
        if groups_kept > groups || selectable < self.top_k {
            let allowed = format!("at most {groups} and enough groups for {} experts", self.top_k);
            return Err(MoeError::config("topk_group", groups_kept, allowed));
        }
        Ok(())
    }
}

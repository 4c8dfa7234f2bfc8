//! `artel eplb`: what is typed.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use artel_moe::eplb::policy;
use artel_moe::eplb::simulate::{CopyRule, ReplayConfig, SyntheticLoad};
use clap::{Args, Subcommand, ValueEnum};

/// `artel eplb`.
#[derive(Debug, Subcommand)]
pub enum EplbCommand {
    /// Replay load through placement policies and compare what they cost and gain
    Simulate(Box<EplbSimulateArgs>),
    /// Place the experts for recorded load, once, into a file for `serve --eplb-placement`
    Plan(Box<EplbPlanArgs>),
    /// Make a trace from what other programs recorded
    Convert(EplbConvertArgs),
    /// Show what a trace or a placement holds
    Inspect(EplbInspectArgs),
}

/// Where load comes from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct EplbLoadArgs {
    /// Recorded load: a file of `serve --record-experts` or `artel eplb convert`
    #[arg(long, value_name = "FILE", required_unless_present = "synthetic")]
    pub trace: Option<PathBuf>,
    /// Made-up load: uniform, lognormal:SIGMA, zipf:EXPONENT or drift:SIGMA
    #[arg(long, value_name = "LOAD", conflicts_with = "trace")]
    pub synthetic: Option<SyntheticLoad>,
    /// Steps to take [default: all of a trace, 400 of synthetic load]
    #[arg(long, value_name = "N")]
    pub steps: Option<NonZeroUsize>,
    /// Layers with experts, of synthetic load
    #[arg(long, value_name = "N", default_value = "4", conflicts_with = "trace")]
    pub layers: NonZeroUsize,
    /// Experts of a layer, of synthetic load
    #[arg(long, value_name = "N", default_value = "256", conflicts_with = "trace")]
    pub experts: NonZeroUsize,
    /// Experts a token, of synthetic load
    #[arg(long, value_name = "N", default_value = "8", conflicts_with = "trace")]
    pub top_k: NonZeroUsize,
    /// Tokens on each GPU in a step, of synthetic load
    #[arg(long, value_name = "N", default_value = "256", conflicts_with = "trace")]
    pub tokens: NonZeroUsize,
    /// Steps between changes of a load that drifts
    #[arg(long, value_name = "N", default_value = "100", conflicts_with = "trace")]
    pub drift_steps: NonZeroU32,
    /// How much the tokens of a GPU resemble each other in a step: sigma of a factor on popularities
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0, conflicts_with = "trace")]
    pub correlation: f64,
    /// Seed of synthetic load and of the draws that stand for hashes of tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What the experts are placed on.
#[derive(Debug, Args)]
#[command(next_help_heading = "GPUs")]
pub struct EplbClusterArgs {
    /// GPUs that share the experts of a layer
    #[arg(long, value_name = "N")]
    pub gpus: NonZeroUsize,
    /// Slots of a layer beyond one for each expert, on all GPUs together
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub redundant: usize,
    /// Nodes that the GPUs stand on
    #[arg(long, value_name = "N", default_value = "1")]
    pub nodes: NonZeroUsize,
    /// Groups of experts that the router chooses among first, for greedy
    #[arg(long, value_name = "N", default_value = "1")]
    pub groups: NonZeroUsize,
    /// Slots of a layer that balanced may change in one plan, unless balanced:N says how many
    /// [default: any number]
    #[arg(long, value_name = "N")]
    pub max_moves: Option<usize>,
}

/// `artel eplb simulate`.
#[derive(Debug, Args)]
pub struct EplbSimulateArgs {
    #[command(flatten)]
    pub load: EplbLoadArgs,
    #[command(flatten)]
    pub cluster: EplbClusterArgs,
    /// Policies to compare: none, greedy, resplit, balanced, or balanced:N with at most N moves a
    /// layer; then +hash, +shares, +water-fill, +nearest or +few-experts for the copy that serves a token
    /// [default: hash for none and greedy, else shares]
    #[arg(
        long,
        value_name = "POLICIES",
        value_delimiter = ',',
        default_value = "none,greedy,balanced,balanced:8,balanced+water-fill"
    )]
    pub policy: Vec<EplbStrategyArg>,
    /// Steps between plans; the first comes after a quarter of them
    #[arg(long, value_name = "STEPS", default_value = "100")]
    pub interval: NonZeroUsize,
    /// Steps whose load a plan sees
    #[arg(long, value_name = "STEPS", default_value = "100")]
    pub window: NonZeroUsize,
    /// Steps between computations of the shares without moves [default: only with a plan]
    #[arg(long, value_name = "STEPS")]
    pub resplit_interval: Option<NonZeroUsize>,
    /// Begin with the placements of this file
    #[arg(long, value_name = "FILE")]
    pub placement: Option<PathBuf>,
    #[command(flatten)]
    pub costs: EplbCostArgs,
    /// Draw heat maps and the imbalance over steps into this folder
    #[arg(long, value_name = "FOLDER")]
    pub plot: Option<PathBuf>,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE.json")]
    pub save_result: Option<PathBuf>,
}

/// What time and memory are worth.
#[derive(Debug, Args)]
#[command(next_help_heading = "Costs")]
pub struct EplbCostArgs {
    /// Time of a GPU for one token of one expert [default: an expert of 3072 x 1536 in FP8, H200]
    #[arg(long, value_name = "MICROSECONDS", default_value_t = ReplayConfig::US_PER_TOKEN)]
    pub us_per_token: f64,
    /// Bytes of the weights of an expert [default: that expert]
    #[arg(long, value_name = "BYTES", default_value_t = ReplayConfig::BYTES_PER_EXPERT)]
    pub bytes_per_expert: u64,
    /// What a GPU receives while experts move, in 10^9 bytes a second
    #[arg(long, value_name = "RATE", default_value_t = ReplayConfig::BYTES_PER_SECOND / 1e9)]
    pub gigabytes_per_second: f64,
}

/// `artel eplb plan`.
#[derive(Debug, Args)]
pub struct EplbPlanArgs {
    #[command(flatten)]
    pub load: EplbLoadArgs,
    #[command(flatten)]
    pub cluster: EplbClusterArgs,
    /// Who places: none, greedy, resplit or balanced
    #[arg(long, value_name = "POLICY", default_value = "balanced")]
    pub policy: EplbPolicyArg,
    /// Placement to write
    #[arg(long, short, value_name = "FILE.json")]
    pub output: PathBuf,
}

/// What is not read, and the way round.
const NOT_READ: &str = "Not read, since it would need a Python interpreter or a data base's file \
    format: SGLang's recorder (.pt, pickled; numpy.save its `logical_count` and use --from counts) \
    and FLAME-MoE-Traces (parquet; numpy.stack the `indices` of all layers and use --from ids). \
    vLLM's files of expert_load_dump_dir have no documented layout; the arrays that its \
    --enable-return-routed-experts returns have one: --from ids.";

/// `artel eplb convert`.
#[derive(Debug, Args)]
#[command(after_help = NOT_READ)]
pub struct EplbConvertArgs {
    /// File, or for tensorrt-llm the folder, to read
    #[arg(value_name = "PATH")]
    pub input: PathBuf,
    /// What it holds
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub from: TraceLayoutArg,
    /// Experts of a layer, for ids
    #[arg(long, value_name = "N", required_if_eq("from", "ids"))]
    pub experts: Option<NonZeroUsize>,
    /// Experts a token, for counts
    #[arg(long, value_name = "N", required_if_eq("from", "counts"))]
    pub top_k: Option<NonZeroUsize>,
    /// Tokens that make a step, for ids
    #[arg(long, value_name = "N", default_value = "256")]
    pub step_tokens: NonZeroUsize,
    /// Name of the model, for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub model: String,
    /// Trace to write
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

/// What other programs record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceLayoutArg {
    /// Expert ids [tokens, layers, top k]: integers as .npy, nested lists as .json, or a token a
    /// line as .jsonl; -1 is no expert
    Ids,
    /// Tokens of each expert [steps, layers, experts], in the same kinds of files
    Counts,
    /// The folder of TensorRT-LLM's EXPERT_STATISTIC_PATH: meta_info.json and rank*.safetensors
    #[value(name = "tensorrt-llm")]
    TensorrtLlm,
}

/// `artel eplb inspect`.
#[derive(Debug, Args)]
pub struct EplbInspectArgs {
    /// A trace or a placement
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Who places experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EplbPolicyArg {
    /// One of the names that policies have.
    pub name: &'static str,
    /// Slots of a layer that one plan may change, where that was written.
    pub max_moves: Option<usize>,
}

impl fmt::Display for EplbPolicyArg {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max_moves {
            None => formatter.write_str(self.name),
            Some(moves) => write!(formatter, "{}:{moves}", self.name),
        }
    }
}

impl FromStr for EplbPolicyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("expected one of {}, balanced:N", policy::NAMES.join(", "));
        let (name, max_moves) = match text.split_once(':') {
            None => (text, None),
            Some(("balanced", moves)) => ("balanced", Some(moves.parse().map_err(|_| refuse())?)),
            Some(_) => return Err(refuse()),
        };
        let name = policy::NAMES.into_iter().find(|known| *known == name).ok_or_else(refuse)?;
        Ok(Self { name, max_moves })
    }
}

/// Who places experts, and which copy serves a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EplbStrategyArg {
    /// Who places.
    pub policy: EplbPolicyArg,
    /// Which copy serves.
    pub rule: CopyRule,
}

impl EplbStrategyArg {
    /// As it was typed, or could have been.
    pub fn name(&self) -> String {
        match self.rule == usual_rule(self.policy) {
            true => self.policy.to_string(),
            false => format!("{}+{}", self.policy, self.rule),
        }
    }
}

/// Policies that compute shares are served by them.
fn usual_rule(policy: EplbPolicyArg) -> CopyRule {
    match policy.name {
        "none" | "greedy" => CopyRule::Hash,
        _ => CopyRule::Shares,
    }
}

impl FromStr for EplbStrategyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (policy, rule) = match text.split_once('+') {
            None => (text, None),
            Some((policy, rule)) => (policy, Some(rule)),
        };
        let policy: EplbPolicyArg = policy.parse()?;
        let rule = match rule {
            None => usual_rule(policy),
            Some(rule) => rule.parse().map_err(|error: artel_moe::MoeError| error.to_string())?,
        };
        Ok(Self { policy, rule })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_written_as_they_are_read() {
        let rule = |text: &str| {
            let strategy: EplbStrategyArg = text.parse().unwrap();
            assert_eq!(strategy.name(), text);
            strategy.rule
        };
        assert_eq!(rule("none"), CopyRule::Hash);
        assert_eq!(rule("greedy"), CopyRule::Hash);
        assert_eq!(rule("balanced:8"), CopyRule::Shares);
        assert_eq!(rule("greedy+water-fill"), CopyRule::WaterFill);
        assert_eq!(rule("balanced:0+few-experts"), CopyRule::FewExperts);
        assert_eq!("greedy+hash".parse::<EplbStrategyArg>().unwrap().name(), "greedy");
        for wrong in ["", "best", "greedy:8", "balanced:x", "balanced:", "greedy+", "greedy+best"] {
            assert!(wrong.parse::<EplbStrategyArg>().is_err(), "{wrong}");
        }
    }
}

//! From what the user typed and what the model's authors advise to how tokens are chosen.

use artel_engine::SamplingParams;
use artel_model::GenerationConfig;

use crate::cli::SamplingArgs;

/// The user's word first, then the authors' advice, then greedy.
pub fn resolve(args: &SamplingArgs, advice: &GenerationConfig) -> SamplingParams {
    let off = SamplingParams::default();
    let advised = if advice.samples == Some(true) { advice.clone() } else { Default::default() };
    let asks_for_choice = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    let usual_temperature = match advice.samples {
        Some(true) => 1.0,
        _ if asks_for_choice => 1.0,
        _ => 0.0,
    };
    let or_advised = |typed: Option<f32>, advised: Option<f64>, otherwise: f32| {
        typed.or(advised.map(|value| value as f32)).unwrap_or(otherwise)
    };
    SamplingParams {
        temperature: or_advised(args.temperature, advised.temperature, usual_temperature),
        top_k: args.top_k.or(advised.top_k).unwrap_or(off.top_k),
        top_p: or_advised(args.top_p, advised.top_p, off.top_p),
        min_p: or_advised(args.min_p, advised.min_p, off.min_p),
        repetition_penalty: or_advised(
            args.repetition_penalty,
            advised.repetition_penalty,
            off.repetition_penalty,
        ),
        presence_penalty: args.presence_penalty.unwrap_or(off.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(off.frequency_penalty),
        seed: args.seed.unwrap_or(off.seed),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn resolved(flags: &[&str], advice: &GenerationConfig) -> SamplingParams {
        let cli = Cli::parse_from(["artel", "run"].iter().chain(flags));
        let Command::Run(args) = cli.command else { unreachable!("the command is run") };
        resolve(&args.sampling, advice)
    }

    #[test]
    fn without_flags_and_advice_the_most_likely_token_is_taken() {
        assert_eq!(resolved(&[], &GenerationConfig::default()), SamplingParams::greedy());
    }

    #[test]
    fn advice_counts_when_it_asks_for_sampling_and_flags_overrule_it() {
        let (temperature, top_p, top_k) = (Some(0.5), Some(0.9), Some(20));
        let advice = GenerationConfig { temperature, top_p, top_k, ..Default::default() };
        assert_eq!(resolved(&[], &advice).temperature, 0.0);

        let advice = GenerationConfig { samples: Some(true), ..advice };
        let params = resolved(&["--top-k", "5", "--seed", "7"], &advice);
        assert_eq!((params.temperature, params.top_p), (0.5, 0.9));
        assert_eq!((params.top_k, params.seed), (5, 7));
        assert_eq!(resolved(&["--temperature", "0"], &advice).temperature, 0.0);
    }

    #[test]
    fn a_flag_that_only_makes_sense_for_sampling_asks_for_it() {
        assert_eq!(resolved(&["--top-p", "0.8"], &GenerationConfig::default()).temperature, 1.0);
        let flags = ["--presence-penalty", "-1"];
        let params = resolved(&flags, &GenerationConfig::default());
        assert_eq!((params.temperature, params.presence_penalty), (0.0, -1.0));
    }
}

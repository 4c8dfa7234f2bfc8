//! Flags about ranks, which all commands share that run an engine.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

/// How experts are spread over ranks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Expert parallelism")]
pub struct RankArgs {
    /// Ranks that the experts are spread over: groups of threads, each with its own experts
    /// [default: 1, or as many as the placement is for]
    #[arg(long, value_name = "N")]
    pub ranks: Option<NonZeroUsize>,
    /// Place experts anew by their load while the model runs
    #[arg(long)]
    pub enable_eplb: bool,
    /// Settings of --enable-eplb, as JSON or single ones: '{"step_interval": 500}' or
    /// policy=balanced; also written --eplb-config.policy balanced
    #[arg(long, value_name = "JSON|FIELD=VALUE", requires = "enable_eplb")]
    pub eplb_config: Vec<String>,
    /// Begin with the placement in this file, which `artel eplb plan` writes
    #[arg(long, value_name = "FILE")]
    pub eplb_placement: Option<PathBuf>,
    /// Write down how many tokens each expert has in each step, for `artel eplb`
    #[arg(long, value_name = "FILE")]
    pub record_experts: Option<PathBuf>,
}

/// Rewrites `--eplb-config.FIELD VALUE`, as vLLM has it, into `--eplb-config FIELD=VALUE`.
pub fn with_dotted_fields(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rewritten = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let setting = argument.to_str().and_then(|text| text.strip_prefix("--eplb-config."));
        let Some(setting) = setting else {
            rewritten.push(argument);
            continue;
        };
        let mut setting = OsString::from(setting);
        if !argument.to_string_lossy().contains('=') {
            setting.push("=");
            setting.extend(arguments.next());
        }
        rewritten.extend(["--eplb-config".into(), setting]);
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_behind_a_dot_become_settings() {
        let rewritten = |line: &str| {
            let words = with_dotted_fields(line.split(' ').map(OsString::from));
            words.join(OsString::from(" ").as_os_str()).into_string().unwrap()
        };
        for (line, expected) in [
            (
                "serve --eplb-config.policy none --port 1",
                "serve --eplb-config policy=none --port 1",
            ),
            ("--eplb-config.window_size=5 x", "--eplb-config window_size=5 x"),
            ("--eplb-config {} x", "--eplb-config {} x"),
            ("--eplb-config.policy", "--eplb-config policy="),
        ] {
            assert_eq!(rewritten(line), expected);
        }
    }
}

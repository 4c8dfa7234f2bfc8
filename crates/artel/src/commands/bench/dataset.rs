//! The options of a data set.

use anyhow::{Context, ensure};

use crate::bench::dataset::{Dataset, Shape, Source, Tokens};
use crate::cli::{DatasetArg, DatasetArgs, RandomTokensArg};

/// What becomes of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// It is continued as it is.
    Prompt,
    /// It is a message of a chat, which gets the model's template where it is answered.
    Message,
}

/// Tokens of a random prompt where nobody says how many.
const RANDOM_INPUT_LEN: usize = 1024;

/// The data set that was asked for, with `warmups` prompts to spare. `context` is the longest
/// context of the model, where that is known.
///
/// # Errors
/// When a file is missing or too many, or a length makes no sense.
pub fn dataset(
    args: &DatasetArgs,
    format: Format,
    warmups: usize,
    context: Option<usize>,
) -> anyhow::Result<Dataset> {
    let path = || {
        let path = args.dataset_path.clone();
        path.context("this data set is a file: name it by --dataset-path")
    };
    let usual_input = || {
        let answer = args.output_len.unwrap_or(args.random_output_len) as f64;
        let longest = (answer * (1.0 + args.random_range_ratio)).ceil() as usize;
        let around = args.random_prefix_len.saturating_add(longest);
        let room = context.map_or(RANDOM_INPUT_LEN, |context| context.saturating_sub(around));
        let room = (room as f64 / (1.0 + args.random_range_ratio)) as usize;
        room.clamp(1, RANDOM_INPUT_LEN)
    };
    let source = match args.dataset_name {
        DatasetArg::Random => {
            ensure!(
                args.dataset_path.is_none(),
                "random prompts come from no file: name the data set by --dataset-name"
            );
            Source::Random(Shape {
                input: args.input_len.or(args.random_input_len).unwrap_or_else(usual_input),
                output: args.output_len.unwrap_or(args.random_output_len),
                range_ratio: args.random_range_ratio,
                prefix: args.random_prefix_len,
                tokens: match args.random_tokens {
                    RandomTokensArg::Drawn => Tokens::Drawn,
                    RandomTokensArg::Runs => Tokens::Runs,
                },
            })
        }
        DatasetArg::Sharegpt => Source::Sharegpt {
            path: path()?,
            output_tokens: args.output_len.or(args.sharegpt_output_len),
        },
        DatasetArg::Custom => Source::Custom {
            path: path()?,
            output_tokens: match (args.output_len, args.custom_output_len) {
                (Some(tokens), _) => Some(tokens),
                (None, -1) => None,
                (None, tokens) => Some(
                    usize::try_from(tokens)
                        .ok()
                        .filter(|tokens| *tokens > 0)
                        .with_context(|| format!("--custom-output-len {tokens} is not a length"))?,
                ),
            },
            templated: !args.skip_chat_template && format == Format::Prompt,
        },
    };
    Ok(Dataset {
        source,
        count: args.num_prompts.get(),
        warmups,
        seed: args.seed,
        in_order: args.disable_shuffle,
        no_oversample: args.no_oversample,
    })
}

//! How much many requests get through, with the report and JSON keys of vLLM's throughput benchmark.

use std::time::Instant;

use anyhow::Result;
use artel_model::Tokenizer;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{Job, Offline, Tokens};
use crate::bench::dataset::Prompt;

/// What got through.
#[derive(Debug, Clone, PartialEq)]
pub struct Throughput {
    /// Requests.
    pub requests: usize,
    /// Their tokens.
    pub tokens: Tokens,
    /// Seconds from the first to the last.
    pub seconds: f64,
}

/// Asks all `prompts` at once and waits for the last answer.
///
/// # Errors
/// When a prompt does not fit the context or the engine fails.
pub fn measure(
    engine: &Offline,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    bar: &ProgressBar,
) -> Result<Throughput> {
    let job = |(index, prompt): (usize, &Prompt)| {
        let prompt_ids = tokenizer.encode(&prompt.text)?;
        Ok(Job { prompt_ids, output_tokens: prompt.output_tokens, seed: index as u64 })
    };
    let jobs: Vec<Job> = prompts.iter().enumerate().map(job).collect::<Result<_>>()?;
    let started = Instant::now();
    let tokens = engine.work_off(&jobs, || bar.inc(1))?;
    Ok(Throughput { requests: jobs.len(), tokens, seconds: started.elapsed().as_secs_f64() })
}

impl Throughput {
    fn total_tokens(&self) -> usize {
        self.tokens.prompts + self.tokens.answers
    }

    /// The report, with a line end after the last line.
    pub fn text(&self) -> String {
        let a_second = |count: usize| count as f64 / self.seconds;
        let Tokens { prompts, answers } = self.tokens;
        format!(
            "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\n\
             Total num prompt tokens:  {prompts}\n\
             Total num output tokens:  {answers}\n",
            a_second(self.requests),
            a_second(self.total_tokens()),
            a_second(answers)
        )
    }

    /// The result.
    pub fn value(&self) -> Value {
        json!({
            "elapsed_time": self.seconds,
            "num_requests": self.requests,
            "total_num_tokens": self.total_tokens(),
            "requests_per_second": self.requests as f64 / self.seconds,
            "tokens_per_second": self.total_tokens() as f64 / self.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_and_the_keys_are_those_of_the_peer() {
        let tokens = Tokens { prompts: 300, answers: 100 };
        let throughput = Throughput { requests: 10, tokens, seconds: 3.0 };
        let expected = "\
Throughput: 3.33 requests/s, 133.33 total tokens/s, 33.33 output tokens/s
Total num prompt tokens:  300
Total num output tokens:  100
";
        assert_eq!(throughput.text(), expected);
        let value = Throughput { seconds: 4.0, ..throughput }.value();
        let expected = json!({"elapsed_time": 4.0, "num_requests": 10, "total_num_tokens": 400,
            "requests_per_second": 2.5, "tokens_per_second": 100.0});
        assert_eq!(value, expected);
    }
}

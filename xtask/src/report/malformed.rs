//! The page of what bad requests cost the others: `docs/malformed.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::{read, write};

const RESULT: &str = "benches/results/cpu/malformed.json";
/// What makes it, against `artel serve`.
const COMMAND: &str = "artel bench serve --num-prompts 36 --random-input-len 128 --random-output-len 128 \
                       --request-rate 6 --malformed-rate 0.1 --malformed-rounds 10 --save-result \
                       --result-filename benches/results/cpu/malformed.json";

/// A run of `artel bench serve --malformed-rate`.
#[derive(Debug, Deserialize)]
struct Record {
    date: String,
    model_id: String,
    num_prompts: usize,
    request_rate: f64,
    malformed: Malformed,
}

#[derive(Debug, Deserialize)]
struct Malformed {
    share: f64,
    p99_itl_ms: Pair,
    rounds_p99_itl_ms: Vec<Pair>,
    answers: BTreeMap<String, BTreeMap<String, usize>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Pair {
    without: f64,
    with: f64,
}

/// Writes the page; gives back what is missing.
///
/// # Errors
/// When the record is malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    let path = root.join(RESULT);
    if !path.exists() {
        let text = format!("docs/malformed.md is not made: beside `artel serve` run `{COMMAND}`");
        return Ok(vec![text]);
    }
    write(&root.join("docs/malformed.md"), &page(&read(&path, COMMAND)?))?;
    Ok(Vec::new())
}

fn page(record: &Record) -> String {
    let Record { date, model_id, num_prompts, request_rate, malformed } = record;
    let rounds = malformed.rounds_p99_itl_ms.len();
    let mut text = format!(
        "# What malformed requests cost the others\n\nGenerated from `{RESULT}` by `cargo xtask \
         bench-report`; measured against `artel serve` by\n\n```\n{COMMAND}\n```\n\n`{model_id}` on two \
         cores of a Xeon with AMX, which server and client share; {num_prompts} streams in each run, \
         {request_rate} arriving a second. {rounds} rounds of a run without and one with malformed \
         requests, {:.0} % of all, the two taking turns in who is first. Times are 99th percentiles of \
         the gaps between the tokens of a stream. Run of {date}.\n\n| round | without ms | with ms | \
         ratio |\n|---:|---:|---:|---:|\n",
        100.0 * malformed.share
    );
    let mut row = |name: &str, Pair { without, with }: Pair| {
        let _ = writeln!(text, "| {name} | {without:.2} | {with:.2} | {:.2} |", with / without);
    };
    for (index, &pair) in malformed.rounds_p99_itl_ms.iter().enumerate() {
        row(&(index + 1).to_string(), pair);
    }
    row("together", malformed.p99_itl_ms);
    text.push_str("\n| malformed request | answers |\n|:---|:---|\n");
    for (fault, answers) in &malformed.answers {
        let answers: Vec<String> =
            answers.iter().map(|(answer, count)| format!("{count} times {answer}")).collect();
        let _ = writeln!(text, "| {fault} | {} |", answers.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_answers_have_a_line_each() {
        let record = serde_json::json!({
            "date": "20260101-000000", "model_id": "tally", "num_prompts": 4, "request_rate": 6.0,
            "malformed": {
                "share": 0.1,
                "p99_itl_ms": {"without": 4.0, "with": 5.0, "ratio": 1.25},
                "rounds_p99_itl_ms": [{"without": 2.0, "with": 3.0}, {"without": 4.0, "with": 2.0}],
                "answers": {"giant body": {"HTTP 413": 3, "no answer": 1}},
            },
        });
        let page = page(&serde_json::from_value(record).unwrap());
        for line in [
            "2 rounds of a run without and one with malformed requests, 10 % of all",
            "| 2 | 4.00 | 2.00 | 0.50 |\n| together | 4.00 | 5.00 | 1.25 |",
            "| giant body | 3 times HTTP 413, 1 times no answer |",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }
}

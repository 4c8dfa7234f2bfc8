//! The part of the GPU page about the steps around the products.

use std::fmt::Write as _;

use serde::Deserialize;

/// A run of `artel bench steps`.
#[derive(Debug, Deserialize)]
pub(super) struct SmallSteps {
    gpu: String,
    method: String,
    commit: String,
    date: String,
    rows: Vec<Row>,
}

/// One step at one batch size.
#[derive(Debug, Deserialize)]
struct Row {
    step: String,
    tokens: u32,
    microseconds: f64,
    floor_microseconds: f64,
    /// The same step of the implementation that the layer is compared with.
    peer_microseconds: Option<f64>,
}

impl SmallSteps {
    /// A table with one line for each step and batch size; `peer` names whom they are compared with.
    pub(super) fn section(&self, peer: &str) -> String {
        let Self { gpu, method, commit, date, .. } = self;
        let peer = if peer.is_empty() { "peer" } else { peer };
        let mut text = format!(
            "\n## Small steps\n\n{gpu}. Commit {commit}, {date}. Time: {method}. Floor: every input \
             read and every output written once.\n\n| step | tokens | us | floor us | {peer} us | its \
             time over ours |\n|:---|---:|---:|---:|---:|---:|\n"
        );
        for Row { step, tokens, microseconds, floor_microseconds, peer_microseconds } in &self.rows
        {
            let beside = peer_microseconds
                .map_or_else(|| " |".to_owned(), |p| format!(" {p:.2} | {:.2}", p / microseconds));
            let _ = writeln!(
                text,
                "| {step} | {tokens} | {microseconds:.2} | {floor_microseconds:.2} |{beside} |"
            );
        }
        text
    }
}

//! The part of the GPU page about the steps around the products.

use std::fmt::Write as _;

use serde::Deserialize;

/// Times of the small steps.
#[derive(Debug, Deserialize)]
pub(super) struct SmallSteps {
    rows: Vec<Row>,
}

/// One step at one batch size.
#[derive(Debug, Deserialize)]
struct Row {
    step: String,
    tokens: u32,
    microseconds: f64,
    floor_microseconds: Option<f64>,
    peer_microseconds: Option<f64>,
}

impl SmallSteps {
    /// A table with one line for each step and batch size.
    pub(super) fn section(&self) -> String {
        let mut text = "\n## Small steps\n\n| step | tokens | us | floor us | peer us |\n\
                        |:---|---:|---:|---:|---:|\n"
            .to_owned();
        let cell = |time: Option<f64>| time.map_or(String::new(), |time| format!("{time:.2}"));
        for Row { step, tokens, microseconds, floor_microseconds, peer_microseconds } in &self.rows
        {
            let (floor, peer) = (cell(*floor_microseconds), cell(*peer_microseconds));
            let _ = writeln!(text, "| {step} | {tokens} | {microseconds:.2} | {floor} | {peer} |");
        }
        text
    }
}

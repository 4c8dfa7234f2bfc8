//! The page of the layer on a CPU: `docs/cpu-layer.md` and its picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;
use serde::Deserialize;

use super::{COLORS, read, write};

/// Where the measurements lie.
const CPU_LAYER: &str = "benches/results/cpu/layer.json";
const SIZE: (u32, u32) = (900, 420);

/// A run of `artel bench layer`.
#[derive(Debug, Deserialize)]
struct LayerRecord {
    machine: serde_json::Value,
    commit: String,
    date: String,
    rows: Vec<LayerRow>,
}

#[derive(Debug, Deserialize)]
struct LayerRow {
    shape: String,
    format: String,
    tokens: u32,
    microseconds: f64,
    share_of_ceiling: f64,
    gigabytes_per_second: f64,
    gigaflops: f64,
    times_gemm_crate: f64,
    num_experts: usize,
    num_experts_published: usize,
}

/// One line of a chart: a shape in a format, its rows by batch size.
type Series<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a LayerRow>>;

/// Writes `docs/cpu-layer.svg` and `docs/cpu-layer.md`.
///
/// # Errors
/// When the record is missing or malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<()> {
    let record: LayerRecord = read(&root.join(CPU_LAYER), "artel bench layer --device cpu")?;
    let mut series = Series::new();
    for row in &record.rows {
        series.entry((&row.shape, &row.format)).or_default().push(row);
    }
    let docs = root.join("docs");
    write(&docs.join("cpu-layer.md"), &table(&record, &series))?;
    draw(&docs.join("cpu-layer.svg"), &series)
}

fn table(record: &LayerRecord, series: &Series<'_>) -> String {
    let mut text = format!(
        "# The MoE layer on a CPU\n\nGenerated from `{CPU_LAYER}` by `cargo xtask bench-report`; \
         measured by `artel bench layer --device cpu`.\n\nMachine: {}. Commit {}, {}.\n\n\
         Share of ceiling: the least time that this machine allows (each touched weight read once at \
         its read bandwidth, or the products at the rate of its arithmetic units in registers, \
         whichever is longer) over the time taken. Times gemm crate: the operations of a step against \
         the dense float32 product of equal size by the `gemm` crate, measured in the same run.\n\n![share of ceiling by batch size](cpu-layer.svg)\n",
        describe(&record.machine),
        record.commit,
        record.date,
    );
    for ((shape, format), rows) in series {
        let _ = write!(
            text,
            "\n## {shape}, {format}{}\n\n| tokens | microseconds | share of ceiling | \
             GB/s of weights | GFLOP/s | times gemm crate |\n|---:|---:|---:|---:|---:|---:|\n",
            fewer_experts(rows)
        );
        for row in rows {
            let share = 100.0 * row.share_of_ceiling;
            let LayerRow { tokens, microseconds, gigabytes_per_second, gigaflops, .. } = row;
            let _ = writeln!(
                text,
                "| {tokens} | {microseconds:.0} | {share:.0} % | {gigabytes_per_second:.1} | \
                 {gigaflops:.0} | {:.2} |",
                row.times_gemm_crate
            );
        }
    }
    text
}

/// Says so when memory did not hold all experts of the model.
fn fewer_experts(rows: &[&LayerRow]) -> String {
    let LayerRow { num_experts, num_experts_published, .. } = rows[0];
    if num_experts == num_experts_published {
        return String::new();
    }
    format!(" ({num_experts} of {num_experts_published} experts in memory)")
}

fn describe(machine: &serde_json::Value) -> String {
    match machine {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(fields) => {
            let text = |value: &serde_json::Value| {
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            };
            let parts = fields.iter().map(|(name, value)| format!("{name} {}", text(value)));
            parts.collect::<Vec<_>>().join(", ").replace('_', " ")
        }
        other => other.to_string(),
    }
}

fn draw(path: &Path, series: &Series<'_>) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let rows = || series.values().flatten();
    let tokens_max = rows().map(|row| row.tokens).max().unwrap_or(1);
    let share_max = rows().map(|row| row.share_of_ceiling).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption("MoE layer on a CPU: share of the machine's own ceiling", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d((1..tokens_max.max(2)).log_scale().base(2.0), 0.0..share_max * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("tokens in the batch")
        .y_desc("share of ceiling")
        .y_label_formatter(&|share| format!("{:.0} %", share * 100.0))
        .draw()?;
    for (((shape, format), rows), color) in series.iter().zip(COLORS.iter().cycle()) {
        let points: Vec<_> = rows.iter().map(|row| (row.tokens, row.share_of_ceiling)).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(format!("{shape}, {format}"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

//! Pictures of a comparison: which GPU had how much in which layer and step, and the imbalance over
//! the steps.

use std::path::Path;

use anyhow::Context;
use plotters::prelude::*;

use super::result::{imbalances, over_mean, watched};
use super::simulate::Outcome;

const HEAT_SIZE: (u32, u32) = (900, 420);
const LINES_SIZE: (u32, u32) = (900, 420);
/// Points of a line and columns of a heat map.
const POINTS_MAX: usize = 200;
/// Numbers along an axis.
const LABELS_MAX: usize = 10;
/// Load over the mean that is drawn in full colour; more looks the same.
const HOTTEST: f64 = 2.0;
const COLORS: [RGBColor; 6] = [
    RGBColor(127, 127, 127),
    RGBColor(214, 39, 40),
    RGBColor(255, 127, 14),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
];

/// Draws `layers-before.svg`, `layers-after-POLICY.svg`, `steps-POLICY.svg` and `imbalance.svg`.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn draw(folder: &Path, outcomes: &[Outcome]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let Some(first) = outcomes.first() else { return Ok(()) };
    let steps = first.replay.steps.len().div_ceil(POINTS_MAX).max(1);
    let before =
        HeatMap::new("Load of GPUs before the first plan", "layer", &first.replay.before, 1);
    before.draw(&folder.join("layers-before.svg"))?;
    for Outcome { name, replay, .. } in outcomes {
        let title = format!("Load of GPUs after the first plan: {name}");
        let after = HeatMap::new(&title, "layer", &replay.after, 1);
        after.draw(&folder.join(format!("layers-after-{name}.svg")))?;
        let title = format!("Load of GPUs in layer {}: {name}", replay.watched_layer);
        let over_steps = HeatMap::new(&title, "step", &watched(replay, steps), steps);
        over_steps.draw(&folder.join(format!("steps-{name}.svg")))?;
    }
    draw_imbalance(&folder.join("imbalance.svg"), outcomes, steps)
}

/// Load over the mean: columns are layers or steps, rows GPUs.
struct HeatMap<'a> {
    title: &'a str,
    columns: &'a str,
    /// `[columns][gpus]`.
    cells: Vec<Vec<f64>>,
    /// Layers or steps of a column.
    per_column: usize,
}

impl<'a> HeatMap<'a> {
    fn new(title: &'a str, columns: &'a str, loads: &[Vec<f64>], per_column: usize) -> Self {
        let cells = loads.iter().map(|row| over_mean(row).collect()).collect();
        Self { title, columns, cells, per_column }
    }

    fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let root = SVGBackend::new(path, HEAT_SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let gpus = self.cells.first().map_or(1, Vec::len);
        let width = (self.cells.len() * self.per_column) as f64;
        let hottest = self.cells.iter().flatten().copied().fold(1.0, f64::max);
        let caption =
            format!("{} (white: mean, red: {HOTTEST} times; most {hottest:.2})", self.title);
        let mut chart = ChartBuilder::on(&root)
            .caption(caption, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..width, 0.0..gpus as f64)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(self.cells.len().min(LABELS_MAX))
            .y_labels(gpus.min(LABELS_MAX))
            .x_label_formatter(&|at| format!("{at:.0}"))
            .y_label_formatter(&|at| format!("{at:.0}"))
            .x_desc(self.columns)
            .y_desc("GPU")
            .draw()?;
        for (column, loads) in self.cells.iter().enumerate() {
            let [left, right] = [column, column + 1].map(|at| (at * self.per_column) as f64);
            chart.draw_series(loads.iter().enumerate().map(|(gpu, load)| {
                let corners = [(left, gpu as f64), (right, gpu as f64 + 1.0)];
                Rectangle::new(corners, heat(*load).filled())
            }))?;
        }
        root.present().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Blue below the mean, white at it, red above.
fn heat(load: f64) -> RGBColor {
    let fade = |share: f64| (255.0 * (1.0 - share.clamp(0.0, 1.0))) as u8;
    match load < 1.0 {
        true => RGBColor(fade(1.0 - load), fade(0.6 * (1.0 - load)), 255),
        false => {
            let share = (load - 1.0) / (HOTTEST - 1.0);
            RGBColor(255, fade(share), fade(share))
        }
    }
}

fn draw_imbalance(path: &Path, outcomes: &[Outcome], steps: usize) -> anyhow::Result<()> {
    let lines: Vec<Vec<(f64, f64)>> = outcomes
        .iter()
        .map(|outcome| {
            let values = imbalances(&outcome.replay, steps).enumerate();
            values.map(|(point, imbalance)| ((point * steps) as f64, imbalance)).collect()
        })
        .collect();
    let points = || lines.iter().flatten();
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let most = points().map(|point| point.1).fold(1.05, f64::max);
    let root = SVGBackend::new(path, LINES_SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Slowest GPU over the mean, by layer and step", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, 1.0..1.0 + (most - 1.0) * 1.1)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|step| format!("{step:.0}"))
        .x_desc("step")
        .y_desc("imbalance")
        .draw()?;
    for ((outcome, line), color) in outcomes.iter().zip(lines).zip(COLORS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)))?
            .label(&outcome.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present().with_context(|| format!("cannot write {}", path.display()))
}

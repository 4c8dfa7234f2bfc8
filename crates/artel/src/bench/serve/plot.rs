//! Pictures of a run: latencies over time and how they are distributed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::answer::Outcome;
use super::metrics::{Measure, values};
use crate::bench::statistics::percentile;

const SIZE: (u32, u32) = (1000, 720);
/// Height of the picture of latencies over time.
const TOP: u32 = 360;
const BINS: usize = 40;
/// Axis over the greatest latency, so that the legend covers no point.
const LEGEND_ROOM: f64 = 1.3;
const BLUE_LINE: RGBColor = RGBColor(31, 119, 180);
const GREEN_LINE: RGBColor = RGBColor(44, 160, 44);
const RED_LINE: RGBColor = RGBColor(214, 39, 40);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Checks that `path` can hold a picture, before the run is made for it.
///
/// # Errors
/// When it is no SVG file.
pub fn check(path: &Path) -> Result<()> {
    let is_svg = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
    ensure!(is_svg, "--plot {}: pictures are SVG files", path.display());
    Ok(())
}

/// Draws the completed requests to an SVG file.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, outcomes: &[Outcome], output_tokens: &[usize]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let completed: Vec<(&Outcome, usize)> = outcomes
        .iter()
        .zip(output_tokens.iter().copied())
        .filter(|(outcome, _)| outcome.succeeded())
        .collect();
    let milliseconds = |measure| -> Vec<f64> {
        let seconds =
            completed.iter().flat_map(|(outcome, tokens)| values(measure, outcome, *tokens));
        seconds.map(|seconds| seconds * 1e3).collect()
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (top, bottom) = root.split_vertically(TOP);
    over_time(&top, &completed)?;
    let (left, right) = bottom.split_horizontally(SIZE.0 / 2);
    distribution(&left, "Time to first token", milliseconds(Measure::Ttft), BLUE_LINE)?;
    distribution(&right, "Time per output token", milliseconds(Measure::Tpot), GREEN_LINE)?;
    root.present().with_context(|| format!("cannot write {}", path.display()))
}

/// One point a request: when it was sent, and how long it took to its first and last token.
fn over_time(area: &Area<'_>, completed: &[(&Outcome, usize)]) -> Result<()> {
    let points = |of: fn(&Outcome) -> f64| -> Vec<(f64, f64)> {
        completed.iter().map(|(outcome, _)| (outcome.start, of(outcome) * 1e3)).collect()
    };
    let series = [
        ("to the last token", RED_LINE, points(|outcome| outcome.latency)),
        ("to the first token", BLUE_LINE, points(|outcome| outcome.ttft)),
    ];
    let all = || series.iter().flat_map(|(_, _, points)| points);
    let time_max = all().map(|point| point.0).fold(1e-3, f64::max);
    let latency_max = all().map(|point| point.1).fold(1e-3, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Latency over time", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..time_max * 1.02, 0.0..latency_max * LEGEND_ROOM)?;
    chart.configure_mesh().x_desc("sent at (s)").y_desc("milliseconds").draw()?;
    for (name, color, points) in series {
        let circles = points.into_iter().map(|point| Circle::new(point, 2, color.filled()));
        chart
            .draw_series(circles)?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// How many requests took how long, with the median and the 99th percentile.
fn distribution(area: &Area<'_>, title: &str, mut values: Vec<f64>, color: RGBColor) -> Result<()> {
    values.sort_by(f64::total_cmp);
    let caption = match values.as_slice() {
        [] => format!("{title}: none"),
        sorted => format!(
            "{title}: median {:.1}, P99 {:.1} ms",
            percentile(sorted, 50.0),
            percentile(sorted, 99.0)
        ),
    };
    let (low, high) =
        (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(1.0));
    let width = ((high - low) / BINS as f64).max(1e-6);
    let mut bins = [0u32; BINS];
    for value in &values {
        bins[(((value - low) / width) as usize).min(BINS - 1)] += 1;
    }
    let most = f64::from(bins.iter().copied().max().unwrap_or(0).max(1));
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(52)
        .build_cartesian_2d(low..low + width * BINS as f64, 0.0..most * 1.05)?;
    chart.configure_mesh().x_desc("milliseconds").y_desc("requests").draw()?;
    chart.draw_series(bins.iter().enumerate().map(|(index, count)| {
        let start = low + width * index as f64;
        Rectangle::new([(start, 0.0), (start + width, f64::from(*count))], color.filled())
    }))?;
    Ok(())
}

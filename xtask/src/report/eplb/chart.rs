//! Pictures of the page of placements.

use std::path::Path;

use plotters::prelude::*;

const LINES_SIZE: (u32, u32) = (900, 400);
/// Of one heat map; several stand side by side.
const HEAT_WIDTH: u32 = 900;
const HEAT_HEIGHT: u32 = 300;
/// Load over the mean that is drawn in full colour; more looks the same.
const HOTTEST: f64 = 2.0;
/// Numbers along an axis.
const LABELS_MAX: usize = 10;
const COLORS: [RGBColor; 8] = [
    RGBColor(127, 127, 127),
    RGBColor(214, 39, 40),
    RGBColor(255, 152, 150),
    RGBColor(140, 86, 75),
    RGBColor(255, 127, 14),
    RGBColor(188, 189, 34),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
];

/// Draws lines by name over steps; each number stands for so many steps.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw_lines(
    path: &Path,
    title: &str,
    lines: &[(&str, &[f64])],
    steps: usize,
) -> anyhow::Result<()> {
    let values = || lines.iter().flat_map(|(_, values)| values.iter().copied());
    let most = values().fold(1.05, f64::max);
    let count = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(1);
    let root = SVGBackend::new(path, LINES_SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..(count * steps) as f64, 1.0..1.0 + (most - 1.0) * 1.05)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|step| format!("{step:.0}"))
        .x_desc("step")
        .y_desc("slowest GPU over the mean")
        .draw()?;
    for ((name, values), color) in lines.iter().zip(COLORS.iter().cycle()) {
        let points =
            values.iter().enumerate().map(|(point, value)| ((point * steps) as f64, *value));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Draws maps `[columns][gpus]` of load over the mean, one below the other.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw_heat(
    path: &Path,
    columns: &str,
    maps: &[(String, &[Vec<f64>])],
    per_column: usize,
) -> anyhow::Result<()> {
    let size = (HEAT_WIDTH, HEAT_HEIGHT * maps.len() as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    for ((title, cells), area) in maps.iter().zip(root.split_evenly((maps.len(), 1))) {
        let gpus = cells.first().map_or(1, Vec::len);
        let hottest = cells.iter().flatten().copied().fold(1.0, f64::max);
        let caption =
            format!("{title} (white: mean, red: {HOTTEST} times the mean, most {hottest:.2})");
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..(cells.len() * per_column) as f64, 0.0..gpus as f64)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(cells.len().min(LABELS_MAX))
            .y_labels(gpus.min(LABELS_MAX))
            .x_label_formatter(&|at| format!("{at:.0}"))
            .y_label_formatter(&|at| format!("{at:.0}"))
            .x_desc(columns)
            .y_desc("GPU")
            .draw()?;
        for (column, loads) in cells.iter().enumerate() {
            let [left, right] = [column, column + 1].map(|at| (at * per_column) as f64);
            chart.draw_series(loads.iter().enumerate().map(|(gpu, load)| {
                let corners = [(left, gpu as f64), (right, gpu as f64 + 1.0)];
                Rectangle::new(corners, heat(*load).filled())
            }))?;
        }
    }
    root.present()?;
    Ok(())
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

//! Pictures of the GPU page.

use std::path::Path;

use plotters::prelude::*;

use super::COLORS;
use super::gpu::{Peer, Record, UNIFORM};

const SIZE: (u32, u32) = (900, 460);
const SUMMARY_SIZE: (u32, u32) = (900, 380);
const PEER: RGBColor = RGBColor(214, 39, 40);
const FLOOR: RGBColor = RGBColor(127, 127, 127);

/// One line; the peer's are dashed in the summary.
struct Line {
    name: String,
    color: RGBColor,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// Time over batch size of one shape, with the floor and the peer.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw_shape(path: &Path, record: &Record, peer: &Peer) -> anyhow::Result<()> {
    let lines = times(record, peer);
    let points = || lines.iter().flat_map(|line| &line.points);
    let high = points().fold(1.0, |high: f64, point| high.max(point.1));
    let low = points().fold(high, |low: f64, point| low.min(point.1));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Experts of one layer: {}", record.shape), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.0..tokens_max(&lines)).log_scale().base(2.0),
            (low * 0.8..high * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("tokens in the batch")
        .y_desc("microseconds")
        .x_label_formatter(&|tokens| format!("{tokens:.0}"))
        .y_label_formatter(&|time| format!("{time:.0}"))
        .draw()?;
    draw_lines(&mut chart, lines, SeriesLabelPosition::UpperLeft)?;
    root.present()?;
    Ok(())
}

/// Share of the floor over batch size, all shapes with uniform routing.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw_summary(path: &Path, records: &[Record], peer: &Peer) -> anyhow::Result<()> {
    let lines = shares(records, peer);
    let shares = lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let share_max = shares.fold(1.0, f64::max);
    let root = SVGBackend::new(path, SUMMARY_SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Experts of one layer on a GPU: share of the floor", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(
            (1.0..tokens_max(&lines)).log_scale().base(2.0),
            0.0..share_max * 1.05,
        )?;
    chart
        .configure_mesh()
        .x_desc("tokens in the batch")
        .y_desc("share of the floor")
        .x_label_formatter(&|tokens| format!("{tokens:.0}"))
        .y_label_formatter(&|share| format!("{:.0} %", share * 100.0))
        .draw()?;
    draw_lines(&mut chart, lines, SeriesLabelPosition::LowerRight)?;
    root.present()?;
    Ok(())
}

fn times(record: &Record, peer: &Peer) -> Vec<Line> {
    let mut lines = Vec::new();
    let routings = record.routings();
    for (routing, color) in routings.iter().zip(COLORS.iter().cycle()) {
        let rows = record.rows_of(routing);
        let points = rows.map(|row| (f64::from(row.tokens), row.microseconds)).collect();
        let name = format!("Artel, {routing} routing");
        lines.push(Line { name, color: *color, dashed: false, points });
    }
    let Some(first) = routings.first() else { return lines };
    let theirs = peer.times(&record.shape, first);
    if !theirs.is_empty() {
        let points = theirs.into_iter().map(|(tokens, time)| (f64::from(tokens), time)).collect();
        let name = format!("{}, {first} routing", peer.name);
        lines.push(Line { name, color: PEER, dashed: false, points });
    }
    let rows = record.rows_of(first);
    let points = rows.map(|row| (f64::from(row.tokens), row.floor_microseconds)).collect();
    let name = format!("floor, {first} routing");
    lines.push(Line { name, color: FLOOR, dashed: true, points });
    lines
}

fn shares(records: &[Record], peer: &Peer) -> Vec<Line> {
    let mut lines = Vec::new();
    for (record, color) in records.iter().zip(COLORS.iter().cycle()) {
        let theirs = peer.times(&record.shape, UNIFORM);
        let (mut ours, mut beside) = (Vec::new(), Vec::new());
        for row in record.rows_of(UNIFORM) {
            let tokens = f64::from(row.tokens);
            ours.push((tokens, row.floor_microseconds / row.microseconds));
            if let Some(time) = theirs.get(&row.tokens) {
                beside.push((tokens, row.floor_microseconds / time));
            }
        }
        let line = |name, dashed, points| Line { name, color: *color, dashed, points };
        lines.push(line(format!("Artel, {}", record.shape), false, ours));
        if !beside.is_empty() {
            lines.push(line(format!("{}, {}", peer.name, record.shape), true, beside));
        }
    }
    lines
}

fn tokens_max(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(2.0, f64::max)
}

type Chart<'a, 'b, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, Y>>;

fn draw_lines<'a, 'b: 'a, Y>(
    chart: &mut Chart<'a, 'b, Y>,
    lines: Vec<Line>,
    legend: SeriesLabelPosition,
) -> anyhow::Result<()>
where
    Y: Ranged<ValueType = f64>,
{
    for Line { name, color, dashed, points } in lines {
        let style = color.stroke_width(2);
        let drawn = match dashed {
            true => chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, style))?,
            false => chart.draw_series(LineSeries::new(points.clone(), style))?,
        };
        drawn.label(name).legend(move |(x, y)| {
            let end = if dashed { x + 8 } else { x + 18 };
            PathElement::new([(x, y), (end, y)], style)
        });
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

//! The picture of one shape: time over batch size, with the floor and the peer.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::{Peer, ShapeReport};

const SIZE: (u32, u32) = (900, 460);
const OURS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(44, 160, 44)];
const PEER: RGBColor = RGBColor(214, 39, 40);
const FLOOR: RGBColor = RGBColor(127, 127, 127);

/// One line.
struct Series {
    name: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Draws `report` to an SVG file.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, report: &ShapeReport, peer: Option<&Peer>) -> Result<()> {
    let series = series(report, peer);
    let points = || series.iter().flat_map(|series| &series.points);
    let tokens_max = points().map(|point| point.0).fold(2.0, f64::max);
    let (low, high) = points()
        .fold((f64::MAX, 1.0f64), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Experts of one layer: {}", report.shape), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.0..tokens_max).log_scale().base(2.0),
            (low * 0.8..high * 1.2).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("tokens in the batch")
        .y_desc("microseconds")
        .x_label_formatter(&|tokens| format!("{tokens:.0}"))
        .y_label_formatter(&|time| format!("{time:.0}"))
        .draw()?;
    for Series { name, color, points } in series {
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn series(report: &ShapeReport, peer: Option<&Peer>) -> Vec<Series> {
    let mut routings: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !routings.contains(&row.routing) {
            routings.push(row.routing);
        }
    }
    let rows = |routing: &str| {
        report.rows.iter().filter(move |row| row.routing == routing).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for (routing, color) in routings.iter().zip(OURS.iter().cycle()) {
        let points =
            rows(routing).iter().map(|row| (row.tokens as f64, row.microseconds)).collect();
        all.push(Series { name: format!("Artel, {routing} routing"), color: *color, points });
    }
    let Some(first) = routings.first() else { return all };
    if let Some(peer) = peer {
        let times = peer.series(&report.shape, first);
        let points = times.into_iter().map(|(tokens, time)| (tokens as f64, time)).collect();
        all.push(Series { name: format!("{}, {first} routing", peer.name), color: PEER, points });
    }
    let points =
        rows(first).iter().map(|row| (row.tokens as f64, row.floor_microseconds)).collect();
    all.push(Series { name: format!("floor, {first} routing"), color: FLOOR, points });
    all
}

//! Curves of the samples, in one SVG file.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::samples::Sample;
use crate::{Result, mib};

const BROWN: RGBColor = RGBColor(0xc0, 0x5a, 0x1c);
const BLUE: RGBColor = RGBColor(0x3b, 0x6e, 0xa5);

/// One curve, and what it is called.
struct Curve {
    name: &'static str,
    color: RGBColor,
    of: fn(&Sample) -> f64,
}

/// A chart: its caption and its curves.
type Chart = (&'static str, Vec<Curve>);

fn charts() -> [Chart; 6] {
    let one = |name, of| vec![Curve { name, color: BROWN, of }];
    [
        (
            "MiB on disk, and live",
            vec![
                Curve { name: "disk", color: BROWN, of: |sample| mib(sample.disk) },
                Curve { name: "live", color: BLUE, of: |sample| mib(sample.live) },
            ],
        ),
        ("MiB of resident memory", one("memory", |sample| mib(sample.memory))),
        ("descriptors", one("descriptors", |sample| sample.descriptors as f64)),
        ("commits a second", one("rate", |sample| sample.rate as f64)),
        ("median of a commit, us", one("median", |sample| sample.median_us as f64)),
        ("p99.9 of a commit, ms", one("p99.9", |sample| sample.p999_us as f64 / 1e3)),
    ]
}

/// Draws all charts over the bytes written.
pub(crate) fn draw(samples: &[Sample], path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, (1200, 1000)).into_drawing_area();
    let failed = |error: Box<dyn std::error::Error>| format!("{}: {error}", path.display());
    area.fill(&WHITE).map_err(|error| failed(Box::new(error)))?;
    for (area, chart) in area.split_evenly((3, 2)).iter().zip(charts()) {
        one(area, &chart, samples).map_err(failed)?;
    }
    area.present().map_err(|error| failed(Box::new(error)))?;
    Ok(())
}

fn one(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    (caption, curves): &Chart,
    samples: &[Sample],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let right = samples.last().map_or(1.0, |sample| mib(sample.written)).max(1.0);
    let all = samples.iter().flat_map(|sample| curves.iter().map(move |curve| (curve.of)(sample)));
    let top = all.fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("MiB written").draw()?;
    for curve in curves {
        let points = samples.iter().map(|sample| (mib(sample.written), (curve.of)(sample)));
        let color = curve.color;
        let drawn = chart.draw_series(LineSeries::new(points, &color))?;
        drawn
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color));
    }
    if curves.len() > 1 {
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    }
    Ok(())
}

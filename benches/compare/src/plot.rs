//! Bar charts of the medians, one SVG file for each figure.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::engines::Engine;
use crate::metrics::{self, Better, Metric};
use crate::results::Results;

/// Draws a chart of every figure that more than one engine has; how many.
pub(crate) fn draw(results: &Results, dir: &Path) -> Result<usize> {
    std::fs::create_dir_all(dir)?;
    let mut drawn = 0;
    for metric in metrics::all() {
        let bars: Vec<_> = results
            .engines(metric)
            .into_iter()
            .filter_map(|engine| {
                Some((engine, results.median(engine, metric.workload, metric.name)?))
            })
            .collect();
        if metric.better == Better::Told || bars.len() < 2 {
            continue;
        }
        let path = dir.join(format!("{}-{}.svg", metric.workload, metric.name));
        chart(&path, metric, &bars).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        drawn += 1;
    }
    Ok(drawn)
}

fn chart(
    path: &Path,
    metric: Metric,
    bars: &[(Engine, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let better = match metric.better {
        Better::More => "more is better",
        Better::Less | Better::Told => "less is better",
    };
    let caption = format!("{} {}, {} ({better})", metric.workload, metric.name, metric.unit);
    let top = bars.iter().map(|bar| bar.1).fold(0.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((0..bars.len()).into_segmented(), 0.0..top.max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.len() + 1)
        .x_label_formatter(&|at| match at {
            SegmentValue::CenterOf(at) => {
                bars.get(*at).map_or(String::new(), |bar| bar.0.name().to_owned())
            }
            _ => String::new(),
        })
        .y_label_formatter(&|value| crate::report::number(*value))
        .draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(at, (engine, value))| {
        let color = match engine {
            Engine::Dormouse => RGBColor(0xc0, 0x5a, 0x1c),
            Engine::Floor => RGBColor(0x99, 0x99, 0x99),
            _ => RGBColor(0x3b, 0x6e, 0xa5),
        };
        let corners = [(SegmentValue::Exact(at), 0.0), (SegmentValue::Exact(at + 1), *value)];
        let mut bar = Rectangle::new(corners, color.filled());
        bar.set_margin(0, 0, 8, 8);
        bar
    }))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn a_chart_names_its_engines_and_lone_figures_have_none() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let figures = [
            (Engine::Dormouse, "W1", "rate", 9_000.0),
            (Engine::Lmdb, "W1", "rate", 2_500.0),
            (Engine::Dormouse, "hog", "p99", 300.0),
        ];
        assert_eq!(draw(&results(&figures), dir.path()).expect("drawn"), 1);
        let text = std::fs::read_to_string(dir.path().join("W1-rate.svg")).expect("a chart");
        assert!(text.contains("dormouse") && text.contains("lmdb") && text.contains("<rect"));
    }
}

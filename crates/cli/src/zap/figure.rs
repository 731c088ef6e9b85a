//! A figure: lines over two logarithmic axes, and a legend.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;

pub(super) type Drawn = Result<(), Box<dyn Error>>;

pub(super) type Chart<'c> =
    ChartContext<'c, SVGBackend<'c>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

/// What stands around the lines: the title, and what each axis is with its ends.
pub(super) struct Figure<'f> {
    pub(super) title: String,
    pub(super) across: (&'f str, Range<f64>),
    pub(super) up: (&'f str, Range<f64>),
}

impl Figure<'_> {
    /// Writes the figure as SVG; `lines` draws what is in it.
    pub(super) fn draw(self, path: &Path, lines: impl FnOnce(&mut Chart<'_>) -> Drawn) -> Drawn {
        let root: DrawingArea<SVGBackend<'_>, Shift> =
            SVGBackend::new(path, (760, 440)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(self.across.1.log_scale(), self.up.1.log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(self.across.0)
            .y_desc(self.up.0)
            .label_style(("sans-serif", 13))
            .draw()?;
        lines(&mut chart)?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.9))
            .label_font(("sans-serif", 13))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// A line with a dot for each point, and its name in the legend.
pub(super) fn line(
    chart: &mut Chart<'_>,
    label: &str,
    points: impl Iterator<Item = (f64, f64)>,
    style: ShapeStyle,
) -> Drawn {
    chart
        .draw_series(LineSeries::new(points, style).point_size(3))?
        .label(label)
        .legend(move |at| sample(at, style));
    Ok(())
}

/// A line's sample in a legend.
pub(super) fn sample((x, y): (i32, i32), style: impl Into<ShapeStyle>) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 20, y)], style)
}

/// The ends of an axis with some room beyond the values.
pub(super) fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    (low.max(0.01) / 1.5, high.max(0.1) * 1.5)
}

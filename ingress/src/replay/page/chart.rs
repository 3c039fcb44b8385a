//! One chart as inline SVG: lines with points, or bars, over axes with ticks and units, and a legend beside it.
//!
//! It brings no colours: series have classes, which the page's style gives colours for light and dark. Every point says its
//! series, setting and exact values in attributes, and shows them when it is pointed at. Needs no script.

use std::fmt::Write as _;

use super::super::grid::escape;
use super::axis::{Axis, Span};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 54.0;
/// Colours of series; further ones begin again.
const COLOURS: usize = 8;
/// Longest name of a series or place that is shown, in characters.
const NAME_CHARS_MAX: usize = 32;

/// Where a value lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// What it stands for: a setting, a time.
    pub(super) label: String,
    pub(super) x: f64,
    pub(super) y: f64,
}

/// Values that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
    /// Drawn with broken lines, in the colour of the series before.
    pub(super) is_second: bool,
    /// Whether its points' labels are written beside them.
    pub(super) is_labelled: bool,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Points, joined in their order.
    Line,
    /// Points alone.
    Points,
    /// Bars from zero; every place along x has a name.
    Bars,
}

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) style: Style,
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// Writes it; nothing when there is no point.
    pub(super) fn write(&self, html: &mut String) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        if points().next().is_none() {
            return;
        }
        let x = self.x.span(points().map(|point| point.x), LEFT, WIDTH - RIGHT);
        let y = self.y.span(points().map(|point| point.y), HEIGHT - BOTTOM, TOP);
        let title = escape(&self.title);
        let _infallible = write!(
            html,
            "<figure><figcaption>{title}</figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n"
        );
        self.write_axes(html, &x, &y);
        for (series, colour) in self.series.iter().zip(self.colours()) {
            self.write_series(html, series, colour, &x, &y);
        }
        html.push_str("</svg>\n");
        self.write_legend(html);
        html.push_str("</figure>\n");
    }

    /// The colour of each series: a second one shares that of the first.
    fn colours(&self) -> impl Iterator<Item = usize> + '_ {
        let mut next = 0;
        self.series.iter().map(move |series| {
            next += usize::from(!series.is_second);
            next.saturating_sub(1) % COLOURS
        })
    }

    fn write_axes(&self, html: &mut String, x: &Span<'_>, y: &Span<'_>) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (place, text) in y.ticks() {
            let _infallible = writeln!(
                html,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{place:.1}\" x2=\"{right}\" y2=\"{place:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                place + 4.0,
                escape(&text)
            );
        }
        for (place, text) in x.ticks() {
            let _infallible = writeln!(
                html,
                "<line class=\"axis\" x1=\"{place:.1}\" y1=\"{bottom}\" x2=\"{place:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                escape(&shortened(&text))
            );
        }
        let middle = f64::midpoint(TOP, bottom);
        let _infallible = writeln!(
            html,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0,
            escape(&self.x.label),
            escape(&self.y.label),
        );
    }

    fn write_series(&self, html: &mut String, series: &Series, colour: usize, x: &Span<'_>, y: &Span<'_>) {
        let dashed = if series.is_second { " second" } else { "" };
        if self.style == Style::Line {
            let places = series.points.iter().map(|point| format!("{:.1},{:.1}", x.place(point.x), y.place(point.y)));
            let places = places.collect::<Vec<_>>().join(" ");
            let _infallible = writeln!(html, "<polyline class=\"line c{colour}{dashed}\" points=\"{places}\"/>");
        }
        for point in &series.points {
            let Point { label, x: across, y: up } = point;
            let told = format!("{}, {label}: {}, {}", series.name, self.x.told(*across), self.y.told(*up));
            let (name, label, told) = (escape(&series.name), escape(label), escape(&told));
            let data = format!("data-series=\"{name}\" data-label=\"{label}\" data-x=\"{across}\" data-y=\"{up}\"");
            let (left, top) = (x.place(*across), y.place(*up));
            let shape = if self.style == Style::Bars {
                let (each, own) = self.bar(series, x);
                let bottom = y.place(0.0);
                format!(
                    "<rect class=\"point bar c{colour}{dashed}\" {data} x=\"{:.1}\" y=\"{top:.1}\" width=\"{each:.1}\" \
                     height=\"{:.1}\"><title>{told}</title></rect>",
                    left + own,
                    (bottom - top).max(0.0)
                )
            } else {
                format!(
                    "<circle class=\"point dot c{colour}{dashed}\" {data} cx=\"{left:.1}\" cy=\"{top:.1}\" r=\"3.5\">\
                     <title>{told}</title></circle>"
                )
            };
            let _infallible = writeln!(html, "{shape}");
            if series.is_labelled {
                let (left, top) = (left + 8.0, top + 4.0);
                let _infallible = writeln!(html, "<text class=\"tick\" x=\"{left:.1}\" y=\"{top:.1}\">{label}</text>");
            }
        }
    }

    /// How wide a bar is, and how far the series' bars begin from the middle of their place.
    fn bar(&self, series: &Series, x: &Span<'_>) -> (f64, f64) {
        let place = (x.place(1.0) - x.place(0.0)).abs() * 0.8;
        let each = (place / self.series.len() as f64).min(48.0);
        let number = self.series.iter().position(|other| std::ptr::eq(other, series)).unwrap_or_default();
        (each * 0.92, each * (number as f64 - self.series.len() as f64 / 2.0))
    }

    fn write_legend(&self, html: &mut String) {
        html.push_str("<ul class=\"legend\">");
        for (series, colour) in self.series.iter().zip(self.colours()) {
            let dashed = if series.is_second { " second" } else { "" };
            let _infallible = write!(
                html,
                "<li><svg viewBox=\"0 0 24 10\" aria-hidden=\"true\"><path class=\"line c{colour}{dashed}\" d=\"M0 5H24\"/></svg>{}</li>",
                escape(&shortened(&series.name))
            );
        }
        html.push_str("</ul>\n");
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &name[..cut]),
        None => name.to_owned(),
    }
}

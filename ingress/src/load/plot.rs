//! A run as one SVG picture: goodput above, latency below on a logarithmic scale, both by class and over time, with the phases
//! marked. It needs no other file, and is well-formed XML.

use std::fmt::{self, Write as _};

use super::phase::Phase;
use super::report::LoadReport;
use super::sample::Class;
use super::seconds::{Second, Slice};
use crate::replay::grid::escape;
use crate::replay::page::axis::{Axis, Scale, Span, Unit};

const WIDTH: f64 = 1_080.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 20.0;
/// Where the panels begin and end.
const GOODPUT: (f64, f64) = (96.0, 310.0);
const LATENCY: (f64, f64) = (372.0, 586.0);
const STYLE: &str = "\
text{font-family:sans-serif;font-size:12px;fill:#333}.title{font-size:16px;font-weight:600;fill:#111}\
.rule{stroke:#ddd}.axis{stroke:#666;fill:none}.load{fill:#f1f3f6}.line{fill:none;stroke-width:1.6}\
.second{stroke-dasharray:5 3}.new{stroke:#d55e00}.ongoing{stroke:#0072b2}";

/// A line of a panel: a value for each second, or none.
struct Line {
    name: &'static str,
    /// Classes of the style.
    style: &'static str,
    class: Class,
    value: fn(&Slice) -> Option<f64>,
}

const GOODPUT_LINES: &[Line] = &[
    Line { name: "new turns", style: "line new", class: Class::New, value: goodput },
    Line { name: "ongoing turns", style: "line ongoing", class: Class::Ongoing, value: goodput },
];
const LATENCY_LINES: &[Line] = &[
    Line { name: "new, p99", style: "line new", class: Class::New, value: p99 },
    Line { name: "new, p50", style: "line new second", class: Class::New, value: p50 },
    Line { name: "ongoing, p99", style: "line ongoing", class: Class::Ongoing, value: p99 },
    Line { name: "ongoing, p50", style: "line ongoing second", class: Class::Ongoing, value: p50 },
];

fn goodput(slice: &Slice) -> Option<f64> {
    Some(slice.answered as f64)
}

fn p50(slice: &Slice) -> Option<f64> {
    slice.total.map(|times| times.p50_us as f64)
}

fn p99(slice: &Slice) -> Option<f64> {
    slice.total.map(|times| times.p99_us as f64)
}

/// The picture of a run on the log of this name.
#[must_use]
pub fn plot(report: &LoadReport, log: &str) -> String {
    let mut svg = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Load\">\n\
         <style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    ));
    let title = format!("{log} at multiples of {:.1} turns/s", report.capacity.turns_per_s);
    svg.add(format_args!("<text class=\"title\" x=\"{LEFT}\" y=\"28\">{}</text>\n", escape(&title)));
    let seconds: Vec<&Second> =
        report.phases.iter().flat_map(|phase| phase.under_load.iter().chain(&phase.after)).collect();
    let across = axis("seconds", Unit::Number, Scale::Linear { from_zero: true });
    // The axis leaves some room behind its largest value, which a time needs not.
    let x = across.span([0.0, seconds.len() as f64 / 1.05].into_iter(), LEFT, WIDTH - RIGHT);
    let panels = [
        (GOODPUT, axis("answers in time, turns/s", Unit::Count, Scale::Linear { from_zero: true }), GOODPUT_LINES),
        (LATENCY, axis("time until the answer, ms", Unit::Micros, Scale::Logarithmic), LATENCY_LINES),
    ];
    for (panel @ (top, bottom), up, lines) in &panels {
        svg.phases(&report.phases, &x, *panel);
        let values =
            seconds.iter().flat_map(|second| lines.iter().filter_map(move |line| (line.value)(second.of(line.class))));
        let y = up.span(values, *bottom, *top);
        svg.axes(&x, &y, *panel, &up.label);
        for (place, line) in lines.iter().enumerate() {
            svg.line(line, &seconds, &x, &y);
            svg.legend(line, place, *top);
        }
    }
    svg.add(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n</svg>\n",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 18.0,
        across.label
    ));
    svg.0
}

fn axis(label: &str, unit: Unit, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), unit, scale }
}

/// A picture being written.
struct Svg(String);

impl Svg {
    fn add(&mut self, part: fmt::Arguments<'_>) {
        let _infallible = self.0.write_fmt(part);
    }

    /// Shades the phases, and says what they are above the panel.
    fn phases(&mut self, phases: &[Phase], x: &Span<'_>, (top, bottom): (f64, f64)) {
        let mut begin = 0;
        for phase in phases {
            let (left, right) = (x.place(begin as f64), x.place((begin + phase.under_load.len()) as f64));
            self.add(format_args!(
                "<rect class=\"load\" x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{} x</text>\n",
                right - left,
                bottom - top,
                f64::midpoint(left, right),
                top - 6.0,
                phase.multiple
            ));
            begin += phase.under_load.len() + phase.after.len();
        }
    }

    fn axes(&mut self, x: &Span<'_>, y: &Span<'_>, (top, bottom): (f64, f64), label: &str) {
        let right = WIDTH - RIGHT;
        for (place, text) in y.ticks() {
            self.add(format_args!(
                "<line class=\"rule\" x1=\"{LEFT}\" y1=\"{place:.1}\" x2=\"{right}\" y2=\"{place:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 8.0,
                place + 4.0,
                escape(&text)
            ));
        }
        for (place, text) in x.ticks() {
            self.add(format_args!(
                "<line class=\"axis\" x1=\"{place:.1}\" y1=\"{bottom}\" x2=\"{place:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                bottom + 5.0,
                bottom + 19.0,
                escape(&text)
            ));
        }
        self.add(format_args!(
            "<path class=\"axis\" d=\"M{LEFT} {top}V{bottom}H{right}\"/>\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            f64::midpoint(top, bottom),
            escape(label)
        ));
    }

    /// Draws a line through the middle of each second. Where a second has no value it is broken.
    fn line(&mut self, line: &Line, seconds: &[&Second], x: &Span<'_>, y: &Span<'_>) {
        let (mut path, mut is_drawing) = (String::new(), false);
        for (place, second) in seconds.iter().enumerate() {
            let value = (line.value)(second.of(line.class));
            if let Some(value) = value {
                let command = if is_drawing { 'L' } else { 'M' };
                let (across, up) = (x.place(place as f64 + 0.5), y.place(value));
                let _infallible = write!(path, "{command}{across:.1} {up:.1}");
            }
            is_drawing = value.is_some();
        }
        self.add(format_args!("<path class=\"{}\" d=\"{path}\"><title>{}</title></path>\n", line.style, line.name));
    }

    /// Says what a line is, in the row above the phases' names.
    fn legend(&mut self, line: &Line, place: usize, top: f64) {
        let (left, up) = (LEFT + 150.0 * place as f64, top - 28.0);
        self.add(format_args!(
            "<path class=\"{}\" d=\"M{left} {up}H{}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
            line.style,
            left + 26.0,
            left + 32.0,
            up + 4.0,
            line.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::phase::fixtures::phase;
    use super::super::report::Capacity;
    use super::super::sample::Outcome;
    use super::*;

    fn report(phases: Vec<Phase>) -> LoadReport {
        let capacity = Capacity { turns_per_s: 100.0, steps: Vec::new() };
        LoadReport { capacity, ongoing_share: 0.5, slo_ms: 2_000, phases, verdicts: Vec::new(), first_failure: None }
    }

    /// The data of the paths with this style, the line itself before its legend.
    fn paths<'a>(page: &'a roxmltree::Document<'_>, style: &str) -> Vec<&'a str> {
        page.descendants()
            .filter(|node| node.attribute("class") == Some(style))
            .filter_map(|node| node.attribute("d"))
            .collect()
    }

    #[test]
    fn the_picture_has_both_panels_every_phase_and_a_gap_where_nothing_was_answered() {
        let calm = phase(0.5, Class::ALL.map(|class| (class, Outcome::Answered, 10)));
        let overload = phase(2.0, [(Class::New, Outcome::Refused, 3), (Class::Ongoing, Outcome::Answered, 900)]);
        let svg = plot(&report(vec![calm, overload]), "a <log>");
        let page = roxmltree::Document::parse(&svg).expect("well-formed");
        let texts: Vec<_> = page.descendants().filter_map(|node| node.text()).collect();
        for expected in [
            "a <log> at multiples of 100.0 turns/s",
            "seconds",
            "answers in time, turns/s",
            "ongoing, p99",
            "0.5 x",
            "2 x",
        ] {
            assert!(texts.contains(&expected), "{expected} is not in {texts:?}");
        }
        assert_eq!(page.descendants().filter(|node| node.attribute("class") == Some("load")).count(), 4);
        // Ten seconds: five of a line, the two in which no new turn was answered, and three of the next line.
        let medians = paths(&page, "line new second")[0];
        assert_eq!((medians.matches('M').count(), medians.matches('L').count()), (2, 6), "{medians}");
        let goodput = paths(&page, "line new")[0];
        assert_eq!((goodput.matches('M').count(), goodput.matches('L').count()), (1, 9), "{goodput}");
        let places: Vec<f64> = goodput.split(['M', 'L', ' ']).filter_map(|number| number.parse().ok()).collect();
        assert_eq!(places.len(), 20);
        for place in places.chunks(2) {
            assert!((LEFT..=WIDTH - RIGHT).contains(&place[0]), "{goodput}");
            assert!((GOODPUT.0..=GOODPUT.1).contains(&place[1]), "{goodput}");
        }
    }

    #[test]
    fn a_run_without_phases_is_a_picture_too() {
        assert!(roxmltree::Document::parse(&plot(&report(Vec::new()), "log")).is_ok());
    }
}

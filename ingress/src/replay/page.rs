//! What a replay found as one HTML page: charts, tables and the effective configuration. It needs nothing else, neither
//! a script nor the network, and is well-formed XML too. Everything that comes from a log is escaped.
//!
//! Of several settings it draws hits against wrong hits, cost, and latency; of a single replay where in the log the hits
//! were, how latency is spread, and the sources of labelled turns.

pub(crate) mod axis;
mod chart;

use std::fmt::Write as _;

use turnflow_pipeline::Config;

use self::axis::{Axis, Scale, Unit};
use self::chart::{Chart, Point, Series, Style};
use super::comparison::{Comparison, Run};
use super::grid::escape;
use super::report::{MADE_UP, PathLatency, Report, SHARES};
use super::scores::PartScore;
use super::timeline::{Along, Bucket};

/// Milliseconds of a minute.
const MINUTE_MS: f64 = 60_000.0;

/// The page of one replay of the log with this name.
#[must_use]
pub fn page_of(report: &Report, log: &str, config: &Config) -> String {
    let mut html = begin(log, &format!("One replay of {} turns.", report.turns));
    if report.made_up > 0 {
        remark(&mut html, &format!("Texts are made up: {MADE_UP}."));
    }
    levels(report).write(&mut html);
    latency_spread(report).write(&mut html);
    sources(report).write(&mut html);
    html.push_str("<h2>Figures</h2>\n<pre>");
    html.push_str(&escape(&report.to_string()));
    html.push_str("</pre>\n");
    end(html, config)
}

/// The page of replays of the log with this name under several settings. `config` is what they have in common.
#[must_use]
pub fn page_of_settings(comparison: &Comparison, log: &str, config: &Config) -> String {
    let settings: Vec<_> = comparison.runs.iter().map(|run| run.setting.as_str()).collect();
    let key = &comparison.variable.key;
    let mut html =
        begin(log, &format!("Replayed under {} settings of {key}: {}.", settings.len(), settings.join(", ")));
    for text in comparison.remarks() {
        remark(&mut html, &format!("{text}."));
    }
    hits_against_wrong(comparison).write(&mut html);
    cost(comparison).write(&mut html);
    latency(comparison).write(&mut html);
    html.push_str("<h2>Figures</h2>\n");
    comparison.overview().write_html(&mut html);
    if let Some(by_source) = comparison.by_source() {
        by_source.write_html(&mut html);
    }
    end(html, config)
}

fn begin(log: &str, about: &str) -> String {
    let (log, about) = (escape(log), escape(about));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Turnflow replay of {log}</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <h1>Replay of {log}</h1>\n<p class=\"about\">{about}</p>\n",
        include_str!("page/style.css")
    )
}

fn remark(html: &mut String, text: &str) {
    let _infallible = writeln!(html, "<p class=\"remark\">{}</p>", escape(text));
}

fn end(mut html: String, config: &Config) -> String {
    let settings = toml::to_string_pretty(config).unwrap_or_default();
    let _infallible = write!(
        html,
        "<h2>Configuration</h2>\n<details><summary>The effective settings</summary>\n<pre>{}</pre></details>\n</body>\n</html>\n",
        escape(&settings)
    );
    html
}

/// Hits up, wrong hits across: one line through the settings for all turns, and one for each source.
fn hits_against_wrong(comparison: &Comparison) -> Chart {
    let names: Vec<&str> =
        comparison.runs.iter().any(|run| run.labelled().is_some()).then_some("all").into_iter().collect();
    let names = [names, comparison.sources()].concat();
    let series = names.into_iter().map(|source| {
        let point = |run: &Run| {
            let part = run.report.scores.as_ref()?.parts.iter().find(|part| part.source == source)?;
            Some(Point { label: run.setting.clone(), x: run.wrong_per_hit(part), y: part.hit_rate })
        };
        let points = comparison.runs.iter().filter_map(point).collect();
        Series { name: source.to_owned(), points, is_second: false, is_labelled: source == "all" }
    });
    Chart {
        title: "Hits against wrong hits".to_owned(),
        x: axis("wrong hits per hit, %", Unit::Share, Scale::Linear { from_zero: true }),
        y: axis("hits per turn, %", Unit::Share, Scale::Linear { from_zero: true }),
        style: if is_numeric(comparison) { Style::Line } else { Style::Points },
        series: series.collect(),
    }
}

/// What the answers cost; without prices, the tokens that tiers read and wrote.
fn cost(comparison: &Comparison) -> Chart {
    let priced = comparison.runs.iter().any(|run| run.report.load_taken_off.cost_micros > 0);
    let (title, label) = if priced {
        ("Cost", "cost of all answers, in the configured currency")
    } else {
        ("Cost, in tokens: no prices are configured", "tokens that tiers read and wrote")
    };
    let value = |run: &Run| {
        let load = &run.report.load_taken_off;
        Some(if priced { load.cost_micros as f64 / 1e6 } else { load.tokens_spent as f64 })
    };
    over_settings(
        comparison,
        title,
        axis(label, Unit::Count, Scale::Linear { from_zero: true }),
        vec![line(comparison, "all answers", false, value)],
    )
}

fn latency(comparison: &Comparison) -> Chart {
    type Time = fn(&Run) -> Option<f64>;
    let times: [(&str, bool, Time); 4] = [
        ("hits, half faster (p50)", false, |run| Some(run.report.latency_of_hits.as_ref()?.p50_us as f64)),
        ("hits, 95 of 100 faster (p95)", true, |run| Some(run.report.latency_of_hits.as_ref()?.p95_us as f64)),
        ("misses, half faster (p50)", false, |run| Some(run.latency_of_misses()?.p50_us as f64)),
        ("misses, 95 of 100 faster (p95)", true, |run| Some(run.latency_of_misses()?.p95_us as f64)),
    ];
    // Bars have to begin at zero.
    let scale = if is_numeric(comparison) { Scale::Logarithmic } else { Scale::Linear { from_zero: true } };
    let lines = times.map(|(name, is_second, time)| line(comparison, name, is_second, time));
    over_settings(comparison, "Latency", axis("time until the answer, ms", Unit::Micros, scale), lines.into())
}

/// One value of each setting.
fn line(comparison: &Comparison, name: &str, is_second: bool, value: impl Fn(&Run) -> Option<f64>) -> Series {
    let point = |(place, run): (usize, &Run)| {
        let x = run.value.filter(|_| is_numeric(comparison)).unwrap_or(place as f64);
        Some(Point { label: run.setting.clone(), x, y: value(run)? })
    };
    let points = comparison.runs.iter().enumerate().filter_map(point).collect();
    Series { name: name.to_owned(), points, is_second, is_labelled: false }
}

fn over_settings(comparison: &Comparison, title: &str, y: Axis, series: Vec<Series>) -> Chart {
    let names = || comparison.runs.iter().map(|run| run.setting.clone()).collect();
    let (scale, style) = match (is_numeric(comparison), comparison.variable.logarithmic) {
        (false, _) => (Scale::Named(names()), Style::Bars),
        (true, false) => (Scale::Linear { from_zero: false }, Style::Line),
        (true, true) => (Scale::Logarithmic, Style::Line),
    };
    Chart { title: title.to_owned(), x: axis(&comparison.variable.key, Unit::Number, scale), y, style, series }
}

fn is_numeric(comparison: &Comparison) -> bool {
    comparison.runs.iter().all(|run| run.value.is_some())
}

/// Shares of the cache's levels in the course of the log.
fn levels(report: &Report) -> Chart {
    let timeline = &report.timeline;
    let (label, unit) = match timeline.along {
        Along::Milliseconds => ("minutes since the log's first turn", MINUTE_MS),
        Along::Turns => ("turns, in the log's order", 1.0),
    };
    type Hits = fn(&Bucket) -> u64;
    let levels: [(&str, Hits); 4] = [
        ("all hits", |bucket| bucket.exact + bucket.semantic + bucket.joined),
        ("exact", |bucket| bucket.exact),
        ("semantic", |bucket| bucket.semantic),
        ("joined", |bucket| bucket.joined),
    ];
    let series = levels.map(|(name, level)| {
        let point = |(place, bucket): (u64, &Bucket)| {
            let x = (place * timeline.width) as f64 / unit;
            Point { label: format!("{} answers", bucket.answers), x, y: level(bucket) as f64 / bucket.answers as f64 }
        };
        let points = (0..).zip(&timeline.buckets).filter(|(_, bucket)| bucket.answers > 0).map(point).collect();
        Series { name: name.to_owned(), points, ..Series::default() }
    });
    Chart {
        title: "Hits in the course of the log".to_owned(),
        x: axis(label, Unit::Count, Scale::Linear { from_zero: true }),
        y: axis("share of the answers, %", Unit::Share, Scale::Linear { from_zero: true }),
        style: Style::Line,
        series: series.into(),
    }
}

/// How many answers of each way came within a time.
fn latency_spread(report: &Report) -> Chart {
    let series = |path: &PathLatency| {
        let point =
            |(&us, share): (&u64, f64)| Point { label: format!("{} turns", path.turns), x: us as f64, y: share };
        let points = path.distribution_us.iter().zip(SHARES).map(point).collect();
        Series { name: path.path.to_owned(), points, ..Series::default() }
    };
    Chart {
        title: "Latency".to_owned(),
        x: axis("time until the answer, ms", Unit::Micros, Scale::Logarithmic),
        y: axis("answers that came within it, %", Unit::Share, Scale::Linear { from_zero: true }),
        style: Style::Line,
        series: report.latency.iter().map(series).collect(),
    }
}

/// Hits and wrong hits of each source.
fn sources(report: &Report) -> Chart {
    let parts = report.scores.as_ref().map_or(&[][..], |scores| &scores.parts);
    let series = |name: &str, value: &dyn Fn(&PartScore) -> f64| {
        let point = |(place, part)| {
            let part: &PartScore = part;
            Point { label: part.source.clone(), x: f64::from(place), y: value(part) }
        };
        Series { name: name.to_owned(), points: (0..).zip(parts).map(point).collect(), ..Series::default() }
    };
    let wrong = |part: &PartScore| report.scores.as_ref().map_or(0.0, |scores| scores.wrong_per_hit(part));
    Chart {
        title: "By gold source".to_owned(),
        x: axis("source", Unit::Number, Scale::Named(parts.iter().map(|part| part.source.clone()).collect())),
        y: axis("share, %", Unit::Share, Scale::Linear { from_zero: true }),
        style: Style::Bars,
        series: vec![series("hits per turn", &|part| part.hit_rate), series("wrong hits per hit", &wrong)],
    }
}

fn axis(label: &str, unit: Unit, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), unit, scale }
}

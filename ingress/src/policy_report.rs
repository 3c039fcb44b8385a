//! Figures about a verifier: recall at bounded false accepts, what is accepted, and how far probabilities can be believed.

use std::fmt::{self, Write as _};

use serde::Serialize;
use turnflow_models::probability;

/// Bins of a reliability diagram.
const BINS: usize = 10;

/// Recall at bounded false accepts.
#[derive(Debug, PartialEq, Serialize)]
pub struct Recalls {
    /// Whose pairs.
    pub source: String,
    /// How many.
    pub pairs: usize,
    /// The verifier's, at 1 % and 5 % of the different pairs accepted.
    pub at_1_percent: f64,
    /// At 5 %.
    pub at_5_percent: f64,
    /// The cosine's.
    pub cosine_at_1_percent: f64,
    /// At 5 %.
    pub cosine_at_5_percent: f64,
}

impl Recalls {
    /// From scores and whether the pair is the same, by the verifier and by the cosine.
    #[must_use]
    pub fn of(source: &str, verifier: &[(f32, bool)], cosine: &[(f32, bool)]) -> Self {
        Self {
            source: source.to_owned(),
            pairs: verifier.len(),
            at_1_percent: recall(verifier, 0.01),
            at_5_percent: recall(verifier, 0.05),
            cosine_at_1_percent: recall(cosine, 0.01),
            cosine_at_5_percent: recall(cosine, 0.05),
        }
    }
}

impl fmt::Display for Recalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, pairs, at_1_percent, at_5_percent, cosine_at_1_percent, cosine_at_5_percent } = self;
        writeln!(
            f,
            "{source:<12} {pairs:>6} pairs  {at_1_percent:.3}  {at_5_percent:.3}  ({cosine_at_1_percent:.3}  {cosine_at_5_percent:.3})"
        )
    }
}

/// The share of the same pairs above the score that so few of the different ones pass.
#[must_use]
pub fn recall(scored: &[(f32, bool)], false_accepts_max: f64) -> f64 {
    let mut different: Vec<f32> = scored.iter().filter(|(_, same)| !same).map(|(score, _)| *score).collect();
    let same: Vec<f32> = scored.iter().filter(|(_, same)| *same).map(|(score, _)| *score).collect();
    different.sort_by(|a, b| b.total_cmp(a));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let bar =
        different.get((different.len() as f64 * false_accepts_max) as usize).copied().unwrap_or(f32::NEG_INFINITY);
    same.iter().filter(|score| **score > bar).count() as f64 / same.len().max(1) as f64
}

/// What the policy accepts of one kind of pairs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Accepts {
    /// Where they come from.
    pub source: String,
    /// What kind they are.
    pub kind: String,
    /// Whether the answer depends on who asks.
    pub personal: bool,
    /// How many.
    pub pairs: usize,
    /// Of them, those that one answer serves.
    pub same: usize,
    /// Pairs that are accepted.
    pub accepted: usize,
    /// Of them, those that one answer does not serve.
    pub accepted_wrong: usize,
}

impl fmt::Display for Accepts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, kind, personal, pairs, same, accepted, accepted_wrong } = self;
        let personal = if *personal { ", personal" } else { "" };
        writeln!(
            f,
            "{source} {kind}{personal}: {} of {same} same and {accepted_wrong} of {} different",
            accepted - accepted_wrong,
            pairs - same
        )
    }
}

/// How often pairs that got about the same probability were right.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// The bin's bounds.
    pub from: f32,
    /// Above it.
    pub to: f32,
    /// Pairs in it.
    pub pairs: usize,
    /// Mean probability told.
    pub told: f64,
    /// Share that one answer serves.
    pub right: f64,
}

impl Reliability {
    /// The bins of equal width that hold any, from log odds and whether the pair is the same; without what the guard refused.
    #[must_use]
    pub fn of(scored: &[(f32, bool)]) -> Vec<Self> {
        let probabilities: Vec<(f32, bool)> = scored
            .iter()
            .filter(|(score, _)| score.is_finite())
            .map(|(score, same)| (probability(*score), *same))
            .collect();
        let bin = |at: usize| {
            let (from, to) = (at as f32 / BINS as f32, (at + 1) as f32 / BINS as f32);
            let is_last = at + 1 == BINS;
            let inside: Vec<_> = probabilities.iter().filter(|(p, _)| *p >= from && (*p < to || is_last)).collect();
            let count = inside.len().max(1) as f64;
            Self {
                from,
                to,
                pairs: inside.len(),
                told: inside.iter().map(|(p, _)| f64::from(*p)).sum::<f64>() / count,
                right: inside.iter().filter(|(_, same)| *same).count() as f64 / count,
            }
        };
        (0..BINS).map(bin).filter(|bin| bin.pairs > 0).collect()
    }
}

impl fmt::Display for Reliability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:.1} to {:.1}: {:>6} pairs, {:.3} told, {:.3} right",
            self.from, self.to, self.pairs, self.told, self.right
        )
    }
}

/// A reliability diagram: probability told against share right, beside the diagonal of perfect honesty.
#[must_use]
pub fn reliability_svg(bins: &[Reliability]) -> String {
    const SIDE: f64 = 320.0;
    const MARGIN: f64 = 48.0;
    let x = |value: f64| MARGIN + value * SIDE;
    let y = |value: f64| MARGIN + (1.0 - value) * SIDE;
    let all = MARGIN * 2.0 + SIDE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all} {all}\" font-family=\"sans-serif\" font-size=\"11\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"{}\" y=\"24\" text-anchor=\"middle\" font-size=\"13\">Probability told and share that was right</text>",
        all / 2.0
    );
    let mut add = |part: std::fmt::Arguments<'_>| {
        let _infallible = svg.write_fmt(part);
    };
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        add(format_args!(
            "<line x1=\"{0}\" y1=\"{1}\" x2=\"{2}\" y2=\"{1}\" stroke=\"#ddd\"/><text x=\"{3}\" y=\"{4}\" text-anchor=\"end\">{value}</text>\
             <text x=\"{5}\" y=\"{6}\" text-anchor=\"middle\">{value}</text>",
            x(0.0),
            y(value),
            x(1.0),
            x(0.0) - 6.0,
            y(value) + 4.0,
            x(value),
            y(0.0) + 16.0
        ));
    }
    add(format_args!(
        "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#888\" stroke-dasharray=\"4\"/>",
        x(0.0),
        y(0.0),
        x(1.0),
        y(1.0)
    ));
    let line: Vec<String> = bins.iter().map(|bin| format!("{:.1},{:.1}", x(bin.told), y(bin.right))).collect();
    add(format_args!("<polyline points=\"{}\" fill=\"none\" stroke=\"#0b62a4\" stroke-width=\"2\"/>", line.join(" ")));
    for bin in bins {
        add(format_args!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#0b62a4\"><title>{} pairs</title></circle>",
            x(bin.told),
            y(bin.right),
            bin.pairs
        ));
    }
    add(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">probability told</text>\
         <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">share that was right</text></svg>",
        x(0.5),
        all - 12.0,
        y(0.5)
    ));
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_counts_what_lies_above_the_bar() {
        let different = (0..100).map(|at| (at as f32 / 100.0, false));
        let same = (0..10).map(|at| (0.905 + at as f32 / 100.0, true));
        let scored: Vec<_> = different.chain(same).collect();
        // One different pair of 100 may pass: the bar is 0.98.
        assert!((recall(&scored, 0.01) - 0.2).abs() < 1e-9);
        assert!((recall(&scored, 0.05) - 0.6).abs() < 1e-9);
        assert_eq!(recall(&[], 0.01), 0.0);
    }

    #[test]
    fn reliability_compares_what_was_told_with_what_was_right() {
        let even: Vec<(f32, bool)> = (0..10).map(|at| (0.0, at < 4)).chain([(f32::NEG_INFINITY, false)]).collect();
        let bins = Reliability::of(&even);
        assert_eq!(bins.len(), 1, "the others hold none");
        assert_eq!((bins[0].from, bins[0].pairs), (0.5, 10));
        assert!((bins[0].told - 0.5).abs() < 1e-9 && (bins[0].right - 0.4).abs() < 1e-9);
        let svg = reliability_svg(&bins);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && svg.contains("10 pairs"));
    }
}

//! An axis of a chart: its scale, its round ticks, and how a value on it is told.

/// How a value is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A share, as per cent.
    Share,
    /// Microseconds, as milliseconds.
    Micros,
    /// A plain number.
    Number,
    /// A number that may be large, in thousands (k) or millions (M).
    Count,
}

/// How values lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scale {
    /// By differences, from zero if `from_zero`.
    Linear {
        /// Whether the axis begins at zero.
        from_zero: bool,
    },
    /// By factors. Values that are not positive lie at the axis' beginning.
    Logarithmic,
    /// One beside the other, by name: the values are their places, from 0.
    Named(Vec<String>),
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    /// What it shows, with its unit.
    pub(crate) label: String,
    pub(crate) unit: Unit,
    pub(crate) scale: Scale,
}

/// An axis between its smallest and largest value, on paper.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis for these values, which lies between two places on paper.
    pub(crate) fn span(&self, values: impl Iterator<Item = f64>, start: f64, end: f64) -> Span<'_> {
        let positive_only = self.scale == Scale::Logarithmic;
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|&value| value.is_finite() && (value > 0.0 || !positive_only)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        let (low, high) = match &self.scale {
            Scale::Named(names) => (-0.5, names.len() as f64 - 0.5),
            Scale::Logarithmic => (low / 1.15, high * 1.15),
            Scale::Linear { from_zero: true } => (low.min(0.0), if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Linear { from_zero: false } => {
                let margin = if high > low { (high - low) * 0.05 } else { high.abs().max(1.0) * 0.1 };
                (low - margin, high + margin)
            }
        };
        Span { axis: self, low, high, start, end }
    }

    /// A value in words.
    pub(crate) fn told(&self, value: f64) -> String {
        if let Scale::Named(names) = &self.scale {
            return names.get(value as usize).cloned().unwrap_or_default();
        }
        match self.unit {
            Unit::Share => format!("{} %", short(value * 100.0)),
            Unit::Micros => format!("{} ms", short(value / 1e3)),
            Unit::Number => short(value),
            Unit::Count if value >= 1e6 => format!("{}M", short(value / 1e6)),
            Unit::Count if value >= 1e4 => format!("{}k", short(value / 1e3)),
            Unit::Count => short(value),
        }
    }
}

impl Span<'_> {
    /// Where a value lies on paper.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let part = if self.axis.scale == Scale::Logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.start + (self.end - self.start) * part
    }

    /// Places on paper with what is written at them.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = match &self.axis.scale {
            Scale::Named(names) => (0..names.len()).map(|place| place as f64).collect(),
            Scale::Logarithmic => self.factors(),
            Scale::Linear { .. } => self.steps(),
        };
        values.into_iter().map(|value| (self.place(value), self.axis.told(value))).collect()
    }

    /// Round values at equal distances, eight at most.
    fn steps(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 8.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|factor| factor * decade).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(10.0 * decade);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|number| number as f64 * step).collect()
    }

    /// Powers of ten, with twos and fives between where there are few of them; on a short axis equal steps.
    fn factors(&self) -> Vec<f64> {
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let within = |value: &f64| (self.low..=self.high).contains(value);
        let of = |factors: &[f64]| -> Vec<f64> {
            let each =
                decades.clone().flat_map(|decade| factors.iter().map(move |factor| factor * 10_f64.powi(decade)));
            each.filter(within).collect()
        };
        let powers = of(&[1.0]);
        if powers.len() >= 3 {
            return powers;
        }
        let more = of(&[1.0, 2.0, 5.0]);
        if more.len() >= 2 { more } else { self.steps() }
    }
}

/// A number in six digits at most.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (5 - value.abs().log10().floor() as i32).clamp(0, 12);
    let text = format!("{value:.*}", usize::try_from(digits).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, unit: Unit, values: &[f64]) -> Vec<String> {
        let axis = Axis { label: String::new(), unit, scale };
        let span = axis.span(values.iter().copied(), 0.0, 100.0);
        for &value in values {
            assert!((0.0..=100.0).contains(&span.place(value)), "{value} of {values:?}");
        }
        let ticks = span.ticks();
        assert!(ticks.iter().all(|(place, _)| (0.0..=100.0).contains(place)), "{ticks:?}");
        ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        let linear = |from_zero| Scale::Linear { from_zero };
        assert_eq!(
            ticks(linear(true), Unit::Share, &[0.1, 0.31]),
            ["0 %", "5 %", "10 %", "15 %", "20 %", "25 %", "30 %"]
        );
        assert_eq!(ticks(linear(false), Unit::Number, &[0.88, 0.99]), ["0.88", "0.9", "0.92", "0.94", "0.96", "0.98"]);
        assert_eq!(ticks(Scale::Logarithmic, Unit::Micros, &[1_500.0, 9_000.0]), ["2 ms", "5 ms", "10 ms"]);
        assert_eq!(ticks(Scale::Logarithmic, Unit::Number, &[1.0, 5_000.0]), ["1", "10", "100", "1000"]);
        assert_eq!(ticks(linear(true), Unit::Count, &[0.0, 1_600_000.0]), ["0", "500k", "1M", "1.5M"]);
        assert_eq!(ticks(linear(true), Unit::Count, &[9_000.0, 42_000.0]), ["0", "10k", "20k", "30k", "40k"]);
        let names = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(ticks(Scale::Named(names), Unit::Number, &[0.0, 1.0]), ["a", "b"]);
    }

    #[test]
    fn one_value_and_none_have_an_axis_too() {
        for scale in [Scale::Linear { from_zero: true }, Scale::Linear { from_zero: false }, Scale::Logarithmic] {
            for values in [&[][..], &[0.0], &[3.0], &[0.0, 0.0]] {
                let axis = Axis { label: String::new(), unit: Unit::Number, scale: scale.clone() };
                let span = axis.span(values.iter().copied(), 10.0, 90.0);
                let places = values.iter().map(|&value| span.place(value));
                assert!(places.clone().all(f64::is_finite), "{scale:?} {values:?} {:?}", places.collect::<Vec<_>>());
                assert!(!span.ticks().is_empty(), "{scale:?} {values:?}");
            }
        }
    }
}

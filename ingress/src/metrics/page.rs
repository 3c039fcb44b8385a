//! A page of metrics as it is written: one call for each metric, with all of its series.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use turnflow_pipeline::{BOUNDS_US, Histogram};

/// The labels of a series.
pub(super) type Labels<'l, const N: usize> = [(&'static str, &'l str); N];

/// What is written. Names are without prefix, and those of counters without `_total`.
#[derive(Debug)]
pub(super) struct Page<'e>(DescriptorEncoder<'e>);

impl<'e> Page<'e> {
    pub(super) const fn new(encoder: DescriptorEncoder<'e>) -> Self {
        Self(encoder)
    }

    /// A counter with one series.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        self.counters(name, help, [([], value)])
    }

    /// A counter with a series for each set of labels.
    pub(super) fn counters<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> fmt::Result {
        self.series(name, help, MetricType::Counter, series, |mut metric, value| {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    /// A gauge with one series.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.gauges(name, help, [([], value)])
    }

    /// A gauge with a series for each set of labels.
    pub(super) fn gauges<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> fmt::Result {
        self.series(name, help, MetricType::Gauge, series, |mut metric, value| metric.encode_gauge(&value))
    }

    /// A histogram with a series for each set of labels.
    pub(super) fn histograms<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'l, N>, Buckets)>,
    ) -> fmt::Result {
        self.series(name, help, MetricType::Histogram, series, |mut metric, Buckets { sum, counts }| {
            let count = counts.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
        })
    }

    /// A metric that keeps its own series.
    pub(super) fn kept(&mut self, name: &str, help: &str, kind: MetricType, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, None, kind)?)
    }

    fn series<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels<'l, N>, V)>,
        encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            encode(metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }
}

/// What a histogram holds: the sum of all values, and how many are in each bucket, by its upper bound.
pub(super) struct Buckets {
    sum: f64,
    counts: Vec<(f64, u64)>,
}

impl Buckets {
    /// Of times, in seconds.
    pub(super) fn of_times(times: &Histogram) -> Self {
        let bounds = BOUNDS_US.iter().map(|&bound_us| seconds(bound_us)).chain([f64::INFINITY]);
        Self { sum: seconds(times.sum_us), counts: bounds.zip(times.counts).collect() }
    }

    /// Of sizes that were counted in classes: 1, 2, 3–4, 5–8 and so on, and more.
    pub(super) fn of_sizes(classes: &[u64], sum: u64) -> Self {
        let last = classes.len().saturating_sub(1);
        let bound = |class: usize| if class == last { f64::INFINITY } else { (1_u64 << class) as f64 };
        let counts = classes.iter().enumerate().map(|(class, &count)| (bound(class), count));
        Self { sum: sum as f64, counts: counts.collect() }
    }
}

/// Microseconds in seconds.
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Millionths of the configured currency in that currency.
pub(super) fn currency(micros: u64) -> f64 {
    micros as f64 / 1e6
}

//! One stream of `Stats`: how the server does, again and again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use turnflow_pipeline::{Histogram, Pipeline, PipelineStats, Tally};
use turnflow_state::CacheLevel;

use super::article::count;
use super::convert::load_level;
use super::proto::{StatsResponse, Times, TurnCounts};
use super::service::Responses;
use crate::door::{Caller, Refusal, now_ms};

/// Tells until the server stops, the client is gone, or its key counts no more.
pub(super) async fn tell(
    pipeline: Pipeline,
    caller: Caller,
    interval_ms: u32,
    out: Responses<StatsResponse>,
    mut stopping: watch::Receiver<bool>,
) {
    let telling = async {
        let mut times = interval(Duration::from_millis(interval_ms.into()));
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = pipeline.tally_of(&caller.tenant);
        loop {
            times.tick().await;
            let now = pipeline.tally_of(&caller.tenant);
            let response = response(&pipeline.stats(), &now, &now.since(&before));
            before = now;
            // A client that is gone is noticed below.
            drop(out.send(Ok(response)).await);
        }
    };
    let end = tokio::select! {
        biased;
        () = out.closed() => return,
        _ = stopping.wait_for(|&stopping| stopping) => Refusal::Unavailable,
        () = caller.ended() => Refusal::Unauthenticated,
        () = telling => return,
    };
    // A client that is gone by now needs no status.
    drop(out.send(Err(end.into())).await);
}

fn response(stats: &PipelineStats, tally: &Tally, since: &Tally) -> StatsResponse {
    let took = |are_hits: bool| {
        let of_levels = CacheLevel::ALL.iter().zip(&since.whole).filter(|(level, _)| level.is_hit() == are_hits);
        times(of_levels.map(|(_, histogram)| histogram))
    };
    StatsResponse {
        at_ms: now_ms(),
        turns_in_flight: count(stats.turns_in_flight),
        turns_waiting: count(stats.load.waiting),
        load: load_level(stats.load.level).into(),
        saturation: stats.load.saturation,
        entries: stats.validity.entries as u64,
        entries_bytes: stats.validity.bytes as u64,
        invalidated: stats.validity.invalidated,
        turns: Some(TurnCounts {
            exact: tally.answered_at(CacheLevel::Exact),
            semantic: tally.answered_at(CacheLevel::Semantic),
            joined: tally.answered_at(CacheLevel::Joined),
            miss: tally.answered_at(CacheLevel::Miss),
            bypass: tally.answered_at(CacheLevel::Bypass),
            failed: tally.failed.iter().sum(),
            cost_micros: tally.account.cost_micros,
            saved_cost_micros: tally.account.saved_cost_micros,
        }),
        hits: took(true),
        others: took(false),
    }
}

/// None when it never happened.
fn times<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Option<Times> {
    let mut sum = Histogram::default();
    histograms.for_each(|histogram| sum.merge(histogram));
    let quantile = |share| sum.quantile_us(share);
    Some(Times { count: sum.count(), p50_us: quantile(0.5)?, p95_us: quantile(0.95)?, p99_us: quantile(0.99)? })
}

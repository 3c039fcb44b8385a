//! One stream of `Stats`: how the server does, again and again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;
use turnflow_pipeline::{Histogram, Pipeline, PipelineStats, Tally};
use turnflow_state::CacheLevel;

use super::article::count;
use super::convert::load_level;
use super::proto::{ServerStats, StatsResponse, Times, TurnCounts};
use crate::door::{Caller, LastWord, Outlet, Refusal, Untold, now_ms};
use crate::keys::Scope;

/// What goes to the client.
type Told = Result<StatsResponse, Status>;

/// Tells until the server stops, the client does not read or is gone, or its key counts no more.
pub(super) async fn tell(
    pipeline: Pipeline,
    caller: Caller,
    interval_ms: u32,
    out: Outlet<Told>,
    last: Option<LastWord<Told>>,
    mut stopping: watch::Receiver<bool>,
) {
    let telling = async {
        let mut times = interval(Duration::from_millis(interval_ms.into()));
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = pipeline.tally_of(&caller.tenant);
        loop {
            times.tick().await;
            let now = pipeline.tally_of(&caller.tenant);
            let server = caller.may(Scope::Operator).then(|| server(&pipeline.stats()));
            let response = StatsResponse { server, ..response(&now, &now.since(&before)) };
            before = now;
            if let Err(untold) = out.tell(Ok(response)).await {
                return untold;
            }
        }
    };
    let end = tokio::select! {
        biased;
        () = out.closed() => return,
        _ = stopping.wait_for(|&stopping| stopping) => Refusal::Unavailable,
        () = caller.ended() => Refusal::Unauthenticated,
        untold = telling => match untold {
            Untold::Gone => return,
            Untold::Slow => return last.into_iter().for_each(LastWord::too_slow),
        },
    };
    if let Some(last) = last {
        last.say(Err(end.into()));
    }
}

fn server(stats: &PipelineStats) -> ServerStats {
    ServerStats {
        turns_in_flight: count(stats.turns_in_flight),
        turns_waiting: count(stats.load.waiting),
        load: load_level(stats.load.level).into(),
        saturation: stats.load.saturation,
        entries: stats.validity.entries as u64,
        entries_bytes: stats.validity.bytes as u64,
        invalidated: stats.validity.invalidated,
    }
}

fn response(tally: &Tally, since: &Tally) -> StatsResponse {
    let took = |are_hits: bool| {
        let of_levels = CacheLevel::ALL.iter().zip(&since.whole).filter(|(level, _)| level.is_hit() == are_hits);
        times(of_levels.map(|(_, histogram)| histogram))
    };
    StatsResponse {
        at_ms: now_ms(),
        server: None,
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

//! Turns: what became of them, how long they took, what they cost; and the load that they make.

use std::collections::BTreeMap;
use std::fmt;

use turnflow_pipeline::{Histogram, PipelineStats, Tally};
use turnflow_state::{CacheLevel, LoadLevel, Stage, Tier, TierSize, TurnErrorKind};

use super::Source;
use super::page::{Buckets, Page, currency, seconds};

pub(super) fn write(page: &mut Page<'_>, source: &Source, stats: &PipelineStats) -> fmt::Result {
    let tallies = source.pipeline.tally();
    let mut sum = Tally::default();
    tallies.iter().for_each(|(_, tally)| sum.add(tally));
    let labels = source.labels(tallies.iter().map(|(tenant, _)| tenant.as_ref()));
    let mut by_tenant: BTreeMap<&str, Tally> = BTreeMap::new();
    for (label, (_, tally)) in labels.into_iter().zip(&tallies) {
        by_tenant.entry(label).or_default().add(tally);
    }
    ends(page, &by_tenant)?;
    times(page, &sum)?;
    money(page, &by_tenant)?;
    page.gauge("turns_in_flight", "Turns admitted and not yet ended", stats.turns_in_flight)?;
    page.gauge("turns_following", "Turns that wait for the answer to a similar question", stats.turns_following)?;
    load(page, source, stats)
}

fn ends(page: &mut Page<'_>, by_tenant: &BTreeMap<&str, Tally>) -> fmt::Result {
    let answered = by_tenant.iter().flat_map(|(&tenant, tally)| {
        let levels = CacheLevel::ALL.iter().zip(&tally.answered);
        levels.flat_map(move |(level, tiers)| {
            let series = Tier::ALL.iter().zip(tiers).filter(|&(_, &count)| count > 0);
            series.map(move |(tier, &count)| {
                ([("tenant", tenant), ("level", level.as_str()), ("tier", tier.as_str())], count)
            })
        })
    });
    page.counters("turns", "Turns that were answered", answered)?;
    let of_tenant =
        |count: fn(&Tally) -> u64| by_tenant.iter().map(move |(&tenant, tally)| ([("tenant", tenant)], count(tally)));
    page.counters("turns_repeated", "Turns that got what their turn id got before", of_tenant(|tally| tally.repeated))?;
    let failed = by_tenant.iter().flat_map(|(&tenant, tally)| {
        let kinds = TurnErrorKind::ALL.iter().map(|kind| kind.as_str()).zip(tally.failed);
        let all = kinds.chain([("cancelled", tally.cancelled)]).filter(|&(_, count)| count > 0);
        all.map(move |(kind, count)| ([("tenant", tenant), ("kind", kind)], count))
    });
    page.counters("turns_failed", "Turns that were not answered, or not admitted", failed)
}

fn times(page: &mut Page<'_>, sum: &Tally) -> fmt::Result {
    fn by_level(times: &[Histogram]) -> impl Iterator<Item = ([(&'static str, &'static str); 1], Buckets)> {
        CacheLevel::ALL.iter().zip(times).map(|(level, times)| ([("level", level.as_str())], Buckets::of_times(times)))
    }
    page.histograms("turn_seconds", "From admission to the end of the answer", by_level(&sum.whole))?;
    page.histograms(
        "turn_first_piece_seconds",
        "From admission to the first piece of the answer",
        by_level(&sum.first_piece),
    )?;
    let stages = Stage::ALL.iter().zip(&sum.stages);
    let stages = stages.map(|(stage, times)| ([("stage", stage.as_str())], Buckets::of_times(times)));
    page.histograms("stage_seconds", "Time in a stage, of the turns that passed it", stages)
}

fn money(page: &mut Page<'_>, by_tenant: &BTreeMap<&str, Tally>) -> fmt::Result {
    let accounts = || by_tenant.iter().map(|(&tenant, tally)| (tenant, tally.account));
    let tokens = accounts().flat_map(|(tenant, account)| {
        let tokens = [("input", account.input_tokens), ("output", account.output_tokens)];
        tokens.map(|(direction, tokens)| ([("tenant", tenant), ("direction", direction)], tokens))
    });
    page.counters("tokens", "Tokens that tiers read and wrote for turns", tokens)?;
    let saved = accounts().map(|(tenant, account)| ([("tenant", tenant)], account.saved_tokens));
    page.counters("tokens_saved", "Tokens of the answers that caches served", saved)?;
    let cost = accounts().map(|(tenant, account)| ([("tenant", tenant)], currency(account.cost_micros)));
    page.counters("cost", "What the tokens cost, in the configured currency", cost)?;
    let large = accounts().map(|(tenant, account)| ([("tenant", tenant)], currency(account.large_cost_micros)));
    page.counters("cost_large_tier", "What the tokens would have cost by the large tier alone", large)?;
    let saved = accounts().map(|(tenant, account)| ([("tenant", tenant)], currency(account.saved_cost_micros)));
    page.counters("cost_saved", "What the answers that caches served would have cost by the large tier", saved)?;
    let background =
        accounts().map(|(tenant, account)| ([("tenant", tenant)], currency(account.background_cost_micros)));
    page.counters("cost_background", "What it cost to answer anew and to audit", background)?;
    let unanswered =
        accounts().map(|(tenant, account)| ([("tenant", tenant)], currency(account.unanswered_cost_micros)));
    page.counters("cost_unanswered", "What tiers took for turns that were not answered, estimated", unanswered)
}

fn load(page: &mut Page<'_>, source: &Source, stats: &PipelineStats) -> fmt::Result {
    let load = &stats.load;
    let levels = LoadLevel::ALL.iter().map(|level| ([("level", level.as_str())], u64::from(*level == load.level)));
    page.gauges("load_level", "1 for the level of load at present", levels)?;
    let entered = LoadLevel::ALL.iter().zip(load.entered).map(|(level, count)| ([("level", level.as_str())], count));
    page.counters("load_transitions", "How often a level of load was entered", entered)?;
    page.counter("load_refused", "New conversations that were refused because of the load", load.refused)?;
    page.counter("load_abandoned", "Turns whose client left while they waited in a queue", load.abandoned)?;
    page.gauge(
        "load_saturation_ratio",
        "Share of the last second for which turns found an engine full",
        load.saturation,
    )?;
    let queues = source.pipeline.queues();
    let named = || queues.iter().map(|queue| (queue.tier.map_or("encoder", TierSize::as_str), queue.stats));
    let waiting = named().map(|(queue, stats)| ([("queue", queue)], stats.waiting));
    page.gauges("queue_waiting", "Turns that wait in front of an engine", waiting)?;
    let oldest = named().map(|(queue, stats)| ([("queue", queue)], seconds(stats.oldest_wait_us)));
    page.gauges("queue_oldest_wait_seconds", "For how long the turn that came first has waited", oldest)
}

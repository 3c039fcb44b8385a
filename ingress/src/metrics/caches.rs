//! Caches, what is asked in the background, the policy of hits, and the knowledge base.

use std::collections::BTreeMap;
use std::fmt;

use turnflow_models::Evidence;
use turnflow_pipeline::PipelineStats;

use super::Source;
use super::page::{Page, currency};

pub(super) fn write(page: &mut Page<'_>, source: &Source, stats: &PipelineStats) -> fmt::Result {
    let cache = &stats.validity;
    page.gauge("cache_entries", "Answers that are cached", cache.entries)?;
    page.gauge("cache_bytes", "What they take in memory", cache.bytes)?;
    page.gauge("cache_recent_chunks", "Recent chunks that a late answer may be compared with", cache.recent_chunks)?;
    page.counter("cache_late", "Answers that were outdated when they came, and were not cached", cache.late)?;
    page.counter("cache_invalidated", "Cached answers that a change made invalid", cache.invalidated)?;
    refresh(page, stats)?;
    audit(page, stats)?;
    policy(page, source, stats)?;
    knowledge(page, source, stats)
}

fn refresh(page: &mut Page<'_>, stats: &PipelineStats) -> fmt::Result {
    let refresh = &stats.refresh;
    page.gauge("refresh_waiting", "Questions that wait to be answered anew", refresh.queued)?;
    page.gauge("refresh_in_flight", "Questions that are being answered anew", refresh.in_flight)?;
    page.counter("refresh_answers", "Answers that were made anew, kept or not", refresh.answers)?;
    page.counter("refresh_kept", "Answers that were made anew and kept", refresh.refreshed)?;
    page.counter("refresh_unchanged", "Answers that were made anew, kept, and as before", refresh.unchanged)?;
    page.counter("refresh_dropped", "Questions that were let go instead of being answered anew", refresh.dropped)?;
    page.counters("refresh_tokens", "Tokens for that", tokens(refresh.input_tokens, refresh.output_tokens))?;
    page.counter("refresh_cost", "What that cost, in the configured currency", currency(refresh.cost_micros))
}

fn audit(page: &mut Page<'_>, stats: &PipelineStats) -> fmt::Result {
    let audit = &stats.audit;
    page.gauge("audit_waiting", "Hits that wait to be answered in full as well", audit.queued)?;
    page.gauge("audit_in_flight", "Hits that are being answered in full as well", audit.in_flight)?;
    let outcomes = [
        ("agreed", audit.agreed),
        ("disagreed", audit.disagreed),
        ("undecided", audit.undecided),
        ("overheard", audit.overheard),
        ("dropped", audit.dropped),
    ];
    page.counters(
        "audits",
        "Hits that were chosen to be answered in full as well",
        outcomes.map(|(outcome, count)| ([("outcome", outcome)], count)),
    )?;
    page.counters("audit_tokens", "Tokens for that", tokens(audit.input_tokens, audit.output_tokens))?;
    page.counter("audit_cost", "What that cost, in the configured currency", currency(audit.cost_micros))?;
    page.counter("audit_entries_barred", "Entries that are served to similar questions no more", audit.barred)?;
    page.counter("audit_entries_removed", "Entries that were thrown away", audit.thrown_away)
}

fn policy(page: &mut Page<'_>, source: &Source, stats: &PipelineStats) -> fmt::Result {
    let bound = &stats.bound;
    page.counter("policy_tightened", "How often similar hits needed more from then on", bound.tightenings)?;
    page.counter("policy_loosened", "How often similar hits needed less again", bound.loosenings)?;
    page.gauge("policy_switched_off", "Tenants and kinds of evidence whose similar hits are off", bound.switched_off)?;
    page.gauge(
        "policy_disagreement_max_ratio",
        "Upper bound of the share of recent similar hits that disagree, at 95 % confidence",
        bound.disagreement_max(),
    )?;
    let judged = [("good", bound.judged_good), ("wrong", bound.judged_wrong)];
    page.counters(
        "feedback",
        "Turns that a customer judged",
        judged.map(|(word, count)| ([("judgement", word)], count)),
    )?;
    let all = source.pipeline.policy_steps();
    let labels = source.labels(all.iter().map(|(tenant, ..)| Some(tenant)));
    let mut steps: BTreeMap<[(&'static str, &str); 2], u32> = BTreeMap::new();
    for (label, &(_, evidence, step)) in labels.into_iter().zip(&all) {
        let evidence = match evidence {
            Evidence::SameArticle => "same_article",
            Evidence::Unsure => "unsure",
        };
        let most = steps.entry([("tenant", label), ("evidence", evidence)]).or_default();
        *most = step.max(*most);
    }
    page.gauges("policy_step", "Steps above the calibrated level, of the tenants that were audited", steps)
}

fn knowledge(page: &mut Page<'_>, source: &Source, stats: &PipelineStats) -> fmt::Result {
    let knowledge = source.pipeline.knowledge().stats();
    page.gauge("knowledge_articles", "Articles of all tenants", knowledge.articles)?;
    page.gauge("knowledge_chunks", "Chunks of all tenants that can be found", knowledge.chunks)?;
    page.gauge("knowledge_tenants", "Tenants that have, or had, a chunk", knowledge.tenants)?;
    page.gauge("knowledge_epoch", "The last change that searches find", stats.epoch)?;
    page.gauge("knowledge_epoch_acknowledged", "The last change that is acknowledged", stats.epoch_acknowledged)?;
    let cache = knowledge.cache;
    let lookups = [("hit", cache.hits), ("miss", cache.misses)].map(|(result, count)| ([("result", result)], count));
    page.counters("knowledge_cache_lookups", "Look-ups in the cache of chunks", lookups)?;
    page.counter("knowledge_cache_evictions", "Chunks that had to go for others", cache.evictions)?;
    page.gauge("knowledge_cache_entries", "Chunks in the cache", cache.entries)?;
    page.gauge("knowledge_cache_bytes", "What they take in memory", cache.bytes)
}

fn tokens(input: u64, output: u64) -> [([(&'static str, &'static str); 1], u64); 2] {
    [([("direction", "input")], input), ([("direction", "output")], output)]
}

//! A turn that was answered, with everything that speaks for its answer.

use maud::{Markup, html};
use turnflow_state::{CacheLevel, Completion, HitEvidence, RouteEvidence, Source, TurnRecord, Verdict};

use super::format::{encoded, percent, span_us};

/// What a level is called.
pub(super) const fn level_name(level: CacheLevel) -> &'static str {
    match level {
        CacheLevel::Exact => "same words",
        CacheLevel::Semantic => "other words",
        CacheLevel::Joined => "joined",
        CacheLevel::Miss => "from the articles",
        CacheLevel::Bypass => "past the caches",
    }
}

/// A level, as a mark of its colour.
pub(super) fn badge(level: CacheLevel) -> Markup {
    html! { span class={ "badge " (level) } { (level_name(level)) } }
}

/// Where an answer came from and why.
pub(super) fn verdict(TurnRecord { turn, completion }: &TurnRecord) -> Markup {
    let Completion { tier, grounded, sources, usage, cost_micros, verdict, total_us, cut_off, .. } = completion;
    let Verdict { level, entry, similarity, question, origin, refreshed, reason, evidence, route, .. } = verdict;
    html! {
        details class="verdict" open {
            summary { (badge(*level)) " " span class="time" { @if *total_us > 0 { (span_us(*total_us)) } } }
            dl {
                // What decided tells it better, where it is known.
                @if evidence.is_none() { dt { "Why" } dd { (reason) } }
                @if let Some(question) = question {
                    dt { "Answered before" }
                    dd {
                        q { (question) }
                        @if *refreshed { " " span class="note" { "made anew since, after an edit" } }
                        @if let Some(origin) = origin {
                            " " a class="quiet" href={ "/ui/conversation?id=" (encoded(origin.conversation.as_str())) } { "its conversation" }
                        }
                        @if let Some(entry) = entry {
                            " " a class="quiet" href={ "/ui/entry?id=" (entry.0) } { "its entry" }
                        }
                    }
                }
                @if let Some(similarity) = similarity {
                    dt { "Similarity" }
                    dd { (format!("{similarity:.3}")) " of 1" }
                }
                @if let Some(evidence) = evidence { (decided(evidence)) }
                dt { "Sources" }
                dd { (cited(sources)) @if !grounded { span class="note" { "the knowledge base does not say" } } }
                @if let Some(route) = route { (routed(route)) }
                dt { "Written by" }
                dd {
                    "the tier " code { (tier) }
                    @if usage.input_tokens + usage.output_tokens > 0 {
                        ", " (usage.input_tokens) " tokens read and " (usage.output_tokens) " written"
                    }
                    @if *cut_off { ", " span class="note" { "cut off by the bound on tokens" } }
                    @if *cost_micros > 0 { ", for " (format!("{:.4}", *cost_micros as f64 / 1e6)) }
                }
                dt { "Time" }
                dd { (stages(completion)) }
                dt { "Turn" }
                dd class="ids" { code { (turn.id) } }
            }
        }
    }
}

fn decided(evidence: &HitEvidence) -> Markup {
    let HitEvidence { probability, required, error_max, same_article, reasons, audits, agreed, .. } = evidence;
    let strongest = reasons.iter().map(|reason| reason.weight.abs()).fold(f32::EPSILON, f32::max);
    html! {
        dt { "One answer serves both" }
        dd {
            strong { (percent(*probability)) } " likely, " (percent(*required)) " was needed"
            @if *error_max < 1.0 { "; of such hits at most " (percent(*error_max)) " are wrong" }
        }
        dt { "What decided" }
        dd {
            @if reasons.is_empty() { "the cosine alone" } @else {
                ul class="reasons" {
                    @for reason in reasons {
                        li {
                            span { (reason.name) " " span class="quiet" { (format!("{:.2}", reason.value)) } }
                            (weight(reason.weight / strongest))
                            span class="number" { (format!("{:+.1}", reason.weight)) }
                        }
                    }
                }
            }
            @if *same_article { p class="small quiet" { "Both questions are clearly about the same article." } }
            @if *audits > 0 { p class="small quiet" { "Audited " (audits) " times before, " (agreed) " agreed." } }
        }
    }
}

/// A bar to the right for what spoke for it, to the left for what spoke against it.
fn weight(share: f32) -> Markup {
    let width = (share.abs() * 50.0).max(1.0);
    let (x, class) = if share < 0.0 { (50.0 - width, "against") } else { (50.0, "for") };
    html! {
        svg class="weight" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect class=(class) x=(x) y="1" width=(width) height="6" {}
            line x1="50" x2="50" y1="0" y2="8" {}
        }
    }
}

fn routed(route: &RouteEvidence) -> Markup {
    html! {
        dt { "Route" }
        dd {
            "the " (route.size) " tier: " (route.reason)
            @if let Some(probability) = route.probability { " (" (percent(probability)) " as good as the large one)" }
            @if route.escalated { "; the small tier had no good answer" }
        }
    }
}

/// The articles that an answer names, each with the version that was read.
pub(super) fn cited(sources: &[Source]) -> Markup {
    html! {
        @for (place, Source { article_id, version, .. }) in sources.iter().enumerate() {
            @if place > 0 { ", " }
            a href={ "/ui/article?id=" (encoded(article_id.as_str())) } { (article_id) }
            " " span class="quiet" { "v" (version) }
        }
        @if sources.is_empty() { span class="quiet" { "no source" } }
    }
}

/// How the time was spent, in the order of a turn's way.
fn stages(completion: &Completion) -> Markup {
    let passed: Vec<_> = completion.latency.iter().filter(|(_, elapsed_us)| *elapsed_us > 0).collect();
    let longest = passed.iter().map(|(_, elapsed_us)| *elapsed_us).max().unwrap_or(1);
    html! {
        ul class="stages" {
            @for (stage, elapsed_us) in passed {
                li {
                    span { (stage) }
                    meter min="0" max=(longest) value=(elapsed_us) aria-hidden="true" {}
                    span class="number" { (span_us(elapsed_us.into())) }
                }
            }
        }
    }
}

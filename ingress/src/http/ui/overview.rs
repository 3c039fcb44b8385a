//! The overview: what the server does now, where answers come from, how fast, and what that saves.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};
use turnflow_pipeline::{Histogram, PipelineStats, Tally};
use turnflow_state::CacheLevel;

use super::layout::{Page, Place, page as laid_out};
use super::live::{SECONDS_MAX, Second};
use super::session::Visitor;
use super::verdict::level_name;
use crate::http::error::ApiError;
use crate::http::receive::query;
use crate::http::reply::JsonReply;
use crate::http::router::App;
use crate::keys::Scope;

/// Seconds over which times are told.
const TIMES_OVER: usize = 60;
/// Seconds over which the line of a chart is drawn at each.
const LINE_OVER: usize = 15;

#[derive(Deserialize)]
struct NumbersQuery {
    /// The seconds behind this time are wanted, in milliseconds since 1970.
    #[serde(default)]
    after: u64,
}

/// A number of the overview, by the name that the script fills it in by.
fn tile(name: &str, label: &str, about: &str) -> Markup {
    html! {
        div class="tile" {
            dt { (label) }
            dd { span class="figure" data-figure=(name) { "–" } span class="about" data-about=(name) { (about) } }
        }
    }
}

fn chart(id: &str, title: &str, about: &str, series: &[(&str, &str)]) -> Markup {
    html! {
        figure class="chart" {
            figcaption { h2 { (title) } p class="quiet small" { (about) } }
            ul class="legend" {
                @for (class, name) in series {
                    li { svg viewBox="0 0 10 10" aria-hidden="true" { rect class=(class) width="10" height="10" rx="2" {} } (name) " " strong data-sum=(class) {} }
                }
            }
            div class="plot" {
                svg id=(id) role="img" aria-label=(title) viewBox="0 0 800 220" preserveAspectRatio="none" {}
                p class="waiting" data-waits=(id) { "Waiting for the first turns…" }
            }
            div class="ends small quiet" aria-hidden="true" { span data-from=(id) {} span { "now" } }
        }
    }
}

/// `GET /ui/`.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor) -> Page {
    // From now on it is watched.
    app.live.look(&app.pipeline, &visitor.caller.tenant, u64::MAX);
    let mut levels: Vec<(&str, &str)> =
        CacheLevel::ALL.iter().map(|level| (level.as_str(), level_name(*level))).collect();
    levels.push(("failed", "not answered"));
    // Not everything is counted by tenant, and the rest is for operators.
    let sees_all = visitor.caller.may(Scope::Operator);
    let whose = visitor.has_key.then_some("all tenants");
    let content = html! {
        header class="head" {
            div { h1 { "Overview" } p class="quiet" { "What this server does now, a second at a time." } }
            p class="state" id="state" data-level="normal" { span class="dot" aria-hidden="true" {} span id="state-text" { "…" } }
        }
        dl class="tiles" {
            (tile("rate", "Turns a second", ""))
            (tile("cached", "From the caches", ""))
            (tile("saved", "Saved", ""))
            (tile("hits", "Cached answer in", ""))
            (tile("rest", "Other answer in", ""))
            @if sees_all { (tile("inside", if visitor.has_key { "Turns inside, all tenants" } else { "Turns inside" }, "")) }
        }
        (chart("levels", "Where answers came from", "Answers in each five seconds, of the last ten minutes at most.", &levels))
        (chart("times", "How long answers take", "Half of them at most, and 95 of 100, over the quarter of a minute before. A logarithmic scale.",
            &[("p50", "half"), ("p95", "95 of 100")]))
        section class="columns" aria-label="Inside" {
            @if sees_all {
                (group("Caches", whose, &[("entries", "answers"), ("bytes", "memory"), ("invalidated", "taken away by edits"), ("refreshed", "made anew since")]))
                (group("Audits", whose, &[("agreed", "agreed"), ("disagreed", "disagreed"), ("barred", "answers held back"), ("bound", "of hits disagree, at most")]))
            }
            (group("Tokens", None, &[("input", "read"), ("output", "written"), ("spared", "spared by the caches"), ("background", "cost in the background")]))
        }
    };
    laid_out(&visitor, Place::Overview, "Overview", "overview.js", &content)
}

fn group(title: &str, whose: Option<&str>, figures: &[(&str, &str)]) -> Markup {
    html! {
        div {
            h2 { (title) @if let Some(whose) = whose { " " span class="quiet small" { (whose) } } }
            dl class="figures" {
                @for (name, label) in figures { div { dt { (label) } dd data-figure=(name) { "–" } } }
            }
        }
    }
}

/// `GET /ui/numbers`.
pub(super) async fn numbers(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<JsonReply, ApiError> {
    let NumbersQuery { after } = query(&uri)?;
    let seconds = app.live.look(&app.pipeline, &visitor.caller.tenant, 0);
    let late = &seconds[seconds.len().saturating_sub(TIMES_OVER)..];
    let new: Vec<Value> = (0..seconds.len())
        .filter(|&at| seconds[at].at_ms > after)
        .map(|at| second(&seconds[at], &seconds[at.saturating_sub(LINE_OVER - 1)..=at]))
        .collect();
    let (tally, stats) = (app.pipeline.tally_of(&visitor.caller.tenant), app.pipeline.stats());
    Ok(JsonReply(json!({
        "seconds": new,
        "seconds_max": SECONDS_MAX,
        "hits": times(late.iter().map(|second| &second.hits)),
        "rest": times(late.iter().map(|second| &second.rest)),
        "since_start": since_start(&tally),
        "load": stats.load.level,
        "inside": visitor.caller.may(Scope::Operator).then(|| inside(&stats)),
    })))
}

fn second(second: &Second, line: &[Second]) -> Value {
    let Second { at_ms, answered, failed, .. } = second;
    let all = line.iter().flat_map(|second| [&second.hits, &second.rest]);
    json!({ "at_ms": at_ms, "answered": answered, "failed": failed, "times": times(all) })
}

/// How long half of all took at most, and 95 and 99 of 100, in microseconds.
fn times<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Value {
    let mut sum = Histogram::default();
    histograms.for_each(|histogram| sum.merge(histogram));
    json!({ "count": sum.count(), "p50": sum.quantile_us(0.5), "p95": sum.quantile_us(0.95), "p99": sum.quantile_us(0.99) })
}

fn since_start(tally: &Tally) -> Value {
    let answered = |wanted: &dyn Fn(CacheLevel) -> bool| -> u64 {
        CacheLevel::ALL.iter().filter(|level| wanted(**level)).map(|level| tally.answered_at(*level)).sum()
    };
    let account = &tally.account;
    // What the caches save, and what routing does: that may be a loss.
    let saved =
        (account.saved_cost_micros + account.large_cost_micros).cast_signed() - account.cost_micros.cast_signed();
    json!({
        "turns": answered(&|_| true),
        "hits": answered(&CacheLevel::is_hit),
        "failed": tally.failed.iter().sum::<u64>(),
        "input_tokens": account.input_tokens,
        "output_tokens": account.output_tokens,
        "saved_tokens": account.saved_tokens,
        "saved_micros": saved,
        "cost_micros": account.cost_micros,
        "background_micros": account.background_cost_micros,
    })
}

fn inside(stats: &PipelineStats) -> Value {
    let PipelineStats { turns_in_flight, turns_following, validity, refresh, audit, bound, load, .. } = stats;
    json!({
        "in_flight": turns_in_flight,
        "following": turns_following,
        "waiting": load.waiting,
        "refused": load.refused,
        "saturation": load.saturation,
        "entries": validity.entries,
        "bytes": validity.bytes,
        "invalidated": validity.invalidated,
        "refreshed": refresh.refreshed,
        "agreed": audit.agreed,
        "disagreed": audit.disagreed,
        "barred": audit.barred,
        "bound": bound.disagreement_max(),
        "judged": bound.recent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_by_routing_counts() {
        let mut tally = Tally::default();
        tally.account.cost_micros = 10;
        tally.account.large_cost_micros = 4;
        assert_eq!(since_start(&tally)["saved_micros"], -6);
        tally.account.saved_cost_micros = 7;
        assert_eq!(since_start(&tally)["saved_micros"], 1);
    }
}

//! The caches: what is served most, what an answer rests on, and a flush.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::json;
use turnflow_pipeline::{CachedAnswer, Selection};
use turnflow_state::{ArticleId, EntryId, TenantId};

use super::format::{ago_ms, beginning, count, encoded};
use super::layout::{Place, failed, page as laid_out};
use super::session::{Actor, Visitor};
use super::verdict::cited;
use crate::door::now_ms;
use crate::http::error::ApiError;
use crate::http::receive::{Json, query};
use crate::http::reply::JsonReply;
use crate::http::router::App;

/// Entries of a page.
const PAGE: usize = 50;
/// Characters of an answer in a list.
const SHORT: usize = 160;

/// Which cached answers are meant. Texts may be empty, as forms send them, and white space alone is.
#[derive(Default, Deserialize)]
pub(super) struct Meant {
    #[serde(default)]
    entry: Option<u64>,
    #[serde(default)]
    article: String,
    #[serde(default)]
    text: String,
}

impl Meant {
    fn selection(&self, tenant: TenantId) -> Result<Selection, ApiError> {
        let mut selection = Selection::all(tenant);
        selection.entry = self.entry.map(EntryId);
        if !self.article.trim().is_empty() {
            let article = ArticleId::new(self.article.trim()).map_err(|error| ApiError::invalid("article", error))?;
            selection = selection.article(article);
        }
        Ok(if self.has_text() { selection.text(&self.text) } else { selection })
    }

    fn is_all(&self) -> bool {
        self.entry.is_none() && self.article.trim().is_empty() && !self.has_text()
    }

    fn has_text(&self) -> bool {
        !self.text.trim().is_empty()
    }
}

/// A flush, or a question what it would do.
#[derive(Deserialize)]
pub(super) struct FlushBody {
    #[serde(flatten)]
    meant: Meant,
    /// Has to be said where nothing else is.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
struct EntryQuery {
    id: u64,
}

/// `GET /ui/caches`.
pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let meant: Meant = query(&uri)?;
    let selection = meant.selection(visitor.caller.tenant.clone())?;
    let caches = app.pipeline.caches();
    let listing = app.work(async move { caches.list(selection, PAGE).await }).await??;
    let all = meant.is_all();
    let content = html! {
        header class="head" {
            div {
                h1 { "Caches" }
                p class="quiet" { "What is served without asking a model, the most popular first." }
            }
            form class="search" role="search" {
                label for="text" class="hidden" { "Words of the question" }
                input id="text" name="text" type="search" value=(meant.text) placeholder="Words";
                label for="article" class="hidden" { "Id of an article" }
                input id="article" name="article" type="search" value=(meant.article) placeholder="Article";
                button { "Find" }
            }
        }
        div class="row between" {
            p aria-live="polite" {
                strong { (count(listing.matched, "cached answer")) }
                @if listing.matched > listing.entries.len() { ", the first " (listing.entries.len()) " of them here" }
            }
            @if listing.matched > 0 {
                button class="danger" data-flush data-article=(meant.article.trim()) data-text=(meant.text.trim())
                    data-all=[all.then_some("true")] {
                    @if all { "Flush all…" } @else { "Flush these…" }
                }
            }
        }
        @if listing.entries.is_empty() {
            div class="empty" {
                @if all {
                    p { "Nothing is cached yet. The first answer to a question is, and serves whoever asks it again." }
                    p { a href="/ui/playground" { "Ask something" } "." }
                } @else {
                    p { "No cached answer is like that." }
                    p { a href="/ui/caches" { "Show all" } }
                }
            }
        } @else {
            ul class="rows" { @for entry in &listing.entries { (row(entry, true)) } }
        }
    };
    Ok(laid_out(&visitor, Place::Caches, "Caches", "app.js", &content).into_response())
}

/// A cached answer in a list.
pub(super) fn row(entry: &CachedAnswer, with_flush: bool) -> Markup {
    html! {
        li data-entry=(entry.id.0) {
            a class="whole" href={ "/ui/entry?id=" (entry.id.0) } {
                span class="title" { (entry.question) }
                span class="sub" { (beginning(&entry.answer.text, SHORT)) }
            }
            span class="facts" {
                strong { (count(entry.hits as usize, "hit")) }
                span { (serves(entry)) }
                span { (ago_ms(now_ms().saturating_sub(entry.created_ms))) }
                span { (cited(&entry.answer.sources)) }
                @if entry.refreshed { span class="note" { "made anew" } }
                @if entry.disagreed > 0 { span class="note bad" { "found wrong" } }
                @if with_flush {
                    button class="link" data-flush data-id=(entry.id.0) aria-label={ "Flush the answer to " (entry.question) } { "Flush…" }
                }
            }
        }
    }
}

const fn serves(entry: &CachedAnswer) -> &'static str {
    if entry.shared { "serves other words too" } else { "serves the same words" }
}

/// `GET /ui/entry`.
pub(super) async fn entry(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let EntryQuery { id } = query(&uri)?;
    let selection = Selection::all(visitor.caller.tenant.clone()).entry(EntryId(id));
    let caches = app.pipeline.caches();
    let found = app.work(async move { caches.list(selection, 1).await }).await??.entries.pop();
    let Some(entry) = found else {
        let message =
            format!("entry {id} is not cached any more: an edit, a flush, its age or want of room took it away");
        return Ok(failed(&visitor, Place::Caches, &ApiError::not_found("entry_not_found", message)));
    };
    let content = html! {
        header class="head" {
            div {
                p class="crumb" { a href="/ui/caches" { "Caches" } " / entry " (entry.id.0) }
                h1 { (entry.question) }
            }
            button class="danger" data-flush data-id=(entry.id.0) data-then="/ui/caches" { "Flush…" }
        }
        div class="answer wide" { p { (entry.answer.text) } }
        (facts(&entry))
    };
    Ok(laid_out(&visitor, Place::Caches, &entry.question, "app.js", &content).into_response())
}

fn facts(entry: &CachedAnswer) -> Markup {
    let CachedAnswer { answer, origin, refreshed, created_ms, hits, audits, agreed, disagreed, .. } = entry;
    html! {
        dl class="facts-of" {
            dt { "Hits" } dd { (hits) }
            dt { "Serves" }
            dd {
                @if entry.shared { "the same question, in the same words or in others" }
                @else if !answer.grounded { "the same words alone, because the knowledge base has no answer" }
                @else if answer.cut_off { "the same words alone, because the bound on tokens cut it off" }
                @else if *disagreed > 0 { "the same words alone, because it was found wrong once" }
                @else { "the same words alone" }
            }
            dt { "Came about" }
            dd {
                "asked " (ago_ms(now_ms().saturating_sub(*created_ms))) " in "
                a href={ "/ui/conversation?id=" (encoded(origin.conversation.as_str())) } { (origin.conversation) }
                @if *refreshed { ", and made anew since, after an edit" }
                ", written by the tier " code { (answer.tier) }
            }
            dt { "Sources" } dd { (cited(&answer.sources)) }
            dt { "Rests on" }
            dd {
                @for (place, article) in entry.rests_on.iter().enumerate() {
                    @if place > 0 { ", " }
                    a href={ "/ui/article?id=" (encoded(article.as_str())) } { (article) }
                }
                @if entry.rests_on.is_empty() { "nothing: it falls with the first article that could answer it" }
                @else { p class="small quiet" { "It falls when what was retrieved of any of these changes, or when something nearer comes." } }
            }
            dt { "Read" } dd { "the knowledge base at epoch " (entry.read_epoch) }
            dt { "Audits" }
            dd { @if *audits == 0 { "none yet" } @else { (audits) ", of which " (agreed) " agreed and " (disagreed) " did not" } }
        }
    }
}

/// `POST /ui/flush`.
pub(super) async fn flush(
    State(app): State<Arc<App>>,
    Actor(visitor): Actor,
    Json(FlushBody { meant, all, dry_run }): Json<FlushBody>,
) -> Result<JsonReply, ApiError> {
    if meant.is_all() != all {
        return Err(ApiError::invalid(
            "all",
            "true for all cached answers, and otherwise an entry, an article or words",
        ));
    }
    let selection = meant.selection(visitor.caller.tenant.clone())?;
    let caches = app.pipeline.caches();
    let count = app
        .work(async move {
            if dry_run {
                caches.list(selection, 0).await.map(|listing| listing.matched)
            } else {
                caches.flush(selection).await.map(|flushed| flushed.entries)
            }
        })
        .await??;
    if !dry_run {
        // Words may be a customer's.
        let (tenant, has_text) = (visitor.caller.tenant, meant.has_text());
        let Meant { entry, article, .. } = meant;
        tracing::info!(%tenant, entry, article, has_text, count, "the caches were flushed from the page");
    }
    Ok(JsonReply(json!({ "count": count, "dry_run": dry_run })))
}

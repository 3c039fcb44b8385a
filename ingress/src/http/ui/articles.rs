//! The knowledge base: found, read and written, with what a write does to the cached answers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};
use turnflow_pipeline::{ArticleDraft, CachedAnswer, DraftContent, DraftError, Fall, Forecast, Receipt, Selection};
use turnflow_state::{Article, ArticleOutcome, TenantId, WriteRefused};

use super::caches::row;
use super::format::{beginning, count, encoded};
use super::layout::{Place, failed, page as laid_out};
use super::notes;
use super::session::{Actor, Visitor};
use crate::door::{self, Conflict, article_id, text};
use crate::http::error::ApiError;
use crate::http::receive::{Json, query};
use crate::http::reply::JsonReply;
use crate::http::router::App;
use crate::object::Object;

/// Articles of a page.
const PAGE: usize = 50;
/// Chunks that a search finds.
const FOUND: usize = 20;
/// Cached answers that are shown beside an article, and named after a write.
const ANSWERS: usize = 50;
/// Characters of a text in a list.
const SHORT: usize = 200;

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
    after: Option<String>,
}

#[derive(Deserialize)]
struct PageQuery {
    #[serde(default)]
    id: String,
    /// Whether the cached answers alone are wanted.
    #[serde(default)]
    answers: bool,
}

/// An article as the page sends it; without content it is deleted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sent {
    id: String,
    content: Option<Object<Content>>,
    /// The version that was read; 0 for an article that is new.
    version: u64,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    title: String,
    body: String,
    /// A line `name: value` for each; None keeps those that there are.
    notes: Option<String>,
}

/// `GET /ui/articles`.
pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let ListQuery { q, after } = query(&uri)?;
    let (knowledge, tenant) = (app.knowledge.clone(), visitor.caller.tenant.clone());
    let rows = if q.trim().is_empty() {
        let after = after.map(|after| article_id("after", &after)).transpose()?;
        let articles = app.work(async move { knowledge.list(&tenant, after.as_ref(), PAGE).await }).await??;
        let more = articles.last().filter(|_| articles.len() == PAGE).map(|last| encoded(last.id.as_str()));
        let rows: Vec<Markup> = articles
            .iter()
            .map(|article| found(article.id.as_str(), &article.title, &article.body, Some(article.version), None))
            .collect();
        html! {
            @if rows.is_empty() { (nothing("The knowledge base is empty, so every answer is that there is none.")) }
            ul class="rows" { @for row in rows { (row) } }
            @if let Some(after) = more { p { a class="button" href={ "/ui/articles?after=" (after) } { "More" } } }
        }
    } else {
        let wanted = text("q", q.clone(), app.config.limits.text_bytes_max)?;
        let chunks = app.work(async move { knowledge.search(&tenant, &wanted, FOUND).await }).await??;
        html! {
            @if chunks.is_empty() { (nothing("Nothing is like that.")) }
            ul class="rows" {
                @for scored in &chunks {
                    (found(scored.chunk.id.article.as_str(), &scored.chunk.title, &scored.chunk.text, None, Some(scored.score)))
                }
            }
        }
    };
    let content = html! {
        header class="head" {
            div {
                h1 { "Knowledge base" }
                p class="quiet" { "What answers are made from. An edit counts for the very next question." }
            }
            form class="search" role="search" {
                label for="q" class="hidden" { "Search in a customer's words" }
                input id="q" name="q" type="search" value=(q) placeholder="Search in a customer's words";
                button { "Find" }
            }
            a class="button primary" href="/ui/article" { "New article" }
        }
        (rows)
    };
    Ok(laid_out(&visitor, Place::Articles, "Knowledge base", "app.js", &content).into_response())
}

fn nothing(said: &str) -> Markup {
    html! { div class="empty" { p { (said) } p { a href="/ui/article" { "Write an article" } "." } } }
}

fn found(id: &str, title: &str, body: &str, version: Option<u64>, score: Option<f32>) -> Markup {
    html! {
        li {
            a class="whole" href={ "/ui/article?id=" (encoded(id)) } {
                span class="title" { @if title.is_empty() { (id) } @else { (title) } }
                span class="sub" { (beginning(body, SHORT)) }
            }
            span class="facts" {
                code class="id" { (id) }
                @if let Some(version) = version { span { "version " (version) } }
                @if let Some(score) = score { span { (format!("{score:.2}")) " near" } }
            }
        }
    }
}

/// `GET /ui/article`: one article to edit, or a new one.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let PageQuery { id, answers } = query(&uri)?;
    if id.is_empty() {
        let content = editor(None, &[], 0);
        return Ok(laid_out(&visitor, Place::Articles, "New article", "article.js", &content).into_response());
    }
    let id = article_id("id", &id)?;
    let (knowledge, tenant, wanted) = (app.knowledge.clone(), visitor.caller.tenant.clone(), id.clone());
    let (caches, selection) = (app.pipeline.caches(), Selection::all(tenant.clone()).article(id.clone()));
    let work = async move { (knowledge.get(&tenant, &wanted).await, caches.list(selection, ANSWERS).await) };
    let (article, listing) = app.work(work).await?;
    let (article, listing) = (article?, listing?);
    if answers {
        let part = resting(&listing.entries, listing.matched).into_string();
        return Ok(([(axum::http::header::CONTENT_TYPE, "text/html; charset=utf-8")], part).into_response());
    }
    let Some(article) = article else {
        return Ok(failed(&visitor, Place::Articles, &Conflict::NotFound(id).into()));
    };
    let content = editor(Some(&article), &listing.entries, listing.matched);
    Ok(laid_out(&visitor, Place::Articles, &article.title, "article.js", &content).into_response())
}

fn editor(article: Option<&Article>, entries: &[CachedAnswer], matched: usize) -> Markup {
    let notes = article.map(|article| notes::written(&article.metadata)).unwrap_or_default();
    let fit = article.is_none_or(|article| notes::fit(&article.metadata));
    html! {
        header class="head" {
            div {
                p class="crumb" { a href="/ui/articles" { "Knowledge base" } @if let Some(article) = article { " / " (article.id) } }
                h1 { @if let Some(article) = article { (article.title) } @else { "New article" } }
            }
        }
        div class="desk" {
            form id="article" class="stack" data-id=[article.map(|article| article.id.as_str())]
                data-version=(article.map_or(0, |article| article.version)) {
                @if article.is_none() {
                    label for="id" { "Id" }
                    input id="id" required maxlength="128" placeholder="delivery-times" spellcheck="false" autofocus;
                }
                label for="title" { "Title" }
                input id="title" value=[article.map(|article| article.title.as_str())];
                label for="body" { "Text" }
                textarea id="body" rows="14" { (article.map_or("", |article| article.body.as_str())) }
                details open[!notes.is_empty()] {
                    summary { "Your own notes" }
                    label for="notes" class="hidden" { "Notes, a line of the form name: value for each" }
                    textarea id="notes" rows="3" placeholder="audience: customers" spellcheck="false" readonly[!fit] { (notes) }
                    p class="small quiet" {
                        "No answer is made from them, and changing them makes none invalid."
                        @if !fit { " They are not edited here: " (notes::UNFIT) "." }
                    }
                }
                p id="effect" class="effect" role="status" aria-live="polite" { "Nothing has changed yet." }
                div class="row" {
                    button class="primary" id="save" disabled[article.is_some()] { "Save" }
                    @if let Some(article) = article {
                        span class="quiet" { "version " span id="version" { (article.version) } }
                        button type="button" class="link danger" id="delete" { "Delete…" }
                    }
                }
            }
            aside aria-labelledby="resting-title" {
                h2 id="resting-title" { "Cached answers that rest on it" }
                div id="answers" { (resting(entries, matched)) }
            }
        }
    }
}

/// The cached answers that rest on an article.
fn resting(entries: &[CachedAnswer], matched: usize) -> Markup {
    html! {
        @if entries.is_empty() {
            p class="quiet" { "None. Answers appear here when customers ask about it." }
        } @else {
            p class="small quiet" { (count(matched, "answer")) ". While you write, those are marked that saving would take away." }
            ul class="rows tight" { @for entry in entries { (row(entry, false)) } }
        }
    }
}

/// `POST /ui/article`: writes or deletes an article, or tells what that would do.
pub(super) async fn write(
    State(app): State<Arc<App>>,
    Actor(visitor): Actor,
    Json(Sent { id, content, version, dry_run }): Json<Sent>,
) -> Result<JsonReply, ApiError> {
    let draft = match content {
        Some(Object(content)) => drafted(&app, &visitor.caller.tenant, &id, content, version).await?,
        None => ArticleDraft { id: article_id("id", &id)?, content: None, expected_version: Some(version) },
    };
    let (knowledge, conversations, tenant) =
        (app.knowledge.clone(), app.pipeline.conversations(), visitor.caller.tenant.clone());
    let id = draft.id.clone();
    let written = async move {
        if dry_run {
            let (outcomes, forecasts) = knowledge.dry_run(&tenant, vec![draft]).await?;
            let count = forecasts.len();
            return Ok((outcomes, count, forecasts.into_iter().take(ANSWERS).map(falling).collect::<Vec<Value>>()));
        }
        let Receipt { outcomes, invalidated, .. } = knowledge.write(&tenant, vec![draft]).await?;
        let count = invalidated.len();
        let mut fell = Vec::new();
        for fallen in invalidated.into_iter().take(ANSWERS) {
            let question = conversations.turn(&fallen.origin).await?.map(|record| record.turn.text);
            fell.push(json!({ "entry": fallen.entry.0, "question": question }));
        }
        Ok::<_, ApiError>((outcomes, count, fell))
    };
    let (outcomes, count, fell) = app.work(written).await??;
    let outcome: Option<Result<ArticleOutcome, DraftError>> = outcomes.into_iter().next();
    let outcome = outcome.ok_or_else(ApiError::internal)?.map_err(|error| Conflict::of_draft(&id, error))?;
    Ok(JsonReply(json!({
        "id": id.as_str(),
        "version": outcome.version,
        "chunks_changed": outcome.chunks_changed,
        "count": count,
        "fell": fell,
    })))
}

fn falling(Forecast { entry, question, fall }: Forecast) -> Value {
    let why = match fall {
        Fall::SupportChanged => "what it rests on changes",
        Fall::Overtaken => "something nearer comes",
    };
    json!({ "entry": entry.0, "question": question, "why": why })
}

/// An article as it is to be; its notes stay as they are kept unless others are sent.
async fn drafted(
    app: &App,
    tenant: &TenantId,
    id: &str,
    Content { title, body, notes }: Content,
    expected: u64,
) -> Result<ArticleDraft, ApiError> {
    let article = article_id("id", id)?;
    let (knowledge, tenant, wanted) = (app.knowledge.clone(), tenant.clone(), article.clone());
    let kept = app.work(async move { knowledge.get(&tenant, &wanted).await }).await??;
    if let Some(current) = kept.as_ref().map(|kept| kept.version).filter(|version| *version != expected) {
        // Its notes are not those that were read.
        return Err(Conflict::of_draft(&article, WriteRefused::VersionMismatch { expected, current }.into()).into());
    }
    let kept = kept.map(|kept| kept.metadata).unwrap_or_default();
    let metadata = match notes {
        None => kept,
        Some(_) if !notes::fit(&kept) => return Err(ApiError::invalid("notes", notes::UNFIT)),
        Some(notes) => notes::read(&notes)?,
    };
    let content = DraftContent { title, body, metadata, version: None };
    Ok(door::draft("", id, content, Some(expected))?)
}

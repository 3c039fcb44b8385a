//! The conversations that are kept: the latest, all by name, and what was said in one.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use turnflow_pipeline::Summary;
use turnflow_state::{ConversationId, RECENT_TURNS_MAX};

use super::format::{ago_ms, beginning, count, encoded};
use super::layout::{Place, failed, page as laid_out};
use super::session::Visitor;
use super::verdict::{badge, verdict};
use crate::door::now_ms;
use crate::http::error::ApiError;
use crate::http::receive::query;
use crate::http::router::App;

/// Conversations of a page.
const PAGE: usize = 50;
/// Characters of a text in a list.
const SHORT: usize = 90;

#[derive(Deserialize)]
struct ListQuery {
    /// Whether all are wanted, in the order of their names.
    #[serde(default)]
    all: bool,
    after: Option<String>,
}

#[derive(Deserialize)]
struct PageQuery {
    id: String,
}

/// `GET /ui/conversations`.
pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let ListQuery { all, after } = query(&uri)?;
    let after = after.map(|after| conversation("after", &after)).transpose()?;
    let (conversations, tenant) = (app.pipeline.conversations(), &visitor.caller.tenant);
    let found = if all {
        conversations.list(tenant, after.as_ref(), PAGE).await?
    } else {
        conversations.recent(tenant, PAGE).await?
    };
    let content = html! {
        header class="head" {
            div {
                h1 { "Conversations" }
                p class="quiet" { @if all { "All, in the order of their names." } @else { "The latest since this server was started." } }
            }
            form class="search" action="/ui/conversation" role="search" {
                label for="id" class="hidden" { "Name of a conversation" }
                input id="id" name="id" type="search" placeholder="Name of a conversation" required;
                button { "Open" }
            }
        }
        nav class="tabs" aria-label="Order" {
            a href="/ui/conversations" aria-current=[(!all).then_some("true")] { "Latest" }
            a href="/ui/conversations?all=true" aria-current=[all.then_some("true")] { "All" }
        }
        @if found.is_empty() {
            div class="empty" {
                p { @if after.is_some() { "No more." } @else { "Nobody has said anything yet." } }
                p { a href="/ui/playground" { "Ask something" } " yourself." }
            }
        } @else {
            ul class="rows" { @for summary in &found { (row(summary)) } }
            @if let Some(last) = found.last().filter(|_| all && found.len() == PAGE) {
                p { a class="button" href={ "/ui/conversations?all=true&after=" (encoded(last.id.as_str())) } { "More" } }
            }
        }
    };
    Ok(laid_out(&visitor, Place::Conversations, "Conversations", "app.js", &content).into_response())
}

fn row(Summary { id, turns_answered, last }: &Summary) -> Markup {
    #[expect(clippy::cast_possible_truncation, reason = "a count of turns")]
    let turns = count(*turns_answered as usize, "turn");
    html! {
        li {
            a class="whole" href={ "/ui/conversation?id=" (encoded(id.as_str())) } {
                @match last {
                    Some(last) => {
                        span class="title" { (beginning(&last.turn.text, SHORT)) }
                        span class="sub" { (beginning(&last.completion.text, SHORT)) }
                    }
                    None => span class="title" { (id) }
                }
            }
            span class="facts" {
                @if let Some(last) = last {
                    (badge(last.completion.verdict.level))
                    span { (last.turn.channel) }
                    span { (ago_ms(now_ms().saturating_sub(last.turn.at_ms))) }
                }
                span { (turns) }
                code class="id" { (beginning(id.as_str(), 24)) }
            }
        }
    }
}

/// `GET /ui/conversation`.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let PageQuery { id } = query(&uri)?;
    let id = conversation("id", &id)?;
    let turns = app.pipeline.conversations().turns(&visitor.caller.tenant, &id).await?;
    if turns.is_empty() {
        let message = format!("there is no conversation {id} with an answered turn");
        let error = ApiError::not_found("conversation_not_found", message);
        return Ok(failed(&visitor, Place::Conversations, &error));
    }
    let content = html! {
        header class="head" {
            div {
                p class="crumb" { a href="/ui/conversations" { "Conversations" } }
                h1 class="id" { (id) }
                p class="quiet" {
                    @if turns.len() == RECENT_TURNS_MAX { "Its last " (RECENT_TURNS_MAX) " turns." } @else { (count(turns.len(), "turn")) "." }
                }
            }
        }
        ol class="turns" {
            @for record in &turns {
                li class="turn" {
                    p class="asked" { (record.turn.text) }
                    p class="when" { (record.turn.channel) ", " (ago_ms(now_ms().saturating_sub(record.turn.at_ms))) }
                    div class="answer" { p { (record.completion.text) } }
                    (verdict(record))
                }
            }
        }
    };
    Ok(laid_out(&visitor, Place::Conversations, "Conversation", "app.js", &content).into_response())
}

fn conversation(param: &str, id: &str) -> Result<ConversationId, ApiError> {
    ConversationId::new(id).map_err(|error| ApiError::invalid(param, error))
}

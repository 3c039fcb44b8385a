//! The playground: to ask what a customer would, and see where each answer comes from.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use maud::html;
use serde::Deserialize;
use turnflow_state::{ConversationId, TurnId, TurnKey};

use super::layout::{Page, Place, page as laid_out};
use super::session::{Actor, Visitor};
use super::verdict::verdict;
use crate::http::answer;
use crate::http::chat::ChatRequest;
use crate::http::error::ApiError;
use crate::http::receive::{Json, query};
use crate::http::router::App;

#[derive(Deserialize)]
struct TurnQuery {
    conversation: String,
    turn: String,
}

/// `GET /ui/playground`.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Page, ApiError> {
    let (knowledge, tenant) = (app.knowledge.clone(), visitor.caller.tenant.clone());
    let has_none = app.work(async move { knowledge.list(&tenant, None, 1).await }).await??.is_empty();
    let conversation = format!("playground-{}", app.fresh_id());
    let content = html! {
        header class="head" {
            div {
                h1 { "Playground" }
                p class="quiet" { "Ask what a customer would. Every answer says where it came from, and why." }
            }
            a class="button" href="/ui/playground" { "New conversation" }
        }
        section class="chat" aria-label="Conversation" {
            ol id="turns" class="turns" data-conversation=(conversation) aria-live="polite" aria-relevant="additions" {
                li class="empty" id="nothing" {
                    p { "Nothing was asked yet. Ask something twice, or in other words, and see the second answer come from the cache." }
                    @if has_none {
                        p { "The knowledge base is empty: " a href="/ui/article" { "write an article" } " first." }
                    }
                }
            }
            form id="asking" class="asking" {
                label for="question" class="hidden" { "Your question" }
                textarea id="question" name="question" rows="1" required maxlength=(app.config.limits.text_bytes_max)
                    placeholder="How long does delivery take?" autofocus {}
                button class="primary" { "Ask" }
                label class="check small" { input type="checkbox" id="anew"; " past the caches" }
            }
        }
    };
    Ok(laid_out(&visitor, Place::Playground, "Playground", "playground.js", &content))
}

/// `POST /ui/chat`: as chat completions, for who has a session.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Actor(visitor): Actor,
    headers: HeaderMap,
    Json(request): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    answer::answer(&app, visitor.caller, &headers, request).await
}

/// `GET /ui/turn`: the verdict of a turn, as a part of a page.
pub(super) async fn turn(State(app): State<Arc<App>>, visitor: Visitor, uri: Uri) -> Result<Response, ApiError> {
    let TurnQuery { conversation, turn } = query(&uri)?;
    let conversation = ConversationId::new(conversation).map_err(|error| ApiError::invalid("conversation", error))?;
    let turn = TurnId::new(turn).map_err(|error| ApiError::invalid("turn", error))?;
    let key = TurnKey { tenant: visitor.caller.tenant, conversation, turn };
    let found = app.pipeline.conversations().turn(&key).await?;
    let record =
        found.ok_or_else(|| ApiError::not_found("turn_not_found", format!("there is no turn {}", key.turn)))?;
    let about = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    Ok((about, verdict(&record).into_string()).into_response())
}

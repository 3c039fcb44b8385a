//! What all pages have in common: the head, the way to the others, and whose they are.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::session::Visitor;
use crate::http::error::ApiError;

/// A page, as a response.
pub(super) struct Page(Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], self.0.into_string()).into_response()
    }
}

/// Which of the pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Playground,
    Articles,
    Caches,
    Conversations,
}

const PLACES: [(Place, &str, &str); 5] = [
    (Place::Overview, "/ui/", "Overview"),
    (Place::Playground, "/ui/playground", "Playground"),
    (Place::Articles, "/ui/articles", "Knowledge base"),
    (Place::Caches, "/ui/caches", "Caches"),
    (Place::Conversations, "/ui/conversations", "Conversations"),
];

/// A page with everything around it; `script` makes it live.
pub(super) fn page(visitor: &Visitor, place: Place, title: &str, script: &str, content: &Markup) -> Page {
    let body = html! {
        a class="skip" href="#main" { "Skip to the content" }
        header class="side" {
            a class="brand" href="/ui/" { (mark()) span { "Turnflow" } }
            nav aria-label="Pages" {
                ul {
                    @for (known, path, name) in PLACES {
                        li { a href=(path) aria-current=[(known == place).then_some("page")] { (name) } }
                    }
                }
            }
            div class="whose" {
                span class="tenant" title="The tenant of the key" { (visitor.caller.tenant) }
                @if visitor.has_key {
                    form method="post" action="/ui/logout" {
                        input type="hidden" name="token" value=(visitor.token);
                        button class="link" { "Log out" }
                    }
                }
            }
        }
        main id="main" tabindex="-1" { (content) }
        dialog id="ask" aria-labelledby="ask-title" {
            form method="dialog" {
                h2 id="ask-title" { "Are you sure?" }
                p id="ask-text" {}
                div class="row end" {
                    button value="no" { "Cancel" }
                    button value="yes" class="danger" id="ask-yes" { "Go on" }
                }
            }
        }
        p id="told" class="told" role="status" aria-live="polite" {}
    };
    document(title, Some((&visitor.token, script)), &body)
}

/// A page with nothing around it.
pub(super) fn bare(title: &str, content: &Markup) -> Page {
    document(title, None, content)
}

/// A page that says why another is not there.
pub(super) fn failed(visitor: &Visitor, place: Place, error: &ApiError) -> Response {
    let content = html! { div class="empty" { (reason(error)) } };
    (error.status, page(visitor, place, "Not here", "app.js", &content)).into_response()
}

/// The same, with nothing around it.
pub(super) fn failed_alone(error: &ApiError) -> Response {
    let content = html! { main class="door" id="main" { div class="mark" { (mark()) } (reason(error)) } };
    (error.status, bare("That did not work", &content)).into_response()
}

fn reason(error: &ApiError) -> Markup {
    html! {
        h1 { @if error.status == StatusCode::NOT_FOUND { "Not here" } @else { "That did not work" } }
        p { (error.message) }
        p { a href="/ui/" { "Back to the overview" } }
    }
}

fn document(title: &str, live: Option<(&str, &str)>, body: &Markup) -> Page {
    Page(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Turnflow" }
                link rel="icon" href="/ui/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/ui/assets/style.css";
                @if let Some((token, script)) = live {
                    meta name="token" content=(token);
                    script type="module" src={ "/ui/assets/" (script) } {}
                }
            }
            body { (body) }
        }
    })
}

/// The sign of the house: turns that flow together.
pub(super) fn mark() -> Markup {
    html! {
        svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" focusable="false" class="sign" {
            path d="M3 6c7 0 6 6 11 6h7M3 12h11M3 18c7 0 6-6 11-6" {}
            circle cx="21" cy="12" r="1.6" {}
        }
    }
}

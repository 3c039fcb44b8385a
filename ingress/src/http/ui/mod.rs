//! The page for those who run a server: what it does now, a place to try it, the knowledge base, the caches and the conversations.
//!
//! HTML is made here, escaped by the templates' compiler; small scripts keep it live. Everything comes from this server: the policy that
//! every response carries allows nothing else, neither inline scripts nor styles. Who may see what is in [`session`]: an admin's key
//! opens a session, and as long as there are no keys everybody is let in, as everywhere.
//!
//! What a page shows is the tenant's of its key. What of it a customer wrote is data, and never markup.

mod articles;
mod caches;
mod conversations;
mod format;
mod layout;
mod live;
mod notes;
mod overview;
mod playground;
mod session;
mod verdict;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};

use super::error::{ApiError, Kind};
use super::router::App;

pub(super) use self::live::Live;
pub(super) use self::session::Sessions;

/// Where the page is.
pub(super) const HOME: &str = "/ui/";

/// What every response says besides.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Forms of this page have to tell where they come from.
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The files of the page: name, type and content.
const ASSETS: [(&str, &str, &str); 7] = [
    ("style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    ("chart.js", "text/javascript; charset=utf-8", include_str!("assets/chart.js")),
    ("overview.js", "text/javascript; charset=utf-8", include_str!("assets/overview.js")),
    ("playground.js", "text/javascript; charset=utf-8", include_str!("assets/playground.js")),
    ("article.js", "text/javascript; charset=utf-8", include_str!("assets/article.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// The routes of the page.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/ui", get(async || Redirect::to(HOME)))
        .route("/ui/", get(overview::page))
        .route("/ui/numbers", get(overview::numbers))
        .route("/ui/playground", get(playground::page))
        .route("/ui/chat", post(playground::chat))
        .route("/ui/turn", get(playground::turn))
        .route("/ui/articles", get(articles::list))
        .route("/ui/article", get(articles::page).post(articles::write))
        .route("/ui/caches", get(caches::list))
        .route("/ui/entry", get(caches::entry))
        .route("/ui/flush", post(caches::flush))
        .route("/ui/conversations", get(conversations::list))
        .route("/ui/conversation", get(conversations::page))
        .route("/ui/login", get(session::form).post(session::login))
        .route("/ui/logout", post(session::logout))
        .route("/ui/assets/{name}", get(asset))
        .route("/ui/{*rest}", any(nothing))
        .layer(from_fn(guarded))
}

async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    let (_, kind, content) = found.ok_or_else(|| unknown(&name))?;
    let about = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")];
    Ok((about, *content).into_response())
}

/// An address that is none.
async fn nothing(Path(rest): Path<String>) -> ApiError {
    unknown(&rest)
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found("unknown_route", format!("there is no {name:?} here; {HOME} is where the page is"))
}

/// Refuses what pages of other sites send, shows errors to people as pages, and says what browsers may do with a response.
async fn guarded(request: Request, next: Next) -> Response {
    let wants_page = wants_page(request.headers());
    let mut response = if request.method().is_safe() || is_own(request.headers()) {
        next.run(request).await
    } else {
        let message = "this does not come from a page of this server, by its Origin; open the page here and try again";
        ApiError::new(StatusCode::FORBIDDEN, Kind::InvalidRequest, "wrong_origin", message).into_response()
    };
    if wants_page && let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = layout::failed_alone(&error);
    }
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether a browser asks for a page to show; scripts and programs do not.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("text/html"))
}

/// Whether a request comes from a page of this server: browsers tell the origin of whatever changes something.
pub(super) fn is_own(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.zip(text(header::HOST)).is_some_and(|((_, authority), host)| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_server_may_change_something() {
        let check = |origin: Option<&str>, expected: bool| {
            let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost:7412"))]);
            headers.extend(origin.map(|origin| (header::ORIGIN, origin.parse().expect("a header"))));
            assert_eq!(is_own(&headers), expected, "{origin:?}");
        };
        check(Some("http://localhost:7412"), true);
        check(Some("https://LOCALHOST:7412"), true);
        check(Some("http://localhost"), false);
        check(Some("http://localhost:7412.evil.example"), false);
        check(Some("null"), false);
        check(None, false);
    }
}

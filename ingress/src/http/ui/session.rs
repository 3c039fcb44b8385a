//! Who looks at the page: sessions, and how they begin and end.
//!
//! An admin's key opens a session, whose name is a cookie that no script reads and no other site sends. It ends when the key does,
//! after [`AGE_MAX`], when its holder says so, or when [`SESSIONS_MAX`] others have begun since. The key itself is not kept.
//!
//! What changes something needs a token as well, which a page of the session alone knows. Without keys there is one token for all.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::html;
use serde::Deserialize;

use super::HOME;
use super::layout;
use crate::door::{Caller, Refusal};
use crate::http::error::{ApiError, Kind};
use crate::http::receive::{query, read};
use crate::http::router::App;
use crate::keys::Scope;

/// Sessions at most; the oldest ends for a new one.
const SESSIONS_MAX: usize = 64;
/// How long a session lasts.
const AGE_MAX: Duration = Duration::from_secs(12 * 60 * 60);
const COOKIE: &str = "turnflow";
/// Brings the token of what changes something.
const TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const LOGIN: &str = "/ui/login";

/// The sessions of a server.
pub(in crate::http) struct Sessions {
    /// The token of everybody, as long as there are no keys.
    open: String,
    /// Oldest first.
    kept: Mutex<VecDeque<Session>>,
}

struct Session {
    /// Of its name, which is a secret.
    hash: blake3::Hash,
    caller: Caller,
    token: String,
    began: Instant,
}

impl Sessions {
    pub(in crate::http) fn new() -> Self {
        Self { open: token(), kept: Mutex::default() }
    }

    /// Begins a session; gives its name.
    fn begin(&self, caller: Caller) -> Result<String, ApiError> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|error| {
            tracing::error!("the operating system gives no random bits: {error}");
            ApiError::internal()
        })?;
        let name = URL_SAFE_NO_PAD.encode(bits);
        let session = Session { hash: blake3::hash(name.as_bytes()), caller, token: token(), began: Instant::now() };
        let mut kept = self.lock();
        if kept.len() == SESSIONS_MAX {
            kept.pop_front();
        }
        kept.push_back(session);
        Ok(name)
    }

    /// Who has this session, if it has not ended.
    fn find(&self, name: &str) -> Option<Visitor> {
        let hash = blake3::hash(name.as_bytes());
        let mut kept = self.lock();
        kept.retain(|session| session.began.elapsed() < AGE_MAX && session.caller.may_call());
        let session = kept.iter().find(|session| session.hash == hash)?;
        Some(Visitor { caller: session.caller.clone(), token: session.token.clone(), has_key: true })
    }

    fn end(&self, name: &str) {
        let hash = blake3::hash(name.as_bytes());
        self.lock().retain(|session| session.hash != hash);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Session>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token that no other site guesses: hashes under fresh keys of the process.
fn token() -> String {
    let secret = RandomState::new();
    format!("{:016x}{:016x}", secret.hash_one(0_u8), secret.hash_one(1_u8))
}

/// Who looks at the page.
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) token: String,
    /// Whether there is a session that may end.
    pub(super) has_key: bool,
}

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        if app.is_stopping() {
            return Err(ApiError::from(Refusal::Unavailable).into_response());
        }
        if let Some(visitor) = keyless(app) {
            return Ok(visitor);
        }
        let found = cookie(&parts.headers).and_then(|name| app.sessions.find(name));
        found.ok_or_else(|| {
            let accepted = parts.headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
            if parts.method == Method::GET && accepted.is_some_and(|accepted| accepted.contains("text/html")) {
                return Redirect::to(LOGIN).into_response();
            }
            let message = "the session has ended; log in again";
            ApiError::new(StatusCode::UNAUTHORIZED, Kind::InvalidRequest, "no_session", message).into_response()
        })
    }
}

/// Who looks at the page and changes something.
pub(super) struct Actor(pub(super) Visitor);

impl FromRequestParts<Arc<App>> for Actor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let visitor = Visitor::from_request_parts(parts, app).await?;
        let token = parts.headers.get(TOKEN).and_then(|token| token.to_str().ok());
        if is_same(token.unwrap_or_default(), &visitor.token) {
            Ok(Self(visitor))
        } else {
            Err(foreign().into_response())
        }
    }
}

fn foreign() -> ApiError {
    let message = "the page is of another session; load it again";
    ApiError::new(StatusCode::FORBIDDEN, Kind::InvalidRequest, "wrong_token", message)
}

/// In a time that does not depend on where they differ.
fn is_same(one: &str, other: &str) -> bool {
    blake3::hash(one.as_bytes()) == blake3::hash(other.as_bytes())
}

fn keyless(app: &App) -> Option<Visitor> {
    let caller = (!app.gateway.needs_key()).then(|| app.gateway.caller(&HeaderMap::new(), Scope::Admin).ok())??;
    Some(Visitor { caller, token: app.sessions.open.clone(), has_key: false })
}

/// The name of the session that a request belongs to.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|pairs| pairs.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// The cookie of a session; one without a name ends it.
fn set_cookie(name: &str, is_secure: bool) -> HeaderValue {
    let age_s = if name.is_empty() { 0 } else { AGE_MAX.as_secs() };
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={name}; Path=/ui; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}");
    // It is made of characters that a header may have.
    HeaderValue::try_from(cookie).unwrap_or(HeaderValue::from_static(""))
}

/// Whether the browser speaks TLS, to this server or to a proxy in front of it.
fn is_secure(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https")
}

#[derive(Deserialize)]
struct Login {
    key: String,
}

#[derive(Deserialize)]
struct Logout {
    token: String,
}

/// `GET /ui/login`.
pub(super) async fn form(State(app): State<Arc<App>>) -> Response {
    if keyless(&app).is_some() { Redirect::to(HOME).into_response() } else { login_page(None) }
}

/// `POST /ui/login`.
pub(super) async fn login(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let is_secure = is_secure(request.headers());
    let Login { key } = sent(&app, request).await?;
    let authorization = HeaderValue::try_from(format!("Bearer {}", key.trim()));
    let caller = authorization.map_err(|_| Refusal::Unauthenticated).and_then(|authorization| {
        app.gateway.caller(&HeaderMap::from_iter([(header::AUTHORIZATION, authorization)]), Scope::Admin)
    });
    match caller {
        Ok(caller) => {
            let cookie = set_cookie(&app.sessions.begin(caller)?, is_secure);
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(HOME)).into_response())
        }
        Err(Refusal::Forbidden { .. }) => {
            Ok(login_page(Some((StatusCode::FORBIDDEN, "This key does not have the scope admin."))))
        }
        Err(Refusal::Unauthenticated) => {
            Ok(login_page(Some((StatusCode::UNAUTHORIZED, "This is no key of this server, or its time is over."))))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// `POST /ui/logout`.
pub(super) async fn logout(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    request: Request,
) -> Result<Response, ApiError> {
    let is_secure = is_secure(request.headers());
    let session = cookie(request.headers()).unwrap_or_default().to_owned();
    let Logout { token } = sent(&app, request).await?;
    if !is_same(&token, &visitor.token) {
        return Err(foreign());
    }
    app.sessions.end(&session);
    Ok(([(header::SET_COOKIE, set_cookie("", is_secure))], Redirect::to(LOGIN)).into_response())
}

/// What a form sends: it is written as the parameters of an address are.
async fn sent<T: serde::de::DeserializeOwned>(app: &App, request: Request) -> Result<T, ApiError> {
    let body = read(request.into_body(), &app.config.http).await?;
    let malformed = || ApiError::bad_request("invalid_value", "the form is malformed");
    let address = std::str::from_utf8(&body).ok().and_then(|body| format!("/?{body}").parse::<Uri>().ok());
    query(&address.ok_or_else(malformed)?)
}

fn login_page(failed: Option<(StatusCode, &str)>) -> Response {
    let content = html! {
        main class="door" id="main" {
            div class="mark" { (layout::mark()) }
            h1 { "Turnflow" }
            p class="quiet" { "Looking inside needs a key with the scope " code { "admin" } "." }
            form method="post" action=(LOGIN) class="stack" {
                label for="key" { "Key" }
                input id="key" name="key" type="password" autocomplete="current-password" required autofocus
                    spellcheck="false" placeholder="tf_…" aria-describedby=[failed.map(|_| "wrong")];
                @if let Some((_, message)) = failed {
                    p id="wrong" class="wrong" role="alert" { (message) }
                }
                button class="primary" { "Log in" }
            }
            p class="quiet small" { code { "turnflow keys create --tenant … --scopes admin" } " makes one." }
        }
    };
    let status = failed.map_or(StatusCode::OK, |(status, _)| status);
    (status, layout::bare("Log in", &content)).into_response()
}

#[cfg(test)]
mod tests {
    use turnflow_state::TenantId;

    use super::*;
    use crate::door::Gateway;

    fn caller() -> Caller {
        let gateway = Gateway::keyless(TenantId::new("t").expect("valid id"));
        gateway.caller(&HeaderMap::new(), Scope::Admin).expect("everybody is let in")
    }

    #[test]
    fn a_session_is_found_by_its_name_until_it_ends() {
        let sessions = Sessions::new();
        let (one, other) = (sessions.begin(caller()).expect("begun"), sessions.begin(caller()).expect("begun"));
        let token = |name: &str| sessions.find(name).map(|visitor| visitor.token);
        assert!(token(&one).is_some() && token(&one) != token(&other));
        assert!(token("").is_none() && token(&one[1..]).is_none());
        sessions.end(&one);
        assert!(token(&one).is_none() && token(&other).is_some());
        for _ in 0..SESSIONS_MAX {
            sessions.begin(caller()).expect("begun");
        }
        assert!(token(&other).is_none(), "the oldest makes room");
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
    }

    #[test]
    fn a_cookie_is_read_among_others_and_written_with_care() {
        let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static("a=b; turnflow=name;c=d"))]);
        assert_eq!(cookie(&headers), Some("name"));
        assert_eq!(cookie(&HeaderMap::new()), None);
        assert_eq!(set_cookie("n", true), "turnflow=n; Path=/ui; Max-Age=43200; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(set_cookie("", false), "turnflow=; Path=/ui; Max-Age=0; HttpOnly; SameSite=Strict");
    }
}

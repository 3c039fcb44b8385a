//! Who looks at the page: sessions, and how they begin and end.
//!
//! An admin's key opens a session, whose name is a cookie that no script reads and no other site sends. It ends when the key does,
//! after [`AGE_MAX`], when its holder says so, or when its tenant begins another and there is no place: it has [`OF_TENANT_MAX`] at most, and
//! all together [`SESSIONS_MAX`]. No tenant's sessions end another's. The key itself is not kept.
//!
//! What changes something needs a token as well, which a page of the session alone knows. Without keys there is one token for all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::html;
use serde::Deserialize;

use super::{HOME, layout, wants_page};
use crate::door::{Caller, Refusal};
use crate::http::error::{ApiError, Kind};
use crate::http::quota;
use crate::http::receive::{query, read};
use crate::http::router::App;
use crate::keys::Scope;

/// Sessions at most.
const SESSIONS_MAX: usize = 64;
/// Sessions of a tenant at most; its oldest ends for a new one.
const OF_TENANT_MAX: usize = 8;
/// How long a session lasts.
const AGE_MAX: Duration = Duration::from_secs(12 * 60 * 60);
const COOKIE: &str = "turnflow";
/// Brings the token of what changes something.
const TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const LOGIN: &str = "/ui/login";

/// The sessions of a server.
pub(in crate::http) struct Sessions {
    /// The token of everybody, as long as there are no keys; None where the operating system gave no random bits.
    open: Option<String>,
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
        Self { open: secret().ok(), kept: Mutex::default() }
    }

    /// Begins a session; gives its name. Refused when all places are others'.
    fn begin(&self, caller: Caller) -> Result<String, ApiError> {
        let (name, token) = (secret()?, secret()?);
        let session = Session { hash: blake3::hash(name.as_bytes()), caller, token, began: Instant::now() };
        let is_own = |other: &Session| other.caller.tenant == session.caller.tenant;
        let mut kept = self.lock();
        kept.retain(Session::lasts);
        if kept.len() >= SESSIONS_MAX || kept.iter().filter(|other| is_own(other)).count() >= OF_TENANT_MAX {
            let oldest = kept.iter().position(is_own).ok_or_else(full)?;
            kept.remove(oldest);
        }
        kept.push_back(session);
        Ok(name)
    }

    /// Who has this session, if it has not ended.
    fn find(&self, name: &str) -> Option<Visitor> {
        let hash = blake3::hash(name.as_bytes());
        let mut kept = self.lock();
        kept.retain(Session::lasts);
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

impl Session {
    fn lasts(&self) -> bool {
        self.began.elapsed() < AGE_MAX && self.caller.may_call()
    }
}

/// 256 random bits as text, which nobody guesses.
fn secret() -> Result<String, ApiError> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(|error| {
        tracing::error!("the operating system gives no random bits: {error}");
        ApiError::internal()
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bits))
}

fn full() -> ApiError {
    let message = format!("other tenants have all {SESSIONS_MAX} sessions; log in again when one of them has ended");
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, Kind::RateLimit, "too_many_sessions", message)
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
        if let Some(caller) = keyless(app) {
            let token = app.sessions.open.clone().ok_or_else(|| ApiError::internal().into_response())?;
            return Ok(Self { caller, token, has_key: false });
        }
        let found = cookie(&parts.headers).and_then(|name| app.sessions.find(name));
        found.ok_or_else(|| {
            if wants_page(&parts.headers) {
                return Redirect::to(LOGIN).into_response();
            }
            let message = "the session has ended; log in again";
            ApiError::new(StatusCode::UNAUTHORIZED, Kind::InvalidRequest, "no_session", message).into_response()
        })
    }
}

/// Who looks at the page and changes something, which counts as a request of the key.
pub(super) struct Actor(pub(super) Visitor);

impl FromRequestParts<Arc<App>> for Actor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let visitor = Visitor::from_request_parts(parts, app).await?;
        let token = parts.headers.get(TOKEN).and_then(|token| token.to_str().ok());
        if !is_same(token.unwrap_or_default(), &visitor.token) {
            return Err(foreign().into_response());
        }
        quota::remember(&parts.extensions, &visitor.caller);
        visitor.caller.request().map_err(|refusal| ApiError::from(refusal).into_response())?;
        Ok(Self(visitor))
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

/// Everybody, as long as there are no keys.
fn keyless(app: &App) -> Option<Caller> {
    (!app.gateway.needs_key()).then(|| app.gateway.caller(&HeaderMap::new(), Scope::Admin).ok())?
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
fn is_secure(app: &App, headers: &HeaderMap) -> bool {
    app.gateway.tls().is_some() || headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https")
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
    let is_secure = is_secure(&app, request.headers());
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
    let is_secure = is_secure(&app, request.headers());
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

    fn caller(tenant: &str) -> Caller {
        let gateway = Gateway::keyless(TenantId::new(tenant).expect("valid id"));
        gateway.caller(&HeaderMap::new(), Scope::Admin).expect("everybody is let in")
    }

    #[test]
    fn a_session_is_found_by_its_name_until_it_ends() {
        let sessions = Sessions::new();
        let [one, other] = ["t", "t"].map(|tenant| sessions.begin(caller(tenant)).expect("begun"));
        let token = |name: &str| sessions.find(name).map(|visitor| visitor.token);
        assert!(token(&one).is_some() && token(&one) != token(&other));
        assert!(token("").is_none() && token(&one[1..]).is_none());
        sessions.end(&one);
        assert!(token(&one).is_none() && token(&other).is_some());
    }

    #[test]
    fn no_tenants_sessions_end_anothers() {
        let sessions = Sessions::new();
        let begin = |tenant: &str| sessions.begin(caller(tenant));
        let lasts = |name: &str| sessions.find(name).is_some();
        let theirs = begin("u").expect("begun");
        let ours: Vec<String> = (0..=OF_TENANT_MAX).map(|_| begin("t").expect("begun")).collect();
        assert!(!lasts(&ours[0]) && lasts(&ours[1]) && lasts(&theirs), "the tenant's own oldest makes room");
        let begun = sessions.lock().len();
        for number in begun..SESSIONS_MAX {
            begin(&format!("t{number}")).expect("begun");
        }
        let refused = begin("late").expect_err("others have all places");
        assert_eq!((refused.code, sessions.lock().len()), ("too_many_sessions", SESSIONS_MAX));
        let again = begin("u").expect("begun");
        assert!(!lasts(&theirs) && lasts(&again) && lasts(&ours[1]), "its own oldest makes room");
        sessions.end(&again);
        begin("late").expect("begun");
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

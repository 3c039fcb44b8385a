//! The routes, and what holds for all of them: every response is JSON of a known shape, also for an address that is none, a method
//! that does not fit, and a panic.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tower_http::compression::CompressionLayer;
use tracing::Instrument as _;
use turnflow_pipeline::{Config, Knowledge, Pipeline};

use super::error::{ApiError, Kind};
use super::metrics::Seen;
use super::quota::Known;
use super::reply::JsonReply;
use super::ui::{self, Live, Sessions};
use super::{answer, articles, embeddings, metrics, models, reload};
use crate::door::{Gateway, Refusal, now_ms};
use crate::metrics::Metrics;

/// What the routes are, for programs.
const OPENAPI: &str = include_str!("openapi.json");
/// When to come back with work that found no place.
const RETRY_AFTER_MS: u64 = 1_000;

/// What every route works with.
pub(super) struct App {
    pub(super) pipeline: Pipeline,
    pub(super) knowledge: Knowledge,
    pub(super) gateway: Gateway,
    pub(super) config: Config,
    /// What callers name the encoder by.
    pub(super) encoder: String,
    pub(super) metrics: Metrics,
    /// When the server started, in seconds since 1970.
    pub(super) started_s: u64,
    /// Turns true once, when the server is told to stop.
    stopping: watch::Receiver<bool>,
    /// Who looks at the page.
    pub(super) sessions: Sessions,
    /// What the page shows.
    pub(super) live: Arc<Live>,
    work: Arc<Semaphore>,
    /// Whether only this machine can reach the server.
    is_local: bool,
    /// A secret from which ids are made, and how many were.
    ids: (RandomState, AtomicU64),
}

impl App {
    pub(super) fn new(
        pipeline: Pipeline,
        gateway: Gateway,
        config: &Config,
        is_local: bool,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (knowledge, config) = (pipeline.knowledge(), config.clone());
        let work = Arc::new(Semaphore::new(config.http.work_in_flight_max));
        let started_s = now_ms() / 1_000;
        let metrics = Metrics::new(pipeline.clone(), gateway.traffic().clone(), started_s);
        Self {
            pipeline,
            knowledge,
            gateway,
            encoder: config.encoder.name(),
            config,
            metrics,
            started_s,
            stopping,
            sessions: Sessions::new(),
            live: Arc::default(),
            work,
            is_local,
            ids: Default::default(),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Does work that is no turn, such as a search, which takes a thread and part of the encoder, when there is a place for it.
    /// It goes on when its client leaves, and has its place until it ends.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let wait = Duration::from_millis(self.config.limits.admission_wait_ms);
        // The semaphore is never closed.
        let Ok(Ok(place)) = tokio::time::timeout(wait, Arc::clone(&self.work).acquire_owned()).await else {
            return Err(ApiError::overloaded(RETRY_AFTER_MS));
        };
        let done = tokio::spawn(async move {
            let _place = place;
            work.await
        });
        done.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Its runtime ends.
            Err(_) => Refusal::Unavailable.into(),
        })
    }

    /// An id that was never given and that nobody guesses, since who knows a conversation's name may continue it.
    pub(super) fn fresh_id(&self) -> String {
        let (secret, count) = &self.ids;
        let number = count.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", secret.hash_one((number, 0_u8)), secret.hash_one((number, 1_u8)))
    }
}

/// All routes.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(answer::complete))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::get))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/articles", get(articles::list).post(articles::post))
        .route("/v1/articles/search", post(articles::search))
        .route("/v1/articles/{id}", get(articles::get).put(articles::put).delete(articles::delete))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/openapi.json", get(openapi))
        .route("/metrics", get(metrics::get))
        .route("/admin/reload", post(reload::post))
        // Not the page, which repeats what an address says beside a secret; streams of events are left as they are.
        .layer(CompressionLayer::new().gzip(true))
        .merge(ui::routes())
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_route)
        // All of it in one, because every layer clones what is below and boxes each request once more.
        .layer(from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// Whether the process is alive.
async fn health() -> JsonReply {
    JsonReply(json!({ "status": "ok" }))
}

/// Whether requests are taken.
async fn ready(State(app): State<Arc<App>>) -> Result<JsonReply, ApiError> {
    if app.is_stopping() { Err(Refusal::Unavailable.into()) } else { Ok(JsonReply(json!({ "status": "ready" }))) }
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn unknown_route(uri: Uri, headers: HeaderMap) -> Response {
    if uri.path() == "/" && ui::wants_page(&headers) {
        // Somebody with a browser.
        return Redirect::to(ui::HOME).into_response();
    }
    ApiError::not_found("unknown_route", format!("there is nothing at {}; /openapi.json lists what is", uri.path()))
        .into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not for {}; /openapi.json lists what is", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Kind::InvalidRequest, "wrong_method", message)
}

/// What is done around every request: it is counted and has a span, a panic ends it and nothing else, and its caller hears of its limits.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let seen = Seen::of(&request);
    let known = Known::in_request(&mut request);
    let answering = async {
        match one_host(&request).and_then(|()| for_this_host(&app, request.headers())) {
            Ok(()) => caught(next.run(request)).await,
            Err(error) => error.into_response(),
        }
    };
    let mut response = answering.instrument(seen.span.clone()).await;
    known.tell(&mut response);
    seen.answered(app.gateway.traffic(), response.status());
    response
}

/// Refuses requests that do not say for which host they are, or say it twice: RFC 9112, section 3.2.
fn one_host(request: &Request) -> Result<(), ApiError> {
    match request.headers().get_all(header::HOST).iter().count() {
        1 => Ok(()),
        // Older and newer versions need not have the header.
        0 if request.version() != Version::HTTP_11 => Ok(()),
        count => Err(ApiError::invalid("Host", format!("there {count} times, and has to be there once"))),
    }
}

/// Refuses requests for another host, while only this machine can send any: a page in a browser here may have had its own name lead to this
/// address, and would count as a page of this server.
fn for_this_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !app.is_local || is_this_machine(host, &app.config.http.hosts) {
        return Ok(());
    }
    let message = format!("{host:?} is no name of this server; http.hosts lists those besides localhost");
    Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, Kind::InvalidRequest, "wrong_host", message))
}

fn is_this_machine(host: &str, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Has a panic end its request, and nothing else.
async fn caught(answering: impl Future<Output = Response>) -> Response {
    let mut answering = pin!(answering);
    // What a panic leaves behind is dropped with the request.
    let polled = std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(response)) => Poll::Ready(Some(response)),
        Err(_) => Poll::Ready(None),
    });
    match polled.await {
        Some(response) => response,
        None => {
            tracing::error!("a request panicked");
            ApiError::internal().into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_request_in_the_shape_of_every_error() {
        let response = caught(async { panic!("a test panics") }).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 4_096).await.expect("a body");
        let error: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(error["error"]["code"], "internal");
    }

    #[test]
    fn other_hosts_are_not_this_machine() {
        let names = ["bot.example".to_owned()];
        for host in
            ["localhost", "LOCALHOST:7412", "127.0.0.1:7412", "[::1]:7412", "[::1]", "bot.example:80", "Bot.Example"]
        {
            assert!(is_this_machine(host, &names), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:7412", "localhost.evil.example", "127.0.0.1.evil.example", ":7412"]
        {
            assert!(!is_this_machine(host, &names), "{host}");
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let described: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let operations = described["paths"].as_object().expect("paths").values().filter_map(Value::as_object).flatten();
        for (method, operation) in operations {
            // Where a key is needed, callers have limits; a wrong host is refused everywhere.
            let statuses =
                if operation.get("security").is_some() { &["421"][..] } else { &["401", "403", "421", "429", "503"] };
            for status in statuses {
                assert!(!operation["responses"][status].is_null(), "{method} {}: {status}", operation["operationId"]);
            }
        }
        let described: BTreeSet<(String, String)> = described["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().expect("methods").keys().map(move |method| (path.clone(), method.clone()))
            })
            .collect();
        // The routes as they are written above.
        let source = include_str!("router.rs");
        let mut routes = BTreeSet::new();
        for line in source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
            let Some((path, handlers)) = line.split_once("\", ") else { continue };
            for method in ["get", "post", "put", "delete"] {
                if handlers.starts_with(&format!("{method}(")) || handlers.contains(&format!(".{method}(")) {
                    routes.insert((path.to_owned(), method.to_owned()));
                }
            }
        }
        routes.retain(|(path, _)| path != "/");
        assert_eq!(described, routes);
    }
}

//! One attempt: a request, and the answer as it streams in.
//!
//! Contract: [`Server::ask`] ends within its limits of time whatever the server does, reads no more than a bounded number of
//! bytes, and hands out each piece of text once, in order. Dropping its future closes the connection. It tries once; what comes
//! of it is for the caller. Once the server has said why an answer ends, what fails takes nothing of it back. The key goes into the
//! request and nowhere else: it is taken out of what a server says before that is told.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout, timeout_at};

use super::RemoteConfig;
use super::fault::{Phase, RemoteFault};
use super::retry::asked_for;
use super::sse::EventReader;
use super::wire::{ErrorBody, Reply, Seen, Transcript, told};
use crate::error::{Cause, ModelError, chain};
use crate::secret::Secret;

/// Most bytes read of the body of an error.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// How long the end of a complete answer is awaited, so that its connection can be used again.
const DRAIN_MAX: Duration = Duration::from_millis(100);
/// An idle connection is closed after this long.
const IDLE_MAX: Duration = Duration::from_secs(60);
const HEADER_BUFFER_BYTES: usize = 64 * 1024;
const USER_AGENT_TEXT: &str = concat!("turnflow/", env!("CARGO_PKG_VERSION"));

/// A server, and the connections to it.
pub(crate) struct Server {
    client: Client<TimedConnector, Full<Bytes>>,
    uri: Uri,
    key: Option<Secret>,
    authorization: Option<HeaderValue>,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    first_token: Duration,
    between_tokens: Duration,
    response_bytes: usize,
    line_bytes: usize,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("uri", &self.uri).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the key and the certificates; connects to nothing.
    ///
    /// # Errors
    /// When the address, the key or a certificate is unusable.
    pub(crate) fn new(config: &RemoteConfig) -> Result<Self, ModelError> {
        let uri = uri_of(&config.base_url).map_err(|reason| unusable(format!("base-url {reason}")))?;
        let key = config.key()?;
        let authorization = key.as_ref().map(header_of).transpose()?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let connector = TimedConnector { inner: connector, limit: Duration::from_millis(config.connect_ms_max) };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(config.in_flight_max)
            .http1_max_buf_size(HEADER_BUFFER_BYTES)
            .build(connector);
        let limits = Limits {
            first_token: Duration::from_millis(config.first_token_ms_max),
            between_tokens: Duration::from_millis(config.between_tokens_ms_max),
            response_bytes: config.response_bytes_max,
            line_bytes: config.line_bytes_max,
        };
        Ok(Self { client, uri, key, authorization, limits })
    }

    /// Sends a request and hands out the text of the answer piece by piece; `on_token` is called before, and when the model does
    /// what is not shown. Cancel-safe in that dropping it ends everything.
    ///
    /// # Errors
    /// Whatever went wrong; the pieces handed out so far are void.
    pub(crate) async fn ask(
        &self,
        question: Question,
        total: Limit,
        on_token: &(dyn Fn() + Sync),
        on_delta: &mut (dyn FnMut(String) + Send),
    ) -> Result<Reply, RemoteFault> {
        let Question { body, prompt_bytes } = question;
        let first = Limit::after(self.limits.first_token, Phase::FirstToken).sooner(total);
        let response = self.send(body, first).await?;
        let mut transcript = Transcript::new(self.key.as_ref());
        let mut heard = |data: &[u8]| -> Result<Seen, RemoteFault> {
            let mut pieces = Vec::new();
            let seen = transcript.take(data, &mut |piece| pieces.push(piece))?;
            if seen == Seen::Token {
                on_token();
            }
            pieces.into_iter().for_each(&mut *on_delta);
            Ok(seen)
        };
        let read = self.read(response, first, total, &mut heard).await;
        match read {
            Err(RemoteFault::Timeout { .. } | RemoteFault::BrokenOff { .. } | RemoteFault::TooLong { .. })
                if transcript.is_finished() => {}
            read => read?,
        }
        transcript.end(prompt_bytes, on_delta)
    }

    async fn send(&self, body: Bytes, limit: Limit) -> Result<Response<Incoming>, RemoteFault> {
        let mut request = Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .header(USER_AGENT, USER_AGENT_TEXT);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| RemoteFault::Protocol { reason: format!("the request cannot be written: {error}") })?;
        let response = limit.bound(self.client.request(request)).await?.map_err(|error| fault_of(&error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, limit).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
            let reason = format!("the content type is {:?}, expected text/event-stream", told(kind, self.key.as_ref()));
            return Err(RemoteFault::Protocol { reason });
        }
        Ok(response)
    }

    /// Reads events up to the end mark, or to the end.
    async fn read(
        &self,
        response: Response<Incoming>,
        first: Limit,
        total: Limit,
        heard: &mut (dyn FnMut(&[u8]) -> Result<Seen, RemoteFault> + Send),
    ) -> Result<(), RemoteFault> {
        let mut body = response.into_body();
        let mut reader = EventReader::new(self.limits.line_bytes);
        let mut events = Vec::new();
        let mut limit = first;
        let mut bytes_left = self.limits.response_bytes;
        loop {
            let Some(bytes) = next_bytes(&mut body, limit).await? else {
                events.extend(reader.finish());
                for event in events.drain(..) {
                    if heard(&event)? == Seen::End {
                        return Ok(());
                    }
                }
                return Err(RemoteFault::BrokenOff { reason: "it ended without an end mark".to_owned() });
            };
            bytes_left = bytes_left
                .checked_sub(bytes.len())
                .ok_or(RemoteFault::TooLong { what: "an answer", limit: self.limits.response_bytes })?;
            reader.push(&bytes, &mut events)?;
            for event in events.drain(..) {
                match heard(&event)? {
                    Seen::Token => limit = Limit::after(self.limits.between_tokens, Phase::BetweenTokens).sooner(total),
                    Seen::Other => {}
                    Seen::End => {
                        // Read to its end the connection can be used again; cut off here it is closed.
                        let _the_answer_is_whole = timeout(DRAIN_MAX, body.frame()).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The fault of a response that is no answer. What can be read of its body in time is told.
    async fn refusal(&self, response: Response<Incoming>, limit: Limit) -> RemoteFault {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = asked_for(header("retry-after-ms"), header(RETRY_AFTER.as_str()), SystemTime::now());
        let status = response.status();
        let mut body = response.into_body();
        let mut read = Vec::new();
        let is_cut = loop {
            match next_bytes(&mut body, limit).await {
                Ok(Some(bytes)) => read.extend_from_slice(&bytes),
                Ok(None) => break false,
                Err(_) => break true,
            }
            if read.len() >= ERROR_BYTES_MAX {
                break true;
            }
        };
        read.truncate(ERROR_BYTES_MAX);
        let message = ErrorBody { bytes: &read, is_cut }.words(status.canonical_reason(), self.key.as_ref());
        RemoteFault::Status { status: status.as_u16(), message, retry_after }
    }
}

/// A request, and how much text it holds.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) body: Bytes,
    /// Bytes of the messages.
    pub(crate) prompt_bytes: usize,
}

/// A limit of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    at: Instant,
    duration: Duration,
    phase: Phase,
}

impl Limit {
    /// So long from now.
    pub(crate) fn after(duration: Duration, phase: Phase) -> Self {
        let now = Instant::now();
        // What cannot be expressed is as good as for ever; a day is for ever too.
        let at = now.checked_add(duration).unwrap_or(now + Duration::from_secs(86_400));
        Self { at, duration, phase }
    }

    /// Until then, which is so long from when it was set.
    pub(crate) fn until(at: std::time::Instant, duration: Duration) -> Self {
        Self { at: at.into(), duration, phase: Phase::Total }
    }

    /// What comes of `work`, if it comes in time.
    ///
    /// # Errors
    /// [`RemoteFault::Timeout`].
    pub(crate) async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, RemoteFault> {
        timeout_at(self.at, work).await.map_err(|_| self.fault())
    }

    /// The limit that is reached first.
    pub(crate) fn sooner(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }

    /// Time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn fault(&self) -> RemoteFault {
        let limit_ms = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        RemoteFault::Timeout { phase: self.phase, limit_ms }
    }
}

/// The next bytes of a body; None at its end.
async fn next_bytes(body: &mut Incoming, limit: Limit) -> Result<Option<Bytes>, RemoteFault> {
    loop {
        let frame = limit.bound(body.frame()).await?;
        match frame.transpose().map_err(|error| RemoteFault::BrokenOff { reason: chain(&error) })? {
            None => return Ok(None),
            // Trailers say nothing here.
            Some(frame) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

fn fault_of(error: &hyper_util::client::legacy::Error) -> RemoteFault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(TooSlow { limit }) = error.downcast_ref() {
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            return RemoteFault::Timeout { phase: Phase::Connect, limit_ms };
        }
        cause = error.source();
    }
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), chain);
    if error.is_connect() { RemoteFault::Connect { reason } } else { RemoteFault::BrokenOff { reason } }
}

/// The address that completions are asked at, from the base address that servers document; else what is wrong with that. It
/// may hold a password, so that it is not told.
pub(super) fn uri_of(base: &str) -> Result<Uri, &'static str> {
    const NO_ADDRESS: &str = "must be an address";
    let uri: Uri = base.trim_end_matches('/').parse().map_err(|_| NO_ADDRESS)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("must begin with http:// or https://");
    }
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err("must hold a host, and no password");
    }
    if uri.query().is_some() {
        return Err("must not hold a query");
    }
    format!("{}/chat/completions", base.trim_end_matches('/')).parse().map_err(|_| NO_ADDRESS)
}

/// The `Authorization` header with a key, marked so that the client does not print it either.
fn header_of(key: &Secret) -> Result<HeaderValue, ModelError> {
    let mut value = HeaderValue::try_from(key.bearer()).map_err(|_| unusable("the key does not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unusable(reason: impl Into<String>) -> ModelError {
    ModelError::Endpoint { reason: reason.into() }
}

/// TLS with Mozilla's roots, and those of the configured file.
pub(super) fn tls(config: &RemoteConfig) -> Result<rustls::ClientConfig, ModelError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = &config.ca_file {
        let unreadable = |source: Cause| ModelError::Parse { path: path.clone(), source };
        let pem = std::fs::read(path).map_err(ModelError::io("read the certificates", path))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unreadable(error.to_string().into()))?;
            roots.add(certificate).map_err(|error| unreadable(Box::new(error)))?;
            found += 1;
        }
        if found == 0 {
            return Err(unreadable("it holds no certificate".into()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(format!("TLS: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Connects within a limit of time, TLS included.
#[derive(Clone)]
struct TimedConnector {
    inner: HttpsConnector<HttpConnector>,
    limit: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no connection within {} ms", limit.as_millis())]
struct TooSlow {
    limit: Duration,
}

impl tower::Service<Uri> for TimedConnector {
    type Response = <HttpsConnector<HttpConnector> as tower::Service<Uri>>::Response;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (tower::Service::call(&mut self.inner, uri), self.limit);
        Box::pin(async move { timeout(limit, connecting).await.map_err(|_| TooSlow { limit })? })
    }
}

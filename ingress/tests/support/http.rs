//! A small HTTP client, and what it hears.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

/// A client of one server.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Scheme and address.
    base: String,
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// The level of the caches, as the head tells it.
    pub fn level(&self) -> &str {
        self.header("x-turnflow-cache").unwrap_or_else(|| panic!("no level: {self:?}"))
    }

    /// The error's code and param; panics when its shape is not OpenAI's.
    pub fn error(&self) -> (u16, String, Option<String>) {
        let Value::Object(error) = &self.json()["error"] else { panic!("no error: {self:?}") };
        let fields: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(fields, ["message", "type", "param", "code"], "{self:?}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        let param = error["param"].as_str().map(str::to_owned);
        (self.status, error["code"].as_str().expect("a code").to_owned(), param)
    }

    /// What the stream carried, up to its mark of the end.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:?}");
        let parsed = events.into_iter().map(|event| {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
            serde_json::from_str(data).expect("JSON")
        });
        parsed.collect()
    }
}

impl HttpClient {
    pub fn new(address: SocketAddr) -> Self {
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Self { base: format!("http://{address}"), ..Self::secure(address, tls) }
    }

    /// A client that speaks TLS.
    pub fn secure(address: SocketAddr, tls: ClientConfig) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
        Self { client: Client::builder(TokioExecutor::new()).build(connector), base: format!("https://{address}") }
    }

    /// The head of a response, and its body as it comes.
    pub async fn begin(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        self.try_begin(method, path, headers, body).await.expect("the server answers")
    }

    /// The same, or why there is no response.
    pub async fn try_begin(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, String> {
        let uri = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        self.client.request(request).await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        whole(self.begin(method, path, headers, body).await).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
        self.send(Method::POST, path, &headers, body.to_string()).await
    }

    /// Asks a question that is a conversation of its own.
    pub async fn ask(&self, question: &str, headers: &[(&str, &str)]) -> Reply {
        self.post(CHAT, headers, &asks(question)).await
    }
}

pub const CHAT: &str = "/v1/chat/completions";

/// The body that asks a question.
pub fn asks(question: &str) -> Value {
    json!({ "model": "turnflow", "messages": [{ "role": "user", "content": question }] })
}

/// The same with other fields.
pub fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("fields") };
    body.as_object_mut().expect("an object").extend(fields);
    body
}

/// What was answered.
pub fn text(reply: &Reply) -> String {
    reply.json()["choices"][0]["message"]["content"].as_str().expect("an answer").to_owned()
}

/// The pieces of a stream, put together.
pub fn streamed(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

/// Reads a response to its end.
pub async fn whole(response: Response<Incoming>) -> Reply {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    Reply { status: head.status.as_u16(), headers: head.headers, body }
}

//! One kind of call to one server, over a few connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::{self, AskRequest, AskResponse, Turn};

use crate::child::Child;

/// The question that is in the cache.
pub(crate) const QUESTION: &str = "How long does delivery take?";
/// Connections of gRPC; HTTP takes as many as it needs.
const CONNECTIONS: usize = 8;

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Grpc,
    GrpcRefused,
    Http,
    HttpRefused,
}

impl Call {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Grpc | Self::GrpcRefused => "gRPC",
            Self::Http | Self::HttpRefused => "HTTP",
        }
    }

    /// The same way, with a turn that has no text.
    pub(crate) fn refused(self) -> Self {
        match self {
            Self::Grpc | Self::GrpcRefused => Self::GrpcRefused,
            Self::Http | Self::HttpRefused => Self::HttpRefused,
        }
    }
}

/// What a call was answered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The encoded events of gRPC.
    events: Vec<Vec<u8>>,
    /// The body of HTTP.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Both ways together.
    pub(crate) fn beside(self, over_http: Self) -> Self {
        Self { body: over_http.body, ..self }
    }

    pub(crate) fn events(&self) -> Arc<[AskResponse]> {
        self.events.iter().map(|event| AskResponse::decode(event.as_slice()).expect("an event")).collect()
    }
}

/// Makes calls of one kind.
#[derive(Clone)]
pub(crate) struct Client {
    call: Call,
    channels: Arc<[Channel]>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    url: String,
    authorization: Arc<str>,
    calls: Arc<AtomicU64>,
    /// Conversations are told apart by who asks, too.
    name: u128,
}

impl Client {
    /// Connects, and makes one call.
    pub(crate) async fn connect(child: &Child, call: Call) -> Self {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Endpoint::from_shared(format!("http://{}", child.grpc)).expect("a URL");
            channels.push(endpoint.tcp_nodelay(true).connect().await.expect("the server listens"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
        let client = Self {
            call,
            channels: channels.into(),
            http: HttpClient::builder(TokioExecutor::new()).build(connector),
            url: format!("http://{}/v1/chat/completions", child.http),
            authorization: format!("Bearer {}", child.key).into(),
            calls: Arc::default(),
            name: since.as_nanos(),
        };
        client.call().await;
        client
    }

    /// Makes a call, and reads all of its answer.
    pub(crate) async fn call(&self) -> Answer {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.call {
            Call::Grpc => self.grpc(number, QUESTION, None).await,
            Call::GrpcRefused => self.grpc(number, "", Some(Code::InvalidArgument)).await,
            Call::Http => self.http(number, QUESTION, StatusCode::OK).await,
            Call::HttpRefused => self.http(number, "", StatusCode::BAD_REQUEST).await,
        }
    }

    async fn grpc(&self, number: u64, text: &str, refusal: Option<Code>) -> Answer {
        let mut client = ConversationsClient::new(self.channels[number as usize % CONNECTIONS].clone());
        let turn = Some(turn(format!("c{}-{number}", self.name), text));
        let mut request = tonic::Request::new(AskRequest { turn });
        request.metadata_mut().insert("authorization", self.authorization.parse().expect("ASCII"));
        let mut answer = Answer::default();
        match client.ask(request).await {
            Ok(response) => {
                let mut events = response.into_inner();
                while let Some(event) = events.message().await.expect("no error") {
                    answer.events.push(event.encode_to_vec());
                }
                assert_eq!(refusal, None);
            }
            Err(status) => assert_eq!(Some(status.code()), refusal, "{status}"),
        }
        answer
    }

    async fn http(&self, number: u64, text: &str, expected: StatusCode) -> Answer {
        let body = json!({
            "model": "turnflow",
            "conversation": format!("c{}-{number}", self.name),
            "messages": [{ "role": "user", "content": text }],
        });
        let request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, &*self.authorization)
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        let response = self.http.request(request).await.expect("the server answers");
        assert_eq!(response.status(), expected);
        let body = response.into_body().collect().await.expect("a body").to_bytes().into();
        Answer { body, ..Answer::default() }
    }
}

/// The first turn of a conversation.
pub(crate) fn turn(conversation: String, text: &str) -> Turn {
    Turn {
        conversation_id: conversation,
        turn_id: "1".to_owned(),
        channel: proto::Channel::Web.into(),
        text: text.to_owned(),
        cache_control: None,
        deadline_ms: None,
    }
}

//! gzip over gRPC and HTTP: for those who ask for it, never for a stream of events, and never beyond what a message may hold.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use axum::body::Bytes;
use axum::http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio_stream::iter;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::Channel;
use turnflow::grpc::proto::AskRequest;
use turnflow::grpc::proto::conversations_client::ConversationsClient;

use self::support::http::{CHAT, HttpClient, asks, whole, with};
use self::support::transcript::Transcript;
use self::support::{TestServer, bounded, converse_request, turn};

const DELIVERY: &str = "How long does standard delivery take?";
const ACCEPTS: (&str, &str) = ("accept-encoding", "gzip");

/// How the server encodes what it sends to a client.
async fn encoding(client: &mut ConversationsClient<Channel>) -> Option<String> {
    let asked = AskRequest { turn: Some(turn("c", "1", DELIVERY)) };
    let response = client.ask(asked).await.expect("admitted");
    let encoding = response.metadata().get("grpc-encoding").map(|value| value.to_str().expect("ASCII").to_owned());
    let mut events = response.into_inner();
    let mut heard = String::new();
    while let Some(event) = events.message().await.expect("an event") {
        heard += &format!("{event:?}");
    }
    assert!(heard.contains("3 to 5 business days"), "{heard}");
    encoding
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_compressed_for_who_asks() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        assert_eq!(encoding(&mut server.client().await).await, None);
        let mut asking = server.client().await.send_compressed(Gzip).accept_compressed(Gzip);
        assert_eq!(encoding(&mut asking).await.as_deref(), Some("gzip"));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_grows_too_large_is_refused() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut client = server.client().await.send_compressed(Gzip);
        // A thousandth of it on the wire, which is less than a message may have.
        let bomb = || turn("c", "2", &"x".repeat(8 * 1024 * 1024));
        let status = client.ask(AskRequest { turn: Some(bomb()) }).await.expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("65536 bytes"), "{status:?}");

        // On a stream it takes nothing from the turns before it.
        let requests = [turn("c", "1", DELIVERY), bomb()].map(converse_request);
        let mut responses = client.converse(iter(requests)).await.expect("opened").into_inner();
        let mut transcript = Transcript::default();
        let status = transcript.listen(&mut responses).await.expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(transcript.done("c", "1").grounded);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_compressed_for_who_asks_and_streams_are_not() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let client = HttpClient::new(server.http);
        let plain = client.get("/v1/articles").await;
        assert_eq!((plain.status, plain.header("content-encoding")), (200, None));
        let small = client.begin(Method::GET, "/v1/articles", &[ACCEPTS], Bytes::new()).await;
        assert_eq!(small.headers()["content-encoding"], "gzip");
        assert_eq!(small.headers()["vary"], "accept-encoding");
        let small = small.into_body().collect().await.expect("a body").to_bytes();
        // The magic number of RFC 1952.
        assert!(small.starts_with(&[0x1f, 0x8b]) && small.len() < plain.body.len(), "{} bytes", small.len());

        let body = with(asks(DELIVERY), json!({ "stream": true })).to_string();
        let headers = [("content-type", "application/json"), ACCEPTS];
        let stream = whole(client.begin(Method::POST, CHAT, &headers, body).await).await;
        assert_eq!((stream.status, stream.header("content-encoding")), (200, None));
        assert!(!stream.events().is_empty());
        let page = client.send(Method::GET, "/ui/", &[ACCEPTS], Bytes::new()).await;
        assert_eq!((page.status, page.header("content-encoding")), (200, None));
        server.stop().await;
    })
    .await;
}

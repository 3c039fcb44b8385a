//! gRPC-Web as a browser speaks it: over HTTP/1.1, from pages of the origins that are allowed, and from no others.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use axum::http::{Method, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;
use turnflow::grpc::proto::ask_response::Event;
use turnflow::grpc::proto::{AskRequest, AskResponse, ListRequest, ListResponse};

use self::support::http::HttpClient;
use self::support::{TestServer, bounded, turn};

const ORIGIN: &str = "https://shop.example";
const ASK: &str = "/turnflow.v1.Conversations/Ask";
const LIST: &str = "/turnflow.v1.KnowledgeBase/List";
/// The flag of the frame that holds the trailers, PROTOCOL-WEB.md of gRPC.
const TRAILERS: u8 = 0x80;

async fn serve(origins: &[&str]) -> TestServer {
    let origins = origins.iter().map(|&origin| origin.to_owned()).collect();
    TestServer::start(|config| config.server.grpc_web_origins = origins).await
}

/// What a page of `origin` sends with a call.
async fn call(
    client: &HttpClient,
    origin: &str,
    path: &str,
    message: &impl Message,
) -> Result<Response<Incoming>, String> {
    let mut body = vec![0];
    body.extend(u32::try_from(message.encoded_len()).expect("short").to_be_bytes());
    body.extend(message.encode_to_vec());
    let headers = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1"), ("origin", origin)];
    client.try_begin(Method::POST, path, &headers, body).await
}

/// The messages of a response, and its trailers.
async fn heard<M: Message + Default>(response: Response<Incoming>) -> (Vec<M>, String) {
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let (mut rest, mut messages) = (&body[..], Vec::new());
    while let Some((head, frames)) = rest.split_first_chunk::<5>() {
        let [flag, length @ ..] = *head;
        let (frame, after) = frames.split_at(u32::from_be_bytes(length) as usize);
        rest = after;
        if flag == TRAILERS {
            assert!(rest.is_empty(), "trailers come last");
            return (messages, String::from_utf8(frame.to_vec()).expect("text"));
        }
        messages.push(M::decode(frame).expect("a message"));
    }
    panic!("no trailers: {body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_calls_and_listens() {
    bounded(async {
        let server = serve(&["http://localhost:3000", ORIGIN]).await;
        let client = HttpClient::new(server.address);
        let response = call(&client, ORIGIN, LIST, &ListRequest::default()).await.expect("answered");
        assert_eq!(response.headers()["access-control-allow-origin"], ORIGIN);
        let (lists, trailers) = heard::<ListResponse>(response).await;
        assert!(trailers.contains("grpc-status:0") && lists.len() == 1, "{trailers}");
        assert!(lists[0].articles.iter().any(|article| article.id == "delivery-times"), "{lists:?}");

        let asked = AskRequest { turn: Some(turn("c", "1", "How long does standard delivery take?")) };
        let (events, trailers) =
            heard::<AskResponse>(call(&client, ORIGIN, ASK, &asked).await.expect("answered")).await;
        assert!(trailers.contains("grpc-status:0"), "{trailers}");
        let Some((Some(Event::Done(done)), before)) = events.split_last().map(|(last, before)| (&last.event, before))
        else {
            panic!("no answer: {events:?}");
        };
        assert!(done.grounded && matches!(before[0].event, Some(Event::Accepted(_))), "{events:?}");

        // What was refused has no body.
        let refused = call(&client, ORIGIN, ASK, &AskRequest { turn: None }).await.expect("answered");
        assert_eq!(refused.headers()["grpc-status"], "3", "INVALID_ARGUMENT");
        let readable = refused.headers()["access-control-expose-headers"].to_str().expect("ASCII");
        assert!(readable.contains("grpc-status") && readable.contains("grpc-message"), "{readable}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    bounded(async {
        let server = serve(&[ORIGIN]).await;
        let client = HttpClient::new(server.address);
        for origin in ["https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null"] {
            let response = call(&client, origin, LIST, &ListRequest::default()).await.expect("answered");
            assert_eq!(
                (response.status().as_u16(), response.headers().get("access-control-allow-origin")),
                (403, None)
            );
        }
        for (origin, status) in [(ORIGIN, 200), ("https://evil.example", 403)] {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization,content-type,x-grpc-web"),
            ];
            let response = client.begin(Method::OPTIONS, LIST, &headers, "").await;
            assert_eq!(response.status(), status, "{origin}");
            let allowed =
                response.headers().get("access-control-allow-headers").map(|names| names.to_str().expect("ASCII"));
            assert_eq!(allowed.is_some_and(|names| names.contains("authorization")), status == 200, "{origin}");
        }
        server.stop().await;

        let server = serve(&[]).await;
        let refused = call(&HttpClient::new(server.address), ORIGIN, LIST, &ListRequest::default()).await;
        assert_eq!(refused.expect("told").status(), 400, "no page may call, and only HTTP/2 is spoken");
        server.stop().await;
    })
    .await;
}

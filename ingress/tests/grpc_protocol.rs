//! What the gRPC server says to bad requests, to overload, and when it stops; health and reflection.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use turnflow::grpc::proto::{AskRequest, ConverseRequest, ErrorKind, Turn};
use turnflow::grpc::{KNOWLEDGE_SERVICE_NAME, SERVICE_NAME};

use self::support::transcript::{End, Transcript};
use self::support::{TestServer, ask, bounded, converse_request, raw, turn};

const QUESTION: &str = "How long does standard delivery take?";

/// A turn with one thing wrong, the field at fault, and what is said about it.
fn invalid_turns() -> Vec<(Turn, &'static str, &'static str)> {
    let valid = || turn("c", "1", QUESTION);
    let long = "x".repeat(129);
    let text = |text: &str| Turn { text: text.to_owned(), ..valid() };
    let conversation = |id: &str| Turn { conversation_id: id.to_owned(), ..valid() };
    let id = |id: &str| Turn { turn_id: id.to_owned(), ..valid() };
    vec![
        (conversation(""), "turn.conversation_id", "empty"),
        (conversation(&long), "turn.conversation_id", "129 bytes"),
        (conversation("a\u{0}b"), "turn.conversation_id", "control character"),
        (id(""), "turn.turn_id", "empty"),
        (id(&long), "turn.turn_id", "129 bytes"),
        (id("a\nb"), "turn.turn_id", "control character"),
        (text(""), "turn.text", "empty"),
        (text(" \t\n"), "turn.text", "empty"),
        (text(&"x".repeat(8_193)), "turn.text", "8193 bytes, at most 8192"),
        (text("bell \u{7}"), "turn.text", "control character"),
        (Turn { channel: 0, ..valid() }, "turn.channel", "unspecified"),
        (Turn { channel: 99, ..valid() }, "turn.channel", "99"),
        (Turn { channel: -1, ..valid() }, "turn.channel", "-1"),
        (Turn { cache_control: Some(0), ..valid() }, "turn.cache_control", "unspecified"),
        (Turn { cache_control: Some(77), ..valid() }, "turn.cache_control", "77"),
    ]
}

fn check_violation(status: &Status, field: &str, reason: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains(field), "{:?} does not name {field}", status.message());
    assert!(status.message().contains(reason), "{:?} does not say {reason:?}", status.message());
    let details = status.get_details_bad_request().expect("google.rpc.BadRequest");
    let fields: Vec<_> = details.field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_turn_fails_its_call() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut client = server.client().await;
        for (turn, field, reason) in invalid_turns() {
            let status = ask(&mut client, turn).await.expect_err("invalid");
            check_violation(&status, field, reason);
        }
        let status = client.ask(AskRequest { turn: None }).await.expect_err("no turn");
        check_violation(&status, "turn", "missing");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_turn_leaves_its_stream_alone() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut client = server.client().await;
        let (send, requests) = mpsc::channel(1);
        let mut responses = client.converse(ReceiverStream::new(requests)).await.expect("opened").into_inner();
        let missing = (ConverseRequest { turn: None }, "turn", "missing");
        let invalid = invalid_turns().into_iter().map(|(turn, field, reason)| (converse_request(turn), field, reason));
        for (request, field, reason) in invalid.chain([missing]) {
            let sent = request.turn.clone().unwrap_or_default();
            send.send(request).await.expect("open");
            let mut transcript = Transcript::default();
            transcript.hear(responses.message().await.expect("open").expect("an event"));
            let End::Error(error) = transcript.end(&sent.conversation_id, &sent.turn_id) else {
                panic!("{field} was taken");
            };
            assert_eq!((error.kind(), error.field.as_deref()), (ErrorKind::Invalid, Some(field)));
            assert!(error.message.contains(field) && error.message.contains(reason), "{error:?}");
        }
        send.send(converse_request(turn("c", "1", QUESTION))).await.expect("open");
        drop(send);
        let mut transcript = Transcript::default();
        transcript.listen(&mut responses).await.expect("the stream lives on");
        assert!(transcript.done("c", "1").grounded);
        server.stop().await;
    })
    .await;
}

/// An encoded request whose text is not UTF-8.
fn not_utf8() -> Vec<u8> {
    let mut bytes = converse_request(turn("c", "2", "\u{7f}\u{7f}")).encode_to_vec();
    for byte in bytes.iter_mut().filter(|byte| **byte == 0x7f) {
        *byte = 0xff;
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_decoded_is_the_clients_fault() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        // Both requests have the turn in field 1.
        let status = raw::ask(server.channel().await, not_utf8()).await.expect_err("not UTF-8");
        check_violation(&status, "turn.text", "not UTF-8");
        let status = raw::ask(server.channel().await, vec![0]).await.expect_err("no tag");
        assert_eq!(status.code(), Code::InvalidArgument);

        // A stream cannot go on after it, but ends only when the turns before it are answered.
        let valid = converse_request(turn("c", "1", QUESTION)).encode_to_vec();
        let messages = vec![valid.clone(), not_utf8(), valid];
        let mut responses = raw::converse(server.channel().await, messages).await.expect("opened");
        let mut transcript = Transcript::default();
        let status = transcript.listen(&mut responses).await.expect_err("not UTF-8");
        check_violation(&status, "turn.text", "not UTF-8");
        assert!(transcript.done("c", "1").grounded);
        assert_eq!(transcript.ended.len(), 1);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused() {
    bounded(async {
        let server = TestServer::start(|config| config.limits.message_bytes_max = 10_000).await;
        let mut client = server.client().await;
        let large = || turn("c", "2", &"x".repeat(10_000));
        let status = ask(&mut client, large()).await.expect_err("too large");
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

        let requests = [turn("c", "1", QUESTION), large()].map(converse_request);
        let mut responses = client.converse(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        let mut transcript = Transcript::default();
        let status = transcript.listen(&mut responses).await.expect_err("too large");
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        assert!(transcript.done("c", "1").grounded);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_answered_with_a_retry_time() {
    bounded(async {
        let server = TestServer::start(|config| {
            config.limits.turns_in_flight_max = 1;
            config.limits.admission_wait_ms = 1;
        })
        .await;
        server.gate.set_open(false);
        let mut first = server.client().await;
        let first = tokio::spawn(async move { ask(&mut first, turn("a", "1", QUESTION)).await });
        server.gate.arrived(1).await;

        let mut client = server.client().await;
        let status = ask(&mut client, turn("b", "1", QUESTION)).await.expect_err("no place");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let retry = status.get_details_retry_info().expect("google.rpc.RetryInfo");
        assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));

        let requests = [converse_request(turn("b", "1", QUESTION))];
        let mut responses = client.converse(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        let mut transcript = Transcript::default();
        transcript.listen(&mut responses).await.expect("the stream lives on");
        let End::Error(error) = transcript.end("b", "1") else { panic!("there was a place") };
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.retry_after_ms.is_some_and(|after| after > 0));

        server.gate.set_open(true);
        assert!(first.await.expect("no panic").expect("answered").grounded);
        server.stop().await;
    })
    .await;
}

async fn health_of(client: &mut HealthClient<tonic::transport::Channel>, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.expect("known").into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_finishes_what_it_began() {
    bounded(async {
        // The streams end because they are answered, not because their time is up.
        let server = TestServer::start(|config| config.server.shutdown_grace_s = 3_600).await;
        let gate = server.gate.clone();
        let address = server.address;
        let mut health = HealthClient::new(server.channel().await);
        for service in ["", SERVICE_NAME, KNOWLEDGE_SERVICE_NAME] {
            assert_eq!(health_of(&mut health, service).await, ServingStatus::Serving);
        }
        let unknown = HealthCheckRequest { service: "nobody".to_owned() };
        assert_eq!(health.check(unknown).await.expect_err("unknown").code(), Code::NotFound);

        gate.set_open(false);
        let mut client = server.client().await;
        let (send, requests) = mpsc::channel(1);
        let mut responses = client.converse(ReceiverStream::new(requests)).await.expect("opened").into_inner();
        send.send(converse_request(turn("c", "1", QUESTION))).await.expect("open");
        gate.arrived(1).await;
        let watched = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let mut watch = health.watch(watched).await.expect("known").into_inner();
        assert_eq!(watch.message().await.expect("open").expect("a status").status(), ServingStatus::Serving);

        let stopped = server.begin_stop();
        assert_eq!(watch.message().await.expect("open").expect("a status").status(), ServingStatus::NotServing);
        // A watch has no end of its own; it ends with its client.
        drop((watch, health));
        gate.set_open(true);
        let mut transcript = Transcript::default();
        let status = transcript.listen(&mut responses).await.expect_err("the server stops");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(transcript.done("c", "1").grounded);
        stopped.await.expect("no panic").expect("served");
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is still open");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_shuts_down_is_unavailable() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        server.pipeline.shutdown().await;
        let status = ask(&mut server.client().await, turn("c", "1", QUESTION)).await.expect_err("shutting down");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_knows_the_services() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as AlphaClient;

    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let request = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let requests = [
            request(MessageRequest::ListServices(String::new())),
            request(MessageRequest::FileContainingSymbol(SERVICE_NAME.to_owned())),
            request(MessageRequest::FileContainingSymbol(KNOWLEDGE_SERVICE_NAME.to_owned())),
        ];
        let mut client = ServerReflectionClient::new(server.channel().await);
        let mut responses =
            client.server_reflection_info(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        let mut next =
            async || -> ServerReflectionResponse { responses.message().await.expect("open").expect("a response") };
        let Some(MessageResponse::ListServicesResponse(list)) = next().await.message_response else {
            panic!("not a list of services");
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        for expected in [SERVICE_NAME, KNOWLEDGE_SERVICE_NAME, "grpc.health.v1.Health"] {
            assert!(names.contains(&expected), "{expected} is not among {names:?}");
        }
        for _ in [SERVICE_NAME, KNOWLEDGE_SERVICE_NAME] {
            let Some(MessageResponse::FileDescriptorResponse(files)) = next().await.message_response else {
                panic!("not a file");
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }

        // Older tools ask for the alpha version.
        use tonic_reflection::pb::v1alpha as alpha;
        let request = alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                SERVICE_NAME.to_owned(),
            )),
        };
        let mut client = AlphaClient::new(server.channel().await);
        let mut responses =
            client.server_reflection_info(tokio_stream::iter([request])).await.expect("opened").into_inner();
        let response = responses.message().await.expect("open").expect("a response").message_response;
        let Some(alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_)) = response else {
            panic!("not a file: {response:?}");
        };
        server.stop().await;
    })
    .await;
}

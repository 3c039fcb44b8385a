//! Traces of a real server: what reaches a collector that OpenTelemetry's variables name.

#![cfg(all(unix, feature = "otlp"))]
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
#[expect(dead_code, reason = "the sample shop is served by its name")]
mod binary;
mod support;

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use turnflow::grpc::proto::AskRequest;
use turnflow::grpc::proto::conversations_client::ConversationsClient;

use self::announced::announced;
use self::binary::{finish, turnflow};
use self::support::http::HttpClient;
use self::support::{bounded, turn};

/// What only a customer says.
const SAID: &str = "zwetschgenkuchen";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that takes everything.
struct Collector(UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).expect("the test listens");
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, UnboundedReceiver<ExportTraceServiceRequest>) {
    let (sender, receiver) = unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let service = TraceServiceServer::new(Collector(sender));
    let serving = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, receiver)
}

/// Has a server answer over HTTP and gRPC, and gives what reached the collector by the server's end.
async fn traces_of_two_turns() -> Vec<ExportTraceServiceRequest> {
    let (collector, mut received) = collector().await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = turnflow()
        .args(["serve", "--sample", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "--data"])
        .arg(dir.path())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let announced = tokio::task::block_in_place(|| announced(&mut server));
    let address = |name: &str| announced[name].as_str().expect("an address").to_owned();

    let question = format!("How long does standard delivery of a {SAID} take?");
    let client = HttpClient::new(address("http").parse().expect("an address"));
    let reply = client.ask(&question, &[("traceparent", &format!("00-{TRACE}-{PARENT}-01"))]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut grpc = ConversationsClient::connect(format!("http://{}", address("listening"))).await.expect("it listens");
    let mut events = grpc.ask(AskRequest { turn: Some(turn("c", "1", &question)) }).await.expect("asked").into_inner();
    while events.message().await.expect("an event").is_some() {}

    for probe in ["/health", "/ready"] {
        assert_eq!(client.get(probe).await.status, 200);
    }
    let channel = Endpoint::from_shared(format!("http://{}", address("listening"))).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("it listens"));
    health.check(HealthCheckRequest::default()).await.expect("checked");

    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill runs");
    let ended = tokio::task::block_in_place(|| server.wait().expect("an end"));
    assert!(killed.success() && ended.success());
    let mut all = Vec::new();
    while let Ok(batch) = received.try_recv() {
        all.push(batch);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_turns_and_stages_reach_a_collector_and_no_word_of_a_customer() {
    bounded(async {
        let batches = traces_of_two_turns().await;
        assert!(!format!("{batches:?}").contains(SAID), "{batches:?}");
        let mut spans: Vec<&Span> = Vec::new();
        for resource in batches.iter().flat_map(|batch| &batch.resource_spans) {
            let attributes = &resource.resource.as_ref().expect("a resource").attributes;
            let name = attributes.iter().find(|attribute| attribute.key == "service.name").expect("a name");
            let name = name.value.as_ref().and_then(|value| value.value.clone());
            assert_eq!(name, Some(Value::StringValue("turnflow".to_owned())));
            spans.extend(resource.scope_spans.iter().flat_map(|scope| &scope.spans));
        }
        let probes = ["/health", "/ready", "/grpc.health.v1.Health/Check"];
        assert!(!spans.iter().any(|span| probes.contains(&span.name.as_str())), "{spans:?}");
        let below = |parent: &Span| -> Vec<&Span> {
            let is_child = |span: &&&Span| span.trace_id == parent.trace_id && span.parent_span_id == parent.span_id;
            spans.iter().filter(is_child).copied().collect()
        };
        for (name, is_cached) in [("/v1/chat/completions", false), ("/turnflow.v1.Conversations/Ask", true)] {
            let request = spans.iter().find(|span| span.name == name).expect("the request");
            assert_eq!(request.kind(), SpanKind::Server);
            // What its client was doing is above it, where the client said so.
            let named = (hex(&request.trace_id) == TRACE, hex(&request.parent_span_id) == PARENT);
            assert_eq!(named, (!is_cached, !is_cached), "{request:?}");
            let status = request.attributes.iter().find(|attribute| attribute.key == "status").expect("a status");
            let status = status.value.as_ref().and_then(|value| value.value.clone());
            assert_eq!(status, Some(Value::StringValue(if is_cached { "Ok" } else { "200" }.to_owned())));
            let [turn] = below(request)[..] else { panic!("one turn: {spans:?}") };
            assert_eq!(turn.name, "turn");
            let stages = below(turn);
            let has = |stage: &str| stages.iter().any(|span| span.name == stage);
            assert_eq!((has("embed"), has("generate")), (!is_cached, !is_cached), "{stages:?}");
            for stage in stages {
                let within = turn.start_time_unix_nano..=turn.end_time_unix_nano;
                let (begun, ended) = (stage.start_time_unix_nano, stage.end_time_unix_nano);
                assert!(begun <= ended && within.contains(&ended), "{stage:?} in {turn:?}");
            }
        }
    })
    .await;
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    for (name, value, names) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL is \"http/protobuf\""),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "127.0.0.1:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no address"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999", "OTEL_BSP_MAX_QUEUE_SIZE is \"99999999999\""),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "OTEL_BSP_SCHEDULE_DELAY is \"0\""),
        ("OTEL_TRACES_SAMPLER", "some", "OTEL_TRACES_SAMPLER is \"some\""),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "OTEL_TRACES_SAMPLER_ARG is \"2\""),
    ] {
        let mut command = turnflow();
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317").env(name, value);
        // It ends before it looks for anything else.
        let (code, _, said) = finish(command.args(["serve", "--data", "/dev/null/none"]));
        assert!(code == 64 && said.contains(names), "{code}: {said}");
    }
}

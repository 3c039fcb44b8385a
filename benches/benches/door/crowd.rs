//! How those who ask fare beside many who do not ask, or do not read.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::{ConverseRequest, ConverseResponse};

use crate::child::Child;
use crate::client::{Call, Client, QUESTION, turn};
use crate::measure::{Figures, open_loop};

/// Streams on which nothing happens, and those of a connection.
const IDLE_STREAMS: usize = 10_000;
const STREAMS_PER_CONNECTION: usize = 200;
/// Readers that do not read, and how much they take before: less than an answer.
const SLOW_READERS: usize = 1_000;
const SLOW_WINDOW_BYTES: u32 = 16;
/// What the healthy ask, per second.
const RATE: f64 = 100.0;

/// A stream of a client, which is open as long as this is there.
struct Open {
    _requests: mpsc::Sender<ConverseRequest>,
    _responses: Streaming<ConverseResponse>,
}

/// Tells memory and times, alone and in company.
pub(crate) async fn measure(server: Child, length: Duration) {
    println!();
    let healthy = Client::connect(&server, Call::Grpc).await;
    let tell = async |company: &str, streams: usize, before: f64| {
        let Figures { p50_ms, p99_ms, .. } = open_loop(&healthy, RATE, length).await;
        let mib = server.resident_mib();
        let each = if streams > 0 { (mib - before) * 1024.0 / streams as f64 } else { 0.0 };
        println!("{company:<34}  {mib:>8.0} MiB  {p50_ms:>9.2}  {p99_ms:>9.2}  {each:>5.1} KiB a stream");
        mib
    };
    let alone = tell("100/s, alone", 0, 0.0).await;
    let idle = open(&server, IDLE_STREAMS, None).await;
    tell("beside 10,000 idle streams", IDLE_STREAMS, alone).await;
    drop(idle);
    let before = tell("after they have left", 0, 0.0).await;
    let slow = open(&server, SLOW_READERS, Some(SLOW_WINDOW_BYTES)).await;
    tell("beside 1,000 that do not read", SLOW_READERS, before).await;
    drop(slow);
}

/// Opens streams. With a window, a turn is asked on each, and the client takes no more of the answer than fits in it.
async fn open(server: &Child, streams: usize, window_bytes: Option<u32>) -> Vec<Open> {
    let mut open = Vec::new();
    let mut channel = None;
    for number in 0..streams {
        if number % STREAMS_PER_CONNECTION == 0 {
            let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).expect("a URL");
            let endpoint = endpoint.tcp_nodelay(true).initial_stream_window_size(window_bytes);
            channel = Some(endpoint.connect().await.expect("the server listens"));
        }
        let mut client = ConversationsClient::new(channel.clone().expect("connected"));
        let (requests, sent) = mpsc::channel(1);
        if window_bytes.is_some() {
            let asked = turn(format!("slow-{number}"), QUESTION);
            requests.send(ConverseRequest { turn: Some(asked) }).await.expect("open");
        }
        let mut request = tonic::Request::new(ReceiverStream::new(sent));
        request.metadata_mut().insert("authorization", format!("Bearer {}", server.key).parse().expect("ASCII"));
        let responses = client.converse(request).await.expect("open").into_inner();
        open.push(Open { _requests: requests, _responses: responses });
    }
    open
}

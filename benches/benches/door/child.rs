//! The processes that are called: Turnflow, with its store on disk or in memory, and the echo.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::post;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use turnflow::Gateway;
use turnflow::grpc::proto::conversations_server::{Conversations, ConversationsServer};
use turnflow::grpc::proto::{
    AskRequest, AskResponse, ConverseRequest, ConverseResponse, FeedbackRequest, FeedbackResponse,
};
use turnflow::keys::{KeyFiles, NewKey, Scope};
use turnflow_benches::{ask, pipeline, tenant};
use turnflow_pipeline::Config;
use turnflow_state::Store;

use crate::client::{Answer, QUESTION};

/// More than is ever reached, of each kind that there is.
const LIMITS: &str = "requests-per-minute=4000000000,tokens-per-minute=4000000000,turns-in-flight=1000000,streams=1000000,budget-per-day=1000000.0";
/// What the echo answers.
const ANSWER_ENV: &str = "DOOR_ANSWER";

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Echo,
    OnDisk,
    InMemory,
}

impl Role {
    const ALL: [Self; 3] = [Self::Echo, Self::OnDisk, Self::InMemory];

    fn name(self) -> &'static str {
        match self {
            Self::Echo => "--be-echo",
            Self::OnDisk => "--be-server-on-disk",
            Self::InMemory => "--be-server-in-memory",
        }
    }

    /// The role that a process is told to have.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A process that runs until it is dropped.
pub(crate) struct Child {
    process: std::process::Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) key: String,
}

impl Child {
    /// Starts a server.
    pub(crate) fn start(role: Role) -> Self {
        Self::start_with(role, &Answer::default())
    }

    /// Starts one that answers with this, if it is the echo.
    pub(crate) fn start_with(role: Role, answer: &Answer) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .arg(role.name())
            .env(ANSWER_ENV, serde_json::to_string(answer).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let announced: Value = serde_json::from_str(&line).expect("JSON");
        let text = |name: &str| announced[name].as_str().expect("a text");
        let [grpc, http] = ["grpc", "http"].map(|name| text(name).parse().expect("an address"));
        Self { grpc, http, key: text("key").to_owned(), process }
    }

    /// What it has in memory, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a number");
        line.split_whitespace().next().expect("a number").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().expect("it ran");
        self.process.wait().expect("it ends");
    }
}

/// Is such a process, until its parent is gone.
pub(crate) fn run(role: Role) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // Ends when the parent's end of the pipe is closed.
    let parent = runtime.spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let (grpc, http) = (bind(), bind());
    let at = [&grpc, &http].map(|listener| listener.local_addr().expect("bound"));
    if role == Role::Echo {
        let answer = std::env::var(ANSWER_ENV).expect("an answer");
        let answer: Answer = serde_json::from_str(&answer).expect("JSON");
        announce(at, "none");
        let echo = async { tokio::join!(echo_grpc(grpc, answer.events()), echo_http(http, answer.body.into())) };
        return runtime.block_on(async { tokio::select!(_ = echo => {}, _ = parent => {}) });
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::defaults();
    config.gateway.keys = folder.path().join("keys.jsonl");
    let files = KeyFiles::new(&config.gateway, folder.path()).expect("files");
    let (scopes, limits) = ([Scope::Admin].into(), LIMITS.parse().expect("limits"));
    let wanted = NewKey { tenant: tenant().expect("an id"), scopes, name: None, expires: None, limits };
    let (key, _) = files.create(wanted, Timestamp::now()).expect("a key");
    let gateway = Gateway::open(files, tenant().expect("an id")).expect("keys");
    let store = match role {
        Role::OnDisk => Store::open(folder.path().join("store")).expect("a store"),
        _ => Store::memory(),
    };
    let pipeline = pipeline(&runtime, store, 1).expect("a pipeline");
    runtime.block_on(ask(&pipeline, 0, QUESTION)).expect("answered");
    announce(at, key.reveal());
    let forever = std::future::pending::<()>;
    runtime.block_on(async {
        let over_http = turnflow::http::serve(pipeline.clone(), gateway.clone(), &config, http, forever());
        let over_grpc = turnflow::grpc::serve(pipeline.clone(), gateway, &config, grpc, forever());
        tokio::select!(() = over_http => {}, _ = over_grpc => {}, _ = parent => {});
    });
}

/// Tells the parent where it is, and with which key.
fn announce([grpc, http]: [SocketAddr; 2], key: &str) {
    println!("{}", json!({ "grpc": grpc, "http": http, "key": key }));
    std::io::stdout().flush().expect("a pipe");
}

/// Answers every turn with the events of a hit.
struct Echo {
    events: Arc<[AskResponse]>,
}

type Events<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

#[tonic::async_trait]
impl Conversations for Echo {
    type ConverseStream = Events<ConverseResponse>;
    type AskStream = Events<AskResponse>;

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        drop(request);
        let events: Vec<_> = self.events.iter().cloned().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(events)))
    }

    async fn converse(&self, _: Request<Streaming<ConverseRequest>>) -> Result<Response<Self::ConverseStream>, Status> {
        Err(Status::unimplemented("not called"))
    }

    async fn feedback(&self, _: Request<FeedbackRequest>) -> Result<Response<FeedbackResponse>, Status> {
        Err(Status::unimplemented("not called"))
    }
}

async fn echo_grpc(listener: TcpListener, events: Arc<[AskResponse]>) {
    let service = ConversationsServer::new(Echo { events });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("served");
}

async fn echo_http(listener: TcpListener, body: Bytes) {
    let reply = move |request: Bytes| {
        drop(request);
        std::future::ready(([(header::CONTENT_TYPE, "application/json")], body.clone()))
    };
    let service = TowerToHyperService::new(Router::new().route("/v1/chat/completions", post(reply)));
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        socket.set_nodelay(true).expect("a socket");
        let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service.clone());
        // A client may leave.
        tokio::spawn(async move { drop(connection.await) });
    }
}

//! What the tests of gRPC and HTTP share: a real server on ports of its own, with the real encoder and the sample shop's
//! articles, a tier that can be held up, and a client that checks the order of events.

#![expect(dead_code, unreachable_pub, reason = "every test binary compiles this module and uses a part of it")]

pub mod gate;
pub mod http;
pub mod raw;
pub mod transcript;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use turnflow::Gateway;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::knowledge_base_client::KnowledgeBaseClient;
use turnflow::grpc::proto::{self, AskRequest, ConverseRequest, Done, Turn};
use turnflow::grpc::{ServeError, serve};
use turnflow::keys::KeyFiles;
use turnflow_models::{Extractive, ModelHome, TierEngine, WeightSource};
use turnflow_pipeline::{Config, Parts, Pipeline, Tiers};
use turnflow_state::{Article, Durability, KnowledgeBase, Store, StoreBatch, TenantId};

use self::gate::{Gate, Gated, Opener};

/// No test takes longer than this; one that hangs fails.
pub const TEST_MAX: Duration = Duration::from_secs(120);

fn tenant() -> TenantId {
    TenantId::new(turnflow::grpc::TENANT_DEFAULT).expect("valid id")
}

/// The encoder is loaded and the shop is embedded once for each test binary; the rest is made anew for each server.
fn shop() -> &'static Parts {
    static SHOP: OnceLock<Parts> = OnceLock::new();
    SHOP.get_or_init(|| {
        let config = Config::defaults();
        let home = ModelHome::new(turnflow_models::default_home().expect("a home"));
        let files = turnflow_models::ensure(&home, &WeightSource::defaults(None), &|_| {}).expect("weights");
        let parts = Parts::open(&config, Store::memory(), &files).expect("parts");
        // On a thread that may block: see `TestServer::start`.
        tokio::runtime::Handle::current().block_on(stock(&config, &parts));
        parts
    })
}

async fn stock(config: &Config, parts: &Parts) {
    let pipeline = Pipeline::start(config, parts).expect("started");
    let articles = turnflow::sample::articles(&config.limits).expect("the sample shop");
    let receipt = pipeline.knowledge().write(&tenant(), articles).await.expect("written");
    assert!(receipt.outcomes.iter().all(Result::is_ok), "{:?}", receipt.outcomes);
    pipeline.shutdown().await;
}

/// A store of its own with the shop's articles and nothing else.
fn stocked() -> Store {
    let (shop, tenant) = (&shop().store, tenant());
    let mut batch = StoreBatch::new();
    let mut copy = |article: Article| {
        let mut chunks = shop.article_chunks(&tenant, &article.id).expect("readable");
        // The store begins with them.
        chunks.iter_mut().for_each(|chunk| chunk.since = 0);
        batch.put_article(&tenant, &article, &chunks).expect("encodable");
        ControlFlow::Continue(())
    };
    shop.articles(&tenant, &mut copy).expect("readable");
    let store = Store::memory();
    store.write(batch, Durability::Synced).expect("written");
    store
}

/// A server and the pipeline behind it.
pub struct TestServer {
    /// First, so that a test that fails opens the gate before the pipeline waits for the turns inside.
    opener: Opener,
    pub address: SocketAddr,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    pub pipeline: Pipeline,
    /// Holds up the tier while it is closed, and counts what the tier was asked.
    pub gate: Arc<Gate>,
    stop: watch::Sender<bool>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl TestServer {
    /// Starts a server with empty caches; `adjust` changes its configuration.
    pub async fn start(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::start_with(adjust, |_, _| {}).await
    }

    /// The same with other parts: `replace` changes what the pipeline works with.
    pub async fn start_with(
        adjust: impl FnOnce(&mut Config),
        replace: impl FnOnce(&Config, &mut Parts) + Send + 'static,
    ) -> Self {
        let mut config = Config::defaults();
        // Nothing is asked but what the tests ask.
        config.refresh.enabled = false;
        config.audit.enabled = false;
        adjust(&mut config);
        let gate = Arc::new(Gate::open());
        let opener = Opener(gate.clone());
        let (set_up, at_gate) = (config.clone(), gate.clone());
        // Loading and importing block.
        let pipeline =
            tokio::task::spawn_blocking(move || start_pipeline(&set_up, at_gate, replace)).await.expect("started");
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let (listener, for_http) = (bind().await, bind().await);
        let [address, http] = [&listener, &for_http].map(|listener| listener.local_addr().expect("bound"));
        let (stop, stopping) = watch::channel(false);
        let stopped = || {
            let mut stopping = stopping.clone();
            async move { drop(stopping.wait_for(|&stopping| stopping).await) }
        };
        let (stopped, of_http) = (stopped(), stopped());
        // Its keys are where the configuration says, if it does.
        let gateway = if config.gateway.keys.as_os_str().is_empty() {
            Gateway::keyless(tenant())
        } else {
            let files = KeyFiles::new(&config.gateway, Path::new("")).expect("files");
            Gateway::open(files, tenant()).expect("usable keys")
        };
        let gateway = gateway.with_tls(&config.server.tls).expect("usable certificates");
        gateway.limit(&config);
        let served = tokio::spawn({
            let pipeline = pipeline.clone();
            async move {
                let http = turnflow::http::serve(pipeline.clone(), gateway.clone(), &config, for_http, of_http);
                tokio::join!(serve(pipeline, gateway, &config, listener, stopped), http).0
            }
        });
        Self { opener, address, http, pipeline, gate, stop, served }
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> ConversationsClient<Channel> {
        ConversationsClient::new(self.channel().await)
    }

    /// A client of the knowledge base on a connection of its own.
    pub async fn knowledge(&self) -> KnowledgeBaseClient<Channel> {
        KnowledgeBaseClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL");
        endpoint.tcp_nodelay(true).connect().await.expect("the server listens")
    }

    /// Tells the server to stop; the task ends when it has.
    pub fn begin_stop(self) -> JoinHandle<Result<(), ServeError>> {
        let Self { opener, pipeline, stop, served, .. } = self;
        drop(stop);
        tokio::spawn(async move {
            let result = served.await.expect("the server does not panic");
            drop(opener);
            pipeline.shutdown().await;
            result
        })
    }

    /// Stops the server and its pipeline.
    pub async fn stop(self) {
        self.begin_stop().await.expect("no panic").expect("served");
    }
}

fn start_pipeline(config: &Config, gate: Arc<Gate>, replace: impl FnOnce(&Config, &mut Parts)) -> Pipeline {
    let (encoder, axes, store) = (shop().encoder.clone(), shop().axes.clone(), stocked());
    let knowledge = Arc::new(KnowledgeBase::load(store.clone(), config.knowledge.cache_bytes).expect("loaded"));
    let extractive = Extractive::new(encoder.clone(), config.extractive.clone());
    let large = TierEngine::start(Arc::new(Gated::new(extractive, gate)), config.tier.engine()).expect("a thread");
    let (tiers, chooser) = (Tiers { large, small: None }, None);
    let policy = Arc::new(turnflow_pipeline::policy(config, encoder.identity()).expect("the verifier that ships"));
    let mut parts = Parts { store, knowledge, encoder, tiers, chooser, policy, axes };
    replace(config, &mut parts);
    Pipeline::start(config, &parts).expect("started")
}

/// A valid turn.
pub fn turn(conversation: &str, id: &str, text: &str) -> Turn {
    Turn {
        conversation_id: conversation.to_owned(),
        turn_id: id.to_owned(),
        channel: proto::Channel::Web.into(),
        text: text.to_owned(),
        cache_control: None,
        deadline_ms: None,
    }
}

pub fn converse_request(turn: Turn) -> ConverseRequest {
    ConverseRequest { turn: Some(turn) }
}

/// What is similar shares an answer.
pub fn plain(config: &mut Config) {
    config.policy.verifier = "none".to_owned();
    config.cache.similarity_min = 0.9;
}

/// Asks one turn and checks the order of its events.
pub async fn ask(client: &mut ConversationsClient<Channel>, turn: Turn) -> Result<Done, tonic::Status> {
    use turnflow::grpc::proto::ask_response::Event;
    let mut events = client.ask(AskRequest { turn: Some(turn) }).await?.into_inner();
    let first = events.message().await?.and_then(|response| response.event);
    assert!(matches!(first, Some(Event::Accepted(_))), "{first:?}");
    let mut streamed = String::new();
    loop {
        match events.message().await?.and_then(|response| response.event) {
            Some(Event::Delta(delta)) => streamed.push_str(&delta.text),
            Some(Event::Restart(_)) => streamed.clear(),
            Some(Event::Done(done)) => {
                assert!(events.message().await?.is_none(), "an event after the terminal one");
                assert!(streamed.is_empty() || streamed == done.text, "{streamed:?} / {:?}", done.text);
                return Ok(done);
            }
            other => panic!("expected a delta or the answer, got {other:?}"),
        }
    }
}

/// Runs a test, and fails it when it hangs.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_MAX, test).await.expect("the test hangs")
}

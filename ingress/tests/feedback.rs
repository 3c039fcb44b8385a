//! A customer's judgement over gRPC: which turns it may name, what it counts for, and that it stops an answer.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use tonic::Code;
use turnflow::grpc::client::{Access, Keyed};
use turnflow::grpc::proto::ask_response::Event;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::{self, AskRequest, CacheLevel, Done, FeedbackRequest, Judgement, Turn};
use turnflow::grpc::{TENANT_DEFAULT, serve};
use turnflow_models::{ModelHome, WeightSource};
use turnflow_pipeline::{Config, Parts, Pipeline};
use turnflow_state::{Store, TenantId};

const QUESTION: &str = "How long does standard delivery take?";
const SIMILAR: &str = "How many days does standard delivery take?";

type Client = ConversationsClient<Keyed>;

async fn ask(client: &mut Client, conversation: &str, text: &str) -> Done {
    let turn = Turn {
        conversation_id: conversation.to_owned(),
        turn_id: "1".to_owned(),
        channel: proto::Channel::Web.into(),
        text: text.to_owned(),
        cache_control: None,
        deadline_ms: None,
    };
    let mut events = client.ask(AskRequest { turn: Some(turn) }).await.expect("admitted").into_inner();
    while let Some(response) = events.message().await.expect("an event") {
        if let Some(Event::Done(done)) = response.event {
            return done;
        }
    }
    panic!("{conversation} was not answered");
}

async fn judge(client: &mut Client, conversation: &str, judgement: Judgement) -> Result<bool, tonic::Status> {
    let (conversation_id, turn_id) = (conversation.to_owned(), "1".to_owned());
    let request = FeedbackRequest { conversation_id, turn_id, judgement: judgement.into() };
    Ok(client.feedback(request).await?.into_inner().counted)
}

fn level(done: &Done) -> CacheLevel {
    done.verdict.as_ref().expect("a verdict").level()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judgement_names_a_turn_counts_once_and_stops_an_answer() {
    let mut config = Config::defaults();
    config.policy.verifier = "none".into();
    config.cache.similarity_min = 0.0;
    config.audit.enabled = false;
    let started = config.clone();
    let pipeline = tokio::task::spawn_blocking(move || {
        let home = ModelHome::new(turnflow_models::default_home().expect("a home"));
        let files = turnflow_models::ensure(&home, &WeightSource::defaults(None), &|_| {}).expect("weights");
        Pipeline::start(&started, &Parts::open(&started, Store::memory(), &files).expect("parts")).expect("started")
    });
    let pipeline = pipeline.await.expect("started");
    let tenant = TenantId::new(TENANT_DEFAULT).expect("valid");
    let articles = turnflow::sample::articles(&config.limits).expect("the sample shop");
    pipeline.knowledge().write(&tenant, articles).await.expect("written");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let gateway = turnflow::Gateway::keyless(tenant);
    let serving = pipeline.clone();
    let served =
        tokio::spawn(async move { serve(serving, gateway, &config, listener, async { drop(stopped.await) }).await });
    let mut client =
        ConversationsClient::new(Access::default().connect(&address.to_string()).await.expect("the server listens"));

    let unknown = judge(&mut client, "nobody", Judgement::Good).await.expect_err("no such turn");
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "conversation nobody has no answered turn 1"));
    let nothing = judge(&mut client, "a", Judgement::Unspecified).await.expect_err("no judgement");
    assert_eq!((nothing.code(), nothing.message()), (Code::InvalidArgument, "judgement: unspecified"));
    let nameless = judge(&mut client, "", Judgement::Good).await.expect_err("no conversation");
    assert_eq!(nameless.code(), Code::InvalidArgument);
    assert!(nameless.message().starts_with("conversation_id: "), "{nameless}");

    assert_eq!(level(&ask(&mut client, "a", QUESTION).await), CacheLevel::Miss);
    assert!(judge(&mut client, "a", Judgement::Good).await.expect("known"), "what it made is a hit for others");
    assert_eq!(level(&ask(&mut client, "b", SIMILAR).await), CacheLevel::Semantic);
    assert!(judge(&mut client, "b", Judgement::Good).await.expect("known"));
    assert!(!judge(&mut client, "b", Judgement::Wrong).await.expect("known"), "it was judged before");
    let hit = ask(&mut client, "c", SIMILAR).await;
    let evidence =
        hit.verdict.as_ref().and_then(|verdict| verdict.evidence.clone()).expect("a similar hit has evidence");
    assert_eq!((level(&hit), evidence.audits, evidence.agreed), (CacheLevel::Semantic, 2, 2));
    assert!(judge(&mut client, "c", Judgement::Wrong).await.expect("known"));
    assert_eq!(level(&ask(&mut client, "d", SIMILAR).await), CacheLevel::Miss);
    drop((client, stop));
    served.await.expect("no panic").expect("served");
    pipeline.shutdown().await;
}

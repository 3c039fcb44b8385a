//! Conversations over gRPC: order, one answer per turn, shared answers, and clients that go away.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use turnflow::grpc::proto::{CacheLevel, Done, Turn};

use self::support::transcript::Transcript;
use self::support::{TestServer, ask, bounded, converse_request, turn};

const CONVERSATIONS: usize = 64;
const TURNS: usize = 4;

/// What customers of the sample shop ask; some of it twice in other words.
const QUESTIONS: &[&str] = &[
    "How long does standard delivery take?",
    "How many days does normal shipping take?",
    "Do you deliver on Sundays?",
    "What does express delivery cost?",
    "How much is express shipping?",
    "Do you ship to Canada?",
    "How long does delivery to the United Kingdom take?",
    "Who pays import duties on international orders?",
    "How do I return a pan?",
    "What is the meaning of life?",
];

/// Every turn, in the order in which a stream sends them: all first turns, then all second ones, and so on.
fn turns() -> impl Iterator<Item = Turn> {
    (0..TURNS).flat_map(|number| {
        (0..CONVERSATIONS).map(move |conversation| {
            let question = QUESTIONS[(conversation + 3 * number) % QUESTIONS.len()];
            turn(&format!("c{conversation}"), &number.to_string(), question)
        })
    })
}

fn check_order(transcript: &Transcript, conversation: &str) {
    let expected: Vec<_> = (0..TURNS).map(|number| number.to_string()).collect();
    for order in transcript.orders_of(conversation) {
        assert_eq!(order, expected, "conversation {conversation}");
    }
    for number in expected {
        assert!(!transcript.done(conversation, &number).text.is_empty());
    }
}

async fn one_stream_carries_many_conversations(workers: usize) {
    let server = TestServer::start(|config| config.workers.threads = workers).await;
    let mut client = server.client().await;
    let requests: Vec<_> = turns().map(converse_request).collect();
    let mut responses = client.converse(tokio_stream::iter(requests)).await.expect("opened").into_inner();
    let mut transcript = Transcript::default();
    transcript.listen(&mut responses).await.expect("the stream ends well after the half-close");
    assert_eq!(transcript.ended.len(), CONVERSATIONS * TURNS);
    for conversation in 0..CONVERSATIONS {
        check_order(&transcript, &format!("c{conversation}"));
    }
    server.stop().await;
}

async fn many_streams_carry_a_conversation_each(workers: usize) {
    let server = TestServer::start(|config| config.workers.threads = workers).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.client().await);
    }
    let mut streams = JoinSet::new();
    for conversation in 0..CONVERSATIONS {
        let mut client = clients[conversation % clients.len()].clone();
        let name = format!("c{conversation}");
        let own: Vec<_> = turns().filter(|turn| turn.conversation_id == name).map(converse_request).collect();
        streams.spawn(async move {
            let mut responses = client.converse(tokio_stream::iter(own)).await.expect("opened").into_inner();
            let mut transcript = Transcript::default();
            transcript.listen(&mut responses).await.expect("the stream ends well after the half-close");
            assert_eq!(transcript.ended.len(), TURNS);
            check_order(&transcript, &name);
        });
    }
    streams.join_all().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_of_a_conversation_are_answered_in_order() {
    for workers in 1..=3 {
        bounded(one_stream_carries_many_conversations(workers)).await;
        bounded(many_streams_carry_a_conversation_each(workers)).await;
    }
}

async fn identical_questions_share_an_answer(workers: usize) {
    let server = TestServer::start(|config| config.workers.threads = workers).await;
    server.gate.set_open(false);
    let mut asked = JoinSet::new();
    for conversation in 0..CONVERSATIONS {
        let mut client = server.client().await;
        asked.spawn(async move { ask(&mut client, turn(&format!("c{conversation}"), "1", QUESTIONS[0])).await });
    }
    server.gate.arrived(1).await;
    server.gate.set_open(true);
    let answers: Vec<Done> = asked.join_all().await.into_iter().map(|answer| answer.expect("answered")).collect();

    let levels: Vec<_> = answers.iter().map(|done| done.verdict.as_ref().expect("a verdict").level()).collect();
    let misses = levels.iter().filter(|level| **level == CacheLevel::Miss).count();
    let shared = levels.iter().filter(|level| matches!(level, CacheLevel::Joined | CacheLevel::Exact)).count();
    assert_eq!((misses, shared), (1, CONVERSATIONS - 1), "{workers} workers: {levels:?}");
    assert_eq!(server.gate.arrivals(), 1);
    assert!(answers.iter().all(|done| done.text == answers[0].text && done.grounded));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_questions_in_flight_are_answered_once() {
    for workers in 1..=3 {
        bounded(identical_questions_share_an_answer(workers)).await;
    }
}

/// An answer without what differs each time it is sent.
fn lasting(done: Done) -> Done {
    Done { latency: None, ..done }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_sent_twice_at_once_is_answered_once() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        server.gate.set_open(false);
        let (mut one, mut other) = (server.client().await, server.client().await);
        // The text of a turn that is sent again does not matter: its id is its name.
        let first = tokio::spawn(async move { ask(&mut one, turn("c", "1", QUESTIONS[0])).await });
        server.gate.arrived(1).await;
        let again = tokio::spawn(async move { ask(&mut other, turn("c", "1", QUESTIONS[0])).await });
        server.gate.set_open(true);
        let first = lasting(first.await.expect("no panic").expect("answered"));
        assert_eq!(lasting(again.await.expect("no panic").expect("answered")), first);
        assert_eq!(first.verdict.as_ref().expect("a verdict").level(), CacheLevel::Miss);

        let later = ask(&mut server.client().await, turn("c", "1", QUESTIONS[5])).await.expect("answered");
        assert_eq!(lasting(later), first);
        assert_eq!(server.gate.arrivals(), 1);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_no_task_and_loses_no_answer() {
    bounded(async {
        let questions = [QUESTIONS[0], QUESTIONS[3], QUESTIONS[5], QUESTIONS[8]];
        let server = TestServer::start(|config| config.tier.threads = questions.len()).await;
        server.gate.set_open(false);
        // A first call, so that all that serves is up before its tasks are counted.
        let mut client = server.client().await;
        assert!(ask(&mut client, turn("c", "1", "")).await.is_err());
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let tasks_before = tasks();

        let mut doomed = server.client().await;
        let (send, requests) = mpsc::channel(questions.len());
        let mut responses = doomed.converse(ReceiverStream::new(requests)).await.expect("opened").into_inner();
        for (number, question) in questions.iter().enumerate() {
            send.send(converse_request(turn(&format!("c{number}"), "1", question))).await.expect("open");
        }
        let mut transcript = Transcript::default();
        while (0..questions.len()).any(|number| !transcript.has_accepted(&format!("c{number}"), "1")) {
            transcript.hear(responses.message().await.expect("open").expect("more to come"));
        }
        server.gate.arrived(questions.len()).await;
        drop((responses, send, doomed));
        // The server's tasks end though none of the turns has.
        while tasks() > tasks_before {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.pipeline.stats().turns_in_flight, questions.len());

        server.gate.set_open(true);
        for (number, question) in questions.iter().enumerate() {
            let again = turn(&format!("c{number}"), "1", question);
            let found = ask(&mut client, again.clone()).await.expect("answered");
            assert_eq!(lasting(ask(&mut client, again).await.expect("answered")), lasting(found));
        }
        assert_eq!(server.gate.arrivals(), questions.len(), "a turn was answered a second time");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_a_bounded_number_of_unanswered_turns() {
    bounded(async {
        let server = TestServer::start(|config| config.limits.turns_per_stream_max = 2).await;
        server.gate.set_open(false);
        let mut client = server.client().await;
        let requests: Vec<_> = QUESTIONS.iter().map(|text| converse_request(turn(text, "1", text))).collect();
        let mut responses = client.converse(tokio_stream::iter(requests)).await.expect("opened").into_inner();
        let mut transcript = Transcript::default();
        for _ in 0..2 {
            transcript.hear(responses.message().await.expect("open").expect("more to come"));
        }
        assert!(transcript.has_accepted(QUESTIONS[0], "1") && transcript.has_accepted(QUESTIONS[1], "1"));
        // A call on the same connection is answered, but the stream is not read further meanwhile.
        for _ in 0..8 {
            let empty = ask(&mut client, turn("c", "1", "")).await;
            assert_eq!(empty.expect_err("invalid").code(), tonic::Code::InvalidArgument);
            assert_eq!(server.pipeline.stats().turns_in_flight, 2);
        }
        server.gate.set_open(true);
        transcript.listen(&mut responses).await.expect("all are answered in the end");
        assert_eq!(transcript.ended.len(), QUESTIONS.len());
        server.stop().await;
    })
    .await;
}

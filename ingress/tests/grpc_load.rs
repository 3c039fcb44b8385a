//! What clients hear of load and deadlines over gRPC: statuses with a time to come back, and the route of an answer.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use std::time::Duration;

use support::{TestServer, ask, bounded, turn};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::{AskRequest, LoadLevel, TierSize, Turn};

const QUESTIONS: [&str; 4] = [
    "How do I clean the lime scale out of my kettle?",
    "How long does the delivery of a large parcel take?",
    "Which amounts do you sell gift cards in?",
    "Can I pay for my order with a voucher?",
];

/// Asks without waiting for an answer, until the tier has been asked so often.
async fn occupy(server: &TestServer, text: &'static str, arrivals: usize) -> tokio::task::JoinHandle<()> {
    let mut client = server.client().await;
    let waits = tokio::spawn(async move { drop(ask(&mut client, turn(text, "1", text)).await) });
    server.gate.arrived(arrivals).await;
    waits
}

/// Waits until so many turns wait in the queues, and have come to rest there: on its way a turn may count for a moment.
async fn settled(server: &TestServer, waiting: usize) {
    let mut at_rest = 0;
    while at_rest < 10 {
        at_rest = if server.pipeline.stats().load.waiting == waiting { at_rest + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The status that a call ends with, however far it came.
async fn status(client: &mut ConversationsClient<Channel>, request: Request<AskRequest>) -> Status {
    match client.ask(request).await {
        Err(status) => status,
        Ok(response) => {
            let mut events = response.into_inner();
            loop {
                if let Err(status) = events.message().await {
                    return status;
                }
            }
        }
    }
}

async fn late_turns_are_told_so() {
    let server = TestServer::start(|config| config.tier.queue_max = 1).await;
    server.gate.set_open(false);
    let first = occupy(&server, QUESTIONS[0], 1).await;
    let mut waiting = vec![first];
    for number in 0..2 {
        let mut client = server.client().await;
        let text = format!("How long does it take until parcel number {number} arrives?");
        waiting
            .push(tokio::spawn(async move { drop(ask(&mut client, turn(&format!("w{number}"), "1", &text)).await) }));
    }
    // One is being written, one waits inside the tier, and one in the queue.
    settled(&server, 1).await;
    let mut client = server.client().await;
    // By a field of the turn.
    let hurried = Turn { deadline_ms: Some(100), ..turn("c2", "1", QUESTIONS[2]) };
    let late = status(&mut client, Request::new(AskRequest { turn: Some(hurried) })).await;
    assert_eq!(
        (late.code(), late.message()),
        (Code::DeadlineExceeded, "no answer can be written within its deadline of 100 ms")
    );
    // And by the time of the call, which the client keeps to as well.
    let mut hurried = Request::new(AskRequest { turn: Some(turn("c3", "1", QUESTIONS[3])) });
    hurried.set_timeout(Duration::from_millis(100));
    let late = status(&mut client, hurried).await;
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    server.gate.set_open(true);
    for one in waiting {
        one.await.expect("no panic");
    }
    assert_eq!(server.gate.arrivals(), 3, "neither of the late ones was begun");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_cannot_be_answered_in_time_is_not_begun() {
    bounded(late_turns_are_told_so()).await;
}

async fn refused_turns_hear_when_to_come_back() {
    let server = TestServer::start(|config| {
        config.tier.queue_max = 1;
        (config.load.hold_ms, config.load.degraded_wait_ms, config.load.shedding_wait_ms) = (0, 500, 1_000);
    })
    .await;
    let mut client = server.client().await;
    let normal = ask(&mut client, turn("ongoing", "1", QUESTIONS[0])).await.expect("answered");
    let route = normal.verdict.expect("a verdict").route.expect("a tier answered");
    assert_eq!((route.size(), route.load(), route.escalated), (TierSize::Large, LoadLevel::Normal, false));
    server.gate.set_open(false);
    let mut waiting = vec![occupy(&server, QUESTIONS[1], 2).await];
    for number in 0..6 {
        let text = format!("How long does it take until parcel number {number} arrives?");
        let mut client = server.client().await;
        waiting
            .push(tokio::spawn(async move { drop(ask(&mut client, turn(&format!("w{number}"), "1", &text)).await) }));
    }
    settled(&server, 5).await;
    while server.pipeline.stats().load.level != turnflow_state::LoadLevel::Shedding {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = status(&mut client, Request::new(AskRequest { turn: Some(turn("new", "1", QUESTIONS[3])) })).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let retry = refused.get_details_retry_info().and_then(|info| info.retry_delay).expect("a time to come back");
    assert!(retry > Duration::ZERO);
    let goes_on = tokio::spawn({
        let mut client = client.clone();
        async move { ask(&mut client, turn("ongoing", "2", "Can I return an item that I have used?")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.gate.set_open(true);
    goes_on.await.expect("no panic").expect("nobody who is in a conversation is refused");
    for one in waiting {
        one.await.expect("no panic");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_new_conversations_hear_when_to_come_back() {
    bounded(refused_turns_hear_when_to_come_back()).await;
}

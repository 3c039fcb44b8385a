//! The examples in docs/API.md, sent to a real server: what they say it replies is what it replies.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use axum::http::Method;
use serde_json::Value;

use self::support::http::HttpClient;
use self::support::{TestServer, bounded};

/// How far a score may be from what is written, since machines round in their own ways.
const SCORE_TOLERANCE: f64 = 0.005;

/// The requests of a section, each with its body, the status and the reply.
fn examples(section: &str) -> Vec<(Method, String, String, u16, Value)> {
    let (_, rest) = include_str!("../../docs/API.md").split_once(&format!("\n## {section}\n")).expect("the section");
    let section = rest.split("\n## ").next().expect("its text");
    let (_, code) = section.split_once("\n```\n").expect("examples");
    let lines = code.split("\n```").next().expect("their end").lines().filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.collect();
    let pairs = lines.chunks(2).map(|pair| {
        let [request, reply] = pair else { panic!("{pair:?} has no reply") };
        let mut request = request.splitn(3, ' ').map(str::to_owned);
        let method = request.next().expect("a method").parse().expect("a method");
        let (status, reply) = reply.split_once(' ').expect("a status");
        let path = request.next().expect("a path");
        let reply = serde_json::from_str(reply).expect("JSON");
        (method, path, request.next().unwrap_or_default(), status.parse().expect("a status"), reply)
    });
    pairs.collect()
}

/// Takes the scores out of a reply.
fn without_scores(reply: &mut Value) -> Vec<f64> {
    let found = reply["data"].as_array_mut().into_iter().flatten();
    found.filter_map(|found| found.as_object_mut()?.remove("score")?.as_f64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn articles_are_as_documented() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let client = HttpClient::new(server.http);
        let examples = examples("Articles");
        assert!(examples.len() >= 3, "{examples:?}");
        for (method, path, body, status, mut expected) in examples {
            let reply = client.send(method, &path, &[("content-type", "application/json")], body).await;
            let mut found = reply.json();
            let (scores, of_docs) = (without_scores(&mut found), without_scores(&mut expected));
            let is_near = |(found, expected): (&f64, &f64)| (found - expected).abs() <= SCORE_TOLERANCE;
            let are_near = scores.len() == of_docs.len() && scores.iter().zip(&of_docs).all(is_near);
            assert!(are_near, "{path}: {scores:?}, not {of_docs:?}");
            assert_eq!((reply.status, found), (status, expected), "{path}");
        }
        server.stop().await;
    })
    .await;
}

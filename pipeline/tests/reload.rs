//! Settings that change while the pipeline runs: what may, does from the next turn on; otherwise nothing does.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use turnflow_pipeline::{Config, Parts, Pipeline, ReloadError};
use turnflow_state::{CacheLevel, Store};

use self::support::{asked, files, import, turn};

/// Two ways to ask the same, as far as the verifier that ships is concerned.
const QUESTION: &str = "How long does delivery take?";
const REWORDED: &str = "how long does the delivery take?";

fn write(path: &Path, settings: &str) {
    let quiet = "[refresh]\nenabled = false\n[audit]\nenabled = false\n";
    fs::write(path, format!("{quiet}{settings}")).expect("written");
}

fn priced(price: f64, delta: f64, degraded_wait_ms: u64) -> String {
    format!(
        "[tier.price]\ninput-per-million = {price}\n[policy]\ndelta = {delta}\n[load]\ndegraded-wait-ms = {degraded_wait_ms}\n"
    )
}

async fn cost(pipeline: &Pipeline, number: usize) -> u64 {
    asked(pipeline, turn(&format!("cost-{number}"), "1", &format!("How do I clean my kettle number {number}?")))
        .await
        .cost_micros
}

fn changed(pipeline: &Pipeline) -> Vec<String> {
    pipeline.reload().expect("a file that can be used").iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_change_does_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("turnflow.toml");
    write(&path, &priced(100.0, 0.01, 500));
    let config = Config::load(Some(&path)).expect("valid");
    let pipeline =
        Pipeline::start(&config, &Parts::open(&config, Store::memory(), files()).expect("parts")).expect("started");
    import(&pipeline).await;
    assert_eq!(changed(&pipeline), [""; 0]);
    let before = cost(&pipeline, 0).await;
    assert!(before > 0);
    asked(&pipeline, turn("a", "1", QUESTION)).await;
    assert_eq!(asked(&pipeline, turn("b", "1", REWORDED)).await.verdict.level, CacheLevel::Semantic);

    // Nothing is accepted below an error that no calibration shows.
    write(&path, &priced(200.0, 0.000_001, 700));
    let expected = [
        "load.degraded-wait-ms: 500 -> 700",
        "policy.delta: 0.01 -> 0.000001",
        "tier.price.input-per-million: 100.0 -> 200.0",
    ];
    assert_eq!(changed(&pipeline), expected);
    assert_eq!((pipeline.config().load.degraded_wait_ms, pipeline.config().policy.delta), (700, 0.000_001));
    assert_eq!(cost(&pipeline, 1).await, 2 * before);
    assert_eq!(asked(&pipeline, turn("c", "1", REWORDED)).await.verdict.level, CacheLevel::Miss);

    // All or nothing: the price would be free to change, the language is not.
    write(&path, &format!("{}[scope]\nlanguage = \"de\"\n", priced(300.0, 0.01, 500)));
    let refused = pipeline.reload().expect_err("needs a restart");
    assert!(matches!(&refused, ReloadError::Restart(keys) if keys.len() == 1), "{refused:?}");
    assert_eq!(refused.to_string(), "needs a restart, so that nothing was changed: scope.language");
    write(&path, &priced(-1.0, 0.01, 500));
    let refused = pipeline.reload().expect_err("wrong");
    assert!(refused.to_string().contains("turnflow.toml:6: tier.price.input-per-million = -1"), "{refused}");
    assert_eq!(cost(&pipeline, 2).await, 2 * before);
    pipeline.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_there_is_nothing_to_read() {
    let config = Config::defaults();
    let pipeline =
        Pipeline::start(&config, &Parts::open(&config, Store::memory(), files()).expect("parts")).expect("started");
    assert!(matches!(pipeline.reload(), Err(ReloadError::NoFile)));
    pipeline.shutdown().await;
}

//! A small load over a real pipeline with the sample shop, in this process and over gRPC: every turn that was sent is
//! accounted for, in its class.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use turnflow::grpc::TENANT_DEFAULT;
use turnflow::grpc::client::Access;
use turnflow::load::{Class, Customers, LoadReport, Part, Pattern, Plan, Target, Texts, run};
use turnflow::sample;
use turnflow_pipeline::{Config, Parts};
use turnflow_state::{CacheControl, TenantId};

use self::support::{TestServer, bounded};

/// Turns per second, few enough for a machine that does something else as well.
const CAPACITY: f64 = 40.0;

fn customers(ongoing_share: f64) -> Customers {
    let texts = Arc::new(Texts::read(sample::log(&Config::defaults().limits)).expect("the sample's log"));
    let tenant = TenantId::new(TENANT_DEFAULT).expect("an id");
    Customers::new(texts, tenant, CacheControl::Bypass, ongoing_share)
}

/// Two loads of half a second each, and as long after each of them.
fn plan() -> Plan {
    Plan {
        pattern: Pattern::Poisson,
        multiples: vec![0.5, 2.0],
        seconds: 0.5,
        recover_seconds: 0.5,
        capacity: Some(CAPACITY),
        slo: Duration::from_secs(60),
        patience: Duration::from_secs(60),
    }
}

async fn small_load(target: Target, ongoing_share: f64) -> LoadReport {
    run(target, customers(ongoing_share), &plan(), |_| {}).await.expect("a run")
}

/// Each phase offers as many turns as its schedule has, and every one of them ended in one way.
fn check(report: &LoadReport, classes: &[Class]) {
    assert_eq!(report.phases.len(), 2);
    for phase in &report.phases {
        let mut offered = 0;
        for class in Class::ALL {
            let figures = phase.of_class(class);
            let sum = figures.answered + figures.late + figures.refused + figures.failed;
            assert_eq!(figures.offered, sum, "{figures:?}");
            assert_eq!(figures.offered > 0, classes.contains(&class), "{figures:?}");
            // Nothing is refused or fails at such rates, and a minute is enough for a turn.
            assert_eq!((figures.answered, figures.writers.values().sum()), (sum, sum), "{figures:?}");
            offered += figures.offered;
        }
        let length = Duration::from_secs_f64(phase.seconds);
        let parts = vec![Part { rate: phase.rate_per_s, seconds: phase.seconds }];
        assert_eq!(offered, Pattern::Poisson.arrivals(parts).filter(|due| *due < length).count() as u64);
        let by_second: u64 = phase.under_load.iter().map(|second| second.new.offered + second.ongoing.offered).sum();
        assert_eq!(by_second, offered);
        assert_eq!(phase.generator.unsent, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_turn_in_process_is_accounted_for() {
    bounded(async {
        let (own, encoder) = mpsc::channel();
        let replace = move |_: &Config, parts: &mut Parts| {
            own.send(parts.encoder.clone()).expect("the test listens");
        };
        let server = TestServer::start_with(|config| config.load.enabled = false, replace).await;
        let encoder = encoder.recv().expect("started");
        let target = Target::InProcess { pipeline: server.pipeline.clone(), encoder };
        let report = small_load(target, 0.5).await;
        check(&report, &Class::ALL);
        let batches = report.phases.iter().map(|phase| phase.encoder_batches.as_ref().expect("the encoder is here"));
        assert!(batches.flatten().map(|batch| batch.passes).sum::<u64>() > 0);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_turn_over_grpc_is_accounted_for() {
    bounded(async {
        let server = TestServer::start(|config| config.load.enabled = false).await;
        let target = Target::connect(&server.address.to_string(), &Access::default()).await.expect("a server");
        let report = small_load(target, 0.0).await;
        check(&report, &[Class::New]);
        assert!(report.phases.iter().all(|phase| phase.encoder_batches.is_none()));
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_nobody_is_given_up() {
    bounded(async {
        let server = TestServer::start(|config| config.load.enabled = false).await;
        server.gate.set_open(false);
        let target = Target::connect(&server.address.to_string(), &Access::default()).await.expect("a server");
        let plan = Plan { patience: Duration::from_millis(500), ..plan() };
        let error = run(target, customers(0.5), &plan, |_| {}).await.expect_err("nobody answers");
        // Small talk is answered without the tier.
        let expected = "no conversation could be opened for 500ms, and 128 are wanted of which there are ";
        assert!(error.to_string().starts_with(expected), "{error:#}");
        server.gate.set_open(true);
        server.stop().await;
    })
    .await;
}

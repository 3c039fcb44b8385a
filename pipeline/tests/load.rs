//! What load does to turns, and which of two tiers answers them: through a whole pipeline, with tiers that wait for the test.

#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

mod support;

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use support::{ask, asked, config, ended, files, import, tenant, turn};
use tokio::sync::oneshot;
use turnflow_models::{Answerer, ModelError, PlainRule, TierEngine, TierRequest};
use turnflow_pipeline::{Chooser, Config, Cost, Parts, Pipeline, SubmitError, TurnStream};
use turnflow_state::{
    Answer, CacheLevel, Completion, LoadLevel, RouteEvidence, Store, TenantId, Tier, TierSize, TurnError,
    TurnErrorKind, Usage,
};

/// Longest text, in words, that the rule of these tests gives the small tier.
const WORDS_MAX: usize = 4;
const SHORT: &str = "Do gift cards expire?";
const LONG: &str = "How long does the delivery of a large parcel take?";

/// A tier that answers while its gate is open, and breaks off where the question says so.
#[derive(Clone)]
struct Says {
    name: &'static str,
    grounded: bool,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    is_shut: bool,
    /// Answers that it lets pass all the same.
    passes: usize,
    /// The questions that came to it.
    asked: Vec<String>,
}

impl Says {
    fn new(name: &'static str) -> Self {
        Self { name, grounded: true, gate: Arc::default() }
    }

    fn open(&self, is_open: bool) {
        self.gate.0.lock().expect("no panic").is_shut = !is_open;
        self.gate.1.notify_all();
    }

    /// Lets one answer pass.
    fn pass(&self) {
        self.gate.0.lock().expect("no panic").passes += 1;
        self.gate.1.notify_all();
    }

    fn asked(&self) -> Vec<String> {
        self.gate.0.lock().expect("no panic").asked.clone()
    }
}

/// Lets a pipeline end when a test fails.
struct Opens(Says);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open(true);
    }
}

impl Answerer for Says {
    fn answer(&self, request: &TierRequest, on_delta: &mut dyn FnMut(String)) -> Result<Answer, ModelError> {
        self.gate.0.lock().expect("no panic").asked.push(request.question.clone());
        // As every answer's first piece, it tells the stage that the tier has room again.
        let first = format!("{} on ", self.name);
        on_delta(first.clone());
        let gate = self.gate.0.lock().expect("no panic");
        let mut gate = self.gate.1.wait_while(gate, |gate| gate.is_shut && gate.passes == 0).expect("no panic");
        gate.passes = gate.passes.saturating_sub(1);
        drop(gate);
        if request.question.contains(&format!("{} breaks", self.name)) {
            return Err(ModelError::Step { reason: "broken".into() });
        }
        on_delta(request.question.clone());
        let text = first + &request.question;
        let usage = Usage { input_tokens: 100, output_tokens: 10 };
        Ok(Answer { text, tier: Tier::Extractive, sources: Vec::new(), usage, grounded: self.grounded, cut_off: false })
    }
}

/// Runs a test on a pipeline with two tiers, of which the small one gets what is short; `adjust` may make it one. The test gets the
/// large one.
fn with_tiers<F: Future<Output = ()>>(
    small_is_grounded: bool,
    adjust: impl FnOnce(&mut Config),
    test: impl FnOnce(Pipeline, Says) -> F,
) {
    let mut config = config(1);
    config.routing.enabled = true;
    config.load.enabled = false;
    // One waits inside each tier, so that the others wait in the queue.
    (config.tier.queue_max, config.small_tier.queue_max) = (1, 1);
    config.tier.price.input_per_million = 1_000.0;
    config.small_tier.price.input_per_million = 100.0;
    adjust(&mut config);
    let mut parts = Parts::open(&config, Store::memory(), files()).expect("parts");
    let (small, large) = (Says { grounded: small_is_grounded, ..Says::new("small") }, Says::new("large"));
    parts.tiers.large = TierEngine::start(Arc::new(large.clone()), config.tier.engine()).expect("threads");
    if config.routing.enabled {
        let engine = TierEngine::start(Arc::new(small.clone()), config.small_tier.engine()).expect("threads");
        parts.tiers.small = Some(engine);
        let rule = PlainRule { relevance_min: -1.0, margin_min: -1.0, words_max: WORDS_MAX, questions_max: 9 };
        parts.chooser = Some(Chooser::Plain(rule));
    }
    let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let _opens = Opens(large.clone());
    runtime.block_on(async {
        import(&pipeline).await;
        test(pipeline.clone(), large).await;
        pipeline.shutdown().await;
    });
}

fn route(completion: &Completion) -> &RouteEvidence {
    completion.verdict.route.as_deref().unwrap_or_else(|| panic!("a tier answered: {completion:?}"))
}

/// Load that is felt at once.
fn nervous(config: &mut Config, degraded_wait_ms: u64, shedding_wait_ms: u64) {
    (config.load.enabled, config.load.hold_ms) = (true, 0);
    (config.load.degraded_wait_ms, config.load.shedding_wait_ms) = (degraded_wait_ms, shedding_wait_ms);
    (config.load.calm_ms, config.load.calm_ms_max) = (50, 50);
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Waits until so many turns wait in the queues, and have come to rest there: on its way a turn may count for a moment.
async fn settled(pipeline: &Pipeline, waiting: usize) {
    let mut at_rest = 0;
    while at_rest < 10 {
        at_rest = if pipeline.stats().load.waiting == waiting { at_rest + 1 } else { 0 };
        pause(5).await;
    }
}

/// Waits for a level of load. Whoever looks may have it change.
async fn reached(pipeline: &Pipeline, level: LoadLevel) {
    while pipeline.stats().load.level != level {
        pause(5).await;
    }
}

/// Shuts a tier, and has so many conversations begin: one turn is being written, one waits inside the tier, the others in the queue.
async fn occupy(pipeline: &Pipeline, tier: &Says, conversations: usize) -> Vec<TurnStream> {
    tier.open(false);
    let before = tier.asked().len();
    let mut streams = Vec::new();
    for number in 0..conversations {
        let text = format!("How long does it take until parcel number {number} arrives?");
        streams.push(pipeline.submit(turn(&format!("w{number}"), "1", &text)).await.expect("admitted"));
        while tier.asked().len() == before {
            pause(5).await;
        }
    }
    settled(pipeline, conversations - 2).await;
    streams
}

#[test]
fn the_rule_chooses_and_a_conversation_stays_with_the_large_tier() {
    with_tiers(
        true,
        |_| {},
        |pipeline, _| async move {
            let short = ask(&pipeline, "a", SHORT).await;
            assert_eq!(
                (route(&short).size, short.text.as_str(), short.cost_micros),
                (TierSize::Small, "small on Do gift cards expire?", 10_000)
            );
            let long = ask(&pipeline, "b", LONG).await;
            assert_eq!((route(&long).size, long.cost_micros), (TierSize::Large, 100_000));
            assert!(route(&long).reason.contains("words 10"), "{:?}", route(&long));
            let stays = asked(&pipeline, turn("b", "2", "Are returns free?")).await;
            assert_eq!(route(&stays).size, TierSize::Large);
            assert!(route(&stays).reason.contains("answered the conversation before"), "{:?}", route(&stays));
            let moves_up = asked(&pipeline, turn("a", "2", "Where do I find out where my order is now?")).await;
            assert_eq!(route(&moves_up).size, TierSize::Large, "what is too much for the small tier goes up");
        },
    );
}

#[test]
fn what_the_small_tier_cannot_answer_goes_to_the_large_one_once() {
    with_tiers(
        false,
        |_| {},
        |pipeline, _| async move {
            let escalated = ask(&pipeline, "a", SHORT).await;
            assert_eq!(escalated.text, "large on Do gift cards expire?", "what the small one said is void");
            let RouteEvidence { size, escalated: is_escalated, reason, .. } = route(&escalated);
            assert_eq!(
                (*size, *is_escalated, reason.as_str()),
                (TierSize::Large, true, "the small tier found no answer")
            );
            assert_eq!(escalated.cost_micros, 110_000, "both are paid for");
        },
    );
    with_tiers(
        false,
        |config| config.routing.escalate = false,
        |pipeline, _| async move {
            let unknown = ask(&pipeline, "a", SHORT).await;
            assert_eq!((unknown.grounded, route(&unknown).size), (false, TierSize::Small));
        },
    );
}

/// Asks a question. Gives back how it ends, and what it has cost.
async fn at_cost(pipeline: &Pipeline, question: &str) -> (Result<Completion, TurnError>, Cost) {
    let (tell, cost) = oneshot::channel();
    let on_cost = Box::new(move |cost| tell.send(cost).expect("the test waits"));
    let stream = pipeline.submit_at_cost(turn("costs", "1", question).into(), on_cost).await.expect("admitted");
    (ended(stream).await, cost.await.expect("told"))
}

#[test]
fn each_tier_that_was_asked_for_a_turn_is_paid_at_its_own_price() {
    let unanswered = |pipeline: &Pipeline| -> u64 {
        pipeline.tally().iter().map(|(_, tally)| tally.account.unanswered_cost_micros).sum()
    };
    // "large on " is what the large tier has written before it breaks off.
    let written = Usage::estimated(0, "large on ".len());
    with_tiers(
        false,
        |config| config.tier.price.output_per_million = 10_000.0,
        |pipeline, _| async move {
            let (end, cost) = at_cost(&pipeline, "large breaks: gift cards?").await;
            assert_eq!(end.expect_err("both have failed").kind, TurnErrorKind::Internal);
            let Cost::Failed { usage, micros } = cost else { panic!("{cost:?}") };
            let read = u64::from(usage.input_tokens) - 100;
            assert!(read > 0 && usage.output_tokens == 10 + written.output_tokens, "{usage:?}");
            assert_eq!(micros, 100 * 100 + read * 1_000 + u64::from(written.output_tokens) * 10_000);
            assert_eq!(unanswered(&pipeline), micros);
        },
    );
    with_tiers(
        true,
        |_| {},
        |pipeline, _| async move {
            let (end, cost) = at_cost(&pipeline, "small breaks: gift cards?").await;
            let Completion { usage, cost_micros, large_cost_micros, .. } = end.expect("the large one answers");
            let read = u64::from(usage.input_tokens) - 100;
            assert!(read > 0 && usage.output_tokens == 10 + written.output_tokens, "{usage:?}");
            assert_eq!((cost_micros, large_cost_micros), (100 * 1_000 + read * 100, 100 * 1_000));
            assert_eq!(cost, Cost::Known { usage, micros: cost_micros });
            let spent: u64 = pipeline.tally().iter().map(|(_, tally)| tally.account.cost_micros).sum();
            assert_eq!((spent, unanswered(&pipeline)), (cost_micros, 0));
        },
    );
}

#[test]
fn under_load_new_conversations_get_the_small_tier_and_ongoing_ones_keep_theirs() {
    with_tiers(
        true,
        |config| nervous(config, 500, 60_000),
        |pipeline, large| async move {
            ask(&pipeline, "ongoing", LONG).await;
            let mut waiting = occupy(&pipeline, &large, 4).await;
            reached(&pipeline, LoadLevel::Degraded).await;
            let question = "Which amounts do you sell gift cards in at present?";
            let degraded = ask(&pipeline, "new", question).await;
            assert_eq!((route(&degraded).size, route(&degraded).load), (TierSize::Small, LoadLevel::Degraded));
            assert!(route(&degraded).reason.starts_with("under load"), "{:?}", route(&degraded));
            let ongoing = pipeline.submit(turn("ongoing", "2", "Do you sell gift cards for fifty dollars?")).await;
            waiting.push(ongoing.expect("nobody ongoing is refused"));
            pause(50).await;
            large.open(true);
            for stream in waiting {
                let answered = ended(stream).await.expect("answered");
                assert_eq!(route(&answered).size, TierSize::Large);
            }
            reached(&pipeline, LoadLevel::Normal).await;
            let again = ask(&pipeline, "again", question).await;
            assert_eq!(
                (again.verdict.level, route(&again).size),
                (CacheLevel::Miss, TierSize::Large),
                "it was not kept"
            );
            assert_eq!(pipeline.stats().load.entered, [1, 1, 0]);
        },
    );
}

#[test]
fn shedding_refuses_who_begins_but_not_what_is_cached_nor_who_goes_on() {
    with_tiers(
        true,
        |config| {
            config.routing.enabled = false;
            nervous(config, 500, 1_000);
        },
        |pipeline, large| async move {
            ask(&pipeline, "ongoing", LONG).await;
            let mut waiting = occupy(&pipeline, &large, 8).await;
            reached(&pipeline, LoadLevel::Shedding).await;
            let refused = pipeline.submit(turn("refused", "1", "How do I clean a kettle?")).await.expect("admitted");
            let error = ended(refused).await.expect_err("refused");
            assert_eq!(error.kind, TurnErrorKind::Overloaded);
            assert!(
                error.retry_after_ms.is_some_and(|ms| ms > 0) && error.message.contains("try again in"),
                "{error:?}"
            );
            assert_eq!(ask(&pipeline, "cached", LONG).await.verdict.level, CacheLevel::Exact);
            let goes_on = pipeline.submit(turn("ongoing", "2", "Do gift cards expire at some time?")).await;
            waiting.push(goes_on.expect("nobody ongoing is refused"));
            large.open(true);
            for stream in waiting {
                ended(stream).await.expect("answered");
            }
            let stats = pipeline.stats().load;
            assert_eq!((stats.refused, stats.waiting), (1, 0));
            // The same turn again, when there is room.
            asked(&pipeline, turn("refused", "1", "How do I clean a kettle?")).await;
        },
    );
}

#[test]
fn ongoing_turns_are_answered_before_new_ones() {
    with_tiers(
        true,
        |config| config.routing.enabled = false,
        |pipeline, large| async move {
            ask(&pipeline, "ongoing", LONG).await;
            ask(&pipeline, "another", "Which fee do you take for a return?").await;
            let mut waiting = occupy(&pipeline, &large, 6).await;
            let before = large.asked().len();
            let going_on = ["Do gift cards expire at some time?", "Is tea sold?"];
            let going = ["ongoing", "another"].into_iter().zip(going_on);
            // One after the other, because of texts that are encoded together the shortest comes first. The tier has a place for one of
            // them, the other waits in the queue.
            for ((conversation, text), in_queue) in going.zip([4, 5]) {
                let stream = pipeline.submit(turn(conversation, "2", text)).await;
                waiting.push(stream.expect("nobody ongoing is refused"));
                settled(&pipeline, in_queue).await;
            }
            // What the tier has free, it is given.
            for (answered, in_queue) in [(0, 5), (1, 4), (2, 4)] {
                while large.asked().len() < before + answered {
                    pause(5).await;
                }
                settled(&pipeline, in_queue).await;
                large.pass();
            }
            large.open(true);
            for stream in waiting {
                ended(stream).await.expect("answered");
            }
            assert_eq!(large.asked()[before..before + 2], going_on);
        },
    );
}

#[test]
fn what_cannot_be_answered_in_time_is_not_begun() {
    with_tiers(
        true,
        |config| config.routing.enabled = false,
        |pipeline, large| async move {
            let waiting = occupy(&pipeline, &large, 3).await;
            let hurried = turn("hurried", "1", "How do I clean a kettle?");
            let hurried = pipeline.submit_within(hurried, Some(Duration::from_millis(150))).await.expect("admitted");
            // Nothing else happens meanwhile: the deadline itself wakes the queue.
            let end = tokio::time::timeout(Duration::from_secs(20), ended(hurried)).await.expect("told in time");
            let error = end.expect_err("too late");
            assert_eq!(
                (error.kind, error.message.as_str()),
                (TurnErrorKind::Late, "no answer can be written within its deadline of 150 ms")
            );
            large.open(true);
            for stream in waiting {
                ended(stream).await.expect("answered");
            }
            let in_time = pipeline.submit_within(turn("calm", "1", SHORT), Some(Duration::from_secs(30))).await;
            ended(in_time.expect("admitted")).await.expect("answered");
        },
    );
}

#[test]
fn a_turn_whose_client_leaves_loses_its_place_unless_others_wait_for_its_answer() {
    with_tiers(
        true,
        |config| config.routing.enabled = false,
        |pipeline, large| async move {
            let mut waiting = occupy(&pipeline, &large, 3).await;
            let asks = |conversation: &str, text| pipeline.submit(turn(conversation, "1", text));
            let leaves = asks("leaves", "How do I clean a kettle?").await.expect("admitted");
            let is_joined = asks("joined", LONG).await.expect("admitted");
            settled(&pipeline, 3).await;
            waiting.push(asks("joins", LONG).await.expect("admitted"));
            // When this one waits, the one before it has joined.
            waiting.push(asks("behind", "Which fee do you take for a return?").await.expect("admitted"));
            settled(&pipeline, 4).await;
            drop((leaves, is_joined));
            settled(&pipeline, 3).await;
            assert_eq!(pipeline.stats().load.abandoned, 1);
            large.open(true);
            for stream in waiting {
                ended(stream).await.expect("answered");
            }
            let asked_for = large.asked();
            assert_eq!(asked_for.iter().filter(|text| *text == LONG).count(), 1);
            assert_eq!(asked_for.len(), 5, "nobody was told anything of a kettle: {asked_for:?}");
            let tally = pipeline.tally().remove(0).1;
            assert_eq!((tally.cancelled, tally.failed), (1, [0; TurnErrorKind::ALL.len()]));
            assert_eq!(
                asked(&pipeline, turn("leaves", "1", "How do I clean a kettle?")).await.verdict.level,
                CacheLevel::Miss
            );
        },
    );
}

#[test]
fn a_turn_that_brings_no_deadline_has_the_configured_one() {
    with_tiers(
        true,
        |config| {
            config.routing.enabled = false;
            config.limits.default_deadline_ms = 3_000;
        },
        |pipeline, large| async move {
            let waiting = occupy(&pipeline, &large, 3).await;
            let waits = pipeline.submit(turn("waits", "1", "How do I clean a kettle?")).await.expect("admitted");
            let error = ended(waits).await.expect_err("too late");
            let expected = (TurnErrorKind::Late, "no answer can be written within its deadline of 3 s");
            assert_eq!((error.kind, error.message.as_str()), expected);
            large.open(true);
            let mut answered = Vec::new();
            for stream in waiting {
                answered.push(ended(stream).await.is_ok());
            }
            assert_eq!(answered, [true, false, false], "what was begun is finished, what waited is late as well");
        },
    );
}

#[test]
fn a_tenant_has_a_share_of_the_places() {
    with_tiers(
        true,
        |config| {
            config.routing.enabled = false;
            config.limits.tenant_turns_in_flight_max = 2;
        },
        |pipeline, large| async move {
            large.open(false);
            let mut streams = Vec::new();
            for number in 0..2 {
                let text = format!("How long does it take until parcel number {number} arrives?");
                streams.push(pipeline.submit(turn(&format!("c{number}"), "1", &text)).await.expect("admitted"));
            }
            let refused = pipeline.submit(turn("c3", "1", "Are returns free?")).await;
            assert!(matches!(refused, Err(SubmitError::Overloaded { retry_after_ms }) if retry_after_ms > 0));
            let mut other = turn("c3", "1", "Are returns free?");
            other.tenant = TenantId::new("other").expect("valid");
            assert_ne!(other.tenant, tenant());
            streams.push(pipeline.submit(other).await.expect("another tenant has places of its own"));
            large.open(true);
            for stream in streams {
                ended(stream).await.expect("answered");
            }
            asked(&pipeline, turn("c3", "1", "Are returns free?")).await;
        },
    );
}

//! The engine with a decoder that refuses to read what was not written by the same tokens.

use std::sync::atomic::AtomicU64;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use turnflow_state::Usage;

use super::super::fixtures::{Hook, Remembering};
use super::super::sampler::Sampling;
use super::super::ticket::Plan;
use super::*;
use crate::cancel::Cancel;

const VOCABULARY: usize = 50;
const LIMITS: GenerationLimits = GenerationLimits {
    queue_max: 64,
    sequences_max: 8,
    step_tokens_max: 16,
    step_ms_max: 60_000,
    share_prefixes: true,
};

/// A job as a test sees it.
struct Job {
    plan: Plan,
    cancel: Cancel,
    deadline: Option<Instant>,
    tokens: Vec<u32>,
    heard: Sender<Heard>,
}

#[derive(Debug)]
enum Heard {
    Token(u32),
    End(Vec<u32>, Result<Usage, ModelError>),
}

impl Work for Job {
    fn lapsed(&self, now: Instant) -> Option<ModelError> {
        if self.cancel.is_cancelled() {
            return Some(ModelError::Cancelled);
        }
        self.deadline.is_some_and(|deadline| now >= deadline).then_some(ModelError::Late { limit_ms: 0 })
    }

    fn begin(&mut self) -> Result<Plan, ModelError> {
        Ok(self.plan.clone())
    }

    fn token(&mut self, token: u32) -> Result<ControlFlow<()>, ModelError> {
        self.tokens.push(token);
        let _gone = self.heard.send(Heard::Token(token));
        Ok(ControlFlow::Continue(()))
    }

    fn end(self, result: Result<Usage, ModelError>) {
        let _gone = self.heard.send(Heard::End(self.tokens, result));
    }
}

fn plan(prompt: &[u32], tokens_max: usize) -> Plan {
    Plan { prompt: prompt.to_vec(), sampling: Sampling::GREEDY, tokens_max, stop_tokens: Arc::default() }
}

fn job(plan: Plan) -> (Job, Receiver<Heard>) {
    let (heard, hear) = unbounded();
    (Job { plan, cancel: Cancel::new(), deadline: None, tokens: Vec::new(), heard }, hear)
}

fn engine(blocks: usize, limits: GenerationLimits, hook: Option<Hook>) -> GenerationEngine<Job> {
    let mut model = Remembering::new(blocks, 4, 64, VOCABULARY);
    model.hook = hook.unwrap_or(model.hook);
    GenerationEngine::start(Box::new(model), limits).expect("threads")
}

fn submit(engine: &GenerationEngine<Job>, lane: Lane, plan: Plan) -> (Cancel, Receiver<Heard>) {
    let (job, hear) = job(plan);
    let cancel = job.cancel.clone();
    assert!(engine.submit(lane, job).is_ok(), "there is room");
    (cancel, hear)
}

/// Waits for the end, and sees that it is the last, and that every token was told before it.
fn end(hear: &Receiver<Heard>) -> Result<Vec<u32>, ModelError> {
    let mut told = Vec::new();
    let mut ended = None;
    for heard in hear {
        assert!(ended.is_none(), "nothing follows the end");
        match heard {
            Heard::Token(token) => told.push(token),
            Heard::End(tokens, result) => ended = Some((tokens, result)),
        }
    }
    let (tokens, result) = ended.expect("an end");
    assert_eq!(tokens, told);
    let usage = result?;
    assert_eq!(usage.output_tokens as usize, tokens.len());
    Ok(tokens)
}

/// Many prompts: some begin alike, some are long, some are drawn.
fn plans() -> Vec<Plan> {
    let mut draws = fastrand::Rng::with_seed(7);
    let prefix: Vec<u32> = (0..17).map(|_| draws.u32(0..40)).collect();
    (0..24_u64)
        .map(|number| {
            let mut prompt = if number.is_multiple_of(3) { prefix.clone() } else { Vec::new() };
            prompt.extend((0..draws.usize(1..20)).map(|_| draws.u32(0..40)));
            let warm = Sampling { temperature: 1.0, top_k: 10, seed: number, ..Sampling::GREEDY };
            let sampling = if number.is_multiple_of(2) { Sampling::GREEDY } else { warm };
            Plan { sampling, stop_tokens: [3, 4].into(), ..plan(&prompt, 1 + draws.usize(0..20)) }
        })
        .collect()
}

#[test]
fn what_is_written_does_not_depend_on_the_others() {
    let alone: Vec<_> = plans()
        .into_iter()
        .map(|plan| {
            let engine = engine(16, GenerationLimits { share_prefixes: false, step_tokens_max: 64, ..LIMITS }, None);
            end(&submit(&engine, Lane::New, plan).1).expect("written")
        })
        .collect();
    assert!(alone.iter().any(|tokens| tokens.len() > 10) && alone.iter().any(|tokens| tokens.len() < 5));
    for (blocks, share_prefixes, step_tokens_max, preempts) in [
        (400, false, 16, false),
        (400, true, 16, false),
        (16, false, 9, true),
        (16, true, 16, true),
        (18, true, 64, true),
    ] {
        let limits = GenerationLimits { share_prefixes, step_tokens_max, ..LIMITS };
        let engine = engine(blocks, limits, None);
        let lanes = [Lane::New, Lane::Background];
        let heard: Vec<_> =
            plans().into_iter().zip(lanes.iter().cycle()).map(|(plan, &lane)| submit(&engine, lane, plan)).collect();
        let together: Vec<_> = heard.iter().map(|(_, hear)| end(hear).expect("written")).collect();
        assert_eq!(together, alone, "{blocks} blocks, sharing {share_prefixes}, {step_tokens_max} tokens a step");
        let stats = settled(&engine);
        assert_eq!((stats.sequences, stats.blocks_held), (0, 0), "{stats:?}");
        // Where there is memory for all, a turn may still take the place of one of the background.
        assert!(stats.preemptions > 0 || !preempts, "{stats:?}");
        assert_eq!(stats.prompt_tokens_shared > 0, share_prefixes, "{stats:?}");
        // As many as memory holds.
        let least = if preempts { stats.steps } else { 2 * stats.steps };
        assert!(stats.sequences_stepped > least, "they were written together: {stats:?}");
        assert_eq!(stats.step_sizes.iter().sum::<u64>(), stats.steps, "each step has one size");
        assert!(stats.step_sizes[1..].iter().sum::<u64>() > 0 && stats.step_sizes[5..] == [0; 4], "{stats:?}");
    }
}

/// The stats after the engine has taken in that its last job ended: a job is told its end in the middle of a turn.
fn settled(engine: &GenerationEngine<Job>) -> GenerationStats {
    let before = engine.stats().steps;
    assert!(end(&submit(engine, Lane::New, plan(&[49], 1)).1).is_ok());
    // The one that is written now is told its end before its own turn is counted, so another one is needed.
    loop {
        let stats = engine.stats();
        if stats.steps > before && stats.sequences == 0 {
            return stats;
        }
        std::thread::yield_now();
    }
}

/// A hook that waits for leave before every step, and tells what was in it: each sequence's first token in the step, place, and
/// count.
#[expect(clippy::type_complexity, reason = "a test's own channels")]
fn gated() -> (Hook, Sender<()>, Receiver<Vec<(u32, usize, usize)>>) {
    let ((leave, gate), (told, steps)) = (bounded(0), unbounded());
    let hook = move |slices: &[Slice<'_>]| {
        let of = |slice: &Slice<'_>| (slice.tokens[0], slice.position, slice.tokens.len());
        told.send(slices.iter().map(of).collect()).expect("the test listens");
        let _open = gate.recv();
        Ok(())
    };
    (Arc::new(hook), leave, steps)
}

#[test]
fn a_gone_clients_blocks_are_free_before_the_next_step() {
    let (hook, leave, steps) = gated();
    let engine = engine(40, LIMITS, Some(hook));
    let (_, stays) = submit(&engine, Lane::New, plan(&[1], 30));
    assert_eq!(steps.recv().expect("a step").len(), 1);
    let (cancel, goes) = submit(&engine, Lane::New, plan(&[2; 6], 30));
    let (cancelled, never) = submit(&engine, Lane::New, plan(&[5; 6], 30));
    cancelled.cancel();
    leave.send(()).expect("running");
    assert_eq!(steps.recv().expect("a step").len(), 2, "it joins; what is cancelled before does not");
    assert!(matches!(end(&never), Err(ModelError::Cancelled)));
    cancel.cancel();
    leave.send(()).expect("running");
    assert_eq!(steps.recv().expect("a step").len(), 1, "it is in no step after it was cancelled");
    // The stats are those of the turn before: that of the step that it was in.
    assert!(matches!(end(&goes), Err(ModelError::Cancelled)));
    leave.send(()).expect("running");
    steps.recv().expect("a step");
    let stats = engine.stats();
    assert_eq!(
        (stats.cancelled, stats.blocks_held, stats.blocks_kept),
        (2, 1, 1),
        "its first block may be found again"
    );
    drop(leave);
    assert_eq!(end(&stays).expect("written").len(), 30);
}

#[test]
fn what_is_late_is_given_up() {
    let engine = engine(40, LIMITS, None);
    let (mut late, hear) = job(plan(&[1], 30));
    late.deadline = Some(Instant::now());
    assert!(engine.submit(Lane::New, late).is_ok());
    assert!(matches!(end(&hear), Err(ModelError::Late { .. })));
}

#[test]
fn a_long_prompt_does_not_hold_up_those_who_write() {
    let (hook, leave, steps) = gated();
    let engine = engine(80, LIMITS, Some(hook));
    let writers: Vec<_> = (0..3).map(|token| submit(&engine, Lane::New, plan(&[token], 20)).1).collect();
    // All three are known before the second step at the latest.
    steps.recv().expect("a step");
    let long: Vec<u32> = (0..60).map(|n| n % 40).collect();
    let (_, reader) = submit(&engine, Lane::New, plan(&long, 2));
    leave.send(()).expect("running");
    for (position, count) in [(0, 12), (12, 12), (24, 12), (36, 12), (48, 12)] {
        let step = steps.recv().expect("a step");
        assert_eq!(step.len(), 4);
        assert!(step[..3].iter().all(|&(.., count)| count == 1), "all who write are in every step");
        assert_eq!((step[3].1, step[3].2), (position, count));
        leave.send(()).expect("running");
    }
    drop(leave);
    assert!(writers.iter().chain([&reader]).all(|hear| end(hear).is_ok()));
}

#[test]
fn earlier_lanes_go_before_later_ones_and_take_their_place() {
    for (early, late) in [(Lane::New, Lane::Background), (Lane::Ongoing, Lane::New)] {
        let (hook, leave, steps) = gated();
        let engine = engine(10, GenerationLimits { sequences_max: 1, ..LIMITS }, Some(hook));
        let (_, first) = submit(&engine, late, plan(&[1; 8], 12));
        steps.recv().expect("a step");
        let (_, second) = submit(&engine, late, plan(&[2], 1));
        let (_, overtakes) = submit(&engine, early, plan(&[9], 2));
        drop(leave);
        let order: Vec<u32> = steps.iter().take(3).map(|step| step[0].0).collect();
        assert_eq!(order[0], 9, "{early:?} is in the very next step");
        assert_eq!(end(&overtakes).expect("written").len(), 2);
        assert_eq!(end(&first).expect("written").len(), 12, "it goes on where it was");
        assert_eq!(end(&second).expect("written").len(), 1);
        assert_eq!(settled(&engine).preemptions, 1);
    }
}

#[test]
fn a_fault_ends_those_in_the_step_and_nobody_else() {
    type Fault = fn() -> Result<(), ModelError>;
    let faults: [(&str, Fault); 2] = [
        ("panic in a decoder: as asked", || panic!("as asked")),
        ("cannot take a step: as asked", || Err(ModelError::Step { reason: "as asked".to_owned() })),
    ];
    for (message, fault) in faults {
        let count = AtomicU64::new(0);
        let hook = move |slices: &[Slice<'_>]| {
            let asked = slices.iter().any(|slice| slice.tokens.contains(&42));
            if asked && count.fetch_add(1, Ordering::Relaxed) == 0 { fault() } else { Ok(()) }
        };
        let engine = engine(40, GenerationLimits { sequences_max: 2, ..LIMITS }, Some(Arc::new(hook)));
        let heard: Vec<_> = [1, 42, 2, 42].map(|token| submit(&engine, Lane::New, plan(&[token], 40)).1).into();
        let ends: Vec<_> = heard.iter().map(end).collect();
        let failed: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).map(ToString::to_string).collect();
        assert!((1..=2).contains(&failed.len()) && failed.iter().all(|found| found == message), "{failed:?}");
        assert!(
            ends[1].is_err() && ends[2..].iter().all(Result::is_ok),
            "those that waited go on, and so does the model"
        );
        let stats = settled(&engine);
        assert_eq!((stats.steps_failed, stats.blocks_held), (1, 0));
    }
}

#[test]
fn after_a_panic_those_who_were_not_in_the_step_are_computed_again() {
    let (told, steps) = unbounded();
    let (release, held) = bounded::<()>(0);
    let hook = move |slices: &[Slice<'_>]| {
        told.send(slices[0].tokens[0]).expect("the test listens");
        assert_ne!(slices[0].tokens, [42], "as asked");
        let _released = held.recv();
        Ok(())
    };
    // One token a step: who writes goes before who still reads.
    let engine = engine(40, GenerationLimits { step_tokens_max: 1, ..LIMITS }, Some(Arc::new(hook)));
    let (_, reads) = submit(&engine, Lane::New, plan(&(1..40).collect::<Vec<_>>(), 3));
    assert_eq!(steps.recv(), Ok(1));
    let (_, panics) = submit(&engine, Lane::New, plan(&[42], 3));
    drop(release);
    assert!(matches!(end(&panics), Err(ModelError::Shared { .. })));
    assert_eq!(end(&reads).expect("written").len(), 3);
    let stats = settled(&engine);
    assert_eq!((stats.preemptions, stats.steps_failed, stats.blocks_held), (1, 1, 0), "{stats:?}");
}

/// Gives no numbers for what holds 42, but for the last so many times.
struct Nan(Remembering, usize);

impl StepModel for Nan {
    fn shape(&self) -> StepShape {
        self.0.shape()
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.0.step(slices, logits)?;
        let wanted = slices.iter().filter(|slice| slice.wants_logits);
        for (slice, row) in wanted.zip(logits.chunks_exact_mut(VOCABULARY)) {
            if slice.tokens.contains(&42) && self.1 > 0 {
                self.1 -= 1;
                row[7] = f32::NAN;
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        self.0.reset()
    }
}

#[test]
fn logits_that_are_no_numbers_end_one_alone() {
    let model = Nan(Remembering::new(40, 4, 64, VOCABULARY), usize::MAX);
    let engine = GenerationEngine::start(Box::new(model), LIMITS).expect("threads");
    let heard = [1, 42, 2].map(|token| submit(&engine, Lane::New, plan(&[token], 5)).1);
    let [one, bad, two] = heard.each_ref().map(end);
    assert!(one.is_ok() && two.is_ok() && matches!(bad, Err(ModelError::Logits { .. })));
}

#[test]
fn nobody_goes_on_from_what_gave_no_numbers() {
    let model = Nan(Remembering::new(40, 4, 64, VOCABULARY), 1);
    let engine = GenerationEngine::start(Box::new(model), LIMITS).expect("threads");
    let mut prompt: Vec<u32> = (0..12).collect();
    prompt.push(42);
    let mut shared = Vec::new();
    for is_good in [false, true, true] {
        let (_, hear) = submit(&engine, Lane::New, plan(&prompt, 2));
        assert_eq!(end(&hear).is_ok(), is_good);
        shared.push(settled(&engine).prompt_tokens_shared);
    }
    assert_eq!(shared, [0, 0, 12], "a prompt that went well is shared");
}

#[test]
fn a_stuck_step_ends_its_turns_and_the_engine_goes_on_when_it_returns() {
    let (release, held) = bounded::<()>(0);
    let (stuck, is_stuck) = unbounded();
    let hook = move |slices: &[Slice<'_>]| {
        if slices.iter().any(|slice| slice.tokens.contains(&42)) {
            stuck.send(()).expect("the test listens");
            let _released = held.recv();
        }
        Ok(())
    };
    let engine = engine(40, GenerationLimits { step_ms_max: 100, ..LIMITS }, Some(Arc::new(hook)));
    let (_, hear) = submit(&engine, Lane::New, plan(&[42], 5));
    is_stuck.recv().expect("a step");
    assert!(matches!(end(&hear), Err(ModelError::Stuck { limit_ms: 100 })), "told while the step is stuck");
    let (mut late, told) = job(plan(&[1], 5));
    late.deadline = Some(Instant::now());
    assert!(engine.submit(Lane::New, late).is_ok());
    assert!(matches!(end(&told), Err(ModelError::Late { .. })), "who waits is told in time all the same");
    let (_, waits) = submit(&engine, Lane::New, plan(&[2], 5));
    let many: Vec<_> = (0..2 * LIMITS.queue_max).map(|_| submit(&engine, Lane::New, plan(&[3], 1)).1).collect();
    let told = many.last().expect("one for which there is no place");
    assert!(matches!(end(told), Err(ModelError::Stuck { .. })), "told at once");
    drop(release);
    assert_eq!(end(&waits).expect("written").len(), 5);
    let stats = settled(&engine);
    assert_eq!((stats.steps_failed, stats.blocks_held), (1, 0), "{stats:?}");
}

#[test]
fn what_cannot_be_taken_comes_back_or_is_told_why() {
    let (hook, leave, steps) = gated();
    let engine = engine(4, GenerationLimits { queue_max: 1, sequences_max: 1, ..LIMITS }, Some(hook));
    let (_, first) = submit(&engine, Lane::New, plan(&[1], 2));
    steps.recv().expect("a step");
    let (_, second) = submit(&engine, Lane::New, plan(&[1; 16], 2));
    assert_eq!(engine.queued(), 1);
    let rejected = engine.submit(Lane::New, job(plan(&[2], 1)).0).expect_err("full");
    assert!(matches!(rejected.error, ModelError::Full { limit: 1, .. }) && rejected.job.plan.prompt == [2]);
    let (_, third) = submit(&engine, Lane::Background, plan(&[3; 14], 40));
    drop(leave);
    assert_eq!(end(&first).expect("written").len(), 2);
    let error = end(&second).expect_err("too long");
    assert_eq!(error.to_string(), "a prompt of 16 tokens, at most 15 fit");
    assert_eq!(end(&third).expect("written").len(), 2, "up to what fits into memory");
    // What was taken is written even though nobody can hand in anything any more.
    let (_, last) = submit(&engine, Lane::New, plan(&[4], 3));
    drop(engine);
    assert_eq!(end(&last).expect("written").len(), 3);
}

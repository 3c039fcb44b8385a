//! A language model over gRPC: a conversation that streams while another client leaves, whose memory is free at once.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use crossbeam_channel::{Receiver, unbounded};
use tokio::sync::mpsc;
use turnflow::grpc::proto::ask_response::Event as Said;
use turnflow::grpc::proto::{AskRequest, Done, Tier};
use turnflow_models::{
    BurnConfig, BurnTier, Checkpoint, FusedDecoder, FusedOptions, GenerationStats, Lane, ModelError, PromptConfig,
    Rejected, Sampling, Slice, StepModel, StepShape, TierBackend, TierHandle, TierJob, TierStats,
};
use turnflow_pipeline::Config;

use self::support::{TestServer, ask, bounded, turn};

/// Tokens of a block of the decoder's memory, and how many blocks there are.
const BLOCK_TOKENS: usize = 8;
const BLOCKS: usize = 64;
const LEAVES: &str = "Can I pay with a gift card?";

/// A decoder that takes a step when it may, and tells of each how many sequences are in it.
struct Stepwise {
    decoder: FusedDecoder,
    may: Receiver<()>,
    steps: mpsc::UnboundedSender<usize>,
}

impl StepModel for Stepwise {
    fn shape(&self) -> StepShape {
        self.decoder.shape()
    }

    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let _gone = self.steps.send(slices.len());
        let _free = self.may.recv();
        self.decoder.step(slices, logits)
    }

    fn reset(&mut self) -> Result<(), ModelError> {
        self.decoder.reset()
    }
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Taken,
    /// A piece of its answer was written.
    Written,
    /// Its client has left, or has heard the end.
    Left,
}

/// A tier that tells what becomes of its questions.
struct Told(TierHandle, mpsc::UnboundedSender<(Event, String)>);

impl TierBackend for Told {
    fn tier(&self) -> turnflow_state::Tier {
        self.0.tier()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn submit(&self, lane: Lane, job: TierJob) -> Result<(), Rejected<TierJob>> {
        let TierJob { request, mut on_delta, done, .. } = job;
        let (told, question) = (self.1.clone(), request.question.clone());
        let tell = move |event| drop(told.send((event, question.clone())));
        let (left, written) = (tell.clone(), tell.clone());
        request.cancel.on_cancel(move || left(Event::Left));
        let on_delta = Box::new(move |piece| {
            written(Event::Written);
            on_delta(piece);
        });
        self.0.submit(lane, request, on_delta, done).inspect(|()| tell(Event::Taken))
    }

    fn stats(&self) -> TierStats {
        self.0.stats()
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }

    fn generation(&self) -> Option<GenerationStats> {
        self.0.generation()
    }
}

/// A tiny checkpoint with random weights, one step at a time.
fn tier(config: &Config, may: Receiver<()>, steps: mpsc::UnboundedSender<usize>) -> TierHandle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama3");
    let mut checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    // No token ends an answer: what is drawn may not end the test.
    checkpoint.generation.eos = vec![u32::MAX];
    let options = FusedOptions { threads: 1, ..FusedOptions::default() };
    let decoder =
        FusedDecoder::load(&checkpoint.config, &checkpoint.weights, options, BLOCKS, BLOCK_TOKENS).expect("loaded");
    let prompt = PromptConfig {
        prompt_tokens_max: 100,
        history_tokens_max: 40,
        answer_tokens_max: 100,
        instructions: "Answer.".to_owned(),
        unknown_text: "No idea.".to_owned(),
    };
    let settings = BurnConfig { block_tokens: BLOCK_TOKENS, ..config.tier.burn.clone() };
    // Drawn, so that it does not repeat one token for ever.
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let decoder = Box::new(Stepwise { decoder, may, steps });
    BurnTier::with_decoder((checkpoint, decoder, "test"), &settings, &prompt, sampling, ("", "en")).expect("a tier")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_streams_while_another_client_leaves() {
    bounded(async {
        let (go, may) = unbounded();
        let (told_step, mut steps) = mpsc::unbounded_channel();
        let (told, mut events) = mpsc::unbounded_channel();
        let (own, handle) = std::sync::mpsc::channel();
        let server = TestServer::start_with(
            |_| {},
            move |config, parts| {
                parts.tiers.large = TierHandle::new(Told(tier(config, may, told_step), told));
                own.send(parts.tiers.large.clone()).expect("the test listens");
            },
        )
        .await;
        let tier = handle.recv().expect("started");
        let (mut stays, mut leaves) = (server.client().await, server.client().await);
        let asked = AskRequest { turn: Some(turn("stays", "1", "How long does delivery take?")) };
        let mut staying = stays.ask(asked).await.expect("asked").into_inner();
        assert_eq!(steps.recv().await, Some(1), "its first step");
        let asked = AskRequest { turn: Some(turn("leaves", "1", LEAVES)) };
        let mut leaving = leaves.ask(asked).await.expect("asked").into_inner();
        while events.recv().await.expect("open") != (Event::Taken, LEAVES.to_owned()) {}
        // Both are written together, a step at a time, until the one that will leave has heard a piece.
        let written = (Event::Written, LEAVES.to_owned());
        while !std::iter::from_fn(|| events.try_recv().ok()).any(|event| event == written) {
            go.send(()).expect("the decoder waits");
            // What the step before it wrote is written when the next begins.
            steps.recv().await.expect("a step");
        }
        while !matches!(leaving.message().await.expect("open").and_then(|next| next.event), Some(Said::Delta(_))) {}
        drop((leaving, leaves));
        while events.recv().await.expect("open") != (Event::Left, LEAVES.to_owned()) {}
        // At most one step was let go that has not been taken; in the one after it, the other is alone.
        loop {
            go.send(()).expect("the decoder waits");
            if steps.recv().await == Some(1) {
                break;
            }
        }
        // What happened before a step is counted when it is over.
        go.send(()).expect("the decoder waits");
        steps.recv().await.expect("another step of the conversation that goes on");
        let stats = tier.generation().expect("a decoder");
        assert_eq!(stats.cancelled, 1, "{stats:?}");
        assert_eq!(stats.sequences, 1, "{stats:?}");
        // Nothing holds more than the one that goes on.
        assert!(stats.blocks_held <= 200_usize.div_ceil(BLOCK_TOKENS), "{stats:?}");
        // From now on as fast as it can.
        drop(go);
        let mut text = String::new();
        let done: Done = loop {
            match staying.message().await.expect("open").and_then(|next| next.event) {
                Some(Said::Delta(piece)) => text.push_str(&piece.text),
                Some(Said::Done(done)) => break done,
                Some(Said::Accepted(_)) => {}
                other => panic!("expected a delta or the answer, got {other:?}"),
            }
        };
        assert_eq!((done.text.as_str(), done.tier()), (text.as_str(), Tier::Burn));
        assert!(done.cut_off && done.usage.is_some_and(|usage| usage.output_tokens > 10), "{done:?}");
        // The turn that was given up was not written: it is answered anew.
        let again = ask(&mut stays, turn("leaves", "1", LEAVES)).await.expect("answered");
        assert_eq!(again.tier(), Tier::Burn);
        // A turn that leans on the one before it is told it.
        let next = ask(&mut stays, turn("stays", "2", "And for that one?")).await.expect("answered");
        assert!(next.usage.is_some_and(|usage| usage.input_tokens > 0));
        assert_eq!(tier.stats(), TierStats { answered: 3, cut_off: 3, failed: 0, cancelled: 1 });
        server.stop().await;
        let stats = tier.generation().expect("a decoder");
        assert_eq!((stats.blocks, stats.blocks_held), (BLOCKS, 0), "{stats:?}");
    })
    .await;
}

//! The engine and the tier with real checkpoints: tiny ones of every family, with random weights.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use turnflow_state::Usage;

use super::super::engine::{GenerationEngine, GenerationStats};
use super::super::prompt::tests::{config as prompting, found};
use super::super::ticket::{Plan, Work};
use super::*;
use crate::queue::Lane;
use crate::tier::TierRequest;

const FAMILIES: [&str; 5] = ["llama3", "llama-shards", "qwen2", "qwen3", "smollm3"];

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family)
}

fn home() -> ModelHome {
    ModelHome::new(std::env::temp_dir())
}

fn config(family: &str) -> BurnConfig {
    BurnConfig {
        model: fixture(family),
        device: DeviceChoice::Cpu,
        threads: 1,
        weights: KeptPrecision::Stored,
        kv: KeptPrecision::Stored,
        kv_bytes_max: 1 << 20,
        block_tokens: 4,
        answer_ms_max: 600_000,
        stop_strings: Vec::new(),
        sampling: SamplingFrom::Settings,
        engine: GenerationLimits {
            queue_max: 64,
            sequences_max: 8,
            step_tokens_max: 32,
            step_ms_max: 60_000,
            share_prefixes: true,
        },
    }
}

struct Job(Plan, Vec<u32>, Sender<Vec<u32>>);

impl Work for Job {
    fn lapsed(&self, _: Instant) -> Option<ModelError> {
        None
    }

    fn begin(&mut self) -> Result<Plan, ModelError> {
        Ok(self.0.clone())
    }

    fn token(&mut self, token: u32) -> Result<ControlFlow<()>, ModelError> {
        self.1.push(token);
        Ok(ControlFlow::Continue(()))
    }

    fn end(self, result: Result<Usage, ModelError>) {
        result.expect("written");
        self.2.send(self.1).expect("the test listens");
    }
}

fn plans() -> Vec<Plan> {
    let mut draws = fastrand::Rng::with_seed(11);
    let prefix: Vec<u32> = (0..30).map(|_| draws.u32(3..288)).collect();
    let plan = |number: u64| {
        let mut prompt = if number.is_multiple_of(2) { prefix.clone() } else { Vec::new() };
        prompt.extend((0..draws.usize(1..24)).map(|_| draws.u32(3..288)));
        let warm = Sampling { temperature: 0.8, top_p: 0.9, seed: number, ..Sampling::GREEDY };
        let sampling = if number.is_multiple_of(4) { warm } else { Sampling::GREEDY };
        Plan { prompt, sampling, tokens_max: draws.usize(4..24), stop_tokens: [2].into() }
    };
    (0..12).map(plan).collect()
}

fn written(model: Box<dyn StepModel>, limits: GenerationLimits, alone: bool) -> (Vec<Vec<u32>>, GenerationStats) {
    let engine = GenerationEngine::start(model, limits).expect("threads");
    let ask = |plan: Plan| -> Receiver<Vec<u32>> {
        let (told, hear) = unbounded();
        assert!(engine.submit(Lane::New, Job(plan, Vec::new(), told)).is_ok());
        hear
    };
    let hear = |answer: Receiver<Vec<u32>>| answer.recv().expect("an end");
    let texts = if alone {
        plans().into_iter().map(|plan| hear(ask(plan))).collect()
    } else {
        let answers: Vec<_> = plans().into_iter().map(ask).collect();
        answers.into_iter().map(hear).collect()
    };
    (texts, engine.stats())
}

#[test]
fn real_checkpoints_write_the_same_alone_and_together() {
    for family in FAMILIES {
        let settings = config(family);
        let checkpoint = Checkpoint::open(&settings.model).expect("a checkpoint");
        let block_bytes = FusedDecoder::block_bytes(&checkpoint.config, Precision::F32, settings.block_tokens);
        let with_blocks = |blocks: u64| {
            let small = BurnConfig { kv_bytes_max: block_bytes * blocks, ..settings.clone() };
            load(&checkpoint, &small, InstructionChoice::Auto).expect("loaded").model
        };
        let limits = GenerationLimits { share_prefixes: false, ..settings.engine };
        let (alone, _) = written(with_blocks(64), limits, true);
        assert!(alone.iter().any(|text| text.len() > 5), "{family}: {alone:?}");
        for (blocks, share_prefixes) in [(400, false), (400, true), (26, false), (26, true)] {
            let limits = GenerationLimits { share_prefixes, ..limits };
            let (together, stats) = written(with_blocks(blocks), limits, false);
            assert_eq!(together, alone, "{family}, {blocks} blocks, sharing {share_prefixes}");
            assert_eq!(stats.preemptions > 0, blocks == 26, "{family}: {stats:?}");
            assert_eq!(stats.prompt_tokens_shared > 0, share_prefixes, "{family}: {stats:?}");
        }
    }
}

#[test]
fn a_checkpoint_answers_as_a_tier() {
    for family in FAMILIES {
        let mut settings = config(family);
        settings.kv_bytes_max = 4 << 20;
        let open = |prompt: &PromptConfig, settings: &BurnConfig| {
            BurnTier::open(settings, prompt, Sampling::GREEDY, ("", "en"), &home(), InstructionChoice::Auto)
                .expect("a tier")
        };
        let tier = open(&prompting(), &settings);
        let request = TierRequest::new("How much?", [1.0].into(), vec![found("rent", "Rent", "A day is $5.")]);
        let (told, hear) = unbounded();
        let pieces = told.clone();
        let on_delta = Box::new(move |piece| pieces.send(Ok(piece)).expect("the test listens"));
        let done = Box::new(move |end| told.send(Err(end)).expect("the test listens"));
        tier.submit(Lane::New, request, on_delta, done).expect("there is room");
        let (mut text, mut answer) = (String::new(), None);
        for event in hear {
            match event {
                Ok(piece) => text.push_str(&piece),
                Err(end) => answer = Some(end.expect("answered")),
            }
        }
        let answer = answer.expect("an end");
        assert_eq!(answer.text, text, "{family}");
        assert!(answer.usage.input_tokens > 20 && answer.usage.output_tokens > 0);
        let other = PromptConfig { instructions: "Answer kindly.".to_owned(), ..prompting() };
        let exact = BurnConfig { kv: KeptPrecision::F16, ..settings.clone() };
        let identities = [tier.identity(), open(&other, &settings).identity(), open(&prompting(), &exact).identity()];
        assert_eq!(identities.iter().collect::<std::collections::HashSet<_>>().len(), 3, "what may change an answer");
        assert_eq!(open(&prompting(), &settings).identity(), tier.identity());
    }
}

#[test]
fn weights_that_give_no_numbers_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixture("qwen2")).expect("a fixture").flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    // An exponent of ones, whatever the precision.
    let end = bytes.len();
    bytes[end - 2..].fill(0xff);
    std::fs::write(&path, bytes).expect("written");
    let settings = BurnConfig { model: folder.path().to_owned(), ..config("qwen2") };
    let opened =
        BurnTier::open(&settings, &prompting(), Sampling::GREEDY, ("", "en"), &home(), InstructionChoice::Auto);
    let error = opened.expect_err("refused").to_string();
    assert!(error.contains("a first prompt gives logits that are not finite"), "{error}");
    let error = Checkpoint::open(folder.path()).expect("opens").weights.check_finite().expect_err("named").to_string();
    assert!(error.ends_with("has numbers that are not finite"), "{error}");
}

#[test]
fn memory_that_holds_nothing_is_refused() {
    let settings = BurnConfig { kv_bytes_max: 100, ..config("qwen2") };
    let checkpoint = Checkpoint::open(&settings.model).expect("a checkpoint");
    let error = load(&checkpoint, &settings, InstructionChoice::Auto).err().expect("too small").to_string();
    assert!(error.starts_with("100 bytes for keys and values hold no block of 4 tokens, which takes "), "{error}");
}

#[test]
fn instructions_that_the_processor_has_not_are_refused() {
    let settings = config("qwen2");
    let checkpoint = Checkpoint::open(&settings.model).expect("a checkpoint");
    for choice in [InstructionChoice::Avx512Bf16, InstructionChoice::Avx2, InstructionChoice::Portable] {
        let loaded = load(&checkpoint, &settings, choice);
        assert_eq!(loaded.is_ok(), choice.resolve().is_ok(), "{choice}");
    }
}

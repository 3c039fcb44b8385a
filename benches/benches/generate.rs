//! What a decoder costs on the CPU: milliseconds of a decode step, and tokens a second of a prefill.
//!
//! ```text
//! cargo bench -p turnflow-benches --bench generate [-- ROUNDS [PYTHON]]
//! ```
//!
//! Random weights in the shape of SmolLM2-135M. The CPU's own decoder stands beside the plain one on Burn, the limit that the
//! machine's memory sets (bytes of the weights at the speed at which as many threads read memory, measured in the same
//! run), and, with a Python that has them, llama.cpp and torch, through `generate_peers.py`. All take turns for some
//! rounds, and the fastest time of each counts, so that other work on the machine hits all of them or none.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use turnflow_benches::Peer;
use turnflow_models::{
    DecoderConfig, DeviceChoice, EMBEDDING, Family, FusedDecoder, FusedOptions, Instructions, PlainDecoder, Precision,
    RopeScaling, Slice, StepModel, Weights,
};

const HIDDEN: usize = 576;
const LAYERS: usize = 30;
const VOCABULARY: usize = 49152;
const BLOCK_TOKENS: usize = 16;
/// Blocks of each sequence.
const BLOCKS: usize = 32;
const SEQUENCES: [usize; 2] = [1, 8];
/// Tokens that a sequence has before it is continued, and tokens of a prefill.
const PAST: usize = 256;
/// Steps of a decoder before the next has its turn.
const STEPS: usize = 12;
const PEERS: [&str; 3] = ["llama.cpp-f16", "llama.cpp-f32", "torch-f32"];

fn main() {
    // Cargo passes `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let rounds: usize = args.next().map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    let python = args.next();
    let folder = tempfile::tempdir().expect("a folder");
    let weights = random_weights(folder.path());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("instructions: {}", Instructions::detect().name());
    for threads in [1, 2].into_iter().filter(|threads| *threads <= cores) {
        let mut contenders = contenders(&weights, threads, python.as_deref());
        let mut bandwidth = 0.0_f64;
        for _ in 0..rounds {
            bandwidth = bandwidth.max(memory_bandwidth(threads));
            contenders.iter_mut().for_each(Contender::run);
        }
        print(threads, bandwidth, &contenders);
    }
}

/// Something that decodes, and its fastest times in milliseconds.
struct Contender {
    name: String,
    weight_bytes: Option<usize>,
    decoder: Decoder,
    decode: [f64; SEQUENCES.len()],
    prefill: f64,
}

enum Decoder {
    Ours(Box<dyn StepModel>),
    Peer(Peer),
}

fn contenders(weights: &Weights, threads: usize, python: Option<&str>) -> Vec<Contender> {
    let contender = |name: &str, weight_bytes, decoder| Contender {
        name: name.to_owned(),
        weight_bytes,
        decoder,
        decode: [f64::INFINITY; SEQUENCES.len()],
        prefill: f64::INFINITY,
    };
    let blocks = BLOCKS * SEQUENCES[SEQUENCES.len() - 1];
    let mut all = Vec::new();
    for (name, precision, kv) in [
        ("f16", Precision::F16, Precision::F16),
        ("f16, keys and values f32", Precision::F16, Precision::F32),
        ("bf16", Precision::Bf16, Precision::F16),
        ("f32", Precision::F32, Precision::F32),
    ] {
        let options = FusedOptions { weights: precision, kv, threads, ..FusedOptions::default() };
        let model = FusedDecoder::load(&config(), weights, options, blocks, BLOCK_TOKENS).expect("a decoder");
        all.push(contender(name, Some(model.weight_bytes()), Decoder::Ours(Box::new(model))));
    }
    // Burn's threads are those of its process.
    if threads == std::thread::available_parallelism().map_or(1, usize::from) {
        let device = DeviceChoice::Cpu.resolve().expect("a CPU").device;
        let model = PlainDecoder::load(&config(), weights, &device, Precision::F32, blocks, BLOCK_TOKENS);
        all.push(contender("plain Burn f32", None, Decoder::Ours(Box::new(model.expect("a decoder")))));
    }
    for name in PEERS {
        if let Some(peer) =
            python.and_then(|python| Peer::start(python, "generate_peers.py", &[name, &threads.to_string()]))
        {
            all.push(contender(name, None, Decoder::Peer(peer)));
        }
    }
    all
}

impl Contender {
    fn run(&mut self) {
        for (sequences, best) in SEQUENCES.into_iter().zip(&mut self.decode) {
            *best = best.min(match &mut self.decoder {
                Decoder::Ours(model) => decode(model.as_mut(), sequences),
                Decoder::Peer(peer) => told_by(peer, &format!("decode {sequences} {PAST} {STEPS}")),
            });
        }
        self.prefill = self.prefill.min(match &mut self.decoder {
            Decoder::Ours(model) => prefill(model.as_mut(), 0),
            Decoder::Peer(peer) => told_by(peer, &format!("prefill {PAST} 1")),
        });
    }
}

fn sequence_blocks(sequence: usize) -> Vec<u32> {
    (sequence * BLOCKS..(sequence + 1) * BLOCKS).map(|block| u32::try_from(block).expect("few blocks")).collect()
}

fn tokens(sequence: usize) -> Vec<u32> {
    (0..PAST).map(|place| u32::try_from((sequence + place * 7919) % VOCABULARY).expect("a token")).collect()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Milliseconds of reading one prompt.
fn prefill(model: &mut dyn StepModel, sequence: usize) -> f64 {
    let (tokens, blocks, mut logits) = (tokens(sequence), sequence_blocks(sequence), Vec::new());
    let start = Instant::now();
    let slice = Slice { tokens: &tokens, position: 0, blocks: &blocks, wants_logits: true };
    model.step(&[slice], &mut logits).expect("a step");
    milliseconds(start.elapsed())
}

/// Milliseconds of the fastest of some steps of so many sequences.
fn decode(model: &mut dyn StepModel, sequences: usize) -> f64 {
    for sequence in 0..sequences {
        let _time = prefill(model, sequence);
    }
    let (blocks, mut logits): (Vec<_>, _) = ((0..sequences).map(sequence_blocks).collect(), Vec::new());
    let step = |position| {
        let slice = |blocks| Slice { tokens: &[17], position, blocks, wants_logits: true };
        let slices: Vec<_> = blocks.iter().map(|blocks: &Vec<u32>| slice(blocks)).collect();
        let start = Instant::now();
        logits.clear();
        model.step(&slices, &mut logits).expect("a step");
        milliseconds(start.elapsed())
    };
    (PAST..PAST + STEPS).map(step).fold(f64::INFINITY, f64::min)
}

/// Gigabytes a second that so many threads read from memory, together.
fn memory_bandwidth(threads: usize) -> f64 {
    const BYTES: usize = 1 << 28;
    let numbers = vec![1_u64; BYTES / size_of::<u64>()];
    let sum = |part: &[u64]| {
        let add = |mut sums: [u64; 16], numbers: &[u64; 16]| {
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum = sum.wrapping_add(*number));
            sums
        };
        black_box(part.as_chunks().0.iter().fold([0; 16], add));
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in numbers.chunks(numbers.len().div_ceil(threads)) {
            scope.spawn(move || sum(part));
        }
    });
    BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn print(threads: usize, bandwidth: f64, contenders: &[Contender]) {
    let base = &contenders[0];
    let speed = |contender: &Contender| PAST as f64 / contender.prefill * 1e3;
    println!("\n{threads} thread(s), {bandwidth:.1} GB/s from memory; × is how many times the first row is faster");
    println!("{:<28} {:>18} {:>18} {:>20} {:>10}", "", "batch 1, ms", "batch 8, ms", "prefill, tokens/s", "limit, ms");
    for contender in contenders {
        let [one, eight] = contender.decode;
        let limit = contender.weight_bytes.map(|bytes| format!("{:.1}", bytes as f64 / bandwidth / 1e6));
        println!(
            "{:<28} {one:>9.1} {:>6.2} × {eight:>9.1} {:>6.2} × {:>11.0} {:>6.2} × {:>10}",
            contender.name,
            one / base.decode[0],
            eight / base.decode[1],
            speed(contender),
            contender.prefill / base.prefill,
            limit.unwrap_or_default(),
        );
    }
}

/// How long a peer takes for something, in milliseconds.
fn told_by(peer: &mut Peer, question: &str) -> f64 {
    peer.ask(question).parse().expect("milliseconds")
}

fn config() -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        hidden: HIDDEN,
        layers: LAYERS,
        heads: 9,
        kv_heads: 3,
        head_size: 64,
        intermediate: 1536,
        vocabulary: VOCABULARY,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        rotary: vec![true; LAYERS],
        qkv_bias: false,
        qk_norm: false,
        tied: true,
        context_max: 4096,
        bos: None,
        eos: vec![],
    }
}

/// Writes a checkpoint's weights and opens them.
fn random_weights(folder: &std::path::Path) -> Weights {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32 * 0.07
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for spec in config().tensors() {
        let (begin, count) = (data.len(), spec.shape.iter().product::<usize>());
        let is_norm = spec.shape.len() == 1;
        (0..count).for_each(|_| data.extend((if is_norm { 1.0 } else { next() }).to_le_bytes()));
        let place = serde_json::json!({ "dtype": "F32", "shape": spec.shape, "data_offsets": [begin, data.len()] });
        header.insert(spec.name, place);
    }
    assert!(header.contains_key(EMBEDDING));
    let header = serde_json::to_vec(&header).expect("a header");
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(folder.join("model.safetensors"), [&length[..], &header, &data].concat()).expect("a file");
    Weights::open(folder).expect("weights")
}

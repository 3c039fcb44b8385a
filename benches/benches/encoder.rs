//! What the sentence encoder costs on the CPU: milliseconds of a forward pass, texts a second, and memory.
//!
//! ```text
//! cargo bench -p turnflow-benches --bench encoder [-- ROUNDS [QUESTIONS.jsonl [PYTHON]]]
//! ```
//!
//! The CPU's own executor in each precision stands beside the Burn module that it is made from, what this machine's processor can at
//! most (fused products and sums in registers, measured in the same run), and, with a Python that has them, onnxruntime and torch, through
//! `encoder_peers.py`. All take turns for some rounds, and the fastest time of each counts, so that other work on the
//! machine hits all of them or none. On one thread, the time of a pass is the part of it that the system gave the thread, where it
//! tells that: other work does not count. Texts a second are of the `text`s of a log, tokenising included.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use turnflow_benches::Peer;
use turnflow_models::{
    DeviceChoice, Encoder, EncoderCheckpoint, EncoderOptions, EncoderPrecision, Instructions, ModelHome, WeightSource,
    default_home, dot, ensure,
};

/// Texts and tokens of a pass.
const SHAPES: [(usize, usize); 3] = [(1, 12), (32, 12), (32, 128)];
/// Passes of each shape before the next contender has its turn.
const TIMES: [usize; 3] = [60, 6, 1];
const PEERS: [&str; 3] = ["onnxruntime-f32", "onnxruntime-int8", "torch-f32"];
const PRECISIONS: [EncoderPrecision; 2] = [EncoderPrecision::F32, EncoderPrecision::Bf16];
/// Questions of a log that are encoded in a round.
const QUESTIONS: usize = 512;
/// Products of a token with the weights of MiniLM's layers, each a multiplication and a sum.
const TOKEN_FLOP: f64 = 2.0 * 6.0 * (4.0 * 384.0 * 384.0 + 2.0 * 384.0 * 1536.0);

fn main() {
    // Cargo passes `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let rounds: usize = args.next().map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    let home = ModelHome::new(default_home().expect("a home"));
    let files = ensure(&home, &WeightSource::defaults(None), &|_| {}).expect("the encoder's files");
    let questions = args.next().map(|path| questions(&path)).unwrap_or_default();
    let python = args.next();
    println!("instructions: {}", Instructions::detect().name());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in [1, 2].into_iter().filter(|threads| *threads <= cores) {
        let mut contenders = contenders(&files, threads, threads == cores, python.as_deref());
        let mut peak = 0.0_f64;
        for _ in 0..rounds {
            peak = peak.max(flop_of_a_second(threads));
            contenders.iter_mut().for_each(|contender| contender.run(Clock { threads }, &questions));
        }
        print(threads, peak, &mut contenders);
    }
}

/// Something that encodes, and its fastest times in milliseconds.
struct Contender {
    name: String,
    encoder: Kind,
    /// Bytes by which the process grew, where it had one for itself.
    memory: usize,
    forward: [f64; SHAPES.len()],
    /// Of all questions.
    questions: f64,
}

enum Kind {
    Ours(Box<Encoder>),
    Peer(Peer),
}

fn contenders(files: &EncoderCheckpoint, threads: usize, is_all: bool, python: Option<&str>) -> Vec<Contender> {
    let contender = |name: String, encoder, memory| Contender {
        name,
        encoder,
        memory,
        forward: [f64::INFINITY; SHAPES.len()],
        questions: f64::INFINITY,
    };
    let mut all = Vec::new();
    for precision in PRECISIONS {
        let before = resident_bytes();
        let options = EncoderOptions { precision, threads, ..EncoderOptions::default() };
        let encoder = Encoder::load(files, options).expect("an encoder");
        let memory = resident_bytes().saturating_sub(before);
        all.push(contender(precision.to_string(), Kind::Ours(Box::new(encoder)), memory));
    }
    // The tensor library's threads are those of its process.
    if is_all {
        let device = DeviceChoice::Cpu.resolve().expect("a CPU").device;
        let encoder = Encoder::load_plain(files, &device).expect("an encoder");
        all.push(contender("plain Burn f32".to_owned(), Kind::Ours(Box::new(encoder)), 0));
    }
    let folder = files.folder.display().to_string();
    for name in PEERS {
        if let Some(mut peer) =
            python.and_then(|python| Peer::start(python, "encoder_peers.py", &[name, &threads.to_string(), &folder]))
        {
            let memory = peer.ask("memory").parse().expect("bytes");
            all.push(contender(name.to_owned(), Kind::Peer(peer), memory));
        }
    }
    all
}

impl Contender {
    fn run(&mut self, clock: Clock, questions: &[String]) {
        for (((batch, tokens), times), best) in SHAPES.into_iter().zip(TIMES).zip(&mut self.forward) {
            *best = best.min(match &mut self.encoder {
                Kind::Ours(encoder) => forward(clock, encoder, batch, tokens, times),
                Kind::Peer(peer) => {
                    let answer = peer.ask(&format!("forward {batch} {tokens} {times}"));
                    answer.parse().expect("milliseconds")
                }
            });
        }
        if let (Kind::Ours(encoder), false) = (&self.encoder, questions.is_empty()) {
            let texts: Vec<&str> = questions.iter().map(String::as_str).collect();
            let ms = clock.milliseconds(1, || {
                black_box(encoder.encode(&texts).expect("vectors"));
            });
            self.questions = self.questions.min(ms);
        }
    }

    /// The vector of one text of 12 tokens.
    fn vector(&mut self) -> Vec<f32> {
        match &mut self.encoder {
            Kind::Ours(encoder) => encoder.forward(&[&tokens(12)]).expect("a vector")[0].to_vec(),
            Kind::Peer(peer) => {
                let answer = peer.ask("vector 12");
                answer.split(' ').map(|number| number.parse().expect("a number")).collect()
            }
        }
    }
}

/// As in `encoder_peers.py`.
fn tokens(count: usize) -> Vec<u32> {
    let word = |place: usize| u32::try_from(1000 + place * 7919 % (30522 - 1000)).expect("a word");
    std::iter::once(101).chain((0..count - 2).map(word)).chain([102]).collect()
}

/// Of so many threads: with one, the time that the system gave it, so that other work on the machine does not count.
#[derive(Clone, Copy)]
struct Clock {
    threads: usize,
}

impl Clock {
    /// Milliseconds of the fastest time; on one thread of their mean, because the system counts in milliseconds.
    fn milliseconds(self, times: usize, mut work: impl FnMut()) -> f64 {
        let given = || {
            let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
            Some(Duration::from_nanos(times.split(' ').next()?.parse().ok()?))
        };
        let (given_before, mut fastest) = (given(), Duration::MAX);
        for _ in 0..times {
            let start = Instant::now();
            work();
            fastest = fastest.min(start.elapsed());
        }
        let mean = given_before.and_then(|before| Some((given()? - before) / u32::try_from(times).ok()?));
        mean.filter(|_| self.threads == 1).unwrap_or(fastest).as_secs_f64() * 1e3
    }
}

/// Milliseconds of the fastest of some passes.
fn forward(clock: Clock, encoder: &Encoder, batch: usize, count: usize, times: usize) -> f64 {
    let text = tokens(count);
    let rows = vec![text.as_slice(); batch];
    clock.milliseconds(times, || {
        black_box(encoder.forward(&rows).expect("vectors"));
    })
}

fn print(threads: usize, peak: f64, contenders: &mut [Contender]) {
    let (base, expected) = (contenders[0].forward, contenders[0].vector());
    println!(
        "\n{threads} thread(s), {:.0} GFLOP/s of f32 at most; × is how many times f32 of ours is faster, % its share of that",
        peak / 1e9
    );
    let heads = SHAPES.map(|(batch, tokens)| format!("{:>23}", format!("{batch} × {tokens}, ms")));
    println!("{:<18}{} {:>9} {:>9} {:>10}", "", heads.join(""), "texts/s", "MiB", "cosine");
    for contender in contenders {
        let cells = (0..SHAPES.len()).map(|shape| {
            let ms = contender.forward[shape];
            let flop = TOKEN_FLOP * (SHAPES[shape].0 * SHAPES[shape].1) as f64;
            format!("{ms:>9.2} {:>5.2} × {:>3.0} %", ms / base[shape], flop / ms * 1e3 / peak * 100.0)
        });
        let cells: String = cells.collect();
        let texts = if contender.questions.is_finite() { QUESTIONS as f64 / contender.questions * 1e3 } else { 0.0 };
        let cosine = dot(&contender.vector(), &expected);
        println!("{:<18}{cells} {texts:>9.0} {:>9} {cosine:>10.6}", contender.name, contender.memory >> 20);
    }
}

/// Texts of a log.
fn questions(path: &str) -> Vec<String> {
    let log = std::fs::read_to_string(path).expect("a log");
    let text = |line: &str| {
        let turn: serde_json::Value = serde_json::from_str(line).expect("JSON");
        turn["text"].as_str().expect("a text").to_owned()
    };
    log.lines().take(QUESTIONS).map(text).collect()
}

/// Fused products and sums a second, in single precision, that so many threads do in registers, together.
fn flop_of_a_second(threads: usize) -> f64 {
    let start = Instant::now();
    let flop: f64 = std::thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| Instructions::detect().multiply_and_add());
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that ends") as f64).sum()
    });
    flop / start.elapsed().as_secs_f64()
}

/// Memory of this process, in bytes; 0 where that is not told.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) << 10
}

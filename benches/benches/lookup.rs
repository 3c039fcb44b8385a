//! One look-up in the semantic cache: the nearest cached questions, and the policy's decision about them.
//!
//! ```text
//! cargo bench -p turnflow-benches --bench lookup [-- ENTRIES [VECTORS.bin]]
//! python3 benches/benches/lookup_peers.py VECTORS.bin     # in the same minute, on the same machine
//! ```
//!
//! A shard is filled with so many entries, whose vectors lie around topics as questions do and whose words are those of the
//! sample shop's questions, and asked one question at a time on one thread. The time is that of the whole stage: search,
//! guard, verifier, reasons. Then half of the entries are replaced, and the recall of the index is counted against the exact
//! scan, before and after. With a file, the vectors are written there for the peers: a line of JSON with the counts and the
//! dimension, then `entries` and `queries` vectors of little-endian f32.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::cell::RefCell;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnflow_benches::{clustered, tenant};
use turnflow_models::{AXES, Verifier, principal_axes};
use turnflow_operators::bound::Strictness;
use turnflow_operators::lookup::Search;
use turnflow_operators::message::{Basis, Query, RequestId};
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::shard::{Shard, ShardLimits};
use turnflow_operators::shell::Stage as _;
use turnflow_state::{
    Answer, ArticleId, CacheEntry, ConversationId, EntryId, ScopeId, Support, Tier, TurnId, TurnKey, Usage, dot,
};

const QUERIES: usize = 2_000;
/// Neighbours whose recall is counted.
const K: usize = 10;
const QUESTIONS: &str = include_str!("../../ingress/sample/log.jsonl");

fn main() {
    // Cargo passes `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let entries: usize = args.next().map_or(10_000, |count| count.parse().expect("a number of entries"));
    let dimension = principal_axes().len() / AXES;
    // One draw, so that queries lie around the same topics: those that replace, then the queries, come last.
    let vectors = clustered(entries + entries / 2 + QUERIES, dimension, 7);
    let (first, rest) = vectors.split_at(entries);
    let (second, queries) = rest.split_at(entries / 2);
    if let Some(path) = args.next() {
        write(&path, first, queries, dimension);
    }
    let texts = texts();
    let policy = Arc::new(Policy::new(
        Clarity { relevance_min: 0.5, margin_min: 0.0 },
        0.95,
        Some(Arc::new(Verifier::shop())),
        0.01,
    ));
    let limits = ShardLimits { bytes_max: usize::MAX, tenant_bytes_max: usize::MAX, ttl_ms: None, similar: true };
    let shard = Rc::new(RefCell::new(Shard::new(limits, policy.clone())));

    let started = Instant::now();
    (0..entries).for_each(|at| insert(&shard, at, &first[at], &texts[at % texts.len()]));
    while shard.borrow_mut().improve(usize::MAX) {}
    let filled = started.elapsed();
    println!("{entries} entries of {dimension} numbers, filled in {filled:.1?}; {QUERIES} questions, one thread");
    let live: Vec<usize> = (0..entries).collect();
    report("as filled", &shard, &policy, &live, first, queries, &texts);

    (0..entries / 2).for_each(|at| {
        let forgotten = shard.borrow_mut().remove(EntryId(at as u64));
        assert!(forgotten.is_some(), "it is there");
        insert(&shard, entries + at, &second[at], &texts[at % texts.len()]);
    });
    while shard.borrow_mut().improve(usize::MAX) {}
    let live: Vec<usize> = (entries / 2..entries + entries / 2).collect();
    report("half replaced", &shard, &policy, &live, &vectors, queries, &texts);
}

fn report(
    name: &str,
    shard: &Rc<RefCell<Shard>>,
    policy: &Policy,
    live: &[usize],
    vectors: &[Arc<[f32]>],
    queries: &[Arc<[f32]>],
    texts: &[String],
) {
    let mut search = Search::new(shard.clone());
    let (mut whole, mut alone, mut found, mut hits) = (Vec::new(), Vec::new(), 0, 0);
    for (at, vector) in queries.iter().enumerate() {
        let text = &texts[at % texts.len()];
        let started = Instant::now();
        let question = policy.prepare(text, Some(vector), Some(article()));
        let request = RequestId { worker: 0, number: at as u64 };
        let vector = vector.clone();
        let (scope, strictness) = (scope(), Strictness::CALIBRATED);
        let query = Query { request, asker: 0, scope, question, vector, at_ms: 0, made_since_ms: 0, strictness };
        let mut out = Vec::new();
        search.push(Box::new(query), 0, &mut out);
        whole.push(started.elapsed());
        hits += usize::from(out.first().is_some_and(|found| found.hit.is_some()));
    }
    for vector in queries {
        let started = Instant::now();
        let nearest: Vec<EntryId> =
            shard.borrow_mut().nearest(scope(), vector, K, 0).iter().map(|(entry, _)| entry.id).collect();
        alone.push(started.elapsed());
        let mut exact: Vec<(f32, usize)> = live.iter().map(|&at| (dot(&vectors[at], vector), at)).collect();
        exact.select_nth_unstable_by(K - 1, |a, b| b.0.total_cmp(&a.0));
        found += exact[..K].iter().filter(|(_, at)| nearest.contains(&EntryId(*at as u64))).count();
    }
    let recall = found as f64 / (K * queries.len()) as f64;
    println!("{name}");
    row("search and policy", &mut whole);
    row("search alone", &mut alone);
    println!("  recall@{K} of the index {recall:.4}; {hits} of {QUERIES} questions were hits");
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 1_000).min(times.len() - 1)];
    println!("  {name:<18} p50 {:>9.1?}  p99 {:>9.1?}", at(500), at(990));
}

fn insert(shard: &Rc<RefCell<Shard>>, at: usize, vector: &Arc<[f32]>, text: &str) {
    let support = Arc::new(Support { chunks: Vec::new(), floor: 2.0, read_epoch: 0 });
    let answer = Answer {
        text: "An answer.".into(),
        tier: Tier::Extractive,
        sources: Vec::new(),
        usage: Usage::default(),
        grounded: true,
        cut_off: false,
    };
    let entry = CacheEntry {
        id: EntryId(at as u64),
        scope: scope(),
        // Different texts, or they would be one question; a number would be one that has to agree.
        question: format!("{text} {}", letters(at)),
        vector: Some(vector.clone()),
        answer: Arc::new(answer),
        support: support.clone(),
        origin: TurnKey {
            tenant: tenant().expect("an id"),
            conversation: ConversationId::new(at.to_string()).expect("an id"),
            turn: TurnId::new("1").expect("an id"),
        },
        about: Some(article()),
        refreshed: false,
        created_ms: 0,
    };
    let basis = Basis { vector: vector.clone(), support, valid_at: 0 };
    shard.borrow_mut().insert(entry, at as u64, basis, Arc::from([])).expect("it fits");
}

/// A number in small letters.
fn letters(mut number: usize) -> String {
    let mut word = String::new();
    loop {
        word.push(char::from(b'a' + u8::try_from(number % 26).unwrap_or_default()));
        number /= 26;
        if number == 0 {
            return word;
        }
    }
}

fn texts() -> Vec<String> {
    let text =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("text")?.as_str().map(str::to_owned);
    QUESTIONS.lines().filter_map(text).collect()
}

fn scope() -> ScopeId {
    ScopeId::derive(&tenant().expect("an id"), &[])
}

fn article() -> ArticleId {
    ArticleId::new("article").expect("an id")
}

fn write(path: &str, entries: &[Arc<[f32]>], queries: &[Arc<[f32]>], dimension: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a file"));
    let head = serde_json::json!({ "entries": entries.len(), "queries": queries.len(), "dimension": dimension });
    writeln!(file, "{head}").expect("written");
    for number in entries.iter().chain(queries).flat_map(|vector| vector.iter()) {
        file.write_all(&number.to_le_bytes()).expect("written");
    }
    file.flush().expect("written");
}

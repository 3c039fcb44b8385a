//! What it takes to keep cached answers in step with the knowledge base: one article is updated beneath many entries.
//!
//! ```text
//! cargo bench -p turnflow-benches --bench validity [-- ENTRIES [ARTICLES.jsonl [QUESTIONS.jsonl]]]
//! ```
//!
//! A store is filled with 5,000 articles of one chunk and with entries that rest on the 4 chunks nearest to their
//! questions, and opened as after a restart. Then articles are updated one after the other, and each write is timed from
//! its call to its acknowledgement, without the embedding of its text. In the same run: a synced write of the bare store,
//! which is the least that any durable scheme pays; the same relation recomputed from scratch in a plain loop; and a plain
//! reverse index from chunks to entries, which does not see new articles or late answers. With a file of articles, how
//! fast it is imported.
//!
//! Questions and chunks are those of the sample shop, or of the files: `body` of each article, `text` or else `a` and `b` of each
//! question. Where more are wanted than there are, mixtures of their vectors serve, which lie closer together than real ones,
//! so that fewer can be ruled out early. An update says what an article said, and its number.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use turnflow_benches::tenant;
use turnflow_models::{InputType, ModelHome, WeightSource, default_home, ensure};
use turnflow_pipeline::{ArticleDraft, Config, DraftContent, Parts, Pipeline, resident_bytes};
use turnflow_state::{
    Answer, ArticleId, ArticleWrite, CacheEntry, ChunkId, ChunkKey, ContentHash, ConversationId, Durability, EntryId,
    ExactIndex, NewChunk, NewContent, ScopeId, Source, Store, StoreBatch, Support, SupportChunk, Tier, TurnId, TurnKey,
    Usage, dot,
};

const ARTICLES: usize = 5_000;
const K: usize = 4;
const UPDATES: usize = 400;
const QUESTIONS: &str = include_str!("../../ingress/sample/log.jsonl");
const SAMPLE_ARTICLES: &str = include_str!("../../ingress/sample/articles.jsonl");
/// Characters of an article's text: one chunk.
const TEXT_CHARS: usize = 300;

fn main() {
    // Cargo passes `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let entries: usize = args.next().map_or(100_000, |count| count.parse().expect("a number of entries"));
    let (articles, questions) = (args.next(), args.next());
    let read = |path: &String| std::fs::read_to_string(path).expect("a file that can be read");
    let texts = Texts {
        questions: fields(&questions.as_ref().map_or_else(|| QUESTIONS.into(), read), &["text", "a", "b"]),
        bodies: fields(&articles.as_ref().map_or_else(|| SAMPLE_ARTICLES.into(), read), &["body"]),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let mut config = Config::defaults();
    // What is measured is validity; a graph of similar questions would be built beside it.
    config.cache.semantic = false;
    (config.cache.bytes_max, config.cache.tenant_bytes_max) = (usize::MAX, usize::MAX);
    let folder = tempfile::tempdir().expect("a folder");
    let files = ensure(&ModelHome::new(default_home().expect("a home")), &WeightSource::defaults(None), &|_| {});
    let files = files.expect("weights");

    let world = World::new(&config, Store::open(folder.path()).expect("a store"), &files, &texts, entries);
    let before_bytes = resident_bytes().unwrap_or(0);
    let (opened, parts) = timed(|| Parts::open(&config, world.store.clone(), &files).expect("parts"));
    let (started, pipeline) = timed(|| Pipeline::start(&config, &parts).expect("a pipeline"));
    assert_eq!(pipeline.stats().validity.entries, entries, "all of them are valid");
    println!("{entries} entries on {K} of {ARTICLES} chunks each");
    println!("  restart: store, weights and index in {opened:.1?}, entries and their validity in {started:.1?}");
    println!("  memory for both: {} MiB", (resident_bytes().unwrap_or(0) - before_bytes) >> 20);

    let synced = synced_writes(&world.store);
    let (acknowledged, invalidated) = updates(&runtime, &pipeline, &texts);
    let scratch = world.recompute();
    let reverse = world.reverse_index();
    println!("one article updated ({:.1} entries fall on average)", invalidated as f64 / UPDATES as f64);
    let base = at(&acknowledged, 0.5);
    row("write → acknowledged", &acknowledged, base);
    row("  of it: a synced write", &synced, base);
    row("recomputed from scratch", &scratch, base);
    row("plain reverse index", &reverse, base);
    if let Some(path) = articles {
        import(&runtime, &pipeline, &path);
    }
    runtime.block_on(pipeline.shutdown());
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The value below which a share of the sorted times lies.
fn at(times: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    times[((times.len() - 1) as f64 * share) as usize]
}

fn row(name: &str, times: &[Duration], base: Duration) {
    let [p50, p99] = [0.5, 0.99].map(|share| at(times, share));
    let ratio = p50.as_secs_f64() / base.as_secs_f64();
    println!("  {name:<26} p50 {:>9}  p99 {:>9}  {ratio:>8.3} ×", format!("{p50:.1?}"), format!("{p99:.1?}"));
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

/// Everything in the store, and once more as the plain schemes need it.
struct World {
    store: Store,
    questions: Vec<Arc<[f32]>>,
    supports: Vec<[ChunkKey; K]>,
    floors: Vec<f32>,
    chunks: Vec<(ChunkKey, Arc<[f32]>)>,
}

fn article(number: usize) -> ArticleId {
    ArticleId::new(format!("a{number}")).expect("an id")
}

/// What is asked and what is answered.
struct Texts {
    questions: Vec<String>,
    bodies: Vec<String>,
}

impl Texts {
    /// What an article says, and which version of which article it is.
    fn article(&self, number: usize, version: usize) -> String {
        let body: String = self.bodies[number % self.bodies.len()].chars().take(TEXT_CHARS).collect();
        format!("{body} (article {number}, {version})")
    }
}

/// The different texts in some fields of all lines, in order.
fn fields(lines: &str, names: &[&str]) -> Vec<String> {
    let mut seen = HashSet::new();
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let texts =
        rows.flat_map(|row| names.iter().filter_map(|name| Some(row[*name].as_str()?.to_owned())).collect::<Vec<_>>());
    texts.filter(|text| seen.insert(text.clone())).collect()
}

impl World {
    fn new(
        config: &Config,
        store: Store,
        files: &turnflow_models::EncoderCheckpoint,
        texts: &Texts,
        entries: usize,
    ) -> Self {
        let tenant = tenant().expect("an id");
        let parts = Parts::open(config, store.clone(), files).expect("parts");
        let mut questions = Mixture::new(&parts, texts.questions.iter().take(entries));
        let mut articles = Mixture::new(&parts, texts.bodies.iter().take(ARTICLES));
        let vectors: Vec<Arc<[f32]>> = (0..ARTICLES).map(|_| articles.next()).collect();
        for first in (0..ARTICLES).step_by(500) {
            let write = |number: usize| ArticleWrite {
                tenant: tenant.clone(),
                article: article(number),
                expected_version: None,
                content: Some(NewContent {
                    title: String::new(),
                    body: texts.article(number, 0),
                    metadata: Default::default(),
                    version: None,
                    chunks: vec![NewChunk {
                        text: texts.article(number, 0),
                        hash: ContentHash::of("", &texts.article(number, 0)),
                        vector: vectors[number].clone(),
                    }],
                }),
            };
            parts.knowledge.apply((first..first + 500).map(write).collect(), &mut |_| {}).expect("applies");
        }
        let epoch = parts.knowledge.epoch();
        let hash = |number: usize| ContentHash::of("", &texts.article(number, 0));
        let key = |number: usize| ChunkKey::of(&tenant, &article(number), hash(number));
        let mut index = ExactIndex::new();
        vectors.iter().enumerate().for_each(|(number, vector)| index.insert(number, vector).expect("fits"));
        let scope = config.scopes("extractive").of(&tenant);
        let mut world = Self {
            store,
            questions: Vec::with_capacity(entries),
            supports: Vec::with_capacity(entries),
            floors: Vec::with_capacity(entries),
            chunks: vectors.iter().enumerate().map(|(number, vector)| (key(number), vector.clone())).collect(),
        };
        let mut batch = StoreBatch::new();
        batch.put_validated_epoch(epoch);
        for id in 0..entries {
            let vector = questions.next();
            let found = index.search(&vector, K).expect("fits");
            let floor = found[K - 1].1;
            let chunks = found.iter().map(|&(number, _)| SupportChunk {
                id: ChunkId { tenant: tenant.clone(), article: article(number), ordinal: 0 },
                hash: hash(number),
            });
            let support = Support { chunks: chunks.collect(), floor, read_epoch: epoch };
            batch.put_entry(&entry(id, scope, &vector, support, found[0].0)).expect("encodes");
            world.supports.push(std::array::from_fn(|at| key(found[at].0)));
            world.floors.push(floor);
            world.questions.push(vector);
            if batch.len() > 2_000 {
                world.store.write(std::mem::take(&mut batch), Durability::Buffered).expect("writes");
            }
        }
        world.store.write(batch, Durability::Synced).expect("writes");
        world
    }

    /// For every entry: is its support there, and does the new chunk beat it?
    fn recompute(&self) -> Vec<Duration> {
        let mut present: HashMap<ChunkKey, usize> =
            self.chunks.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        let times = (0..20).map(|round| {
            let (gone, new) = (self.chunks[round * 7].0, &self.chunks[round * 11 + 1].1);
            let at = present.remove(&gone);
            let (elapsed, fallen) = timed(|| {
                let falls = |at: &usize| {
                    !self.supports[*at].iter().all(|key| present.contains_key(key))
                        || dot(&self.questions[*at], new) > self.floors[*at]
                };
                (0..self.questions.len()).filter(falls).count()
            });
            black_box(fallen);
            present.extend(at.map(|at| (gone, at)));
            elapsed
        });
        sorted(times.collect())
    }

    /// Which entries rest on the chunk? Entries that fall are taken out of the index, and put back as if answered anew.
    fn reverse_index(&self) -> Vec<Duration> {
        let mut resting: HashMap<ChunkKey, Vec<usize>> = HashMap::new();
        for (at, support) in self.supports.iter().enumerate() {
            support.iter().for_each(|key| resting.entry(*key).or_default().push(at));
        }
        let times = (0..UPDATES).map(|round| {
            let gone = self.chunks[round * 7 % ARTICLES].0;
            let (elapsed, fallen) = timed(|| {
                let fallen = resting.remove(&gone).unwrap_or_default();
                for &at in &fallen {
                    for key in self.supports[at].iter().filter(|key| **key != gone) {
                        if let Some(others) = resting.get_mut(key) {
                            others.retain(|&other| other != at);
                        }
                    }
                }
                fallen
            });
            for &at in &fallen {
                self.supports[at].iter().for_each(|key| resting.entry(*key).or_default().push(at));
            }
            elapsed
        });
        sorted(times.collect())
    }
}

fn entry(id: usize, scope: ScopeId, vector: &Arc<[f32]>, support: Support, source: usize) -> CacheEntry {
    let source = Source { article_id: article(source), version: 1, chunk: 0 };
    let answer = Answer {
        text: format!("Answer {id}. {}", "An answer has some two hundred characters in all. ".repeat(6)),
        tier: Tier::Extractive,
        sources: vec![source],
        usage: Usage { input_tokens: 300, output_tokens: 40 },
        grounded: true,
        cut_off: false,
    };
    CacheEntry {
        id: EntryId(id as u64 + 1),
        scope,
        question: format!("What does number {id} say, and how often?"),
        vector: Some(vector.clone()),
        answer: Arc::new(answer),
        support: Arc::new(support),
        origin: TurnKey {
            tenant: tenant().expect("an id"),
            conversation: ConversationId::new(format!("c{id}")).expect("an id"),
            turn: TurnId::new("1").expect("an id"),
        },
        about: None,
        refreshed: false,
        created_ms: 0,
    }
}

/// Unit vectors that lie where the encoder's do: those of real texts, then mixtures of them and a little of everything.
struct Mixture {
    real: Vec<Arc<[f32]>>,
    /// Real ones that were given out.
    given: usize,
    state: u64,
}

impl Mixture {
    fn new<'a>(parts: &Parts, texts: impl Iterator<Item = &'a String>) -> Self {
        let texts: Vec<String> = texts.cloned().collect();
        let encoded = texts
            .chunks(64)
            .flat_map(|some| parts.encoder.encode_blocking(InputType::Query, some.to_vec()).expect("encodes"));
        Self { real: encoded.collect(), given: 0, state: 0x9E37_79B9_7F4A_7C15 }
    }

    fn random(&mut self) -> u64 {
        // xorshift64* (Vigna, 2016).
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20
    }

    fn next(&mut self) -> Arc<[f32]> {
        if let Some(vector) = self.real.get(self.given) {
            self.given += 1;
            return vector.clone();
        }
        let parts: Vec<(usize, f32)> = [0.8, 0.4, 0.3]
            .map(|share| {
                #[expect(clippy::cast_possible_truncation, reason = "an index")]
                let at = (self.random() % self.real.len() as u64) as usize;
                (at, share)
            })
            .to_vec();
        let mut numbers: Vec<f32> = (0..self.real[0].len())
            .map(|at| {
                let noise = (self.random() % 2_000) as f32 / 1_000.0 - 1.0;
                parts.iter().map(|&(one, share)| share * self.real[one][at]).sum::<f32>() + 0.01 * noise
            })
            .collect();
        let length = dot(&numbers, &numbers).sqrt();
        numbers.iter_mut().for_each(|number| *number /= length);
        numbers.into()
    }
}

/// Synced writes of about what an update of an article writes.
fn synced_writes(store: &Store) -> Vec<Duration> {
    let times = (0..UPDATES).map(|round| {
        let mut batch = StoreBatch::new();
        batch.put_key_value(&format!("bench-{}", round % 8), vec![7; 2_000]);
        timed(|| store.write(batch, Durability::Synced).expect("writes")).0
    });
    sorted(times.collect())
}

/// Embeds all updates, then writes one after the other; times, and how many entries fell.
fn updates(runtime: &Runtime, pipeline: &Pipeline, texts: &Texts) -> (Vec<Duration>, usize) {
    let (knowledge, tenant) = (pipeline.knowledge(), tenant().expect("an id"));
    let prepare = |round: usize| {
        let number = round * 7 % ARTICLES;
        let content = DraftContent { body: texts.article(number, 1 + round), ..DraftContent::default() };
        let draft = ArticleDraft { id: article(number), content: Some(content), expected_version: None };
        runtime.block_on(knowledge.prepare(&tenant, vec![draft])).expect("prepared")
    };
    let prepared: Vec<_> = (0..UPDATES).map(prepare).collect();
    let mut invalidated = 0;
    let times = prepared.into_iter().map(|prepared| {
        let (elapsed, receipt) = timed(|| runtime.block_on(knowledge.apply(prepared)).expect("applied"));
        invalidated += receipt.invalidated.len();
        elapsed
    });
    (sorted(times.collect()), invalidated)
}

/// Imports a file of articles, and tells the embedding from the rest.
fn import(runtime: &Runtime, pipeline: &Pipeline, path: &str) {
    let lines = std::fs::read_to_string(path).expect("a file of articles");
    let drafts: Vec<ArticleDraft> = lines
        .lines()
        .map(|line| {
            let article: Value = serde_json::from_str(line).expect("JSON");
            let field = |name: &str| article[name].as_str().unwrap_or_default().to_owned();
            let content = DraftContent { title: field("title"), body: field("body"), ..DraftContent::default() };
            ArticleDraft {
                id: ArticleId::new(field("id")).expect("an id"),
                content: Some(content),
                expected_version: None,
            }
        })
        .collect();
    let (knowledge, tenant, count) = (pipeline.knowledge(), tenant().expect("an id"), drafts.len());
    let (mut preparing, mut applying) = (Duration::ZERO, Duration::ZERO);
    for batch in drafts.chunks(64) {
        runtime.block_on(async {
            let start = Instant::now();
            let prepared = knowledge.prepare(&tenant, batch.to_vec()).await.expect("prepared");
            preparing += start.elapsed();
            let start = Instant::now();
            knowledge.apply(prepared).await.expect("applied");
            applying += start.elapsed();
        });
    }
    let all = (preparing + applying).as_secs_f64();
    println!("import of {count} articles: {:.0} per second", count as f64 / all);
    println!(
        "  {:.1} % of the time cuts and embeds, the rest writes, indexes and checks every entry",
        100.0 * preparing.as_secs_f64() / all
    );
}

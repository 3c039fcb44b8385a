//! The dataflow of validity against a from-scratch oracle: whatever happens in whatever order, on whatever number of
//! workers, the entries that are served are those that still follow from the knowledge base.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use timely::dataflow::operators::probe::Handle;
use turnflow_operators::message::Basis;
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::shard::{Shard, ShardLimits};
use turnflow_operators::validity::keeper::{Keeper, Proposal};
use turnflow_operators::validity::{Axes, Inputs, KnowledgeUpdate, Setup, TopK, validity};
use turnflow_state::{
    Answer, ArticleId, CacheEntry, ChunkId, ChunkKey, ContentHash, ConversationId, EntryHistory, EntryId, ScopeId,
    Support, SupportChunk, TenantId, Tier, TurnId, TurnKey, Usage, dot,
};

/// Chunks retrieved for a question.
const K: usize = 2;
const DIMENSION: usize = 4;
const ARTICLES: u8 = 5;

/// One thing that happens. A script of them is the same for all workers.
#[derive(Clone, Debug)]
enum Step {
    /// An article is written: inserted, updated, restored. Its contents are numbers below 6, each with its own vector.
    Write { article: u8, contents: Vec<u8> },
    /// An article is deleted.
    Delete { article: u8 },
    /// A question is retrieved for; its answer comes later.
    Ask { vector: u8 },
    /// The answer to the question asked longest ago, or last, is put forward.
    Answer { oldest: bool },
    /// Everybody's reads are told to be as new as they are.
    Forget,
    /// The process dies, after a change that was stored and not yet taken into account if there is one, and starts again.
    Restart { unseen: Vec<(u8, Vec<u8>)> },
}

fn step() -> impl Strategy<Value = Step> {
    let contents = || prop::collection::vec(0u8..6, 1..3);
    prop_oneof![
        4 => (0..ARTICLES, contents()).prop_map(|(article, contents)| Step::Write { article, contents }),
        2 => (0..ARTICLES).prop_map(|article| Step::Delete { article }),
        6 => any::<u8>().prop_map(|vector| Step::Ask { vector }),
        6 => any::<bool>().prop_map(|oldest| Step::Answer { oldest }),
        1 => Just(Step::Forget),
        1 => prop::collection::vec((0..ARTICLES, contents()), 0..3).prop_map(|unseen| Step::Restart { unseen }),
    ]
}

/// Vectors of at most unit length on a coarse grid: sums are exact, and equal scores are frequent.
fn vector(number: u8) -> Arc<[f32]> {
    (0..DIMENSION).map(|at| f32::from((number >> (2 * at)) & 3) * 0.25 - 0.25).collect()
}

fn tenant() -> TenantId {
    TenantId::new("shop").expect("an id")
}

fn article(number: u8) -> ArticleId {
    ArticleId::new(format!("a{number}")).expect("an id")
}

fn hash(content: u8) -> ContentHash {
    ContentHash::of("", &content.to_string())
}

/// A content of an article, as the knowledge base has it.
#[derive(Clone, Debug)]
struct Present {
    article: u8,
    content: u8,
    since: u64,
}

impl Present {
    fn key(&self) -> ChunkKey {
        ChunkKey::of(&tenant(), &article(self.article), hash(self.content))
    }

    fn vector(&self) -> Arc<[f32]> {
        // The title of the article is part of what is embedded.
        vector(self.content.wrapping_mul(41).wrapping_add(self.article * 17))
    }
}

/// The knowledge base, as plain as can be.
#[derive(Clone, Default)]
struct Knowledge {
    epoch: u64,
    present: BTreeMap<ChunkKey, Present>,
}

impl Knowledge {
    /// Writes an article; gives what a store would publish.
    fn write(&mut self, article: u8, contents: &[u8]) -> Vec<KnowledgeUpdate> {
        self.epoch += 1;
        let mut gone: BTreeSet<ChunkKey> =
            self.present.values().filter(|present| present.article == article).map(Present::key).collect();
        let mut updates = Vec::new();
        for &content in contents {
            let present = Present { article, content, since: self.epoch };
            let key = present.key();
            if !gone.remove(&key) && !self.present.contains_key(&key) {
                updates.push(added(&present));
                self.present.insert(key, present);
            }
        }
        for key in gone {
            self.present.remove(&key);
            updates.push(KnowledgeUpdate::Removed { tenant: tenant(), key });
        }
        updates
    }

    fn retrieve(&self, vector: &[f32]) -> Support {
        let mut found: Vec<(f32, &Present)> =
            self.present.values().map(|present| (dot(vector, &present.vector()), present)).collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.truncate(K);
        let floor = if found.len() < K { f32::NEG_INFINITY } else { found[K - 1].0 };
        let chunks = found.iter().map(|(_, present)| SupportChunk {
            id: ChunkId { tenant: tenant(), article: article(present.article), ordinal: 0 },
            hash: hash(present.content),
        });
        Support { chunks: chunks.collect(), floor, read_epoch: self.epoch }
    }

    /// The relation, word for word.
    fn holds(&self, basis: &Basis) -> bool {
        let support: Vec<ChunkKey> = basis.support.chunks.iter().map(SupportChunk::key).collect();
        support.iter().all(|key| self.present.contains_key(key))
            && !self.present.iter().any(|(key, present)| {
                present.since > basis.valid_at
                    && !support.contains(key)
                    && dot(&basis.vector, &present.vector()) > basis.support.floor
            })
    }
}

fn added(present: &Present) -> KnowledgeUpdate {
    let (key, came, vector) = (present.key(), present.since, present.vector());
    KnowledgeUpdate::Added { tenant: tenant(), key, came, vector }
}

/// What a worker has put up, and the script's view of the world, which is the same at all workers.
struct World<'w> {
    worker: &'w mut timely::worker::Worker,
    inputs: Inputs,
    setup: Setup,
    shard: Rc<RefCell<Shard>>,
    now: u64,
    knowledge: Knowledge,
    /// The epoch of the knowledge base up to which what is stored was checked.
    validated: u64,
    in_flight: VecDeque<Basis>,
    /// What the oracle holds to be valid, with what it follows from.
    valid: BTreeMap<u64, Basis>,
    /// What this worker's keeper has written and not deleted.
    stored: BTreeMap<u64, CacheEntry>,
    next_entry: u64,
}

fn policy() -> Arc<Policy> {
    Arc::new(Policy::new(Clarity { relevance_min: 0.5, margin_min: 0.1 }, 0.9, None, 0.01))
}

fn entry(id: u64, basis: &Basis) -> CacheEntry {
    let answer = Answer {
        text: id.to_string(),
        tier: Tier::Extractive,
        sources: Vec::new(),
        usage: Usage::default(),
        grounded: true,
        cut_off: false,
    };
    CacheEntry {
        id: EntryId(id),
        scope: ScopeId::derive(&tenant(), &[]),
        question: format!("question {id}"),
        vector: Some(basis.vector.clone()),
        answer: Arc::new(answer),
        support: basis.support.clone(),
        origin: TurnKey {
            tenant: tenant(),
            conversation: ConversationId::new("c").expect("an id"),
            turn: TurnId::new(id.to_string()).expect("an id"),
        },
        about: None,
        refreshed: false,
        created_ms: 0,
    }
}

impl<'w> World<'w> {
    fn new(worker: &'w mut timely::worker::Worker, window_max: usize) -> Self {
        let limits = ShardLimits { bytes_max: usize::MAX, tenant_bytes_max: usize::MAX, ttl_ms: None, similar: false };
        let shard = Rc::new(RefCell::new(Shard::new(limits, policy())));
        let (inputs, setup) = put_up(worker, &shard, window_max);
        Self {
            worker,
            inputs,
            setup,
            shard,
            now: 0,
            knowledge: Knowledge::default(),
            validated: 0,
            in_flight: VecDeque::new(),
            valid: BTreeMap::new(),
            stored: BTreeMap::new(),
            next_entry: 0,
        }
    }

    fn is_leader(&self) -> bool {
        self.worker.index() == 0
    }

    fn tell(&mut self, updates: Vec<KnowledgeUpdate>) {
        if self.is_leader() {
            updates.into_iter().for_each(|update| self.inputs.knowledge(update));
        }
    }

    fn propose(&mut self, id: u64, basis: Basis, stored: bool) {
        if id % self.worker.peers() as u64 != self.setup.worker {
            return;
        }
        let entry = Some(Box::new(entry(id, &basis)));
        let history = EntryHistory::default();
        let proposal = Proposal { tenant: tenant(), basis, entry, stored, history, resolution: None };
        let change = self.setup.keeper.borrow_mut().propose(proposal, self.now);
        self.inputs.claim(self.setup.worker, change);
    }

    fn take(&mut self, step: &Step, window_max: usize) {
        match step {
            Step::Write { article, contents } => {
                let updates = self.knowledge.write(*article, contents);
                self.tell(updates);
            }
            Step::Delete { article } => {
                let updates = self.knowledge.write(*article, &[]);
                self.tell(updates);
            }
            Step::Ask { vector: number } => {
                let vector = vector(*number);
                let support = Arc::new(self.knowledge.retrieve(&vector));
                let valid_at = self.knowledge.epoch;
                self.in_flight.push_back(Basis { vector, support, valid_at });
            }
            Step::Answer { oldest } => {
                let answered = if *oldest { self.in_flight.pop_front() } else { self.in_flight.pop_back() };
                let Some(basis) = answered else { return };
                let id = self.next_entry;
                self.next_entry += 1;
                self.valid.insert(id, basis.clone());
                self.propose(id, basis, false);
            }
            Step::Forget => {
                let seen = self.in_flight.iter().map(|basis| basis.valid_at).min().unwrap_or(self.knowledge.epoch);
                self.tell(vec![KnowledgeUpdate::SeenByAll { epoch: seen }]);
            }
            Step::Restart { unseen } => self.restart(unseen, window_max),
        }
    }

    /// Ends the epoch, waits until it has passed, and does what the keeper wants.
    fn pass(&mut self) {
        self.now += 1;
        self.inputs.advance_to(self.now);
        while self.setup.probe.less_than(&self.now) {
            self.worker.step();
        }
        self.setup.keeper.borrow_mut().pass(|_| true);
        let effects = self.setup.keeper.borrow_mut().take_effects(|_| true);
        for (claim, support) in effects.withdrawn {
            self.inputs.withdraw(self.setup.worker, claim, &support);
        }
        self.stored.extend(effects.kept.into_iter().map(|entry| (entry.id.0, entry)));
        for id in effects.forgotten {
            self.stored.remove(&id.0);
        }
        self.validated = self.knowledge.epoch;
        let knowledge = &self.knowledge;
        self.valid.retain(|_, basis| knowledge.holds(basis));
    }

    fn restart(&mut self, unseen: &[(u8, Vec<u8>)], window_max: usize) {
        // Answers that were being written are lost with the process.
        self.in_flight.clear();
        for (article, contents) in unseen {
            self.knowledge.write(*article, contents);
        }
        let limits = ShardLimits { bytes_max: usize::MAX, tenant_bytes_max: usize::MAX, ttl_ms: None, similar: false };
        self.shard = Rc::new(RefCell::new(Shard::new(limits, policy())));
        let (inputs, setup) = put_up(self.worker, &self.shard, window_max);
        (self.inputs, self.setup, self.now) = (inputs, setup, 0);
        if self.is_leader() {
            for present in self.knowledge.present.values() {
                if present.since > self.validated {
                    self.inputs.knowledge(added(present));
                } else {
                    self.inputs.present(present.key());
                }
            }
        }
        for (id, entry) in self.stored.clone() {
            let basis = Basis {
                vector: entry.vector.clone().expect("a vector"),
                support: entry.support.clone(),
                valid_at: entry.support.read_epoch,
            };
            self.propose(id, basis, true);
        }
    }

    fn served(&self) -> BTreeSet<u64> {
        let shard = self.shard.borrow();
        (0..self.next_entry).filter(|&id| shard.get(EntryId(id)).is_some()).collect()
    }
}

fn put_up(worker: &mut timely::worker::Worker, shard: &Rc<RefCell<Shard>>, window_max: usize) -> (Inputs, Setup) {
    let setup = Setup {
        worker: worker.index() as u64,
        keeper: Rc::new(RefCell::new(Keeper::new(shard.clone()))),
        topk: Rc::new(RefCell::new(TopK::new(Axes::default(), window_max))),
        tally: Rc::default(),
        probe: Handle::new(),
    };
    let mut inputs = Inputs::default();
    worker.dataflow::<u64, _, _>(|scope| validity(scope, &mut inputs, &setup));
    (inputs, setup)
}

/// Plays a script; after each step, shows what all workers serve together and what the oracle holds to be valid.
fn play(
    workers: usize,
    script: Vec<Step>,
    window_max: usize,
    check: impl Fn(&Step, &BTreeSet<u64>, &BTreeSet<u64>) -> Result<(), String> + Send + Sync + 'static,
) -> Result<(), String> {
    let config = if workers == 1 { timely::Config::thread() } else { timely::Config::process(workers) };
    let (served, barrier) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Barrier::new(workers)));
    let failure = Arc::new(Mutex::new(None));
    let first = failure.clone();
    let guards = timely::execute(config, move |worker| {
        let mut world = World::new(worker, window_max);
        for step in &script {
            world.take(step, window_max);
            world.pass();
            served.lock().expect("lock").extend(world.served());
            barrier.wait();
            if world.is_leader() {
                let served = std::mem::take(&mut *served.lock().expect("lock"));
                let valid = world.valid.keys().copied().collect();
                if let Err(reason) = check(step, &served, &valid) {
                    failure.lock().expect("lock").get_or_insert(reason);
                }
            }
            barrier.wait();
            if failure.lock().expect("lock").is_some() {
                break;
            }
        }
        drop(world);
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
    for result in guards.expect("workers").join() {
        result.expect("no worker panics");
    }
    let reason = first.lock().expect("lock").take();
    reason.map_or(Ok(()), Err)
}

fn check_scripts(cases: u32, workers: usize, window_max: usize, exactly: bool) {
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let scripts = prop::collection::vec(step(), 1..40);
    let result = runner.run(&scripts, |script| {
        play(workers, script, window_max, move |step, served, valid| {
            let right = if exactly { served == valid } else { served.is_subset(valid) };
            if right { Ok(()) } else { Err(format!("after {step:?}: served {served:?}, valid {valid:?}")) }
        })
        .map_err(TestCaseError::fail)
    });
    // The failure carries the shortest script that fails.
    if let Err(error) = result {
        panic!("{workers} workers: {error}");
    }
}

#[test]
fn what_is_served_is_what_holds_with_one_worker() {
    check_scripts(3_000, 1, usize::MAX, true);
}

#[test]
fn what_is_served_is_what_holds_with_two_workers() {
    check_scripts(300, 2, usize::MAX, true);
}

#[test]
fn what_is_served_is_what_holds_with_three_workers() {
    check_scripts(200, 3, usize::MAX, true);
}

#[test]
fn a_window_that_is_too_short_costs_answers_and_never_validity() {
    check_scripts(1_000, 1, 1, false);
}

#[test]
fn the_oracle_can_fail() {
    // A chunk that comes while an answer is being written outdates it, though nothing it rests on has changed.
    let script = vec![
        Step::Write { article: 0, contents: vec![0] },
        Step::Ask { vector: 255 },
        Step::Write { article: 1, contents: vec![1] },
        Step::Answer { oldest: true },
        Step::Ask { vector: 255 },
        Step::Answer { oldest: true },
    ];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    play(1, script, 10, move |_, served, valid| {
        log.lock().expect("lock").push((served.clone(), valid.clone()));
        Ok(())
    })
    .expect("nothing is checked");
    let seen = seen.lock().expect("lock");
    assert!(seen[3].0.is_empty() && seen[3].1.is_empty(), "the late answer is neither valid nor served");
    assert_eq!(seen[5], (BTreeSet::from([1]), BTreeSet::from([1])));
}

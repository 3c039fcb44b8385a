//! Generate: has a tier write the answer, streams its pieces, and says what the answer rests on.
//!
//! Turns wait here in a [queue](crate::prioritise::Queue) for each tier, because only here it is known when a tier has
//! room; a tier's own queue is short, so that the order is decided here. A turn whose deadline comes before a tier could have
//! answered it, as fast as it was of late, is not started, nor one whose client has left. Where the small tier has no good answer, the large one is asked once
//! in its place.
//!
//! An answer that leans on the conversation is not offered to the cache, nor one that another tier would have written but for the
//! load; one that was not found in the knowledge base, or was cut off, only for the same words.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use turnflow_models::{Lane, ModelError, TierHandle, TierRequest};
use turnflow_state::{
    Answer, CacheEntry, CacheLevel, EntryId, LoadLevel, Reach, Stage as StageName, Support, TierSize, TurnError,
    TurnErrorKind, TurnEvent, Usage, Verdict, wait_text,
};

use crate::audience::Audiences;
use crate::clients::{Clients, Leavers, abandoned};
use crate::deadline::late;
use crate::jobs::{Came, Jobs, Report};
use crate::load::{Backlog, Load};
use crate::message::{Ask, Basis, Beginning, Ending, Exchange, Notice, Outcome, Served, Spent, ToCommit, Writer};
use crate::prioritise::{Class, Queue, QueueLimits, crowded};
use crate::shell::{Stage, Wake};

/// Above every cosine: no new chunk outdates an answer with such a last score.
const NEVER: f32 = 2.0;
/// Shortest and longest time after which who met a server that is left alone is told to come back, in milliseconds. The server may ask for
/// more.
const RETRY_MS: (u64, u64) = (500, 3_600_000);

/// An answer, or why there is none.
pub type Generated = Result<Answer, ModelError>;

/// Whatever writes answers.
pub trait Generator: 'static {
    /// Has the tier of this size take a request, report pieces and then the answer; false when it is full for now.
    fn generate(&self, size: TierSize, lane: Lane, request: TierRequest, report: Report<String, Generated>) -> bool;
}

/// The tiers that answer.
#[derive(Clone, Debug)]
pub struct Tiers {
    /// The large one, or the only one.
    pub large: TierHandle,
    /// The small one, where turns are routed.
    pub small: Option<TierHandle>,
}

impl Tiers {
    /// The tier of a size: the only one, where there is one.
    #[must_use]
    pub fn of(&self, size: TierSize) -> &TierHandle {
        self.small.as_ref().filter(|_| size == TierSize::Small).unwrap_or(&self.large)
    }
}

impl Generator for Tiers {
    fn generate(&self, size: TierSize, lane: Lane, request: TierRequest, report: Report<String, Generated>) -> bool {
        let pieces = report.pieces();
        let on_delta = Box::new(move |piece| pieces.send(piece));
        self.of(size).submit(lane, request, on_delta, Box::new(move |result| report.finish(result))).is_ok()
    }
}

/// What the stage keeps to.
#[derive(Clone, Debug)]
pub struct GenerateSettings {
    /// What a tier reads of what was retrieved.
    pub reach: Reach,
    /// Order and bounds of each tier's queue.
    pub queue: QueueLimits,
    /// Whether there are two tiers.
    pub routed: bool,
    /// Whether the large tier is asked where the small one has no good answer.
    pub escalate: bool,
    /// The first of the two numbers that its queues have for the load.
    pub number: usize,
}

/// What stands in front of one tier.
#[derive(Debug)]
struct Gate {
    queue: Queue,
    /// Jobs under way, by lane.
    under_way: [usize; Lane::ALL.len()],
    /// Answers to turns that begin a conversation.
    new_served: u64,
    /// How long the fastest answers take of late, in microseconds; None before there was one.
    fastest_us: Option<u64>,
    /// The lane in which the tier had no room.
    full: Option<Lane>,
}

impl Gate {
    fn new(limits: &QueueLimits) -> Self {
        let queue = Queue::new(limits.clone());
        Self { queue, under_way: Default::default(), new_served: 0, fastest_us: None, full: None }
    }

    /// Takes in that an answer took so long.
    fn answered_in(&mut self, elapsed_us: u64) {
        // Forgets slowly, so that one short answer does not stand for all.
        let kept_us = self.fastest_us.map_or(u64::MAX, |fastest_us| fastest_us + fastest_us / 16 + 1);
        self.fastest_us = Some(elapsed_us.min(kept_us));
    }

    /// The least time that an answer will take, in microseconds. A tier that is idle is tried, however slow it was.
    fn needs_us(&self) -> u64 {
        if self.under_way == [0; Lane::ALL.len()] { 0 } else { self.fastest_us.unwrap_or(0) }
    }
}

/// A turn that a tier has.
#[derive(Debug)]
struct Started {
    ask: Box<Ask>,
    lane: Lane,
    /// What was told of its answer, in bytes.
    told_bytes: Cell<usize>,
}

/// The core.
#[derive(Debug)]
pub struct Generate<G> {
    generator: G,
    clients: Clients,
    leavers: Leavers,
    settings: GenerateSettings,
    jobs: Jobs<Started, String, Generated>,
    gates: [Gate; TierSize::ALL.len()],
    load: Load,
    audiences: Audiences,
    /// Turns that were given up before they were started; told by `poll`.
    given_up: VecDeque<Outcome>,
}

impl<G: Generator> Generate<G> {
    /// A stage in front of tiers, with those who hear the pieces of its turns.
    #[must_use]
    pub fn new(generator: G, settings: GenerateSettings, load: Load, audiences: Audiences, wake: &Wake) -> Self {
        audiences.joined.deliver_to(wake.clone());
        let gates = [Gate::new(&settings.queue), Gate::new(&settings.queue)];
        let (jobs, clients, leavers) = (Jobs::new(wake), Clients::default(), Leavers::new(wake));
        Self { generator, clients, leavers, settings, jobs, gates, load, audiences, given_up: VecDeque::new() }
    }

    /// The same for clients that may leave: a tier need not finish what it writes for them.
    #[must_use]
    pub fn for_clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }

    fn wait(&mut self, ask: Box<Ask>) {
        self.leavers.watch(&ask, &self.clients);
        for ask in self.gates[ask.size as usize].queue.push(ask) {
            let retry_after_ms = self.load.lock().retry_after_ms();
            self.given_up.push_back(crowded(ask, retry_after_ms));
        }
    }

    /// Gives up the turns that wait and that nobody waits for any more.
    fn abandon(&mut self) {
        let remove = |request| self.gates.iter_mut().find_map(|gate| gate.queue.remove(request));
        self.given_up.extend(self.leavers.ends(&self.load, remove));
    }

    fn start_waiting(&mut self, size: TierSize, now_us: u64) {
        let Self { generator, clients, jobs, gates, given_up, .. } = self;
        let gate = &mut gates[size as usize];
        given_up.extend(gate.queue.extract_late(now_us + gate.needs_us()).into_iter().map(late));
        gate.full = None;
        loop {
            let turn = gate.queue.pop(now_us);
            let next = turn.or_else(|| Some((Lane::Background, gate.queue.pop_background()?)));
            let Some((lane, mut ask)) = next else { break };
            let (waited_since, booked) = (ask.entered_us, ask.latency);
            ask.left(StageName::Prioritise, now_us);
            ask.entered_us = now_us;
            let started = Started { ask, lane, told_bytes: Cell::new(0) };
            let started = jobs.start(started, |started, report| {
                generator.generate(size, lane, request(&started.ask, clients, now_us), report)
            });
            if let Err(Started { mut ask, .. }) = started {
                // Its wait goes on.
                (ask.entered_us, ask.latency) = (waited_since, booked);
                gate.full = Some(lane);
                gate.queue.put_back(ask);
                break;
            }
            gate.under_way[lane as usize] += 1;
        }
    }

    /// Takes in the end of a job: the end of its turn, or the large tier's turn.
    fn came(&mut self, started: Started, result: Option<Generated>, now_us: u64, out: &mut Vec<ToCommit>) {
        let Started { mut ask, lane, told_bytes } = started;
        let gate = &mut self.gates[ask.size as usize];
        gate.under_way[lane as usize] -= 1;
        gate.new_served += u64::from(Class::of(&ask) == Class::New && !ask.purpose.is_background());
        if matches!(result, Some(Ok(_))) {
            gate.answered_in(now_us.saturating_sub(ask.entered_us));
        }
        ask.left(StageName::Generate, now_us);
        ask.used[ask.size as usize] = used(&ask, result.as_ref(), told_bytes.get());
        if self.settings.escalate
            && ask.wishes.size.is_none()
            && ask.size == TierSize::Small
            && let Some(reason) = self.wants_more(&ask, result.as_ref(), now_us)
        {
            (ask.size, ask.degraded, ask.promised) = (TierSize::Large, false, true);
            ask.entered_us = now_us;
            if let Some(route) = &mut ask.route {
                (route.size, route.escalated, route.reason) = (TierSize::Large, true, reason.to_owned());
            }
            return self.wait(ask);
        }
        // Two tiers that fail at one turn have failed once.
        ask.failures += u8::from(is_failure(&ask, result.as_ref(), now_us));
        self.audiences.close(ask.request, out);
        out.push(ToCommit::End(ended(ask, result, self.settings.reach, now_us)));
    }

    /// Why the large tier is to be asked after the small one, if it is. Under load it is not for what it was spared, nor because
    /// the small one has too much to do.
    fn wants_more(&self, ask: &Ask, result: Option<&Generated>, now_us: u64) -> Option<&'static str> {
        match result {
            Some(Ok(_)) if ask.degraded => None,
            Some(Ok(answer)) if !answer.grounded => Some("the small tier found no answer"),
            Some(Ok(answer)) => answer.cut_off.then_some("the small tier's answer was cut off"),
            Some(Err(ModelError::Cancelled)) => None,
            Some(Err(ModelError::Late { .. })) if is_due(ask, now_us) => None,
            Some(Err(error)) if error.is_overload() && self.load.lock().level(now_us) > LoadLevel::Normal => None,
            Some(Err(_)) | None => Some("the small tier failed"),
        }
    }

    fn tell_load(&self, now_us: u64) {
        let mut load = self.load.lock();
        for (&size, Gate { queue, new_served, full, .. }) in TierSize::ALL.iter().zip(&self.gates) {
            let backlog = Backlog {
                takes_new: size == TierSize::Small || !self.settings.routed,
                new_served: *new_served,
                is_full: full.is_some_and(|lane| lane != Lane::Background),
                ..queue.backlog()
            };
            load.observe(self.settings.number + size as usize, backlog, now_us);
        }
    }
}

/// Whether the caller's own deadline is here: an engine that keeps to it may say so in the same microsecond.
fn is_due(ask: &Ask, now_us: u64) -> bool {
    ask.deadline_us.is_some_and(|deadline_us| deadline_us <= now_us)
}

fn request(ask: &Ask, clients: &Clients, now_us: u64) -> TierRequest {
    let (question, vector) = (ask.turn.text.clone(), ask.vector.clone().unwrap_or_default());
    let history = if ask.leans { ask.history.clone() } else { Vec::new() };
    let cancel = clients.cancel(ask);
    let waited_us = if ask.purpose.is_background() { 0 } else { now_us.saturating_sub(ask.admitted_us) };
    let waited = Duration::from_micros(waited_us);
    let within = |deadline_us: u64| Duration::from_micros(deadline_us.saturating_sub(ask.admitted_us));
    let time_max = ask.deadline_us.map(within);
    TierRequest { history, cancel, waited, time_max, ..TierRequest::new(question, vector, ask.retrieved.clone()) }
}

impl<G: Generator> Stage for Generate<G> {
    type Input = Box<Ask>;
    type Output = ToCommit;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, _out: &mut Vec<ToCommit>) {
        ask.entered_us = now_us;
        self.settings.reach.cut(&mut ask.retrieved);
        self.wait(ask);
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<ToCommit>) {
        while let Some(came) = self.jobs.next_event() {
            match came {
                Came::Piece(Started { ask, .. }, _) if ask.purpose.is_background() => {}
                Came::Piece(Started { ask, told_bytes, .. }, piece) => {
                    told_bytes.update(|bytes| bytes + piece.len());
                    self.audiences.said(Writer::of(ask), &piece, out);
                    out.push(piece_of(ask, piece));
                }
                Came::Last(started, result) => self.came(started, result, now_us, out),
            }
        }
        self.audiences.catch_up(out);
        self.abandon();
        TierSize::ALL.iter().for_each(|&size| self.start_waiting(size, now_us));
        for mut outcome in std::mem::take(&mut self.given_up) {
            outcome.ask.left(StageName::Prioritise, now_us);
            self.audiences.close(outcome.ask.request, out);
            out.push(ToCommit::End(outcome));
        }
        self.tell_load(now_us);
    }

    fn held(&self) -> usize {
        self.gates.iter().map(|gate| gate.queue.len()).sum::<usize>() + self.given_up.len() + self.jobs.len()
    }

    fn stalled(&self) -> bool {
        // What comes back in a lane makes room there, and wakes the stage.
        self.gates.iter().any(|gate| gate.full.is_some_and(|lane| gate.under_way[lane as usize] == 0))
    }

    fn due_us(&self) -> Option<u64> {
        self.gates.iter().filter_map(|gate| Some(gate.queue.deadline_us()?.saturating_sub(gate.needs_us()))).min()
    }
}

fn piece_of(ask: &Ask, piece: String) -> ToCommit {
    let beginning = Some(Beginning { level: level_of(ask), size: ask.size });
    let (request, admitted_us, writer) = (ask.request, ask.admitted_us, Some(Writer::of(ask)));
    let event = TurnEvent::Delta(piece);
    let notice = Notice { request, admitted_us, event, writer, beginning, spent: Spent::default(), repeated: false };
    ToCommit::Piece(notice, ask.conversation_owner())
}

/// What a tier took for a turn, of whose answer it told so many bytes; estimated, where there is none. One that was stopped in the middle had
/// begun, so it has read what it was given, though it may have told nothing; one that failed without a word counts as not having read.
fn used(ask: &Ask, result: Option<&Generated>, told_bytes: usize) -> Usage {
    let has_read = match result {
        Some(Ok(answer)) => return answer.usage,
        None | Some(Err(ModelError::Cancelled | ModelError::Late { .. })) => true,
        Some(Err(_)) => told_bytes > 0,
    };
    Usage::estimated(if has_read { given_bytes(ask) } else { 0 }, told_bytes)
}

/// Whether a tier failed at a turn, or took too long, by no fault of the turn's own: its question, its deadline, or its client's leaving.
fn is_failure(ask: &Ask, result: Option<&Generated>, now_us: u64) -> bool {
    match result {
        Some(Ok(_) | Err(ModelError::Cancelled | ModelError::PromptTooLong { .. })) => false,
        Some(Err(ModelError::Late { .. })) => !is_due(ask, now_us),
        Some(Err(_)) | None => true,
    }
}

/// What the tier is given to read for a turn, in bytes.
fn given_bytes(ask: &Ask) -> usize {
    let said = if ask.leans { &ask.history[..] } else { &[] };
    let said = said.iter().map(|Exchange { question, answer }| question.len() + answer.len());
    let found = ask.retrieved.iter().map(|found| found.chunk.text.len());
    said.chain(found).chain([ask.turn.text.len()]).sum()
}

fn ended(ask: Box<Ask>, result: Option<Generated>, reach: Reach, now_us: u64) -> Outcome {
    match result {
        Some(Ok(answer)) => {
            let writer = Some(Writer::of(&ask));
            served(ask, answer, Some(reach), writer)
        }
        Some(Err(ModelError::Cancelled)) => abandoned(ask),
        Some(Err(ModelError::Late { .. })) if is_due(&ask, now_us) => late(ask),
        Some(Err(ModelError::Late { .. })) => {
            ungenerated(ask, TurnErrorKind::Overloaded, "no answer could be written in time")
        }
        Some(Err(ModelError::PromptTooLong { tokens, limit })) => {
            let message =
                format!("the question has too many tokens: with what goes with it {tokens}, at most {limit} fit");
            ungenerated(ask, TurnErrorKind::Invalid, &message)
        }
        Some(Err(error)) if error.is_overload() => Outcome::failed(ask, untaken(error.retry_after())),
        // The tier has told the log why.
        Some(Err(_)) | None => ungenerated(ask, TurnErrorKind::Internal, "no answer could be written"),
    }
}

/// What is told of a model that cannot be asked now, and may be after so long.
fn untaken(retry_after: Option<Duration>) -> TurnError {
    let message = "the model takes no questions at present";
    let Some(wait) = retry_after else { return TurnError::new(TurnErrorKind::Overloaded, message) };
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).clamp(RETRY_MS.0, RETRY_MS.1);
    TurnError::overloaded(format!("{message}; try again in {}", wait_text(wait_ms)), wait_ms)
}

fn ungenerated(ask: Box<Ask>, kind: TurnErrorKind, message: &str) -> Outcome {
    Outcome::failed(ask, TurnError::new(kind, message))
}

/// What the verdict says of a turn that no cache answered.
fn level_of(ask: &Ask) -> CacheLevel {
    if ask.may_read_cache() { CacheLevel::Miss } else { CacheLevel::Bypass }
}

/// The end of a turn that was answered afresh, with what its answer rests on: the chunks that were read, within `reach`. A scripted
/// answer has none: it rests on no chunk, and no chunk can make it invalid.
pub(crate) fn served(mut ask: Box<Ask>, answer: Answer, reach: Option<Reach>, writer: Option<Writer>) -> Outcome {
    let answer = Arc::new(answer);
    // Commit needs none of it, and it may cross to another worker.
    let (read, vector) = (std::mem::take(&mut ask.retrieved), ask.vector.take());
    let basis = vector.filter(|_| !ask.leans).map(|vector| Basis {
        vector,
        support: Arc::new(match reach {
            Some(reach) => Support::of(&read, reach, ask.read_epoch),
            None => Support { chunks: Vec::new(), floor: NEVER, read_epoch: ask.read_epoch },
        }),
        valid_at: ask.read_epoch,
    });
    let cacheable = basis.as_ref().filter(|_| ask.may_write_cache());
    // Where answer and retrieval disagree, nothing is clear.
    let cited = answer.sources.first().map(|source| &source.article_id);
    let about = ask.about.take().filter(|article| cited == Some(article));
    let offer = cacheable.map(|basis| {
        Box::new(CacheEntry {
            // Given at commit, which numbers the entries that are written.
            id: EntryId(0),
            scope: ask.key.scope,
            question: ask.turn.text.clone(),
            vector: Some(basis.vector.clone()),
            answer: answer.clone(),
            support: basis.support.clone(),
            origin: ask.turn.key(),
            about: about.clone(),
            refreshed: false,
            created_ms: ask.turn.at_ms,
        })
    });
    let level = level_of(&ask);
    let reason = match level {
        CacheLevel::Miss => std::mem::take(&mut ask.missed),
        _ if ask.leans => "it leans on earlier turns of the conversation".to_owned(),
        _ => "the caller asked for it".to_owned(),
    };
    let route = ask.route.take();
    let verdict = Verdict { route, ..Verdict::new(level, reason) };
    Outcome { ask, ending: Ending::Served(Box::new(Served { answer, verdict, basis, offer, writer })) }
}

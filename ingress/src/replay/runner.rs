//! Submits the turns of a log and hands their results on in the log's order.
//!
//! Two halves run side by side. *Feed* reads turns, waits for their time and for a free place, and submits them one after
//! another, so that the turns of a conversation reach the pipeline in order. *Collect* brings results back into the log's
//! order. Three bounds hold them together, and feeding pauses at each: turns in flight, turns in flight of one
//! conversation, and results that wait for an earlier one ([`RESULTS_WAITING_MAX`]).
//!
//! With a fixed schedule a turn's latency counts from the time it was due, so that time spent waiting for a place is not
//! lost from the figures.
//!
//! Edits of the knowledge base are made beside them by the editor, when feed tells it to: before the first
//! turn that is not earlier than the edit. At full speed, feed first waits until every turn before has ended, and goes on
//! when the edit is acknowledged, so that every turn sees exactly the knowledge base of its time, and when what it took out
//! of the caches is answered anew, for which there are minutes on the log's clock. On a schedule it waits for nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io::{self, BufRead};
use std::sync::{Arc, Weak};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use turnflow_pipeline::{AuditStats, BoundStats, RefreshStats, SubmitError};
use turnflow_state::{CacheControl, ConversationId, Store, TenantId, Turn, TurnError, TurnErrorKind, TurnId};

use super::answers::{Answers, last_event};
use super::changes::Changes;
use super::editor::{Editor, Order};
use super::gold::Gold;
use super::ledger::{Ledger, TurnName};
use super::log::{LogReader, LogTurn, at_ms};
use super::results::TurnResult;
use super::speed::{Schedule, Speed};
use super::tally::{Moment, Tally};
use super::updates::{Edit, Updates};
use crate::lines::BadLine;

/// Results that may wait for an earlier turn's before feeding pauses.
pub const RESULTS_WAITING_MAX: usize = 4_096;

/// Lines that are read ahead.
const LINES_AHEAD_MAX: usize = 256;

/// What to do about a line that is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnBadLine {
    /// Submit no further turns; those in flight are still answered and written.
    Stop,
    /// Pass over it and count it.
    Skip,
}

/// How a log is replayed.
pub struct Plan {
    /// How fast.
    pub speed: Speed,
    /// What to do about bad lines.
    pub on_bad_line: OnBadLine,
    /// Turns in flight at most.
    pub in_flight_max: usize,
    /// Turns in flight of one conversation at most.
    pub in_flight_per_conversation_max: usize,
    /// Whose conversations they are.
    pub tenant: TenantId,
    /// Where answers of an earlier run may lie; only asked to tell them apart.
    pub earlier: Option<Store>,
}

/// Where a replay's results go.
pub trait Sink {
    /// Takes the next result in the log's order, with its label if it has one.
    ///
    /// # Errors
    /// Ends the replay.
    fn result(&mut self, result: &TurnResult, gold: Option<&Gold>) -> io::Result<()>;

    /// No further result is there right now: a good moment to flush.
    ///
    /// # Errors
    /// Ends the replay.
    fn pause(&mut self) -> io::Result<()>;

    /// Hears of a line that is no turn.
    fn bad_line(&mut self, bad: &BadLine);
}

/// Why a replay ended before its log did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A line is no turn.
    BadLine(BadLine),
    /// The user asked for it.
    Interrupted,
    /// The pipeline takes no turns any more.
    ShuttingDown,
}

/// How a replay ended.
pub struct Ending {
    /// Lines passed over.
    pub lines_skipped: u64,
    /// Why it ended early, if it did.
    pub stop: Option<Stop>,
    /// Everything counted.
    pub tally: Tally,
    /// What the edits did, when there were any to make.
    pub changes: Option<Changes>,
    /// What was answered anew in the background.
    pub refresh: RefreshStats,
    /// What was audited in the background, and what followed.
    pub audits: (AuditStats, BoundStats),
}

/// What was spent on what nobody waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Background {
    /// Tokens that tiers read and wrote.
    pub tokens: u64,
    /// What they cost, in millionths of the configured currency.
    pub cost_micros: u64,
}

impl Background {
    /// What answering anew and audits spent.
    #[must_use]
    pub const fn of(refresh: &RefreshStats, audits: &AuditStats) -> Self {
        let tokens = refresh.input_tokens + refresh.output_tokens + audits.input_tokens + audits.output_tokens;
        Self { tokens, cost_micros: refresh.cost_micros + audits.cost_micros }
    }
}

/// Replays a log, and the edits of its knowledge base if they are given. When `interrupt` completes, no further turns are
/// submitted, and those in flight are waited for.
///
/// # Errors
/// When the log cannot be read, an edit cannot be made, or the sink fails.
pub async fn run<A: Answers, R: BufRead + Send + 'static>(
    log: LogReader<R>,
    answers: &A,
    plan: &Plan,
    updates: Option<&Updates>,
    sink: &mut dyn Sink,
    interrupt: impl Future<Output = ()>,
) -> anyhow::Result<Ending> {
    let shared = Shared {
        ledger: RefCell::default(),
        tally: RefCell::new(Tally::new()),
        changes: RefCell::default(),
        sink: RefCell::new(sink),
    };
    let (results, arrivals) = mpsc::unbounded_channel(); // bounded by the permits that every result holds
    let (orders, ordered) = mpsc::unbounded_channel(); // bounded by the edits there are
    let mut feed = Feed {
        answers,
        plan,
        shared: &shared,
        results,
        edits: updates.map_or(&[], |updates| &updates.edits),
        orders,
        in_flight: Arc::new(Semaphore::new(plan.in_flight_max)),
        conversations: HashMap::new(),
        waiting: Arc::new(Semaphore::new(plan.in_flight_max + RESULTS_WAITING_MAX)),
        submitted: 0,
        lines_skipped: 0,
    };
    let feed = async move {
        let stop = tokio::select! {
            stop = feed.run(read_ahead(log)?) => stop?,
            () = interrupt => Some(Stop::Interrupted),
        };
        let lines_skipped = feed.lines_skipped;
        // Without the feed's ends of the channels, the collector ends after the last answer, and the editor after the
        // last edit.
        drop(feed);
        Ok((lines_skipped, stop))
    };
    let edit = async {
        let Some(updates) = updates else { return Ok(()) };
        let (ledger, changes) = (&shared.ledger, &shared.changes);
        Editor { answers, tenant: &plan.tenant, updates, ledger, changes }.run(ordered).await
    };
    let started = Instant::now();
    let ((lines_skipped, stop), (), ()) = tokio::try_join!(feed, edit, collect(arrivals, &shared))?;
    let Shared { ledger, tally, changes, .. } = shared;
    let mut tally = tally.into_inner();
    let elapsed = started.elapsed();
    answers.audited().await;
    let (refresh, audits) = (answers.refresh_stats(), answers.audit_stats());
    let in_background = Background::of(&refresh, &audits.0);
    tally.finish(&mut ledger.into_inner(), in_background, elapsed);
    let changes = updates.map(|updates| changes.into_inner().finish(updates.edits.len()));
    Ok(Ending { lines_skipped, stop, tally, changes, refresh, audits })
}

/// State of feed, collect and editor, which are polled by one task and never hold a borrow while they wait.
struct Shared<'s> {
    ledger: RefCell<Ledger>,
    tally: RefCell<Tally>,
    changes: RefCell<Changes>,
    sink: RefCell<&'s mut dyn Sink>,
}

/// A turn that was answered.
struct Arrival {
    sequence: u64,
    name: TurnName,
    gold: Option<Gold>,
    result: TurnResult,
    moment: Moment,
    /// What edits before the turn took out of the article that it is about.
    taken_out: Option<Arc<[String]>>,
    _waiting: OwnedSemaphorePermit,
}

type Line = io::Result<Result<LogTurn, BadLine>>;

/// Reads the log on a thread of its own: a slow disk or a pipe must not hold up answers.
fn read_ahead<R: BufRead + Send + 'static>(mut log: LogReader<R>) -> anyhow::Result<mpsc::Receiver<Line>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD_MAX);
    std::thread::Builder::new()
        .name("turnflow-log".to_owned())
        .spawn(move || {
            while let Some(line) = log.next_turn().transpose() {
                let last = line.is_err();
                if sender.blocking_send(line).is_err() || last {
                    break;
                }
            }
        })
        .context("cannot start a thread that reads the log")?;
    Ok(lines)
}

struct Feed<'a, 's, A> {
    answers: &'a A,
    plan: &'a Plan,
    shared: &'a Shared<'s>,
    results: mpsc::UnboundedSender<Arrival>,
    /// Edits whose time has not come.
    edits: &'a [Edit],
    orders: mpsc::UnboundedSender<Order<'a>>,
    in_flight: Arc<Semaphore>,
    /// Places of each conversation; those with turns in flight are alive.
    conversations: HashMap<ConversationId, Weak<Semaphore>>,
    waiting: Arc<Semaphore>,
    submitted: u64,
    lines_skipped: u64,
}

impl<'a, A: Answers> Feed<'a, '_, A> {
    async fn run(&mut self, mut lines: mpsc::Receiver<Line>) -> anyhow::Result<Option<Stop>> {
        let mut schedule = match self.plan.speed {
            Speed::Max => None,
            Speed::Times(factor) => Some(Schedule::new(factor)),
        };
        while let Some(line) = lines.recv().await {
            let fed = match line.context("cannot read the log")? {
                Ok(turn) => {
                    self.edit_until(turn.at, schedule.as_mut()).await?;
                    self.turn(turn, schedule.as_mut()).await?
                }
                Err(bad) => Fed::Bad(bad),
            };
            match fed {
                Fed::Submitted => {}
                Fed::ShuttingDown => return Ok(Some(Stop::ShuttingDown)),
                Fed::Bad(bad) => {
                    self.shared.sink.borrow_mut().bad_line(&bad);
                    if self.plan.on_bad_line == OnBadLine::Stop {
                        return Ok(Some(Stop::BadLine(bad)));
                    }
                    self.lines_skipped += 1;
                }
            }
        }
        Ok(None)
    }

    /// Has the edits made that are not later than a turn, which is the next.
    async fn edit_until(&mut self, at: Timestamp, mut schedule: Option<&mut Schedule>) -> anyhow::Result<()> {
        if let Some(schedule) = &mut schedule {
            schedule.begin(at, Instant::now());
        }
        while let Some((edit, later)) = self.edits.split_first().filter(|(edit, _)| edit.at <= at) {
            self.edits = later;
            let Some(schedule) = &mut schedule else {
                self.edit_alone(edit).await?;
                continue;
            };
            sleep_until(schedule.due(edit.at, Instant::now())).await;
            // Nobody listens when the editor has failed, which ends the replay.
            let _ignored = self.orders.send(Order { edit, made: None });
        }
        Ok(())
    }

    /// Has an edit made between the turns before and those after.
    async fn edit_alone(&self, edit: &'a Edit) -> anyhow::Result<()> {
        let places = u32::try_from(self.plan.in_flight_max).unwrap_or(u32::MAX);
        let _nothing_in_flight = self.in_flight.acquire_many(places).await?;
        let (made, acknowledged) = oneshot::channel();
        let _ignored = self.orders.send(Order { edit, made: Some(made) });
        acknowledged.await.context("the editor has failed")
    }

    /// Submits one turn at its time.
    async fn turn(&mut self, turn: LogTurn, schedule: Option<&mut Schedule>) -> anyhow::Result<Fed> {
        let bad = |reason: String| Fed::Bad(BadLine { file: Arc::clone(&turn.file), line: turn.line, reason });
        let name = TurnName::of(&turn.conversation, turn.turn);
        let keys = turn.gold.as_ref().map(|gold| gold.keys);
        if !self.shared.ledger.borrow_mut().admit(name, keys) {
            let reason = format!("turn {} of conversation {} was already given", turn.turn, turn.conversation);
            return Ok(bad(reason));
        }
        let waiting = Arc::clone(&self.waiting).acquire_owned().await?;
        let in_flight = [
            Arc::clone(&self.in_flight).acquire_owned().await?,
            self.places_of(&turn.conversation).acquire_owned().await?,
        ];
        let since = match schedule {
            None => Instant::now(),
            Some(schedule) => {
                let due = schedule.due(turn.at, Instant::now());
                sleep_until(due).await;
                due
            }
        };
        let taken_out = self.shared.changes.borrow().taken_out(turn.gold.as_ref());
        let request = self.request(&turn)?;
        let answered_before = match &self.plan.earlier {
            Some(store) => store.turn(&request.key())?.is_some(),
            None => false,
        };
        let submission = match self.answers.submit(request).await {
            Err(SubmitError::Invalid { field, message }) => return Ok(bad(format!("{field}: {message}"))),
            Err(SubmitError::ShuttingDown) => return Ok(Fed::ShuttingDown),
            Err(error) => Err(TurnError::new(TurnErrorKind::Overloaded, error.to_string())),
            Ok(stream) => Ok(stream),
        };
        let (results, sequence) = (self.results.clone(), self.submitted);
        self.submitted += 1;
        tokio::spawn(async move {
            let outcome = match submission {
                Ok(stream) => last_event(stream).await,
                Err(error) => Err(error),
            };
            let total_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            drop(in_flight);
            let moment = Moment { at: turn.at, made_up: turn.made_up };
            let LogTurn { conversation, turn, text, gold, .. } = turn;
            let result = TurnResult { conversation, turn, question: text, outcome, answered_before, total_us };
            // The receiver is gone only when the replay has failed already.
            let _ignored = results.send(Arrival { sequence, name, gold, result, moment, taken_out, _waiting: waiting });
        });
        Ok(Fed::Submitted)
    }

    /// The places of a conversation. Those of conversations without turns in flight are forgotten now and then.
    fn places_of(&mut self, conversation: &ConversationId) -> Arc<Semaphore> {
        if let Some(places) = self.conversations.get(conversation).and_then(Weak::upgrade) {
            return places;
        }
        if self.conversations.len() > 2 * self.plan.in_flight_max {
            self.conversations.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(self.plan.in_flight_per_conversation_max));
        self.conversations.insert(conversation.clone(), Arc::downgrade(&places));
        places
    }

    fn request(&self, turn: &LogTurn) -> anyhow::Result<Turn> {
        Ok(Turn {
            tenant: self.plan.tenant.clone(),
            conversation: turn.conversation.clone(),
            id: TurnId::new(turn.turn.to_string())?,
            channel: turn.channel,
            text: turn.text.clone(),
            at_ms: at_ms(turn.at),
            cache_control: CacheControl::Default,
        })
    }
}

/// What became of a line.
enum Fed {
    Submitted,
    Bad(BadLine),
    ShuttingDown,
}

/// Brings results back into the log's order and hands them on.
async fn collect(mut arrivals: mpsc::UnboundedReceiver<Arrival>, shared: &Shared<'_>) -> anyhow::Result<()> {
    let mut early: BTreeMap<u64, Arrival> = BTreeMap::new();
    let mut next = 0;
    while let Some(arrival) = arrivals.recv().await {
        if let Ok(completion) = &arrival.result.outcome {
            let tokens = u64::from(completion.usage.input_tokens) + u64::from(completion.usage.output_tokens);
            shared.ledger.borrow_mut().spend(arrival.name, tokens);
        }
        early.insert(arrival.sequence, arrival);
        while let Some(arrival) = early.remove(&next) {
            next += 1;
            let Arrival { result, gold, moment, taken_out, .. } = &arrival;
            shared.tally.borrow_mut().count(result, *moment, gold.as_ref(), &mut shared.ledger.borrow_mut());
            if let (Ok(completion), Some(taken_out)) = (&result.outcome, taken_out) {
                shared.changes.borrow_mut().check(completion, taken_out);
            }
            shared.sink.borrow_mut().result(result, gold.as_ref()).context("cannot write the results")?;
        }
        if arrivals.is_empty() {
            shared.sink.borrow_mut().pause().context("cannot write the results")?;
        }
    }
    Ok(())
}

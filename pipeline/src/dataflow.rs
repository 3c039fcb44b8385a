//! The dataflow "turns", as one worker puts it up beside "validity".
//!
//! Neither gates the other: they share the worker, its caches and its mailboxes, but no edge.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use timely::dataflow::channels::pact::{Exchange, Pipeline as Local};
use timely::dataflow::operators::probe::Handle;
use timely::dataflow::operators::vec::{Broadcast, Map};
use timely::dataflow::operators::{Concatenate, Exchange as _, OkErr, Probe};
use timely::worker::Worker;
use turnflow_operators::acknowledge::Acknowledge;
use turnflow_operators::audience::Audiences;
use turnflow_operators::audit::{AuditLimits, Sampler};
use turnflow_operators::clients::Clients;
use turnflow_operators::commit::{Commit, Committed, EntryNumbers, GroupedJournal, PriceList};
use turnflow_operators::dedupe::{Boxes, Dedupe, Settle};
use turnflow_operators::embed::Embed;
use turnflow_operators::flights::{Announce, Flights, ToFlights};
use turnflow_operators::generate::{Generate, GenerateSettings};
use turnflow_operators::load::Load;
use turnflow_operators::lookup::{Gather, Lookup, Search, ToGather};
use turnflow_operators::message::{Ask, Ended, Found, Notice, Settlement, Step, ToCommit};
use turnflow_operators::prioritise::Queue;
use turnflow_operators::recall::{Recall, RecallLimits};
use turnflow_operators::refresh::RefreshLimits;
use turnflow_operators::reply::{Deliver, Reply};
use turnflow_operators::retrieve::{PooledRetriever, Retrieve};
use turnflow_operators::route::Route;
use turnflow_operators::shard::{Shard, ShardLimits};
use turnflow_operators::shell::{Mailbox, Turns, stage};
use turnflow_operators::tally::Tallies;
use turnflow_operators::validity::TopK;
use turnflow_operators::{Clock, pool::Pool};
use turnflow_state::{Committer, EntryId, TierSize};

use crate::admission::Streams;
use crate::bridge::Port;
use crate::config::Validity;
use crate::shared::Shared;
use crate::validity::{Driver, Left};
use crate::{Config, Parts, validity};

/// What every worker needs to put up its part.
pub(crate) struct Blueprint {
    pub(crate) config: Config,
    pub(crate) parts: Parts,
    pub(crate) clock: Clock,
    pub(crate) ports: Vec<Port>,
    /// Where questions enter that are asked in the background, by worker.
    pub(crate) background: Vec<Port>,
    pub(crate) streams: Arc<Streams>,
    /// Turns that wait for the answer to a similar question.
    pub(crate) following: Arc<AtomicUsize>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) tallies: Tallies,
    pub(crate) prices: PriceList,
    /// How loaded the process is; each worker has [`QUEUES`] queues.
    pub(crate) load: Load,
    pub(crate) searchers: Pool,
    pub(crate) validity: Arc<Shared>,
    /// What an earlier run left, by worker. Taken when used.
    pub(crate) left: Vec<Mutex<Left>>,
    /// Hears of every worker that has taken in what an earlier run left.
    pub(crate) ready: Mutex<mpsc::Sender<()>>,
    #[cfg(test)]
    pub(crate) fault: validity::Fault,
    /// The greatest entry id ever given.
    pub(crate) last_entry: EntryId,
}

/// Queues of a worker that tell the load: in front of the encoder, and of each tier.
pub(crate) const QUEUES: usize = 1 + TierSize::ALL.len();

/// The end of a turn on its way to its question's shard, or past it.
type Closing = Result<Box<Settlement>, Box<Ended>>;

struct ToStreams(Arc<Streams>);

impl Deliver for ToStreams {
    fn deliver(&self, notice: Notice, elapsed_us: u64) {
        self.0.deliver(notice, elapsed_us);
    }
}

impl Blueprint {
    /// Puts up both dataflows and works until the entrances are closed and everything inside has ended.
    pub(crate) fn work(&self, worker: &mut Worker) {
        let index = worker.index();
        let shard = Rc::new(RefCell::new(Shard::new(self.shard_limits(worker.peers()), self.parts.policy.clone())));
        let boxes = Boxes::default();
        let parts = validity::Parts {
            shared: self.validity.clone(),
            shard: shard.clone(),
            boxes: boxes.clone(),
            committer: self.committer.clone(),
            streams: self.streams.clone(),
            knowledge: self.parts.knowledge.clone(),
            background: self.background[index].clone(),
            refresh: self.refresh_limits(worker.peers()),
            audit: self.audit_limits(worker.peers()),
            exact: self.config.cache.validity == Validity::Exact,
            #[cfg(test)]
            fault: self.fault,
            #[cfg(test)]
            store: self.parts.store.clone(),
        };
        let left = std::mem::take(&mut *self.left[index].lock().unwrap_or_else(PoisonError::into_inner));
        let topk = TopK::new(self.parts.axes.clone(), self.config.knowledge.recent_chunks_max);
        let mut driver = Driver::put_up(worker, parts, topk, left);
        let turns = self.put_up(worker, &shard, &boxes);
        // Who started the pipeline waits for this; should it have given up, the entrances are closed.
        let _ = self.ready.lock().unwrap_or_else(PoisonError::into_inner).send(());
        while !turns.done() {
            if driver.turn() {
                worker.step()
            } else {
                worker.step_or_park(None)
            };
        }
        driver.finish(worker);
    }

    fn shard_limits(&self, workers: usize) -> ShardLimits {
        let cache = &self.config.cache;
        ShardLimits {
            bytes_max: cache.bytes_max.div_ceil(workers),
            tenant_bytes_max: cache.tenant_bytes_max.div_ceil(workers),
            ttl_ms: (cache.ttl_s > 0).then(|| cache.ttl_s.saturating_mul(1_000)),
            similar: cache.semantic,
        }
    }

    fn refresh_limits(&self, workers: usize) -> Option<RefreshLimits> {
        let refresh = &self.config.refresh;
        let limits = RefreshLimits {
            served_min: refresh.served_min,
            queue_max: refresh.queue_max.div_ceil(workers),
            in_flight_max: refresh.in_flight_max,
            tries_max: refresh.tries_max,
        };
        refresh.enabled.then_some(limits)
    }

    fn audit_limits(&self, workers: usize) -> Option<AuditLimits> {
        let audit = &self.config.audit;
        let limits = AuditLimits {
            share: audit.share,
            trusted_after: audit.trusted_after,
            queue_max: audit.queue_max.div_ceil(workers),
            in_flight_max: audit.in_flight_max,
        };
        audit.enabled.then_some(limits)
    }

    /// Puts up the dataflow of turns; the handle tells when its last turn has ended.
    fn put_up(&self, worker: &mut Worker, shard: &Rc<RefCell<Shard>>, boxes: &Boxes) -> Handle<()> {
        let (index, peers) = (worker.index() as u64, worker.peers() as u64);
        let (config, parts, clock) = (&self.config, &self.parts, self.clock);
        let journal = GroupedJournal { store: parts.store.clone(), committer: self.committer.clone() };
        let (releases, audiences) = (Mailbox::default(), Audiences::default());
        let streams = self.streams.clone();
        let clients = Clients::new(move |request| streams.cancel(request.number));
        let semantic = config.cache.semantic;
        let limits = RecallLimits {
            turns_per_conversation_max: config.limits.turns_per_conversation_max,
            history_turns_max: config.conversation.history_turns_max,
        };
        let retriever = PooledRetriever {
            knowledge: parts.knowledge.clone(),
            pool: self.searchers.clone(),
            chunks: config.knowledge.chunks_retrieved,
        };
        let sampler = self.audit_limits(worker.peers());
        let sampler = sampler.map(|limits| Sampler { limits, suspects: boxes.suspects.clone() });
        let number = worker.index() * QUEUES;
        let probe = Handle::new();

        worker.dataflow_named::<(), _, _>("turns", |scope| {
            let conversations = Exchange::new(by_conversation);
            let questions = Exchange::new(by_question);

            let admitted = self.ports[worker_port(index)].stream(scope, self.load.clone(), clock);
            let (recalled, repeated) = stage(admitted, conversations, "recall", clock, |wake| {
                releases.deliver_to(wake.clone());
                Recall::new(parts.store.clone(), limits, releases.clone())
            })
            .ok_err(|step| step);

            let (deduped, word): (Turns<'_, Step>, Turns<'_, ToFlights>) =
                stage(recalled, questions, "dedupe", clock, |wake| {
                    boxes.settled.deliver_to(wake.clone());
                    boxes.resolved.deliver_to(wake.clone());
                    let dedupe = Dedupe::new(shard.clone(), boxes.clone(), config.cache.exact);
                    let dedupe = dedupe.for_clients(clients.clone());
                    Announce::new(dedupe, boxes.word.clone())
                })
                .ok_err(|announced| announced);
            let (leading, deduped) = deduped.ok_err(|step| step);

            let (embedded, unembedded) = stage(leading, Local, "embed", clock, |wake| {
                let queue = Queue::new(config.queue.clone());
                Embed::new(parts.encoder.clone(), queue, self.load.clone(), number, wake).for_clients(clients.clone())
            })
            .ok_err(|step| step);

            // Their vectors are known, and they take no hit.
            let background = self.background[worker_port(index)].stream(scope, self.load.clone(), clock);
            let (retrieved, unretrieved) =
                stage(scope.concatenate([embedded, background]), Local, "retrieve", clock, |wake| {
                    Retrieve::new(retriever, parts.policy.clarity(), wake)
                })
                .ok_err(|step| step);

            let (asking, queries) = stage(retrieved, Local, "lookup", clock, |_| Lookup {
                worker: index,
                enabled: semantic,
                policy: parts.policy.clone(),
                bound: self.validity.audits.bound.clone(),
            })
            .ok_err(|asked| asked);
            let found = stage(queries.broadcast(), Local, "search", clock, |_| Search::new(shard.clone()))
                .exchange(|found: &Found| found.asker)
                .map(|found| ToGather::Reply(Box::new(found)));
            let gathered = scope.concatenate([asking.map(ToGather::Turn), found]);
            let (missed, similar) = stage(gathered, Local, "gather", clock, |_| {
                #[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
                Gather::new(peers as usize, semantic).audited(sampler.clone())
            })
            .ok_err(|step| step);

            let route = Route {
                small_talk: config.small_talk.clone(),
                chooser: parts.chooser.clone(),
                sticky: config.routing.sticky,
                load: self.load.clone(),
            };
            let (routed, scripted) = stage(missed, Local, "route", clock, |_| route).ok_err(|step| step);

            // In the order of their arrival at one worker, so that of two similar ones the second sees the first.
            let joining = semantic && config.cache.join_similar;
            let by_scope = Exchange::new(move |to: &ToFlights| to.owner().filter(|_| joining).unwrap_or(index));
            let flying = scope.concatenate([word, routed.map(ToFlights::Turn)]);
            let (alone, joined) = stage(flying, by_scope, "flights", clock, |_| {
                let bound = self.validity.audits.bound.clone();
                Flights::new(parts.policy.clone(), bound, joining, audiences.clone(), self.following.clone())
                    .audited(sampler.clone())
                    .for_clients(clients.clone())
            })
            .ok_err(|step| step);
            let generated = stage(alone, Local, "generate", clock, |wake| {
                let settings = GenerateSettings {
                    reach: config.knowledge.reach(),
                    queue: config.queue.clone(),
                    routed: parts.tiers.small.is_some(),
                    escalate: parts.tiers.small.is_some() && config.routing.escalate,
                    number: number + 1,
                };
                Generate::new(parts.tiers.clone(), settings, self.load.clone(), audiences, wake)
                    .for_clients(clients.clone())
            });

            let ended = scope
                .concatenate([repeated, deduped, unembedded, unretrieved, similar, scripted, joined])
                .map(ToCommit::End);
            let ending = scope.concatenate([ended, generated]);
            let by_owner = Exchange::new(ToCommit::owner);
            let (pieces, closing): (Turns<'_, Notice>, Turns<'_, Closing>) =
                stage(ending, by_owner, "commit", clock, |wake| {
                    let numbers = EntryNumbers::new(self.last_entry, index, peers);
                    Commit::new(journal.clone(), self.prices.clone(), numbers, wake).booking(self.tallies.clone())
                })
                .ok_err(|committed| match committed {
                    Committed::Piece(notice) => Ok(notice),
                    Committed::Settle(settlement) => Err(Ok(settlement)),
                    Committed::End(ended) => Err(Err(ended)),
                });
            let (settling, ended) = closing.ok_err(|closing| closing);

            let questions = Exchange::new(by_settled_question);
            let settled = stage(settling, questions, "settle", clock, |_| Settle(boxes.clone()));

            // One exchange for both: a settled end returns to its conversation's worker, the others are there already.
            let ends = Exchange::new(by_conversation_ended);
            let told = stage(scope.concatenate([settled, ended]), ends, "acknowledge", clock, |_| {
                Acknowledge::new(releases.clone())
            });
            let notices = scope.concatenate([pieces, told]);
            let by_entrance = Exchange::new(|notice: &Notice| u64::from(notice.request.worker));
            stage(notices, by_entrance, "reply", clock, |_| Reply(ToStreams(self.streams.clone()))).probe_with(&probe);
        });
        probe
    }
}

/// The port beside a worker: with one process, the one of the same number.
#[expect(clippy::cast_possible_truncation, reason = "a count of threads")]
fn worker_port(index: u64) -> usize {
    index as usize
}

#[expect(clippy::borrowed_box, reason = "the signature that an exchange of boxes wants")]
fn by_conversation(ask: &Box<Ask>) -> u64 {
    ask.conversation_owner()
}

#[expect(clippy::borrowed_box, reason = "the signature that an exchange of boxes wants")]
fn by_question(ask: &Box<Ask>) -> u64 {
    ask.key.owner()
}

#[expect(clippy::borrowed_box, reason = "the signature that an exchange of boxes wants")]
fn by_settled_question(settlement: &Box<Settlement>) -> u64 {
    settlement.resolution.key.owner()
}

#[expect(clippy::borrowed_box, reason = "the signature that an exchange of boxes wants")]
fn by_conversation_ended(ended: &Box<Ended>) -> u64 {
    ended.owner()
}

//! Which cached answers still follow from the knowledge base: a relation of two collections, maintained by a dataflow.
//!
//! An answer is put forward as a *claim* with its support: the chunks that the tier was given to read, the *floor* that
//! another would have had to exceed, and the epoch of the knowledge base that was read. A claim is valid when
//!
//! 1. every chunk of its support is still there with the same content, and
//! 2. no chunk that came after the epoch that was read scores above the floor.
//!
//! ```text
//! claims × support ─▶ antijoin ─▶ consolidate ─┐
//! chunks that are there ──▲                    ├─▶ apply ─▶ tally ─▶ probe
//! claims × question ──▶ top-k ─────────────────┘
//! recent chunks ────────▲
//! ```
//!
//! The first condition is an antijoin of differential collections, spread over the workers by chunk; the second has no
//! key to join by and is the operator of [`topk`], which keeps the claims of its worker and is told of every new chunk.
//! *Apply* takes a fallen claim out of its worker's caches while the message is being consumed, so before the probe can
//! pass: once it has passed an epoch, no worker serves anything that a change of that epoch made invalid.
//!
//! A claim that falls is withdrawn and never comes back. What is new at an epoch meets what was there and what is new at
//! the same epoch, so it makes no difference whether an answer or the change that outdates it comes first.
//!
//! What it does not do: it owns no inputs and advances no time. Whoever puts it up does, see [`Inputs`].

mod axes;
pub mod keeper;
mod operator;
mod rows;
pub mod topk;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::probe::Handle;
use timely::dataflow::operators::vec::{Broadcast as _, Filter as _, Map as _};
use timely::dataflow::operators::{Concat as _, Input as _, Probe as _};
use timely::dataflow::{InputHandle, Scope};
use turnflow_state::{ChunkKey, EntryId, TenantId, TurnKey};

pub use self::axes::Axes;
use self::keeper::Keeper;
pub use self::topk::{Fall, Inquiry, TopK};

/// The time of the dataflow: whoever has new input bumps it.
pub type Epoch = u64;

/// A claim's name among those of all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClaimKey {
    /// The worker whose caches it may be in.
    pub worker: u64,
    /// Its number there.
    pub claim: u64,
}

/// What happens to the claims of one worker, for the top-k condition.
#[derive(Clone, Debug)]
pub enum ClaimChange {
    /// An answer was put forward.
    Made {
        /// Its number at this worker.
        claim: u64,
        /// Whose knowledge base it follows from.
        tenant: TenantId,
        /// The question.
        vector: Arc<[f32]>,
        /// What a newer chunk would have to exceed.
        floor: f32,
        /// Epoch of the knowledge base up to which it is known to hold.
        valid_at: u64,
        /// The chunks it rests on.
        support: Arc<[ChunkKey]>,
    },
    /// It is no longer cached.
    Withdrawn {
        /// Its number at this worker.
        claim: u64,
    },
}

/// What happens to the knowledge base, as every worker hears of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum KnowledgeUpdate {
    /// A chunk came.
    Added {
        /// Whose.
        tenant: TenantId,
        /// Which content of which article.
        key: ChunkKey,
        /// The knowledge base's epoch at which it came.
        came: u64,
        /// Its vector.
        vector: Arc<[f32]>,
    },
    /// A chunk is gone.
    Removed {
        /// Whose.
        tenant: TenantId,
        /// Which content of which article.
        key: ChunkKey,
    },
    /// Everybody who may still put a claim forward has seen the chunks that came up to this epoch of the knowledge base.
    SeenByAll {
        /// The epoch.
        epoch: u64,
    },
}

/// A cached answer that a change made invalid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidated {
    /// The entry.
    pub entry: EntryId,
    /// The turn that was answered first.
    pub origin: TurnKey,
}

/// A worker's hands on the dataflow. At every epoch, everything that came is put in, then all inputs are advanced.
pub struct Inputs {
    supports: InputSession<Epoch, (ChunkKey, ClaimKey), isize>,
    present: InputSession<Epoch, ChunkKey, isize>,
    claims: InputHandle<Epoch, CapacityContainerBuilder<Vec<ClaimChange>>>,
    knowledge: InputHandle<Epoch, CapacityContainerBuilder<Vec<KnowledgeUpdate>>>,
}

impl Default for Inputs {
    fn default() -> Self {
        Self {
            supports: InputSession::new(),
            present: InputSession::new(),
            claims: InputHandle::new(),
            knowledge: InputHandle::new(),
        }
    }
}

impl Inputs {
    /// Puts a claim forward.
    pub fn claim(&mut self, worker: u64, change: ClaimChange) {
        if let ClaimChange::Made { claim, support, .. } = &change {
            for key in support.iter() {
                self.supports.insert((*key, ClaimKey { worker, claim: *claim }));
            }
        }
        self.claims.send(change);
    }

    /// Withdraws a claim with the support that it was made with.
    pub fn withdraw(&mut self, worker: u64, claim: u64, support: &[ChunkKey]) {
        for key in support {
            self.supports.remove((*key, ClaimKey { worker, claim }));
        }
        self.claims.send(ClaimChange::Withdrawn { claim });
    }

    /// Tells of a change of the knowledge base. One worker tells, and all hear.
    pub fn knowledge(&mut self, update: KnowledgeUpdate) {
        match &update {
            KnowledgeUpdate::Added { key, .. } => self.present.insert(*key),
            KnowledgeUpdate::Removed { key, .. } => self.present.remove(*key),
            KnowledgeUpdate::SeenByAll { .. } => {}
        }
        self.knowledge.send(update);
    }

    /// Tells that a chunk is there, without having the claims meet it.
    pub fn present(&mut self, key: ChunkKey) {
        self.present.insert(key);
    }

    /// Has the claims meet a chunk of which it was told that it is there.
    pub fn meet(&mut self, update: KnowledgeUpdate) {
        self.knowledge.send(update);
    }

    /// Closes the current epoch and begins a later one.
    pub fn advance_to(&mut self, epoch: Epoch) {
        self.supports.advance_to(epoch);
        self.supports.flush();
        self.present.advance_to(epoch);
        self.present.flush();
        self.claims.advance_to(epoch);
        self.knowledge.advance_to(epoch);
    }
}

/// What a worker puts the dataflow up with.
pub struct Setup {
    /// Index of this worker.
    pub worker: u64,
    /// Whose claims fall.
    pub keeper: Rc<RefCell<Keeper>>,
    /// The core of the top-k condition.
    pub topk: Rc<RefCell<TopK>>,
    /// At worker 0: hears of everything that was invalidated, anywhere, with the epoch of the dataflow.
    pub tally: Rc<RefCell<Vec<(Epoch, Invalidated)>>>,
    /// Passes an epoch once all of that has happened.
    pub probe: Handle<Epoch>,
}

/// Puts the dataflow up.
pub fn validity<'scope>(scope: Scope<'scope, Epoch>, inputs: &mut Inputs, setup: &Setup) {
    let worker = setup.worker;
    let supports = inputs.supports.to_collection(scope);
    let present = inputs.present.to_collection(scope);
    // A claim whose support is whole is in it and out of it at the same time, which consolidating takes away.
    let unsupported = supports.antijoin(present).map(|(_, claim)| claim).consolidate();
    let unsupported =
        unsupported.inner.filter(|(_, _, difference)| *difference > 0).map(|(claim, epoch, _)| (claim, epoch));

    let claims = scope.input_from(&mut inputs.claims);
    let knowledge = scope.input_from(&mut inputs.knowledge).broadcast();
    let overtaken = operator::topk(claims, knowledge, setup.topk.clone());
    let overtaken = overtaken.map(move |(claim, epoch)| (ClaimKey { worker, claim }, epoch));

    let keeper = setup.keeper.clone();
    let invalidated =
        unsupported.concat(overtaken).unary::<CapacityContainerBuilder<Vec<(Epoch, Invalidated)>>, _, _, _>(
            Exchange::new(|fallen: &(ClaimKey, Epoch)| fallen.0.worker),
            "apply",
            move |_, _| {
                move |input, output| {
                    input.for_each(|capability, fallen| {
                        let mut keeper = keeper.borrow_mut();
                        let mut session = output.session(&capability);
                        for (ClaimKey { claim, .. }, epoch) in fallen.drain(..) {
                            if let Some(invalidated) = keeper.fall(claim, epoch) {
                                session.give((epoch, invalidated));
                            }
                        }
                    });
                }
            },
        );
    let tally = setup.tally.clone();
    invalidated
        .unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
            Exchange::new(|_: &(Epoch, Invalidated)| 0),
            "tally",
            move |_, _| move |input, _| input.for_each(|_, invalidated| tally.borrow_mut().append(invalidated)),
        )
        .probe_with(&setup.probe);
}

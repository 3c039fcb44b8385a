//! Prioritise: the queue in front of an engine. Who waits there, in which order they leave, and who finds no place.
//!
//! Contract of a [`Queue`] in the order [`Priority`](Order::Priority):
//!
//! - *Class.* [`Class`]es leave in order: who is in a conversation before who begins one.
//! - *Tenant.* Within a class, tenants take turns by deficit round robin (Shreedhar and Varghese 1995), measured in estimated
//!   tokens: a tenant with a hundred times as many turns gets no more than its share while others wait. The quantum is the largest turn
//!   of the class since it was empty.
//! - *Channel and deadline.* Within a tenant the earliest due leaves first. A turn is due when it came plus
//!   [`patience_ms`](QueueLimits::patience_ms) divided by its channel's weight, or at its deadline, if that is earlier. So no turn without
//!   a deadline is overtaken by one of its class and tenant that came more than `patience_ms` by the smallest weight later.
//! - *Ageing.* One in `aged_every` turns that leave is of the class whose oldest has waited longest, and `aged_ms` at least. So nobody starves:
//!   when a turn's tenant has `b` tokens that are due up to it, and there are `T` tenants in its class, at most
//!   `(T − 1) · (⌈b / quantum⌉ + 1) · 2 · quantum` tokens of others of its class leave before it, and the class is served at that rate at least.
//! - *Bounds.* At most `turns_max` turns and `tokens_max` tokens wait. Beyond that the last class loses, in it the tenant with the
//!   most turns, of its turns the one that is due last: it comes back, to be refused.
//!
//! - *Leaving.* A turn may be taken out wherever it stands, when its time is up or its client has left.
//!
//! What is asked in the background stands apart, first come first served, and leaves only when no turn waits; its askers bound it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use turnflow_models::Lane;
use turnflow_state::{Channel, TenantId, TurnError, wait_text};

use crate::deadline::{Earliest, is_late};
use crate::load::Backlog;
use crate::message::{Ask, Outcome, RequestId};

/// Bytes of text for each estimated token.
const TOKEN_BYTES: usize = 4;

/// What a turn's place depends on first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The conversation has had an answer before.
    Ongoing,
    /// The conversation begins, and its turn has waited already for an answer that came to nothing, or was not good enough.
    Promised,
    /// The conversation begins.
    New,
}

impl Class {
    /// Every class, in order.
    pub const ALL: &[Self] = &[Self::Ongoing, Self::Promised, Self::New];

    /// The class of a turn.
    #[must_use]
    pub const fn of(ask: &Ask) -> Self {
        if ask.turns_before > 0 {
            Self::Ongoing
        } else if ask.promised {
            Self::Promised
        } else {
            Self::New
        }
    }

    const fn lane(self) -> Lane {
        match self {
            Self::Ongoing | Self::Promised => Lane::Ongoing,
            Self::New => Lane::New,
        }
    }
}

/// In which order turns leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As the contract says.
    Priority,
    /// First come, first served, whoever it is. To compare with.
    Fifo,
}

/// How much sooner than others the turns of a channel are due.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ChannelWeights {
    /// A voice assistant or telephone line.
    pub voice: f32,
    /// Chat: web, app, WhatsApp and text messages.
    pub chat: f32,
    /// Programs.
    pub api: f32,
    /// E-mail.
    pub email: f32,
}

impl ChannelWeights {
    const fn of(&self, channel: Channel) -> f32 {
        match channel {
            Channel::Voice => self.voice,
            Channel::Web | Channel::MobileApp | Channel::Whatsapp | Channel::Sms => self.chat,
            Channel::Api => self.api,
            Channel::Email => self.email,
        }
    }
}

/// Bounds and order of a queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QueueLimits {
    /// In which order turns leave.
    pub order: Order,
    /// Turns that may wait.
    pub turns_max: usize,
    /// Tokens of them, as estimated from their texts.
    pub tokens_max: usize,
    /// How long after it came a turn is due, with weight 1, in milliseconds.
    pub patience_ms: u64,
    /// How long a turn waits before its class is served out of order, in milliseconds.
    pub aged_ms: u64,
    /// One in so many turns that leave is of such a class.
    pub aged_every: u32,
    /// By channel.
    pub weights: ChannelWeights,
}

/// A turn's place among those of its tenant: when it is due, and its name.
type Place = (u64, (u32, u64));

/// Where a turn waits: its class, and there the line of its tenant and the place in it.
type Spot = (Class, Option<TenantId>, Place);

/// The turns of one tenant in one class.
#[derive(Debug, Default)]
struct Line {
    turns: BTreeMap<Place, Box<Ask>>,
    /// Tokens that it may still send before the next tenant's turn.
    deficit: usize,
}

/// The turns of one class.
#[derive(Debug, Default)]
struct Fair {
    /// None stands for all tenants together.
    lines: HashMap<Option<TenantId>, Line>,
    /// Tenants with turns, in the order in which they are served.
    ring: VecDeque<Option<TenantId>>,
    /// When its turns came.
    arrivals: BTreeSet<Place>,
    /// Tokens that a tenant may send each time it is its turn.
    quantum: usize,
}

impl Fair {
    fn push(&mut self, tenant: Option<TenantId>, place: Place, ask: Box<Ask>) {
        let largest = if self.arrivals.is_empty() { 0 } else { self.quantum };
        self.quantum = largest.max(tokens(&ask));
        self.arrivals.insert((ask.entered_us, place.1));
        let line = self.lines.entry(tenant.clone()).or_default();
        if line.turns.is_empty() {
            self.ring.push_back(tenant);
        }
        line.turns.insert(place, ask);
    }

    fn pop(&mut self) -> Option<Box<Ask>> {
        loop {
            let tenant = self.ring.front()?.clone();
            let line = self.lines.get_mut(&tenant)?;
            let tokens = line.turns.first_key_value().map_or(0, |(_, ask)| tokens(ask));
            if line.deficit < tokens {
                line.deficit += self.quantum;
                self.ring.rotate_left(1);
                continue;
            }
            line.deficit -= tokens;
            let (_, ask) = line.turns.pop_first()?;
            self.left(&tenant, &ask);
            return Some(ask);
        }
    }

    /// Puts back the turn that was taken last, as if it had not been.
    fn put_back(&mut self, tenant: &Option<TenantId>, place: Place, ask: Box<Ask>) {
        let tokens = tokens(&ask);
        self.push(tenant.clone(), place, ask);
        if let Some(line) = self.lines.get_mut(tenant) {
            line.deficit += tokens;
        }
        if let Some(at) = self.ring.iter().position(|other| other == tenant) {
            self.ring.remove(at);
            self.ring.push_front(tenant.clone());
        }
    }

    /// Takes out the turn that is due last of the tenant with the most.
    fn pop_worst(&mut self) -> Option<Box<Ask>> {
        let longest =
            self.ring.iter().max_by_key(|tenant| self.lines.get(*tenant).map_or(0, |line| line.turns.len()))?;
        let tenant = longest.clone();
        let (_, ask) = self.lines.get_mut(&tenant)?.turns.pop_last()?;
        self.left(&tenant, &ask);
        Some(ask)
    }

    /// Takes out the turn at a place.
    fn remove(&mut self, tenant: &Option<TenantId>, place: Place) -> Option<Box<Ask>> {
        let ask = self.lines.get_mut(tenant)?.turns.remove(&place)?;
        self.left(tenant, &ask);
        Some(ask)
    }

    /// Takes out the turns that are not to be kept.
    #[expect(clippy::vec_box, reason = "turns stay in the boxes in which they travel")]
    fn extract(&mut self, leaves: impl Fn(&Ask) -> bool, into: &mut Vec<Box<Ask>>) {
        let from = into.len();
        for line in self.lines.values_mut() {
            into.extend(line.turns.extract_if(.., |_, ask| leaves(ask)).map(|(_, ask)| ask));
        }
        for ask in &into[from..] {
            self.arrivals.remove(&(ask.entered_us, name(ask.request)));
        }
        self.lines.retain(|_, line| !line.turns.is_empty());
        self.ring.retain(|tenant| self.lines.contains_key(tenant));
    }

    fn left(&mut self, tenant: &Option<TenantId>, ask: &Ask) {
        self.arrivals.remove(&(ask.entered_us, name(ask.request)));
        if self.lines.get(tenant).is_some_and(|line| line.turns.is_empty()) {
            // Who comes back begins anew: a deficit is not saved up.
            self.lines.remove(tenant);
            self.ring.retain(|other| other != tenant);
        }
    }
}

/// The core: turns that wait for an engine.
#[derive(Debug)]
pub struct Queue {
    limits: QueueLimits,
    classes: [Fair; Class::ALL.len()],
    background: VecDeque<Box<Ask>>,
    /// Where each turn waits.
    spots: HashMap<RequestId, Spot>,
    tokens: usize,
    earliest: Earliest,
    /// Turns that left since one of an aged class did, and the same before the last one left.
    since_aged: [u32; 2],
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        let (classes, background, spots) = (Default::default(), VecDeque::new(), HashMap::new());
        Self { limits, classes, background, spots, tokens: 0, earliest: Earliest::default(), since_aged: [0; 2] }
    }

    /// Adds a turn, which has entered the stage; gives back those that there is no place for.
    #[must_use]
    pub fn push(&mut self, ask: Box<Ask>) -> Vec<Box<Ask>> {
        if ask.purpose.is_background() {
            self.background.push_back(ask);
            return Vec::new();
        }
        let (class, tenant, place) = self.came(&ask);
        self.classes[class as usize].push(tenant, place, ask);
        let mut refused = Vec::new();
        // A turn that is larger than the queue finds a place where nobody else waits.
        while self.waiting() > self.limits.turns_max || (self.tokens > self.limits.tokens_max && self.waiting() > 1) {
            let Some(ask) = self.classes.iter_mut().rev().find_map(Fair::pop_worst) else { break };
            self.left(&ask);
            refused.push(ask);
        }
        refused
    }

    /// Takes the next turn, and the lane that the engine is to serve it in.
    pub fn pop(&mut self, now_us: u64) -> Option<(Lane, Box<Ask>)> {
        let first = Class::ALL.iter().copied().find(|&class| !self.is_empty_of(class))?;
        let aged = Class::ALL.iter().copied().filter(|&class| class > first && self.is_aged(class, now_us));
        let aged =
            aged.min_by_key(|&class| self.classes[class as usize].arrivals.first().map(|&(entered_us, _)| entered_us));
        let (class, lane) = match aged {
            Some(class) if self.since_aged[0] + 1 >= self.limits.aged_every => (class, Lane::Ongoing),
            _ => (first, first.lane()),
        };
        let ask = self.classes[class as usize].pop()?;
        let since = if class == first && aged.is_some() { self.since_aged[0].saturating_add(1) } else { 0 };
        self.since_aged = [since, self.since_aged[0]];
        self.left(&ask);
        Some((lane, ask))
    }

    /// Puts back the turn that was taken last, with the time at which it had entered.
    pub fn put_back(&mut self, ask: Box<Ask>) {
        if ask.purpose.is_background() {
            return self.background.push_front(ask);
        }
        let (class, tenant, place) = self.came(&ask);
        self.classes[class as usize].put_back(&tenant, place, ask);
        self.since_aged[0] = self.since_aged[1];
    }

    /// Takes the next of what nobody waits for, when no turn waits.
    pub fn pop_background(&mut self) -> Option<Box<Ask>> {
        if self.spots.is_empty() { self.background.pop_front() } else { None }
    }

    /// Takes out a turn, if it waits here.
    pub fn remove(&mut self, request: RequestId) -> Option<Box<Ask>> {
        let (class, tenant, place) = self.spots.get(&request)?;
        let ask = self.classes[*class as usize].remove(tenant, *place)?;
        self.left(&ask);
        Some(ask)
    }

    /// Takes out the turns whose deadline comes before they could be answered, when that takes until `done_us`.
    pub fn extract_late(&mut self, done_us: u64) -> Vec<Box<Ask>> {
        let mut late = Vec::new();
        if self.earliest.has_passed(done_us) {
            for class in &mut self.classes {
                class.extract(|ask| is_late(ask, done_us), &mut late);
            }
            for ask in &late {
                self.left(ask);
            }
            self.earliest = Earliest::of(self.turns());
        }
        late
    }

    /// The earliest time at which a deadline may pass; None when no turn has one.
    #[must_use]
    pub const fn deadline_us(&self) -> Option<u64> {
        self.earliest.due_us()
    }

    /// What it tells the load: what waits, and since when.
    pub(crate) fn backlog(&self) -> Backlog {
        let (waiting, new_waiting) = (self.waiting(), self.classes[Class::New as usize].arrivals.len());
        Backlog { waiting, new_waiting, oldest_us: self.oldest_us(), ..Backlog::default() }
    }

    /// When the turn that has waited longest entered; None when no turn waits.
    #[must_use]
    pub fn oldest_us(&self) -> Option<u64> {
        self.classes.iter().filter_map(|class| class.arrivals.first()).map(|&(entered_us, _)| entered_us).min()
    }

    /// Turns that wait, without what nobody waits for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.spots.len()
    }

    /// Everything that waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting() + self.background.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn spot(&self, ask: &Ask) -> Spot {
        match self.limits.order {
            Order::Fifo => (Class::New, None, (ask.entered_us, name(ask.request))),
            Order::Priority => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a wait of bounded length")]
                let patience_us =
                    (self.limits.patience_ms as f32 * 1e3 / self.limits.weights.of(ask.turn.channel)) as u64;
                let due_us = ask.entered_us.saturating_add(patience_us).min(ask.deadline_us.unwrap_or(u64::MAX));
                (Class::of(ask), Some(ask.turn.tenant.clone()), (due_us, name(ask.request)))
            }
        }
    }

    fn is_empty_of(&self, class: Class) -> bool {
        self.classes[class as usize].arrivals.is_empty()
    }

    fn is_aged(&self, class: Class, now_us: u64) -> bool {
        let oldest = self.classes[class as usize].arrivals.first();
        oldest.is_some_and(|&(entered_us, _)| {
            now_us.saturating_sub(entered_us) >= self.limits.aged_ms.saturating_mul(1_000)
        })
    }

    fn turns(&self) -> impl Iterator<Item = &Ask> {
        self.classes.iter().flat_map(|class| class.lines.values()).flat_map(|line| line.turns.values()).map(Box::as_ref)
    }

    /// Counts a turn that comes; tells where it is to wait.
    fn came(&mut self, ask: &Ask) -> Spot {
        let spot = self.spot(ask);
        self.spots.insert(ask.request, spot.clone());
        self.tokens += tokens(ask);
        self.earliest.add(ask);
        spot
    }

    fn left(&mut self, ask: &Ask) {
        self.spots.remove(&ask.request);
        self.tokens -= tokens(ask);
    }
}

const fn name(request: RequestId) -> (u32, u64) {
    (request.worker, request.number)
}

/// Tokens that an engine will read for a turn, estimated; at least 1.
#[must_use]
pub fn tokens(ask: &Ask) -> usize {
    let history = ask.history.iter().map(|before| before.question.len() + before.answer.len()).sum::<usize>();
    let retrieved = ask.retrieved.iter().map(|scored| scored.chunk.text.len()).sum::<usize>();
    (ask.turn.text.len() + history + retrieved).div_ceil(TOKEN_BYTES).max(1)
}

/// The end of a turn that there is no place for.
pub(crate) fn crowded(ask: Box<Ask>, retry_after_ms: u64) -> Outcome {
    let message = format!("too many turns at once; try again in {}", wait_text(retry_after_ms));
    Outcome::failed(ask, TurnError::overloaded(message, retry_after_ms))
}

//! The shell around every stage: drains the input, keeps the capability, calls the core, sends what it returns.
//!
//! The dataflow of turns has the time type `()`: its time never moves until it ends. So one retained capability
//! stands for all the turns that a stage holds back, and the dataflow ends by itself when its sources have closed
//! and no stage holds a turn any more.
//!
//! This is the only file of the crate that reads a clock.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;

/// A stream of the dataflow of turns.
pub type Turns<'scope, D> = StreamVec<'scope, (), D>;

/// Microseconds since the process began; the same for all workers of a process.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since the clock started.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The clock's time at a moment, in microseconds; 0 for a moment before it started.
    #[must_use]
    pub fn at_us(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }
}

/// The core of a stage.
pub trait Stage: 'static {
    /// What comes in.
    type Input: Clone + 'static;
    /// What goes out.
    type Output: Clone + 'static;

    /// Takes one item; decides now or later.
    fn push(&mut self, input: Self::Input, now_us: u64, out: &mut Vec<Self::Output>);

    /// Takes what came by another way than the input: finished jobs, releases by a later stage.
    fn poll(&mut self, _now_us: u64, _out: &mut Vec<Self::Output>) {}

    /// How many items were taken and not yet given out.
    fn held(&self) -> usize {
        0
    }

    /// Whether items wait for an engine that others keep full, so that nothing of this stage will wake it.
    fn stalled(&self) -> bool {
        false
    }

    /// When it is to be polled even if nothing comes, in microseconds on the clock.
    fn due_us(&self) -> Option<u64> {
        None
    }
}

/// Wakes a stage from another thread, or from another stage. Many wakes before it runs cost as much as one.
#[derive(Clone, Debug)]
pub struct Wake(Arc<WakeInner>);

#[derive(Debug)]
struct WakeInner {
    armed: AtomicBool,
    activator: SyncActivator,
}

impl Wake {
    /// Wakes the operator that the activator names.
    #[must_use]
    pub fn new(activator: SyncActivator) -> Self {
        Self(Arc::new(WakeInner { armed: AtomicBool::new(false), activator }))
    }

    /// Has the stage polled soon, and its worker unparked.
    pub fn wake(&self) {
        if !self.0.armed.swap(true, Ordering::AcqRel) {
            // Fails only when the worker is gone, and then nobody is left to wake.
            let _ = self.0.activator.activate();
        }
    }

    /// Called by a stage that will look for work by itself: until then nothing wakes it.
    pub fn arm(&self) {
        self.0.armed.store(true, Ordering::Release);
    }

    /// Called by the stage before it looks for work: whatever arrives later wakes it again.
    pub fn disarm(&self) {
        // A swap, not a store: what the stage reads next must not be read before this is seen.
        self.0.armed.swap(false, Ordering::AcqRel);
    }
}

/// Hands items to another stage of the same worker, outside the dataflow's edges.
#[derive(Debug)]
pub struct Mailbox<T>(Rc<RefCell<MailboxInner<T>>>);

#[derive(Debug)]
struct MailboxInner<T> {
    items: VecDeque<T>,
    wake: Option<Wake>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(MailboxInner { items: VecDeque::new(), wake: None })))
    }
}

impl<T> Mailbox<T> {
    /// Names the stage that reads the box.
    pub fn deliver_to(&self, wake: Wake) {
        self.0.borrow_mut().wake = Some(wake);
    }

    /// Leaves an item and wakes the reader.
    pub fn send(&self, item: T) {
        let mut inner = self.0.borrow_mut();
        inner.items.push_back(item);
        if let Some(wake) = &inner.wake {
            wake.wake();
        }
    }

    /// Takes the oldest item.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().items.pop_front()
    }
}

/// How soon a stage that found an engine full with other people's work asks again.
const RETRY_AFTER_US: u64 = 1_000;
const RETRY_AFTER: Duration = Duration::from_micros(RETRY_AFTER_US);

/// Puts a stage into the dataflow.
pub fn stage<'scope, S, P>(
    stream: Turns<'scope, S::Input>,
    pact: P,
    name: &str,
    clock: Clock,
    make: impl FnOnce(&Wake) -> S,
) -> Turns<'scope, S::Output>
where
    S: Stage,
    P: ParallelizationContract<(), Vec<S::Input>>,
{
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let mut input = builder.new_input(stream, pact);
    let (output, result) = builder.new_output::<Vec<S::Output>>();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<S::Output>>>::from(output);
    let address = builder.operator_info().address;
    let wake = Wake::new(scope.worker().sync_activator_for(address.to_vec()));
    let again = scope.activator_for(address);
    let mut core = make(&wake);
    builder.build(move |initial| {
        drop(initial);
        let mut held: Option<Capability<()>> = None;
        let mut decided = Vec::new();
        // When it will be polled at the latest, so that a timer is not set over and over.
        let mut timer_us = 0;
        move |_frontiers| {
            wake.disarm();
            let now_us = clock.now_us();
            input.for_each(|capability, items| {
                if held.is_none() {
                    held = capability.retain_least(0);
                }
                for item in items.drain(..) {
                    core.push(item, now_us, &mut decided);
                }
            });
            core.poll(now_us, &mut decided);
            if let Some(capability) = held.as_ref().filter(|_| !decided.is_empty()) {
                output.activate().session(capability).give_iterator(decided.drain(..));
            }
            debug_assert!(decided.is_empty(), "a stage gave out something that it did not hold");
            if core.held() == 0 {
                held = None;
            } else if core.stalled() {
                again.activate_after(RETRY_AFTER);
            } else if let Some(due_us) = core.due_us().filter(|&due_us| timer_us <= now_us || due_us < timer_us) {
                // Not sooner than a stalled one: what is due already was there to be polled just now.
                timer_us = due_us.max(now_us + RETRY_AFTER_US);
                again.activate_after(Duration::from_micros(timer_us - now_us));
            }
        }
    });
    result
}

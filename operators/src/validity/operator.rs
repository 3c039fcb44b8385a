//! The operator around [`TopK`]: gathers what happens at an epoch until it is complete, and works it off in pieces.
//!
//! Contract: an epoch begins when both inputs have passed it and the one before is done. While it is worked on, its
//! capability is held and the operator asks to be run again, so that the other operators of the worker have their turn
//! in between.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator as _;

use super::topk::{Happened, TopK};
use super::{ClaimChange, Epoch, KnowledgeUpdate};

/// Gives out the claims of this worker that were overtaken, some of them twice, and the epoch.
pub(super) fn topk<'scope>(
    claims: StreamVec<'scope, Epoch, ClaimChange>,
    knowledge: StreamVec<'scope, Epoch, KnowledgeUpdate>,
    core: Rc<RefCell<TopK>>,
) -> StreamVec<'scope, Epoch, (u64, Epoch)> {
    let scope = claims.scope();
    claims.binary_frontier::<_, CapacityContainerBuilder<Vec<(u64, Epoch)>>, _, _, _, _>(
        knowledge,
        Pipeline,
        Pipeline,
        "top-k",
        move |initial, info| {
            drop(initial);
            let again = scope.activator_for(info.address);
            let mut waiting: BTreeMap<Epoch, (Capability<Epoch>, Happened)> = BTreeMap::new();
            let mut current: Option<Capability<Epoch>> = None;
            let mut overtaken = Vec::new();
            move |(claims, claims_frontier), (knowledge, knowledge_frontier), output| {
                claims.for_each(|capability, changes| {
                    let Some(capability) = capability.retain_least(0) else { return };
                    let slot = waiting.entry(*capability.time()).or_insert_with(|| (capability, Happened::default()));
                    slot.1.claims.append(changes);
                });
                knowledge.for_each(|capability, updates| {
                    let Some(capability) = capability.retain_least(0) else { return };
                    let slot = waiting.entry(*capability.time()).or_insert_with(|| (capability, Happened::default()));
                    slot.1.knowledge.append(updates);
                });
                let mut core = core.borrow_mut();
                loop {
                    if current.is_none() {
                        let Some(next) = waiting.first_entry() else { return };
                        let epoch = *next.key();
                        if claims_frontier.less_equal(&epoch) || knowledge_frontier.less_equal(&epoch) {
                            return;
                        }
                        let (capability, happened) = next.remove();
                        core.begin(happened);
                        current = Some(capability);
                    }
                    let done = core.work(&mut overtaken);
                    if let Some(capability) = &current {
                        let epoch = *capability.time();
                        output.session(capability).give_iterator(overtaken.drain(..).map(|claim| (claim, epoch)));
                    }
                    if !done {
                        again.activate();
                        return;
                    }
                    current = None;
                }
            }
        },
    )
}

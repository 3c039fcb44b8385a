//! The conversations that are kept, for those who run a server: which there are, and what was said in one.
//!
//! The store has them in the order of their ids and does not know which were active of late, so that is remembered here, bounded,
//! since the pipeline was started.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turnflow_state::{Conversation, ConversationId, Store, TenantId, TurnKey, TurnRecord};

use crate::PipelineError;
use crate::knowledge::blocking;
use crate::pipeline::Running;

/// Conversations of a page at most.
pub const PAGE_CONVERSATIONS_MAX: usize = 200;
/// Conversations, of all tenants, of which it is remembered that they were active of late.
const RECENT_MAX: usize = 4_096;

/// A conversation in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Which.
    pub id: ConversationId,
    /// How many of its turns were answered so far.
    pub turns_answered: u64,
    /// The last of them.
    pub last: Option<TurnRecord>,
}

/// A handle to the conversations of a running pipeline.
#[derive(Clone)]
pub struct Conversations(pub(crate) Arc<Running>);

impl Conversations {
    /// The conversations of a tenant that had a turn since the pipeline was started, the latest first; at most `limit`, and
    /// [`PAGE_CONVERSATIONS_MAX`]. Of very many, the older ones are forgotten.
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read.
    pub async fn recent(&self, tenant: &TenantId, limit: usize) -> Result<Vec<Summary>, PipelineError> {
        let ids = self.0.recent.of(tenant, limit.min(PAGE_CONVERSATIONS_MAX));
        let (store, tenant) = (self.0.parts.store.clone(), tenant.clone());
        blocking(move || {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                // One without an answered turn is not there yet.
                if let Some(conversation) = store.conversation(&tenant, &id)? {
                    found.push(summary(&store, &tenant, id, conversation)?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// At most `limit` conversations of a tenant behind one, in the order of their ids; no more than [`PAGE_CONVERSATIONS_MAX`].
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read.
    pub async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<Summary>, PipelineError> {
        let (store, tenant, after) = (self.0.parts.store.clone(), tenant.clone(), after.cloned());
        blocking(move || {
            let page = store.conversations_after(&tenant, after.as_ref(), limit.min(PAGE_CONVERSATIONS_MAX))?;
            page.into_iter().map(|(id, conversation)| summary(&store, &tenant, id, conversation)).collect()
        })
        .await
    }

    /// The last turns of a conversation, oldest first; at most [`RECENT_TURNS_MAX`](turnflow_state::RECENT_TURNS_MAX).
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read.
    pub async fn turns(&self, tenant: &TenantId, id: &ConversationId) -> Result<Vec<TurnRecord>, PipelineError> {
        let (store, tenant, id) = (self.0.parts.store.clone(), tenant.clone(), id.clone());
        blocking(move || Ok(store.history(&tenant, &id, turnflow_state::RECENT_TURNS_MAX)?)).await
    }

    /// A turn, if it was answered.
    ///
    /// # Errors
    /// [`PipelineError`] when the store cannot be read.
    pub async fn turn(&self, key: &TurnKey) -> Result<Option<TurnRecord>, PipelineError> {
        let (store, key) = (self.0.parts.store.clone(), key.clone());
        blocking(move || Ok(store.turn(&key)?)).await
    }
}

fn summary(
    store: &Store,
    tenant: &TenantId,
    id: ConversationId,
    conversation: Conversation,
) -> Result<Summary, PipelineError> {
    let Conversation { turns_answered, recent, .. } = conversation;
    let last = match recent.back() {
        Some(turn) => store.turn(&TurnKey { tenant: tenant.clone(), conversation: id.clone(), turn: turn.clone() })?,
        None => None,
    };
    Ok(Summary { id, turns_answered, last })
}

/// Which conversations had a turn of late.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// For each, which turn of the process was its last.
    last: HashMap<(TenantId, ConversationId), u64>,
    turns: u64,
}

impl Recent {
    /// Notes that a conversation has a turn.
    pub(crate) fn note(&self, tenant: &TenantId, conversation: &ConversationId) {
        let mut noted = self.lock();
        noted.turns += 1;
        let turns = noted.turns;
        noted.last.insert((tenant.clone(), conversation.clone()), turns);
        // At twice as many, so that the older half is looked for once in so many turns.
        if noted.last.len() >= 2 * RECENT_MAX {
            let mut numbers: Vec<u64> = noted.last.values().copied().collect();
            let (_, &mut oldest, _) = numbers.select_nth_unstable(RECENT_MAX);
            noted.last.retain(|_, number| *number >= oldest);
        }
    }

    /// Those of a tenant, the latest first.
    fn of(&self, tenant: &TenantId, limit: usize) -> Vec<ConversationId> {
        let noted = self.lock();
        let of_tenant = noted.last.iter().filter(|((owner, _), _)| owner == tenant);
        let mut found: Vec<_> = of_tenant.map(|((_, conversation), number)| (*number, conversation.clone())).collect();
        drop(noted);
        found.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        found.into_iter().take(limit).map(|(_, conversation)| conversation).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_the_others_forgotten() {
        let tenant = |name: &str| TenantId::new(name).expect("valid id");
        let conversation = |number: usize| ConversationId::new(number.to_string()).expect("valid id");
        let recent = Recent::default();
        recent.note(&tenant("other"), &conversation(1));
        (0..3).for_each(|number| recent.note(&tenant("shop"), &conversation(number)));
        recent.note(&tenant("shop"), &conversation(0));
        assert_eq!(recent.of(&tenant("shop"), 9), [conversation(0), conversation(2), conversation(1)]);
        (0..10 * RECENT_MAX).for_each(|number| recent.note(&tenant("shop"), &conversation(number)));
        assert_eq!(recent.of(&tenant("shop"), 1), [conversation(10 * RECENT_MAX - 1)]);
        assert!(recent.lock().last.len() < 2 * RECENT_MAX);
        assert_eq!(recent.of(&tenant("other"), 9), []);
    }
}

//! Reading the conversations of a tenant, one page after the other.

use std::ops::ControlFlow;

use super::codec::{corrupt, decode, key_prefix};
use super::{Column, Conversation, Store};
use crate::{ConversationId, StateError, TenantId};

impl Store {
    /// The next conversations of a tenant in the order of their ids, `limit` at most: those behind `after`, whether or not it is
    /// there itself, or the first ones.
    ///
    /// # Errors
    /// When the database cannot be read, or a key or a value does not decode.
    pub fn conversations_after(
        &self,
        tenant: &TenantId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<(ConversationId, Conversation)>, StateError> {
        let prefix = key_prefix(&[tenant.as_str()]);
        // No id contains a zero byte, so the smallest key behind a conversation's is that key with one more.
        let start = after.map_or_else(|| prefix.clone(), |after| key_prefix(&[tenant.as_str(), after.as_str()]));
        let mut page = Vec::new();
        if limit == 0 {
            return Ok(page);
        }
        self.backend().scan_from(Column::Conversations, &prefix, &start, &mut |key, value| {
            let id = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|id| ConversationId::new(id).ok());
            let not_an_id = || corrupt(Column::Conversations, key, postcard::Error::DeserializeBadUtf8);
            page.push((id.ok_or_else(not_an_id)?, decode(Column::Conversations, key, value)?));
            Ok(if page.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(page)
    }
}

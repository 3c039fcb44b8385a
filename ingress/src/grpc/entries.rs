//! Cached answers on the wire, and which of them a request means.

use tonic::Status;
use turnflow_pipeline::{CachedAnswer, Selection};
use turnflow_state::{EntryId, TenantId};

use super::convert::{source, tier, turn_name};
use super::proto::{Entry, EntrySelection};
use crate::door::{Conflict, article_id};

/// Characters of an answer in a list.
const BEGINNING_CHARS_MAX: usize = 240;

/// Reads which cached answers of a tenant are meant.
pub(super) fn selection(tenant: TenantId, wanted: EntrySelection) -> Result<Selection, Conflict> {
    let EntrySelection { entry, article_id: article, text } = wanted;
    let mut selection = Selection { entry: entry.map(EntryId), ..Selection::all(tenant) };
    if is_set("selection.article_id", &article)? {
        selection = selection.article(article_id("selection.article_id", &article)?);
    }
    Ok(if is_set("selection.text", &text)? { selection.text(&text) } else { selection })
}

/// Whether a field narrows what is meant. White space alone would not, though it looks as if it did: it is in every question.
fn is_set(field: &str, text: &str) -> Result<bool, Conflict> {
    if text.trim().is_empty() && !text.is_empty() {
        return Err(Conflict::invalid(field, "white space alone; leave it empty where it does not matter"));
    }
    Ok(!text.is_empty())
}

/// A cached answer, whole or in short.
pub(super) fn entry(found: &CachedAnswer, is_whole: bool) -> Entry {
    let text = &found.answer.text;
    let end = text.char_indices().nth(BEGINNING_CHARS_MAX).filter(|_| !is_whole).map(|(at, _)| at);
    Entry {
        id: found.id.0,
        question: found.question.clone(),
        answer: end.map_or_else(|| text.clone(), |end| format!("{}…", &text[..end])),
        tier: tier(found.answer.tier).into(),
        grounded: found.answer.grounded,
        sources: found.answer.sources.iter().map(source).collect(),
        rests_on: found.rests_on.iter().map(ToString::to_string).collect(),
        origin: Some(turn_name(&found.origin)),
        refreshed: found.refreshed,
        created_ms: found.created_ms,
        hits: found.hits.into(),
        shared: found.shared,
        audits: found.audits,
        agreed: found.agreed,
        disagreed: found.disagreed,
        cut_off: found.answer.cut_off,
    }
}

pub(super) fn no_entry(id: u64) -> Status {
    Status::not_found(format!("entry {id} is not cached, or no more"))
}

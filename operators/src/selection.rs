//! Which cached answers of a tenant somebody means: to look at them, or to flush them.

use std::sync::Arc;

use turnflow_state::{ArticleId, EntryId, Support, TenantId, normalise_question};

use crate::shard::Remembered;
use crate::validity::keeper::Proposal;

/// Some cached answers of a tenant: those of which all holds that is said here. When nothing is said, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Whose.
    pub tenant: TenantId,
    /// This one alone.
    pub entry: Option<EntryId>,
    /// Those that rest on this article: one of its chunks was read for them.
    pub article: Option<ArticleId>,
    /// Those whose question has these words in it, in normal form.
    pub text: Option<Arc<str>>,
}

impl Selection {
    /// All of a tenant's.
    #[must_use]
    pub const fn all(tenant: TenantId) -> Self {
        Self { tenant, entry: None, article: None, text: None }
    }

    /// This one alone.
    #[must_use]
    pub fn entry(self, entry: EntryId) -> Self {
        Self { entry: Some(entry), ..self }
    }

    /// Those that rest on an article.
    #[must_use]
    pub fn article(self, article: ArticleId) -> Self {
        Self { article: Some(article), ..self }
    }

    /// Those whose question has these words in it; letter case, white space and the punctuation behind words do not count.
    #[must_use]
    pub fn text(self, words: &str) -> Self {
        Self { text: Some(normalise_question(words).into()), ..self }
    }

    /// Whether a cached answer is meant.
    #[must_use]
    pub fn has(&self, entry: &Remembered) -> bool {
        self.means(&entry.origin.tenant, Some(entry.id), &entry.key.text, &entry.basis.support)
    }

    /// Whether an answer is meant that asks to be served to others.
    #[must_use]
    pub fn has_proposed(&self, proposal: &Proposal) -> bool {
        let Proposal { tenant, basis, entry, resolution, .. } = proposal;
        let id = entry.as_ref().map(|entry| entry.id);
        match (resolution, entry) {
            (Some(resolution), _) => self.means(tenant, id, &resolution.key.text, &basis.support),
            // One of an earlier run, for which nobody waits.
            (None, Some(entry)) => self.means(tenant, id, &normalise_question(&entry.question), &basis.support),
            (None, None) => false,
        }
    }

    fn means(&self, tenant: &TenantId, id: Option<EntryId>, question: &str, support: &Support) -> bool {
        let rests_on = |article: &ArticleId| support.chunks.iter().any(|chunk| chunk.id.article == *article);
        self.tenant == *tenant
            && self.entry.is_none_or(|entry| id == Some(entry))
            && self.text.as_ref().is_none_or(|text| question.contains(&**text))
            && self.article.as_ref().is_none_or(rests_on)
    }
}

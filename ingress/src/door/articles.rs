//! Articles that are to be written: what is checked of them, and what a write did.

use turnflow_pipeline::{ArticleDraft, DraftContent, DraftError, Forecast, Knowledge};
use turnflow_state::{ArticleId, ArticleOutcome, TenantId};

use super::check::control_character;
use super::{Conflict, Refusal};

/// What a write did to one article, or would do.
pub(crate) struct Effect {
    /// What became of the article.
    pub(crate) outcome: ArticleOutcome,
    /// The knowledge base's epoch from then on; 0 where nothing was written.
    pub(crate) epoch: u64,
    /// How many cached answers it made invalid, or would.
    pub(crate) invalidated: usize,
    /// The cached answers that it would make invalid; none where it was written.
    pub(crate) forecasts: Vec<Forecast>,
}

/// Writes one article, or finds out what that would do.
pub(crate) async fn write(
    knowledge: &Knowledge,
    tenant: &TenantId,
    draft: ArticleDraft,
    dry_run: bool,
) -> Result<Effect, Conflict> {
    let article = draft.id.clone();
    if dry_run {
        let (outcomes, forecasts) = knowledge.dry_run(tenant, vec![draft]).await?;
        let outcome = only(&article, outcomes)?;
        return Ok(Effect { outcome, epoch: 0, invalidated: forecasts.len(), forecasts });
    }
    let receipt = knowledge.write(tenant, vec![draft]).await?;
    let outcome = only(&article, receipt.outcomes)?;
    Ok(Effect { outcome, epoch: receipt.epoch, invalidated: receipt.invalidated.len(), forecasts: Vec::new() })
}

/// The outcome of the only draft of a write.
fn only(article: &ArticleId, outcomes: Vec<Result<ArticleOutcome, DraftError>>) -> Result<ArticleOutcome, Conflict> {
    let outcome = outcomes.into_iter().next().ok_or(Refusal::Internal)?;
    outcome.map_err(|error| Conflict::of_draft(article, error))
}

/// Checks an article that is to be written; `path` is what stands before its fields in the request. Its size is the pipeline's
/// business.
pub(crate) fn draft(
    path: &str,
    id: &str,
    content: DraftContent,
    expected_version: Option<u64>,
) -> Result<ArticleDraft, Conflict> {
    let field = |name: &str| format!("{path}{name}");
    let id = article_id(&field("id"), id)?;
    check_text(&field("title"), &content.title)?;
    check_text(&field("body"), &content.body)?;
    for (name, value) in &content.metadata {
        if name.is_empty() {
            return Err(Conflict::invalid(&field("metadata"), "empty name"));
        }
        check_text(&field("metadata"), name)?;
        check_text(&field("metadata"), value)?;
    }
    content.check_version().map_err(|error| Conflict::invalid(&field("version"), error.to_string()))?;
    Ok(ArticleDraft { id, content: Some(content), expected_version })
}

/// Checks the id of an article.
pub(crate) fn article_id(field: &str, id: &str) -> Result<ArticleId, Conflict> {
    ArticleId::new(id).map_err(|error| Conflict::invalid(field, error.to_string()))
}

fn check_text(field: &str, text: &str) -> Result<(), Conflict> {
    match control_character(text) {
        Some(at) => Err(Conflict::invalid(field, format!("contains a control character at byte {at}"))),
        None => Ok(()),
    }
}

//! What a replay works on: something that answers turns from a knowledge base, which can be edited meanwhile.

use std::future::Future;

use turnflow_pipeline::{
    ArticleDraft, AuditStats, BoundStats, Pipeline, PipelineError, Receipt, RefreshStats, SubmitError, TurnStream,
};
use turnflow_state::{Completion, TenantId, Turn, TurnError, TurnErrorKind, TurnEvent};

/// What answers turns from a knowledge base: the pipeline, or a stand-in for tests.
pub trait Answers {
    /// The answer to one turn.
    type Stream: EventStream;

    /// Hands over a turn, waiting for a place as long as it takes.
    fn submit(&self, turn: Turn) -> impl Future<Output = Result<Self::Stream, SubmitError>>;

    /// Edits the knowledge base, and waits until the edit is acknowledged.
    fn write(
        &self,
        tenant: &TenantId,
        drafts: Vec<ArticleDraft>,
    ) -> impl Future<Output = Result<Receipt, PipelineError>>;

    /// Waits until what earlier edits took out of the caches is answered anew, as far as it is.
    fn refreshed(&self) -> impl Future<Output = ()> {
        async {}
    }

    /// Waits until what was served to similar questions is audited, as far as it is.
    fn audited(&self) -> impl Future<Output = ()> {
        async {}
    }

    /// What was audited so far, and what followed.
    fn audit_stats(&self) -> (AuditStats, BoundStats) {
        Default::default()
    }

    /// What was answered anew so far.
    fn refresh_stats(&self) -> RefreshStats {
        RefreshStats::default()
    }
}

/// The events of one turn.
pub trait EventStream: Send + 'static {
    /// The next event; `None` after the terminal one.
    fn next(&mut self) -> impl Future<Output = Option<TurnEvent>> + Send;
}

impl Answers for Pipeline {
    type Stream = TurnStream;

    async fn submit(&self, turn: Turn) -> Result<TurnStream, SubmitError> {
        self.submit_patiently(turn).await
    }

    async fn write(&self, tenant: &TenantId, drafts: Vec<ArticleDraft>) -> Result<Receipt, PipelineError> {
        self.knowledge().write(tenant, drafts).await
    }

    async fn refreshed(&self) {
        Self::refreshed(self).await;
    }

    fn refresh_stats(&self) -> RefreshStats {
        self.stats().refresh
    }

    async fn audited(&self) {
        Self::audited(self).await;
    }

    fn audit_stats(&self) -> (AuditStats, BoundStats) {
        let stats = self.stats();
        (stats.audit, stats.bound)
    }
}

impl EventStream for TurnStream {
    async fn next(&mut self) -> Option<TurnEvent> {
        Self::next(self).await
    }
}

/// How a turn ends.
pub(super) async fn last_event(mut stream: impl EventStream) -> Result<Box<Completion>, TurnError> {
    while let Some(event) = stream.next().await {
        match event {
            TurnEvent::Done(completion) => return Ok(completion),
            TurnEvent::Error(error) => return Err(error),
            TurnEvent::Accepted | TurnEvent::Delta(_) | TurnEvent::Restart => {}
        }
    }
    Err(TurnError::new(TurnErrorKind::Internal, "the answer ended without its last event"))
}

//! The span of a turn, at level debug: who asked, where the answer came from, and how long each stage took. It holds nothing that a customer
//! said or was told.
//!
//! It begins when the turn is admitted, within the span of whoever submits it, and ends with the turn.

use tracing::Span;
use tracing::field::{Empty, display};
use turnflow_state::{Turn, TurnEvent};

/// The span of a turn that is admitted now.
pub(crate) fn of(turn: &Turn) -> Span {
    tracing::debug_span!(
        "turn",
        tenant = %turn.tenant,
        conversation = %turn.conversation,
        turn = %turn.id,
        channel = %turn.channel,
        level = Empty,
        tier = Empty,
        error = Empty,
        total_us = Empty,
        recall_us = Empty,
        dedupe_us = Empty,
        embed_us = Empty,
        retrieve_us = Empty,
        lookup_us = Empty,
        prioritise_us = Empty,
        generate_us = Empty,
        commit_us = Empty,
    )
}

/// Takes in how the turn ends, and says so.
pub(crate) fn end(span: &Span, event: &TurnEvent) {
    if span.is_disabled() {
        return;
    }
    match event {
        TurnEvent::Done(completion) => {
            span.record("level", display(completion.verdict.level));
            span.record("tier", display(completion.tier));
            span.record("total_us", completion.total_us);
            for (stage, elapsed_us) in completion.latency.iter() {
                span.record(format!("{stage}_us").as_str(), elapsed_us);
            }
            span.in_scope(|| tracing::debug!("a turn was answered"));
        }
        TurnEvent::Error(error) => {
            span.record("error", display(error.kind));
            span.in_scope(|| tracing::debug!("a turn failed"));
        }
        TurnEvent::Accepted | TurnEvent::Delta(_) | TurnEvent::Restart => {}
    }
}

#[cfg(test)]
mod tests {
    use turnflow_state::Stage;

    /// Fields have to be named where the span is made.
    #[test]
    fn every_stage_has_a_field() {
        for stage in Stage::ALL {
            assert!(include_str!("span.rs").contains(&format!("        {stage}_us = Empty,")), "{stage}");
        }
    }
}

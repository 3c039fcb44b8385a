//! Turns on their way in: charged an estimate, submitted, and charged the rest when they end, whether or not their client still waits for that.
//!
//! A turn that failed, as one does that nobody waits for any more, is charged what tiers had read and written for it by then, and at least the
//! estimate.

use turnflow_pipeline::{Beginning, Cost, Pipeline, Submission, TurnStream};
use turnflow_state::{Completion, Exchange, TierSize, TurnError, TurnErrorKind, TurnEvent, Usage};

use super::limits::{Amounts, Charge};
use super::{Caller, Refusal};

/// Lets a turn in that needs `also` of its caller's limits, besides its own place and the tokens of its texts.
///
/// Cancel-safe: a turn whose future is dropped was not admitted, and stays charged what was estimated.
pub(crate) async fn admit(
    pipeline: &Pipeline,
    caller: &Caller,
    submission: Submission,
    also: Amounts,
) -> Result<Admitted, Refusal> {
    let said = submission.told.iter().flat_map(|Exchange { question, answer }| [question.as_str(), answer]);
    let tokens = estimate(said.chain([submission.turn.text.as_str()]));
    let account = caller.account();
    let usage = Usage { input_tokens: tokens, output_tokens: 0 };
    let micros = account.price().cost_micros(usage);
    let charge = account.take(Amounts { turns: 1, tokens: tokens.into(), micros, ..also })?;
    let bill = charge.bill().clone();
    let on_cost = Box::new(move |cost| {
        let of = |usage: Usage| u64::from(usage.input_tokens) + u64::from(usage.output_tokens);
        let (tokens, micros) = match cost {
            Cost::Known { usage, micros } => (of(usage), micros),
            Cost::Failed { usage, micros: spent } => (of(usage).max(tokens.into()), spent.max(micros)),
        };
        bill.settle(tokens, micros);
    });
    match pipeline.submit_at_cost(submission, on_cost).await {
        Ok(events) => Ok(Admitted { events, _charge: charge }),
        Err(error) => {
            charge.bill().settle(0, 0);
            Err(error.into())
        }
    }
}

/// Tokens of texts, estimated.
pub(crate) fn estimate<'a>(texts: impl IntoIterator<Item = &'a str>) -> u32 {
    Usage::estimated(texts.into_iter().map(str::len).sum(), 0).input_tokens
}

/// The events of a turn that was let in. It holds its caller's places until it is dropped; its cost is charged when the turn ends, which may be later.
pub(crate) struct Admitted {
    events: TurnStream,
    _charge: Charge,
}

impl Admitted {
    /// The turn's next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> TurnEvent {
        // The pipeline promises a terminal event. Should it break its word, the client must not wait for ever.
        let broken_off = || TurnError::new(TurnErrorKind::Internal, "its events ended without a terminal one");
        self.events.next().await.unwrap_or_else(|| TurnEvent::Error(broken_off()))
    }

    /// See [`TurnStream::completion`].
    pub(crate) fn completion(&self) -> Option<&Completion> {
        self.events.completion()
    }

    /// See [`TurnStream::beginning`].
    pub(crate) const fn beginning(&self) -> Option<Beginning> {
        self.events.beginning()
    }

    /// See [`TurnStream::writer`].
    pub(crate) const fn writer(&self) -> Option<TierSize> {
        self.events.writer()
    }
}

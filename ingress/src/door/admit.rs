//! Turns on their way in: charged an estimate, submitted, and charged the rest when they end.

use turnflow_pipeline::{Beginning, Pipeline, Submission, TurnStream};
use turnflow_state::{Completion, Exchange, TurnError, TurnErrorKind, TurnEvent, Usage};

use super::limits::{Amounts, Charge};
use super::{Caller, Refusal};

/// Bytes of text for each estimated token.
const TOKEN_BYTES: usize = 4;

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
    let mut charge = account.take(Amounts { turns: 1, tokens: tokens.into(), micros, ..also })?;
    match pipeline.submit_with(submission).await {
        Ok(events) => Ok(Admitted { events, charge, usage, is_settled: false }),
        Err(error) => {
            charge.settle(0, 0);
            Err(error.into())
        }
    }
}

/// Tokens of texts, estimated.
pub(crate) fn estimate<'a>(texts: impl IntoIterator<Item = &'a str>) -> u32 {
    let bytes: usize = texts.into_iter().map(str::len).sum();
    u32::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
}

/// The events of a turn that was let in.
///
/// It holds its places until it is dropped, and is charged what its answer has cost. One that is dropped before that is known is charged
/// what was estimated for its texts, and for what was told of the answer where that was being written for it. An answer that its turn had before
/// is free.
pub(crate) struct Admitted {
    events: TurnStream,
    charge: Charge,
    /// As estimated so far.
    usage: Usage,
    /// Whether no more will be known of its cost.
    is_settled: bool,
}

impl Admitted {
    /// The turn's next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> TurnEvent {
        // The pipeline promises a terminal event. Should it break its word, the client must not wait for ever.
        let broken_off = || TurnError::new(TurnErrorKind::Internal, "its events ended without a terminal one");
        let event = self.events.next().await.unwrap_or_else(|| TurnEvent::Error(broken_off()));
        match &event {
            TurnEvent::Accepted | TurnEvent::Restart => {}
            TurnEvent::Delta(piece) => {
                let written = estimate([piece.as_str()]);
                self.usage.output_tokens = self.usage.output_tokens.saturating_add(written);
            }
            TurnEvent::Done(completion) => self.charge_for(completion.usage, completion.cost_micros),
            TurnEvent::Error(_) => self.is_settled = true,
        }
        event
    }

    /// Charges an answer. One that is told again was charged when it was made.
    fn charge_for(&mut self, usage: Usage, micros: u64) {
        if self.events.is_repeated() { self.settle(Usage::default(), 0) } else { self.settle(usage, micros) }
    }

    fn settle(&mut self, usage: Usage, micros: u64) {
        self.charge.settle(u64::from(usage.input_tokens) + u64::from(usage.output_tokens), micros);
        self.is_settled = true;
    }

    /// See [`TurnStream::completion`].
    pub(crate) fn completion(&self) -> Option<&Completion> {
        self.events.completion()
    }

    /// See [`TurnStream::beginning`].
    pub(crate) const fn beginning(&self) -> Option<Beginning> {
        self.events.beginning()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        if let Some((usage, micros)) = self.completion().map(|completion| (completion.usage, completion.cost_micros)) {
            self.charge_for(usage, micros);
        } else if self.beginning().is_some() {
            self.settle(self.usage, self.charge.price().cost_micros(self.usage));
        }
    }
}

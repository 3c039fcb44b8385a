//! Route: decides which tier answers a turn.
//!
//! Small talk gets its fixed reply here and ends. With one tier there is one decision about the rest. With two, a
//! [`Chooser`] decides by the question; a conversation that the large tier has answered stays with it; and while the process is
//! [degraded](crate::load), those who begin a conversation get the small one. Nobody who is in a conversation is moved down here; who
//! asks the same as one who begins, at the same time, hears the same answer. A turn that wants a cached answer or none ends here.

use std::sync::Arc;

use turnflow_models::{Decision, PlainRule, Reason, Retrieval, Router, RouterInput, Target};
use turnflow_state::{Answer, LoadLevel, RouteEvidence, Tier, TierSize, TurnError, TurnErrorKind, Usage};

use crate::generate::served;
use crate::load::Load;
use crate::message::{Ask, Outcome, Step};
use crate::prioritise::Class;
use crate::shell::Stage;
use crate::smalltalk::SmallTalk;

/// Chooses between two tiers by the question and what was retrieved for it.
#[derive(Clone, Debug)]
pub enum Chooser {
    /// By a rule that needs no training.
    Plain(PlainRule),
    /// By what was learned from judged turns, and what is wanted of it.
    Trained(Arc<Router>, Target),
}

impl Chooser {
    /// Which tier is to answer a turn.
    #[must_use]
    pub fn choose(&self, ask: &Ask) -> Decision {
        let input = RouterInput {
            text: &ask.turn.text,
            vector: ask.vector.as_deref().unwrap_or_default(),
            retrieval: Retrieval::of(&ask.retrieved),
            turns_before: u32::try_from(ask.turns_before).unwrap_or(u32::MAX),
            leans: ask.leans,
        };
        match self {
            Self::Plain(rule) => rule.decide(&input),
            // What leans is in no file of judged turns, so a router knows nothing of it.
            Self::Trained(..) if ask.leans => {
                let reasons = vec![Reason { name: "leans on turns before", value: 1.0, weight: -1.0 }];
                Decision { size: TierSize::Large, probability: None, required: None, reasons }
            }
            Self::Trained(router, target) => router.decide(&input, *target),
        }
    }
}

/// Why a tier was chosen, in words.
fn reason(Decision { size, probability, required, reasons }: &Decision) -> String {
    let described = |reason: &Reason| format!("{} {:.2}", reason.name, reason.value);
    let reasons: Vec<String> = reasons.iter().map(described).collect();
    let reasons = reasons.join(", ");
    match (probability, required) {
        (Some(probability), Some(required)) => {
            let suffices = format!("the small tier suffices with a probability of {probability:.2}");
            format!("{suffices}, and {:.2} is required: {reasons}", required.min(1.0))
        }
        _ => format!("the {size} tier by a plain rule: {reasons}"),
    }
}

/// The core.
#[derive(Clone, Debug)]
pub struct Route {
    /// What is said to small talk.
    pub small_talk: SmallTalk,
    /// What chooses; None where there is one tier.
    pub chooser: Option<Chooser>,
    /// Whether a conversation stays with the large tier.
    pub sticky: bool,
    /// How loaded the process is.
    pub load: Load,
}

impl Route {
    fn decide(&self, ask: &mut Ask, now_us: u64) {
        let load = self.load.lock().level(now_us);
        let is_turn = !ask.purpose.is_background();
        let Some(chooser) = &self.chooser else {
            return note(ask, TierSize::Large, "there is one tier".to_owned(), None, load);
        };
        if let Some(size) = ask.wishes.size {
            return note(ask, size, "the caller asked for it".to_owned(), None, load);
        }
        if self.sticky && ask.size_before == Some(TierSize::Large) {
            return note(
                ask,
                TierSize::Large,
                "the large tier has answered the conversation before".to_owned(),
                None,
                load,
            );
        }
        let decision = chooser.choose(ask);
        let Decision { size, probability, .. } = decision;
        let reason = reason(&decision);
        if size == TierSize::Large && is_turn && load > LoadLevel::Normal && Class::of(ask) != Class::Ongoing {
            ask.degraded = true;
            let reason = format!("under load a new conversation gets the small tier, though {reason}");
            return note(ask, TierSize::Small, reason, probability, load);
        }
        note(ask, size, reason, probability, load);
    }
}

fn note(ask: &mut Ask, size: TierSize, reason: String, probability: Option<f32>, load: LoadLevel) {
    ask.size = size;
    ask.route = Some(Box::new(RouteEvidence { size, reason, probability, load, escalated: false }));
}

impl Stage for Route {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        out.push(match self.small_talk.reply(&ask.turn.text) {
            Some(reply) => Err(served(ask, scripted(reply), None, None)),
            None if ask.wishes.only_cached => Err(uncached(ask)),
            None => {
                self.decide(&mut ask, now_us);
                Ok(ask)
            }
        });
    }
}

fn uncached(ask: Box<Ask>) -> Outcome {
    let message = if ask.leans { "it leans on earlier turns of the conversation" } else { ask.missed.as_str() };
    let error = TurnError::new(TurnErrorKind::Uncached, format!("no cached answer serves: {message}"));
    Outcome::failed(ask, error)
}

fn scripted(reply: &str) -> Answer {
    let usage = Usage { input_tokens: 0, output_tokens: 0 };
    Answer { text: reply.to_owned(), tier: Tier::Scripted, sources: Vec::new(), usage, grounded: false, cut_off: false }
}

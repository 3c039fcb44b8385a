//! Route: decides which tier answers a turn.
//!
//! Small talk gets its fixed reply here and ends. With the one embedded tier there is one decision about the rest; it stands
//! here so that the way of a turn is whole, and so that nothing downstream assumes a tier.

use turnflow_state::{Answer, Tier, Usage};

use crate::generate::served;
use crate::message::{Ask, Step};
use crate::shell::Stage;
use crate::smalltalk::SmallTalk;

/// The core.
#[derive(Clone, Debug)]
pub struct Route {
    /// The tier that answers.
    pub tier: Tier,
    /// What is said to small talk.
    pub small_talk: SmallTalk,
}

impl Stage for Route {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, _now_us: u64, out: &mut Vec<Step>) {
        out.push(match self.small_talk.reply(&ask.turn.text) {
            Some(reply) => Err(served(ask, scripted(reply), 0, false)),
            None => {
                ask.tier = self.tier;
                Ok(ask)
            }
        });
    }
}

fn scripted(reply: &str) -> Answer {
    let usage = Usage { input_tokens: 0, output_tokens: 0 };
    Answer { text: reply.to_owned(), tier: Tier::Scripted, sources: Vec::new(), usage, grounded: false }
}

//! Route: decides which tier answers a turn.
//!
//! With the one embedded tier there is one decision; it stands here so that the way of a turn is whole, and so
//! that nothing downstream assumes a tier.

use turnflow_state::Tier;

use crate::message::Ask;
use crate::shell::Stage;

/// The core.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The tier that answers.
    pub tier: Tier,
}

impl Stage for Route {
    type Input = Box<Ask>;
    type Output = Box<Ask>;

    fn push(&mut self, mut ask: Box<Ask>, _now_us: u64, out: &mut Vec<Box<Ask>>) {
        ask.tier = self.tier;
        out.push(ask);
    }
}

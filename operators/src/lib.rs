//! The stages of a turn, each a pure core and a thin timely shell.
//!
//! One file per stage, named as in the way of a turn: [`recall`] → [`dedupe`] → [`embed`] → [`retrieve`] →
//! [`lookup`] → [`route`] → [`flights`] → [`prioritise`] → [`generate`] → [`commit`] → [`acknowledge`] → [`reply`]. A core is a [`Stage`]: it is
//! given items and the time, and appends what it decided to a buffer. It holds no capability and reads no clock,
//! no randomness and no environment; the one shell of every stage is in [`shell`].
//!
//! Which cached answers still follow from the knowledge base is maintained by the dataflow of [`validity`].
//!
//! Which hits are answered in full as well is decided by [`audit`], and what that means for the policy by [`bound`].
//!
//! Who still waits for a turn is told by [`clients`].
//!
//! What load means for those who begin a conversation is decided by [`load`].
//!
//! What of the answers that fell is asked again in the background is decided by [`refresh`].
//!
//! Which cached answers an operator looks at or flushes is said by a [`selection`].
//!
//! What a turn carries is in [`message`]. What a worker remembers of answered questions is a [`shard::Shard`].

pub mod acknowledge;
pub mod audience;
pub mod audit;
pub mod bound;
pub mod clients;
pub mod commit;
mod deadline;
pub mod dedupe;
pub mod embed;
mod error;
pub mod flights;
pub mod generate;
pub mod guard;
pub mod histogram;
pub mod jobs;
pub mod load;
pub mod lookup;
pub mod message;
pub mod policy;
pub mod pool;
pub mod prioritise;
pub mod recall;
pub mod refresh;
pub mod reply;
pub mod retrieve;
pub mod route;
pub mod selection;
pub mod shard;
pub mod shell;
pub mod smalltalk;
pub mod tally;
pub mod validity;

pub use error::OperatorError;
pub use shell::{Clock, Stage};

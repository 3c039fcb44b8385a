//! Acknowledge: tells the end of a turn, and lets its conversation go on.
//!
//! Contract: exchanged by conversation, to the worker that committed the turn: so the terminal event takes the same
//! channel as the pieces before it and overtakes none, and the next turn of the conversation starts only after the
//! end of this one is on its way. A turn that recall started gives back exactly one [`Release`].

use crate::message::{Ended, Notice};
use crate::recall::Release;
use crate::shell::{Mailbox, Stage};

/// The core.
#[derive(Debug)]
pub struct Acknowledge {
    releases: Mailbox<Release>,
}

impl Acknowledge {
    /// A stage that releases conversations to the recall of this worker.
    #[must_use]
    pub fn new(releases: Mailbox<Release>) -> Self {
        Self { releases }
    }
}

impl Stage for Acknowledge {
    type Input = Box<Ended>;
    type Output = Notice;

    fn push(&mut self, ended: Box<Ended>, _now_us: u64, out: &mut Vec<Notice>) {
        let Ended { request, admitted_us, event, writer, conversation, spent, started, repeated } = *ended;
        out.push(Notice { request, admitted_us, event, writer, beginning: None, spent, repeated });
        if started {
            self.releases.send(Release(conversation));
        }
    }
}

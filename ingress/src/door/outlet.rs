//! The way of a call's events to its client, and what happens when the client does not read.
//!
//! A bounded queue, with the connection's own buffers below it. A response that finds no room within `limits.reader-wait-ms` ends
//! the call with a last word, for which a place is kept: who does not read must not hold places of turns for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use turnflow_state::{Limits, TurnEvent};

use super::Admitted;

/// Responses of one call that wait for a slow reader. The connection buffers more below.
const RESPONSES_QUEUED_MAX: usize = 32;

/// What goes to a client that can be told why it is cut off.
pub(crate) trait CutOff: Send + 'static {
    /// The last word to a client that has made no room for so long.
    fn too_slow(wait: Duration) -> Self;
}

/// Where the events of turns go that one call asked.
pub(crate) struct Outlet<R> {
    sender: mpsc::Sender<R>,
    /// When the client last made room.
    read: Arc<Mutex<Instant>>,
    /// How long a response may wait for room.
    wait: Duration,
}

impl<R> Clone for Outlet<R> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), read: Arc::clone(&self.read), wait: self.wait }
    }
}

/// Why a response was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untold {
    /// The client is gone.
    Gone,
    /// It has made no room in time.
    Slow,
}

/// Room for what ends a call whose client does not read.
pub(crate) struct LastWord<R>(mpsc::OwnedPermit<R>, Duration);

impl<R: CutOff> LastWord<R> {
    /// Ends the call.
    pub(crate) fn too_slow(self) {
        tracing::info!("a client that does not read is cut off");
        let response = R::too_slow(self.1);
        self.say(response);
    }

    /// Ends the call in another way.
    pub(crate) fn say(self, response: R) {
        self.0.send(response);
    }
}

impl<R: Send + 'static> Outlet<R> {
    /// A way for the responses of a call, room for its last word, and what the client reads.
    pub(crate) fn open(limits: &Limits) -> (Self, Option<LastWord<R>>, ReceiverStream<R>) {
        let (sender, responses) = mpsc::channel(RESPONSES_QUEUED_MAX + 1);
        let wait = Duration::from_millis(limits.reader_wait_ms);
        let last = sender.clone().try_reserve_owned().ok().map(|permit| LastWord(permit, wait));
        (Self { sender, read: Arc::new(Mutex::new(Instant::now())), wait }, last, ReceiverStream::new(responses))
    }

    /// Tells the client something. A client that is gone, or does not read, hears nothing.
    pub(crate) async fn tell(&self, response: R) -> Result<(), Untold> {
        let mut response = response;
        loop {
            match self.sender.send_timeout(response, self.wait).await {
                Ok(()) => {
                    *self.lock() = Instant::now();
                    return Ok(());
                }
                // Others were told something meanwhile: it reads, and this one's turn comes.
                Err(SendTimeoutError::Timeout(untold)) if self.lock().elapsed() < self.wait => response = untold,
                Err(SendTimeoutError::Timeout(_)) => return Err(Untold::Slow),
                Err(SendTimeoutError::Closed(_)) => return Err(Untold::Gone),
            }
        }
    }

    /// How long a response may wait for room.
    pub(crate) const fn wait(&self) -> Duration {
        self.wait
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the client is gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// A turn's next event, or `None` when nobody listens any more. Cancel-safe.
pub(crate) async fn next_event<R: Send + 'static>(events: &mut Admitted, out: &Outlet<R>) -> Option<TurnEvent> {
    tokio::select! {
        biased;
        () = out.closed() => None,
        event = events.next() => Some(event),
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Response(Option<usize>);

    impl CutOff for Response {
        fn too_slow(_: Duration) -> Self {
            Self(None)
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_told_so_last() {
        let limits = Limits { reader_wait_ms: 50, ..turnflow_pipeline::Config::defaults().limits };
        let (out, last, mut responses) = Outlet::open(&limits);
        for number in 0..RESPONSES_QUEUED_MAX {
            assert_eq!(out.tell(Response(Some(number))).await, Ok(()));
        }
        assert_eq!(out.tell(Response(Some(99))).await, Err(Untold::Slow));
        last.expect("a place is kept").too_slow();
        drop(out);
        for number in 0..RESPONSES_QUEUED_MAX {
            assert_eq!(responses.next().await, Some(Response(Some(number))));
        }
        assert_eq!(responses.next().await, Some(Response(None)));
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn who_is_gone_hears_nothing() {
        let (out, _last, responses) = Outlet::open(&turnflow_pipeline::Config::defaults().limits);
        drop(responses);
        assert_eq!(out.tell(Response(Some(1))).await, Err(Untold::Gone));
        out.closed().await;
    }
}

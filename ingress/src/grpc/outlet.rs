//! The way of a call's events to its client, and what happens when the client does not read.
//!
//! A bounded queue, with HTTP/2's window below it. A response that finds no room within `limits.reader-wait-ms` ends the call with
//! RESOURCE_EXHAUSTED, for which a place is kept: who does not read must not hold places of turns for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use turnflow_state::Limits;

use super::refusal::slow_reader;
use super::service::RESPONSES_QUEUED_MAX;

/// Where the events of turns go that one call asked.
pub(super) struct Outlet<R> {
    sender: mpsc::Sender<Result<R, Status>>,
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
pub(super) enum Untold {
    /// The client is gone.
    Gone,
    /// It has made no room in time.
    Slow,
}

/// Room for the status that ends a call whose client does not read.
pub(super) struct LastWord<R>(mpsc::OwnedPermit<Result<R, Status>>, Duration);

impl<R> LastWord<R> {
    /// Ends the call.
    pub(super) fn too_slow(self) {
        tracing::info!("a client that does not read is cut off");
        self.0.send(Err(slow_reader(self.1)));
    }
}

impl<R: Send + 'static> Outlet<R> {
    /// A way for the responses of a call, room for its last word, and what the client reads.
    pub(super) fn open(limits: &Limits) -> (Self, Option<LastWord<R>>, ReceiverStream<Result<R, Status>>) {
        let (sender, responses) = mpsc::channel(RESPONSES_QUEUED_MAX + 1);
        let wait = Duration::from_millis(limits.reader_wait_ms);
        let last = sender.clone().try_reserve_owned().ok().map(|permit| LastWord(permit, wait));
        (Self { sender, read: Arc::new(Mutex::new(Instant::now())), wait }, last, ReceiverStream::new(responses))
    }

    /// Tells the client something. A client that is gone, or does not read, hears nothing.
    pub(super) async fn tell(&self, response: Result<R, Status>) -> Result<(), Untold> {
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

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the client is gone.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn who_does_not_read_is_told_so_last() {
        let limits = Limits { reader_wait_ms: 50, ..turnflow_pipeline::Config::defaults().limits };
        let (out, last, mut responses) = Outlet::open(&limits);
        for number in 0..RESPONSES_QUEUED_MAX {
            assert_eq!(out.tell(Ok(number)).await, Ok(()));
        }
        assert_eq!(out.tell(Ok(99)).await, Err(Untold::Slow));
        last.expect("a place is kept").too_slow();
        drop(out);
        for number in 0..RESPONSES_QUEUED_MAX {
            assert_eq!(responses.next().await.expect("queued").expect("a response"), number);
        }
        let status = responses.next().await.expect("the last word").expect_err("a status");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("50 ms"), "{status:?}");
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn who_is_gone_hears_nothing() {
        let (out, _last, responses) = Outlet::open(&turnflow_pipeline::Config::defaults().limits);
        drop(responses);
        assert_eq!(out.tell(Ok(1)).await, Err(Untold::Gone));
        out.closed().await;
    }
}

//! Accepted connections: a bounded number of them, each with a deadline to speak HTTP/2.
//!
//! Tonic takes any number of connections and retries a failed accept at once, which spins when the process is out of
//! file descriptors. Here a connection holds a place until it is closed, a failed accept waits, and a peer that has
//! not sent the HTTP/2 preface in time is cut off; past the preface, HTTP/2 keepalive watches it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::door::{Open, Traffic};

/// Open connections. More wait in the operating system's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// How long a peer may take to send the HTTP/2 preface.
const PREFACE_MAX: Duration = Duration::from_secs(10);
/// Length of the HTTP/2 preface, RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
/// Pause after an accept that failed: the usual cause, no free file descriptor, does not go away by asking again.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);

/// Accepts connections until the stream is dropped, which closes the listener.
pub(super) fn accept(listener: TcpListener, traffic: Traffic) -> ReceiverStream<io::Result<Connection>> {
    let (out, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = out.closed() => {}
            () = accept_into(listener, &traffic, &out) => {}
        }
    });
    ReceiverStream::new(connections)
}

async fn accept_into(listener: TcpListener, traffic: &Traffic, out: &mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let connection = match listener.accept().await {
            Ok((socket, _)) => Connection::new(socket, (place, traffic.opened("grpc")), PREFACE_MAX),
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                continue;
            }
        };
        if out.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

/// An accepted connection.
pub(super) struct Connection {
    socket: TcpStream,
    /// Until the preface is read: how much of it was, and until when the rest may take.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    _held: (OwnedSemaphorePermit, Open),
}

impl Connection {
    fn new(socket: TcpStream, held: (OwnedSemaphorePermit, Open), preface_max: Duration) -> Self {
        // Deltas are small and each is awaited by a reader: none may wait for the next to fill a packet.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!("setting TCP_NODELAY: {error}");
        }
        Self { socket, preface: Some((0, Box::pin(tokio::time::sleep(preface_max)))), _held: held }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let Some((read, deadline)) = &mut self.preface else {
            return polled;
        };
        *read += buffer.filled().len() - filled;
        if *read >= PREFACE_BYTES {
            self.preface = None;
        } else if polled.is_pending() {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time")));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected(preface_max: Duration) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        let (socket, _) = listener.accept().await.expect("connected");
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
        (Connection::new(socket, (place, Traffic::default().opened("grpc")), preface_max), client)
    }

    #[tokio::test]
    async fn a_peer_without_a_preface_is_cut_off() {
        let (mut connection, mut client) = connected(Duration::from_millis(1)).await;
        client.write_all(b"PRI * HTTP").await.expect("connected");
        let mut bytes = [0; 64];
        assert_eq!(connection.read(&mut bytes).await.expect("sent"), 10);
        let error = connection.read(&mut bytes).await.expect_err("nothing follows");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_deadline_ends_with_the_preface() {
        let (mut connection, mut client) = connected(PREFACE_MAX).await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("connected");
        let mut bytes = [0; PREFACE_BYTES];
        connection.read_exact(&mut bytes[1..]).await.expect("sent");
        assert!(connection.preface.is_some(), "one byte is missing");
        connection.read_exact(&mut bytes[..1]).await.expect("sent");
        assert!(connection.preface.is_none());
    }
}

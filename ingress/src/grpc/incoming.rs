//! Accepted connections, each with a deadline to speak HTTP/2.
//!
//! Tonic takes any number of connections and retries a failed accept at once, which spins when the process is out of file
//! descriptors. So the [`Acceptor`] bounds them, and a peer that has not sent the HTTP/2 preface in time is cut off here; past the preface, HTTP/2
//! keepalive watches it. A request over HTTP/1.1, which pages may send, is longer than the preface.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use turnflow_pipeline::Config;

use crate::door::{Acceptor, Gateway, Held, Socket, Terms};

/// Open connections.
const CONNECTIONS_MAX: usize = 1024;
/// How long a peer may take to send the HTTP/2 preface.
const PREFACE_MAX: Duration = Duration::from_secs(10);
/// Length of the HTTP/2 preface, RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;

/// Accepts connections until the stream is dropped, which closes the listener.
pub(super) fn accept(
    listener: TcpListener,
    gateway: &Gateway,
    config: &Config,
) -> ReceiverStream<io::Result<Connection>> {
    let is_for_pages = !config.server.grpc_web_origins.is_empty();
    let terms = Terms {
        name: "grpc",
        connections_max: CONNECTIONS_MAX,
        protocols: if is_for_pages { &[b"h2", b"http/1.1"] } else { &[b"h2"] },
        without_tls: go_away("this port speaks TLS, so call it with https://"),
        reader_wait: Duration::from_millis(config.limits.reader_wait_ms),
    };
    let mut acceptor = Acceptor::new(listener, terms, gateway);
    let (out, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let (socket, held) = tokio::select! {
                () = out.closed() => return,
                accepted = acceptor.next() => accepted,
            };
            if out.send(Ok(Connection::new(socket, held, PREFACE_MAX))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(connections)
}

/// What a server says in HTTP/2 before it closes a connection that is not secure enough: its settings, which are none, and a GOAWAY frame
/// with the reason in words, RFC 9113, sections 6.5, 6.8 and 7.
fn go_away(reason: &str) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 6] = [7, 0, 0, 0, 0, 0];
    const LAST_STREAM: [u8; 4] = [0; 4];
    const INADEQUATE_SECURITY: [u8; 4] = [0, 0, 0, 12];
    let body = [LAST_STREAM, INADEQUATE_SECURITY].concat();
    // A reason is short.
    let length = (body.len() + reason.len()).to_be_bytes();
    let length = &length[length.len() - 3..];
    [&SETTINGS, length, &GOAWAY, &body, reason.as_bytes()].concat()
}

/// An accepted connection.
pub(super) struct Connection {
    socket: Socket,
    /// Until the preface is read: how much of it was, and until when the rest may take.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    _held: Held,
}

impl Connection {
    fn new(socket: Socket, held: Held, preface_max: Duration) -> Self {
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
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use turnflow_state::TenantId;

    use super::*;

    async fn connected(preface_max: Duration) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        let gateway = Gateway::keyless(TenantId::new("t").expect("valid id"));
        let terms = Terms {
            name: "grpc",
            connections_max: 1,
            protocols: &[],
            without_tls: Vec::new(),
            reader_wait: PREFACE_MAX,
        };
        let (socket, held) = Acceptor::new(listener, terms, &gateway).next().await;
        (Connection::new(socket, held, preface_max), client)
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

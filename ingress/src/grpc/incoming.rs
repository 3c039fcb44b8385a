//! Accepted connections, each with a deadline to speak HTTP/2.
//!
//! Tonic takes any number of connections and retries a failed accept at once, which spins when the process is out of file
//! descriptors. So the [`Acceptor`] bounds them, and what a client speaks is seen here before tonic has the connection: a peer that has not sent the
//! HTTP/2 preface in time is cut off, and one that speaks something else is told so. Past the preface, HTTP/2 keepalive watches it. A request over
//! HTTP/1.1, which pages may send, is longer than the preface.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use turnflow_pipeline::Config;

use crate::door::{Acceptor, Gateway, Held, Patience, Socket, Terms, close, misspoken};

/// Open connections.
const CONNECTIONS_MAX: usize = 1024;
/// How long a peer may take to send the HTTP/2 preface, or to hear that it has to.
const PREFACE_MAX: Duration = Duration::from_secs(10);
/// What a client of HTTP/2 says first, RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
        without_tls,
        patience: Patience::of(config),
    };
    let mut acceptor = Acceptor::new(listener, terms, gateway);
    let (out, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        // As many at most as there are places for connections.
        let mut beginning = JoinSet::new();
        loop {
            let begun = tokio::select! {
                () = out.closed() => return,
                (socket, held) = acceptor.next() => {
                    beginning.spawn(timeout(PREFACE_MAX, begin(socket, held, is_for_pages)));
                    continue;
                }
                Some(begun) = beginning.join_next() => begun,
            };
            match begun {
                Ok(Ok(Ok(connection))) => {
                    if out.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                // Clients come and go: their errors are theirs.
                Ok(Ok(Err(error))) => tracing::debug!("a connection did not begin: {error}"),
                Ok(Err(_late)) => tracing::debug!("a connection did not begin in {PREFACE_MAX:?}"),
                Err(panicked) => tracing::error!("the beginning of a connection panicked: {panicked}"),
            }
        }
    });
    ReceiverStream::new(connections)
}

/// What who speaks no TLS hears: in HTTP/2 if it has begun to speak that.
fn without_tls(said: &[u8]) -> Vec<u8> {
    const REASON: &str = "this port speaks TLS, so call it with https://";
    if PREFACE.starts_with(said) { go_away(REASON) } else { misspoken("text/plain", &format!("{REASON}\n")) }
}

/// Reads the beginning of a connection, which tells what its client speaks. Where pages may not call, only HTTP/2 is spoken: a server of it has the
/// first word, so that anybody else would hear that instead of a reason.
async fn begin(mut socket: Socket, held: Held, is_for_pages: bool) -> io::Result<Connection> {
    let (mut begun, mut read) = ([0; PREFACE.len()], 0);
    while read < begun.len() && (is_for_pages || PREFACE.starts_with(&begun[..read])) {
        match socket.read(&mut begun[read..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
    }
    if !is_for_pages && begun != *PREFACE {
        socket
            .write_all(&misspoken("text/plain", "this port speaks gRPC, over HTTP/2; HTTP has a port of its own\n"))
            .await?;
        close(socket).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks no HTTP/2"));
    }
    Ok(Connection { begun: Bytes::copy_from_slice(&begun), socket, _held: held })
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
    /// What was read of it to see what its client speaks, and not handed out yet.
    begun: Bytes,
    socket: Socket,
    _held: Held,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let length = self.begun.len().min(buffer.remaining());
        buffer.put_slice(&self.begun.split_to(length));
        Poll::Ready(Ok(()))
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
    use tokio::net::TcpStream;
    use turnflow_state::TenantId;

    use super::*;

    async fn connected() -> (Socket, Held, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        let gateway = Gateway::keyless(TenantId::new("t").expect("valid id"));
        let patience = Patience::of(&Config::defaults());
        let terms = Terms { name: "grpc", connections_max: 1, protocols: &[], without_tls, patience };
        let (socket, held) = Acceptor::new(listener, terms, &gateway).next().await;
        (socket, held, client)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        for (is_for_pages, said) in
            [(false, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore"), (true, *b"POST / HTTP/1.1\r\nHost: a\r\nbc")]
        {
            let (socket, held, mut client) = connected().await;
            client.write_all(&said).await.expect("connected");
            let mut connection = begin(socket, held, is_for_pages).await.expect("spoken here");
            let mut bytes = [0; 28];
            connection.read_exact(&mut bytes[..7]).await.expect("sent");
            connection.read_exact(&mut bytes[7..]).await.expect("sent");
            assert_eq!(bytes, said);
        }
    }

    #[tokio::test]
    async fn who_speaks_no_http_2_is_told_so_in_words() {
        for said in ["GET / HTTP/1.1\r\n", "PRIVATE", "hello\n"] {
            let (socket, held, mut client) = connected().await;
            client.write_all(said.as_bytes()).await.expect("connected");
            let listening = async {
                let mut told = String::new();
                client.read_to_string(&mut told).await.expect("told");
                drop(client);
                told
            };
            let (begun, told) = tokio::join!(begin(socket, held, false), listening);
            assert!(begun.is_err());
            assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("this port speaks gRPC"), "{said}: {told}");
        }
    }

    #[test]
    fn who_speaks_no_tls_hears_it_in_its_own_protocol() {
        assert!(without_tls(PREFACE).starts_with(&[0, 0, 0, 4]), "a frame of HTTP/2");
        for said in ["GET / HTTP/1.1\r\n", "hello\n"] {
            assert!(without_tls(said.as_bytes()).starts_with(b"HTTP/1.1 400 "), "{said}");
        }
    }
}

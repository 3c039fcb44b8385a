//! The connections of a server: a bounded number of them, each with its handshake where TLS is spoken.
//!
//! A connection has a place from when it is accepted until it is closed. Handshakes go on beside each other, each for a bounded time, so that a
//! client that is slow with its own, or silent, holds up nobody else; a failed accept waits. Who speaks no TLS where that is spoken is told so in
//! words that it understands. A peer that has vanished is noticed by the operating system, where no protocol above asks for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use turnflow_pipeline::Config;

use super::connection::Connection;
use super::tls::Tls;
use super::{Gateway, Open, Traffic};

/// Pause after an accept that failed: the usual cause, no free file descriptor, does not go away by asking again.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);
/// The first byte of whoever speaks TLS: the type of a handshake's record, RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;
/// How much of what a client says first is looked at to know what it speaks, in bytes.
const FIRST_BYTES: usize = 24;
/// What a client may send to a connection that is being refused, in bytes.
const REFUSED_BYTES_MAX: u64 = 64 * 1024;

/// What a client and its server talk over.
pub(crate) type Socket = Connection<Either<TcpStream, TlsStream<TcpStream>>>;
/// A connection's place, and what counts it. Dropped when it is closed.
pub(crate) type Held = (OwnedSemaphorePermit, Open);

/// How a server takes connections.
pub(crate) struct Terms {
    /// What it is called where connections are counted.
    pub(crate) name: &'static str,
    /// Open connections. More wait in the operating system's backlog.
    pub(crate) connections_max: usize,
    /// The protocols that it speaks, by their names for ALPN.
    pub(crate) protocols: &'static [&'static [u8]],
    /// What who speaks no TLS hears, by what has come of its first words.
    pub(crate) without_tls: fn(&[u8]) -> Vec<u8>,
    pub(crate) patience: Patience,
}

/// How long a client may be silent in ways that it should not be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// It may leave unread what it is sent.
    pub(crate) reader_wait: Duration,
    /// An idle connection is probed after this time.
    pub(crate) keepalive_interval: Duration,
    /// Its system may take so long to answer.
    pub(crate) keepalive_timeout: Duration,
}

impl Patience {
    pub(crate) const fn of(config: &Config) -> Self {
        Self {
            reader_wait: Duration::from_millis(config.limits.reader_wait_ms),
            keepalive_interval: Duration::from_secs(config.server.keepalive_interval_s),
            keepalive_timeout: Duration::from_secs(config.server.keepalive_timeout_s),
        }
    }
}

/// A whole response over HTTP/1.1 to who speaks the wrong protocol. No request was read, so nothing else of a server is there to write it.
pub(crate) fn misspoken(content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 400 Bad Request\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// Accepts connections until it is dropped, which closes the port, and handshakes with it.
pub(crate) struct Acceptor {
    listener: TcpListener,
    terms: Arc<Terms>,
    tls: Option<Tls>,
    traffic: Traffic,
    places: Arc<Semaphore>,
    handshakes: JoinSet<io::Result<(Socket, Held)>>,
}

impl Acceptor {
    pub(crate) fn new(listener: TcpListener, terms: Terms, gateway: &Gateway) -> Self {
        let places = Arc::new(Semaphore::new(terms.connections_max));
        let (tls, traffic) = (gateway.tls().cloned(), gateway.traffic().clone());
        Self { listener, terms: Arc::new(terms), tls, traffic, places, handshakes: JoinSet::new() }
    }

    /// The next connection. Cancel-safe.
    pub(crate) async fn next(&mut self) -> (Socket, Held) {
        loop {
            let (socket, place) = tokio::select! {
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(error)) => {
                        // Clients come and go: their errors are theirs.
                        tracing::debug!("a handshake failed: {error}");
                        continue;
                    }
                    Err(panicked) => {
                        tracing::error!("a handshake panicked: {panicked}");
                        continue;
                    }
                },
                accepted = accept(&self.listener, &self.places, self.terms.patience) => accepted,
            };
            let held = (place, self.traffic.opened(self.terms.name));
            let Patience { reader_wait, .. } = self.terms.patience;
            let Some(tls) = self.tls.clone() else { return (Connection::new(Either::Left(socket), reader_wait), held) };
            let terms = Arc::clone(&self.terms);
            self.handshakes.spawn(async move {
                let wait = tls.handshake_wait();
                let shaken = tokio::time::timeout(wait, handshake(socket, &tls, &terms)).await;
                let too_slow = |_| io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {wait:?}"));
                Ok((Connection::new(Either::Right(shaken.map_err(too_slow)??), reader_wait), held))
            });
        }
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    patience: Patience,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        // No error: the semaphore is never closed.
        let Ok(place) = Arc::clone(places).acquire_owned().await else { return std::future::pending().await };
        match listener.accept().await {
            Ok((socket, _)) => {
                if let Err(error) = prepare(&socket, patience) {
                    tracing::debug!("preparing a connection: {error}");
                }
                return (socket, place);
            }
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
            }
        }
    }
}

/// Has the operating system do for a connection what nothing above does.
fn prepare(socket: &TcpStream, patience: Patience) -> io::Result<()> {
    // Pieces are small and each is awaited by a reader: none may wait for the next to fill a packet.
    socket.set_nodelay(true)?;
    let Patience { reader_wait, keepalive_interval, keepalive_timeout } = patience;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive_interval).with_interval(keepalive_timeout))?;
    // For what was sent to a peer that has vanished. It also ends a connection whose client does not read, which has its own time.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(keepalive_interval + keepalive_timeout + reader_wait))?;
    #[cfg(not(target_os = "linux"))]
    let _ = reader_wait;
    Ok(())
}

async fn handshake(mut socket: TcpStream, tls: &Tls, terms: &Terms) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0; FIRST_BYTES];
    let said = socket.peek(&mut first).await?;
    if said > 0 && first[0] != TLS_HANDSHAKE {
        socket.write_all(&(terms.without_tls)(&first[..said])).await?;
        close(socket).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks no TLS"));
    }
    match tls.acceptor(terms.protocols).accept(socket).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, socket)) => {
            close(socket).await?;
            Err(error)
        }
    }
}

/// Closes a connection so that its client hears what it was told: what it has still sent is read, or the operating system would reset the
/// connection, and its client see nothing else.
pub(crate) async fn close(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    socket.shutdown().await?;
    copy(&mut socket.take(REFUSED_BYTES_MAX), &mut sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_watches_for_peers_that_vanish() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        let patience = Patience::of(&Config::defaults());
        let (accepted, _place) = accept(&listener, &Arc::new(Semaphore::new(1)), patience).await;
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().expect("an option") && socket.tcp_nodelay().expect("an option"));
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_keepalive_time().expect("an option"), patience.keepalive_interval);
            let least = patience.reader_wait + patience.keepalive_interval;
            assert!(socket.tcp_user_timeout().expect("an option").is_some_and(|timeout| timeout > least));
        }
    }
}

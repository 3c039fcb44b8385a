//! The connections of a server: a bounded number of them, each with its handshake where TLS is spoken.
//!
//! A connection has a place from when it is accepted until it is closed. Handshakes go on beside each other, each for a bounded time, so that a
//! client that is slow with its own, or silent, holds up nobody else; a failed accept waits. Who speaks no TLS where that is spoken is told so in
//! the server's own protocol.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::connection::Connection;
use super::tls::Tls;
use super::{Gateway, Open, Traffic};

/// Pause after an accept that failed: the usual cause, no free file descriptor, does not go away by asking again.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);
/// The first byte of whoever speaks TLS: the type of a handshake's record, RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;
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
    /// What who speaks no TLS hears.
    pub(crate) without_tls: Vec<u8>,
    /// How long a client may leave unread what it is sent.
    pub(crate) reader_wait: Duration,
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
                accepted = accept(&self.listener, &self.places) => accepted,
            };
            let held = (place, self.traffic.opened(self.terms.name));
            let reader_wait = self.terms.reader_wait;
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
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        // No error: the semaphore is never closed.
        let Ok(place) = Arc::clone(places).acquire_owned().await else { return std::future::pending().await };
        match listener.accept().await {
            Ok((socket, _)) => {
                // Pieces are small and each is awaited by a reader: none may wait for the next to fill a packet.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!("setting TCP_NODELAY: {error}");
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

async fn handshake(mut socket: TcpStream, tls: &Tls, terms: &Terms) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if socket.peek(&mut first).await? > 0 && first != [TLS_HANDSHAKE] {
        socket.write_all(&terms.without_tls).await?;
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
async fn close(mut socket: TcpStream) -> io::Result<()> {
    socket.shutdown().await?;
    copy(&mut socket.take(REFUSED_BYTES_MAX), &mut sink()).await.map(drop)
}

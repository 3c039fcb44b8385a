//! The connection of a client to a server: TCP, TLS where the address says so, and what it broke off with.
//!
//! A server that refuses a client's certificate says so after the handshake, when HTTP/2 has begun, whose library tells its caller no more than
//! that the connection is closed. So the last word is noted here.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::Uri;

/// What a connection broke off with, once it has.
pub(super) type LastWord = Arc<OnceLock<String>>;

/// An open connection.
pub(super) struct Line {
    socket: Either<TcpStream, TlsStream<TcpStream>>,
    last: LastWord,
}

impl Line {
    /// Connects to the host of an address, with TLS where it is given.
    pub(super) async fn open(uri: Uri, tls: Option<Arc<ClientConfig>>, last: LastWord) -> io::Result<Self> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let socket = TcpStream::connect((host.as_str(), port)).await?;
        socket.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Self { socket: Either::Left(socket), last }) };
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let socket = Either::Right(TlsConnector::from(tls).connect(name, socket).await?);
        Ok(Self { socket, last })
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &polled {
            // Only the first one counts.
            let _ = self.last.set(error.to_string());
        }
        polled
    }
}

impl AsyncWrite for Line {
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

//! Connections to a server, for the clients that the command line is made of.

use std::error::Error;
use std::io;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::cli::KeyText;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection whose calls carry a key, where there is one.
pub type Keyed = InterceptedService<Channel, CallerKey>;

/// The key that calls carry. It is not printed.
#[derive(Clone, Debug, Default)]
pub struct CallerKey(Option<MetadataValue<Ascii>>);

impl CallerKey {
    /// Has the calls of a connection carry the key.
    #[must_use]
    pub fn on(&self, channel: Channel) -> Keyed {
        InterceptedService::new(channel, self.clone())
    }
}

impl From<Option<KeyText>> for CallerKey {
    fn from(key: Option<KeyText>) -> Self {
        let header = |key: KeyText| {
            // What no header can carry is no key, and the server says so.
            let mut value = MetadataValue::try_from(format!("Bearer {}", key.reveal())).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        Self(key.and_then(header))
    }
}

impl Interceptor for CallerKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("connecting to {address}: {reason}")]
pub struct ConnectError {
    address: String,
    reason: String,
    /// Nobody listens there.
    pub is_refused: bool,
}

/// Connects to a server at `address`, which is `host:port` or a URL.
///
/// # Errors
/// [`ConnectError`] when the address is none, or nobody answers there.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let failed = |error: tonic::transport::Error| {
        // Tonic's own words for what the system says repeat each other.
        let cause = root_cause(&error);
        let refused = cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
        ConnectError { address: address.to_owned(), reason: cause.to_string(), is_refused: refused }
    };
    let endpoint = Endpoint::from_shared(url).map_err(failed)?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await.map_err(failed)
}

fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_refused_is_told_apart() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let error = connect(&free.to_string()).await.expect_err("nobody listens");
        assert!(error.is_refused && error.to_string().starts_with(&format!("connecting to {free}: ")), "{error:?}");
        let error = connect("no address at all").await.expect_err("no URL");
        assert!(!error.is_refused, "{error:?}");
    }
}

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
#[error("{message}")]
pub struct ConnectError {
    message: String,
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
        ConnectError { message: format!("nothing answers at {url}: {cause}"), is_refused: refused }
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| {
        let message = format!("{address:?} is no address, HOST:PORT or http://HOST:PORT: {}", root_cause(&error));
        ConnectError { message, is_refused: false }
    })?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await.map_err(failed)
}

/// What became of a call, in a sentence.
#[must_use]
pub fn told(status: &Status) -> String {
    match (status.source(), status.message()) {
        // The connection said so, and no server.
        (Some(cause), _) => format!("the connection to the server failed: {}", root_cause(cause)),
        (None, "") => format!("the server says no more than {:?}", status.code()),
        (None, message) => message.to_owned(),
    }
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
        let expected = format!("nothing answers at http://{free}: ");
        assert!(error.is_refused && error.to_string().starts_with(&expected), "{error:?}");
        let error = connect("no address at all").await.expect_err("no URL");
        assert!(!error.is_refused && error.to_string().contains("is no address, HOST:PORT"), "{error:?}");
    }

    #[test]
    fn what_became_of_a_call_is_a_sentence() {
        assert_eq!(told(&Status::not_found("there is no article a")), "there is no article a");
        assert_eq!(told(&Status::unavailable("")), "the server says no more than Unavailable");
        let broken = Status::from_error(Box::new(io::Error::new(io::ErrorKind::BrokenPipe, "broken pipe")));
        assert_eq!(told(&broken), "the connection to the server failed: broken pipe");
    }
}

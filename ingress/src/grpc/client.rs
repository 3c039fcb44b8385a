//! Connections to a server, for the clients that the command line is made of.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::time::timeout;
use tonic::codegen::http::uri::Authority;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::line::{LastWord, Line};
use crate::cli::{AccessArgs, AccessOptions, KeyText};
use crate::door::{certificates, private_key, read};

/// How long a server may take to accept a connection, and then to its first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What webpki calls a server's certificate that is an authority's.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

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

/// How servers are called: with which key, whom to trust, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Access {
    key: CallerKey,
    /// Certificates of authorities that are trusted besides the public ones.
    ca_file: Option<PathBuf>,
    /// The client's certificate.
    client_cert: Option<PathBuf>,
    /// Its private key.
    client_key: Option<PathBuf>,
    /// The options for TLS that the command line gives. What a variable says stands for all servers, and is left alone where one speaks no TLS.
    given: Vec<&'static str>,
}

impl From<AccessArgs> for Access {
    fn from(args: AccessArgs) -> Self {
        let AccessArgs { options: AccessOptions { key, ca_file, client_cert, client_key }, given } = args;
        let named = |file: Option<PathBuf>| file.filter(|path| !path.as_os_str().is_empty());
        let [ca_file, client_cert, client_key] = [ca_file, client_cert, client_key].map(named);
        Self { key: key.into(), ca_file, client_cert, client_key, given }
    }
}

impl Access {
    /// Connects to a server at `address`, which is `host:port` or a URL, and hears from it once: who wants TLS or another certificate says so
    /// no sooner. A key that goes to another machine in the clear is warned of.
    ///
    /// # Errors
    /// [`ConnectError`] when the address is none, a file cannot be used, nobody answers there, or the server refuses the connection.
    pub async fn connect(&self, address: &str) -> Result<Keyed, ConnectError> {
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint_of = |url: String| {
            Endpoint::from_shared(url).map_err(|error| {
                let reason = root_cause(&error).to_string();
                ConnectError::Address { address: address.to_owned(), reason }
            })
        };
        let uri = endpoint_of(url.clone())?.uri().clone();
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            other => {
                let reason = format!("{} is spoken by no server of Turnflow", other.unwrap_or_default());
                return Err(ConnectError::Address { address: address.to_owned(), reason });
            }
        };
        let unusable = |reason: String| ConnectError::Unusable { url: url.clone(), reason };
        if !is_secure && !self.given.is_empty() {
            let options = self.given.join(" and ");
            let reason =
                format!("{options} would not be used, since this is not https://; call it so, or leave that out");
            return Err(unusable(reason));
        }
        let tls = is_secure.then(|| self.tls()).transpose().map_err(|error| unusable(format!("{error:#}")))?;
        if !is_secure && self.key.0.is_some() && !is_this_machine(&uri) {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::warn!("the key goes to {address} in the clear, for all on the way to read; use https://");
            });
        }
        let last = LastWord::default();
        let connector = service_fn({
            let (uri, last) = (uri.clone(), last.clone());
            move |_| {
                let line = Line::open(uri.clone(), tls.clone(), last.clone());
                async { line.await.map(TokioIo::new) }
            }
        });
        // Where tonic has TLS of its own, it takes no other's connection for https://.
        let endpoint = endpoint_of(format!("http://{}", uri.authority().map_or("", Authority::as_str)))?;
        let endpoint = endpoint.origin(uri).connect_timeout(CONNECT_TIMEOUT);
        let connected = endpoint.connect_with_connector(connector).await;
        let channel = connected.map_err(|error| ConnectError::new(&url, &error))?;
        let mut health = HealthClient::new(channel.clone());
        let heard = timeout(CONNECT_TIMEOUT, health.check(HealthCheckRequest::default())).await;
        let heard = heard.map_err(|late| ConnectError::new(&url, &late))?;
        // Whatever a server says of its health, it has answered.
        let Some(cause) = heard.err().and_then(|status| root_cause_of(&status)) else {
            return Ok(self.key.on(channel));
        };
        let cause = last.get().unwrap_or(&cause);
        let hint = if is_secure {
            ""
        } else {
            "; is gRPC spoken there? HTTP has a port of its own, and where the server speaks TLS, call it with https://"
        };
        Err(unusable(format!("{cause}{hint}")))
    }

    fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(path) = &self.ca_file {
            for authority in certificates(path, &read(path)?)? {
                roots.add(authority).with_context(|| format!("cannot trust {}", path.display()))?;
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let mut config = match (&self.client_cert, &self.client_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => {
                anyhow::bail!("the client's certificate needs its private key: --client-key, or TURNFLOW_CLIENT_KEY")
            }
            (None, Some(_)) => {
                anyhow::bail!("the client's private key needs its certificate: --client-cert, or TURNFLOW_CLIENT_CERT")
            }
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate, &read(certificate)?)?;
                let client = builder.with_client_auth_cert(chain, private_key(key, &read(key)?)?);
                client.with_context(|| format!("cannot call with the certificate in {}", certificate.display()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Why a call failed, unless the server said so itself.
fn root_cause_of(status: &Status) -> Option<String> {
    status.source().map(|cause| root_cause(cause).to_string())
}

/// Whether an address stays on this machine.
fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What was to be called is no address.
    #[error("{address:?} is no address, HOST:PORT or https://HOST:PORT: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody listens there, or nobody says anything.
    #[error("nothing answers at {url}: {reason}")]
    Silent {
        /// What was called.
        url: String,
        /// The system's own words.
        reason: String,
        /// Nobody listens there.
        is_refused: bool,
    },
    /// Who listens there and the caller cannot agree: on TLS, on a certificate, or on the protocol.
    #[error("cannot connect to {url}: {reason}")]
    Unusable {
        /// What was called.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl ConnectError {
    fn new(url: &str, error: &(dyn Error + 'static)) -> Self {
        // Tonic's own words for what the system says repeat each other.
        let cause = root_cause(error);
        let (url, reason, io) = (url.to_owned(), cause.to_string(), cause.downcast_ref::<io::Error>());
        let kind = io.map(io::Error::kind);
        match io.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                Self::Unusable { url, reason: format!("{reason}; --ca-file names an authority of one's own") }
            }
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
                if format!("{other:?}").contains(CA_AS_SERVER) =>
            {
                let reason = "the server shows the certificate of an authority as its own: it needs one that the authority \
                              signed, or one of its own that says basicConstraints=CA:FALSE";
                Self::Unusable { url, reason: reason.to_owned() }
            }
            _ if matches!(
                kind,
                Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
            ) =>
            {
                Self::Unusable { url, reason }
            }
            _ => Self::Silent { url, reason, is_refused: kind == Some(ErrorKind::ConnectionRefused) },
        }
    }

    /// Whether nobody listens there.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Silent { is_refused: true, .. })
    }
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
        let connect = async |address: &str| Access::default().connect(address).await;
        let error = connect(&free.to_string()).await.expect_err("nobody listens");
        let expected = format!("nothing answers at http://{free}: ");
        assert!(error.is_refused() && error.to_string().starts_with(&expected), "{error:?}");
        let error = connect("no address at all").await.expect_err("no URL");
        assert!(!error.is_refused() && error.to_string().contains("is no address, HOST:PORT"), "{error:?}");
    }

    #[test]
    fn what_became_of_a_call_is_a_sentence() {
        assert_eq!(told(&Status::not_found("there is no article a")), "there is no article a");
        assert_eq!(told(&Status::unavailable("")), "the server says no more than Unavailable");
        let broken = Status::from_error(Box::new(io::Error::new(io::ErrorKind::BrokenPipe, "broken pipe")));
        assert_eq!(told(&broken), "the connection to the server failed: broken pipe");
    }

    #[tokio::test]
    async fn options_of_tls_want_an_address_with_it() {
        let access = Access { given: vec!["--ca-file"], ..Access::default() };
        for address in ["127.0.0.1:1", "http://bot.example:7411"] {
            let error = access.connect(address).await.expect_err("refused before anything is called").to_string();
            assert!(error.contains(": --ca-file would not be used, since this is not https://"), "{error}");
        }
    }

    #[test]
    fn other_machines_are_not_this_one() {
        for (url, expected) in [
            ("http://127.0.0.1:7411", true),
            ("http://[::1]:7411", true),
            ("http://LOCALHOST:7411", true),
            ("http://192.0.2.1:7411", false),
            ("http://0.0.0.0:7411", false),
            ("http://bot.example", false),
        ] {
            assert_eq!(is_this_machine(&url.parse().expect("a URL")), expected, "{url}");
        }
    }
}

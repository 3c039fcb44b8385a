//! Asks whoever has a port whether it is a server of ours, as `check` wants to know.
//!
//! Where TLS is spoken, a server of ours shows the configured certificate and has its private key; who vouches for it, and for which name, is
//! not asked. A server that wants a certificate of its clients is known by its own: `check` has none to show.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use turnflow_pipeline::TlsConfig;

use crate::door::{certificates, read};
use crate::grpc::SERVICE_NAME;

/// How long whoever has a port may take to say what it is.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Longest answer that can be that of a server of ours, in bytes.
const HEALTH_BYTES_MAX: usize = 1_024;

/// Whether a server of ours answers there over gRPC.
pub(super) async fn grpc(address: SocketAddr, tls: &TlsConfig) -> bool {
    let answers = async |way: &Way| {
        let endpoint = Endpoint::from_shared(way.url(address)).ok()?;
        let channel = endpoint.connect_with_connector(way.connector(b"h2")).await.ok()?;
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        HealthClient::new(channel).check(request).await.ok().map(drop)
    };
    is_ours(tls, answers).await
}

/// Whether a server of ours answers there over HTTP.
pub(super) async fn http(address: SocketAddr, tls: &TlsConfig) -> bool {
    let answers = async |way: &Way| {
        let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(way.connector(b"http/1.1"));
        let answer = client.get(format!("{}/health", way.url(address)).parse().ok()?).await.ok()?;
        let body = Limited::new(answer.into_body(), HEALTH_BYTES_MAX).collect().await.ok()?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).ok()?;
        (answer == json!({ "status": "ok" })).then_some(())
    };
    is_ours(tls, answers).await
}

async fn is_ours(tls: &TlsConfig, answers: impl AsyncFnOnce(&Way) -> Option<()>) -> bool {
    let Some(way) = Way::new(tls) else { return false };
    timeout(ASK_MAX, answers(&way)).await.is_ok_and(|answer| answer.is_some()) || way.is_barred()
}

/// How a port is asked.
struct Way {
    scheme: &'static str,
    config: ClientConfig,
    pinned: Arc<Pinned>,
    /// Nobody without a certificate is let in.
    needs_certificate: bool,
}

impl Way {
    /// None when the certificate cannot be read: then no server is known by it.
    fn new(tls: &TlsConfig) -> Option<Self> {
        let (scheme, certificate) = if tls.is_on() {
            let chain = certificates(&tls.cert_file, &read(&tls.cert_file).ok()?).ok()?;
            ("https", chain.into_iter().next())
        } else {
            ("http", None)
        };
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let pinned = Arc::new(Pinned { certificate, algorithms, is_shown: AtomicBool::new(false) });
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        let config = config.dangerous().with_custom_certificate_verifier(Arc::<Pinned>::clone(&pinned));
        let needs_certificate = tls.client_required && !tls.client_ca_file.as_os_str().is_empty();
        Some(Self { scheme, config: config.with_no_client_auth(), pinned, needs_certificate })
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", self.scheme)
    }

    fn connector(&self, protocol: &[u8]) -> HttpsConnector<HttpConnector> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let mut config = self.config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        HttpsConnector::from((tcp, config))
    }

    /// Whether a server that has shown the configured certificate lets nobody in who has none.
    fn is_barred(&self) -> bool {
        self.needs_certificate && self.pinned.is_shown.load(Ordering::Relaxed)
    }
}

/// Trusts one certificate, where there is one, and notes that whoever showed it has its private key.
#[derive(Debug)]
struct Pinned {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    is_shown: AtomicBool,
}

impl Pinned {
    fn note(
        &self,
        signed: Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.is_shown.fetch_or(signed.is_ok(), Ordering::Relaxed);
        signed
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_ref() == Some(shown) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.note(verify_tls12_signature(message, certificate, signature, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.note(verify_tls13_signature(message, certificate, signature, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

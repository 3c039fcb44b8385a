//! Asks a port which certificate it shows, as `check` wants to know: the one that the server read last.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// How long whoever has a port may take for each thing it says.
const ASK_MAX: Duration = Duration::from_secs(2);

/// The certificate that is shown there; None when no TLS is spoken there, or not in time.
pub(super) fn certificate(address: SocketAddr) -> Option<CertificateDer<'static>> {
    let shown = Arc::new(Shown::default());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().ok()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::<Shown>::clone(&shown)).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).ok()?;
    let mut socket = TcpStream::connect_timeout(&address, ASK_MAX).ok()?;
    socket.set_read_timeout(Some(ASK_MAX)).ok()?;
    // It ends with an error: nobody is trusted, and all there was to see has been seen.
    drop(client.complete_io(&mut socket));
    shown.0.get().cloned()
}

/// Notes the certificate that is shown, and trusts nobody.
#[derive(Debug, Default)]
struct Shown(OnceLock<CertificateDer<'static>>);

const UNTRUSTED: rustls::Error = rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.get_or_init(|| shown.clone().into_owned());
        Err(UNTRUSTED)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(UNTRUSTED)
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(UNTRUSTED)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

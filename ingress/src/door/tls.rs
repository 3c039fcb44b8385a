//! TLS of both servers: who the server is, whose clients are let in, and how both are read anew while it runs.
//!
//! The files are read whole and checked before any of them counts. Connections that are open keep what they began with, and new ones resume no
//! session of before. What is not done: lists of revoked certificates, a certificate for each host name, and keys with a passphrase.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use turnflow_pipeline::{Change, TlsConfig};

/// What marks a private key in PEM that has a passphrase: as PKCS #8, RFC 7468, section 11, and in the older form, RFC 1421, section 4.6.1.1.
const ENCRYPTED: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED"];

/// Why TLS cannot be spoken as the configuration says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {what}")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What it was to hold.
        what: &'static str,
    },
    /// What a file holds cannot be used.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key is another certificate's.
    #[error("{key} is not the private key of the certificate in {certificate}")]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The certificate does not count yet, or no more.
    #[error("the certificate in {path} {state}")]
    OutOfTime {
        /// The file of the certificate.
        path: PathBuf,
        /// Since when it does not, or from when on it does.
        state: String,
    },
}

/// What TLS is spoken with. Clones share it.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<Current>>);

struct Current {
    identity: Identity,
    handshake_wait: Duration,
}

/// Who the server is, and whose clients it lets in.
struct Identity {
    server: ServerConfig,
    /// When the certificate expires.
    until: Timestamp,
    /// Of all files.
    hash: blake3::Hash,
}

impl Tls {
    /// Reads the files that the configuration names; None where it names none.
    pub(crate) fn open(config: &TlsConfig) -> Result<Option<Self>, TlsError> {
        if !config.is_on() {
            return Ok(None);
        }
        let current = Current::read(config)?;
        tracing::info!(files = %current.identity, "TLS is spoken");
        Ok(Some(Self(Arc::new(RwLock::new(current)))))
    }

    /// Reads the files anew, and has them count for connections to come. Says what has changed.
    pub(super) fn renew(&self, config: &TlsConfig) -> Result<Option<Change>, TlsError> {
        let next = Current::read(config)?;
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), next);
        let (before, after) = (before.identity.to_string(), self.get(|current| current.identity.to_string()));
        let key = "server.tls".to_owned();
        Ok((before != after).then_some(Change { key, before, after }))
    }

    /// How long a handshake may take.
    pub(super) fn handshake_wait(&self) -> Duration {
        self.get(|current| current.handshake_wait)
    }

    /// What shakes hands with a client that speaks one of these protocols, by their names for ALPN.
    pub(super) fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        let mut server = self.get(|current| current.identity.server.clone());
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(server).into()
    }

    fn get<T>(&self, of: impl FnOnce(&Current) -> T) -> T {
        of(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Current {
    fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let handshake_wait = Duration::from_millis(config.handshake_wait_ms);
        Ok(Self { identity: Identity::read(config)?, handshake_wait })
    }
}

impl Identity {
    fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let TlsConfig { cert_file, key_file, client_ca_file, .. } = config;
        let mut hasher = blake3::Hasher::new();
        let mut read = |path: &Path| {
            let pem = read(path)?;
            hasher.update(&pem);
            Ok(pem)
        };
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(cert_file, &read(cert_file)?)?;
        let until = expiry(cert_file, &chain[0], &provider)?;
        let key = private_key(key_file, &read(key_file)?)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unusable(cert_file, &error))?;
        let builder = if client_ca_file.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for authority in certificates(client_ca_file, &read(client_ca_file)?)? {
                roots.add(authority).map_err(|error| unusable(client_ca_file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if config.client_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(client_ca_file, &error))?)
        };
        let server = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { certificate: cert_file.clone(), key: key_file.clone() }
            }
            error => unusable(key_file, &error),
        })?;
        Ok(Self { server, until, hash: hasher.finalize() })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {}", &self.hash.to_hex()[..8], self.until)
    }
}

/// When the server's certificate expires, with everything looked at that a start looks at.
pub(crate) fn certificate_until(config: &TlsConfig) -> Result<Timestamp, TlsError> {
    Identity::read(config).map(|identity| identity.until)
}

/// What a file holds.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The private key of a file.
pub(crate) fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = String::from_utf8_lossy(pem);
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        _ if ENCRYPTED.iter().any(|mark| text.contains(mark)) => {
            let reason = "its private key is encrypted, and nobody could give the passphrase at a start; write it without one, to a file that nobody \
                          else may read: openssl pkey -in ENCRYPTED -out PLAIN";
            unusable(path, &reason)
        }
        pem::Error::NoItemsFound => {
            TlsError::Missing { path: path.to_owned(), what: "private key in PEM without a passphrase" }
        }
        error => unusable(path, &error),
    })
}

/// The certificates of a file, of which there is at least one.
pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| unusable(path, &error))?;
    if found.is_empty() {
        return Err(TlsError::Missing { path: path.to_owned(), what: "certificate in PEM" });
    }
    Ok(found)
}

fn unusable(path: &Path, reason: &dyn fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), reason: reason.to_string() }
}

/// When a certificate expires; an error when no client could take it now. Who vouches for it is for clients to judge.
fn expiry(path: &Path, certificate: &CertificateDer<'_>, provider: &CryptoProvider) -> Result<Timestamp, TlsError> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|error| unusable(path, &error))?;
    // Times are looked at first, before it is found that nobody is trusted here.
    let judged_at = |now| {
        let (nobody, algorithms) = (RootCertStore::empty(), provider.signature_verification_algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], now, algorithms)
    };
    let out_of_time = |state| Err(TlsError::OutOfTime { path: path.to_owned(), state });
    match judged_at(UnixTime::now()) {
        Err(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::UnknownIssuer => {}
            // One that vouches for itself is often marked as an authority's, and is taken by those who were told to trust it. The
            // error of webpki has no type here, only its name.
            CertificateError::Other(error) if error.to_string() == "CaUsedAsEndEntity" => {}
            CertificateError::ExpiredContext { not_after, .. } => {
                return out_of_time(format!("expired at {}", timestamp(not_after)));
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                return out_of_time(format!("counts from {} on", timestamp(not_before)));
            }
            CertificateError::Expired => {
                return out_of_time("never counts: its notAfter is before its notBefore".to_owned());
            }
            error => return Err(unusable(path, &error)),
        },
        Err(error) => return Err(unusable(path, &error)),
        Ok(()) => {}
    }
    // When it expires is told of a certificate that has.
    match judged_at(UnixTime::since_unix_epoch(Duration::MAX)) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Ok(timestamp(not_after))
        }
        _ => Ok(Timestamp::MAX),
    }
}

fn timestamp(time: UnixTime) -> Timestamp {
    // A certificate for ever lasts a day longer than there are timestamps.
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// A certificate with its key, in PEM.
    fn pair(adjust: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let (key, mut params) = (KeyPair::generate().expect("a key"), CertificateParams::default());
        adjust(&mut params);
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    #[test]
    fn an_error_names_the_file_and_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).expect("written");
            path
        };
        let tls = turnflow_pipeline::Config::defaults().server.tls;
        let (certificate, key) = pair(|params| params.not_after = date_time_ymd(2100, 1, 1));
        let (certificate, key) = (file("good.crt", &certificate), file("good.key", &key));
        let good = TlsConfig { cert_file: certificate.clone(), key_file: key.clone(), ..tls.clone() };
        let read = Identity::read(&good).expect("usable");
        assert_eq!(read.until, "2100-01-01T00:00:00Z".parse().expect("a time"));
        let (for_ever, for_ever_key) = pair(|params| params.not_after = date_time_ymd(9999, 12, 31));
        let (cert_file, key_file) = (file("ever.crt", &for_ever), file("ever.key", &for_ever_key));
        let for_ever = TlsConfig { cert_file, key_file, ..tls.clone() };
        assert_eq!(Identity::read(&for_ever).expect("usable").until, Timestamp::MAX);
        let (own, own_key) = pair(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let (cert_file, key_file) = (file("own.crt", &own), file("own.key", &own_key));
        assert!(Identity::read(&TlsConfig { cert_file, key_file, ..tls }).is_ok(), "an authority of its own");

        let check = |cert: &Path, key: &Path, authority: &Path, expected: &str| {
            let (cert_file, key_file) = (cert.to_owned(), key.to_owned());
            let config = TlsConfig { cert_file, key_file, client_ca_file: authority.to_owned(), ..good.clone() };
            let told = Identity::read(&config).err().map(|error| format!("{:#}", anyhow::Error::from(error)));
            assert!(told.as_ref().is_some_and(|told| told.contains(expected)), "{expected}: {told:?}");
        };
        let none = Path::new("");
        let (expired, expired_key) = pair(|params| params.not_after = date_time_ymd(2001, 2, 3));
        let (expired, expired_key) = (file("old.crt", &expired), file("old.key", &expired_key));
        check(&expired, &expired_key, none, "old.crt expired at 2001-02-03T00:00:00Z");
        let (early, early_key) = pair(|params| params.not_before = date_time_ymd(2100, 2, 3));
        let (early, early_key) = (file("new.crt", &early), file("new.key", &early_key));
        check(&early, &early_key, none, "new.crt counts from 2100-02-03T00:00:00Z on");
        let (never, never_key) = pair(|params| params.not_before = date_time_ymd(9000, 1, 1));
        let (never, never_key) = (file("never.crt", &never), file("never.key", &never_key));
        check(&never, &never_key, none, "never.crt never counts: its notAfter is before its notBefore");
        let (visitor, visitor_key) =
            pair(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        let (visitor, visitor_key) = (file("visitor.crt", &visitor), file("visitor.key", &visitor_key));
        check(&visitor, &visitor_key, none, "visitor.crt cannot be used: ");
        check(&certificate, &early_key, none, "new.key is not the private key of the certificate in");
        check(&key, &key, none, "good.key holds no certificate in PEM");
        check(&certificate, &certificate, none, "good.crt holds no private key in PEM without a passphrase");
        let body = "MFEwDgYJKoZIhvcNAQUNMAADPwAAAA==";
        let pkcs8 = format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}\n-----END ENCRYPTED PRIVATE KEY-----\n");
        let traditional = format!(
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n{body}\n-----END RSA PRIVATE KEY-----\n"
        );
        for (name, pem) in [("pkcs8.key", pkcs8), ("traditional.key", traditional)] {
            check(
                &certificate,
                &file(name, &pem),
                none,
                &format!("{name} cannot be used: its private key is encrypted"),
            );
        }
        check(&dir.path().join("none.crt"), &key, none, "none.crt: No such file");
        check(&certificate, &dir.path().join("none.key"), none, "none.key: No such file");
        check(&certificate, &key, &key, "good.key holds no certificate in PEM");
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let garbled = file("garbled.crt", garbled);
        check(&garbled, &key, none, "garbled.crt cannot be used: ");
        check(&certificate, &key, &garbled, "garbled.crt cannot be used: ");
    }
}

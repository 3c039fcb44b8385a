//! An authority that vouches for certificates, as long as a test lasts; and clients of whom it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use turnflow::cli::{AccessArgs, AccessOptions};

/// An authority, whose certificate is in a file.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) file: PathBuf,
}

/// A certificate and its private key, each in a file.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// One that is called `name`, with its files in this folder.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, issuer.pem()).expect("written");
        Self { issuer, file }
    }

    /// A new certificate for this machine, or for a client on it, beside the authority's; it takes the place of one of this name.
    pub(crate) fn vouch_for(&self, name: &str) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let pair = Pair {
            certificate: self.file.with_file_name(format!("{name}.crt")),
            key: self.file.with_file_name(format!("{name}.key")),
        };
        fs::write(&pair.certificate, certificate.pem()).expect("written");
        fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }

    /// How a client calls that trusts this authority, and has this certificate.
    pub(crate) fn access(&self, own: Option<&Pair>) -> AccessArgs {
        let (client_cert, client_key) = own.map(|own| (own.certificate.clone(), own.key.clone())).unzip();
        let options = AccessOptions { key: None, ca_file: Some(self.file.clone()), client_cert, client_key };
        AccessArgs { options, given: Vec::new() }
    }

    /// The same, for other libraries.
    pub(crate) fn client(&self, own: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let Some(own) = own else { return builder.with_no_client_auth() };
        let certificate = CertificateDer::from_pem_file(&own.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
        builder.with_client_auth_cert(vec![certificate], key).expect("a key of the certificate")
    }
}

//! TLS towards the upstream: the certificates and the key that the settings name, read and checked.
//!
//! All that can be wrong with them is found here, at the start and at each reload, and names the key and the file: a
//! certificate that fails only at the next connection would be an outage at some later hour. Nothing here weakens a
//! check: there is no switch for names, for expiry, or for trust in whoever answers.

use super::raw;
use super::resolve::Reader;
use super::validate::Checker;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Whom the upstream's certificate may be signed by, and as whom we come.
#[derive(Clone)]
pub struct UpstreamTls {
    /// Authorities of `ca_file`.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whether this machine's authorities count too.
    pub trusts_platform: bool,
    /// Our certificate with its key.
    pub identity: Option<Arc<CertifiedKey>>,
    /// The lowest version that is spoken.
    pub min_version: raw::TlsVersion,
    /// SHA-256 over all of it: two with the same are the same.
    pub digest: [u8; 32],
}

/// Longest file that is read; the bundles of operating systems have some 250 KiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What the settings name. Problems are told to the checker.
pub(super) fn read(
    settings: &raw::UpstreamTls,
    reader: &mut Reader<'_>,
    checker: &mut Checker<'_>,
) -> UpstreamTls {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(format!("{} {:?}", settings.platform_roots, settings.min_version).as_bytes());
    let mut file = |name: &str, path: &Path, checker: &mut Checker<'_>| {
        if path.as_os_str().is_empty() {
            return None;
        }
        match reader.bytes(path, MAX_FILE) {
            Ok(bytes) => {
                digest.update(format!("\n{name} {}\n", bytes.len()).as_bytes());
                digest.update(&bytes);
                Some(bytes)
            }
            Err(what) => {
                checker.say(&format!("upstream.tls.{name}"), what);
                None
            }
        }
    };
    let ca = file("ca_file", &settings.ca_file, checker);
    let cert = file("cert_file", &settings.cert_file, checker);
    let key = file("key_file", &settings.key_file, checker);
    let roots = ca.map(|bytes| told("ca_file", authorities(&bytes), checker)).unwrap_or_default();
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => {
            let chain = told("cert_file", certificates(&cert), checker);
            let key = told("key_file", private_key(&key), checker);
            chain.zip(key).and_then(|(chain, key)| told("key_file", certified(chain, key), checker))
        }
        _ => None,
    };
    UpstreamTls {
        roots: roots.unwrap_or_default(),
        trusts_platform: settings.platform_roots,
        identity: identity.map(Arc::new),
        min_version: settings.min_version,
        digest: digest.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes"),
    }
}

fn told<T>(name: &str, result: Result<T, String>, checker: &mut Checker<'_>) -> Option<T> {
    result.map_err(|what| checker.say(&format!("upstream.tls.{name}"), what)).ok()
}

fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|error| format!("the file is not good PEM: {error}"))?;
    if found.is_empty() {
        return Err(
            "the file holds no certificate; PEM with `-----BEGIN CERTIFICATE-----` is expected".into()
        );
    }
    Ok(found)
}

fn authorities(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = certificates(bytes)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in found.iter().enumerate() {
        store
            .add(certificate.clone())
            .map_err(|error| format!("certificate {} of the file cannot be used: {error}", index + 1))?;
    }
    Ok(found)
}

fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
        if String::from_utf8_lossy(bytes).contains("ENCRYPTED") {
            return "the private key is encrypted, and nobody is there to type its passphrase: store it decrypted \
                    (`openssl pkey -in … -out …`), readable by Seawall alone"
                .to_owned();
        }
        match error {
            pem::Error::NoItemsFound => {
                "the file holds no private key; PEM with `-----BEGIN PRIVATE KEY-----` is expected".to_owned()
            }
            // Its text holds no part of the key.
            error => format!("the file is not good PEM: {error}"),
        }
    })
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(|error| {
        match error {
            rustls::Error::InconsistentKeys(_) => {
                "is not the key of the first certificate in `upstream.tls.cert_file`".to_owned()
            }
            error => format!("cannot be used with the certificate in `upstream.tls.cert_file`: {error}"),
        }
    })
}

// === impl UpstreamTls ===

impl fmt::Debug for UpstreamTls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("roots", &self.roots.len())
            .field("trusts_platform", &self.trusts_platform)
            .field("has_identity", &self.identity.is_some())
            .field("min_version", &self.min_version)
            .finish_non_exhaustive()
    }
}

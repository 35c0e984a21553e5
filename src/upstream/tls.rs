//! TLS towards the upstream: rustls, with the trust and the identity of the configuration.
//!
//! A rustls configuration holds sessions for resumption and costs the reading of this machine's authorities, so it is
//! kept for as long as the settings and the files that it came from stay the same. Each new connection asks for it
//! with the snapshot of that moment: after a reload new connections use the new files, and those that are open go on.
//! When new settings cannot be made into one, which the check of the files leaves to this machine's trust store
//! alone, the last good one stays, and it is logged.

use crate::config::UpstreamTls;
use crate::config::raw::{Protocol, TlsVersion};
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_rustls::TlsConnector;

/// The rustls configuration of the last connection, and what it was made from.
pub(super) struct Tls {
    protocol: Protocol,
    last: Mutex<([u8; 32], TlsConnector)>,
}

// === impl Tls ===

impl Tls {
    pub(super) fn new(protocol: Protocol, settings: &UpstreamTls) -> Result<Self, rustls::Error> {
        let config = build(protocol, settings)?;
        Ok(Self { protocol, last: Mutex::new((settings.digest, config.into())) })
    }

    /// For a new connection.
    pub(super) fn connector(&self, settings: &UpstreamTls) -> TlsConnector {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != settings.digest {
            match build(self.protocol, settings) {
                Ok(config) => last.1 = config.into(),
                Err(error) => tracing::error!("upstream.tls: {error}; the settings before it stay in use"),
            }
            last.0 = settings.digest;
        }
        last.1.clone()
    }
}

fn build(protocol: Protocol, settings: &UpstreamTls) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[_] = match settings.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = if settings.trusts_platform {
        // On Linux also what SSL_CERT_FILE and SSL_CERT_DIR name.
        let verifier = Verifier::new_with_extra_roots(settings.roots.iter().cloned(), provider)?;
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
        // rustls calls every verifier that is not its own so; this one checks chain, names and expiry all the same.
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        let mut roots = RootCertStore::empty();
        for root in &settings.roots {
            roots.add(root.clone())?;
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match &settings.identity {
        Some(identity) => {
            let identity = SingleCertAndKey::from(rustls::sign::CertifiedKey::clone(identity));
            builder.with_client_cert_resolver(Arc::new(identity))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![match protocol {
        Protocol::H1 => b"http/1.1".to_vec(),
        Protocol::H2 => b"h2".to_vec(),
    }];
    Ok(Arc::new(config))
}

//! What stands between a proxy and its upstream: an egress proxy for CONNECT, and a front that speaks TLS.

use super::chaos::{field, head};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An egress proxy; it ends when it is dropped.
pub struct Egress {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

/// A front that ends TLS before an upstream that has none; it ends when it is dropped.
pub struct TlsFront {
    pub url: String,
    task: JoinHandle<()>,
}

/// An authority of a test, with a certificate for `127.0.0.1` and one for a client.
pub struct Pki {
    pub ca: String,
    pub server: (String, String),
    pub client: (String, String),
}

// === impl Egress ===

impl Egress {
    /// Tunnels to wherever is asked, when the credentials are these.
    pub async fn start(authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                running.spawn(tunnel(stream, authorization, log.clone()));
            }
        });
        Self { url, asked, task }
    }

    /// The targets that tunnels were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut stream: TcpStream, authorization: Option<&str>, log: Arc<Mutex<Vec<String>>>) {
    let head = head(&mut stream).await;
    let Some(target) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        let _ = stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await;
        return;
    };
    log.lock().unwrap().push(target.to_owned());
    if field(&head, "proxy-authorization") != authorization {
        let _ = stream
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            .await;
        return;
    }
    let Ok(mut to) = TcpStream::connect(target).await else {
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
        return;
    };
    let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = copy_bidirectional(&mut stream, &mut to).await;
}

// === impl TlsFront ===

impl TlsFront {
    /// Before `upstream`, with this protocol of ALPN; asks for a client certificate of the authority when it must.
    pub async fn start(upstream: SocketAddr, pki: &Pki, alpn: &[u8], asks_for_client: bool) -> Self {
        let ca = CertificateDer::from_pem_slice(pki.ca.as_bytes()).unwrap();
        let builder =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap();
        let builder = if asks_for_client {
            let mut roots = RootCertStore::empty();
            roots.add(ca).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let (cert, key) = &pki.server;
        let mut config = builder
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let acceptor = acceptor.clone();
                running.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    // An upstream that refuses connections is one that closes them here.
                    let Ok(mut to) = TcpStream::connect(upstream).await else { return };
                    let _ = copy_bidirectional(&mut stream, &mut to).await;
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Pki ===

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: of two with the same name the wrong one is taken for the right one with a wrong key.
        let name = format!("a test's authority {}", uuid::Uuid::new_v4());
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |name: &str, purpose| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        Self {
            ca: issuer.pem(),
            server: leaf("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth),
            client: leaf("seawall", ExtendedKeyUsagePurpose::ClientAuth),
        }
    }

    /// Writes `ca.pem`, `client.pem` and `client.key`.
    pub fn write(&self, dir: &Path) {
        std::fs::write(dir.join("ca.pem"), &self.ca).unwrap();
        std::fs::write(dir.join("client.pem"), &self.client.0).unwrap();
        std::fs::write(dir.join("client.key"), &self.client.1).unwrap();
    }
}

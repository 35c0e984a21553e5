//! Connections to the upstream: name, TCP, the egress proxy's tunnel, TLS.
//!
//! One time limit holds for all of it. Everything that fails here failed before a byte of a request left, and becomes
//! `ProxyError::Connect`. How a connection is made (limits, proxy, trust, identity) is taken from the configuration
//! at that moment, so a reload needs nothing but new connections. Names are asked for each connection again, and
//! addresses raced (RFC 8305), both by hyper-util's connector.
//!
//! The one seam for a simulated network is [`Dial`]: it stands in for name and TCP, below everything that is ours.

use super::proxy;
use super::tls::Tls;
use crate::config::Snapshot;
use crate::config::raw::Protocol;
use crate::context::BoxFuture;
use crate::http::body::chain;
use crate::telemetry::{Metrics, ResultLabels};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tower::Service;

/// Where the configuration is looked up.
pub type Source = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// Makes connections in place of the system's resolver and TCP, where there is no such thing: in a simulated network.
/// It is asked by host and port, within the time limit of a connection.
pub trait Dial: Send + Sync {
    /// One connection, plain.
    fn dial(&self, host: &str, port: u16) -> BoxFuture<io::Result<Box<dyn Wire>>>;
}

/// What a [`Dial`] gives: the two directions of a connection.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Connects to one upstream.
pub(super) struct Connector {
    source: Source,
    /// Scheme, host and port.
    target: Uri,
    host: String,
    port: u16,
    tcp: HttpConnector,
    /// In place of `tcp`.
    dial: Option<Arc<dyn Dial>>,
    /// `None` for http.
    tls: Option<Tls>,
    protocol: Protocol,
    open: Gauge,
    results: [Counter; RESULTS.len()],
}

/// A connection; counted while it lives.
pub(super) struct Stream {
    io: Io,
    open: Gauge,
}

enum Io {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    Dialed(TokioIo<Box<dyn Wire>>),
}

/// The time limit of one connection.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    at: Instant,
    whole: Duration,
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    stage: Stage,
    message: String,
}

/// What failed; an index into [`RESULTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Dns = 1,
    Tcp = 2,
    Proxy = 3,
    Tls = 4,
    /// The peer does not speak what it should.
    Protocol = 5,
    Timeout = 6,
}

/// The words of the metric.
const RESULTS: [&str; 7] = ["ok", "dns", "tcp", "proxy", "tls", "protocol", "timeout"];

/// TCP keepalive probes without an answer before the connection is cut.
const KEEPALIVE_PROBES: u32 = 3;

// === impl Connector ===

impl Connector {
    /// For the base URL of the configuration. Fails when this machine's trust store is unusable.
    pub(super) fn new(source: Source, metrics: &Metrics) -> Result<Self, rustls::Error> {
        let snapshot = source();
        let settings = &snapshot.settings.upstream;
        let base: Uri = settings.base_url.parse().unwrap_or_default();
        let is_https = base.scheme_str() == Some("https");
        let tls = is_https.then(|| Tls::new(settings.protocol, &snapshot.upstream_tls)).transpose()?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let mut results = RESULTS
            .iter()
            .map(|&result| metrics.upstream_connects.get_or_create(&ResultLabels { result }).clone());
        Ok(Self {
            host: base.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: base.port_u16().unwrap_or(if is_https { 443 } else { 80 }),
            target: base,
            tcp,
            dial: None,
            tls,
            protocol: settings.protocol,
            open: metrics.upstream_connections.clone(),
            results: std::array::from_fn(|_| results.next().expect("there is one for each word")),
            source,
        })
    }

    /// The same over connections of this one's making.
    pub(super) fn over(self, dial: Arc<dyn Dial>) -> Self {
        Self { dial: Some(dial), ..self }
    }

    /// The configuration now.
    pub(super) fn config(&self) -> Arc<Snapshot> {
        (self.source)()
    }

    /// Until when a connection that begins now must be usable.
    pub(super) fn limit(snapshot: &Snapshot) -> Limit {
        let whole = *snapshot.settings.upstream.connect_timeout;
        Limit { at: Instant::now() + whole, whole }
    }

    /// One connection, as the snapshot says. Its result is to be [counted](Self::count) when it is usable.
    pub(super) async fn connect(&self, snapshot: &Snapshot, limit: Limit) -> Result<Stream, Failure> {
        if let Some(dial) = &self.dial {
            return self.dialed(dial.as_ref(), snapshot, limit).await;
        }
        let settings = &snapshot.settings.upstream;
        let mut tcp = self.tcp.clone();
        // Makes happy eyeballs move on, too.
        tcp.set_connect_timeout(Some(limit.whole));
        tcp.set_keepalive(Some(*settings.tcp_keepalive));
        tcp.set_keepalive_interval(Some(*settings.tcp_keepalive));
        let proxy = (!settings.proxy.is_empty()).then_some(settings.proxy.as_str());
        let to = match proxy {
            // The check of the configuration has read it as a URL.
            Some(proxy) => proxy.parse().unwrap_or_default(),
            None => self.target.clone(),
        };
        let dial = async {
            std::future::poll_fn(|cx| tcp.poll_ready(cx)).await?;
            tcp.call(to).await
        };
        let stream = limit.hold("TCP", dial).await?.map_err(|error| {
            // The text is hyper-util's; should it change, such a failure counts as one of TCP.
            let stage = if error.to_string().starts_with("dns") { Stage::Dns } else { Stage::Tcp };
            let text = chain(&error);
            Failure::new(
                stage,
                proxy.map_or_else(|| text.clone(), |proxy| format!("the egress proxy {proxy}: {text}")),
            )
        })?;
        let mut stream = stream.into_inner();
        if let Some(proxy) = proxy {
            let authority = if self.host.contains(':') {
                format!("[{}]:{}", self.host, self.port)
            } else {
                format!("{}:{}", self.host, self.port)
            };
            let tunnel = proxy::tunnel(&mut stream, &authority, snapshot.proxy_authorization.as_ref());
            limit
                .hold("an answer of the egress proxy to CONNECT", tunnel)
                .await?
                .map_err(|what| Failure::new(Stage::Proxy, format!("the egress proxy {proxy} {what}")))?;
        }
        let io = match &self.tls {
            None => Io::Plain(TokioIo::new(stream)),
            Some(tls) => Io::Tls(Box::new(TokioIo::new(self.secure(tls, stream, snapshot, limit).await?))),
        };
        Ok(self.opened(io))
    }

    async fn dialed(&self, dial: &dyn Dial, snapshot: &Snapshot, limit: Limit) -> Result<Stream, Failure> {
        if self.tls.is_some() || !snapshot.settings.upstream.proxy.is_empty() {
            let what = "there is neither TLS nor an egress proxy over a simulated network";
            return Err(Failure::new(Stage::Protocol, what.to_owned()));
        }
        let wire = limit.hold("TCP", dial.dial(&self.host, self.port)).await?;
        let wire = wire.map_err(|error| Failure::new(Stage::Tcp, chain(&error)))?;
        Ok(self.opened(Io::Dialed(TokioIo::new(wire))))
    }

    fn opened(&self, io: Io) -> Stream {
        self.open.inc();
        Stream { io, open: self.open.clone() }
    }

    async fn secure(
        &self,
        tls: &Tls,
        stream: TcpStream,
        snapshot: &Snapshot,
        limit: Limit,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let host = &self.host;
        let failed = |stage, text: String| Failure::new(stage, format!("TLS with {host}: {text}"));
        let name =
            ServerName::try_from(host.clone()).map_err(|error| failed(Stage::Tls, error.to_string()))?;
        let handshake = tls.connector(&snapshot.upstream_tls).connect(name, stream);
        let stream = limit.hold("the TLS handshake", handshake).await?.map_err(|error| {
            use rustls::{AlertDescription, CertificateError, Error};
            let (stage, hint) = match tls_error(&error) {
                Some(Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                )) => (
                    Stage::Tls,
                    "; if a private authority has signed its certificate, name it in `upstream.tls.ca_file`",
                ),
                Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                    (Stage::Protocol, "; it does not speak what `upstream.protocol` says")
                }
                Some(error) if is_about_our_certificate(error) => (Stage::Tls, CLIENT_CERTIFICATE_HINT),
                _ => (Stage::Tls, ""),
            };
            failed(stage, format!("{error}{hint}"))
        })?;
        if self.protocol == Protocol::H2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let what = format!(
                "{host} did not choose HTTP/2 in the TLS handshake (ALPN); set `upstream.protocol` to \"h1\""
            );
            return Err(Failure::new(Stage::Protocol, what));
        }
        Ok(stream)
    }

    /// Counts how it went.
    pub(super) fn count<T>(&self, result: &Result<T, Failure>) {
        self.results[result.as_ref().err().map_or(0, |failure| failure.stage as usize)].inc();
    }
}

/// What to do when the peer does not take our certificate.
const CLIENT_CERTIFICATE_HINT: &str = "; look at `upstream.tls.cert_file`";

/// What rustls said, inside an error of I/O.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether the peer's alert ends a handshake over our certificate. In TLS 1.3 it comes when the handshake is done for
/// us and not for the peer, which reads nothing before it (RFC 8446 §4.4.2, §6.2): no request was looked at.
pub(super) fn is_about_our_certificate(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        error,
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
        )
    )
}

// === impl Limit ===

impl Limit {
    /// The future's output, within the limit.
    pub(super) async fn hold<F: Future>(self, what: &str, future: F) -> Result<F::Output, Failure> {
        tokio::time::timeout_at(self.at, future).await.map_err(|_| {
            Failure::new(
                Stage::Timeout,
                format!("no connection within {:?}: it waited for {what}", self.whole),
            )
        })
    }
}

// === impl Failure ===

impl Failure {
    pub(super) fn new(stage: Stage, message: String) -> Self {
        Self { stage, message }
    }

    /// Whether the time limit has passed.
    pub(super) fn is_timeout(&self) -> bool {
        self.stage == Stage::Timeout
    }

    pub(super) fn into_message(self) -> String {
        self.message
    }
}

// === impl Stream ===

impl Drop for Stream {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Io::Dialed(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Io::Dialed(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            Io::Dialed(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            Io::Dialed(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Io::Dialed(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Io::Dialed(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

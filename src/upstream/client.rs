//! The client: one request over a pooled connection, and what its failure says about delivery.
//!
//! The pools are ours and not hyper-util's: an age of connections, requests that wait for one another's connecting,
//! and an HTTP/2 connection that counts only when the server has spoken are not to be had there, and an error says
//! there only by its text whether a request was sent. A failure is one of three: `Connect` and `Unsent` mean that
//! nothing of the request reached an application, `Cut` that it may have. In doubt it is `Cut`.

use super::connect::{Connector, Dial, Source, is_about_our_certificate, tls_error};
use super::{h1, h2};
use crate::config::raw::Protocol;
use crate::error::ProxyError;
use crate::http::{Body, BodyError, body::chain};
use crate::telemetry::Metrics;
use http::{Request, Response};
use hyper::body::Incoming;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sends requests with absolute URIs over pooled connections. Cheap to clone.
#[derive(Clone)]
pub struct Client(Pool);

#[derive(Clone)]
enum Pool {
    H1(h1::Pool),
    H2(h2::Pool),
}

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No usable trust store.
    #[error(
        "TLS cannot be set up: {0}; install the system's CA certificates, or name a bundle in SSL_CERT_FILE"
    )]
    Tls(#[from] rustls::Error),
}

/// An extension of a request: whether a connection took it up.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<AtomicBool>);

/// An extension of a request: a pooled connection has just failed it, so it goes over a new one.
#[derive(Debug, Clone)]
pub(super) struct Fresh;

// === impl Client ===

impl Client {
    /// A client for the configured upstream. Settings that need no restart are looked up in `source` for each new
    /// connection.
    pub fn new(source: Source, metrics: &Metrics) -> Result<Self, ClientError> {
        Ok(Self::with(Connector::new(source, metrics)?))
    }

    /// The same over the connections of a simulated network. They carry neither TLS nor an egress proxy's tunnel.
    pub fn over(dial: Arc<dyn Dial>, source: Source, metrics: &Metrics) -> Result<Self, ClientError> {
        Ok(Self::with(Connector::new(source, metrics)?.over(dial)))
    }

    fn with(connector: Connector) -> Self {
        Self(match connector.config().settings.upstream.protocol {
            Protocol::H1 => Pool::H1(h1::Pool::new(connector)),
            Protocol::H2 => Pool::H2(h2::Pool::new(connector)),
        })
    }

    /// Sends one request, once. The error's kind tells whether bytes can have left.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ProxyError> {
        match &self.0 {
            Pool::H1(pool) => pool.send(request).await,
            Pool::H2(pool) => pool.send(request).await,
        }
    }

    /// How many connections lie in the pool that seem to be good; over HTTP/2 none lies there.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        match &self.0 {
            Pool::H1(pool) => pool.idle(),
            Pool::H2(_) => 0,
        }
    }
}

/// What an error of a connection's says about a request that it had begun to send. Of a connection that is new, an alert
/// about our certificate ends the handshake and nothing else; of one over which something was answered it may come
/// after all.
pub(super) fn failed(error: &hyper::Error, is_new: bool) -> ProxyError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(body) = inner.downcast_ref::<BodyError>() {
            return ProxyError::RequestBody(body.clone());
        }
        if let Some(error) = inner.downcast_ref::<::h2::Error>()
            && is_unprocessed(error)
        {
            return ProxyError::Unsent(chain(error));
        }
        if is_new
            && let Some(error) = inner.downcast_ref::<io::Error>().and_then(tls_error)
            && is_about_our_certificate(error)
        {
            return ProxyError::Connect(format!("TLS: {error}; look at `upstream.tls.cert_file`"));
        }
        cause = inner.source();
    }
    ProxyError::Cut(chain(error))
}

/// Whether the server has said that it takes no further stream.
pub(super) fn is_goaway(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref::<::h2::Error>().is_some_and(::h2::Error::is_go_away) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// Whether the server says that it did not process this stream (RFC 9113 §6.8, §8.7). A GOAWAY is the error only of
/// streams beyond the last one that it names; one below, that the connection's end cuts, has that end as its error.
fn is_unprocessed(error: &::h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away() || error.is_reset() && error.reason() == Some(::h2::Reason::REFUSED_STREAM))
}

// === impl Taken ===

impl Taken {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// That one gave it back whole.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether one did.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

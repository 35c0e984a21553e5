//! Finds out who asks. Stands before the cache, since a hit must not leak, and after the limits, since an HMAC costs
//! more than a comparison.

use super::Identifier;
use crate::context::RequestContext;
use crate::error::ProxyError;
use crate::http::decided::Decided;
use crate::http::{Body, Present, headers};
use http::{Request, Response, header};
use std::sync::Arc;
use std::task::{Context, Poll};

/// Makes [`Auth`].
#[derive(Clone, Debug)]
pub struct AuthLayer(Arc<Identifier>);

/// Sets the context's identity, and takes the credential out of the fields.
#[derive(Clone, Debug)]
pub struct Auth<S> {
    inner: S,
    identifier: Arc<Identifier>,
}

// === impl AuthLayer ===

impl AuthLayer {
    /// With the installation's identifier.
    pub fn new(identifier: Arc<Identifier>) -> Self {
        Self(identifier)
    }
}

impl<S> tower::Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, identifier: self.0.clone() }
    }
}

// === impl Auth ===

impl<S> tower::Service<Request<Body>> for Auth<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let context = RequestContext::of(&request).clone();
        match self.identifier.identify(request.headers(), context.peer.ip(), &context.config) {
            Ok(identity) => {
                let _ = context.identity.set(identity);
                let fields = request.headers_mut();
                fields.remove(header::AUTHORIZATION);
                if context.present.has(Present::OURS) {
                    fields.remove(&headers::SEAWALL_TOKEN);
                }
                Decided::later(self.inner.call(request))
            }
            Err(error) => Decided::now(Err(error)),
        }
    }
}

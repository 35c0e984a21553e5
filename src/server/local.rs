//! Seawall's own paths on the data listener, under `/_seawall/`.
//!
//! They stand behind auth, since a ticket is only for its owner, and before the cache: nothing of Flexport's begins
//! with this path.

use super::drain::Drain;
use crate::breaker::Breakers;
use crate::cache::Cache;
use crate::context::{BoxFuture, RequestContext};
use crate::error::ProxyError;
use crate::flexport::problem;
use crate::http::{Body, headers};
use crate::ids::WriteId;
use crate::queue::Queue;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The prefix of our own paths.
const PREFIX: &str = "/_seawall/";
/// The longest `?wait=`.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Makes [`Local`].
#[derive(Clone)]
pub struct LocalLayer(Arc<Parts>);

/// Answers `/_seawall/…`, passes on all else.
#[derive(Clone)]
pub struct Local<S> {
    inner: S,
    parts: Arc<Parts>,
}

struct Parts {
    queue: Option<Arc<Queue>>,
    breakers: Arc<Breakers>,
    cache: Arc<Cache>,
    drain: Drain,
}

pin_project_lite::pin_project! {
    /// Our answer, or that of further in: what passes through is not boxed.
    #[project = Projected]
    pub enum Either<F> {
        /// An answer of ours.
        Ours { inner: BoxFuture<Result<Response<Body>, ProxyError>> },
        /// Not for us.
        Theirs { #[pin] inner: F },
    }
}

// === impl LocalLayer ===

impl LocalLayer {
    /// Over what callers may look at.
    pub fn new(queue: Option<Arc<Queue>>, breakers: Arc<Breakers>, cache: Arc<Cache>, drain: Drain) -> Self {
        Self(Arc::new(Parts { queue, breakers, cache, drain }))
    }
}

impl<S> tower::Layer<S> for LocalLayer {
    type Service = Local<S>;

    fn layer(&self, inner: S) -> Local<S> {
        Local { inner, parts: self.0.clone() }
    }
}

// === impl Local ===

impl<S> tower::Service<Request<Body>> for Local<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Either<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !request.uri().path().starts_with(PREFIX) {
            return Either::Theirs { inner: self.inner.call(request) };
        }
        let parts = self.parts.clone();
        let request = request.map(drop);
        let answer = async move {
            let mut response = parts.answer(&request).await?;
            let fields = response.headers_mut();
            fields.insert(headers::SEAWALL_SOURCE, HeaderValue::from_static("seawall"));
            fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(response)
        };
        Either::Ours { inner: Box::pin(answer) }
    }
}

// === impl Either ===

impl<F> Future for Either<F>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Projected::Ours { inner } => inner.as_mut().poll(cx),
            Projected::Theirs { inner } => inner.poll(cx),
        }
    }
}

// === impl Parts ===

impl Parts {
    async fn answer(&self, request: &Request<()>) -> Result<Response<Body>, ProxyError> {
        let context = RequestContext::of(request);
        let path = request.uri().path();
        let segments: Vec<&str> = path[PREFIX.len()..].trim_end_matches('/').split('/').collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET | &Method::HEAD, ["status"]) => Ok(data(context, &self.status())),
            (&Method::GET | &Method::HEAD, ["writes", id]) => {
                let id = parse(id)?;
                let queue = self.queue()?;
                let identity = context.identity();
                queue.check_owner(id, identity)?;
                if let Some(wait) = wait(request)? {
                    // Who waits is answered at once when Seawall shuts down, rather than keeping it from ending.
                    tokio::select! {
                        _ = queue.wait(id, wait) => {}
                        () = self.drain.began() => {}
                    }
                }
                let mut ticket = queue.ticket_json(id, identity).await?;
                let own = format!("{}{}", context.asked.public_url, problem::ticket_path(&id.to_string()));
                ticket["links"] = json!({ "self": own, "result": format!("{own}/result") });
                Ok(data(context, &ticket))
            }
            (&Method::GET | &Method::HEAD, ["writes", id, "result"]) => {
                let id = parse(id)?;
                let queue = self.queue()?;
                queue.check_owner(id, context.identity())?;
                queue.result(id, &context.asked).await
            }
            (&Method::DELETE, ["writes", id]) => {
                let id = parse(id)?;
                let queue = self.queue()?;
                let identity = context.identity();
                queue.check_owner(id, identity)?;
                let actor = identity.caller.as_deref().unwrap_or("the write's owner");
                queue.cancel(id, actor, "by its owner").await?;
                Ok(data(context, &queue.ticket_json(id, identity).await?))
            }
            _ => Err(ProxyError::NotFound(format!(
                "there is no {} {path}; there are GET {PREFIX}status, GET and DELETE {PREFIX}writes/<id>, \
                 GET {PREFIX}writes/<id>/result",
                request.method()
            ))),
        }
    }

    fn queue(&self) -> Result<&Arc<Queue>, ProxyError> {
        self.queue.as_ref().ok_or_else(|| ProxyError::NotFound("this Seawall queues no writes".to_owned()))
    }

    /// For callers: no reasons, names or keys of others.
    fn status(&self) -> Value {
        let breakers: Vec<Value> = self
            .breakers
            .list()
            .iter()
            .map(|status| json!(status))
            .map(|status| json!({ "scope": status["scope"], "state": status["state"], "mode": status["override"]["mode"] }))
            .collect();
        let cache = self.cache.stats();
        let queue = self.queue.as_ref().map(|queue| {
            let stats = queue.stats();
            json!({ "unsettled": stats.unsettled, "oldest_seconds": stats.oldest_seconds })
        });
        json!({
            "_object": "/seawall/status",
            "breakers": breakers,
            "cache": json!(cache),
            "queue": queue,
        })
    }
}

fn data(context: &RequestContext, data: &Value) -> Response<Body> {
    problem::json_response(
        StatusCode::OK,
        "application/json",
        &problem::envelope(&context.asked, data, &Value::Null),
    )
}

fn parse(id: &str) -> Result<WriteId, ProxyError> {
    id.parse().map_err(|_| ProxyError::NotFound("there is no such ticket".to_owned()))
}

fn wait(request: &Request<()>) -> Result<Option<Duration>, ProxyError> {
    let query = request.uri().query().unwrap_or_default();
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("wait=")) else { return Ok(None) };
    let seconds: u64 = text.parse().map_err(|_| ProxyError::BadRequest {
        field: "wait",
        message: "send whole seconds, such as ?wait=30".to_owned(),
    })?;
    Ok(Some(Duration::from_secs(seconds).min(MAX_WAIT)))
}

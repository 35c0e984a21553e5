//! One attempt: the request as it leaves, its time limits, and what became of it.
//!
//! What leaves is built here and nowhere else: target, `Host`, `Authorization`. Framing is hyper's (RFC 9112 §6): no
//! framing field is ever copied, so what we send cannot disagree with itself.
//!
//! A connection that took nothing of the request is followed by one further try at once, for writes too: nothing was
//! sent, and without it an idle connection that the upstream closed would turn a live write into a queued one.

use super::body::{InFlight, UpstreamBody, Watch};
use super::client::{Client, Fresh, Taken};
use crate::context::{
    AttemptOutcome, BodyEnd, BoxFuture, Call, Credential, UpstreamRequest, WholeUntil, is_safe,
};
use crate::error::ProxyError;
use crate::flexport::envelope::Tail;
use crate::flexport::routes::ByGroup;
use crate::http::delivery::{self, Class, Delivery, Doubt, Unsent};
use crate::http::interim::Interim;
use crate::http::{Body, BodyError, headers, retry_after};
use crate::telemetry::{AttemptLabels, GroupLabels, Metrics};
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The last service of the stack. Cheap to clone.
#[derive(Clone)]
pub struct Attempt(Arc<Shared>);

struct Shared {
    client: Client,
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    prefix: String,
    clock: crate::clock::Clock,
    metrics: Arc<Metrics>,
    groups: ByGroup<GroupHandles>,
}

struct GroupHandles {
    seconds: Histogram,
    outcomes: [Counter; OUTCOMES.len()],
}

pin_project_lite::pin_project! {
    /// A request on its way.
    #[project = SendingProjected]
    enum Sending<F> {
        Once { #[pin] sent: F },
        // What few requests need has a place of its own.
        Twice { sent: BoxFuture<Result<Response<Incoming>, ProxyError>> },
    }
}

/// A request's body on its way out, when it comes from the caller piece by piece.
struct Upload {
    inner: Body,
    progress: Arc<Progress>,
}

/// How far an upload has come.
struct Progress {
    began: Instant,
    finished: tokio::sync::Notify,
    /// Whether we wait for our caller, and not for the upstream to take more.
    is_starved: AtomicBool,
    /// When the upstream last took a piece, in milliseconds since the beginning.
    taken_at: AtomicU64,
}

const OUTCOMES: [&str; 8] =
    ["success", "client_error", "refused", "server_error", "timeout", "cut", "connect", "unsent"];

// === impl Attempt ===

impl Attempt {
    /// An attempt service for `base`, an absolute http or https URL, whose path is put before every request's.
    pub fn new(
        client: Client,
        base: &Uri,
        groups: &[Arc<str>],
        clock: crate::clock::Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, http::uri::InvalidUri> {
        let authority = base.authority().cloned().map_or_else(|| "".parse(), Ok)?;
        let scheme = base.scheme().cloned().unwrap_or(Scheme::HTTPS);
        // Userinfo is refused by the configuration; the default port is left out, as browsers and curl do.
        let default_port = if scheme == Scheme::HTTP { 80 } else { 443 };
        let host = match authority.port_u16() {
            Some(port) if port != default_port => authority.as_str(),
            _ => authority.host(),
        };
        let host = HeaderValue::from_str(host).unwrap_or_else(|_| HeaderValue::from_static("invalid"));
        let groups = ByGroup::new(groups, |group| GroupHandles::new(&metrics, group));
        Ok(Self(Arc::new(Shared {
            client,
            scheme,
            authority,
            host,
            prefix: base.path().trim_end_matches('/').to_owned(),
            clock,
            metrics,
            groups,
        })))
    }
}

impl tower::Service<UpstreamRequest> for Attempt {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = BoxFuture<Result<Response<Body>, ProxyError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> Self::Future {
        Box::pin(run(self.0.clone(), request))
    }
}

/// One call of the service. Futures that hold a request are as large as it is, and one inside the other copies it each
/// time: so this one is the only one on the way of a read.
async fn run(
    shared: Arc<Shared>,
    UpstreamRequest { request, mut call }: UpstreamRequest,
) -> Result<Response<Body>, ProxyError> {
    let request = shared.outbound(request, &call)?;
    if let Some(before_send) = call.before_send.take() {
        before_send().await?;
    }
    // A rate gate that was shut meanwhile holds back this attempt too.
    if let Some(slot) = &call.slot {
        slot.may_leave()?;
    }
    let mut started = Instant::now();
    if call.deadline <= started {
        return Err(ProxyError::DeadlineBeforeSending);
    }
    let in_flight = InFlight::new(&shared.metrics.upstream_in_flight);
    let is_head = request.method() == Method::HEAD;
    let limit = *call.config.settings.upstream.timeout;
    let sent = match request.body().as_bytes() {
        Some(bytes) => {
            let until = call.deadline.min(started + limit);
            let is_long = until < call.deadline || is_long(&call, until - started);
            began(&call, started);
            shared.send_whole(request, bytes, call.resends_unsent, until, is_long).await
        }
        None => Box::pin(shared.send_streamed(request, &call, limit, &mut started)).await,
    };
    let result = match sent {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Err(ProxyError::Cut("101 Switching Protocols, which nobody asked for".to_owned()))
        }
        result => result,
    };
    shared.conclude(result, call, started.elapsed(), is_head, in_flight)
}

/// Whether a wait that the call's deadline ended says something of the upstream: our caller's patience does not, unless
/// it was long; nor does what was left of a route's time after another wait.
fn is_long(call: &Call, waited: Duration) -> bool {
    !call.is_hurried && waited >= call.route.timeout / 2
}

fn began(call: &Call, at: Instant) {
    if let Some(observer) = &call.observer {
        observer.began_at(at);
    }
}

// === impl Shared ===

impl Shared {
    /// Tells what became of the attempt, and makes the answer of it.
    fn conclude(
        &self,
        result: Result<Response<Incoming>, ProxyError>,
        mut call: Call,
        head_after: Duration,
        is_head: bool,
        in_flight: InFlight,
    ) -> Result<Response<Body>, ProxyError> {
        let limits = &call.config.settings.upstream;
        let delivery = delivery::of(result.as_ref().map(|response| (response.status(), response.headers())));
        if let Some(group) = self.groups.get(&call.route.group) {
            group.seconds.observe(head_after.as_secs_f64());
            group.outcomes[outcome_index(delivery)].inc();
        }
        let mut outcome = AttemptOutcome { delivery, head_after, body: BodyEnd::Complete, retry_after: None };
        match result {
            Ok(response) => {
                outcome.retry_after = self.hint(response.headers());
                if let Some(observer) = &call.observer {
                    observer.answered(delivery, head_after);
                }
                let watch =
                    Watch { outcome, observer: call.observer.take(), slot: call.slot.take(), in_flight };
                Ok(inbound(response, is_head, *limits.body_idle_timeout, call.whole_until.take(), watch))
            }
            Err(error) => {
                if let Some(observer) = call.observer.take() {
                    if matches!(error, ProxyError::HeadTimeout)
                        && head_after < *limits.timeout
                        && !is_long(&call, head_after)
                    {
                        outcome.delivery = Delivery::Ambiguous(Doubt::Cut);
                        outcome.body = BodyEnd::Abandoned;
                    }
                    observer.ended(outcome);
                }
                Err(error)
            }
        }
    }

    /// Sends what is in memory, and waits for the head until then. A wait that is not long blames nobody when no
    /// connection was had.
    fn send_whole(
        &self,
        mut request: Request<Body>,
        bytes: Bytes,
        resends_unsent: bool,
        until: Instant,
        is_long: bool,
    ) -> impl Future<Output = Result<Response<Incoming>, ProxyError>> {
        // What only reads may be sent again in any case, so how far a connection had come does not matter.
        let taken = (!is_safe(request.method())).then(Taken::default);
        if let Some(taken) = &taken {
            request.extensions_mut().insert(taken.clone());
        }
        let sending = if resends_unsent {
            Sending::Once { sent: self.client.send(request) }
        } else {
            Sending::Twice { sent: Box::pin(send_twice(self.client.clone(), request, bytes)) }
        };
        let sent = tokio::time::timeout_at(until, sending);
        async move {
            match sent.await {
                Ok(result) => result,
                Err(_) => match taken {
                    Some(taken) if !taken.is_set() && !is_long => Err(ProxyError::DeadlineBeforeSending),
                    Some(taken) if !taken.is_set() => {
                        Err(ProxyError::Connect("no connection in time".to_owned()))
                    }
                    _ => Err(ProxyError::HeadTimeout),
                },
            }
        }
    }

    /// Sends what comes piece by piece from our caller, and waits for the head: until the call's deadline, and at
    /// most `limit` from the moment at which the whole request had been taken. While our own caller is still sending
    /// it, the upstream cannot answer: the attempt counts as started, for all who judge it, when that is done.
    async fn send_streamed(
        &self,
        request: Request<Body>,
        call: &Call,
        limit: Duration,
        started: &mut Instant,
    ) -> Result<Response<Incoming>, ProxyError> {
        let deadline = call.deadline;
        let progress = Arc::new(Progress::new(*started));
        let request = request.map(|inner| Body::new(Upload { inner, progress: progress.clone() }));
        let mut sent = std::pin::pin!(self.client.send(request));
        tokio::select! {
            result = &mut sent => {
                // It did not wait for the end of the request; how long that would have taken is our caller's matter.
                *started = progress.taken_at();
                began(call, *started);
                return result;
            }
            () = tokio::time::sleep_until(deadline) => {
                *started = progress.taken_at();
                began(call, *started);
                return Err(progress.late());
            }
            () = progress.finished.notified() => {}
        }
        *started = Instant::now();
        began(call, *started);
        match tokio::time::timeout_at(deadline.min(*started + limit), sent).await {
            Ok(result) => result,
            Err(_) => Err(ProxyError::HeadTimeout),
        }
    }

    /// The request as it leaves.
    fn outbound(&self, request: Request<Body>, call: &Call) -> Result<Request<Body>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let target = if self.prefix.is_empty() {
            target
        } else {
            format!("{}{target}", self.prefix).parse().map_err(|_| ProxyError::BadRequest {
                field: "path",
                message: "the path is not a valid request target".to_owned(),
            })?
        };
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(target);
        parts.uri = Uri::from_parts(uri).map_err(|error| ProxyError::Internal(error.to_string()))?;
        parts.version = http::Version::HTTP_11;
        let interim = parts.extensions.remove::<Interim>();
        parts.extensions = http::Extensions::new();
        headers::strip_for_upstream(&mut parts.headers);
        parts.headers.insert(header::HOST, self.host.clone());
        parts.headers.append(header::VIA, HeaderValue::from_static("1.1 seawall"));
        if body.is_end_stream() && matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            // RFC 9110 §8.6: a method that anticipates content says so when there is none.
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        match &call.credential {
            Credential::None => {}
            Credential::Passed(value) => {
                parts.headers.insert(header::AUTHORIZATION, value.clone());
            }
            Credential::Alias(name) => {
                let value = call.config.credentials.get(name).ok_or(ProxyError::Unauthorized {
                    reason: "the credential that this goes to Flexport with is not in the configuration",
                })?;
                parts.headers.insert(header::AUTHORIZATION, value.clone());
            }
        }
        let mut request = Request::from_parts(parts, body);
        if let Some(interim) = interim {
            hyper::ext::on_informational(&mut request, move |response| {
                interim.push(response.status(), response.headers());
            });
        }
        Ok(request)
    }

    fn hint(&self, fields: &HeaderMap) -> Option<Duration> {
        let value = fields.get(header::RETRY_AFTER)?;
        let now: Timestamp = self.clock.now();
        retry_after::parse(value, now)
    }
}

/// The answer as the layers above see it: end-to-end fields only; its length is the body's.
fn inbound(
    response: Response<Incoming>,
    is_head: bool,
    idle: Duration,
    whole_until: Option<Arc<WholeUntil>>,
    watch: Watch,
) -> Response<Body> {
    let (mut parts, incoming) = response.into_parts();
    let is_framed_anew = !is_head && parts.status != StatusCode::NOT_MODIFIED;
    headers::strip_for_caller(&mut parts.headers, is_framed_anew);
    parts.extensions = http::Extensions::new();
    let is_watched = parts.status == StatusCode::OK && !is_head && watch.observer.is_some();
    let tail = if is_watched { Tail::of(&parts.headers) } else { None };
    let body = UpstreamBody::new(incoming, idle, whole_until, tail, watch);
    let body = if http_body::Body::is_end_stream(&body) { Body::empty() } else { Body::new(body) };
    Response::from_parts(parts, body)
}

/// Sends; once more at once when a connection took nothing, and then over a new one: others in the pool may have died
/// with it.
pub(super) async fn send_twice(
    client: Client,
    request: Request<Body>,
    bytes: Bytes,
) -> Result<Response<Incoming>, ProxyError> {
    // The extensions hold who watches the connection: a second try is watched by the same.
    let (mut parts, _) = request.into_parts();
    let first = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
    match client.send(first).await {
        Err(ProxyError::Unsent(_)) => {
            if let Some(taken) = parts.extensions.get::<Taken>() {
                taken.clear();
            }
            parts.extensions.insert(Fresh);
            client.send(Request::from_parts(parts, Body::from(bytes))).await
        }
        result => result,
    }
}

// === impl Sending ===

impl<F> Future for Sending<F>
where
    F: Future<Output = Result<Response<Incoming>, ProxyError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            SendingProjected::Once { sent } => sent.poll(cx),
            SendingProjected::Twice { sent } => sent.as_mut().poll(cx),
        }
    }
}

// === impl Progress ===

impl Progress {
    fn new(began: Instant) -> Self {
        Self {
            began,
            finished: tokio::sync::Notify::new(),
            is_starved: AtomicBool::new(false),
            taken_at: AtomicU64::new(0),
        }
    }

    /// When the upstream last took a piece of it.
    fn taken_at(&self) -> Instant {
        self.began + Duration::from_millis(self.taken_at.load(Ordering::Relaxed))
    }

    /// Whose fault it is that an upload was not done in time.
    fn late(&self) -> ProxyError {
        if self.is_starved.load(Ordering::Relaxed) {
            ProxyError::RequestBody(BodyError::Stopped)
        } else {
            ProxyError::HeadTimeout
        }
    }
}

// === impl Upload ===

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let poll = Pin::new(&mut this.inner).poll_frame(cx);
        this.progress.is_starved.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            let since = u64::try_from(this.progress.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            this.progress.taken_at.store(since, Ordering::Relaxed);
        }
        if matches!(poll, Poll::Ready(None)) || this.inner.is_end_stream() {
            this.progress.finished.notify_one();
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl GroupHandles ===

impl GroupHandles {
    fn new(metrics: &Metrics, group: &Arc<str>) -> Self {
        Self {
            seconds: metrics.attempt_seconds.get_or_create(&GroupLabels { group: group.to_string() }).clone(),
            outcomes: OUTCOMES.map(|outcome| {
                metrics.attempts.get_or_create(&AttemptLabels { group: group.to_string(), outcome }).clone()
            }),
        }
    }
}

fn outcome_index(delivery: Delivery) -> usize {
    match delivery {
        Delivery::Answered(Class::Success) => 0,
        Delivery::Answered(
            Class::Unauthorized | Class::Forbidden | Class::RequestTimeout | Class::TryAgain | Class::Client,
        ) => 1,
        Delivery::Refused(_) => 2,
        Delivery::Ambiguous(Doubt::ServerError(_)) | Delivery::Answered(Class::Unsupported) => 3,
        Delivery::Ambiguous(Doubt::HeadTimeout) => 4,
        Delivery::Ambiguous(Doubt::Cut) => 5,
        Delivery::NotSent(Unsent::Connect) => 6,
        Delivery::NotSent(Unsent::Connection | Unsent::Ours) => 7,
    }
}

//! What travels with a request, and the traits by which capabilities meet without importing each other.
//!
//! `front::context` makes one [`RequestContext`] per request: it takes the configuration once and matches the route
//! once, so that all layers act on the same policy even when the configuration is reloaded in between.

use crate::config::Snapshot;
use crate::error::ProxyError;
use crate::flexport::problem::Asked;
use crate::flexport::routes::RoutePolicy;
use crate::http::{Body, Delivery, Present};
use crate::ids::{OwnerId, PartitionId};
use http::{HeaderValue, Method, Request, Response};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The seam to Flexport: links, breaker, limiter, attempt, client. Always ready: whoever has no room says so by an
/// error. A service behind one pointer and not a `BoxCloneSyncService`, which would copy all of itself for each call.
#[derive(Clone)]
pub struct Upstream(Arc<dyn Enter>);

/// What an [`Upstream`] is made of.
trait Enter: Send + Sync {
    fn enter(&self, request: UpstreamRequest) -> BoxFuture<Result<Response<Body>, ProxyError>>;
}

/// A request on its way to Flexport, with what the layers need to know of it. A struct and not an extension, since
/// no layer can do without the call, and the compiler should say so.
pub struct UpstreamRequest {
    /// Its URI is path and query only; it carries no credential.
    pub request: Request<Body>,
    /// Filled by the layers on the way.
    pub call: Call,
}

/// A service of the front: below `rescue` errors, above it only responses.
pub type Inner = BoxCloneSyncService<Request<Body>, Response<Body>, ProxyError>;

/// Facts of one request, as an `Arc` in its extensions.
#[derive(Debug)]
pub struct RequestContext {
    /// The configuration as of its arrival.
    pub config: Arc<Snapshot>,
    /// The policy of its route.
    pub route: Arc<RoutePolicy>,
    /// `X-Request-Id`: the caller's when well formed, else ours.
    pub request_id: HeaderValue,
    /// `traceparent` for the upstream: the caller's trace with a span of ours, or a new trace.
    pub traceparent: HeaderValue,
    /// Where it came from.
    pub peer: SocketAddr,
    /// When its head had arrived.
    pub arrived: Instant,
    /// When the whole call must be over: the route's timeout, or `Seawall-Timeout` when that is shorter.
    pub deadline: Instant,
    /// Its method.
    pub method: Method,
    /// Which fields it came with.
    pub present: Present,
    /// Path and query as asked, for answers of our own.
    pub asked: Asked,
    /// Who it is: set by `front::auth`, absent only before it.
    pub identity: OnceLock<Identity>,
}

/// Who asks, as whom it goes to Flexport, and whose data it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The declared caller's name.
    pub caller: Option<Arc<str>>,
    /// What goes to Flexport.
    pub credential: Credential,
    /// Whose data it is. `None`: no credential at all, so neither cached nor queued.
    pub partition: Option<PartitionId>,
    /// Who may read its tickets.
    pub owner: Option<OwnerId>,
}

/// What goes to Flexport in `Authorization`.
#[derive(Clone)]
pub enum Credential {
    /// Nothing.
    None,
    /// The secret that the configuration has under this name at the moment of sending.
    Alias(Arc<str>),
    /// The caller's own field, as it came.
    Passed(HeaderValue),
}

/// Whose turn it is when there is not room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A caller waits for a read.
    LiveRead,
    /// A caller waits for a write.
    LiveWrite,
    /// A refresh in the background.
    Refresh,
    /// A queued write.
    Replay,
    /// An active probe of a group that is not well.
    Probe,
}

/// One call of the [`Upstream`].
pub struct Call {
    /// Whose turn it is.
    pub lane: Lane,
    /// The policy of the route.
    pub route: Arc<RoutePolicy>,
    /// Whether the method is safe, and so the group's read breaker is asked.
    pub is_read: bool,
    /// The configuration.
    pub config: Arc<Snapshot>,
    /// What goes into `Authorization`.
    pub credential: Credential,
    /// When the whole call must be over.
    pub deadline: Instant,
    /// Whether the caller itself wanted it to be over sooner than its route does: its impatience says nothing of the
    /// upstream.
    pub is_hurried: bool,
    /// Until when the answer's body has to be whole, where it is read into memory and not passed on.
    pub whole_until: Option<Arc<WholeUntil>>,
    /// What must be durable before the first byte leaves: run after every admission, right before sending. An error
    /// ends the call with nothing sent.
    pub before_send: Option<BeforeSend>,
    /// Told of each attempt. Set by the breaker.
    pub observer: Option<Arc<dyn AttemptObserver>>,
    /// Kept until the upstream's body has ended. Set by the limiter.
    pub slot: Option<Slot>,
    /// Whether whoever entered sends again by itself what a connection did not take. If not, the attempt does, and
    /// keeps a copy of the request for it.
    pub resends_unsent: bool,
}

/// The right to one call of the upstream at this time. Given back when it is dropped.
pub struct Slot {
    owner: Arc<dyn SlotOwner>,
    tenancy: Tenancy,
}

/// Whose a slot is.
#[derive(Clone, Copy, Debug)]
pub struct Tenancy {
    /// The call's lane.
    pub lane: Lane,
    /// The place of its group among the groups.
    pub group: usize,
    /// A hash of its credential.
    pub key: u64,
    /// Whether the credential is not one that a caller passed.
    pub is_known: bool,
}

/// Who gave a slot: the limiter.
pub trait SlotOwner: Send + Sync {
    /// Whether an attempt may leave: asked right before its first byte.
    fn may_leave(&self, tenancy: &Tenancy) -> Result<(), ProxyError>;
    /// The slot is free again.
    fn give_back(&self, tenancy: &Tenancy);
}

/// Until when a body that is read into memory has to be whole. A body that drips is never idle, and would hold what
/// waits for it, a slot and its permits for as long as it likes. Lifted when the body turns out to be one that is
/// only passed on to a caller, who may read it as slowly as it wants.
#[derive(Debug)]
pub struct WholeUntil {
    until: Instant,
    is_lifted: AtomicBool,
}

/// A step before sending.
pub type BeforeSend = Box<dyn FnOnce() -> BoxFuture<Result<(), ProxyError>> + Send + Sync>;

/// Told how an attempt went, exactly once per attempt. What it holds (permits) is freed when it is dropped, which
/// happens when the upstream's body has ended.
pub trait AttemptObserver: Send + Sync {
    /// The attempt began now.
    fn began(&self) {
        self.began_at(Instant::now());
    }
    /// The attempt began then; a probe's deadline runs from there. Who knows the moment spares a look at the clock.
    fn began_at(&self, at: Instant);
    /// The head is there and the body follows: a long healthy body is not waited for. At most once per attempt.
    fn answered(&self, _delivery: Delivery, _head_after: Duration) {}
    /// Whether the call may still be made: asked again by what let it wait.
    fn may_go_on(&self) -> Result<(), ProxyError> {
        Ok(())
    }
    /// The attempt is over: at the end of the body, or when there was no head.
    fn ended(&self, outcome: AttemptOutcome);
}

/// How an attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptOutcome {
    /// What the head, or the lack of one, says.
    pub delivery: Delivery,
    /// From the start of the attempt to the head, or to its failure.
    pub head_after: Duration,
    /// How the body ended.
    pub body: BodyEnd,
    /// The answer's `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// How an upstream's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// There was no head, or the body came whole.
    Complete,
    /// The upstream cut it, stood still, or sent fewer bytes than it said.
    Broken,
    /// We stopped reading.
    Abandoned,
}

/// Told of every write whose final outcome is known, live or replayed: a direct call, since it must happen.
pub trait Settled: Send + Sync {
    /// Flexport answered this write with success, or may have applied it: what it touches is out of date.
    fn settled(&self, write: &SettledWrite);
}

/// A write that has an outcome.
#[derive(Clone, Debug)]
pub struct SettledWrite {
    /// Whose data it touched.
    pub partition: PartitionId,
    /// The path, without the query.
    pub path: String,
    /// The policy of its route: names the tags that it makes stale.
    pub route: Arc<RoutePolicy>,
    /// `Location` and `Content-Location` of the answer, as paths.
    pub also: Vec<String>,
}

/// Asked by the cache: writes that are not settled yet.
pub trait PendingWrites: Send + Sync {
    /// How many unsettled writes touch this path of this partition, and since when the oldest waits.
    fn pending(&self, partition: PartitionId, path: &str) -> Option<Pending>;
}

/// Whoever is made later, as the queue is after the cache: until then nothing waits.
impl<T: PendingWrites> PendingWrites for OnceLock<Arc<T>> {
    fn pending(&self, partition: PartitionId, path: &str) -> Option<Pending> {
        self.get()?.pending(partition, path)
    }
}

/// Asked by the cache: how the upstream does, as the breakers see it.
pub trait GroupHealth: Send + Sync {
    /// Whether calls of this group fail at this time, so that a caller with a copy at hand need not wait long.
    fn shows_failures(&self, group: &str) -> bool;
}

/// Unsettled writes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// How many.
    pub count: usize,
    /// How long the oldest has waited.
    pub oldest: Duration,
}

// === impl Upstream ===

impl Upstream {
    /// Over a service that is always ready.
    pub fn new<S>(service: S) -> Self
    where
        S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(Arc::new(service))
    }
}

impl<S> Enter for S
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError> + Clone + Send + Sync,
    S::Future: Send + 'static,
{
    fn enter(&self, request: UpstreamRequest) -> BoxFuture<Result<Response<Body>, ProxyError>> {
        Box::pin(self.clone().call(request))
    }
}

impl tower::Service<UpstreamRequest> for Upstream {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = BoxFuture<Result<Response<Body>, ProxyError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> Self::Future {
        self.0.enter(request)
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstream")
    }
}

// === impl RequestContext ===

impl RequestContext {
    /// The context of a request that went through `front::context`.
    pub fn of<B>(request: &Request<B>) -> &Arc<Self> {
        request.extensions().get::<Arc<Self>>().expect("front::context stands before every layer that asks")
    }

    /// Who asks; set by `front::auth`, which stands before every layer that asks.
    pub fn identity(&self) -> &Identity {
        self.identity.get().expect("front::auth stands before every layer that asks")
    }
}

// === impl Slot ===

impl Slot {
    /// A slot of this owner's.
    pub fn new(owner: Arc<dyn SlotOwner>, tenancy: Tenancy) -> Self {
        Self { owner, tenancy }
    }

    /// Whether an attempt may leave now: its credential's rate gate may have been shut since it was asked.
    pub fn may_leave(&self) -> Result<(), ProxyError> {
        self.owner.may_leave(&self.tenancy)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.owner.give_back(&self.tenancy);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.tenancy).finish()
    }
}

// === impl WholeUntil ===

impl WholeUntil {
    /// A limit at that moment.
    pub fn new(until: Instant) -> Arc<Self> {
        Arc::new(Self { until, is_lifted: AtomicBool::new(false) })
    }

    /// The body may take as long as it takes.
    pub fn lift(&self) {
        self.is_lifted.store(true, Ordering::Release);
    }

    /// The limit, while there is one.
    pub fn get(&self) -> Option<Instant> {
        (!self.is_lifted.load(Ordering::Acquire)).then_some(self.until)
    }
}

// === impl Call ===

impl Call {
    /// The call of a request of a caller's.
    pub fn live(context: &RequestContext) -> Self {
        let is_read = is_safe(&context.method);
        Self {
            lane: if is_read { Lane::LiveRead } else { Lane::LiveWrite },
            route: context.route.clone(),
            is_read,
            config: context.config.clone(),
            credential: context.identity().credential.clone(),
            deadline: context.deadline,
            is_hurried: context.deadline < context.arrived + context.route.timeout,
            whole_until: None,
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: false,
        }
    }
}

/// Whether a method only reads (RFC 9110 §9.2.1), of those that the upstream knows.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

// === impl Credential ===

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Alias(name) => write!(f, "alias {name}"),
            Self::Passed(_) => f.write_str("passed through"),
        }
    }
}

//! The layer's service: who passes, who is a repeat, who runs as a write of ours.

use super::buffer::{self, Read};
use super::dedupe::{self, Repeat};
use super::hub::{PIECE, Queue};
use super::live::{Draft, Entered, Reply};
use super::order::{self, Key, Turn};
use super::record::path_of;
use crate::config::raw::{OnUnknown, PassthroughWrites};
use crate::context::{Call, Credential, RequestContext, Upstream, UpstreamRequest, is_safe};
use crate::error::ProxyError;
use crate::flexport::problem::{self, Asked};
use crate::flexport::routes::{OrderRule, WriteClass};
use crate::http::headers::{
    FLEXPORT_VERSION, IDEMPOTENT_REPLAYED, PREFERENCE_APPLIED, SEAWALL_DUPLICATE, SEAWALL_DURABILITY,
    SEAWALL_ORDER_KEY, SEAWALL_QUEUE, SEAWALL_QUEUE_MAX_AGE, SEAWALL_SOURCE, SEAWALL_WRITE_ID, strip_framing,
    strip_seawall_request,
};
use crate::http::{Body, idempotency, prefer};
use crate::ids::WriteId;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use serde_json::{Value, json};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tower::{Service, ServiceExt};

/// The longest that `Prefer: wait` is followed.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The longest order key of the caller's.
const MAX_ORDER_KEY: usize = 255;

/// The queue in front of an upstream.
#[derive(Clone)]
pub struct QueueService {
    queue: Arc<Queue>,
    upstream: Upstream,
}

/// What the caller asks of the queue, in fields that go no further.
struct Wishes {
    never: bool,
    order: Option<String>,
    max_age: Option<Duration>,
    allows_twin: bool,
    wait: Option<Duration>,
    key: Option<String>,
}

/// A live place in an order for a write that is never a record. Given up when dropped.
struct Seat {
    queue: Arc<Queue>,
    key: Key,
    seq: u64,
    turn: Arc<Notify>,
}

// === impl QueueService ===

impl QueueService {
    pub(super) fn new(queue: Arc<Queue>, upstream: Upstream) -> Self {
        Self { queue, upstream }
    }
}

impl Service<Request<Body>> for QueueService {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        // The inner service is asked in the call: a breaker's refusal is this layer's trigger, not its end.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (queue, upstream) = (self.queue.clone(), self.upstream.clone());
        let ctx = RequestContext::of(&request).clone();
        if is_safe(&ctx.method) {
            return Box::pin(pass(upstream, ctx, request));
        }
        Box::pin(write(queue, upstream, ctx, request))
    }
}

impl std::fmt::Debug for QueueService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueService")
    }
}

/// Straight to the upstream, streaming.
async fn pass(
    upstream: Upstream,
    ctx: Arc<RequestContext>,
    mut request: Request<Body>,
) -> Result<Response<Body>, ProxyError> {
    clean(request.headers_mut());
    let call = Call::live(&ctx);
    upstream.oneshot(UpstreamRequest { request, call }).await
}

async fn write(
    queue: Arc<Queue>,
    upstream: Upstream,
    ctx: Arc<RequestContext>,
    request: Request<Body>,
) -> Result<Response<Body>, ProxyError> {
    let settings = &ctx.config.settings.queue;
    let identity = ctx.identity();
    let policy = &ctx.route.queue;
    let is_strict = ctx.config.settings.profile == crate::config::raw::Profile::Strict;
    let (Some(partition), false) = (identity.partition, is_strict) else {
        return pass(upstream, ctx, request).await;
    };
    let class = policy.class.filter(|_| settings.enabled);
    let is_ordered = policy.order != OrderRule::None || request.headers().contains_key(SEAWALL_ORDER_KEY);
    if class.is_none() && !is_ordered {
        return pass(upstream, ctx, request).await;
    }
    let wishes = Wishes::of(request.headers())?;
    let can_keep = match &identity.credential {
        Credential::None => false,
        Credential::Alias(_) => true,
        Credential::Passed(_) => settings.passthrough == PassthroughWrites::Sealed,
    };
    let (mut parts, body) = request.into_parts();
    // The room is taken as it is filled, so that a slow upload of unknown length holds only what it has sent.
    let mut room: Option<OwnedSemaphorePermit> = None;
    let mut held = 0u32;
    let read = buffer::read(body, policy.max_body, |total| {
        let pieces = u32::try_from(total.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let Some(more) = pieces.checked_sub(held).filter(|more| *more > 0) else { return true };
        match queue.buffer.clone().try_acquire_many_owned(more) {
            Ok(permit) => {
                held = pieces;
                match &mut room {
                    Some(room) => room.merge(permit),
                    None => room = Some(permit),
                }
                true
            }
            Err(_) => false,
        }
    })
    .await
    .map_err(ProxyError::RequestBody)?;
    let mut body = match read {
        Read::Whole(bytes) => bytes,
        Read::Long(body) => {
            drop(room);
            let name = match (&wishes.order, &policy.order) {
                (Some(name), _) => Some(Arc::from(name.as_str())),
                (None, rule @ (OrderRule::Path | OrderRule::Collection)) => {
                    Some(order::name(rule, path_of(&ctx.asked.target), &[], WriteId::random()))
                }
                (None, OrderRule::None) => None,
                (None, OrderRule::Body { collection, .. }) => {
                    // Its parent stands in a body that is too long to be read: it may be any that waits.
                    let prefix = format!("{collection}/");
                    if let Some(write_id) = queue.with(|book| book.oldest_in(partition, &prefix)) {
                        let retry_after = Duration::from_secs(5);
                        return Err(ProxyError::OrderConflict { write_id, retry_after });
                    }
                    None
                }
            };
            let request = Request::from_parts(parts, body);
            let key = name.map(|name| (partition, name));
            return pass_in_order(queue, upstream, ctx, request, key, class).await;
        }
    };
    let Some(class) = class else {
        let name = wishes.order.clone().map_or_else(
            || order::name(&policy.order, path_of(&ctx.asked.target), &body, WriteId::random()),
            Arc::from,
        );
        let request = Request::from_parts(parts, Body::from(body));
        return pass_whole_in_order(queue, upstream, ctx, request, (partition, name), None).await;
    };
    clean(&mut parts.headers);
    strip_framing(&mut parts.headers);
    let field = |name: HeaderName| parts.headers.get(name).map_or(&[][..], HeaderValue::as_bytes).to_vec();
    let (content_type, version) = (field(header::CONTENT_TYPE), field(FLEXPORT_VERSION));
    let owner = identity.owner.unwrap_or(crate::ids::OwnerId(partition.0));
    let (method, target) = (ctx.method.as_str(), ctx.asked.target.as_str());
    // One pass over the body serves all three.
    let blob = super::journal::blob(&body);
    let fingerprint = dedupe::fingerprint(method, target, &content_type, &version, &blob.sha256);
    let twin = dedupe::twin(partition, owner, method, target, &version, &blob.sha256);
    let room = room.map(Arc::new);
    loop {
        let draft = Draft {
            ctx: ctx.clone(),
            upstream: upstream.clone(),
            headers: parts.headers.clone(),
            body: body.clone(),
            room: room.clone(),
            partition,
            owner,
            class,
            key: wishes.key.clone(),
            order: wishes.order.clone(),
            allows_twin: wishes.allows_twin,
            may_queue: can_keep && !wishes.never,
            max_age: wishes.max_age,
            blob,
            fingerprint,
            twin,
        };
        match queue.enter(draft) {
            // Too much in its fields for a record.
            Err(draft) => {
                body = draft.body;
                let name = draft.order.map_or_else(
                    || order::name(&policy.order, path_of(&ctx.asked.target), &body, WriteId::random()),
                    Arc::from,
                );
                let request = Request::from_parts(parts, Body::from(body));
                let key = (partition, name);
                return pass_whole_in_order(queue, upstream, ctx, request, key, Some(class)).await;
            }
            Ok(Entered::New(live)) => {
                let key = live.key().to_owned();
                let reply = live.spawn().await.unwrap_or_else(|_| {
                    Err(ProxyError::Internal("the write's task ended; its outcome is not known".to_owned()))
                });
                return match reply? {
                    Reply::Answer(response) => Ok(response),
                    Reply::Ticket(id) => queue.ticket(id, &ctx, &key, wishes.wait, false).await,
                };
            }
            Ok(Entered::Reused) => return Err(ProxyError::KeyReused),
            Ok(Entered::Repeat(repeat, id, changes)) => {
                match repeat {
                    Repeat::Wait => {
                        let in_flight = Err(ProxyError::KeyInFlight { write_id: Some(id) });
                        let Some(mut changes) = changes else { continue };
                        match tokio::time::timeout_at(ctx.deadline, changes.changed()).await {
                            // Whatever became of it: look again.
                            Ok(_) => continue,
                            Err(_) => return in_flight,
                        }
                    }
                    Repeat::Fresh => {
                        return Err(ProxyError::Internal("a fresh write is no repeat".to_owned()));
                    }
                    Repeat::InFlight => return Err(ProxyError::KeyInFlight { write_id: Some(id) }),
                    Repeat::Ticket | Repeat::Answer | Repeat::Unknown => {}
                }
                queue.metrics.queue_repeats.inc();
                let key = queue.key_of(id).unwrap_or_default();
                return match repeat {
                    Repeat::Unknown
                        if settings.on_unknown != OnUnknown::Accept
                            || wishes.never
                            || queue.is_unread(id) =>
                    {
                        let key = (!key.is_empty()).then(|| key.into());
                        Err(ProxyError::OutcomeUnknown { write_id: id, key, is_durable: true })
                    }
                    // Its caller wants no ticket, and the first one must not be overtaken.
                    Repeat::Ticket if wishes.never => Err(ProxyError::KeyInFlight { write_id: Some(id) }),
                    Repeat::Answer => {
                        let mut response = queue.stored_answer(id, &ctx.asked).await?;
                        let headers = response.headers_mut();
                        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
                        mark(headers, id, &key);
                        Ok(response)
                    }
                    _ => queue.ticket(id, &ctx, &key, wishes.wait, true).await,
                };
            }
        }
    }
}

/// The same as [`pass_in_order`] with the whole body at hand: in a task of its own, so that its order is not free while
/// Flexport may be acting, though the caller has left.
async fn pass_whole_in_order(
    queue: Arc<Queue>,
    upstream: Upstream,
    ctx: Arc<RequestContext>,
    request: Request<Body>,
    key: Key,
    class: Option<WriteClass>,
) -> Result<Response<Body>, ProxyError> {
    let give_up = queue.give_up.clone();
    let task = queue.writes.clone().spawn(async move {
        tokio::select! {
            biased;
            answer = pass_in_order(queue, upstream, ctx, request, Some(key), class) => answer,
            () = give_up.cancelled() => Err(ProxyError::Cut("Seawall is shutting down".to_owned())),
        }
    });
    task.await.unwrap_or_else(|_| {
        Err(ProxyError::Internal("the write's task ended; its outcome is not known".to_owned()))
    })
}

/// Straight to the upstream, but not past an older write of its order.
async fn pass_in_order(
    queue: Arc<Queue>,
    upstream: Upstream,
    ctx: Arc<RequestContext>,
    request: Request<Body>,
    key: Option<Key>,
    class: Option<WriteClass>,
) -> Result<Response<Body>, ProxyError> {
    let has_no_intent = class.is_some_and(WriteClass::creates);
    if has_no_intent {
        queue.metrics.queue_not_durable.inc();
    }
    let seat = match key {
        Some(key) => {
            let seat = Seat::take(queue, key);
            seat.wait(&ctx).await?;
            Some(seat)
        }
        None => None,
    };
    let mut answer = pass(upstream, ctx, request).await;
    drop(seat);
    if let Ok(response) = &mut answer
        && has_no_intent
    {
        response.headers_mut().insert(SEAWALL_DURABILITY, HeaderValue::from_static("none"));
    }
    answer
}

impl Queue {
    /// The 202 of a write, or the answer where `Prefer: wait` let it come first.
    async fn ticket(
        self: &Arc<Self>,
        id: WriteId,
        ctx: &RequestContext,
        key: &str,
        wait: Option<Duration>,
        is_repeat: bool,
    ) -> Result<Response<Body>, ProxyError> {
        let waited = wait.map(|wait| wait.min(LONGEST_WAIT));
        let mut response = None;
        if let Some(wait) = waited {
            self.wait(id, wait).await;
            response = self.stored_answer(id, &ctx.asked).await.ok();
        }
        let mut response = match response {
            Some(response) => response,
            None => self.accepted(id, &ctx.asked)?,
        };
        let headers = response.headers_mut();
        mark(headers, id, key);
        if is_repeat {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(wait) = waited
            && let Ok(value) = HeaderValue::from_str(&format!("wait={}", wait.as_secs()))
        {
            headers.insert(PREFERENCE_APPLIED, value);
        }
        Ok(response)
    }

    fn accepted(&self, id: WriteId, asked: &Asked) -> Result<Response<Body>, ProxyError> {
        let facts = self.ticket_facts(id).ok_or_else(|| super::hub::not_found(id))?;
        let path = problem::ticket_path(&id.to_string());
        let url = format!("{}{path}", asked.public_url);
        let data = json!({
            "_object": "/seawall/write",
            "write_id": id,
            "state": facts.state,
            "order_key": facts.order_key,
            "ahead": facts.ahead,
            "accepted_at": facts.accepted_at,
            "expires_at": facts.expires_at,
            "links": { "self": url, "result": format!("{url}/result") },
        });
        let body = problem::envelope(asked, &data, &Value::Null);
        let mut response = problem::json_response(http::StatusCode::ACCEPTED, "application/json", &body);
        let headers = response.headers_mut();
        if let Ok(location) = HeaderValue::from_str(&url) {
            headers.insert(header::LOCATION, location);
        }
        headers.insert(header::RETRY_AFTER, problem::whole_seconds(facts.retry_after).into());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(SEAWALL_SOURCE, HeaderValue::from_static("queue"));
        Ok(response)
    }
}

/// Names ticket and key.
fn mark(headers: &mut HeaderMap, id: WriteId, key: &str) {
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(SEAWALL_WRITE_ID, value);
    }
    super::live::set_key(headers, key);
}

/// Takes out what goes no further: our fields, and any credential (the call names it).
fn clean(headers: &mut HeaderMap) {
    strip_seawall_request(headers);
    headers.remove(header::AUTHORIZATION);
}

// === impl Seat ===

impl Seat {
    fn take(queue: Arc<Queue>, key: Key) -> Self {
        let turn = Arc::new(Notify::new());
        let seq = queue.with(|book| {
            let seq = book.draw();
            book.join_seat(key.clone(), seq, turn.clone());
            seq
        });
        Self { queue, key, seq, turn }
    }

    async fn wait(&self, ctx: &RequestContext) -> Result<(), ProxyError> {
        loop {
            match self.queue.with(|book| book.turn(&self.key, self.seq)) {
                Turn::Go => return Ok(()),
                Turn::Wait => {}
                Turn::Queue => {
                    let oldest = self.queue.with(|book| book.lanes.oldest(&self.key));
                    let write_id = oldest.unwrap_or_else(WriteId::random);
                    let retry_after = Duration::from_secs(5);
                    return Err(ProxyError::OrderConflict { write_id, retry_after });
                }
            }
            if tokio::time::timeout_at(ctx.deadline, self.turn.notified()).await.is_err() {
                return Err(ProxyError::DeadlineBeforeSending);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.queue.with(|book| book.leave(&self.key, self.seq));
    }
}

// === impl Wishes ===

impl Wishes {
    fn of(headers: &HeaderMap) -> Result<Self, ProxyError> {
        let is = |name: HeaderName, word: &str| {
            headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(word.as_bytes()))
        };
        let bad = |field, message: &str| ProxyError::BadRequest { field, message: message.to_owned() };
        let order = match headers.get(SEAWALL_ORDER_KEY) {
            None => None,
            Some(value) => match value.to_str() {
                Ok(text) if !text.trim().is_empty() && text.len() <= MAX_ORDER_KEY => {
                    Some(text.trim().to_owned())
                }
                _ => return Err(bad("Seawall-Order-Key", "send 1 to 255 printable ASCII characters")),
            },
        };
        let max_age = match headers.get(SEAWALL_QUEUE_MAX_AGE) {
            None => None,
            Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                Some(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
                _ => return Err(bad("Seawall-Queue-Max-Age", "send whole seconds, at least 1")),
            },
        };
        let key = idempotency::parse(headers)?;
        Ok(Self {
            never: is(SEAWALL_QUEUE, "never"),
            order,
            max_age,
            allows_twin: is(SEAWALL_DUPLICATE, "allow"),
            wait: prefer::wait(headers),
            key,
        })
    }
}

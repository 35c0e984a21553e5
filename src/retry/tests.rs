//! The layer before an upstream that the test itself is: it gets each attempt and says what becomes of it.

use super::*;
use crate::config::{Settings, Snapshot};
use crate::context::{
    AttemptObserver, AttemptOutcome, Call, Credential, Lane, Slot, SlotOwner, Tenancy, UpstreamRequest,
};
use crate::error::ProxyError;
use crate::http::Body;
use crate::telemetry::Metrics;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::{Layer, Service};

type Said = Result<Response<Body>, ProxyError>;

struct Rig {
    config: Arc<Snapshot>,
    layer: RetryLayer,
    flows: Arc<AtomicBool>,
    sender: mpsc::UnboundedSender<Attempt>,
    attempts: mpsc::UnboundedReceiver<Attempt>,
}

/// An attempt that waits for what becomes of it.
struct Attempt {
    request: UpstreamRequest,
    answer: oneshot::Sender<Said>,
}

/// Counts what is held.
#[derive(Default)]
struct Slots {
    free: AtomicUsize,
}

/// An observer that lets calls go on, or not.
struct Gatekeeper {
    lets: AtomicBool,
}

/// A body that keeps something until it has ended, of a length that is known or not, and that never comes or comes.
struct Held {
    slot: Option<Slot>,
    bytes: Option<Bytes>,
    length: Option<u64>,
    hangs: bool,
}

const MS: Duration = Duration::from_millis(1);

// === impl Rig ===

impl Rig {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let (sender, attempts) = mpsc::unbounded_channel();
        let flows = Arc::new(AtomicBool::new(true));
        let asked = flows.clone();
        let layer = RetryLayer::new(Arc::new(move |_| asked.load(Ordering::Relaxed)), &Metrics::new());
        Self { config: Arc::new(Snapshot::of(settings).unwrap()), layer, flows, sender, attempts }
    }

    fn call(&self, method: &Method, lane: Lane) -> UpstreamRequest {
        let route = self.config.routes.find(method, "/shipments/1").clone();
        let call = Call {
            lane,
            deadline: Instant::now() + route.timeout,
            route,
            is_read: crate::context::is_safe(method),
            config: self.config.clone(),
            credential: Credential::Alias("main".into()),
            is_hurried: false,
            whole_until: None,
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: true,
        };
        let mut request = Request::new(Body::from("what is asked"));
        *request.method_mut() = method.clone();
        *request.uri_mut() = "/shipments/1?per=7".parse().unwrap();
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static("k-1"));
        UpstreamRequest { request, call }
    }

    fn read(&self) -> UpstreamRequest {
        self.call(&Method::GET, Lane::LiveRead)
    }

    fn start(&self, request: UpstreamRequest) -> JoinHandle<Said> {
        let sender = self.sender.clone();
        let mut service = self.layer.layer(tower::service_fn(move |request| {
            let (answer, answered) = oneshot::channel();
            let _ = sender.send(Attempt { request, answer });
            async move { answered.await.expect("the test answers each attempt") }
        }));
        tokio::spawn(async move { service.call(request).await })
    }

    async fn attempt(&mut self) -> Attempt {
        self.attempts.recv().await.unwrap()
    }

    /// What the caller gets of a call with this first answer and without a second attempt.
    async fn only(&mut self, request: UpstreamRequest, first: Said) -> Said {
        let caller = self.start(request);
        self.attempt().await.say(first);
        let got = caller.await.unwrap();
        assert!(self.attempts.try_recv().is_err(), "a second attempt");
        got
    }

    /// What the caller gets of a call with these two answers.
    async fn both(&mut self, first: Said, second: Said) -> Said {
        let caller = self.start(self.read());
        self.attempt().await.say(first);
        self.attempt().await.say(second);
        let got = caller.await.unwrap();
        assert!(self.attempts.try_recv().is_err(), "a third attempt");
        got
    }
}

// === impl Attempt ===

impl Attempt {
    fn say(self, said: Said) {
        assert!(self.answer.send(said).is_ok(), "somebody waits for the answer");
    }
}

// === impl Slots ===

impl SlotOwner for Slots {
    fn may_leave(&self, _: &Tenancy) -> Result<(), ProxyError> {
        Ok(())
    }

    fn give_back(&self, _: &Tenancy) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

fn slot(slots: &Arc<Slots>) -> Slot {
    Slot::new(slots.clone(), Tenancy { lane: Lane::LiveRead, group: 0, key: 0, is_known: true })
}

// === impl Gatekeeper ===

impl AttemptObserver for Gatekeeper {
    fn began_at(&self, _: Instant) {}

    fn may_go_on(&self) -> Result<(), ProxyError> {
        if self.lets.load(Ordering::Relaxed) { Ok(()) } else { Err(ProxyError::Draining) }
    }

    fn ended(&self, _: AttemptOutcome) {}
}

// === impl Held ===

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = crate::http::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.hangs {
            return Poll::Pending;
        }
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        self.slot = None;
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what an upstream says")]
fn said(status: u16, body: &'static str) -> Said {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("x-body", HeaderValue::from_static(body));
    Ok(response)
}

fn held(status: u16, body: Held) -> Said {
    let mut said = said(status, "held")?;
    *said.body_mut() = Body::new(body);
    Ok(said)
}

async fn text(said: Said) -> (u16, String) {
    let (parts, body) = said.unwrap().into_parts();
    assert!(parts.headers.contains_key("x-body"));
    (parts.status.as_u16(), String::from_utf8(body.collect(1 << 20).await.unwrap().to_vec()).unwrap())
}

fn cut() -> ProxyError {
    ProxyError::Cut("in the middle".into())
}

fn refusals_of_ours() -> Vec<ProxyError> {
    let retry_after = Duration::from_secs(3);
    vec![
        ProxyError::BreakerOpen { scope: "shipments:read".into(), retry_after },
        ProxyError::Overloaded { what: "limiter.max" },
        ProxyError::RateLimited { retry_after },
        ProxyError::DeadlineBeforeSending,
        ProxyError::Draining,
    ]
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_said_first_is_kept_when_we_refuse_the_second_attempt_or_it_has_no_answer() {
    for refusal in refusals_of_ours() {
        let mut rig = Rig::new();
        let got = rig.both(said(502, "bad gateway"), Err(refusal.clone())).await;
        assert_eq!(text(got).await, (502, "bad gateway".into()), "{refusal}");
        let got = rig.both(Err(cut()), Err(refusal.clone())).await;
        assert!(matches!(got, Err(ProxyError::Cut(_))), "{refusal}");
    }
    for error in [cut(), ProxyError::HeadTimeout, ProxyError::Connect("gone".into())] {
        let got = Rig::new().both(said(500, "first"), Err(error.clone())).await;
        assert_eq!(text(got).await, (500, "first".into()), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_the_second_attempt_is_the_answer() {
    for (status, body) in [(200, "well"), (404, "none"), (429, "later"), (503, "still ill")] {
        let got = Rig::new().both(said(500, "first"), said(status, body)).await;
        assert_eq!(text(got).await, (status, body.into()));
        let got = Rig::new().both(Err(cut()), said(status, body)).await;
        assert_eq!(text(got).await, (status, body.into()));
    }
    assert!(matches!(
        Rig::new().both(Err(cut()), Err(ProxyError::HeadTimeout)).await,
        Err(ProxyError::HeadTimeout)
    ));
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_asks_the_same_after_a_tenth_to_three_tenths_of_a_second_and_its_intent_is_durable_once()
 {
    let mut rig = Rig::new();
    let mut request = rig.call(&Method::PATCH, Lane::LiveWrite);
    request.call.before_send = Some(Box::new(|| Box::pin(async { Ok(()) })));
    let observer = Arc::new(Gatekeeper { lets: AtomicBool::new(true) });
    request.call.observer = Some(observer.clone());
    let deadline = request.call.deadline;
    let caller = rig.start(request);
    let mut first = rig.attempt().await;
    first.request.call.before_send.take().unwrap()().await.unwrap();
    let failed = Instant::now();
    first.say(Err(ProxyError::Connect("nobody listens".into())));
    let second = rig.attempt().await;
    let waited = failed.elapsed();
    assert!(waited >= 100 * MS && waited <= 301 * MS, "{waited:?}");
    let UpstreamRequest { request, call } = &second.request;
    assert_eq!(request.method(), Method::PATCH);
    assert_eq!(request.uri(), "/shipments/1?per=7");
    assert_eq!(request.headers()["idempotency-key"], "k-1");
    assert_eq!(request.body().as_bytes().unwrap(), "what is asked");
    assert!(call.before_send.is_none() && call.slot.is_none() && call.observer.is_some());
    assert!(call.deadline == deadline && call.resends_unsent && call.lane == Lane::LiveWrite);
    second.say(said(200, "well"));
    assert_eq!(text(caller.await.unwrap()).await, (200, "well".into()));
    assert_eq!(Arc::strong_count(&observer), 1, "what it holds is given back");
}

#[tokio::test(start_paused = true)]
async fn the_slot_of_the_first_attempt_is_free_while_the_second_waits() {
    let mut rig = Rig::new();
    let slots = Arc::new(Slots::default());
    let caller = rig.start(rig.read());
    let body = Held { slot: Some(slot(&slots)), bytes: Some("ill".into()), length: Some(3), hangs: false };
    rig.attempt().await.say(held(502, body));
    tokio::time::sleep(50 * MS).await;
    assert_eq!(slots.free.load(Ordering::Relaxed), 1);
    assert!(rig.attempts.try_recv().is_err(), "it waits");
    rig.attempt().await.say(Err(ProxyError::Overloaded { what: "limiter.max" }));
    assert_eq!(text(caller.await.unwrap()).await, (502, "ill".into()));

    // An answer without a body gives it back with its head, and so does a failure: the call holds none of it.
    let mut request = rig.read();
    request.call.slot = Some(slot(&slots));
    let caller = rig.start(request);
    rig.attempt().await.say(Err(cut()));
    tokio::time::sleep(50 * MS).await;
    assert_eq!(slots.free.load(Ordering::Relaxed), 2);
    rig.attempt().await.say(said(200, "well"));
    assert_eq!(text(caller.await.unwrap()).await, (200, "well".into()));
}

#[tokio::test(start_paused = true)]
async fn a_body_of_an_error_that_hangs_holds_its_slot_for_a_second_only() {
    let mut rig = Rig::new();
    let slots = Arc::new(Slots::default());
    let caller = rig.start(rig.read());
    let body = Held { slot: Some(slot(&slots)), bytes: None, length: Some(3), hangs: true };
    rig.attempt().await.say(held(502, body));
    let second = rig.attempt().await;
    assert_eq!(slots.free.load(Ordering::Relaxed), 1);
    second.say(Err(ProxyError::Overloaded { what: "limiter.max" }));
    assert!(matches!(caller.await.unwrap(), Err(ProxyError::Cut(_))));
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_passed_on_as_it_comes() {
    let mut rig = Rig::new();
    let body = Held { slot: None, bytes: Some("much".into()), length: Some(64 * 1024 + 1), hangs: false };
    let request = rig.read();
    assert_eq!(text(rig.only(request, held(500, body)).await).await, (500, "much".into()));
}

#[tokio::test(start_paused = true)]
async fn there_is_no_second_attempt_that_could_not_end_before_the_deadline() {
    let mut rig = Rig::new();
    let mut request = rig.read();
    request.call.deadline = Instant::now() + 100 * MS;
    let got = rig.only(request, said(502, "ill")).await;
    assert_eq!(text(got).await, (502, "ill".into()));

    // The body of the first took what was left.
    let mut request = rig.read();
    request.call.deadline = Instant::now() + 700 * MS;
    let body = Held { slot: None, bytes: None, length: Some(3), hangs: true };
    let began = Instant::now();
    let got = rig.only(request, held(502, body)).await;
    assert!(matches!(got, Err(ProxyError::Cut(_))));
    assert!(began.elapsed() <= 701 * MS, "nobody waits beyond the deadline: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn there_is_none_where_traffic_does_not_flow_neither_when_it_is_decided_nor_after_the_wait() {
    let mut rig = Rig::new();
    rig.flows.store(false, Ordering::Relaxed);
    let request = rig.read();
    let got = rig.only(request, said(502, "ill")).await;
    assert_eq!(text(got).await, (502, "ill".into()));

    rig.flows.store(true, Ordering::Relaxed);
    let caller = rig.start(rig.read());
    rig.attempt().await.say(said(502, "ill"));
    tokio::time::sleep(50 * MS).await;
    rig.flows.store(false, Ordering::Relaxed);
    assert_eq!(text(caller.await.unwrap()).await, (502, "ill".into()));
    assert!(rig.attempts.try_recv().is_err());

    // What the call's own permits say counts as much.
    rig.flows.store(true, Ordering::Relaxed);
    let observer = Arc::new(Gatekeeper { lets: AtomicBool::new(false) });
    let mut request = rig.read();
    request.call.observer = Some(observer.clone());
    assert!(rig.only(request, Err(cut())).await.is_err());
    observer.lets.store(true, Ordering::Relaxed);
    let mut request = rig.read();
    request.call.observer = Some(observer.clone());
    let caller = rig.start(request);
    rig.attempt().await.say(Err(cut()));
    tokio::time::sleep(50 * MS).await;
    observer.lets.store(false, Ordering::Relaxed);
    assert!(matches!(caller.await.unwrap(), Err(ProxyError::Cut(_))));
    assert!(rig.attempts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn only_calls_behind_which_somebody_waits_are_repeated() {
    for lane in [Lane::Refresh, Lane::Replay, Lane::Probe] {
        let mut rig = Rig::new();
        let request = rig.call(&Method::GET, lane);
        assert!(rig.only(request, Err(cut())).await.is_err());
        let request = rig.call(&Method::PATCH, lane);
        assert!(rig.only(request, Err(ProxyError::Connect("gone".into()))).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn settings_and_routes_switch_it_off() {
    let mut settings = Settings::default();
    settings.retry.budget = 0.0;
    settings.retry.per_second = 0;
    let mut rig = Rig::with(settings);
    let request = rig.read();
    assert!(rig.only(request, Err(cut())).await.is_err());

    let mut rig = Rig::new();
    let mut request = rig.read();
    let mut route = (*request.call.route).clone();
    route.retries = false;
    request.call.route = Arc::new(route);
    assert!(rig.only(request, Err(cut())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_streams_from_the_caller_cannot_be_sent_twice() {
    let mut rig = Rig::new();
    let mut request = rig.call(&Method::PATCH, Lane::LiveWrite);
    let body = Held { slot: None, bytes: Some("piece".into()), length: None, hangs: false };
    *request.request.body_mut() = Body::new(body);
    assert!(rig.only(request, Err(ProxyError::Connect("gone".into()))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_during_the_wait_causes_no_second_attempt() {
    let mut rig = Rig::new();
    let caller = rig.start(rig.read());
    rig.attempt().await.say(said(502, "ill"));
    tokio::time::sleep(50 * MS).await;
    caller.abort();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(rig.attempts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_the_budget_does_not_cover_is_not_repeated() {
    let mut rig = Rig::new();
    let mut callers = Vec::new();
    for _ in 0..40 {
        callers.push(rig.start(rig.read()));
        rig.attempt().await.say(Err(cut()));
    }
    let mut second = 0;
    while let Ok(attempt) = tokio::time::timeout(Duration::from_secs(1), rig.attempts.recv()).await {
        attempt.unwrap().say(Err(cut()));
        second += 1;
    }
    // One a second for ten seconds, and a tenth of as many as there were by then.
    assert!((10..=14).contains(&second), "{second}");
    for caller in callers {
        assert!(caller.await.unwrap().is_err());
    }
}

//! The queue as a whole: a store in memory, a scripted upstream, paused time.

use super::*;
use crate::clock::Clock;
use crate::config::raw::Span;
use crate::config::{Settings, Snapshot};
use crate::context::{
    Credential, Identity, Lane, PendingWrites, RequestContext, Settled, SettledWrite, Upstream,
    UpstreamRequest,
};
use crate::error::ProxyError;
use crate::event::Bus;
use crate::flexport::problem::Asked;
use crate::flexport::routes::{RoutePolicy, RouteTable, built_in};
use crate::http::{Body, Present};
use crate::ids::{OwnerId, PartitionId, WriteId};
use crate::store::{MemStore, Store, Tree};
use crate::task::Tasks;
use crate::telemetry::Metrics;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

mod mended;
mod soak;

const PARTITION: PartitionId = PartitionId([1; 16]);
const OWNER: OwnerId = OwnerId([2; 16]);

/// What the upstream does with one call.
#[derive(Clone)]
enum Act {
    /// Refused before anything is sent.
    Refuse(ProxyError),
    /// Sent, and then this.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// Sent, and then this.
    Fail(ProxyError),
    /// Sent, and held until notified, and then answered with 200.
    Hold(Arc<Notify>),
    /// Sent, and then a bug.
    Panic,
}

#[derive(Clone, Debug, PartialEq)]
struct Arrival {
    method: Method,
    target: String,
    key: String,
    body: String,
    lane: Lane,
    token: Option<String>,
}

#[derive(Default)]
struct World {
    /// For each call one act; afterwards `always`.
    acts: Mutex<VecDeque<Act>>,
    always: Mutex<Option<Act>>,
    arrivals: Mutex<Vec<Arrival>>,
    calls: Mutex<usize>,
    settled: Mutex<Vec<String>>,
}

struct Rig {
    world: Arc<World>,
    store: MemStore,
    queue: Arc<Queue>,
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
    changes: watch::Sender<u64>,
    clock: Clock,
    tasks: Tasks,
}

impl Settled for World {
    fn settled(&self, write: &SettledWrite) {
        self.settled.lock().unwrap().push(write.path.clone());
    }
}

impl World {
    fn upstream(self: &Arc<Self>) -> Upstream {
        let world = self.clone();
        Upstream::new(tower::service_fn(move |request: UpstreamRequest| {
            let world = world.clone();
            async move { world.call(request).await }
        }))
    }

    async fn call(&self, call: UpstreamRequest) -> Result<Response<Body>, ProxyError> {
        *self.calls.lock().unwrap() += 1;
        let act = self.acts.lock().unwrap().pop_front();
        let act = act.or_else(|| self.always.lock().unwrap().clone());
        let act = act.unwrap_or(Act::Answer(200, &[], r#"{"data":{"id":"1"},"error":null}"#));
        if let Act::Refuse(error) = act {
            return Err(error);
        }
        let UpstreamRequest { request, mut call } = call;
        if let Some(before) = call.before_send.take() {
            before().await?;
        }
        let (parts, body) = request.into_parts();
        let body = body.collect(1 << 24).await.map_err(ProxyError::RequestBody)?;
        assert!(!parts.headers.contains_key("authorization"));
        assert!(!parts.headers.keys().any(|name| name.as_str().starts_with("seawall-")));
        self.arrivals.lock().unwrap().push(Arrival {
            method: parts.method,
            target: parts.uri.to_string(),
            key: parts.headers.get("idempotency-key").map_or("", |key| key.to_str().unwrap()).to_owned(),
            body: String::from_utf8_lossy(&body).into_owned(),
            lane: call.lane,
            token: match &call.credential {
                Credential::Passed(value) => Some(value.to_str().unwrap().to_owned()),
                _ => None,
            },
        });
        match act {
            Act::Refuse(error) | Act::Fail(error) => Err(error),
            Act::Answer(status, fields, body) => {
                let mut response = Response::new(Body::from(body));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                for (name, value) in fields {
                    response.headers_mut().append(*name, HeaderValue::from_static(value));
                }
                Ok(response)
            }
            Act::Hold(gate) => {
                gate.notified().await;
                Ok(Response::new(Body::from("{}")))
            }
            Act::Panic => panic!("a bug in the upstream"),
        }
    }

    fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        self.arrivals().into_iter().map(|arrival| arrival.body).collect()
    }

    fn always(&self, act: Option<Act>) {
        *self.always.lock().unwrap() = act;
    }

    fn next(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }
}

fn snapshot(settings: Settings, generation: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        settings,
        routes: RouteTable::new(built_in(), RoutePolicy::other()),
        public_url: "http://seawall".into(),
        generation,
        ..Snapshot::of(Settings::default()).unwrap()
    })
}

impl Rig {
    async fn new() -> Self {
        Self::on(MemStore::new(), Arc::default(), Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        Self::on(MemStore::new(), Arc::default(), settings).await
    }

    async fn on(store: MemStore, world: Arc<World>, settings: Settings) -> Self {
        Self::open(store, world, settings, false).await
    }

    async fn open(store: MemStore, world: Arc<World>, settings: Settings, is_rolled_back: bool) -> Self {
        let clock = Clock::anchored("2026-01-01T00:00:00Z".parse().unwrap());
        let current = Arc::new(Mutex::new(snapshot(settings, 1)));
        let (changes, receiver) = watch::channel(0);
        let tasks = Tasks::new();
        let config = current.clone();
        let queue = Queue::open(Parts {
            store: Arc::new(store.clone()),
            config: Arc::new(move || config.lock().unwrap().clone()),
            upstream: world.upstream(),
            settled: world.clone(),
            changes: receiver,
            clock,
            metrics: Metrics::new(),
            bus: Bus::new(clock),
            tasks: tasks.clone(),
            is_rolled_back,
        })
        .await
        .unwrap();
        Self { world, store, queue, snapshot: current, changes, clock, tasks }
    }

    /// The process dies: nothing but what is durable is left.
    async fn restart(self) -> Self {
        let settings = self.snapshot.lock().unwrap().settings.clone();
        let store = self.store.crash();
        // Whatever the old one still does, it does to a store that nobody reads.
        self.queue.stop.cancel();
        self.queue.give_up.cancel();
        self.tasks.stop(Duration::from_secs(60)).await;
        self.world.acts.lock().unwrap().clear();
        Self::on(store, self.world.clone(), settings).await
    }

    fn context(&self, method: &Method, target: &str, credential: Credential) -> Arc<RequestContext> {
        let config = self.snapshot.lock().unwrap().clone();
        let route = config.routes.find(method, target.split('?').next().unwrap()).clone();
        let partition = match &credential {
            Credential::Passed(value) if value != "Bearer mine" => PartitionId([9; 16]),
            _ => PARTITION,
        };
        Arc::new(RequestContext {
            route: route.clone(),
            config,
            request_id: HeaderValue::from_static("r-1"),
            traceparent: HeaderValue::from_static("00-0-0-00"),
            peer: ([127, 0, 0, 1], 1).into(),
            arrived: Instant::now(),
            deadline: Instant::now() + route.timeout,
            method: method.clone(),
            present: Present::default(),
            asked: Asked {
                public_url: "http://seawall".into(),
                target: target.to_owned(),
                version: 2.into(),
                wants_problem: false,
            },
            identity: OnceLock::from(Identity {
                caller: None,
                credential,
                partition: Some(partition),
                owner: Some(OWNER),
            }),
        })
    }

    fn request(
        &self,
        method: Method,
        target: &str,
        body: &str,
        fields: &[(&'static str, &str)],
    ) -> Request<Body> {
        self.request_as(Credential::Alias("main".into()), method, target, body, fields)
    }

    fn request_as(
        &self,
        credential: Credential,
        method: Method,
        target: &str,
        body: &str,
        fields: &[(&'static str, &str)],
    ) -> Request<Body> {
        let context = self.context(&method, target, credential);
        let mut request = Request::new(Body::from(body.to_owned()));
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().unwrap();
        request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer caller"));
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in fields {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        request.extensions_mut().insert(context);
        request
    }

    fn service(&self) -> QueueService {
        self.queue.layer().layer(self.world.upstream())
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ProxyError> {
        self.service().oneshot(request).await
    }

    async fn post(&self, target: &str, body: &str, fields: &[(&'static str, &str)]) -> Sent {
        Sent::of(self.send(self.request(Method::POST, target, body, fields)).await).await
    }

    async fn patch(&self, target: &str, body: &str, fields: &[(&'static str, &str)]) -> Sent {
        Sent::of(self.send(self.request(Method::PATCH, target, body, fields)).await).await
    }

    /// Starts a request whose caller waits elsewhere.
    fn start(&self, request: Request<Body>) -> tokio::task::JoinHandle<Sent> {
        let mut service = self.service();
        tokio::spawn(async move { Sent::of(service.call(request).await).await })
    }

    fn state(&self, id: WriteId) -> Option<State> {
        self.queue
            .list(&Filter { limit: 1000, ..Filter::default() })
            .writes
            .iter()
            .find_map(|ticket| (ticket.write_id == id).then_some(ticket.state))
    }

    async fn until(&self, id: WriteId, state: State) {
        self.eventually(&format!("{id} is {state:?}"), || self.state(id) == Some(state)).await;
    }

    async fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(4 * 24 * 3600);
        let mut step = Duration::from_millis(1);
        while !is_so() {
            assert!(Instant::now() < limit, "never: {what}; arrivals {:?}", self.world.arrivals());
            tokio::time::sleep(step).await;
            step = (step * 2).min(Duration::from_secs(20));
        }
    }

    /// Lets everything that can happen now happen.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a caller got.
#[derive(Debug)]
struct Sent {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    error: Option<ProxyError>,
}

impl Sent {
    async fn of(result: Result<Response<Body>, ProxyError>) -> Self {
        let (response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => {
                let asked = Asked {
                    public_url: "http://seawall".into(),
                    target: "/".to_owned(),
                    version: 2.into(),
                    wants_problem: false,
                };
                (crate::flexport::problem::response(&error, &asked), Some(error))
            }
        };
        let (parts, body) = response.into_parts();
        let body = body.collect(1 << 24).await.unwrap();
        Self { status: parts.status.as_u16(), headers: parts.headers, body, error }
    }

    fn id(&self) -> WriteId {
        self.headers["seawall-write-id"].to_str().unwrap().parse().unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn open() -> ProxyError {
    ProxyError::BreakerOpen { scope: "shipments:write".to_owned(), retry_after: Duration::from_secs(30) }
}

// --- well ---

#[tokio::test(start_paused = true)]
async fn a_live_write_passes_with_its_key_and_leaves_a_stored_answer_for_what_creates() {
    let rig = Rig::new().await;
    let sent = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(sent.status, 200);
    let key = sent.field("idempotency-key").unwrap().to_owned();
    assert!(key.starts_with("seawall-"));
    assert_eq!(rig.world.arrivals()[0].key, key);
    rig.settle().await;
    assert_eq!(*rig.world.settled.lock().unwrap(), ["/bookings"]);
    // The same key gets the same answer; nothing is sent.
    let again = rig.post("/bookings", "{\"a\":1}", &[("idempotency-key", &key)]).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(again.body, sent.body);
    // Its twin too, for a minute.
    let twin = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!((twin.status, twin.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
    let single = rig.post("/bookings", "{\"a\":1}", &[("seawall-duplicate", "allow")]).await;
    assert_eq!((single.status, single.field("idempotent-replayed")), (200, None));
    tokio::time::sleep(Duration::from_secs(61)).await;
    rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(rig.world.arrivals().len(), 3);
    // The stored answer survives a restart, byte for byte.
    let rig = rig.restart().await;
    let after = rig.post("/bookings", "{\"a\":1}", &[("idempotency-key", &key)]).await;
    assert_eq!((after.status, after.body), (200, sent.body));
    assert_eq!(rig.world.arrivals().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_live_replayable_write_leaves_nothing_behind() {
    let rig = Rig::new().await;
    assert_eq!(rig.patch("/shipments/1", "{}", &[]).await.status, 200);
    rig.settle().await;
    assert_eq!(rig.store.commits(), 0);
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_creates_is_on_disk_before_its_first_byte() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    rig.store.hold();
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    assert!(rig.world.arrivals().is_empty(), "its intent is not synced yet");
    rig.store.release();
    rig.settle().await;
    assert_eq!(rig.world.arrivals().len(), 1);
    gate.notify_one();
    assert_eq!(caller.await.unwrap().status, 200);
}

// --- not sent ---

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_stored_and_sent_once_when_flexport_is_well() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let sent = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(sent.status, 202);
    let id = sent.id();
    assert_eq!(sent.field("location"), Some(&*format!("http://seawall/_seawall/writes/{id}")));
    assert_eq!(sent.field("seawall-source"), Some("queue"));
    assert!(sent.field("retry-after").is_some());
    let key = sent.field("idempotency-key").unwrap().to_owned();
    let json = sent.json();
    assert_eq!(json["_object"], "/api/response");
    assert_eq!(json["data"]["_object"], "/seawall/write");
    assert_eq!(json["data"]["state"], "pending");
    assert!(json["data"].get("id").is_none());
    // Its twin gets the same ticket.
    let twin = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!((twin.status, twin.id()), (202, id));
    assert!(rig.queue.pending(PARTITION, "/bookings").is_some_and(|pending| pending.count == 1));
    assert!(rig.queue.result(id, &rig.context(&Method::GET, "/", Credential::None).asked).await.is_err());
    // Refusals use no attempt, however long they last.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 0);
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let arrivals = rig.world.arrivals();
    assert_eq!(arrivals.len(), 1);
    assert_eq!((arrivals[0].key.as_str(), arrivals[0].lane), (key.as_str(), Lane::Replay));
    assert_eq!(arrivals[0].body, "{\"a\":1}");
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!((ticket.attempts, ticket.answer.unwrap().status), (1, 200));
    let steps: Vec<_> = ticket.history.iter().map(|row| row.what.as_str()).collect();
    assert_eq!(steps, ["accepted", "sent", "answered"]);
    assert!(rig.queue.pending(PARTITION, "/bookings").is_none());
    let asked = &rig.context(&Method::GET, "/", Credential::None).asked;
    let result = Sent::of(rig.queue.result(id, asked).await).await;
    assert_eq!((result.status, &*result.body), (200, &br#"{"data":{"id":"1"},"error":null}"#[..]));
}

#[tokio::test(start_paused = true)]
async fn a_pending_write_survives_a_restart_and_goes_out_once() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    let id = rig.post("/bookings", &body, &[]).await.id();
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Pending));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.bodies(), [body]);
    let rig = rig.restart().await;
    rig.settle().await;
    assert_eq!(rig.state(id), Some(State::Done));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_gets_the_answer_of_the_replay() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(ProxyError::Overloaded { what: "slots" }));
    let sent = rig.post("/bookings", "{}", &[("prefer", "wait=30")]).await;
    assert_eq!((sent.status, sent.field("preference-applied")), (200, Some("wait=30")));
    rig.world.always(Some(Act::Refuse(open())));
    let sent = rig.post("/bookings", "{\"b\":1}", &[("prefer", "wait=5")]).await;
    assert_eq!((sent.status, sent.field("preference-applied")), (202, Some("wait=5")));
}

// --- perhaps applied ---

#[tokio::test(start_paused = true)]
async fn a_replayable_write_in_doubt_is_sent_again() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    rig.world.next(Act::Answer(502, &[], ""));
    let sent = rig.patch("/shipments/1", "{\"v\":1}", &[]).await;
    assert_eq!((sent.status, sent.json()["data"]["state"].as_str()), (202, Some("waiting")));
    rig.until(sent.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["{\"v\":1}"; 3]);
    let keys: std::collections::HashSet<_> = rig.world.arrivals().into_iter().map(|one| one.key).collect();
    assert_eq!(keys.len(), 1);
    assert!(rig.queue.cancel(sent.id(), "x", "y").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_create_in_doubt_is_unknown_and_its_twin_is_not_sent() {
    for act in [
        Act::Fail(ProxyError::HeadTimeout),
        Act::Answer(500, &[], ""),
        Act::Panic,
        Act::Answer(503, &[("retry-after", "1")], ""),
    ] {
        let rig = Rig::new().await;
        rig.world.next(act);
        let sent = rig.post("/bookings", "{}", &[]).await;
        assert_eq!(sent.status, 504);
        let id = sent.id();
        assert!(matches!(sent.error, Some(ProxyError::OutcomeUnknown { .. })));
        assert_eq!(rig.state(id), Some(State::Unknown));
        let twin = rig.post("/bookings", "{}", &[]).await;
        assert_eq!((twin.status, twin.id()), (504, id));
        let rig = rig.restart().await;
        assert_eq!(rig.state(id), Some(State::Unknown));
        assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 504);
        tokio::time::sleep(Duration::from_secs(73 * 3600)).await;
        assert_eq!(rig.state(id), Some(State::Unknown), "it does not expire");
        assert_eq!(rig.world.arrivals().len(), 1);
        // Another booking is not held up.
        assert_eq!(rig.post("/bookings", "{\"b\":1}", &[]).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_sending_is_doubt() {
    let rig = Rig::new().await;
    rig.world.next(Act::Hold(Arc::new(Notify::new())));
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let store = rig.store.crash();
    let after = Rig::on(store, Arc::default(), Settings::default()).await;
    let writes = after.queue.list(&Filter::default()).writes;
    assert_eq!((writes.len(), writes[0].state), (1, State::Unknown));
    assert_eq!(after.post("/bookings", "{}", &[]).await.id(), writes[0].write_id);
    assert!(after.world.arrivals().is_empty());
    // It stays so over a further restart, and the trail tells it.
    let after = after.restart().await;
    let ticket = after.queue.get(writes[0].write_id).await.unwrap();
    assert_eq!(ticket.history.last().unwrap().what, "restart");
    caller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_replaying_sends_a_replayable_write_again_and_a_create_never() {
    for (method, target, expected) in
        [(Method::PATCH, "/shipments/1", State::Waiting), (Method::POST, "/bookings", State::Unknown)]
    {
        let rig = Rig::new().await;
        rig.world.next(Act::Refuse(open()));
        rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
        let id = Sent::of(rig.send(rig.request(method, target, "{}", &[])).await).await.id();
        rig.eventually("it is being sent", || rig.world.arrivals().len() == 1).await;
        let world: Arc<World> = Arc::default();
        world.always(Some(Act::Refuse(open())));
        let after = Rig::on(rig.store.crash(), world, Settings::default()).await;
        assert_eq!(after.state(id), Some(expected));
        let ticket = after.queue.get(id).await.unwrap();
        assert_eq!((ticket.attempts, ticket.maybe_applied), (1, true));
        after.world.always(None);
        after.changes.send(1).unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(after.world.arrivals().len(), usize::from(expected == State::Waiting));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_from_a_store_that_came_back_older() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let booking = rig.post("/bookings", "{}", &[]).await.id();
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    let rig = Rig::open(rig.store.crash(), Arc::default(), Settings::default(), true).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert_eq!((rig.state(booking), rig.state(patch)), (Some(State::Unknown), Some(State::Waiting)));
    assert!(rig.queue.get(patch).await.unwrap().is_held);
    rig.queue.release(patch, "ann", "nothing newer").await.unwrap();
    rig.until(patch, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_came_back_older_is_looked_at_until_that_is_stored() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    let store = rig.store.crash();
    let mut mark = crate::store::Batch::new();
    mark.put(Tree::Meta, crate::store::ROLLED_BACK, [1]);
    store.commit(mark).await.unwrap();
    store.set_failed(true);
    let rig = Rig::open(store, Arc::default(), Settings::default(), true).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(matches!(rig.queue.release(patch, "ann", "go").await, Err(ProxyError::Conflict { .. })));
    // The next start does not see it in the numbers, but in the mark.
    let rig = Rig::open(rig.store.crash(), Arc::default(), Settings::default(), false).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert!(rig.queue.get(patch).await.unwrap().is_held);
    assert_eq!(rig.store.get(Tree::Meta, crate::store::ROLLED_BACK).unwrap(), None);
    rig.queue.release(patch, "ann", "nothing newer").await.unwrap();
    rig.until(patch, State::Done).await;
}

// --- order ---

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_now_keeps_its_place_before_newer_ones() {
    let rig = Rig::new().await;
    let start = u64::try_from(rig.clock.now().as_microsecond()).unwrap();
    rig.world.always(Some(Act::Refuse(open())));
    let old = rig.patch("/shipments/1", "1", &[]).await.id();
    let seq = |rig: &Rig, id| rig.queue.with(|book| book.get(id).map(|entry| entry.record.seq));
    let store = rig.store.crash();
    store.make_unreadable(Tree::Rec, old.as_bytes());
    let rig = Rig::on(store, rig.world.clone(), Settings::default()).await;
    assert_eq!(rig.state(old), None);
    let new = rig.patch("/shipments/1", "2", &[]).await.id();
    // Places follow the wall clock over restarts, so they are above all that may lie there unread.
    assert!(seq(&rig, new).unwrap() >= start);
}

#[tokio::test(start_paused = true)]
async fn a_newer_write_is_not_overtaken_by_an_older_one_that_timed_out() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::PATCH, "/shipments/1", "old", &[]));
    let second = rig.start(rig.request(Method::PATCH, "/shipments/1", "new", &[]));
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(second.json()["data"]["ahead"], 1);
    gate.notify_one();
    rig.until(second.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["old", "old", "new"]);
}

#[tokio::test(start_paused = true)]
async fn one_write_of_a_key_is_in_flight_and_other_keys_go_on() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::PATCH, "/shipments/1", "1", &[]));
    rig.settle().await;
    let second = rig.start(rig.request(Method::PATCH, "/shipments/1", "2", &[]));
    let third = rig.start(rig.request(Method::PATCH, "/shipments/1", "3", &[]));
    assert_eq!(rig.patch("/shipments/2", "other", &[]).await.status, 200);
    assert_eq!(rig.world.bodies(), ["1", "other"]);
    gate.notify_one();
    for caller in [first, second, third] {
        assert_eq!(caller.await.unwrap().status, 200);
    }
    assert_eq!(rig.world.bodies(), ["1", "other", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn order_holds_over_records_restarts_and_live_writes() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    for number in 0..5 {
        assert_eq!(rig.patch("/shipments/1", &number.to_string(), &[]).await.status, 202);
    }
    let rig = rig.restart().await;
    rig.world.always(None);
    // Flexport is well again, but nothing overtakes what waits.
    let sent = rig.patch("/shipments/1", "5", &[]).await;
    assert_eq!(sent.status, 202);
    rig.until(sent.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["0", "1", "2", "3", "4", "5"]);
    // And when all is settled, writes are live again.
    assert_eq!(rig.patch("/shipments/1", "6", &[]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_queued_does_not_overtake_either() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.patch("/shipments/1", "1", &[]).await.id();
    let never = rig.patch("/shipments/1", "2", &[("seawall-queue", "never")]).await;
    assert_eq!((never.status, never.id()), (409, id));
    assert!(matches!(never.error, Some(ProxyError::OrderConflict { .. })));
    let request = rig.request(Method::DELETE, "/x", "", &[("seawall-order-key", "shipments/1")]);
    let other = Sent::of(rig.send(request).await).await;
    assert_eq!((other.status, other.id()), (409, id));
    let alone = rig.patch("/shipments/2", "2", &[("seawall-queue", "never")]).await;
    assert!(matches!(alone.error, Some(ProxyError::BreakerOpen { .. })));
    assert_eq!(rig.queue.list(&Filter::default()).writes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_line_item_blocks_its_booking_until_resolved() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let first = rig.post("/booking_line_items", r#"{"booking_id":5,"n":1}"#, &[]).await;
    assert_eq!(first.status, 504);
    let second = rig.post("/booking_line_items", r#"{"booking_id":5,"n":2}"#, &[]).await;
    assert_eq!((second.status, second.json()["data"]["order_key"].as_str()), (202, Some("bookings/5")));
    assert_eq!(rig.post("/booking_line_items", r#"{"booking_id":6,"n":1}"#, &[]).await.status, 200);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.state(second.id()), Some(State::Pending));
    assert!(rig.queue.get(second.id()).await.unwrap().is_blocked);
    let id = first.id();
    rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "looked it up").await.unwrap();
    rig.until(second.id(), State::Done).await;
    let bodies = rig.world.bodies();
    assert_eq!(bodies[2..], [r#"{"booking_id":5,"n":1}"#, r#"{"booking_id":5,"n":2}"#]);
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!(ticket.state, State::Done);
    assert!(ticket.history.iter().any(|row| row.actor == "ann" && row.to == State::Pending));
    // Equal line items are legitimate.
    assert_eq!(rig.post("/booking_line_items", r#"{"booking_id":6,"n":1}"#, &[]).await.status, 200);
    assert_eq!(rig.world.bodies().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_for_a_record_does_not_overtake_its_order() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let first = rig.post("/booking_line_items", r#"{"booking_id":5,"n":1}"#, &[]).await;
    assert_eq!(first.status, 202);
    // Its fields are too long: the parent is known.
    let long = "x".repeat(11 * 1024);
    let with = [("x-long", long.as_str())];
    let same = rig.post("/booking_line_items", r#"{"booking_id":5,"n":2}"#, &with).await;
    assert_eq!((same.status, same.id()), (409, first.id()));
    // Its body is too long: it may be the parent.
    let body = format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(rig.post("/booking_line_items", &body, &[]).await.status, 409);
    rig.world.always(None);
    rig.world.acts.lock().unwrap().clear();
    let other = rig.post("/booking_line_items", r#"{"booking_id":6,"n":2}"#, &with).await;
    assert_eq!((other.status, other.field("seawall-durability")), (200, Some("none")));
    let patch = rig.patch("/shipments/1", "{}", &with).await;
    assert_eq!((patch.status, patch.field("seawall-durability")), (200, None));
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_ticket_gets_none_for_a_repeat() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let never = rig.post("/bookings", "{}", &[("seawall-queue", "never")]).await;
    assert_eq!((never.status, never.id()), (409, id));
}

// --- callers leave ---

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_changes_nothing() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[("idempotency-key", "k")]));
    rig.settle().await;
    caller.abort();
    let busy = rig.post("/bookings", "{}", &[("idempotency-key", "k")]).await;
    assert!(matches!(busy.error, Some(ProxyError::KeyInFlight { .. })));
    gate.notify_one();
    rig.settle().await;
    let again = rig.post("/bookings", "{}", &[("idempotency-key", "k")]).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_twin_waits_for_the_one_in_flight() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    assert_eq!(rig.world.arrivals().len(), 1);
    gate.notify_one();
    let (first, twin) = (first.await.unwrap(), twin.await.unwrap());
    assert_eq!((first.status, twin.status, twin.field("idempotent-replayed")), (200, 200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_one_request() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    assert_eq!(rig.patch("/shipments/1", "1", &with).await.status, 200);
    rig.settle().await;
    let same = rig.patch("/shipments/1", "1", &[("idempotency-key", "\"k\"")]).await;
    assert_eq!((same.status, same.field("idempotent-replayed")), (200, Some("true")));
    let other = rig.patch("/shipments/1", "2", &with).await;
    assert!(matches!(other.error, Some(ProxyError::KeyReused)));
    let bad = rig.patch("/shipments/1", "1", &[("idempotency-key", "")]).await;
    assert_eq!(bad.status, 400);
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_not_now_are_not_remembered() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    rig.world.next(Act::Answer(401, &[], ""));
    rig.world.next(Act::Answer(422, &[], "no"));
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 401);
    rig.settle().await;
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 422);
    rig.settle().await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, &*again.body), (422, &b"no"[..]));
    // Without a key, a rejected one may be sent again.
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    assert_eq!(rig.world.arrivals().len(), 3);
    // Of the first nothing is left on disk.
    let rig = rig.restart().await;
    assert_eq!(rig.queue.with(|book| book.iter().count()), 2);
}

// --- the disk fails ---

#[tokio::test(start_paused = true)]
async fn without_a_durable_record_there_is_never_a_202() {
    let rig = Rig::new().await;
    rig.store.set_failed(true);
    rig.world.next(Act::Refuse(open()));
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let sent = rig.post("/bookings", "{}", &[]).await;
    assert_eq!(sent.status, 507);
    let sent = rig.patch("/shipments/1", "{}", &[]).await;
    assert_eq!(sent.status, 507);
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    // What is live goes on, and says so.
    let sent = rig.post("/bookings", "{\"b\":1}", &[]).await;
    assert_eq!((sent.status, sent.field("seawall-durability")), (200, Some("none")));
    // A doubt is a doubt even then, and its twin is known.
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let doubt = rig.post("/bookings", "{\"c\":1}", &[]).await;
    assert_eq!(doubt.status, 504);
    assert_eq!(rig.post("/bookings", "{\"c\":1}", &[]).await.id(), doubt.id());
    let arrivals = rig.world.arrivals().len();
    rig.store.set_failed(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(rig.world.arrivals().len(), arrivals, "what was answered 507 is not sent later");
    let rig = rig.restart().await;
    assert_eq!(rig.state(doubt.id()), Some(State::Unknown), "it reached the disk when that was well again");
    assert_eq!(rig.world.arrivals().len(), arrivals);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_told_of_no_ticket_that_is_not_on_disk() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.store.hold();
    let with = [("idempotency-key", "k")];
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &with));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let same = rig.post("/bookings", "{}", &with).await;
    assert!(matches!(same.error, Some(ProxyError::KeyInFlight { .. })), "{same:?}");
    assert!(!twin.is_finished() && !first.is_finished());
    rig.store.release();
    let (first, twin) = (first.await.unwrap(), twin.await.unwrap());
    assert_eq!((first.status, twin.status), (202, 202));
    assert_eq!(first.id(), twin.id());
    // What could not be stored is no ticket of its twin's either.
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.store.hold();
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    rig.store.fail_next(1);
    rig.store.release();
    assert_eq!(first.await.unwrap().status, 507);
    let twin = twin.await.unwrap();
    assert_eq!(twin.status, 202);
    assert_eq!(rig.state(twin.id()), Some(State::Pending));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    let mut settings = Settings::default();
    settings.queue.max_records = 2;
    settings.queue.max_per_key = 1;
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Refuse(open())));
    assert_eq!(rig.patch("/shipments/1", "1", &[]).await.status, 202);
    let sent = rig.patch("/shipments/1", "2", &[]).await;
    assert!(matches!(sent.error, Some(ProxyError::QueueFull { .. })));
    assert_eq!(sent.status, 503);
    assert_eq!(rig.patch("/shipments/2", "1", &[]).await.status, 202);
    assert_eq!(rig.patch("/shipments/3", "1", &[]).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_not_sent_while_its_sending_cannot_be_stored() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.store.set_failed(true);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(rig.world.arrivals().is_empty());
    rig.store.set_failed(false);
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_order_waits_until_the_outcome_of_a_replay_is_on_disk() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let gate = Arc::new(Notify::new());
    let first = rig.patch("/shipments/1", "1", &[]).await.id();
    let second = rig.patch("/shipments/1", "2", &[]).await.id();
    rig.world.next(Act::Hold(gate.clone()));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.eventually("the first is sent", || rig.world.arrivals().len() == 1).await;
    rig.store.set_failed(true);
    gate.notify_one();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.world.bodies(), ["1"]);
    rig.store.set_failed(false);
    rig.until(second, State::Done).await;
    assert_eq!(rig.state(first), Some(State::Done));
    assert_eq!(rig.world.bodies(), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_body_is_dead_and_the_rest_goes_on() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let lost = rig.patch("/shipments/1", "1", &[]).await.id();
    let well = rig.patch("/shipments/1", "2", &[]).await.id();
    let mut key = lost.as_bytes().to_vec();
    key.extend_from_slice(&0u32.to_be_bytes());
    rig.store.make_unreadable(Tree::Body, &key);
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(well, State::Done).await;
    let ticket = rig.queue.get(lost).await.unwrap();
    assert_eq!((ticket.state, ticket.reason), (State::Dead, Some(record::Reason::Undecryptable)));
    assert_eq!(rig.world.bodies(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_long_holds_no_tasks_and_no_answers_in_memory() {
    let rig = Rig::new().await;
    rig.store.set_failed(true);
    for number in 0..20 {
        let sent = rig.post("/bookings", &format!("{{\"n\":{number}}}"), &[]).await;
        assert_eq!((sent.status, sent.field("seawall-durability")), (200, Some("none")));
    }
    rig.settle().await;
    assert!(rig.queue.writes.is_empty(), "no task waits for the store");
    // A repeat within a minute still finds its answer.
    let twin = rig.post("/bookings", "{\"n\":19}", &[]).await;
    assert_eq!((twin.status, twin.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.queue.with(|book| book.iter().count()), 20);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.queue.with(|book| book.iter().count()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_takes_what_settles_and_nothing_new() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let other = rig.patch("/shipments/1", "{}", &[]).await.id();
    rig.store.set_full(true);
    assert_eq!(rig.patch("/shipments/2", "{}", &[]).await.status, 507);
    rig.queue.cancel(other, "ann", "not wanted").await.unwrap();
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let rig = rig.restart().await;
    assert_eq!((rig.state(id), rig.state(other)), (Some(State::Done), Some(State::Cancelled)));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_store_did_not_answer_is_taken_when_it_does() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.store.hold();
    let cancelled = rig.queue.cancel(id, "ann", "not wanted").await;
    assert!(matches!(cancelled, Err(ProxyError::StoreFailed(_))), "{cancelled:?}");
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(rig.world.arrivals().is_empty(), "it may be cancelled on disk");
    rig.store.release();
    rig.until(id, State::Cancelled).await;
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Cancelled));
    assert!(rig.world.arrivals().is_empty());
}

#[tokio::test(start_paused = true)]
async fn answers_of_live_writes_are_no_tickets() {
    let rig = Rig::new().await;
    rig.world.next(Act::Answer(422, &[], "no"));
    let with = [("idempotency-key", "k")];
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 422);
    assert_eq!(rig.post("/bookings", "{\"b\":1}", &[]).await.status, 200);
    rig.settle().await;
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    assert!(rig.queue.stats().depth.values().all(|depth| *depth == 0));
    let id = rig.post("/bookings", "{}", &with).await.id();
    let refused = rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "again").await;
    assert!(matches!(refused, Err(ProxyError::Conflict { .. })), "{refused:?}");
    assert!(rig.queue.retry(id, "ann", "again").await.is_err());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.world.arrivals().len(), 2);
}

// --- replay ---

#[tokio::test(start_paused = true)]
async fn a_newer_token_that_is_refused_gives_way_to_the_records_own() {
    let rig = Rig::new().await;
    let post = |token: &'static str, body| {
        let passed = Credential::Passed(HeaderValue::from_static(token));
        rig.request_as(passed, Method::POST, "/bookings", body, &[])
    };
    rig.world.next(Act::Refuse(open()));
    let id = Sent::of(rig.send(post("Bearer mine", "{}")).await).await.id();
    // Another token of the same identity, which may do less.
    let partition = PARTITION;
    rig.queue.tokens.lock().unwrap().insert(partition, HeaderValue::from_static("Bearer other"));
    rig.world.next(Act::Answer(401, &[], ""));
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let tokens: Vec<_> = rig.world.arrivals().into_iter().map(|one| one.token.unwrap()).collect();
    assert_eq!(tokens, ["Bearer other", "Bearer mine"]);
    assert!(rig.queue.stats().paused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_the_credential_and_uses_no_attempt() {
    let rig = Rig::new().await;
    rig.world.next(Act::Answer(429, &[("retry-after", "60")], ""));
    rig.world.next(Act::Answer(429, &[("retry-after", "120")], ""));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(rig.world.arrivals().len(), 1);
    rig.eventually("the second", || rig.world.arrivals().len() == 2).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.world.arrivals().len(), 2);
    assert_eq!(rig.queue.stats().paused[0].reason, "rate_limited");
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 0);
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_401_pauses_the_credential_until_the_secret_is_changed() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Answer(401, &[], "")));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.changes.send(1).unwrap();
    rig.eventually("it was tried", || rig.world.arrivals().len() == 1).await;
    rig.settle().await;
    assert_eq!(rig.queue.stats().paused[0].reason, "unauthorized");
    assert_eq!(rig.state(id), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Pending), "nothing dies");
    let tried = rig.world.arrivals().len();
    assert!(tried > 100, "{tried}");
    rig.world.always(None);
    let next = snapshot(Settings::default(), 2);
    *rig.snapshot.lock().unwrap() = next;
    let before = rig.clock.now();
    rig.until(id, State::Done).await;
    assert!(crate::clock::since(rig.clock.now(), before) < Duration::from_secs(30));
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_passed_credential_is_sealed_with_its_record_and_a_newer_one_replaces_it() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    let passed = || Credential::Passed(HeaderValue::from_static("Bearer mine"));
    let id =
        Sent::of(rig.send(rig.request_as(passed(), Method::POST, "/bookings", "{}", &[])).await).await.id();
    let rig = rig.restart().await;
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals()[0].token.as_deref(), Some("Bearer mine"));
    let mut settings = Settings::default();
    settings.queue.passthrough = crate::config::raw::PassthroughWrites::Refuse;
    let rig = Rig::with(settings).await;
    rig.world.next(Act::Refuse(open()));
    let sent = Sent::of(rig.send(rig.request_as(passed(), Method::POST, "/bookings", "{}", &[])).await).await;
    assert!(matches!(sent.error, Some(ProxyError::BreakerOpen { .. })));
    // Not even a create in doubt leaves the token on disk.
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let request = rig.request_as(passed(), Method::POST, "/bookings", "{\"b\":1}", &[]);
    let id = Sent::of(rig.send(request).await).await.id();
    rig.settle().await;
    let mut key = id.as_bytes().to_vec();
    key.extend_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(rig.store.get(Tree::Body, &key).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn final_refusals_are_dead_and_keep_flexports_answer() {
    for (status, reason) in [
        (422, record::Reason::Rejected),
        (403, record::Reason::Forbidden),
        (302, record::Reason::Redirected),
        (501, record::Reason::Rejected),
    ] {
        let rig = Rig::new().await;
        // The credential is well.
        assert_eq!(rig.patch("/shipments/1", "{}", &[]).await.status, 200);
        rig.world.next(Act::Refuse(open()));
        rig.world.next(Act::Answer(status, &[("content-type", "text/plain")], "why"));
        let id = rig.post("/bookings", "{}", &[]).await.id();
        rig.until(id, State::Dead).await;
        let ticket = rig.queue.get(id).await.unwrap();
        assert_eq!(ticket.reason, Some(reason));
        let asked = &rig.context(&Method::GET, "/", Credential::None).asked;
        let result = Sent::of(rig.queue.result(id, asked).await).await;
        assert_eq!((result.status, &*result.body), (status, &b"why"[..]));
        rig.queue.retry(id, "ann", "fixed").await.unwrap();
        rig.until(id, State::Done).await;
        assert_eq!(rig.world.arrivals().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_of_a_credential_that_nothing_proves_pauses_its_group() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Answer(403, &[], "")));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!((ticket.state, ticket.attempts), (State::Pending, 0), "nothing dies");
    assert_eq!(rig.queue.stats().paused[0].reason, "forbidden");
    let tried = rig.world.arrivals().len();
    assert!((50..70).contains(&tried), "{tried}");
    rig.world.always(None);
    *rig.snapshot.lock().unwrap() = snapshot(Settings::default(), 2);
    let before = rig.clock.now();
    rig.until(id, State::Done).await;
    assert!(crate::clock::since(rig.clock.now(), before) < Duration::from_secs(30));
    assert!(rig.queue.stats().paused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_write_that_is_forbidden_does_not_hold_up_the_others() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let bad = rig.patch("/shipments/1", "bad", &[]).await.id();
    let good = rig.patch("/shipments/2", "good", &[]).await.id();
    for act in [Act::Answer(403, &[], ""), Act::Answer(200, &[], "{}"), Act::Answer(403, &[], "")] {
        rig.world.next(act);
    }
    rig.changes.send(1).unwrap();
    rig.until(bad, State::Dead).await;
    assert_eq!(rig.state(good), Some(State::Done));
    assert_eq!(rig.world.bodies(), ["bad", "good", "bad"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_sent_again_gets_its_time_anew() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(80 * 3600)).await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "looked it up").await.unwrap();
    tokio::time::sleep(Duration::from_secs(71 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Expired));
    rig.queue.retry(id, "ann", "still wanted").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    rig.world.always(None);
    rig.until(id, State::Done).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_in_a_200s_envelope_is_no_success_in_a_replay() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let booking = rig.post("/bookings", "{}", &[]).await.id();
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    rig.world.always(Some(Act::Answer(200, &[], r#"{"data":null,"error":{"status":500}}"#)));
    rig.changes.send(1).unwrap();
    rig.until(booking, State::Unknown).await;
    rig.until(patch, State::Waiting).await;
    rig.world.always(None);
    rig.until(patch, State::Done).await;
}

#[tokio::test(start_paused = true)]
async fn poison_dies_while_others_succeed_and_keeps_waiting_in_an_outage() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Answer(500, &[], "")));
    let id = rig.patch("/shipments/1", "bad", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Waiting));
    assert!(rig.queue.get(id).await.unwrap().attempts > 8);
    // Another shipment succeeds between the attempts of this one: one such success says little.
    let succeed = || async {
        rig.world.next(Act::Answer(200, &[], "{}"));
        assert_eq!(rig.patch("/shipments/2", "good", &[]).await.status, 200);
    };
    succeed().await;
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Waiting));
    for _ in 0..7 {
        succeed().await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
    }
    rig.until(id, State::Dead).await;
    assert_eq!(rig.queue.get(id).await.unwrap().reason, Some(record::Reason::Poison));
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_expires() {
    let mut settings = Settings::default();
    settings.queue.dead_retention = Span(Duration::from_secs(80 * 3600));
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Refuse(open())));
    let short = rig.post("/bookings", "{\"a\":1}", &[("seawall-queue-max-age", "60")]).await.id();
    let long = rig.post("/bookings", "{\"a\":2}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.state(short), Some(State::Expired));
    assert_eq!(rig.state(long), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(72 * 3600)).await;
    assert_eq!(rig.state(long), Some(State::Expired));
    assert!(!rig.queue.get(long).await.unwrap().maybe_applied);
    // Kept for its time, then forgotten, on disk too.
    tokio::time::sleep(Duration::from_secs(81 * 3600)).await;
    assert_eq!(rig.state(short), None);
    assert_eq!(rig.state(long), None);
    let rig = rig.restart().await;
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    assert!(rig.world.arrivals().is_empty());
    let bad = rig.post("/bookings", "{}", &[("seawall-queue-max-age", "soon")]).await;
    assert_eq!(bad.status, 400);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_can_be_cancelled_and_held() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{\"a\":1}", &[]).await.id();
    let held = rig.post("/bookings", "{\"a\":2}", &[]).await.id();
    rig.queue.hold(held, "ann", "check first").await.unwrap();
    assert_eq!(rig.queue.cancel(id, "caller", "changed my mind").await.unwrap().state, State::Cancelled);
    assert!(matches!(
        rig.queue.cancel(id, "caller", "changed my mind").await,
        Err(ProxyError::Conflict { .. })
    ));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.world.arrivals().is_empty());
    rig.queue.release(held, "ann", "fine").await.unwrap();
    rig.until(held, State::Done).await;
    assert_eq!(rig.world.bodies(), ["{\"a\":2}"]);
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn only_the_owner_sees_a_ticket() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let mut viewer = rig.context(&Method::GET, "/", Credential::Alias("main".into())).identity().clone();
    let ticket = rig.queue.ticket_json(id, &viewer).await.unwrap();
    assert_eq!(ticket["_object"], "/seawall/write");
    assert_eq!(ticket["state"], "pending");
    assert_eq!(ticket["history"][0]["what"], "accepted");
    assert!(!ticket.to_string().contains("Bearer"));
    viewer.owner = Some(OwnerId([8; 16]));
    viewer.partition = Some(PartitionId([8; 16]));
    assert!(matches!(rig.queue.ticket_json(id, &viewer).await, Err(ProxyError::NotFound(_))));
}

// --- what passes ---

#[tokio::test(start_paused = true)]
async fn reads_and_unqueued_routes_pass() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    for (method, target) in
        [(Method::GET, "/bookings"), (Method::POST, "/oauth/token"), (Method::DELETE, "/x")]
    {
        let sent = Sent::of(rig.send(rig.request(method, target, "{}", &[])).await).await;
        assert!(matches!(sent.error, Some(ProxyError::BreakerOpen { .. })));
    }
    rig.world.always(None);
    let sent = rig.post("/oauth/token", "{}", &[]).await;
    assert_eq!((sent.status, sent.field("idempotency-key")), (200, None));
    assert_eq!(rig.store.commits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_above_the_cap_streams_through_and_is_not_queued() {
    let rig = Rig::new().await;
    let body = "x".repeat((1 << 20) + 1);
    assert_eq!(rig.post("/bookings", &body, &[]).await.status, 200);
    assert_eq!(rig.world.bodies()[0].len(), body.len());
    rig.world.next(Act::Refuse(open()));
    assert!(matches!(rig.post("/bookings", &body, &[]).await.error, Some(ProxyError::BreakerOpen { .. })));
    assert_eq!(rig.queue.free_buffer(), 256 << 20);
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    rig.settle().await;
    assert_eq!(rig.queue.free_buffer(), 256 << 20, "room is given back");
}

// --- the end ---

#[tokio::test(start_paused = true)]
async fn a_write_that_comes_within_the_drains_grace_is_served() {
    let rig = Rig::new().await;
    let before = Instant::now();
    rig.queue.drain(before + Duration::from_secs(30)).await;
    assert!(before.elapsed() < Duration::from_secs(1), "nothing is in flight");
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let late = rig.start(rig.request(Method::PATCH, "/shipments/1", "{}", &[]));
    rig.settle().await;
    rig.queue.finish().await;
    assert_eq!(late.await.unwrap().status, 202);
}

#[tokio::test(start_paused = true)]
async fn the_drain_makes_what_is_in_flight_durable() {
    let mut settings = Settings::default();
    settings.server.drain.grace = Span(Duration::from_secs(1));
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let patch = rig.start(rig.request(Method::PATCH, "/shipments/1", "{}", &[]));
    let booking = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let behind = rig.start(rig.request(Method::PATCH, "/shipments/1", "2", &[]));
    rig.settle().await;
    rig.queue.drain(Instant::now() + Duration::from_secs(1)).await;
    let (patch, booking, behind) = (patch.await.unwrap(), booking.await.unwrap(), behind.await.unwrap());
    assert_eq!((patch.status, booking.status, behind.status), (202, 504, 202));
    assert!(booking.field("idempotency-key").is_some());
    let rig = rig.restart().await;
    rig.world.always(None);
    assert_eq!(rig.state(booking.id()), Some(State::Unknown));
    rig.until(behind.id(), State::Done).await;
    assert_eq!(rig.world.bodies()[2..], ["{}", "2"]);
    rig.tasks.stop(Duration::from_secs(1)).await;
}

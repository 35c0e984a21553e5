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
use crate::http::{Body, BodyError, Present};
use crate::ids::{OwnerId, PartitionId, WriteId};
use crate::store::{MemStore, Store, Tree};
use crate::task::Tasks;
use crate::telemetry::Metrics;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

mod callers;
mod disk;
mod doubled;
mod doubt;
mod end;
mod mended;
mod operator;
mod ordering;
mod replaying;
mod soak;
mod unread;
mod well;

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
    /// Sent, answered with 200, and then the body stands still.
    Stall,
    /// Sent, and then a bug.
    Panic,
}

/// A body of which nothing comes.
struct Stalled;

impl http_body::Body for Stalled {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        Poll::Pending
    }
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
    /// The next telling of what is settled is a bug.
    panics: std::sync::atomic::AtomicBool,
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
        let panics = self.panics.swap(false, std::sync::atomic::Ordering::AcqRel);
        assert!(!panics, "a bug in the write's own task");
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
            Act::Stall => Ok(Response::new(Body::new(Stalled))),
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

    fn panic_once(&self) {
        self.panics.store(true, std::sync::atomic::Ordering::Release);
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

/// The clock of a first life.
fn first_clock() -> Clock {
    Clock::anchored("2026-01-01T00:00:00Z".parse().unwrap())
}

impl Rig {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        Self::on(MemStore::new(), Arc::default(), settings, first_clock()).await
    }

    /// With the clock of the life before, if there was one: wall time goes on while a process is dead.
    async fn on(store: MemStore, world: Arc<World>, settings: Settings, clock: Clock) -> Self {
        Self::open(store, world, settings, clock, false).await
    }

    async fn open(
        store: MemStore,
        world: Arc<World>,
        settings: Settings,
        clock: Clock,
        is_rolled_back: bool,
    ) -> Self {
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
        Self::on(store, self.world.clone(), settings, self.clock).await
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

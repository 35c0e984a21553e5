//! The cache as a whole: a scripted upstream, paused time.

use super::*;
use crate::config::Snapshot;
use crate::context::{Credential, Identity, Lane, Pending, RequestContext, Upstream, UpstreamRequest};
use crate::error::ProxyError;
use crate::flexport::problem::Asked;
use crate::flexport::routes::{RoutePolicy, RouteTable, built_in};
use crate::http::{Body, BodyError, Present};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};

mod asks;
mod coverage;
mod disk;
mod fill;
mod flowing;
mod keep;
mod list;
mod mended;
mod objects;
mod outage;
mod strict;
mod warm;
mod who;
mod writes;

const START: &str = "2025-11-24T08:00:00Z";
const A: PartitionId = PartitionId([1; 16]);
const B: PartitionId = PartitionId([2; 16]);
const OK_ENVELOPE: &str = r#"{"_object":"/api/response","self":"x","version":2,"data":{"n":1},"error":null}"#;

/// What the upstream does with one request.
#[derive(Clone)]
enum Step {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    },
    /// Some of the body, then the connection ends.
    Cut,
    /// The body in pieces, without a length.
    Pieces(Vec<Bytes>),
    /// The body as a test feeds it.
    Fed {
        headers: Vec<(&'static str, String)>,
        body: Arc<Mutex<Option<Fed>>>,
    },
    Fail(ProxyError),
    After(Duration, Box<Step>),
}

/// A body that a test feeds; its end is the drop of the other side.
struct Fed {
    pieces: UnboundedReceiver<Result<Bytes, BodyError>>,
    left: Option<u64>,
}

type Feeder = UnboundedSender<Result<Bytes, BodyError>>;

#[derive(Clone)]
struct Seen {
    method: Method,
    target: String,
    headers: HeaderMap,
    lane: Lane,
}

#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<Seen>>,
    inner_seen: Mutex<Vec<Seen>>,
    inner_steps: Mutex<VecDeque<Step>>,
}

#[derive(Default)]
struct Facts {
    fails: AtomicBool,
    pending: Mutex<Option<Pending>>,
}

struct World {
    cache: Arc<Cache>,
    script: Arc<Script>,
    facts: Arc<Facts>,
    snapshot: Arc<Snapshot>,
    service: BoxCloneSyncService<Request<Body>, Response<Body>, ProxyError>,
    tasks: Tasks,
}

struct Ask<'a> {
    world: &'a World,
    method: Method,
    target: &'a str,
    headers: HeaderMap,
    identity: Identity,
    timeout: Duration,
    body: Body,
}

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl GroupHealth for Facts {
    fn shows_failures(&self, _: &str) -> bool {
        self.fails.load(Ordering::Relaxed)
    }
}

impl PendingWrites for Facts {
    fn pending(&self, _: PartitionId, _: &str) -> Option<Pending> {
        *self.pending.lock().unwrap()
    }
}

struct Pieces {
    left: VecDeque<Bytes>,
    is_cut: bool,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match self.left.pop_front() {
            Some(piece) => Some(Ok(Frame::data(piece))),
            None if self.is_cut => Some(Err(BodyError::Cut("reset".to_owned()))),
            None => None,
        })
    }
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        if let (Some(Ok(piece)), Some(left)) = (&piece, &mut self.left) {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.left.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
    }
}

/// A 200 whose body the test feeds, with that length if there is one.
fn fed(headers: &[(&'static str, &str)], length: Option<u64>) -> (Feeder, Step) {
    let (feeder, pieces) = unbounded_channel();
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    (feeder, Step::Fed { headers, body: Arc::new(Mutex::new(Some(Fed { pieces, left: length }))) })
}

async fn play(step: Step) -> Result<Response<Body>, ProxyError> {
    let mut step = step;
    loop {
        return match step {
            Step::After(span, next) => {
                tokio::time::sleep(span).await;
                step = *next;
                continue;
            }
            Step::Fail(error) => Err(error),
            Step::Cut => {
                let left = VecDeque::from([Bytes::from_static(b"{\"_ob")]);
                Ok(Response::new(Body::new(Pieces { left, is_cut: true })))
            }
            Step::Pieces(pieces) => {
                Ok(Response::new(Body::new(Pieces { left: pieces.into(), is_cut: false })))
            }
            Step::Fed { headers, body } => {
                let mut response = Response::builder();
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                let body = body.lock().unwrap().take().expect("it is asked for once");
                Ok(response.body(Body::new(body)).unwrap())
            }
            Step::Answer { status, headers, body } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                Ok(response.body(Body::from(body)).unwrap())
            }
        };
    }
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Step {
    Step::Answer {
        status,
        headers: headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn ok(headers: &[(&'static str, &str)], body: &str) -> Step {
    answer(200, headers, body)
}

fn breaker_open() -> Step {
    Step::Fail(ProxyError::BreakerOpen {
        scope: "shipments:read".to_owned(),
        retry_after: Duration::from_secs(5),
    })
}

fn world() -> World {
    world_with(|_| {}, |_| {})
}

/// A world with a second tier in that folder, which is open.
async fn world_on(dir: &std::path::Path) -> World {
    let options = DiskOptions {
        dir: dir.join("cache"),
        max: 64 << 20,
        reserve: 0,
        keys: Arc::new(crate::store::Keys::from_bytes([1; 32], [2; 32])),
        io: Arc::new(crate::store::RealIo),
    };
    let tier = tokio::task::spawn_blocking(move || Tier::open(options)).await.unwrap();
    let world = world_of(|_| {}, |_| {}, Some(tier));
    world.cache.disk.as_ref().unwrap().loaded().await;
    world
}

fn world_with(change: impl Fn(&mut Settings), change_route: impl Fn(&mut RoutePolicy)) -> World {
    world_of(change, change_route, None)
}

fn world_of(
    change: impl Fn(&mut Settings),
    change_route: impl Fn(&mut RoutePolicy),
    tier: Option<Tier>,
) -> World {
    let mut settings = Settings::default();
    change(&mut settings);
    let mut rows = built_in();
    rows.iter_mut().for_each(change_route);
    let script = Arc::new(Script::default());
    let facts = Arc::new(Facts::default());
    let tasks = Tasks::new();
    let cache = Cache::new(
        &settings,
        Clock::anchored(START.parse().unwrap()),
        &Metrics::new(),
        tasks.clone(),
        facts.clone(),
        facts.clone(),
        tier,
    );
    let snapshot = Arc::new(Snapshot {
        settings,
        routes: RouteTable::new(rows, RoutePolicy::other()),
        public_url: "http://127.0.0.1:8460".into(),
        ..Snapshot::of(Settings::default()).unwrap()
    });
    let told = script.clone();
    let upstream = Upstream::new(service_fn(move |asked: UpstreamRequest| {
        let (parts, _) = asked.request.into_parts();
        told.seen.lock().unwrap().push(Seen {
            method: parts.method,
            target: parts.uri.to_string(),
            headers: parts.headers,
            lane: asked.call.lane,
        });
        play(told.steps.lock().unwrap().pop_front().expect("nothing more is asked of the upstream"))
    }));
    let told = script.clone();
    let inner = service_fn(move |request: Request<Body>| {
        let (parts, _) = request.into_parts();
        told.inner_seen.lock().unwrap().push(Seen {
            method: parts.method,
            target: parts.uri.to_string(),
            headers: parts.headers,
            lane: Lane::LiveWrite,
        });
        play(told.inner_steps.lock().unwrap().pop_front().unwrap_or_else(|| ok(&[], "inner")))
    });
    let service = BoxCloneSyncService::new(CacheLayer::new(cache.clone(), upstream).layer(inner));
    World { cache, script, facts, snapshot, service, tasks }
}

impl World {
    fn plan(&self, steps: impl IntoIterator<Item = Step>) {
        self.script.steps.lock().unwrap().extend(steps);
    }

    fn asked(&self) -> usize {
        self.script.seen.lock().unwrap().len()
    }

    fn last(&self) -> Seen {
        self.script.seen.lock().unwrap().last().unwrap().clone()
    }

    fn get<'a>(&'a self, target: &'a str) -> Ask<'a> {
        self.ask(Method::GET, target)
    }

    fn ask<'a>(&'a self, method: Method, target: &'a str) -> Ask<'a> {
        Ask {
            world: self,
            method,
            target,
            headers: HeaderMap::new(),
            identity: identity(A, "token"),
            timeout: Duration::from_secs(60),
            body: Body::empty(),
        }
    }

    fn settle(&self, path: &str, method: &Method, route: &str) {
        self.cache.settled(&SettledWrite {
            partition: A,
            path: path.to_owned(),
            route: self.snapshot.routes.find(method, route).clone(),
            also: Vec::new(),
        });
    }
}

fn identity(partition: PartitionId, token: &str) -> Identity {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    Identity { caller: None, credential: Credential::Passed(value), partition: Some(partition), owner: None }
}

impl Ask<'_> {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn by(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn body(mut self, body: &'static str) -> Self {
        self.body = Body::from(body);
        self
    }

    fn request(self) -> Request<Body> {
        let path = self.target.split('?').next().unwrap();
        let now = Instant::now();
        let context = RequestContext {
            config: self.world.snapshot.clone(),
            route: self.world.snapshot.routes.find(&self.method, path).clone(),
            request_id: HeaderValue::from_static("req-1"),
            traceparent: HeaderValue::from_static("00-1-1-01"),
            peer: "127.0.0.1:1".parse().unwrap(),
            arrived: now,
            deadline: now + self.timeout,
            method: self.method.clone(),
            present: Present::of(&self.headers),
            asked: Asked {
                public_url: self.world.snapshot.public_url.clone(),
                target: self.target.to_owned(),
                version: serde_json::json!(2),
                wants_problem: false,
            },
            identity: OnceLock::from(self.identity),
        };
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target.parse().unwrap();
        *request.headers_mut() = self.headers;
        request.extensions_mut().insert(Arc::new(context));
        request
    }

    async fn try_send(self) -> Result<Got, ProxyError> {
        let service = self.world.service.clone();
        let response = service.oneshot(self.request()).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect(1 << 30).await.unwrap();
        Ok(Got { status: parts.status, headers: parts.headers, body })
    }

    async fn send(self) -> Got {
        self.try_send().await.unwrap()
    }
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn says(&self, source: &str, status: &str) {
        assert_eq!(self.header("seawall-source"), source);
        assert_eq!(self.header("cache-status"), status);
    }
}

async fn secs(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

fn key_of(world: &World, target: &str) -> key::Key {
    let parts = key::Parts {
        partition: A,
        upstream: &world.snapshot.settings.upstream.base_url,
        public_url: &world.snapshot.public_url,
        target,
    };
    let keyed = [
        http::HeaderName::from_static("flexport-version"),
        http::header::ACCEPT,
        http::header::ACCEPT_LANGUAGE,
    ];
    key::of(&parts, &HeaderMap::new(), &keyed)
}

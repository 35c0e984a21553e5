mod disk;
mod mended;
mod objects;

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

// === what is forwarded and kept ===

#[tokio::test(start_paused = true)]
async fn an_answer_without_freshness_is_kept_but_each_read_asks() {
    let world = world();
    world.plan([ok(&[], "one"), ok(&[], "two"), breaker_open()]);
    let got = world.get("/shipments?page=1").send().await;
    got.says("upstream", "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=-1");
    assert!(got.headers.get("age").is_none() && got.headers.get("seawall-data-as-of").is_none());
    assert_eq!(got.body, "one");
    let got = world.get("/shipments?page=1").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=-1");
    assert_eq!(got.body, "two");
    secs(812).await;
    let got = world.get("/shipments?page=1").send().await;
    got.says("stale", "seawall; hit; ttl=-812; detail=breaker-open");
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"two"[..]));
    assert_eq!(got.header("age"), "812");
    assert_eq!(got.header("seawall-data-as-of"), START);
    assert_eq!(got.header("seawall-stale-reason"), "breaker-open");
    assert_eq!(got.header("cache-control"), "max-age=0");
    assert_eq!(got.header("content-length"), "3");
    let stats = world.cache.stats();
    assert_eq!((stats.entries, stats.misses, stats.stale_served), (1, 2, 1));
    assert_eq!(stats.newest_confirmed_age_seconds, Some(812));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_copy_is_served_without_asking() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"), ok(&[], "two")]);
    world
        .get("/shipments")
        .send()
        .await
        .says("upstream", "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=10");
    secs(4).await;
    let got = world.get("/shipments").send().await;
    got.says("cache", "seawall; hit; ttl=6");
    assert_eq!((got.header("age"), got.header("etag"), &got.body[..]), ("4", "\"a\"", &b"one"[..]));
    assert_eq!(got.header("cache-control"), "max-age=10");
    assert_eq!(world.asked(), 1);
    secs(6).await;
    assert_eq!(world.get("/shipments").send().await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn a_routes_ttl_is_for_answers_that_name_no_freshness() {
    let world = world_with(
        |_| {},
        |route| {
            if let Some(cache) = &mut route.cache {
                cache.ttl = Duration::from_secs(5);
            }
        },
    );
    world.plan([ok(&[], "one"), ok(&[("cache-control", "max-age=0")], "two"), ok(&[], "three")]);
    world.get("/shipments").send().await;
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=5");
    world.get("/ports").send().await;
    assert_eq!(world.get("/ports").send().await.body, "three");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_in_the_key_goes_upstream() {
    let world = world();
    world.plan([ok(&[], "one")]);
    let ask = world
        .get("/shipments?f=%2F..&x=%20")
        .with("authorization", "Bearer token")
        .with("flexport-version", "3")
        .with("accept", "application/json")
        .with("accept-encoding", "gzip")
        .with("cookie", "a=b")
        .with("x-forwarded-host", "evil")
        .with("if-none-match", "\"theirs\"")
        .with("range", "bytes=0-1")
        .with("connection", "accept")
        .with("seawall-stale", "never");
    ask.send().await;
    let seen = world.last();
    assert_eq!(
        (seen.method, seen.target.as_str(), seen.lane),
        (Method::GET, "/shipments?f=%2F..&x=%20", Lane::LiveRead)
    );
    let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["accept", "accept-encoding", "flexport-version", "traceparent", "user-agent", "x-request-id"]
    );
    assert_eq!(seen.headers["user-agent"], concat!("Seawall/", env!("CARGO_PKG_VERSION")));
    assert_eq!(seen.headers["accept-encoding"], "identity");
}

#[tokio::test(start_paused = true)]
async fn partitions_versions_and_urls_never_mix() {
    let world = world();
    let long = "max-age=100";
    world.plan((0..5).map(|number| ok(&[("cache-control", long)], &number.to_string())));
    let body = async |ask: Ask<'_>| String::from_utf8(ask.send().await.body.to_vec()).unwrap();
    for _ in 0..2 {
        assert_eq!(body(world.get("/shipments")).await, "0");
        assert_eq!(body(world.get("/shipments").by(identity(B, "other"))).await, "1");
        assert_eq!(body(world.get("/shipments").with("flexport-version", "3")).await, "2");
        assert_eq!(body(world.get("/shipments").with("accept", "text/html")).await, "3");
        assert_eq!(body(world.get("/shipments?a")).await, "4");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_the_cache_goes_to_the_inner_service() {
    let world = world();
    let got = world.ask(Method::POST, "/bookings").body("{}").send().await;
    got.says("upstream", "seawall; fwd=method");
    world.get("/unknown").send().await.says("upstream", "seawall; fwd=bypass");
    world.get("/shipments").body("content").send().await.says("upstream", "seawall; fwd=bypass");
    let nobody = Identity { caller: None, credential: Credential::None, partition: None, owner: None };
    world.get("/shipments").by(nobody).send().await.says("upstream", "seawall; fwd=bypass");
    let queued = answer(202, &[("seawall-source", "queue")], "");
    world.script.inner_steps.lock().unwrap().push_back(queued);
    world.ask(Method::POST, "/bookings").send().await.says("queue", "");
    assert_eq!(world.script.inner_seen.lock().unwrap().len(), 5);
    assert_eq!((world.asked(), world.cache.stats().bypassed), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_kept_is_not() {
    let envelope_error = r#"{"_object":"/api/response","data":{"error":null},"error":{"_object":"/api/error","status":503,"message":"a \"}}\" b"}}"#;
    let json = ("content-type", "application/json");
    for step in [
        ok(&[("cache-control", "max-age=60, no-store")], "x"),
        ok(&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], "x"),
        ok(&[("cache-control", "max-age=60"), ("vary", "Accept, *")], "x"),
        ok(&[("cache-control", "max-age=60"), json], envelope_error),
        answer(206, &[("cache-control", "max-age=60")], "x"),
        answer(302, &[("cache-control", "max-age=60"), ("location", "/")], "x"),
        answer(301, &[], "x"),
        answer(404, &[], "x"),
        answer(500, &[("cache-control", "max-age=60")], "x"),
        answer(401, &[("cache-control", "max-age=60")], "x"),
    ] {
        let world = world();
        world.plan([step, ok(&[], "second"), ok(&[], "third")]);
        let got = world.get("/shipments").send().await;
        assert_eq!(got.header("seawall-source"), "upstream");
        assert!(!got.header("cache-status").contains("stored"), "{}", got.header("cache-status"));
        assert_eq!(world.cache.stats().entries, 0);
        assert_eq!(world.get("/shipments").send().await.body, "second");
        assert_eq!(world.asked(), 2);
    }
    for step in [
        ok(&[json], OK_ENVELOPE),
        ok(&[json], r#"{"_object":"/api/response","data":{"error":{"a":1}},"error":null}"#),
        answer(404, &[("cache-control", "max-age=60")], "x"),
        answer(301, &[("cache-control", "max-age=60")], "x"),
    ] {
        let world = world();
        world.plan([step]);
        world.get("/shipments").send().await;
        assert_eq!(world.cache.stats().entries, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn upstreams_own_fields_of_ours_are_not_believed() {
    let world = world();
    let lies = [
        ("seawall-source", "queue"),
        ("seawall-write-id", "x"),
        ("cache-status", "cdn; hit"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ];
    world.plan([ok(&lies, "x"), answer(500, &lies, "x")]);
    let got = world.get("/shipments").send().await;
    assert!(got.headers.get("seawall-write-id").is_none() && got.headers.get("x-hop").is_none());
    got.says("upstream", "cdn; hit, seawall; fwd=uri-miss; fwd-status=200; stored; ttl=-1");
    let got = world.get("/ports").send().await;
    let said: Vec<_> = got.headers.get_all("cache-status").iter().collect();
    assert_eq!(said, ["cdn; hit, seawall; fwd=uri-miss; fwd-status=500"]);
}

// === what the request asks ===

#[tokio::test(start_paused = true)]
async fn a_requests_cache_control_is_honoured() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=10")], "x");
    world.plan([fresh()]);
    world.get("/shipments").send().await;
    secs(4).await;
    let ask = |directive: &'static str| world.get("/shipments").with("cache-control", directive);
    ask("max-age=4").send().await.says("cache", "seawall; hit; ttl=6");
    ask("min-fresh=5").send().await.says("cache", "seawall; hit; ttl=6");
    ask("only-if-cached").send().await.says("cache", "seawall; hit; ttl=6");
    for directive in ["no-cache", "max-age=0", "max-age=3", "min-fresh=7"] {
        world.plan([fresh()]);
        let got = ask(directive).send().await;
        got.says("upstream", "seawall; fwd=request; fwd-status=200; stored; ttl=10");
        secs(4).await;
    }
    secs(10).await;
    let got = ask("max-stale=4").send().await;
    got.says("stale", "seawall; hit; ttl=-4; detail=max-stale");
    let asked = world.asked();
    let got = ask("only-if-cached").send().await;
    assert_eq!((got.status, world.asked()), (StatusCode::GATEWAY_TIMEOUT, asked));
    assert!(std::str::from_utf8(&got.body).unwrap().contains("seawall_not_cached"));
    world.plan([fresh()]);
    assert_eq!(ask("max-stale=3").send().await.header("seawall-source"), "upstream");
    world.plan([ok(&[("cache-control", "max-age=10")], "other")]);
    let got = ask("no-store").send().await;
    assert_eq!((got.header("cache-status").contains("stored"), &got.body[..]), (false, &b"other"[..]));
    assert_eq!(world.get("/shipments").send().await.body, "x");
}

#[tokio::test(start_paused = true)]
async fn a_requests_cache_control_can_be_ignored() {
    let world = world_with(|settings| settings.cache.honour_request_cc = false, |_| {});
    world.plan([ok(&[("cache-control", "max-age=10")], "x")]);
    world.get("/shipments").with("cache-control", "no-store").send().await;
    world
        .get("/shipments")
        .with("cache-control", "no-cache")
        .send()
        .await
        .says("cache", "seawall; hit; ttl=10");
}

#[tokio::test(start_paused = true)]
async fn a_stale_copy_that_has_changed_is_revalidated_and_replaced() {
    let world = world();
    world.plan([
        ok(
            &[
                ("etag", "W/\"a\""),
                ("last-modified", "Mon, 24 Nov 2025 07:00:00 GMT"),
                ("x-kept", "1"),
                ("x-old", "1"),
                ("content-type", "text/plain"),
            ],
            "one",
        ),
        answer(
            304,
            &[("etag", "\"a\""), ("x-old", "2"), ("cache-control", "max-age=5"), ("content-length", "99")],
            "",
        ),
        ok(&[("etag", "\"b\"")], "two"),
    ]);
    world.get("/shipments").send().await;
    secs(30).await;
    let got = world.get("/shipments").send().await;
    got.says("cache", "seawall; fwd=stale; fwd-status=304; stored; ttl=5");
    assert_eq!(world.last().headers["if-none-match"], "W/\"a\"");
    assert_eq!(world.last().headers["if-modified-since"], "Mon, 24 Nov 2025 07:00:00 GMT");
    assert_eq!((got.header("x-kept"), got.header("x-old"), got.header("content-length")), ("1", "2", "3"));
    assert_eq!((got.header("age"), got.header("content-type")), ("0", "text/plain"));
    assert_eq!(got.header("seawall-data-as-of"), "2025-11-24T08:00:30Z");
    assert_eq!(got.body, "one");
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=5");
    secs(5).await;
    let got = world.get("/shipments").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=-1");
    assert_eq!(got.body, "two");
    assert_eq!(world.cache.stats().revalidated, 1);
}

#[tokio::test(start_paused = true)]
async fn a_304_that_speaks_of_another_copy_is_asked_again() {
    let world = world();
    world.plan([
        ok(&[("etag", "\"a\"")], "one"),
        answer(304, &[("etag", "\"b\"")], ""),
        ok(&[("etag", "\"b\"")], "two"),
    ]);
    world.get("/shipments").send().await;
    assert_eq!(world.get("/shipments").send().await.body, "two");
    assert!(world.last().headers.get("if-none-match").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_callers_conditions_are_answered_from_the_copy() {
    let world = world();
    let tagged = [
        ("etag", "\"a,b\""),
        ("cache-control", "max-age=10"),
        ("last-modified", "Mon, 24 Nov 2025 07:00:00 GMT"),
        ("content-type", "text/plain"),
    ];
    world.plan([ok(&tagged, "one"), answer(304, &[], "")]);
    // On a miss the whole is fetched, and the condition is judged here.
    let got = world.get("/shipments").with("if-none-match", "\"a,b\"").send().await;
    assert_eq!((got.status, got.body.len()), (StatusCode::NOT_MODIFIED, 0));
    for (name, value, status) in [
        ("if-none-match", "\"x\", W/\"a,b\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"a\", \"b\"", 200),
        ("if-modified-since", "Mon, 24 Nov 2025 07:00:00 GMT", 304),
        ("if-modified-since", "Mon, 24 Nov 2025 06:59:59 GMT", 200),
        ("if-modified-since", "yesterday", 200),
    ] {
        let got = world.get("/shipments").with(name, value).send().await;
        assert_eq!(got.status, status, "{name}: {value}");
        got.says("cache", "seawall; hit; ttl=10");
        assert_eq!(got.headers.contains_key("content-type"), status == 200);
        assert_eq!(got.header("etag"), "\"a,b\"");
    }
    secs(11).await;
    let got = world.get("/shipments").with("if-none-match", "\"a,b\"").send().await;
    assert_eq!(got.status, StatusCode::NOT_MODIFIED);
    assert_eq!(world.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_head_is_answered_from_a_fresh_get_and_otherwise_forwarded() {
    let world = world();
    world.plan([
        ok(&[("content-length", "3"), ("cache-control", "max-age=60")], ""),
        ok(&[("cache-control", "max-age=60")], "one"),
    ]);
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    assert_eq!((world.last().method, got.header("content-length")), (Method::HEAD, "3"));
    assert_eq!(world.cache.stats().entries, 0, "the answer to a HEAD is not kept");
    assert_eq!(world.get("/shipments").send().await.body, "one");
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    got.says("cache", "seawall; hit; ttl=60");
    assert_eq!((got.header("content-length"), got.body.len()), ("3", 0));
    secs(60).await;
    world.plan([breaker_open()]);
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=breaker-open");
    assert_eq!((got.header("content-length"), got.body.len()), ("3", 0));
}

#[tokio::test(start_paused = true)]
async fn the_clock_going_back_makes_a_copy_stale() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=60")], "one"), ok(&[], "two")]);
    world.get("/shipments").send().await;
    let now = world.cache.now();
    let back = entry::Confirmed { at: now.at - jiff::SignedDuration::from_secs(9), ..now };
    let entry = world.cache.memory.get(&key_of(&world, "/shipments")).unwrap().newest.clone();
    assert!(entry.confirmed.is_ahead_of(&back));
    assert_eq!(entry.confirmed.since(&back), Duration::ZERO);
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

// === outages ===

#[tokio::test(start_paused = true)]
async fn the_first_failing_request_of_any_outage_is_answered_stale() {
    let cases = [
        (breaker_open(), "hit; ttl=-30; detail=breaker-open", "breaker-open"),
        (
            Step::Fail(ProxyError::Overloaded { what: "upstream" }),
            "hit; ttl=-30; detail=overloaded",
            "overloaded",
        ),
        (Step::Fail(ProxyError::DeadlineBeforeSending), "hit; ttl=-30; detail=overloaded", "overloaded"),
        (
            Step::Fail(ProxyError::RateLimited { retry_after: Duration::from_secs(1) }),
            "hit; ttl=-30; detail=rate-limited",
            "rate-limited",
        ),
        (
            Step::Fail(ProxyError::Connect("refused".into())),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            Step::Fail(ProxyError::HeadTimeout),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-timeout",
        ),
        (
            Step::Fail(ProxyError::Cut("reset".into())),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (Step::Cut, "fwd=stale; ttl=-30; detail=stale-if-error", "upstream-error"),
        (
            answer(503, &[("retry-after", "9")], "no"),
            "fwd=stale; fwd-status=503; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(500, &[], "no"),
            "fwd=stale; fwd-status=500; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(408, &[], "no"),
            "fwd=stale; fwd-status=408; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(429, &[("retry-after", "9")], "no"),
            "fwd=stale; fwd-status=429; ttl=-30; detail=stale-if-error",
            "rate-limited",
        ),
    ];
    for (step, status, reason) in cases {
        let world = world();
        world.plan([ok(&[("cache-control", "private, max-age=0"), ("expires", "0")], "good"), step.clone()]);
        world.get("/shipments").send().await;
        secs(30).await;
        let got = world.get("/shipments").send().await;
        got.says("stale", &format!("seawall; {status}"));
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"good"[..]));
        assert_eq!((got.header("seawall-stale-reason"), got.header("age")), (reason, "30"));
        assert_eq!((got.header("cache-control"), got.header("expires")), ("max-age=0, private", ""));
        // The copy is still the good one.
        world.plan([breaker_open()]);
        assert_eq!(world.get("/shipments").send().await.body, "good");

        // Without a copy, or for who does not want it: what came, as it came.
        for ask in [world.get("/ports"), world.get("/shipments").with("seawall-stale", "never")] {
            world.plan([step.clone()]);
            match (ask.try_send().await, &step) {
                (Ok(got), Step::Answer { status, body, .. }) => {
                    assert_eq!((got.status.as_u16(), &got.body), (*status, body));
                    assert_eq!(got.header("seawall-source"), "upstream");
                    assert!(got.header("cache-status").contains(&format!("; fwd-status={status}")));
                }
                (Err(ProxyError::Cut(_)), Step::Cut) => {}
                (Err(got), Step::Fail(error)) => assert_eq!(got.to_string(), error.to_string()),
                (got, _) => panic!("{:?}", got.map(|got| got.status)),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_no_outage_pass_through() {
    for status in [400, 401, 403, 404, 409, 302, 501] {
        let world = world();
        world.plan([ok(&[], "good"), answer(status, &[], "told")]);
        world.get("/shipments").send().await;
        let got = world.get("/shipments").send().await;
        got.says("upstream", &format!("seawall; fwd=stale; fwd-status={status}"));
        assert_eq!((got.status.as_u16(), &got.body[..]), (status, &b"told"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_too_old_does_not_stand_in() {
    let world = world();
    world.plan([ok(&[], "good")]);
    world.get("/shipments").send().await;
    secs(60).await;
    let limited = || answer(429, &[], "slow down");
    world.plan([limited(), limited(), breaker_open(), breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    secs(1).await;
    assert_eq!(world.get("/shipments").send().await.status, 429, "the window of 429 is its own");
    secs(24 * 3600 - 61).await;
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    secs(1).await;
    assert!(matches!(world.get("/shipments").try_send().await, Err(ProxyError::BreakerOpen { .. })));
    assert_eq!(world.cache.stats().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn an_incremental_sync_is_never_answered_with_old_data() {
    let sync = "/shipments?sort=updated_at&f.updated_at.gt=2026-05-01T00:00:00Z";
    let stretched = [("cache-control", "max-age=1, stale-while-revalidate=60")];
    for (case, (copy, step)) in [
        (ok(&[], "old"), breaker_open()),
        (ok(&[], "old"), Step::Fail(ProxyError::Connect("refused".into()))),
        (ok(&[], "old"), Step::Cut),
        (ok(&[], "old"), answer(503, &[("retry-after", "9")], "no")),
        (ok(&[], "old"), answer(429, &[], "no")),
        (ok(&stretched, "old"), breaker_open()),
    ]
    .into_iter()
    .enumerate()
    {
        let world = world();
        world.plan([copy.clone(), step.clone(), copy, step]);
        world.get(sync).send().await;
        secs(5).await;
        let got = world.get(sync).with("cache-control", "max-stale").try_send().await;
        assert!(got.is_err() || got.is_ok_and(|got| got.status.as_u16() >= 429), "case {case}");
        assert_eq!((world.asked(), world.cache.stats().stale_served), (2, 0), "case {case}");
        // Beside it, who just looks is served.
        world.get("/shipments?sort=updated_at").send().await;
        secs(5).await;
        assert_eq!(world.get("/shipments?sort=updated_at").send().await.header("seawall-source"), "stale");
    }
    // What is fresh is not old.
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=60")], "new")]);
    world.get(sync).send().await;
    assert_eq!(world.get(sync).send().await.header("seawall-source"), "cache");
}

#[tokio::test(start_paused = true)]
async fn directives_against_stale_hold_unless_the_route_overrides_them() {
    for (cache_control, without) in [
        ("max-age=0, private, must-revalidate", false),
        ("no-cache", false),
        ("proxy-revalidate", false),
        ("s-maxage=0", false),
        ("stale-if-error=60", true),
        ("stale-if-error=5", false),
        ("max-age=1", true),
    ] {
        for overrides in [true, false] {
            let world = world_with(
                |_| {},
                |route| {
                    if let Some(cache) = &mut route.cache {
                        cache.overrides_revalidation = overrides;
                    }
                },
            );
            world.plan([ok(&[("cache-control", cache_control)], "good"), answer(503, &[], "no")]);
            world.get("/shipments").send().await;
            secs(30).await;
            let source = if overrides || without { "stale" } else { "upstream" };
            assert_eq!(
                world.get("/shipments").send().await.header("seawall-source"),
                source,
                "{cache_control}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_copy_waits_shortly_while_the_group_fails() {
    for (fails, waited) in [(true, 2), (false, 10)] {
        let world = world();
        world.facts.fails.store(fails, Ordering::Relaxed);
        let slow = Step::After(Duration::from_secs(20), Box::new(ok(&[], "new")));
        world.plan([ok(&[], "good"), slow, breaker_open()]);
        world.get("/shipments").send().await;
        let start = Instant::now();
        let got = world.get("/shipments").send().await;
        assert_eq!(start.elapsed().as_secs(), waited);
        got.says("stale", &format!("seawall; fwd=stale; ttl=-{waited}; detail=upstream-timeout"));
        assert_eq!(got.header("seawall-stale-reason"), "upstream-timeout");
        assert_eq!(world.tasks.count(), 1, "the attempt goes on");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(world.tasks.count(), 0);
        assert_eq!(world.get("/shipments").send().await.body, "new", "and refreshes the copy");
    }
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_time_limit_does_not_end_the_fill() {
    let world = world();
    world
        .plan([Step::After(Duration::from_secs(3), Box::new(ok(&[("cache-control", "max-age=60")], "new")))]);
    let got = world.get("/shipments").within(Duration::from_secs(1)).try_send().await;
    assert!(matches!(got, Err(ProxyError::HeadTimeout)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "cache");
}

#[tokio::test(start_paused = true)]
async fn stale_while_revalidate_answers_at_once_and_refreshes_once() {
    let world = world();
    let slow = Step::After(Duration::from_secs(1), Box::new(ok(&[("cache-control", "max-age=60")], "new")));
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=30")], "old"), slow]);
    world.get("/shipments").send().await;
    secs(5).await;
    for _ in 0..3 {
        let got = world.get("/shipments").send().await;
        got.says("stale", "seawall; hit; ttl=-4; detail=revalidating");
        assert_eq!(got.header("seawall-stale-reason"), "revalidating");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((world.asked(), world.last().lane), (2, Lane::Refresh));
    assert_eq!(world.get("/shipments").send().await.body, "new");
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_refresh_failed_is_left_alone_for_longer_each_time() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=600")], "old")]);
    world.get("/shipments").send().await;
    secs(2).await;
    let mut asked = 1;
    for span in [1000, 2000, 4000] {
        world.plan([answer(503, &[], "")]);
        for _ in 0..3 {
            assert_eq!(world.get("/shipments").send().await.body, "old");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        asked += 1;
        assert_eq!(world.asked(), asked);
        tokio::time::sleep(Duration::from_millis(span)).await;
    }
}

// === who may see what ===

#[tokio::test(start_paused = true)]
async fn a_refused_token_sees_no_copy_until_its_own_success() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "good");
    let revoked = || identity(A, "revoked");
    world.plan([fresh(), ok(&[], "good"), answer(401, &[], "who")]);
    world.get("/shipments").send().await;
    world.get("/ports").send().await;
    assert_eq!(world.get("/shipments").by(revoked()).send().await.body, "good");
    assert_eq!(world.get("/ports").by(revoked()).send().await.status, 401);
    world.plan([breaker_open(), answer(401, &[], "who")]);
    let got = world.get("/shipments").by(revoked()).try_send().await;
    assert!(matches!(got, Err(ProxyError::BreakerOpen { .. })), "neither hit nor stale");
    assert_eq!(world.get("/shipments").by(revoked()).send().await.status, 401);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "cache", "others do");
    world.plan([fresh()]);
    world
        .get("/shipments")
        .by(revoked())
        .send()
        .await
        .says("upstream", "seawall; fwd=bypass; fwd-status=200; stored; ttl=600");
    world.get("/shipments").by(revoked()).send().await.says("cache", "seawall; hit; ttl=600");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_during_a_wait_holds_for_it() {
    for step in [breaker_open(), answer(503, &[], ""), ok(&[], "too late")] {
        let world = world();
        world.plan([
            ok(&[], "good"),
            Step::After(Duration::from_secs(4), Box::new(step.clone())),
            answer(401, &[], "who"),
            breaker_open(),
        ]);
        world.get("/shipments").send().await;
        let request = world.get("/shipments").request();
        let waiting = tokio::spawn(world.service.clone().oneshot(request));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.get("/ports").send().await.status, 401);
        if let Ok(got) = waiting.await.unwrap() {
            assert_eq!(got.headers()["seawall-source"], "upstream");
        }
        // Nor does a success that was asked for before the refusal end it.
        assert!(world.get("/shipments").try_send().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_refuses_one_entry() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=1")], "good");
    world.plan([fresh(), fresh()]);
    world.get("/shipments").send().await;
    world.get("/ports").send().await;
    secs(2).await;
    world.plan([answer(403, &[], "no"), breaker_open(), breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.status, 403);
    assert!(world.get("/shipments").try_send().await.is_err());
    assert_eq!(world.get("/ports").send().await.header("seawall-source"), "stale");
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_dropped_by_a_healthy_group_only() {
    for (fails, left) in [(false, 0), (true, 1)] {
        let world = world();
        world.plan([ok(&[], "good"), answer(404, &[("cache-control", "max-age=9")], "gone")]);
        world.get("/shipments/1").send().await;
        world.facts.fails.store(fails, Ordering::Relaxed);
        assert_eq!(world.get("/shipments/1").send().await.status, 404);
        world.plan([breaker_open()]);
        let got = world.get("/shipments/1").send().await;
        // Healthy: the 404 with freshness of its own is what is known now.
        assert_eq!(got.status, if left == 0 { 404 } else { 200 });
    }
    let world = world();
    world.plan([ok(&[], "good"), answer(410, &[], "gone"), breaker_open()]);
    world.get("/shipments/1").send().await;
    assert_eq!(world.get("/shipments/1").send().await.status, 410);
    assert!(world.get("/shipments/1").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn pending_writes_are_told() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=9")], "x")]);
    *world.facts.pending.lock().unwrap() = Some(Pending { count: 2, oldest: Duration::from_secs(40) });
    for _ in 0..2 {
        assert_eq!(world.get("/bookings/1").send().await.header("seawall-pending-writes"), "2; oldest=40");
    }
}

// === one fill ===

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_make_one_request() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(1), Box::new(ok(&[], "one")))]);
    let asks: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    let mut collapsed = 0;
    for ask in asks {
        let response = ask.await.unwrap().unwrap();
        let status = response.headers()["cache-status"].to_str().unwrap().to_owned();
        collapsed +=
            usize::from(status == "seawall; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=-1");
        assert_eq!(response.into_body().collect(10).await.unwrap(), "one");
    }
    assert_eq!((world.asked(), collapsed, world.cache.stats().collapsed), (1, 999, 999));
}

#[tokio::test(start_paused = true)]
async fn a_leaders_failure_is_its_waiters_failure() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(1), Box::new(answer(503, &[], "no")))]);
    let asks: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    for ask in asks {
        assert_eq!(ask.await.unwrap().unwrap().status(), 503);
    }
    assert_eq!(world.asked(), 1);
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_does_not_take_the_fill_along() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(2), Box::new(ok(&[("cache-control", "max-age=9")], "one")))]);
    let leader = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    leader.abort();
    let response = waiter.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect(10).await.unwrap(), "one");
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=7");
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_finishes_fails_its_waiters() {
    let flights = Flights::new();
    let marks = Marks::new([1, 2], None);
    let key = flight::FlightKey { key: key::Key([0; 32]), token: 0 };
    let flight::Role::Lead(landing) = flights.enter(key, Instant::now(), marks.moment(), |_| false) else {
        panic!("nobody else is there");
    };
    let flight::Role::Join(flight) = flights.enter(key, Instant::now(), marks.moment(), |_| false) else {
        panic!("somebody leads");
    };
    drop(landing);
    assert!(matches!(flight.landed().await, flight::Outcome::Failed(ProxyError::Internal(_))));
    assert!(matches!(flights.enter(key, Instant::now(), marks.moment(), |_| false), flight::Role::Lead(_)));
}

#[tokio::test(start_paused = true)]
async fn waiters_lose_patience_two_at_a_time() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(30), Box::new(ok(&[], "slow")))]);
    world.plan([ok(&[], "own"), ok(&[], "own")]);
    let asks: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    let mut bodies = Vec::new();
    for ask in asks {
        bodies.push(ask.await.unwrap().unwrap().into_body().collect(10).await.unwrap());
    }
    assert_eq!(bodies.iter().filter(|body| *body == "own").count(), 2);
    assert_eq!(world.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_with_a_copy_gets_it_when_the_fill_takes_long() {
    let world = world();
    world.plan([ok(&[], "old"), Step::After(Duration::from_secs(8), Box::new(ok(&[], "new")))]);
    world.get("/shipments").send().await;
    let leader = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let got = world.get("/shipments").send().await;
    assert_eq!((start.elapsed().as_secs(), got.header("seawall-stale-reason")), (5, "revalidating"));
    assert_eq!(leader.await.unwrap().unwrap().into_body().collect(9).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_not_waited_for_again() {
    let world = world();
    let private =
        || Step::After(Duration::from_secs(1), Box::new(ok(&[("cache-control", "no-store")], "mine")));
    world.plan([private()]);
    world.get("/shipments").send().await;
    for (wait, requests) in [(0, 5), (60, 1 + 4)] {
        secs(wait).await;
        world.plan((0..5).map(|_| private()));
        let before = world.asked();
        let start = Instant::now();
        let asks: Vec<_> = (0..5)
            .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
            .collect();
        for ask in asks {
            ask.await.unwrap().unwrap();
        }
        assert_eq!(world.asked() - before, requests, "no answer of one caller's goes to another");
        // Marked: all at once. After the mark has ended they wait for the first, which is not to be shared.
        assert_eq!(start.elapsed().as_secs(), if wait == 0 { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn long_answers_stream_through() {
    let limit = crate::config::raw::Size(10);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let piece = || Bytes::from_static(b"12345678");
    world.plan([
        Step::Pieces(vec![piece(), piece(), piece()]),
        ok(&[], "a body longer than that"),
        Step::Pieces(vec![piece()]),
    ]);
    let got = world.get("/shipments").send().await;
    got.says("upstream", "seawall; fwd=uri-miss; fwd-status=200");
    assert_eq!(got.body, "123456781234567812345678");
    assert_eq!(world.get("/shipments").send().await.body, "a body longer than that");
    assert_eq!(world.cache.stats().entries, 0);
    assert_eq!(world.get("/shipments").send().await.body, "12345678");
    assert_eq!(world.cache.stats().entries, 1);
    world
        .plan([answer(503, &[], "an outage, told at length"), answer(503, &[], "an outage, told at length")]);
    let got = world.get("/shipments").send().await;
    got.says("stale", "seawall; fwd=stale; fwd-status=503; ttl=-1; detail=stale-if-error");
    assert_eq!(got.body, "12345678");
    assert_eq!(world.get("/ports").send().await.body, "an outage, told at length");
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_long_answer_ask_for_themselves() {
    let limit = crate::config::raw::Size(10);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let long = || Step::After(Duration::from_secs(1), Box::new(ok(&[], "a body longer than that")));
    world.plan((0..3).map(|_| long()));
    let asks: Vec<_> = (0..3)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    for ask in asks {
        let body = ask.await.unwrap().unwrap().into_body().collect(100).await.unwrap();
        assert_eq!(body, "a body longer than that");
    }
    assert_eq!(world.asked(), 3);
}

// === answers that flow ===

const KIB: usize = 1024;

fn bytes(kib: usize) -> Bytes {
    Bytes::from(vec![b'x'; kib * KIB])
}

/// The answer to this request, whose body is still to come.
async fn started(ask: Ask<'_>) -> Response<Body> {
    let service = ask.world.service.clone();
    service.oneshot(ask.request()).await.unwrap()
}

async fn next(body: &mut Body) -> Option<Result<Bytes, BodyError>> {
    let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap()))
}

fn status_of(response: &Response<Body>) -> &str {
    response.headers()["cache-status"].to_str().unwrap()
}

/// Until no fill goes on in a task.
async fn no_fill(world: &World) {
    while world.tasks.count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_reaches_its_caller_while_it_comes_and_is_kept_at_its_end() {
    // With a length the head goes out at once, without one when the beginning is there.
    for length in [Some(300 * KIB as u64), None] {
        let world = world();
        let (feeder, step) = fed(&[("cache-control", "max-age=60"), ("age", "3")], length);
        world.plan([step]);
        if length.is_none() {
            feeder.send(Ok(bytes(65))).unwrap();
        }
        let response = started(world.get("/shipments")).await;
        assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=57");
        assert_eq!(response.headers()["seawall-source"], "upstream");
        assert_eq!(
            (&response.headers()["age"], response.headers().contains_key("date")),
            (&"3".parse().unwrap(), true)
        );
        let mut body = response.into_body();
        assert_eq!(http_body::Body::size_hint(&body).exact(), length);
        if length.is_some() {
            feeder.send(Ok(bytes(65))).unwrap();
        }
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(65));
        assert_eq!(world.cache.stats().entries, 0);
        feeder.send(Ok(bytes(100))).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
        feeder.send(Ok(bytes(135))).unwrap();
        drop(feeder);
        // All of it is there: then it is kept, before any other word of the fill's.
        assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(135));
        assert_eq!(world.cache.stats().entries, 1);
        let got = world.get("/shipments").send().await;
        got.says("cache", "seawall; hit; ttl=57");
        assert_eq!((got.body, got.headers["content-length"].to_str().unwrap()), (bytes(300), "307200"));
        assert_eq!((world.asked(), world.cache.stats().misses), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_slowly_is_passed_on_as_it_comes() {
    let world = world();
    let (feeder, step) = fed(&[], None);
    world.plan([step]);
    feeder.send(Ok(Bytes::from_static(b"first"))).unwrap();
    let start = Instant::now();
    let response = started(world.get("/shipments")).await;
    assert_eq!(start.elapsed().as_secs(), 1);
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
    feeder.send(Ok(Bytes::from_static(b", last"))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(10).await.unwrap(), ", last");
    world.plan([breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.body, "first, last");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_on_its_way_is_cut_for_its_caller_and_not_kept() {
    let broken = || Some(Err(BodyError::Cut("reset".to_owned())));
    for (length, last) in [
        (None, broken()),
        (Some(200), broken()),
        // Shorter, and longer, than it says.
        (Some(200), None),
        (Some(200), Some(Ok(bytes(101)))),
    ] {
        let world = world();
        let (feeder, step) = fed(&[], length.map(|kib: usize| (kib * KIB) as u64));
        world.plan([ok(&[], "good"), step, breaker_open()]);
        world.get("/shipments").send().await;
        feeder.send(Ok(bytes(100))).unwrap();
        let response = started(world.get("/shipments")).await;
        assert_eq!(
            (response.status(), &response.headers()["seawall-source"]),
            (StatusCode::OK, &"upstream".parse().unwrap())
        );
        let mut body = response.into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
        if let Some(last) = last {
            feeder.send(last).unwrap();
        }
        drop(feeder);
        assert!(matches!(next(&mut body).await, Some(Err(BodyError::Cut(_)))));
        assert!(next(&mut body).await.is_none());
        // The last good copy is still the one there is.
        let got = world.get("/shipments").send().await;
        got.says("stale", "seawall; hit; ttl=-1; detail=breaker-open");
        assert_eq!(got.body, "good");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_beginning_breaks_is_an_outage_for_who_has_a_copy() {
    // Also when it says that it is a long one, and however long the beginning takes.
    for length in [None, Some(300 * KIB as u64)] {
        let world = world();
        let (feeder, step) = fed(&[], length);
        world.plan([ok(&[], "good"), step]);
        world.get("/shipments").send().await;
        feeder.send(Ok(bytes(64))).unwrap();
        let asking = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!asking.is_finished());
        feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
        let response = asking.await.unwrap().unwrap();
        assert_eq!(status_of(&response), "seawall; fwd=stale; ttl=-3; detail=stale-if-error");
        assert_eq!(response.into_body().collect(10).await.unwrap(), "good");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_in_mid_body_ends_no_fill() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(200 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments")).await;
    feeder.send(Ok(bytes(100))).unwrap();
    let mut body = response.into_body();
    next(&mut body).await.unwrap().unwrap();
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    drop(body);
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    let response = waiter.await.unwrap().unwrap();
    assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=60");
    assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(200));
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=60");
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_caller_stalls_neither_the_fill_nor_who_waits_for_it() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], None);
    world.plan([step]);
    feeder.send(Ok(bytes(65))).unwrap();
    let slow = started(world.get("/shipments")).await;
    let waiters: Vec<_> = (0..100)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    tokio::task::yield_now().await;
    for _ in 0..10 {
        feeder.send(Ok(bytes(100))).unwrap();
    }
    drop(feeder);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap().into_body().collect(2 << 20).await.unwrap(), bytes(1065));
    }
    // What it has not read, it reads out of the copy.
    let mut body = slow.into_body();
    let rest = next(&mut body).await.unwrap().unwrap();
    assert_eq!(rest, bytes(1065));
    let copy = world.cache.memory.get(&key_of(&world, "/shipments")).unwrap().newest.body.clone();
    assert_eq!(rest.as_ptr(), copy.as_ptr());
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_that_breaks_shares_the_failure() {
    let world = world();
    let (feeder, step) = fed(&[], Some(200 * KIB as u64));
    world.plan([step]);
    let mut body = started(world.get("/shipments")).await.into_body();
    let waiters: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    tokio::task::yield_now().await;
    feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
    assert!(next(&mut body).await.unwrap().is_err());
    for waiter in waiters {
        assert!(matches!(waiter.await.unwrap(), Err(ProxyError::Cut(_))));
    }
    assert_eq!(world.asked(), 1);
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
}

#[tokio::test(start_paused = true)]
async fn what_turns_out_to_be_too_long_goes_on_at_its_callers_pace_and_is_not_kept() {
    let limit = crate::config::raw::Size(200 * KIB as u64);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], None);
    world.plan([step]);
    feeder.send(Ok(bytes(100))).unwrap();
    let mut body = started(world.get("/shipments")).await.into_body();
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    world.plan([ok(&[("cache-control", "max-age=60")], "short")]);
    for _ in 0..10 {
        feeder.send(Ok(bytes(100))).unwrap();
    }
    // Who waited asks for itself; nothing more is read than what the caller takes.
    let response = waiter.await.unwrap().unwrap();
    assert!(!status_of(&response).contains("collapsed"));
    assert_eq!(world.tasks.count(), 0);
    for _ in 0..11 {
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
    }
    // Nor is it over when the time of the call is: it is the caller's from here on.
    tokio::time::sleep(Duration::from_secs(600)).await;
    feeder.send(Ok(bytes(1))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(1));
    // It was asked for earlier than the short one, and is no longer anywhere.
    let entry = world.cache.memory.get(&key_of(&world, "/shipments")).unwrap().newest.clone();
    assert_eq!(entry.body, "short");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_in_time_is_cut_and_frees_its_key() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(200 * KIB as u64));
    world.plan([step]);
    let start = Instant::now();
    let mut body = started(world.get("/shipments")).await.into_body();
    let timeout = world.snapshot.routes.find(&Method::GET, "/shipments").timeout;
    let dripping = tokio::spawn(async move {
        while feeder.send(Ok(Bytes::from_static(b" "))).is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let error = loop {
        match next(&mut body).await.expect("it does not end well") {
            Ok(piece) => assert_eq!(piece, " "),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BodyError::Cut(_)));
    assert_eq!(start.elapsed().as_secs(), timeout.as_secs() + 1);
    dripping.await.unwrap();
    assert_eq!((world.tasks.count(), world.cache.stats().entries), (0, 0));
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_during_a_write_is_passed_on_and_not_kept() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step, ok(&[], "after")]);
    let body = started(world.get("/bookings/1")).await.into_body();
    world.settle("/bookings/1", &Method::PATCH, "/bookings/1");
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(100));
    assert_eq!(world.cache.stats().entries, 0);
    assert_eq!(world.get("/bookings/1").send().await.body, "after");
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_must_not_be_kept_goes_to_its_caller_alone() {
    let limits: [&[_]; 2] = [&[("cache-control", "no-store")], &[("set-cookie", "a=b")]];
    for headers in limits {
        let world = world();
        let (feeder, step) = fed(headers, Some(200 * KIB as u64));
        world.plan([ok(&[("cache-control", "max-age=1")], "old"), step]);
        world.get("/shipments").send().await;
        secs(2).await;
        feeder.send(Ok(bytes(100))).unwrap();
        let response = started(world.get("/shipments")).await;
        assert_eq!(status_of(&response), "seawall; fwd=stale; fwd-status=200");
        feeder.send(Ok(bytes(100))).unwrap();
        drop(feeder);
        assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(200));
        assert_eq!(world.cache.stats().entries, u64::from(headers[0].0 == "set-cookie"));
    }
    // Nor one to a request that does not want it kept.
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments").with("cache-control", "no-store")).await;
    assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; ttl=60");
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(100));
    assert_eq!(world.cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_the_caller_has_already_is_kept_without_being_sent() {
    let world = world();
    let (feeder, step) = fed(&[("etag", "\"a\""), ("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments").with("if-none-match", "\"a\"")).await;
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    assert!(response.into_body().collect(0).await.unwrap().is_empty());
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    no_fill(&world).await;
    assert_eq!(world.get("/shipments").send().await.body, bytes(100));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_see_a_cut_gets_an_answer_without_a_length_only_whole() {
    let world = world();
    let (feeder, step) = fed(&[], None);
    world.plan([step]);
    feeder.send(Ok(bytes(100))).unwrap();
    let mut request = world.get("/shipments").request();
    *request.version_mut() = http::Version::HTTP_10;
    let asking = tokio::spawn(world.service.clone().oneshot(request));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!asking.is_finished());
    feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
    assert!(matches!(asking.await.unwrap(), Err(ProxyError::Cut(_))));
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_fills() {
    let world = world();
    let (_feeder, step) = fed(&[], Some(100 * KIB as u64));
    world.plan([step, Step::After(Duration::from_secs(20), Box::new(ok(&[], "late")))]);
    let mut body = started(world.get("/shipments")).await.into_body();
    let left = tokio::spawn(world.service.clone().oneshot(world.get("/ports").request()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    assert_eq!(world.tasks.count(), 2);
    assert!(world.tasks.stop(Duration::from_secs(1)).await);
    assert!(matches!(next(&mut body).await, Some(Err(BodyError::Stopped))));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_reads_all_of_an_answer() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=60")], "old"), step]);
    world.get("/shipments").send().await;
    secs(2).await;
    assert_eq!(world.get("/shipments").send().await.body, "old");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.tasks.count(), 1);
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    no_fill(&world).await;
    assert_eq!(world.get("/shipments").send().await.body, bytes(100));
}

// === writes ===

#[tokio::test(start_paused = true)]
async fn a_settled_write_makes_path_and_tags_out_of_date() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "old");
    world.plan([fresh(), fresh(), fresh(), fresh()]);
    for target in ["/bookings/1?a=b", "/bookings?page=1", "/ports", "/bookings/2"] {
        world.get(target).send().await;
    }
    let other = identity(B, "b");
    world.plan([fresh()]);
    world.get("/bookings?page=1").by(other.clone()).send().await;
    world.settle("/bookings", &Method::POST, "/bookings");
    world.get("/ports").send().await.says("cache", "seawall; hit; ttl=600");
    world.get("/bookings?page=1").by(other).send().await.says("cache", "seawall; hit; ttl=600");
    world.plan([answer(503, &[], "no"), ok(&[("cache-control", "max-age=600")], "new")]);
    let got = world.get("/bookings?page=1").send().await;
    got.says("stale", "seawall; fwd=stale; fwd-status=503; ttl=-1; detail=invalidated");
    let got = world.get("/bookings?page=1").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=600");
    world.get("/bookings?page=1").send().await.says("cache", "seawall; hit; ttl=600");
}

#[tokio::test(start_paused = true)]
async fn a_fill_from_before_a_write_is_neither_joined_nor_kept() {
    let world = world();
    let slow = |body: &str, seconds| {
        Step::After(Duration::from_secs(seconds), Box::new(ok(&[("cache-control", "max-age=600")], body)))
    };
    world.plan([slow("before", 3), slow("after", 4)]);
    let spawn = || tokio::spawn(world.service.clone().oneshot(world.get("/bookings/1").request()));
    let first = spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.settle("/bookings/1", &Method::PATCH, "/bookings/1");
    let second = spawn();
    tokio::task::yield_now().await;
    let third = spawn();
    let first = first.await.unwrap().unwrap();
    assert_eq!(first.headers()["cache-status"], "seawall; fwd=uri-miss; fwd-status=200; ttl=597");
    assert_eq!(first.into_body().collect(10).await.unwrap(), "before");
    assert_eq!(world.cache.stats().entries, 0);
    for ask in [second, third] {
        assert_eq!(ask.await.unwrap().unwrap().into_body().collect(10).await.unwrap(), "after");
    }
    assert_eq!(world.asked(), 2);
    assert_eq!(world.get("/bookings/1").send().await.body, "after");
}

#[tokio::test(start_paused = true)]
async fn unsafe_requests_that_go_by_make_their_path_out_of_date() {
    for (method, step, asks_again) in [
        (Method::DELETE, answer(204, &[], ""), true),
        (Method::from_bytes(b"MERGE").unwrap(), ok(&[], ""), true),
        (Method::DELETE, answer(500, &[], ""), true),
        (Method::DELETE, answer(404, &[], ""), false),
        (Method::DELETE, breaker_open(), false),
        (Method::OPTIONS, answer(204, &[], ""), false),
        (Method::POST, answer(201, &[("location", "http://127.0.0.1:8460/shipments/1?x")], ""), true),
    ] {
        let world = world();
        world.plan([ok(&[("cache-control", "max-age=600")], "old"), ok(&[], "new")]);
        world.get("/shipments/1").send().await;
        world.script.inner_steps.lock().unwrap().push_back(step);
        let target = if method == Method::POST { "/elsewhere" } else { "/shipments/1" };
        let _ = world.ask(method.clone(), target).try_send().await;
        let body = world.get("/shipments/1").send().await.body;
        assert_eq!(body == "new", asks_again, "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_whose_caller_left_may_have_acted() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=600")], "old"), ok(&[], "new")]);
    world.get("/shipments/1").send().await;
    let slow = Step::After(Duration::from_secs(10), Box::new(answer(204, &[], "")));
    world.script.inner_steps.lock().unwrap().push_back(slow);
    let request = world.ask(Method::DELETE, "/shipments/1").request();
    let call = tokio::spawn(world.service.clone().oneshot(request));
    tokio::time::sleep(Duration::from_secs(1)).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(world.get("/shipments/1").send().await.body, "new");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_earlier_never_replaces_what_was_asked_for_later() {
    for step in [ok(&[], "older"), answer(304, &[("etag", "\"a\"")], ""), answer(404, &[], "")] {
        let world = world();
        world.plan([
            ok(&[("etag", "\"a\"")], "first"),
            Step::After(Duration::from_secs(3), Box::new(step)),
            ok(&[("etag", "\"b\"")], "newer"),
            breaker_open(),
        ]);
        world.get("/shipments").send().await;
        let slow = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let other = identity(A, "of the same partition");
        assert_eq!(world.get("/shipments").by(other).send().await.body, "newer");
        let slow = slow.await.unwrap().unwrap();
        assert!(!slow.headers()["cache-status"].to_str().unwrap().contains("stored"));
        let got = world.get("/shipments").send().await;
        assert_eq!((got.header("seawall-source"), &got.body[..]), ("stale", &b"newer"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn clearing_forgets_and_invalidating_keeps() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "x");
    world.plan([fresh(), breaker_open(), breaker_open()]);
    world.get("/shipments").send().await;
    world.cache.invalidate_all();
    let got = world.get("/shipments").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
    let purged = world.cache.purge(&Which::All, false, false).await.unwrap();
    assert_eq!(purged, Purged { memory: 1, disk: 0 });
    assert!(world.get("/shipments").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_last_success_is_too_long_ago_is_served_nothing_stale() {
    let window = crate::config::raw::Span(Duration::from_secs(3600));
    let world = world_with(|settings| settings.cache.stale_auth_window = window, |_| {});
    world.plan([ok(&[], "x"), breaker_open(), breaker_open(), ok(&[], "y"), breaker_open()]);
    world.get("/shipments").send().await;
    tokio::time::advance(Duration::from_secs(3590)).await;
    assert_eq!(world.get("/shipments").send().await.body, "x");
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(world.get("/shipments").try_send().await.is_err());
    world.get("/shipments").send().await;
    assert_eq!(world.get("/shipments").send().await.body, "y");
}

#[tokio::test(start_paused = true)]
async fn a_purge_takes_what_it_names_and_what_is_under_way() {
    let world = world();
    world.plan([ok(&[], "list"), ok(&[], "one"), ok(&[], "bookings")]);
    for path in ["/shipments?page=2", "/shipments/1", "/bookings"] {
        world.get(path).send().await;
    }
    let purge = async |which: Which, is_dry| world.cache.purge(&which, false, is_dry).await.unwrap().memory;
    assert_eq!(purge(Which::Prefix("/shipments".to_owned()), true).await, 2);
    assert_eq!(purge(Which::Path("/shipments".to_owned()), false).await, 1);
    assert_eq!(purge(Which::Tag("bookings".to_owned()), false).await, 1);
    world.plan([breaker_open(), breaker_open(), breaker_open()]);
    assert!(world.get("/shipments?page=2").try_send().await.is_err());
    assert!(world.get("/bookings").try_send().await.is_err());
    assert_eq!(world.get("/shipments/1").send().await.body, "one");

    let slow = Step::After(Duration::from_secs(1), Box::new(ok(&[], "late")));
    world.plan([slow, breaker_open()]);
    let asking = tokio::spawn(world.service.clone().oneshot(world.get("/bookings").request()));
    tokio::task::yield_now().await;
    assert_eq!(purge(Which::Tag("bookings".to_owned()), false).await, 0);
    assert_eq!(asking.await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(world.get("/bookings").try_send().await.is_err(), "what was under way is not kept");

    let soft = world.cache.purge(&Which::Path("/shipments/1".to_owned()), true, false).await.unwrap();
    assert_eq!(soft, Purged { memory: 1, disk: 0 });
    world.plan([breaker_open()]);
    let got = world.get("/shipments/1").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
}

// === the strict profile ===

#[tokio::test(start_paused = true)]
async fn strict_tells_variants_apart_by_vary() {
    let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
    let varied = [("cache-control", "public, max-age=60"), ("vary", "X-Kind, accept")];
    world.plan([ok(&varied, "a"), ok(&varied, "b"), ok(&varied, "none")]);
    let kind = |kind: &str| world.get("/anything").with("x-kind", kind).with("x-other", kind);
    for _ in 0..2 {
        assert_eq!(kind("a").send().await.body, "a");
        assert_eq!(kind("b").send().await.body, "b");
        assert_eq!(world.get("/anything").send().await.body, "none");
    }
    assert_eq!(world.script.seen.lock().unwrap()[1].headers["x-other"], "b");
    world.plan([ok(&varied, "c")]);
    kind("c").send().await.says("upstream", "seawall; fwd=vary-miss; fwd-status=200; stored; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn strict_is_a_shared_cache() {
    for (cache_control, is_kept) in
        [("max-age=9", false), ("private", false), ("public, max-age=9", true), ("s-maxage=9", true)]
    {
        let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
        world.plan([ok(&[("cache-control", cache_control)], "x")]);
        world.get("/anything").send().await;
        assert_eq!(world.cache.stats().entries, u64::from(is_kept), "{cache_control}");
    }
}

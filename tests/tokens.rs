//! A hundred thousand random tokens through the whole stack in one process: what is remembered of callers is bounded.
//!
//! A binary of its own, since its allocator counts every byte.

#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of test functions")]

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use seawall::breaker::Breakers;
use seawall::cache::Cache;
use seawall::clock::Clock;
use seawall::config::{Settings, Snapshot};
use seawall::context::{Settled, UpstreamRequest};
use seawall::error::ProxyError;
use seawall::event::Bus;
use seawall::front::{AuthLayer, ContextLayer, Identifier, LimitsLayer, TraceLayer};
use seawall::http::{Body, delivery};
use seawall::limit::LimitLayer;
use seawall::queue::{self, Queue};
use seawall::retry::RetryLayer;
use seawall::server::{Drain, LocalLayer};
use seawall::store::MemStore;
use seawall::task::Tasks;
use seawall::telemetry::Metrics;
use seawall::{context, stack};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tower::util::BoxCloneSyncService;
use tower::{Service, service_fn};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TOKENS: usize = 100_000;
const MOST: isize = 10 << 20;

type Front = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;
type Answer = Result<Response<Body>, ProxyError>;

/// Bytes that are allocated now.
fn held() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.cast_signed() - stats.bytes_deallocated.cast_signed()
}

struct World {
    front: Front,
    breakers: Arc<Breakers>,
    arrived: Arc<AtomicUsize>,
    tasks: Tasks,
}

// === impl World ===

impl World {
    /// The stack as the process has it, before an upstream that gives these answers one after the other.
    async fn new(answer: fn(usize) -> Answer) -> Self {
        let clock = Clock::system();
        let metrics = Metrics::new();
        let mut settings = Settings::default();
        settings.telemetry.access_log = false;
        let config = Arc::new(Snapshot::of(settings).unwrap());
        let settings = &config.settings;
        let groups = config.routes.groups();
        let bus = Bus::new(clock);
        let tasks = Tasks::new();
        let breakers = Breakers::new(
            &settings.breaker,
            settings.limiter.max,
            *settings.upstream.timeout,
            &groups,
            None,
            clock,
            &metrics,
            bus.clone(),
        );
        let arrived = Arc::new(AtomicUsize::new(0));
        let count = arrived.clone();
        let asked = breakers.clone();
        let upstream = stack::upstream(
            None,
            breakers.clone(),
            RetryLayer::new(Arc::new(move |call| asked.is_flowing(call)), &metrics),
            LimitLayer::new(&settings.limiter, &groups, clock, &metrics),
            service_fn(move |request| {
                let said = answer(count.fetch_add(1, Ordering::Relaxed));
                async move { attempt(request, said).await }
            }),
        );
        let late = Arc::new(OnceLock::new());
        let cache =
            Cache::new(settings, clock, &metrics, tasks.clone(), late.clone(), breakers.clone(), None);
        let current = config.clone();
        let queue = Queue::open(queue::Parts {
            store: Arc::new(MemStore::new()),
            config: Arc::new(move || current.clone()),
            upstream: upstream.clone(),
            settled: cache.clone() as Arc<dyn Settled>,
            changes: breakers.changes(),
            clock,
            metrics: metrics.clone(),
            bus,
            tasks: tasks.clone(),
            is_rolled_back: false,
        })
        .await
        .unwrap();
        assert!(late.set(queue.clone()).is_ok());
        let front = stack::front(
            ContextLayer::new(Arc::new(move || config.clone())),
            TraceLayer::new(metrics, &groups),
            LimitsLayer::new(Arc::new(AtomicBool::new(false))),
            AuthLayer::new(Arc::new(Identifier::new(&[7; 32]))),
            LocalLayer::new(Some(queue.clone()), breakers.clone(), cache.clone(), Drain::new()),
            cache,
            upstream.clone(),
            stack::writes(Some(queue.layer()), upstream),
        );
        Self { front, breakers, arrived, tasks }
    }

    /// One request with a token that nobody has seen before.
    async fn ask(&mut self, method: &Method, path: &str) {
        let token = format!("Bearer {:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
        let mut request = Request::new(Body::from(if *method == Method::GET { "" } else { "{}" }));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("seawall.test"));
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_str(&token).unwrap());
        let Ok(response) = self.front.call(request).await;
        response.into_body().collect(1 << 20).await.unwrap();
    }

    /// How much more is held after so many random tokens than before them.
    async fn growth(&mut self, what: fn(usize) -> (Method, String)) -> isize {
        // What is made once, for whoever comes first.
        for token in 0..2000 {
            let (method, path) = what(token);
            self.ask(&method, &path).await;
        }
        let before = held();
        for token in 0..TOKENS {
            let (method, path) = what(token);
            self.ask(&method, &path).await;
            if token.is_multiple_of(1000) {
                self.breakers.tick(tokio::time::Instant::now());
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        held() - before
    }
}

async fn attempt(request: UpstreamRequest, said: Answer) -> Answer {
    let mut call = request.call;
    if let Some(before_send) = call.before_send.take() {
        before_send().await?;
    }
    if let Some(slot) = &call.slot {
        slot.may_leave()?;
    }
    if let Some(observer) = call.observer.take() {
        observer.began();
        observer.ended(context::AttemptOutcome {
            delivery: delivery::of(said.as_ref().map(|answer| (answer.status(), answer.headers()))),
            head_after: Duration::from_millis(1),
            body: context::BodyEnd::Complete,
            retry_after: None,
        });
    }
    said
}

#[expect(clippy::unnecessary_wraps, reason = "it is what an upstream says")]
fn said(status: StatusCode) -> Answer {
    let body = r#"{"data":null,"error":{"message":"no"}}"#;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Runs in time that is simulated: nothing here waits for anything outside of the process.
fn grows(answer: fn(usize) -> Answer, what: fn(usize) -> (Method, String)) -> (isize, usize) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(answer).await;
        let growth = world.growth(what).await;
        let arrived = world.arrived.load(Ordering::Relaxed);
        world.tasks.stop(Duration::from_secs(1)).await;
        (growth, arrived)
    })
}

fn read(token: usize) -> (Method, String) {
    (Method::GET, format!("/shipments/{token}"))
}

fn read_or_write(token: usize) -> (Method, String) {
    match token % 3 {
        0 => read(token),
        1 => (Method::PATCH, format!("/shipments/{token}")),
        _ => (Method::POST, "/bookings".to_owned()),
    }
}

/// Limited, refused, ill: most of it is answered by Seawall itself.
fn everything(call: usize) -> Answer {
    match call % 8 {
        0 => {
            let mut said = said(StatusCode::TOO_MANY_REQUESTS)?;
            said.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(said)
        }
        1 => said(StatusCode::FORBIDDEN),
        2 => said(StatusCode::NOT_FOUND),
        3 => said(StatusCode::BAD_GATEWAY),
        4 => Err(ProxyError::Connect("nobody listens".into())),
        _ => said(StatusCode::UNAUTHORIZED),
    }
}

/// An answer that nobody may keep.
fn accepted(_: usize) -> Answer {
    let mut said = said(StatusCode::OK)?;
    said.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(said)
}

/// One test, since what others allocate at the same time would be counted too. Soak: tokens that are accepted, too.
#[test]
fn a_hundred_thousand_random_tokens_do_not_grow_memory_beyond_ten_mebibytes() {
    type Case = (&'static str, fn(usize) -> Answer, fn(usize) -> (Method, String), usize);
    let cases: [Case; 4] = [
        ("not accepted", |_| said(StatusCode::UNAUTHORIZED), read_or_write, TOKENS),
        ("forbidden", |_| said(StatusCode::FORBIDDEN), read, TOKENS),
        ("everything", everything, read, 100),
        ("accepted", accepted, read, TOKENS),
    ];
    let count = if std::env::var_os("SEAWALL_SOAK").is_some() { cases.len() } else { cases.len() - 1 };
    for (what, answer, asked, least) in &cases[..count] {
        let (growth, arrived) = grows(*answer, *asked);
        assert!(arrived >= *least, "{what}: only {arrived} came through");
        assert!(growth < MOST, "{what}: {growth} bytes more, after {arrived} attempts");
    }
}

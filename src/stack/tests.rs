//! Breaker and limiter together before an upstream of a few lines, in simulated time.

use super::*;
use crate::clock::Clock;
use crate::config::{Settings, Snapshot};
use crate::context::{Credential, Lane};
use crate::error::ProxyError;
use crate::event::Bus;
use crate::telemetry::Metrics;
use http::{Method, StatusCode, header};
use std::sync::Mutex;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

struct World {
    config: Arc<Snapshot>,
    breakers: Arc<Breakers>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// An upstream with a token bucket.
struct Bucket {
    tokens: f64,
    filled: Instant,
    /// When something arrived, and whether it was limited.
    arrived: Vec<(Instant, bool)>,
}

const QUOTA: f64 = 40.0;
const MS: Duration = Duration::from_millis(1);

// === impl World ===

impl World {
    fn new() -> Self {
        let clock = Clock::anchored("2026-01-02T03:04:05Z".parse().unwrap());
        let metrics = Metrics::new();
        let config = Arc::new(Snapshot::of(Settings::default()).unwrap());
        let groups = config.routes.groups();
        let breakers = Breakers::new(
            &config.settings.breaker,
            config.settings.limiter.max,
            *config.settings.upstream.timeout,
            &groups,
            None,
            clock,
            &metrics,
            Bus::new(clock),
        );
        Self { config, breakers, metrics, clock }
    }

    fn stack<F, A>(&self, answer: A) -> Upstream
    where
        A: Fn(UpstreamRequest) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, ProxyError>> + Send + 'static,
    {
        let limit = LimitLayer::new(
            &self.config.settings.limiter,
            &self.config.routes.groups(),
            self.clock,
            &self.metrics,
        );
        Upstream::new(
            ServiceBuilder::new()
                .layer(breaker::Layer::new(self.breakers.clone()))
                .layer(limit)
                .service(tower::service_fn(answer)),
        )
    }

    fn call(&self, method: &Method, path: &str, lane: Lane) -> UpstreamRequest {
        let is_read = crate::context::is_safe(method);
        let call = Call {
            lane,
            route: self.config.routes.find(method, path).clone(),
            is_read,
            config: self.config.clone(),
            credential: Credential::Passed("Bearer one".parse().unwrap()),
            deadline: Instant::now() + Duration::from_secs(60),
            is_hurried: false,
            whole_until: None,
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: false,
        };
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().unwrap();
        UpstreamRequest { request, call }
    }
}

/// What the attempt does with what it is given: the slot is asked, the observer told.
async fn attempt<F>(request: UpstreamRequest, answer: F) -> Result<Response<Body>, ProxyError>
where
    F: Future<Output = StatusCode>,
{
    let mut call = request.call;
    if let Some(slot) = &call.slot {
        slot.may_leave()?;
    }
    let observer = call.observer.take();
    if let Some(observer) = &observer {
        observer.began();
    }
    let started = Instant::now();
    let status = answer.await;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("7"));
    }
    if let Some(observer) = observer {
        observer.ended(crate::context::AttemptOutcome {
            delivery: crate::http::delivery::of(Ok((response.status(), response.headers()))),
            head_after: started.elapsed(),
            body: crate::context::BodyEnd::Complete,
            retry_after: None,
        });
    }
    Ok(response)
}

// === impl Bucket ===

impl Bucket {
    fn take(&mut self) -> StatusCode {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * QUOTA).min(QUOTA);
        self.filled = now;
        let is_limited = self.tokens < 1.0;
        self.arrived.push((now, is_limited));
        if is_limited {
            return StatusCode::TOO_MANY_REQUESTS;
        }
        self.tokens -= 1.0;
        StatusCode::OK
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_storm_stays_outside_the_gates_and_uses_the_quota() {
    fastrand::seed(7);
    let world = World::new();
    let bucket = Arc::new(Mutex::new(Bucket { tokens: QUOTA, filled: Instant::now(), arrived: Vec::new() }));
    let upstream = world.stack({
        let bucket = bucket.clone();
        move |request| {
            let bucket = bucket.clone();
            // It answers after a tenth of a second; the quota is asked in the beginning.
            attempt(request, async move {
                let status = bucket.lock().unwrap().take();
                sleep(100 * MS).await;
                status
            })
        }
    });
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for call in 0..60 * 300_u32 {
        sleep_until(began + Duration::from_secs(1) * call / 60).await;
        let mut upstream = upstream.clone();
        let request = world.call(&Method::GET, "/shipments", Lane::LiveRead);
        callers.spawn(async move { upstream.call(request).await.map(|response| response.status()) });
    }
    while callers.join_next().await.is_some() {}

    let arrived = std::mem::take(&mut bucket.lock().unwrap().arrived);
    let limited = arrived.iter().filter(|(_, is_limited)| *is_limited).count();
    assert!(limited > 5, "it was a storm: {limited}");
    assert!(limited * 20 < arrived.len(), "below 5 %: {limited} of {}", arrived.len());

    // A gate begins when the first 429 of it is known, and lasts 7 s at least.
    let mut shut: Option<(Instant, Instant)> = None;
    let mut shut_for = Duration::ZERO;
    let mut first_seconds = Vec::new();
    for (at, is_limited) in &arrived {
        if let Some((from, until)) = shut {
            assert!(*at < from || *at >= until, "an attempt left inside a gate: {:?}", *at - began);
            if *at >= until {
                shut_for += *at - from;
                shut = None;
                first_seconds.push(*at);
            }
        }
        if *is_limited && shut.is_none() {
            shut = Some((*at + 101 * MS, *at + 100 * MS + Duration::from_secs(7)));
        }
    }
    for opened in first_seconds {
        let together = arrived.iter().filter(|(at, _)| *at >= opened && *at < opened + 50 * MS).count();
        assert!(together <= 5, "waiters woke together: {together}");
    }
    let open_for = Duration::from_secs(300).saturating_sub(shut_for);
    let goodput = f64::from(u32::try_from(arrived.len() - limited).unwrap()) / open_for.as_secs_f64();
    assert!(goodput >= 0.9 * QUOTA, "goodput {goodput:.1}/s in {open_for:?}");
    let state = world.breakers.get("shipments:read").unwrap().state;
    assert_eq!(state, crate::breaker::State::Closed, "429 says nothing of health");
}

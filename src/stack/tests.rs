//! Breaker, retry and limiter together, in the order of the stack, before an upstream of a few lines, in simulated
//! time.

use super::*;
use crate::clock::Clock;
use crate::config::{Settings, Snapshot};
use crate::context::{AttemptOutcome, BodyEnd, Credential, Lane};
use crate::event::Bus;
use crate::http::delivery;
use crate::telemetry::Metrics;
use http::{HeaderValue, Method, StatusCode, header};
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

mod amplification;
mod fuzz;
mod recovery;
mod storm;

struct World {
    config: Arc<Snapshot>,
    breakers: Arc<Breakers>,
    metrics: Arc<Metrics>,
    clock: Clock,
    bus: Bus,
}

/// What an upstream says to one attempt.
type Said = Result<Response<Body>, ProxyError>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

// === impl World ===

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let clock = Clock::anchored("2026-01-02T03:04:05Z".parse().unwrap());
        let metrics = Metrics::new();
        let config = Arc::new(Snapshot::of(settings).unwrap());
        let groups = config.routes.groups();
        let bus = Bus::new(clock);
        let breakers = Breakers::new(
            &config.settings.breaker,
            config.settings.limiter.max,
            *config.settings.upstream.timeout,
            &groups,
            None,
            clock,
            &metrics,
            bus.clone(),
        );
        Self { config, breakers, metrics, clock, bus }
    }

    /// Lets the breakers look at the time as the process does.
    fn tick(&self) {
        let breakers = self.breakers.clone();
        tokio::spawn(async move {
            loop {
                sleep(250 * MS).await;
                breakers.tick(Instant::now());
            }
        });
    }

    fn stack<F, A>(&self, answer: A) -> Upstream
    where
        A: Fn(UpstreamRequest) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Said> + Send + 'static,
    {
        let groups = self.config.routes.groups();
        let limit = LimitLayer::new(&self.config.settings.limiter, &groups, self.clock, &self.metrics);
        let asked = self.breakers.clone();
        let retry = RetryLayer::new(Arc::new(move |call| asked.is_flowing(call)), &self.metrics);
        upstream(None, self.breakers.clone(), retry, limit, tower::service_fn(answer))
    }

    fn call(&self, method: &Method, target: &str, lane: Lane) -> UpstreamRequest {
        let is_read = crate::context::is_safe(method);
        let route = self.config.routes.find(method, target.split('?').next().unwrap()).clone();
        let call = Call {
            lane,
            deadline: Instant::now() + route.timeout,
            route,
            is_read,
            config: self.config.clone(),
            credential: Credential::Passed("Bearer one".parse().unwrap()),
            is_hurried: false,
            whole_until: None,
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: false,
        };
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.parse().unwrap();
        UpstreamRequest { request, call }
    }
}

/// What the attempt does with what it is given: the durable step, the slot that is asked, the observer that is told,
/// the limit of time.
async fn attempt(request: UpstreamRequest, answer: impl Future<Output = Said>) -> Said {
    let mut call = request.call;
    if let Some(before_send) = call.before_send.take() {
        before_send().await?;
    }
    if let Some(slot) = &call.slot {
        slot.may_leave()?;
    }
    let started = Instant::now();
    if call.deadline <= started {
        return Err(ProxyError::DeadlineBeforeSending);
    }
    let observer = call.observer.take();
    if let Some(observer) = &observer {
        observer.began();
    }
    let until = call.deadline.min(started + *call.config.settings.upstream.timeout);
    let said = tokio::time::timeout_at(until, answer).await.unwrap_or(Err(ProxyError::HeadTimeout));
    if let Some(observer) = observer {
        observer.ended(AttemptOutcome {
            delivery: delivery_of(&said),
            head_after: started.elapsed(),
            body: BodyEnd::Complete,
            retry_after: None,
        });
    }
    said
}

fn delivery_of(said: &Said) -> delivery::Delivery {
    delivery::of(said.as_ref().map(|response| (response.status(), response.headers())))
}

/// An answer; 429 tells to wait for seven seconds.
#[expect(clippy::unnecessary_wraps, reason = "it is what an upstream says")]
fn said(status: StatusCode) -> Said {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("7"));
    }
    Ok(response)
}

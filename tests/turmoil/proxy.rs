//! Seawall as a host of the simulated network: the whole stack as `app.rs` joins it, over turmoil's TCP and a store in
//! memory that outlives its crashes. What it sends is seen here, attempt by attempt.

use crate::world::World;
use bytes::Bytes;
use http::{Request, Response};
use seawall::breaker::{Breakers, State};
use seawall::cache::Cache;
use seawall::clock::Clock;
use seawall::config::raw::Protocol;
use seawall::config::{Settings, Snapshot};
use seawall::context::{
    AttemptObserver, AttemptOutcome, BodyEnd, BoxFuture, Credential, Settled, UpstreamRequest,
};
use seawall::error::ProxyError;
use seawall::event::Bus;
use seawall::flexport::links::Bases;
use seawall::front::{AuthLayer, ContextLayer, Identifier, LimitsLayer, TraceLayer};
use seawall::http::Body;
use seawall::http::delivery::{Class, Delivery, Refusal};
use seawall::limit::LimitLayer;
use seawall::queue::{self, Queue};
use seawall::retry::RetryLayer;
use seawall::server::{Drain, LocalLayer};
use seawall::stack;
use seawall::task::Tasks;
use seawall::telemetry::Metrics;
use seawall::upstream::{self, Attempt, Client, Dial, Wire};
use serde_json::Value;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::Service;
use tower::util::BoxCloneSyncService;

/// What callers call.
pub(crate) type Front = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A running Seawall.
pub(crate) struct Proxy {
    pub(crate) front: Front,
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) bus: Bus,
}

/// What is known of what was sent; outlives a crash.
#[derive(Default)]
pub(crate) struct Witness(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// By the write's name: whether it must not be sent again, and why.
    closed: HashMap<String, &'static str>,
    /// Attempts in flight by the order of the write.
    orders: HashMap<String, u32>,
    /// Attempts without a head by half-open scope and the moment since which it is that.
    probes: HashMap<(String, jiff::Timestamp), u32>,
}

/// Turmoil's TCP.
struct Turmoil(Arc<World>);

/// Sees each attempt.
#[derive(Clone)]
struct Watched {
    inner: Attempt,
    world: Arc<World>,
    breakers: Arc<Breakers>,
}

/// Sees one attempt.
struct Observer {
    inner: Arc<dyn AttemptObserver>,
    world: Arc<World>,
    breakers: Arc<Breakers>,
    scope: String,
    write: Option<Write>,
    flight: Mutex<Flight>,
}

/// What a write's body tells of it.
#[derive(Clone)]
struct Write {
    name: String,
    order: Option<String>,
    creates: bool,
}

#[derive(Default)]
struct Flight {
    is_under_way: bool,
    probe: Option<(String, jiff::Timestamp)>,
}

struct Probes {
    config: Arc<Snapshot>,
    breakers: Arc<Breakers>,
    queue: Arc<Queue>,
}

/// What the wall clock shows when a run begins.
const BEGINNING: &str = "2026-01-02T03:04:05Z";
/// The scopes that callers call.
const SCOPES: [&str; 5] = ["global", "shipments:read", "shipments:write", "bookings:read", "bookings:write"];
const TICK: Duration = Duration::from_millis(250);

/// The settings of a run: the defaults, but for what makes it needlessly long.
pub(crate) fn settings(is_h2: bool) -> Settings {
    let mut settings = Settings::default();
    settings.upstream.base_url = format!("http://{}", World::UPSTREAM);
    settings.upstream.protocol = if is_h2 { Protocol::H2 } else { Protocol::H1 };
    settings.queue.backoff_max = "30s".parse().unwrap();
    settings.cache.disk = false;
    settings
}

// === impl Proxy ===

impl Proxy {
    /// Starts on what the store has kept.
    pub(crate) async fn start(world: &Arc<World>) -> Self {
        let beginning: jiff::Timestamp = BEGINNING.parse().unwrap();
        let clock = Clock::anchored(beginning + turmoil::sim_elapsed().unwrap());
        let config = Arc::new(Snapshot::of(settings(world.is_h2)).unwrap());
        let settings = &config.settings;
        let groups = config.routes.groups();
        let metrics = Metrics::new();
        let bus = Bus::new(clock);
        let tasks = Tasks::new();
        let current = config.clone();
        let source: upstream::Source = Arc::new(move || current.clone());
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
        let client = Client::over(Arc::new(Turmoil(world.clone())), source.clone(), &metrics).unwrap();
        let base = settings.upstream.base_url.parse().unwrap();
        let attempt = Watched {
            inner: Attempt::new(client, &base, &groups, clock, metrics.clone()).unwrap(),
            world: world.clone(),
            breakers: breakers.clone(),
        };
        let bases = Bases::new(&settings.upstream.base_url, &[], &config.public_url);
        let asked = breakers.clone();
        let upstream = stack::upstream(
            Some(Arc::new(bases)),
            breakers.clone(),
            RetryLayer::new(Arc::new(move |call| asked.is_flowing(call)), &metrics),
            LimitLayer::new(&settings.limiter, &groups, clock, &metrics),
            attempt,
        );
        let late = Arc::new(OnceLock::new());
        let cache =
            Cache::new(settings, clock, &metrics, tasks.clone(), late.clone(), breakers.clone(), None);
        // Power went, or it is the first start: what was not answered is lost.
        let store = {
            let mut store = world.store.lock().unwrap();
            *store = store.crash();
            store.clone()
        };
        breakers.hold_replayed_creates();
        let queue = Queue::open(queue::Parts {
            store: Arc::new(store),
            config: source.clone(),
            upstream: upstream.clone(),
            settled: cache.clone() as Arc<dyn Settled>,
            changes: breakers.changes(),
            clock,
            metrics: metrics.clone(),
            bus: bus.clone(),
            tasks: tasks.clone(),
            is_rolled_back: false,
        })
        .await
        .unwrap();
        breakers.release_replayed_creates(&queue.waiting_creates());
        let _ = late.set(queue.clone());
        let front = stack::front(
            ContextLayer::new(source),
            TraceLayer::new(metrics.clone(), &groups),
            LimitsLayer::new(Arc::new(AtomicBool::new(false))),
            AuthLayer::new(Arc::new(Identifier::new(&[7; 32]))),
            LocalLayer::new(Some(queue.clone()), breakers.clone(), cache.clone(), Drain::new()),
            cache,
            upstream.clone(),
            stack::writes(Some(queue.layer()), upstream.clone()),
        );
        let ticking = breakers.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.tick(Instant::now());
            }
        });
        let target = Probes { config, breakers: breakers.clone(), queue: queue.clone() };
        tokio::spawn(upstream::run_probes(Arc::new(target), upstream, tasks.cancelled()));
        Self { front, breakers, queue, metrics, bus }
    }

    /// The scopes that are not closed, with why.
    pub(crate) fn not_closed(&self) -> Vec<String> {
        let scopes = self.breakers.list().into_iter().filter(|status| status.state != State::Closed);
        scopes.map(|status| format!("{} {:?}: {}", status.scope, status.state, status.why)).collect()
    }

    /// No scope may count more probes than may be.
    pub(crate) fn holds_probes_to_their_number(&self, world: &World) {
        for scope in SCOPES {
            let status = self.breakers.get(scope).expect("there is one for each group");
            let most = most_probes(&status.scope);
            if status.probes.in_flight > most {
                world.wrong(format!("{}: {} probes are counted", status.scope, status.probes.in_flight));
            }
        }
    }
}

fn most_probes(scope: &str) -> u32 {
    if scope.ends_with(":write") { 1 } else { 3 }
}

// === impl Turmoil ===

impl Dial for Turmoil {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<io::Result<Box<dyn Wire>>> {
        let (world, host) = (self.0.clone(), host.to_owned());
        Box::pin(async move {
            match turmoil::net::TcpStream::connect((host.as_str(), port)).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Wire>),
                // A SYN that is lost looks to turmoil as if it were refused; in the dark nobody says anything.
                Err(_) if world.is_dark.load(Ordering::Relaxed) => std::future::pending().await,
                Err(error) => Err(error),
            }
        })
    }
}

// === impl Watched ===

impl Service<UpstreamRequest> for Watched {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = BoxFuture<Result<Response<Body>, ProxyError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        let call = &mut request.call;
        let kind = if call.is_read { "read" } else { "write" };
        let write = (!call.is_read)
            .then(|| Write::of(&request.request.body().as_bytes().expect("a write is in memory")));
        let inner = call.observer.take().expect("the breaker sets one");
        call.observer = Some(Arc::new(Observer {
            inner,
            world: self.world.clone(),
            breakers: self.breakers.clone(),
            scope: format!("{}:{kind}", call.route.group),
            write,
            flight: Mutex::default(),
        }));
        self.inner.call(request)
    }
}

// === impl Write ===

impl Write {
    fn of(body: &Bytes) -> Self {
        let body: Value = serde_json::from_slice(body).expect("it is what a caller sent");
        Self {
            name: body["name"].as_str().expect("each has one").to_owned(),
            order: body["order"].as_str().map(str::to_owned),
            creates: body["creates"] == true,
        }
    }
}

// === impl Observer ===

impl Observer {
    /// The head is there, or there will be none: it is no probe any more.
    fn judged(&self, flight: &mut Flight) {
        if let Some(probe) = flight.probe.take() {
            *self.world.witness.0.lock().unwrap().probes.get_mut(&probe).unwrap() -= 1;
        }
    }

    fn closes(&self, why: &'static str) {
        if let Some(write) = &self.write {
            self.world.witness.0.lock().unwrap().closed.insert(write.name.clone(), why);
        }
    }

    fn over(&self, outcome: Option<AttemptOutcome>) {
        let mut flight = self.flight.lock().unwrap();
        self.judged(&mut flight);
        if !std::mem::take(&mut flight.is_under_way) {
            return;
        }
        let Some(write) = &self.write else { return };
        if let Some(order) = &write.order {
            *self.world.witness.0.lock().unwrap().orders.get_mut(order).unwrap() -= 1;
        }
        match outcome.map(|outcome| (outcome.delivery, outcome.body)) {
            // That it did nothing is what Flexport says, or what we know.
            Some((
                Delivery::NotSent(_)
                | Delivery::Refused(Refusal::TooManyRequests)
                | Delivery::Answered(Class::RequestTimeout | Class::TryAgain),
                _,
            )) => {}
            Some((Delivery::Answered(Class::Success), BodyEnd::Complete)) => self.closes("it was done"),
            _ if write.creates => self.closes("it may have been done"),
            _ => {}
        }
    }
}

impl AttemptObserver for Observer {
    fn began_at(&self, at: Instant) {
        let mut flight = self.flight.lock().unwrap();
        if !std::mem::replace(&mut flight.is_under_way, true) {
            let mut seen = self.world.witness.0.lock().unwrap();
            if let Some(write) = &self.write {
                if let Some(why) = seen.closed.get(&write.name) {
                    self.world.wrong(format!("{} is sent again, though {why}", write.name));
                }
                if let Some(order) = &write.order {
                    let count = seen.orders.entry(order.clone()).or_default();
                    *count += 1;
                    if *count > 1 {
                        self.world.wrong(format!("{order}: {count} writes in flight"));
                    }
                }
            }
            let status = self.breakers.get(&self.scope).expect("there is one for each group");
            if status.state == State::HalfOpen {
                let probe = (self.scope.clone(), status.since);
                let count = seen.probes.entry(probe.clone()).or_default();
                *count += 1;
                if *count > most_probes(&self.scope) {
                    self.world.wrong(format!("{}: {count} attempts while half-open", self.scope));
                }
                flight.probe = Some(probe);
            }
        }
        drop(flight);
        self.inner.began_at(at);
    }

    fn answered(&self, delivery: Delivery, head_after: Duration) {
        self.judged(&mut self.flight.lock().unwrap());
        self.inner.answered(delivery, head_after);
    }

    fn may_go_on(&self) -> Result<(), ProxyError> {
        self.inner.may_go_on()
    }

    fn ended(&self, outcome: AttemptOutcome) {
        self.over(Some(outcome));
        self.inner.ended(outcome);
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // The process died with it in flight.
        self.over(None);
    }
}

// === impl Probes ===

impl upstream::Target for Probes {
    fn config(&self) -> Arc<Snapshot> {
        self.config.clone()
    }

    fn needs_probe(&self, group: &str) -> bool {
        self.breakers.needs_probe(group)
    }

    fn credential(&self, group: &'static str) -> BoxFuture<Credential> {
        let queue = self.queue.clone();
        Box::pin(async move { queue.oldest_credential(group).await.unwrap_or(Credential::None) })
    }
}

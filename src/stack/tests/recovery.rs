//! After an outage: what waited in the queue goes out beside the live traffic, into an upstream that has little room.

use super::*;
use crate::context::{Identity, Settled, SettledWrite};
use crate::event::Kind;
use crate::flexport::problem::Asked;
use crate::http::Present;
use crate::ids::{OwnerId, PartitionId};
use crate::queue::{self, Queue};
use crate::store::MemStore;
use crate::task::Tasks;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// An upstream that works on twelve requests at once, each for 200 ms: sixty a second. What comes on top waits.
struct Workers {
    outage: fn() -> Said,
    is_down: AtomicBool,
    free: Semaphore,
    replays: Mutex<Replays>,
}

/// What was seen of the replayer.
#[derive(Default)]
struct Replays {
    in_flight: i64,
    most: i64,
    /// How often there were more than their share of the limit.
    too_many: u32,
    done: usize,
}

/// What became of a live call.
#[derive(Clone, Copy)]
struct Lived {
    began: Instant,
    took: Duration,
    is_answered: bool,
}

struct Nobody;

const WORK: Duration = Duration::from_millis(200);
const WORKERS: usize = 12;
const LIVE_PER_SECOND: f64 = 50.0;

impl Settled for Nobody {
    fn settled(&self, _: &SettledWrite) {}
}

// === impl Workers ===

impl Workers {
    async fn answer(&self, is_replay: bool, limit: i64) -> Said {
        if self.is_down.load(Ordering::Relaxed) {
            return (self.outage)();
        }
        if is_replay {
            let mut replays = self.replays.lock().unwrap();
            replays.in_flight += 1;
            replays.most = replays.most.max(replays.in_flight);
            replays.too_many += u32::from(replays.in_flight > (limit * 30 / 100).max(1));
        }
        let worker = self.free.acquire().await.unwrap();
        sleep(WORK).await;
        drop(worker);
        if is_replay {
            let mut replays = self.replays.lock().unwrap();
            replays.in_flight -= 1;
            replays.done += 1;
        }
        said(StatusCode::OK)
    }
}

fn request(world: &World, method: &Method, target: &str, body: &str) -> Request<Body> {
    let route = world.config.routes.find(method, target).clone();
    let context = RequestContext {
        config: world.config.clone(),
        request_id: HeaderValue::from_static("r-1"),
        traceparent: HeaderValue::from_static("00-0-0-00"),
        peer: ([127, 0, 0, 1], 1).into(),
        arrived: Instant::now(),
        deadline: Instant::now() + route.timeout,
        route,
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
            credential: Credential::Alias("main".into()),
            partition: Some(PartitionId([1; 16])),
            owner: Some(OwnerId([2; 16])),
        }),
    };
    let mut request = Request::new(Body::from(body.to_owned()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = target.parse().unwrap();
    request.extensions_mut().insert(Arc::new(context));
    request
}

/// Live calls at random moments, 50 a second, four reads for each write, while `goes_on`.
async fn live(world: &World, app: &Inner, first: u32, goes_on: impl Fn() -> bool) -> Vec<Lived> {
    let mut callers = JoinSet::new();
    let mut at = Instant::now();
    let mut call = first;
    while goes_on() {
        at += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / LIVE_PER_SECOND);
        sleep_until(at).await;
        call += 1;
        let request = if call.is_multiple_of(5) {
            request(world, &Method::PATCH, &format!("/shipments/live-{call}"), "{}")
        } else {
            request(world, &Method::GET, "/shipments", "")
        };
        let mut app = app.clone();
        callers.spawn(async move {
            let began = Instant::now();
            let is_answered =
                app.call(request).await.is_ok_and(|response| response.status() == StatusCode::OK);
            Lived { began, took: began.elapsed(), is_answered }
        });
    }
    callers.join_all().await
}

fn p99(lived: &[Lived]) -> Duration {
    let mut times: Vec<_> = lived.iter().filter(|lived| lived.is_answered).map(|lived| lived.took).collect();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// What a recovery was like.
struct Recovery {
    normal: Duration,
    /// From the first answered live call on.
    beside: Vec<Lived>,
    took: Duration,
    replays: Replays,
    transitions: Vec<String>,
}

/// Live traffic; then an outage in which `queued` writes are accepted; then live traffic again until they are through.
async fn recovery(settings: Settings, outage: fn() -> Said, queued: usize) -> Recovery {
    fastrand::seed(5);
    let world = World::with(settings);
    world.tick();
    let workers = Arc::new(Workers {
        outage,
        is_down: AtomicBool::new(false),
        free: Semaphore::new(WORKERS),
        replays: Mutex::default(),
    });
    let upstream = world.stack({
        let (workers, metrics) = (workers.clone(), world.metrics.clone());
        move |request| {
            let (workers, limit) = (workers.clone(), metrics.limiter_limit.get());
            let is_replay = request.call.lane == Lane::Replay;
            attempt(request, async move { workers.answer(is_replay, limit).await })
        }
    });
    let config = world.config.clone();
    let tasks = Tasks::new();
    let queue = Queue::open(queue::Parts {
        store: Arc::new(MemStore::new()),
        config: Arc::new(move || config.clone()),
        upstream: upstream.clone(),
        settled: Arc::new(Nobody),
        changes: world.breakers.changes(),
        clock: world.clock,
        metrics: world.metrics.clone(),
        // Its own, so that the breakers' events are not lost among those of ten thousand writes.
        bus: Bus::new(world.clock),
        tasks: tasks.clone(),
        is_rolled_back: false,
    })
    .await
    .unwrap();
    let app = writes(Some(queue.layer()), upstream);

    let began = Instant::now();
    let normal = live(&world, &app, 0, || began.elapsed() < 120 * SECOND).await;
    assert!(normal.iter().all(|lived| lived.is_answered));

    workers.is_down.store(true, Ordering::Relaxed);
    for write in 0..queued {
        sleep(5 * MS).await;
        let mut app = app.clone();
        let write = request(&world, &Method::PATCH, &format!("/shipments/{write}"), "{}");
        let read = request(&world, &Method::GET, "/shipments", "");
        tokio::spawn(async move {
            assert_eq!(app.call(write).await.unwrap().status(), StatusCode::ACCEPTED);
            let _ = app.call(read).await;
        });
    }
    sleep(SECOND).await;
    assert!(queue.stats().unsettled >= queued);

    workers.is_down.store(false, Ordering::Relaxed);
    let healed = Instant::now();
    let mut events = world.bus.watch();
    let looked = Cell::new(healed);
    let is_over = || {
        // Once a second, since it takes a look at each write.
        if looked.get().elapsed() < SECOND {
            return false;
        }
        looked.set(Instant::now());
        let stats = queue.stats();
        let is_through = stats.unsettled <= stats.live && stats.replaying == 0;
        is_through || healed.elapsed() > 3600 * SECOND
    };
    let mut beside = live(&world, &app, 1_000_000, || !is_over()).await;
    let took = healed.elapsed();
    sleep(SECOND).await;
    assert_eq!(queue.stats().unsettled, 0, "all of them are through");
    let first = beside.iter().filter(|lived| lived.is_answered).map(|lived| lived.began).min().unwrap();
    beside.retain(|lived| lived.began >= first);
    beside.sort_unstable_by_key(|lived| lived.began);
    let mut transitions = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Kind::Breaker { scope, from, to, reason } = event.kind {
            transitions.push(format!("{scope} {from} -> {to}: {reason}"));
        }
    }
    tasks.stop(SECOND).await;
    let replays = std::mem::take(&mut *workers.replays.lock().unwrap());
    Recovery { normal: p99(&normal), beside, took, replays, transitions }
}

// === impl Recovery ===

impl Recovery {
    fn keeps_the_share_and_opens_nothing(&self) {
        assert_eq!(self.replays.too_many, 0, "more than 30 % of the limit: {} at once", self.replays.most);
        assert!(self.replays.most > 1, "the share is used: {}", self.replays.most);
        let is_reopened = self.transitions.iter().any(|line| line.contains("-> open"));
        assert!(!is_reopened, "{:#?}", self.transitions);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_queued_writes_drain_beside_live_traffic_without_harming_it_or_opening_a_breaker_again()
{
    let outage = || Err(ProxyError::Connect("nobody listens".into()));
    let recovery = recovery(Settings::default(), outage, 10_000).await;
    recovery.keeps_the_share_and_opens_nothing();
    let slowest = p99(&recovery.beside);
    assert!(slowest <= 2 * recovery.normal, "p99 {slowest:?}, {:?} before", recovery.normal);
    // While a few probe, the others are told to come again.
    let refused = recovery.beside.iter().filter(|lived| !lived.is_answered).count();
    assert!(refused * 500 < recovery.beside.len(), "{refused} of {} refused", recovery.beside.len());
    // Ten a second are left for what waits.
    assert!(recovery.took < 1300 * SECOND, "{:?}", recovery.took);
}

#[tokio::test(start_paused = true)]
async fn a_replayer_that_wants_more_than_its_share_of_a_small_limit_does_not_get_it_nor_opens_what_had_been_open()
 {
    let mut settings = Settings::default();
    settings.queue.max_parallel = 64;
    settings.limiter.max = 16;
    let recovery = recovery(settings, || said(StatusCode::BAD_GATEWAY), 1_000).await;
    recovery.keeps_the_share_and_opens_nothing();
    // With so few calls at once the ramp begins with two: who has no room waits or is told so, for half a minute.
    let first = recovery.beside[0].began;
    let late = recovery.beside.iter().filter(|lived| lived.began > first + 60 * SECOND);
    assert!(late.clone().count() > 100 && late.clone().all(|lived| lived.is_answered));
}

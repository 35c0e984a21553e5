//! Random faults of Flexport, of the disk and of the process, with one law: what was acknowledged takes effect once
//! and in order, or its ticket says that it may not have; what creates never takes effect twice.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// What Flexport holds, over all restarts.
#[derive(Default)]
struct Flexport {
    /// Bodies of creates, each time it took effect.
    created: Mutex<Vec<String>>,
    /// Values that were set, by path, in order.
    set: Mutex<BTreeMap<String, Vec<u64>>>,
}

/// One life of the process: its faults, and whether it still lives.
struct Life {
    flexport: Arc<Flexport>,
    random: Mutex<fastrand::Rng>,
    well: Mutex<bool>,
    dead: Mutex<bool>,
}

impl Settled for Life {
    fn settled(&self, _: &SettledWrite) {}
}

impl Life {
    fn upstream(self: &Arc<Self>) -> Upstream {
        let life = self.clone();
        Upstream::new(tower::service_fn(move |request| {
            let life = life.clone();
            async move { life.call(request).await }
        }))
    }

    async fn call(&self, call: UpstreamRequest) -> Result<Response<Body>, ProxyError> {
        let dice = if *self.well.lock().unwrap() { 99 } else { self.random.lock().unwrap().u32(0..100) };
        match dice {
            0..15 => return Err(open()),
            15..20 => return Err(ProxyError::Connect("refused".to_owned())),
            _ => {}
        }
        let UpstreamRequest { request, mut call } = call;
        if let Some(before) = call.before_send.take() {
            before().await?;
        }
        if (20..23).contains(&dice) {
            return Err(ProxyError::Unsent("a dead connection".to_owned()));
        }
        let (parts, body) = request.into_parts();
        let body = body.collect(1 << 20).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if *self.dead.lock().unwrap() {
            return Err(ProxyError::Cut("the process is dead".to_owned()));
        }
        let limited = || {
            let mut response = Response::new(Body::from("slow down"));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert("retry-after", 3.into());
            response
        };
        match dice {
            23..28 => return Ok(limited()),
            28..33 => return Err(ProxyError::HeadTimeout),
            _ => {}
        }
        let text = String::from_utf8(body.to_vec()).unwrap();
        let path = parts.uri.path().to_owned();
        if parts.method == Method::PATCH {
            let value = text.parse().unwrap();
            self.flexport.set.lock().unwrap().entry(path).or_default().push(value);
        } else {
            self.flexport.created.lock().unwrap().push(text);
        }
        match dice {
            33..38 => Err(ProxyError::HeadTimeout),
            38..42 => Err(ProxyError::Cut("reset".to_owned())),
            42..45 => {
                let mut response = Response::new(Body::from("lies"));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                Ok(response)
            }
            45..47 => panic!("a bug"),
            _ => Ok(Response::new(Body::from("{}"))),
        }
    }
}

struct Soak {
    rig: Rig,
    life: Arc<Life>,
}

impl Soak {
    async fn begin(store: MemStore, flexport: Arc<Flexport>, clock: Clock, seed: u64) -> Self {
        let life = Arc::new(Life {
            flexport,
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            well: Mutex::default(),
            dead: Mutex::default(),
        });
        let current = Arc::new(Mutex::new(snapshot(Settings::default(), 1)));
        let (changes, receiver) = watch::channel(0);
        let tasks = Tasks::new();
        let config = current.clone();
        let queue = Queue::open(Parts {
            store: Arc::new(store.clone()),
            config: Arc::new(move || config.lock().unwrap().clone()),
            upstream: life.upstream(),
            settled: life.clone(),
            changes: receiver,
            clock,
            metrics: Metrics::new(),
            bus: Bus::new(clock),
            tasks: tasks.clone(),
            is_rolled_back: false,
        })
        .await
        .unwrap();
        let rig = Rig { world: Arc::default(), store, queue, snapshot: current, changes, clock, tasks };
        Self { rig, life }
    }

    async fn die(self, seed: u64) -> Self {
        *self.life.dead.lock().unwrap() = true;
        let store = self.rig.store.crash();
        self.rig.store.set_failed(true);
        self.rig.queue.stop.cancel();
        self.rig.queue.give_up.cancel();
        self.rig.tasks.stop(Duration::from_secs(1)).await;
        Self::begin(store, self.life.flexport.clone(), self.rig.clock, seed).await
    }

    fn start(&self, request: Request<Body>) -> tokio::task::JoinHandle<Sent> {
        let mut service = self.rig.queue.layer().layer(self.life.upstream());
        tokio::spawn(async move { Sent::of(service.call(request).await).await })
    }
}

async fn soak(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let flexport: Arc<Flexport> = Arc::default();
    let mut soak = Soak::begin(MemStore::new(), flexport.clone(), first_clock(), seed).await;
    let mut next = 0u64;
    // Creates by what their callers were told; values by path.
    let (mut live, mut queued, mut unknown, mut refused) =
        (BTreeSet::new(), BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut tickets = Vec::new();
    for round in 0..60 {
        let mut callers = Vec::new();
        for _ in 0..random.usize(1..6) {
            next += 1;
            let is_patch = random.bool();
            let (method, path) = if is_patch {
                (Method::PATCH, format!("/shipments/{}", random.u32(1..4)))
            } else {
                (Method::POST, "/bookings".to_owned())
            };
            let text = next.to_string();
            callers.push((
                path.clone(),
                next,
                is_patch,
                soak.start(soak.rig.request(method, &path, &text, &[])),
            ));
            // So that the order of the calls is the order of joining.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
        }
        let disk_fails = random.u32(0..10) == 0;
        if disk_fails {
            soak.rig.store.fail_next(random.usize(1..4));
        }
        let dies = random.u32(0..8) == 0;
        if dies {
            tokio::time::sleep(Duration::from_millis(random.u64(0..120))).await;
            soak = soak.die(seed + round).await;
        }
        for (path, value, is_patch, caller) in callers {
            if dies && !caller.is_finished() {
                caller.abort();
                continue;
            }
            let sent = caller.await.unwrap();
            match (sent.status, is_patch) {
                (200, true) => {
                    let newest = acknowledged.entry(path).or_default();
                    *newest = value.max(*newest);
                }
                (202, true) => {
                    tickets.push(sent.id());
                    let newest = acknowledged.entry(path).or_default();
                    *newest = value.max(*newest);
                }
                (200, false) => drop(live.insert(value.to_string())),
                (202, false) => drop(queued.insert(value.to_string(), sent.id())),
                (504, false) => drop(unknown.insert(value.to_string(), (sent.id(), disk_fails))),
                (507, false) => drop(refused.insert(value.to_string())),
                (507, true) => {}
                other => panic!("{other:?} {:?}", sent.error),
            }
        }
        soak.rig.store.fail_next(0);
        tokio::time::sleep(Duration::from_secs(random.u64(0..20))).await;
    }
    *soak.life.well.lock().unwrap() = true;
    soak.rig.changes.send(1).unwrap();
    let queue = soak.rig.queue.clone();
    soak.rig
        .eventually("all is settled", || {
            let stats = queue.stats();
            stats.unsettled == stats.depth["unknown"] && stats.live == 0
        })
        .await;
    let created = flexport.created.lock().unwrap().clone();
    let times = |text: &String| created.iter().filter(|other| *other == text).count();
    for text in &created {
        assert_eq!(times(text), 1, "seed {seed}: {text} took effect twice");
    }
    for text in &live {
        assert_eq!(times(text), 1, "seed {seed}: {text} was answered 200 and is not there");
    }
    for (text, id) in &queued {
        match soak.rig.state(*id) {
            Some(State::Done) => assert_eq!(times(text), 1, "seed {seed}: {text} is done and is not there"),
            Some(State::Unknown) => {}
            other => panic!("seed {seed}: {text} got a 202 and is {other:?}"),
        }
    }
    for (text, (id, disk_failed)) in &unknown {
        let state = soak.rig.state(*id);
        // Disk and process failing together is more than a 504 promises.
        assert!(
            state == Some(State::Unknown) || (*disk_failed && state.is_none()),
            "seed {seed}: {text} {state:?}"
        );
    }
    for text in &refused {
        assert_eq!(times(text), 0, "seed {seed}: {text} was answered 507 and sent");
    }
    for id in &tickets {
        assert_eq!(soak.rig.state(*id), Some(State::Done), "seed {seed}");
    }
    for (path, values) in &*flexport.set.lock().unwrap() {
        assert!(values.is_sorted(), "seed {seed}: {path} went back: {values:?}");
        if let Some(newest) = acknowledged.get(path) {
            assert!(values.last().is_some_and(|last| last >= newest), "seed {seed}: {path} lost {newest}");
        }
    }
    println!(
        "seed {seed}: {} live, {} queued, {} unknown, {} refused, {} values of {next} writes",
        live.len(),
        queued.len(),
        unknown.len(),
        refused.len(),
        tickets.len()
    );
    soak.rig.tasks.stop(Duration::from_secs(1)).await;
}

/// 24 seeds in CI, 1,500 in a soak (`SEAWALL_SOAK=1`); `SEAWALL_SOAK=<n>` plays n.
#[tokio::test(start_paused = true)]
async fn acknowledged_writes_take_effect_once_and_in_order() {
    let seeds = match std::env::var("SEAWALL_SOAK").ok().and_then(|count| count.parse().ok()) {
        None => 24,
        Some(1) => 1_500,
        Some(count) => count,
    };
    for seed in 0..seeds {
        soak(seed).await;
    }
}

//! Builds everything, wires it, runs it, and takes it down in order.
//!
//! Order of the start: data folder and its lock, keys, sockets (so that what cannot be had is said before anything
//! else begins), breakers with their overrides, the way to Flexport, store and queue, cache, listeners.
//!
//! Order of the end (SIGTERM): not ready → stop accepting → finish what is under way within `server.drain.grace` →
//! writes still out become durable and their callers get their 202 or 504 → the replayer stops between records →
//! store closed → lock released.

use crate::admin::{self, Admin};
use crate::breaker::Breakers;
use crate::cache::{Cache, DiskOptions, Tier, Warmer};
use crate::clock::Clock;
use crate::config::raw::Profile;
use crate::config::{Diagnostics, Live, ReloadReport, Snapshot, Trigger};
use crate::context::{BoxFuture, Credential, Settled, Upstream};
use crate::event;
use crate::flexport::links::Bases;
use crate::flexport::routes::RoutePolicy;
use crate::front::{AuthLayer, ContextLayer, Identifier, LimitsLayer, TraceLayer};
use crate::limit::LimitLayer;
use crate::queue::{self, Queue};
use crate::retry::RetryLayer;
use crate::server::{Drain, Limits, Listener, LocalLayer, bind};
use crate::stack;
use crate::store::{DataLock, Given, Keys, Options, RealIo, SledStore, Store, watermark};
use crate::task::Tasks;
use crate::telemetry::{ListenerLabels, Metrics, ResultLabels};
use crate::upstream::{self, Attempt, Client};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A running Seawall.
pub struct App {
    /// Address of the data listener.
    pub data: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    config: Arc<Live>,
    breakers: Arc<Breakers>,
    metrics: Arc<Metrics>,
    queue: Option<Arc<Queue>>,
    warmer: Arc<Warmer>,
    store: Option<Arc<dyn Store>>,
    is_draining: Arc<AtomicBool>,
    data_drain: Drain,
    admin_drain: Drain,
    tasks: Tasks,
    /// Released last.
    lock: DataLock,
}

/// Why Seawall does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something in the configuration; exit code 78.
    #[error("{0}")]
    Config(String),
    /// Something else; exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// What the active probes ask.
struct ProbeTarget {
    config: Arc<Live>,
    breakers: Arc<Breakers>,
    queue: Option<Arc<Queue>>,
}

/// How often breakers look at their deadlines.
const BREAKER_TICK: Duration = Duration::from_millis(250);
/// How long the callers of writes that were made durable at the end of the grace may take to read their answer.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long background tasks may take to stop.
const STOP: Duration = Duration::from_secs(1);
/// How long the store may take to close.
const CLOSE: Duration = Duration::from_secs(1);
/// How long the process waits in the end for files and names that are still being asked for.
pub(crate) const LAST_FILES: Duration = Duration::from_millis(400);
/// How long the end takes at most after `server.drain.grace`. With the default of that, below the 30 s that Kubernetes
/// gives; tests/it/deploy.rs holds the manifests to it.
pub const AFTER_GRACE: Duration = queue::LAST_WRITES
    .saturating_add(LAST_ANSWERS)
    .saturating_add(STOP)
    .saturating_add(CLOSE)
    .saturating_add(LAST_FILES);
/// How often it is looked whether the configuration's files have changed. A change is taken when two looks agree.
const CONFIG_LOOK: Duration = Duration::from_secs(2);

// === impl App ===

impl App {
    /// Starts with this configuration.
    pub async fn start(config: Arc<Live>) -> Result<Self, StartError> {
        let clock = Clock::system();
        let snapshot = config.current();
        let settings = &snapshot.settings;
        let is_strict = settings.profile == Profile::Strict;
        for warning in &snapshot.warnings {
            tracing::warn!("{warning}");
        }

        let data_dir = settings.data_dir.clone();
        let (folder, wait) = (data_dir.clone(), *settings.store.lock_wait);
        let lock = tokio::task::spawn_blocking(move || prepare(&folder, wait))
            .await
            .map_err(|error| StartError::Failed(error.to_string()))??;
        let keys = Arc::new(load_keys(&snapshot, &data_dir)?);

        let data_socket = listen(settings.server.listen, "server.listen")?;
        let admin_socket = listen(settings.admin.listen, "admin.listen")?;
        let data = data_socket.local_addr().map_err(|error| StartError::Failed(error.to_string()))?;
        let admin_address =
            admin_socket.local_addr().map_err(|error| StartError::Failed(error.to_string()))?;
        if settings.server.listen.port() == 0 {
            config.set_bound(data);
        }
        let snapshot = config.current();
        let settings = &snapshot.settings;

        let metrics = Metrics::new();
        note_config(&metrics, Some(0));
        let bus = event::Bus::new(clock);
        let tasks = Tasks::new();
        let groups = snapshot.routes.groups();

        let breakers = Breakers::new(
            &settings.breaker,
            settings.limiter.max,
            *settings.upstream.timeout,
            &groups,
            Some(data_dir.join("overrides.json")),
            clock,
            &metrics,
            bus.clone(),
        );

        let base =
            settings.upstream.base_url.parse().map_err(|_| config_error("upstream.base_url is not a URL"))?;
        let current = config.clone();
        let client = Client::new(Arc::new(move || current.current()), &metrics)
            .map_err(|error| StartError::Failed(error.to_string()))?;
        let attempt = Attempt::new(client, &base, &groups, clock, metrics.clone())
            .map_err(|_| config_error("upstream.base_url has no usable host"))?;
        let upstream = if is_strict {
            stack::strict_upstream(attempt)
        } else {
            let bases =
                Bases::new(&settings.upstream.base_url, &settings.upstream.link_bases, &snapshot.public_url);
            let limit = LimitLayer::new(&settings.limiter, &groups, clock, &metrics);
            let asked = breakers.clone();
            let retry = RetryLayer::new(Arc::new(move |call| asked.is_flowing(call)), &metrics);
            let bases = (!bases.is_noop()).then(|| Arc::new(bases));
            stack::upstream(bases, breakers.clone(), retry, limit, attempt)
        };

        // The cache asks the queue, which is made after it.
        let late_queue = Arc::new(OnceLock::new());
        let cache = Cache::new(
            settings,
            clock,
            &metrics,
            tasks.clone(),
            late_queue.clone(),
            breakers.clone(),
            open_tier(&snapshot, &keys, &data_dir).await?,
        );

        let opened = if is_strict || !settings.queue.enabled {
            None
        } else {
            Some(open_store(&snapshot, &keys, &data_dir).await?)
        };
        let (store, is_rolled_back) = opened.map_or((None, false), |(store, is)| (Some(store), is));
        let queue = match &store {
            Some(store) => {
                let current = config.clone();
                let parts = queue::Parts {
                    store: store.clone(),
                    config: Arc::new(move || current.current()),
                    upstream: upstream.clone(),
                    settled: cache.clone() as Arc<dyn Settled>,
                    changes: breakers.changes(),
                    clock,
                    metrics: metrics.clone(),
                    bus: bus.clone(),
                    tasks: tasks.clone(),
                    is_rolled_back,
                };
                // Creates that waited when the process ended say that an outage was known then; breakers do not
                // outlive a process, so nothing of that kind goes out before a read has shown that it is over.
                breakers.hold_replayed_creates();
                let queue =
                    Queue::open(parts).await.map_err(|error| StartError::Failed(error.to_string()))?;
                breakers.release_replayed_creates(&queue.waiting_creates());
                let _ = late_queue.set(queue.clone());
                Some(queue)
            }
            None => None,
        };

        let data_drain = Drain::new();
        let is_draining = Arc::new(AtomicBool::new(false));
        let is_up = Arc::new(AtomicBool::new(false));
        let current = config.clone();
        let identifier = Arc::new(Identifier::new(&keys.hmac("partition", b"")));
        let app = stack::front(
            ContextLayer::new(Arc::new(move || current.current())),
            TraceLayer::new(metrics.clone(), &groups),
            LimitsLayer::new(is_draining.clone()),
            AuthLayer::new(identifier.clone()),
            LocalLayer::new(queue.clone(), breakers.clone(), cache.clone(), data_drain.clone()),
            cache.clone(),
            upstream.clone(),
            stack::writes(queue.as_ref().map(Queue::layer), upstream.clone()),
        );
        let current = config.clone();
        let warmer =
            Warmer::new(cache.clone(), upstream.clone(), Arc::new(move || current.current()), &metrics);
        let status_page = upstream::StatusPage::default();
        let admin = admin::service(Admin {
            config: config.clone(),
            breakers: breakers.clone(),
            status_page: status_page.clone(),
            cache: cache.clone(),
            identifier,
            warmer: warmer.clone(),
            queue: queue.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            is_up: is_up.clone(),
            is_draining: is_draining.clone(),
            clock,
            started_at: clock.now(),
        });

        let limits = Limits::new(&settings.server);
        let listener = |socket, name| {
            let labels = ListenerLabels { listener: name };
            let connections = metrics.connections.get_or_create(&labels).clone();
            let refused = metrics.connections_refused.get_or_create(&labels).clone();
            Listener::new(socket, limits, connections, refused)
        };
        let admin_drain = Drain::new();
        tasks.spawn(
            "data listener",
            listener(data_socket, "data").passing_interims(is_strict).serve(app, data_drain.clone()),
        );
        tasks.spawn("admin listener", listener(admin_socket, "admin").serve(admin, admin_drain.clone()));
        spawn_breaker_ticks(&tasks, breakers.clone());
        spawn_event_log(&tasks, &bus);
        spawn_config_watch(&tasks, config.clone(), breakers.clone(), metrics.clone());
        if !is_strict {
            let target =
                ProbeTarget { config: config.clone(), breakers: breakers.clone(), queue: queue.clone() };
            spawn_probes(&tasks, target, upstream);
        }
        let current = config.clone();
        let source: upstream::Source = Arc::new(move || current.current());
        tasks.spawn(
            "status page",
            status_page.run(source, clock, metrics.clone(), bus.clone(), tasks.cancelled()),
        );
        is_up.store(true, Ordering::Relaxed);
        tell_overrides(&snapshot);
        tracing::info!(
            data = %data,
            admin = %admin_address,
            upstream = settings.upstream.base_url,
            public_url = &*snapshot.public_url,
            config = snapshot.source.as_ref().map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string()),
            "Seawall is up"
        );
        Ok(Self {
            data,
            admin: admin_address,
            config,
            breakers,
            metrics,
            queue,
            warmer,
            store,
            is_draining,
            data_drain,
            admin_drain,
            tasks,
            lock,
        })
    }

    /// Reads the configuration again, as on SIGHUP.
    pub async fn reload(&self) -> Result<ReloadReport, Diagnostics> {
        reload(&self.config, &self.breakers, &self.metrics, Trigger::Signal).await
    }

    /// Ends in good order. Tells whether everything under way came to its end.
    pub async fn stop(self) -> bool {
        let grace = *self.config.current().settings.server.drain.grace;
        tracing::info!(?grace, "shutting down");
        let deadline = tokio::time::Instant::now() + grace;
        self.is_draining.store(true, Ordering::Relaxed);
        self.warmer.stop();
        self.data_drain.begin();
        let queue_drained = async {
            if let Some(queue) = &self.queue {
                // Takes up no further record from now on; what is in flight has until the deadline, and is made
                // durable then.
                queue.drain(deadline).await;
            }
        };
        let (mut left, ()) = tokio::join!(self.data_drain.ended(grace), queue_drained);
        if let Some(queue) = &self.queue {
            // What came in since an early end of the drain too.
            queue.finish().await;
        }
        if left > 0 {
            // The callers of the writes that were just made durable get their answer before the exit.
            left = self.data_drain.ended(LAST_ANSWERS).await;
        }
        self.admin_drain.begin();
        let is_quiet = self.tasks.stop(STOP).await;
        if let Some(store) = &self.store
            && tokio::time::timeout(CLOSE, store.close()).await.is_err()
        {
            tracing::error!("the store does not close: what it has not synced was not acknowledged either");
        }
        drop(self.lock);
        tracing::info!(connections_cut = left, "stopped");
        left == 0 && is_quiet
    }
}

/// Reads the configuration again, all or nothing, and gives it to those who keep settings. It runs to its end also
/// when nobody waits for it any more.
pub async fn reload(
    config: &Arc<Live>,
    breakers: &Arc<Breakers>,
    metrics: &Arc<Metrics>,
    trigger: Trigger,
) -> Result<ReloadReport, Diagnostics> {
    let (live, breakers, metrics) = (config.clone(), breakers.clone(), metrics.clone());
    let reloaded = tokio::task::spawn_blocking(move || {
        live.reload(trigger, |result, snapshot| give_on(result, snapshot, &breakers, &metrics, trigger))
    });
    reloaded.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Gives the settings in force to those who keep some, and tells of the reload.
fn give_on(
    result: &Result<ReloadReport, Diagnostics>,
    snapshot: &Snapshot,
    breakers: &Breakers,
    metrics: &Metrics,
    trigger: Trigger,
) {
    let count = |result| {
        metrics.config_reloads.get_or_create(&ResultLabels { result }).inc();
    };
    match result {
        Ok(report) => {
            count("ok");
            note_config(metrics, Some(report.needs_restart.len()));
            let settings = &snapshot.settings;
            breakers.reconfigure(&settings.breaker, settings.limiter.max, *settings.upstream.timeout);
            if report.changed.iter().any(|key| key == "telemetry.log")
                && let Err(problem) = crate::telemetry::set_log_filter(&settings.telemetry.log)
            {
                tracing::error!("{problem}; the old filter stays");
            }
            for warning in &report.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(
                generation = report.generation,
                %trigger,
                changed = report.changed.join(", "),
                "configuration reloaded"
            );
            if trigger == Trigger::Api {
                tracing::info!(
                    target: "seawall::audit",
                    generation = report.generation,
                    "configuration reloaded by the API"
                );
            }
            if !report.needs_restart.is_empty() {
                tracing::warn!(
                    needs_restart = report.needs_restart.join(", "),
                    "settings keep their running values until a restart"
                );
            }
        }
        Err(problems) => {
            count("failed");
            note_config(metrics, None);
            tracing::error!(%trigger, "the old configuration stays: {problems}");
        }
    }
}

/// Counts a load of the configuration: how many settings wait for a restart, or that it failed.
fn note_config(metrics: &Metrics, waiting: Option<usize>) {
    metrics.config_reload_successful.set(i64::from(waiting.is_some()));
    if let Some(waiting) = waiting {
        metrics.config_reload_success_timestamp_seconds.set(Clock::system().now().as_second());
        metrics.config_needs_restart.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

fn config_error(text: &str) -> StartError {
    StartError::Config(text.to_owned())
}

/// The data folder, its mode and its lock.
fn prepare(dir: &Path, wait: Duration) -> Result<DataLock, StartError> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.exists() && !dir.is_dir() {
        return Err(StartError::Config(format!("data_dir: {} is not a folder", dir.display())));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        StartError::Config(format!("data_dir: {} cannot be made: {error}", dir.display()))
    })?;
    DataLock::acquire(dir, wait).map_err(|error| StartError::Failed(error.to_string()))
}

/// What is configured of the store's keys.
pub(crate) fn store_secrets(snapshot: &Snapshot) -> Given<'_> {
    Given {
        wrapping: snapshot.store_key.as_ref().map(|key| key.expose().as_bytes()),
        previous: snapshot.previous_store_key.as_ref().map(|key| key.expose().as_bytes()),
    }
}

fn load_keys(snapshot: &Snapshot, dir: &Path) -> Result<Keys, StartError> {
    let (keys, warnings) =
        Keys::load(store_secrets(snapshot), dir).map_err(|error| StartError::Config(error.to_string()))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(keys)
}

fn listen(address: SocketAddr, key: &str) -> Result<tokio::net::TcpListener, StartError> {
    bind(address).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            "; another process has this port"
        } else {
            ""
        };
        StartError::Failed(format!("{key}: cannot listen on {address}: {error}{hint}"))
    })
}

/// What the queue must have free on its volume.
fn min_free(snapshot: &Snapshot, dir: &Path) -> u64 {
    let configured = snapshot.settings.store.min_free.0;
    if configured == 0 { watermark(dir) } else { configured }
}

/// The cache's second tier. What is wrong with it is its own business: the start goes on.
async fn open_tier(snapshot: &Snapshot, keys: &Arc<Keys>, dir: &Path) -> Result<Option<Tier>, StartError> {
    let settings = &snapshot.settings;
    if settings.profile == Profile::Strict || !settings.cache.disk {
        return Ok(None);
    }
    let options = DiskOptions {
        dir: dir.join("cache"),
        max: settings.cache.disk_max.0,
        reserve: min_free(snapshot, dir),
        keys: keys.clone(),
        io: Arc::new(RealIo),
    };
    let opened = tokio::task::spawn_blocking(move || Tier::open(options)).await;
    opened.map(Some).map_err(|error| StartError::Failed(error.to_string()))
}

/// Opens the store; a folder that cannot be read is set aside and never keeps Seawall from starting.
async fn open_store(
    snapshot: &Snapshot,
    keys: &Arc<Keys>,
    dir: &Path,
) -> Result<(Arc<dyn Store>, bool), StartError> {
    let path: PathBuf = dir.join("queue");
    let store = &snapshot.settings.store;
    let min_free_bytes = min_free(snapshot, dir);
    let options =
        Options { min_free_bytes, lock_wait: *store.lock_wait, ..Options::new(Clock::system().now().into()) };
    let keys = keys.clone();
    let opened = tokio::task::spawn_blocking(move || SledStore::open(&path, &keys, options))
        .await
        .map_err(|error| StartError::Failed(error.to_string()))?;
    let (store, report) = opened.map_err(|error| StartError::Failed(error.to_string()))?;
    if let Some(why) = report.ephemeral {
        tracing::warn!(folder = %dir.display(), "queued writes will not outlive this machine or container: {why}; mount a volume");
    }
    Ok((Arc::new(store) as Arc<dyn Store>, report.is_rolled_back()))
}

fn spawn_breaker_ticks(tasks: &Tasks, breakers: Arc<Breakers>) {
    let cancel = tasks.cancelled();
    tasks.spawn("breaker ticks", async move {
        let mut ticks = tokio::time::interval(BREAKER_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => breakers.tick(tokio::time::Instant::now()),
            }
        }
    });
}

/// Reloads when a file of the configuration has changed.
fn spawn_config_watch(tasks: &Tasks, config: Arc<Live>, breakers: Arc<Breakers>, metrics: Arc<Metrics>) {
    let cancel = tasks.cancelled();
    tasks.spawn("configuration watch", async move {
        let mut looks = tokio::time::interval(CONFIG_LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = looks.tick() => {}
            }
            let live = config.clone();
            if tokio::task::spawn_blocking(move || live.is_outdated()).await.unwrap_or(false) {
                // What went wrong is logged there; the old configuration stays.
                let _ = reload(&config, &breakers, &metrics, Trigger::File).await;
            }
        }
    });
}

fn spawn_event_log(tasks: &Tasks, bus: &event::Bus) {
    let cancel = tasks.cancelled();
    let mut events = bus.watch();
    tasks.spawn("event log", async move {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                event = events.recv() => match event {
                    Ok(event) => if let event::Kind::Alarm { what, message } = event.kind {
                        tracing::error!(target: "seawall::alarm", what, "{message}");
                    },
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events were missed");
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    });
}

fn spawn_probes(tasks: &Tasks, target: ProbeTarget, upstream: Upstream) {
    tasks.spawn("probes", upstream::run_probes(Arc::new(target), upstream, tasks.cancelled()));
}

// === impl ProbeTarget ===

impl upstream::Target for ProbeTarget {
    fn config(&self) -> Arc<Snapshot> {
        self.config.current()
    }

    fn needs_probe(&self, group: &str) -> bool {
        self.breakers.needs_probe(group)
    }

    fn credential(&self, group: &'static str) -> BoxFuture<Credential> {
        let config = self.config.current();
        if config.settings.credentials.mode == crate::config::raw::CredentialMode::Inject {
            return Box::pin(std::future::ready(Credential::Alias(
                config.settings.credentials.default.as_str().into(),
            )));
        }
        let queue = self.queue.clone();
        Box::pin(async move {
            match queue {
                Some(queue) => queue.oldest_credential(group).await.unwrap_or(Credential::None),
                None => Credential::None,
            }
        })
    }
}

/// Tells which routes depart from RFC 9111 §4.2.4 in an outage.
fn tell_overrides(snapshot: &Snapshot) {
    let is_overriding =
        |row: &&Arc<RoutePolicy>| row.cache.as_ref().is_some_and(|cache| cache.overrides_revalidation);
    let routes: Vec<&str> =
        snapshot.routes.rows().filter(is_overriding).map(|row| row.template.as_str()).collect();
    if !routes.is_empty() {
        tracing::info!(
            routes = routes.join(" "),
            "in an outage copies of these routes are served in spite of must-revalidate, no-cache, proxy-revalidate and \
             s-maxage (override_revalidation)"
        );
    }
}

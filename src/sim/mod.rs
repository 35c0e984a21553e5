//! The Flexport simulator: an upstream with a seeded world, faults on demand and a journal, for tests, the demo and
//! people who want to see an outage without one.
//!
//! It speaks HTTP/1.1 and h2c on a main listener and behaves there like Flexport's v2 API as far as that is known;
//! `/_sim/…` drives it (`docs/SIMULATOR.md`). A second listener serves `/_sim/…` and the status page only and is
//! touched by no fault, so that a simulator that refuses connections can be told to stop. The same seed makes the same
//! bytes; only stamps come from a clock, which follows real time until it is moved. Nothing here is used by the proxy
//! itself, and nothing here uses the proxy's capabilities: a shared mistake would hide.
//!
//! A request is carried out wholly or not at all: between the arrival of its body and its effect nothing waits that
//! a lost connection could cancel.

mod clock;
mod conn;
mod control;
mod faults;
mod journal;
mod oauth;
mod query;
mod routes;
mod seed;
mod serve;
mod shared;
mod status_page;
mod switches;
mod tokens;
mod webhooks;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use conn::Gate;
use shared::Shared;
use tokens::Tokens;
use webhooks::Settings;
use world::World;

/// The base of the links in the real API's bodies.
pub const LINK_BASE: &str = "https://api.flexport.com";

/// How often the world is moved to where the clock is.
const TICK: Duration = Duration::from_millis(100);

/// How a simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any.
    pub listen: SocketAddr,
    /// Where the control API listens that no fault touches; by default on the next port, or on any when `listen`
    /// has port 0.
    pub control: Option<SocketAddr>,
    /// What the world is made from: the same seed makes the same bytes.
    pub seed: u64,
    /// How many shipments the world begins with.
    pub shipments: usize,
    /// What the links in the bodies begin with.
    pub link_base: String,
}

/// A running simulator. Dropping it stops it at once.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    control: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// What runs until it is broken off.
    helpers: Vec<JoinHandle<()>>,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            control: None,
            seed: 1,
            shipments: 120,
            link_base: LINK_BASE.to_owned(),
        }
    }
}

impl Options {
    fn control(&self, main: SocketAddr) -> io::Result<SocketAddr> {
        if let Some(control) = self.control {
            return Ok(control);
        }
        if self.listen.port() == 0 {
            return Ok(SocketAddr::new(main.ip(), 0));
        }
        let port = main.port().checked_add(1).ok_or_else(|| {
            io::Error::other("there is no port after 65535 for the control API; choose one with `control`")
        })?;
        Ok(SocketAddr::new(main.ip(), port))
    }
}

// === impl Simulator ===

impl Simulator {
    /// Makes the world and begins to listen. Must be called inside a tokio runtime.
    pub async fn start(options: Options) -> io::Result<Self> {
        let (seed, shipments, link_base) = (options.seed, options.shipments, options.link_base.clone());
        let world = tokio::task::spawn_blocking(move || World::new(seed, shipments, &link_base))
            .await
            .map_err(io::Error::other)?;
        let gate = Gate::bind(options.listen)
            .map_err(|error| named(&error, &format!("simulator: cannot listen on {}", options.listen)))?;
        let control = options.control(gate.addr())?;
        let control = Gate::bind(control)
            .map_err(|error| named(&error, &format!("simulator: cannot listen on {control} for control")))?;
        let control_addr = control.addr();
        let (deliveries, planned) = mpsc::unbounded_channel();
        let made_from = (options.seed, options.shipments, options.link_base);
        let shared = Arc::new(Shared::new(world, made_from, gate, deliveries));
        let stop = watch::Sender::new(false);
        let tasks = vec![
            tokio::spawn(serve::listen(Arc::clone(&shared), None, stop.subscribe())),
            tokio::spawn(serve::listen(Arc::clone(&shared), Some(control), stop.subscribe())),
        ];
        let helpers = vec![
            tokio::spawn(webhooks::deliver::run(Arc::downgrade(&shared), planned)),
            tokio::spawn(tick(Arc::clone(&shared))),
        ];
        Ok(Self { shared, control: control_addr, stop, tasks, helpers })
    }

    /// The address of the main listener.
    pub fn addr(&self) -> SocketAddr {
        self.shared.gate.addr()
    }

    /// The base URL of the main listener, such as `http://127.0.0.1:8470`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The base URL of the listener that serves `/_sim` only and that no fault touches.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// The journal, like `GET /_sim/requests`.
    pub fn journal(&self) -> Vec<Value> {
        self.shared.journal().list(None, None)
    }

    /// What took effect in the first account, like `GET /_sim/state`.
    pub fn state(&self) -> Value {
        self.shared.state(&self.shared.first_account())
    }

    /// Replaces the faults, like `PUT /_sim/faults`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_faults(json!([…]))`")]
    pub fn set_faults(&self, faults: Value) -> Result<(), String> {
        self.shared.set_faults(&faults)
    }

    /// Ends all faults, like `DELETE /_sim/faults`.
    pub fn clear_faults(&self) {
        if let Err(error) = self.shared.clear_faults() {
            tracing::error!(%error, "simulator: cannot listen again");
        }
    }

    /// Turns switches, like `PUT /_sim/switches`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_switches(json!({…}))`")]
    pub fn set_switches(&self, switches: Value) -> Result<(), String> {
        self.shared.switches().set(&switches)
    }

    /// Sets which tokens are bad, expired or without a scope, like `PUT /_sim/tokens`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_tokens(json!({…}))`")]
    pub fn set_tokens(&self, tokens: Value) -> Result<(), String> {
        self.shared.set_tokens(Tokens::parse(&tokens)?);
        Ok(())
    }

    /// Sets, moves, stops or hurries the clock, like `PUT /_sim/clock`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_clock(json!({…}))`")]
    pub fn set_clock(&self, clock: Value) -> Result<(), String> {
        self.shared.set_clock(&clock).map(|_| ())
    }

    /// Moves the clock forward, and the world with it.
    pub fn advance(&self, by: Duration) {
        if let Err(error) = self.shared.set_clock(&json!({"advance": by.as_secs_f64()})) {
            tracing::error!(error, "simulator: the clock cannot go so far");
        }
    }

    /// What the simulator's clock shows.
    pub fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// Sets the account's webhook, like `PUT /_sim/webhooks`; null is none. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_webhooks(json!({…}))`")]
    pub fn set_webhooks(&self, settings: Value) -> Result<(), String> {
        let settings = if settings.is_null() { None } else { Some(Settings::parse(&settings)?) };
        self.shared.webhooks().set(settings);
        Ok(())
    }

    /// The webhook and what became of its deliveries, like `GET /_sim/webhooks`.
    pub fn webhooks(&self) -> Value {
        self.shared.webhooks().describe()
    }

    /// Makes events, like `POST /_sim/webhooks/emit`; their ids are returned. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `emit(json!({…}))`")]
    pub fn emit(&self, event: Value) -> Result<Vec<u64>, String> {
        let emitted = self.shared.emit(&event)?;
        Ok(emitted["events"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect())
    }

    /// Says what the status page says, like `PUT /_sim/status_page`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_status_page(json!({…}))`")]
    pub fn set_status_page(&self, page: Value) -> Result<(), String> {
        *self.shared.status_page() = status_page::StatusPage::parse(&page, self.shared.now())?;
        Ok(())
    }

    /// Where the status page's `status.json` is.
    pub fn status_page_url(&self) -> String {
        format!("{}/api/v2/status.json", self.control_url())
    }

    /// Stops listening, breaks off open connections, and waits until both are done.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "simulator: a listener ended badly");
            }
        }
        self.break_off();
        self.shared.gate.close();
    }

    fn break_off(&self) {
        for task in self.tasks.iter().chain(&self.helpers) {
            task.abort();
        }
        self.shared.stop_late();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.break_off();
        if let Some(timer) = lock(&self.shared.reopen).take() {
            timer.abort();
        }
    }
}

/// Moves the world to where the clock is, again and again.
async fn tick(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.tick();
    }
}

/// Whoever panicked with the lock: what it guards is whole between any two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

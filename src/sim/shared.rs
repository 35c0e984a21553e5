//! What all connections of a simulator share, and what moves in it.
//!
//! Locks are taken in this order where more than one is held: deliveries (`delivering`), faults, applied writes, clock,
//! tokens that were issued (`oauth`), the map of the other worlds (`others`), worlds, webhooks.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::clock::Clock;
use super::conn::Gate;
use super::faults::{self, Faults};
use super::journal::{self, Journal};
use super::lock;
use super::oauth::Oauth;
use super::routes::Access;
use super::status_page::StatusPage;
use super::switches::{Switches, Told};
use super::tokens::Tokens;
use super::webhooks::{Planned, Webhooks, Wish};
use super::world::{Happening, Item, Kind, World};

/// How many events one call may make.
const EMITTED_MAX: u64 = 10_000;

/// What all connections share.
pub(super) struct Shared {
    /// The first account's world.
    world: Arc<RwLock<World>>,
    /// The worlds of the other accounts, by name.
    others: Mutex<BTreeMap<String, Arc<RwLock<World>>>>,
    /// What the other worlds are made from.
    pub(super) seed: u64,
    pub(super) shipments: usize,
    pub(super) link_base: String,
    journal: Mutex<Journal>,
    pub(super) applied: Mutex<Vec<AppliedWrite>>,
    faults: Mutex<Faults>,
    tokens: Mutex<Arc<Tokens>>,
    pub(super) oauth: Mutex<Oauth>,
    switches: Mutex<Switches>,
    told: Mutex<Told>,
    clock: Mutex<Clock>,
    webhooks: Mutex<Webhooks>,
    deliveries: mpsc::UnboundedSender<Planned>,
    /// Held from the taking of events until their deliveries are handed over, so that none overtakes another.
    delivering: Mutex<()>,
    /// Requests that wait before they are carried out; none once the simulator stops.
    late: Mutex<Option<JoinSet<()>>>,
    status_page: Mutex<StatusPage>,
    pub(super) gate: Arc<Gate>,
    /// The generation of the faults; what hangs waits for the next one.
    pub(super) generation: watch::Sender<u64>,
    /// Counts refusals; each ends the open connections.
    pub(super) refusals: watch::Sender<u64>,
    /// Opens the gate when the `until` of a refusal passes.
    pub(super) reopen: Mutex<Option<AbortHandle>>,
    /// For timers that are set by callers outside the runtime.
    runtime: tokio::runtime::Handle,
}

/// A write that took effect.
#[derive(Debug)]
pub(super) struct AppliedWrite {
    pub(super) seq: u64,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) id: Value,
    pub(super) body: Bytes,
    /// The name of the account that it changed; none is the first.
    pub(super) account: Option<String>,
}

/// The world of one account.
pub(super) struct Account {
    /// None is the first.
    name: Option<String>,
    world: Arc<RwLock<World>>,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(
        world: World,
        (seed, shipments, link_base): (u64, usize, String),
        gate: Gate,
        deliveries: mpsc::UnboundedSender<Planned>,
    ) -> Self {
        let now = now();
        Self {
            world: Arc::new(RwLock::new(world)),
            others: Mutex::default(),
            seed,
            shipments,
            link_base,
            journal: Mutex::default(),
            applied: Mutex::default(),
            faults: Mutex::new(Faults::new(seed)),
            tokens: Mutex::default(),
            oauth: Mutex::default(),
            switches: Mutex::default(),
            told: Mutex::default(),
            clock: Mutex::new(Clock::new(now)),
            webhooks: Mutex::new(Webhooks::new(seed)),
            deliveries,
            delivering: Mutex::default(),
            late: Mutex::new(Some(JoinSet::new())),
            status_page: Mutex::new(StatusPage::new(now)),
            gate: Arc::new(gate),
            generation: watch::Sender::new(0),
            refusals: watch::Sender::new(0),
            reopen: Mutex::new(None),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    pub(super) fn switches(&self) -> MutexGuard<'_, Switches> {
        lock(&self.switches)
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    pub(super) fn webhooks(&self) -> MutexGuard<'_, Webhooks> {
        lock(&self.webhooks)
    }

    pub(super) fn status_page(&self) -> MutexGuard<'_, StatusPage> {
        lock(&self.status_page)
    }

    pub(super) fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&lock(&self.tokens))
    }

    /// Sets what tokens are worth; accounts that are named for the first time get their worlds.
    pub(super) fn set_tokens(&self, tokens: Tokens) {
        let mut others = lock(&self.others);
        for name in tokens.accounts() {
            if !others.contains_key(name) {
                let seed = name.bytes().fold(self.seed ^ 0xacc0, |seed, byte| {
                    seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)
                });
                let world = World::new(seed, self.shipments, &self.link_base);
                others.insert(name.to_owned(), Arc::new(RwLock::new(world)));
            }
        }
        drop(others);
        *lock(&self.tokens) = Arc::new(tokens);
    }

    /// The world that a token sees.
    pub(super) fn account(&self, tokens: &Tokens, token: Option<&str>) -> Account {
        let other = token.and_then(|token| {
            let oauth = lock(&self.oauth);
            self.account_named(Some(tokens.account(token, oauth.client(token))?))
        });
        other.unwrap_or_else(|| self.first_account())
    }

    /// The world of an account by its name; none is the first.
    pub(super) fn account_named(&self, name: Option<&str>) -> Option<Account> {
        let Some(name) = name else { return Some(self.first_account()) };
        let world = lock(&self.others).get(name).cloned()?;
        Some(Account { name: Some(name.to_owned()), world })
    }

    pub(super) fn first_account(&self) -> Account {
        Account { name: None, world: Arc::clone(&self.world) }
    }

    /// Does something in a while, whoever waits for it or does not; nothing when the simulator stops before.
    pub(super) fn later(&self, what: impl Future<Output = ()> + Send + 'static) {
        if let Some(late) = &mut *lock(&self.late) {
            while late.try_join_next().is_some() {}
            late.spawn(what);
        }
    }

    /// Breaks off all that was to be done in a while.
    pub(super) fn stop_late(&self) {
        lock(&self.late).take();
    }

    /// What the simulator's clock shows.
    pub(super) fn now(&self) -> Timestamp {
        lock(&self.clock).now(now())
    }

    /// Moves the worlds to where the clock is, and sends what happened meanwhile.
    pub(super) fn tick(&self) {
        // Held throughout, so that a later tick does not overtake this one.
        let mut clock = lock(&self.clock);
        if let Some((from, to)) = clock.take(now()) {
            write(&self.world).advance(from, to);
            for world in lock(&self.others).values() {
                write(world).advance(from, to);
            }
        }
        drop(clock);
        self.deliver_events();
    }

    pub(super) fn set_clock(&self, spec: &Value) -> Result<Value, String> {
        // What was due until now happens before the clock jumps.
        self.tick();
        lock(&self.clock).set(spec, now())?;
        self.tick();
        Ok(self.describe_clock())
    }

    pub(super) fn reset_clock(&self) -> Value {
        lock(&self.clock).reset(now());
        self.tick();
        self.describe_clock()
    }

    pub(super) fn describe_clock(&self) -> Value {
        lock(&self.clock).describe(now())
    }

    /// Plans the deliveries of what happened in the first account; the others have no webhook.
    pub(super) fn deliver_events(&self) {
        let _delivering = lock(&self.delivering);
        let events = write(&self.world).take_events();
        for world in lock(&self.others).values() {
            write(world).take_events();
        }
        for event in events {
            self.deliver(&event, Wish::default());
        }
    }

    fn deliver(&self, event: &Item, wish: Wish) {
        let now = self.now();
        let planned = self.webhooks().plan(event, wish, now);
        self.send(planned);
    }

    pub(super) fn resume_webhooks(&self) -> usize {
        let _delivering = lock(&self.delivering);
        let held = self.webhooks().resume();
        let count = held.len();
        self.send(held);
        count
    }

    fn send(&self, planned: Vec<Planned>) {
        for one in planned {
            // An error means that the simulator is being stopped.
            let _ = self.deliveries.send(one);
        }
    }

    /// Makes events, or delivers one again. The error names the field.
    pub(super) fn emit(&self, spec: &Value) -> Result<Value, String> {
        let wanted = Emission::parse(spec)?;
        let _delivering = lock(&self.delivering);
        let known = |id: u64| read(&self.world).get(Kind::Event, &id.to_string()).cloned();
        if let Some(id) = wanted.event {
            let event = known(id).ok_or_else(|| format!("emit.event_id: there is no event {id}"))?;
            self.deliver(&event, wanted.wish);
            return Ok(json!({"events": [id]}));
        }
        let created = self.now();
        let mut ids = Vec::new();
        for _ in 0..wanted.count {
            let mut world = write(&self.world);
            let event = wanted.make(&mut world, created)?;
            // Taken out here, so that it is delivered as wished and not as usual.
            let events = world.take_events();
            drop(world);
            ids.push(event.value["id"].clone());
            for other in events {
                let wish = if other.id == event.id { wanted.wish } else { Wish::default() };
                self.deliver(&other, wish);
            }
        }
        Ok(json!({"events": ids}))
    }

    pub(super) fn set_faults(&self, spec: &Value) -> Result<(), String> {
        let list = faults::parse(spec)?;
        self.replace_faults(list)
            .map_err(|error| format!("faults: the simulator cannot listen again: {error}"))
    }

    pub(super) fn clear_faults(&self) -> io::Result<()> {
        self.replace_faults(Vec::new())
    }

    fn replace_faults(&self, list: Vec<faults::Fault>) -> io::Result<()> {
        // Held throughout, so that of two callers the later one has the gate, too.
        let mut faults = self.faults();
        let generation = faults.replace(list);
        let refusal = faults.refusal(now());
        if let Some(timer) = lock(&self.reopen).take() {
            timer.abort();
        }
        let _inside = self.runtime.enter();
        let opened = match refusal {
            None => self.gate.open(),
            Some(faults::Refusal { until }) => {
                self.gate.close();
                self.refusals.send_modify(|count| *count += 1);
                if let Some(until) = until {
                    self.reopen_at(until, generation);
                }
                Ok(())
            }
        };
        drop(faults);
        self.generation.send_replace(generation);
        opened
    }

    /// What was applied to an account, and how many objects it has.
    pub(super) fn state(&self, account: &Account) -> Value {
        let log = lock(&self.applied);
        let theirs = log.iter().filter(|write| write.account == account.name);
        let applied: Vec<Value> = theirs.map(AppliedWrite::describe).collect();
        drop(log);
        json!({"applied": applied, "counts": read(&account.world).counts()})
    }

    /// Sets the timer that ends a refusal.
    fn reopen_at(&self, until: Timestamp, generation: u64) {
        let wait = Duration::try_from(until.duration_since(now())).unwrap_or_default();
        let mut replaced = self.generation.subscribe();
        let gate = Arc::clone(&self.gate);
        let timer = self.runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = replaced.wait_for(|now| *now > generation) => return,
            }
            if let Err(error) = gate.open() {
                tracing::error!(%error, "simulator: cannot listen again");
            }
        });
        *lock(&self.reopen) = Some(timer.abort_handle());
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("gate", &self.gate).finish_non_exhaustive()
    }
}

// === impl Account ===

impl Account {
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl Access for Account {
    fn read<T>(&self, with: impl FnOnce(&World) -> T) -> T {
        with(&read(&self.world))
    }

    fn write<T>(&self, with: impl FnOnce(&mut World) -> T) -> T {
        with(&mut write(&self.world))
    }
}

// === impl AppliedWrite ===

impl AppliedWrite {
    fn describe(&self) -> Value {
        json!({
            "seq": self.seq,
            "method": self.method.as_str(),
            "path": self.path,
            "id": self.id,
            "body": journal::text(&self.body),
        })
    }
}

/// What `POST /_sim/webhooks/emit` asks for.
#[derive(Debug)]
struct Emission {
    event: Option<u64>,
    name: String,
    shipment: Option<u64>,
    resource: Option<String>,
    occurred: Option<Timestamp>,
    count: u64,
    wish: Wish,
}

// === impl Emission ===

impl Emission {
    const FIELDS: &'static str =
        "type, shipment_id, resource_id, occurred_at, count, event_id, delay_ms, copies, drop";

    fn parse(spec: &Value) -> Result<Self, String> {
        let Value::Object(fields) = spec else {
            return Err(format!(
                "emit: must be an object with type or event_id, and perhaps more of {}",
                Self::FIELDS
            ));
        };
        if let Some(field) =
            fields.keys().find(|field| !Self::FIELDS.split(", ").any(|known| known == *field))
        {
            return Err(format!("emit.{field}: unknown field; known: {}", Self::FIELDS));
        }
        let number = |field: &str| {
            fields
                .get(field)
                .map(|value| value.as_u64().ok_or_else(|| format!("emit.{field}: must be an integer")))
                .transpose()
        };
        let event = number("event_id")?;
        let name = fields.get("type").and_then(Value::as_str).unwrap_or_default();
        if event.is_none() && Kind::of_object(name.split('#').next().unwrap_or_default()).is_none() {
            return Err("emit.type: must be such as \"/shipment#created\", with a known object before the #"
                .to_owned());
        }
        let occurred = match fields.get("occurred_at") {
            None => None,
            Some(value) => Some(
                value
                    .as_str()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| format!("emit.occurred_at: must be an RFC 3339 instant, not {value}"))?,
            ),
        };
        let is_dropped = match fields.get("drop") {
            None => false,
            Some(value) => value.as_bool().ok_or("emit.drop: must be true or false")?,
        };
        let count = number("count")?.unwrap_or(1);
        let copies = number("copies")?.map(u32::try_from).transpose().ok().flatten();
        if !(1..=EMITTED_MAX).contains(&count) {
            return Err(format!("emit.count: must be a number from 1 to {EMITTED_MAX}"));
        }
        if fields.contains_key("copies") && copies.is_none_or(|copies| !(1..=100).contains(&copies)) {
            return Err("emit.copies: must be a number from 1 to 100".to_owned());
        }
        Ok(Self {
            event,
            name: name.to_owned(),
            shipment: number("shipment_id")?,
            resource: fields.get("resource_id").map(super::world::id_text),
            occurred,
            count,
            wish: Wish { delay: number("delay_ms")?.map(Duration::from_millis), copies, is_dropped },
        })
    }

    fn make(&self, world: &mut World, created: Timestamp) -> Result<Arc<Item>, String> {
        let kind = Kind::of_object(self.name.split('#').next().unwrap_or_default()).unwrap_or(Kind::Shipment);
        let newest = || world.all(Kind::Shipment).last()?.value["id"].as_u64();
        let shipment = self.shipment.or_else(newest).ok_or("emit.shipment_id: there is no shipment")?;
        let id = match &self.resource {
            Some(id) => id.clone(),
            None if kind == Kind::Shipment => shipment.to_string(),
            None => {
                let field = if kind == Kind::Invoice { "shipments" } else { "shipment" };
                let first = world.children(kind, field, shipment).first().copied();
                first.map(|place| world.at(kind, place).id.clone()).ok_or_else(|| {
                    format!("emit.resource_id: shipment {shipment} has no {}; name one", kind.object())
                })?
            }
        };
        let occurred = self.occurred.unwrap_or(created);
        let what = Happening { name: &self.name, kind, id: &id, shipment, occurred, created };
        world.emit(what).ok_or_else(|| {
            format!("emit.shipment_id: there is no shipment {shipment} with {} {id}", kind.object())
        })
    }
}

/// Real time, read here only: arrivals, ends of faults, and where the simulator's clock begins.
#[expect(clippy::disallowed_methods, reason = "the simulator's own clock begins here")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

fn read(world: &RwLock<World>) -> std::sync::RwLockReadGuard<'_, World> {
    world.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(world: &RwLock<World>) -> std::sync::RwLockWriteGuard<'_, World> {
    world.write().unwrap_or_else(PoisonError::into_inner)
}

//! What an outage would be served if it began now, and what not, and why.
//!
//! Every copy of both tiers is judged as a read in an outage would judge it: by its route's policy of this moment, its
//! age, what the upstream said of it, and whether a token of its partition has proven itself of late. Objects that stand
//! on a page of their collection count where the object fallback would serve them. What cannot be seen from copies is
//! told from counts since the start: answers that were not kept at all, and why.
//!
//! Not on the way of any request: it runs where it may block, reads the heads of all copies on disk and the bodies of
//! pages, up to [`PAGES`] bytes (`is_partial` says when that was not all).
//!
//! What was kept under another `server.public_url` or upstream is found by no request, and does not count (`other-base`).
//! It cannot know in which version, language and form the next caller asks, and counts a resource as served when any copy
//! of it is.

use super::Cache;
use super::disk::{DiskStats, Listed};
use super::invalidate::Moment;
use super::key::{self, Key};
use super::list::{PATIENCE, SILENT};
use super::objects::page;
use super::policy::{Ask, Facts, Refused, Terms};
use super::refusals::Standing;
use crate::clock;
use crate::config::Snapshot;
use crate::flexport::incremental::is_incremental;
use crate::http::headers::is_json;
use crate::ids::PartitionId;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{Method, StatusCode};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// What an outage now would be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Of the shipments.
    pub shipments: ShipmentCoverage,
    /// Of each route that is read, in the order of the table.
    pub routes: Vec<RouteCoverage>,
    /// Of each partition.
    pub partitions: Vec<PartitionCoverage>,
    /// Copies that would not be served, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Whether some pages were not looked at, since they are too many: then more is served than it says.
    pub is_partial: bool,
    /// The state of the second tier. `None`: it is turned off.
    pub disk: Option<String>,
}

/// The shipments that would be served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShipmentCoverage {
    /// How many, each counted once.
    pub served: u64,
    /// Those of them that have no copy of their own, and are served out of a list.
    pub from_lists: u64,
    /// How many there are, as far as a list without a filter told. `None`: there is no such list.
    pub listed: Option<u64>,
    /// How old.
    #[serde(flatten)]
    pub ages: Ages,
}

/// How old that is which would be served, since the upstream last confirmed it. `None`: nothing would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ages {
    /// Half of it is no older.
    pub age_p50_seconds: Option<u64>,
    /// The oldest.
    pub age_max_seconds: Option<u64>,
}

/// What would be served of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteCoverage {
    /// Such as `GET /shipments/:id`.
    pub route: String,
    /// Its group.
    pub group: Arc<str>,
    /// Copies of any form.
    pub copies: u64,
    /// Resources that would be served: paths with their queries, in each partition.
    pub served: u64,
    /// Those of them that are served out of a list.
    pub from_lists: u64,
    /// How old.
    #[serde(flatten)]
    pub ages: Ages,
    /// Copies that would not be served, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Good answers since the start of the process that could not serve an outage, by reason.
    pub unservable: BTreeMap<&'static str, u64>,
    /// Why nothing of it would be served. `None`: something would.
    pub why_not: Option<&'static str>,
}

/// What a partition would be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionCoverage {
    /// Which.
    pub partition: PartitionId,
    /// `proven`: a token of it succeeded of late. `refused`: those that are known are refused. `unproven`: else.
    pub credential: &'static str,
    /// Copies of any form.
    pub copies: u64,
    /// Resources that would be served.
    pub served: u64,
    /// Shipments among them.
    pub shipments: u64,
}

/// A copy, wherever it lies.
struct Held<'a> {
    partition: PartitionId,
    key: Key,
    path: &'a str,
    /// Whether it is a 200 with JSON, without a coding.
    is_json: bool,
    facts: &'a Facts,
    began: Moment,
    /// What it was kept under. Zero: that is not known.
    base: u64,
    /// Since it was confirmed.
    since: Duration,
}

/// What is found out on the way.
#[derive(Clone)]
struct Seen {
    config: Arc<Snapshot>,
    base: u64,
    standing: Arc<HashMap<PartitionId, Standing>>,
    wanted: Option<PartitionId>,
    routes: HashMap<String, Tally>,
    partitions: HashMap<PartitionId, u64>,
    /// By partition, of the youngest list without a filter: its age, and how many shipments it says there are.
    listed: HashMap<PartitionId, (u64, u64)>,
    bytes: usize,
    is_partial: bool,
}

/// Of one route.
#[derive(Clone, Default)]
struct Tally {
    copies: u64,
    refused: BTreeMap<&'static str, u64>,
    /// The age of each resource that is served from a copy of its own.
    own: HashMap<Resource, u64>,
    /// The same of those that stand on a page.
    on_pages: HashMap<Resource, u64>,
    /// Those whose own copy must not stand in, so that no page does either.
    shut: HashSet<Resource>,
}

/// A path with its query, or the path of an object.
type Resource = (PartitionId, Box<str>);

/// Bytes of pages that are read.
const PAGES: usize = 64 << 20;
const SHIPMENTS: &str = "/shipments";

// === impl Cache ===

impl Cache {
    /// What an outage now would be served, of all or of one partition.
    pub async fn coverage(
        self: &Arc<Self>,
        config: Arc<Snapshot>,
        partition: Option<PartitionId>,
    ) -> Result<Coverage, String> {
        let window = *config.settings.cache.stale_auth_window;
        let standing = Arc::new(self.refusals.standing(self.clock.now().as_second(), window));
        let base = key::base(&config.settings.upstream.base_url, &config.public_url);
        let seen = Seen {
            config,
            base,
            standing,
            wanted: partition,
            routes: HashMap::new(),
            partitions: HashMap::new(),
            listed: HashMap::new(),
            bytes: 0,
            is_partial: false,
        };
        let (this, mut own) = (self.clone(), seen);
        let work = move || {
            let now = this.now();
            let in_memory = this.in_memory_after(None);
            for (key, entry) in in_memory.values() {
                let held = Held {
                    partition: entry.about.partition,
                    key: *key,
                    path: &entry.about.path,
                    is_json: entry.status == StatusCode::OK
                        && is_json(entry.head.get(&CONTENT_TYPE))
                        && entry.head.get(&CONTENT_ENCODING).is_none_or(|coding| coding == "identity"),
                    facts: &entry.facts,
                    began: entry.began,
                    base: entry.about.base,
                    since: entry.confirmed.since(&now),
                };
                own.look(&this, &held, || Some(entry.body.to_vec()), entry.body.len());
            }
            (own, in_memory)
        };
        let (seen, in_memory) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| format!("the copies could not be looked at: {error}"))?;
        let (mut seen, mut disk) = (seen, self.disk.as_ref().map(|disk| disk.stats()));
        if let Some(tier) = &self.disk {
            let this = self.clone();
            let look = move |seen: &mut Seen, listed: &Listed, body: &dyn Fn() -> Option<Vec<u8>>| {
                let is_known = listed.id.parse().is_ok_and(|id| in_memory.contains_key(&id));
                if !is_known {
                    let held = Held {
                        partition: listed.partition,
                        key: Key(listed.key),
                        path: &listed.path,
                        is_json: listed.status == 200 && listed.is_json,
                        facts: &listed.facts,
                        began: if listed.is_own { listed.began } else { this.marks.foreign(listed.began) },
                        base: listed.base,
                        since: clock::since(this.clock.now(), listed.at),
                    };
                    let length = usize::try_from(listed.bytes).unwrap_or(usize::MAX);
                    seen.look(&this, &held, body, length);
                }
                true
            };
            if let Ok(Some(all)) = timeout(PATIENCE, tier.walk(None, seen.clone(), look)).await {
                seen = all;
            } else {
                // What memory has is served all the same.
                seen.is_partial = true;
                if let Some(disk) = &mut disk {
                    SILENT.clone_into(&mut disk.state);
                }
            }
        }
        Ok(seen.told(&self.counters.unservable_by_route(), disk, self.is_strict))
    }

    /// Whether it would be served to anybody.
    fn judge_held(&self, seen: &Seen, held: &Held<'_>, terms: &Terms) -> Result<(), &'static str> {
        if held.base != 0 && held.base != seen.base {
            return Err(OTHER_BASE);
        }
        let query = held.path.split_once('?').map(|(_, query)| query);
        let ask = Ask { is_incremental: !self.is_strict && is_incremental(query), ..Ask::default() };
        let age = held.facts.age(held.since);
        held.facts.may_stand_in(age, held.since, false, terms, &ask).map_err(Refused::as_str)?;
        let nobody = Standing::default();
        let standing = seen.standing.get(&held.partition).unwrap_or(&nobody);
        if standing.proven.is_empty() {
            return Err(if standing.has_refused { "credential-refused" } else { Refused::Unproven.as_str() });
        }
        let is_refused = |token: &u64| self.refusals.is_refused(held.partition, || *token, &held.key);
        if standing.proven.iter().all(is_refused) { Err("credential-refused") } else { Ok(()) }
    }
}

/// It was kept under another `public_url` or upstream.
const OTHER_BASE: &str = "other-base";

// === impl Seen ===

impl Seen {
    fn look(
        &mut self,
        cache: &Cache,
        held: &Held<'_>,
        body: impl FnOnce() -> Option<Vec<u8>>,
        length: usize,
    ) {
        if self.wanted.is_some_and(|wanted| wanted != held.partition) {
            return;
        }
        *self.partitions.entry(held.partition).or_default() += 1;
        let config = self.config.clone();
        let (path, query) = held.path.split_once('?').unwrap_or((held.path, ""));
        let route = config.routes.find(&Method::GET, path);
        let verdict = match &route.cache {
            _ if cache.is_strict => cache.judge_held(self, held, &Terms::strict(&config.settings.cache)),
            Some(policy) => cache.judge_held(self, held, &Terms::of_route(policy, &config.settings.cache)),
            None => Err("not-cacheable"),
        };
        let age = held.since.as_secs();
        let tally = self.routes.entry(route.template.clone()).or_default();
        tally.copies += 1;
        let resource = (held.partition, held.path.into());
        match verdict {
            Ok(()) => youngest(&mut tally.own, resource, age),
            Err(reason) => {
                *tally.refused.entry(reason).or_default() += 1;
                // What is too old leaves it to a page; what is of another base is not found at all.
                if reason != Refused::TooOld.as_str() && reason != OTHER_BASE {
                    tally.shut.insert(resource);
                }
                return;
            }
        }
        let is_page = route.cache.as_ref().is_some_and(|policy| policy.holds_objects);
        if !is_page || cache.is_strict || !held.is_json || page::expands(query) {
            return;
        }
        let objects = format!("{}/:id", route.template);
        let has_fallback = config.routes.rows().any(|row| {
            row.template == objects && row.cache.as_ref().is_some_and(|policy| policy.object_fallback)
        });
        if !has_fallback {
            return;
        }
        if self.bytes.saturating_add(length) > PAGES {
            self.is_partial = true;
            return;
        }
        let Some(body) = body() else { return };
        self.bytes += body.len();
        if route.template == SHIPMENTS
            && !query.split('&').any(|pair| pair.starts_with("f.") || pair.starts_with("f%2"))
            && let Some(total) = total_count(&body)
        {
            let newest = self.listed.entry(held.partition).or_insert((age, total));
            if age < newest.0 {
                *newest = (age, total);
            }
        }
        let Some(read) = page::read(&body) else { return };
        let tally = self.routes.entry(objects).or_default();
        for (id, _) in read.objects {
            let path = format!("{}/{id}", route.template);
            if !cache.marks.is_purged(held.partition, &path, held.began) {
                youngest(&mut tally.on_pages, (held.partition, path.into()), age);
            }
        }
    }

    fn told(
        mut self,
        unservable: &HashMap<String, BTreeMap<&'static str, u64>>,
        disk: Option<DiskStats>,
        is_strict: bool,
    ) -> Coverage {
        for tally in self.routes.values_mut() {
            let Tally { own, on_pages, shut, .. } = tally;
            on_pages.retain(|resource, _| !own.contains_key(resource) && !shut.contains(resource));
        }
        let mut served: HashMap<PartitionId, u64> = HashMap::new();
        let mut refused = BTreeMap::new();
        for tally in self.routes.values() {
            for (partition, _) in tally.own.keys().chain(tally.on_pages.keys()) {
                *served.entry(*partition).or_default() += 1;
            }
            for (reason, count) in &tally.refused {
                *refused.entry(*reason).or_default() += count;
            }
        }
        let nothing = Tally::default();
        let is_read = |method: &Option<Method>| method.as_ref().is_none_or(|method| method == Method::GET);
        let config = self.config.clone();
        let routes: Vec<RouteCoverage> = config
            .routes
            .rows()
            .filter(|row| is_read(&row.method))
            .map(|row| {
                let tally = self.routes.get(&row.template).unwrap_or(&nothing);
                tally.told(
                    row.label(),
                    row.group.clone(),
                    is_strict || row.cache.is_some(),
                    unservable.get(&row.template),
                )
            })
            .collect();
        let objects = self.routes.get("/shipments/:id").unwrap_or(&nothing);
        let mut by_partition: HashMap<PartitionId, u64> = HashMap::new();
        // Of all partitions: each shipment once, at its youngest.
        let (mut all, mut own) = (HashMap::new(), HashSet::new());
        for ((partition, path), age) in objects.own.iter().chain(&objects.on_pages) {
            let path = path.split('?').next().unwrap_or_default();
            youngest(&mut all, path, *age);
            *by_partition.entry(*partition).or_default() += 1;
        }
        own.extend(objects.own.keys().map(|(_, path)| path.split('?').next().unwrap_or_default()));
        // Several may list the same account: the longest list is nearest to what there is.
        let listed = self.listed.values().map(|(_, total)| *total).max().unwrap_or_default();
        let shipments = ShipmentCoverage {
            served: all.len() as u64,
            from_lists: (all.len() - own.len()) as u64,
            listed: (!self.listed.is_empty()).then_some(listed),
            ages: Ages::of(all.into_values().collect()),
        };
        let mut partitions: Vec<PartitionCoverage> = self
            .partitions
            .iter()
            .map(|(partition, copies)| PartitionCoverage {
                partition: *partition,
                credential: match self.standing.get(partition) {
                    Some(standing) if !standing.proven.is_empty() => "proven",
                    Some(standing) if standing.has_refused => "refused",
                    _ => "unproven",
                },
                copies: *copies,
                served: served.get(partition).copied().unwrap_or_default(),
                shipments: by_partition.get(partition).copied().unwrap_or_default(),
            })
            .collect();
        partitions.sort_by_key(|one| (std::cmp::Reverse(one.copies), one.partition));
        Coverage {
            shipments,
            routes,
            partitions,
            refused,
            is_partial: self.is_partial,
            disk: disk.map(|disk| disk.state),
        }
    }
}

// === impl Tally ===

impl Tally {
    fn told(
        &self,
        route: String,
        group: Arc<str>,
        is_cacheable: bool,
        unservable: Option<&BTreeMap<&'static str, u64>>,
    ) -> RouteCoverage {
        let unservable = unservable.cloned().unwrap_or_default();
        let served = self.own.len() + self.on_pages.len();
        let most = |reasons: &BTreeMap<&'static str, u64>| {
            reasons.iter().max_by_key(|(_, count)| **count).map(|(reason, _)| *reason)
        };
        let why_not = (served == 0).then(|| {
            if is_cacheable {
                most(&self.refused).or_else(|| most(&unservable)).unwrap_or("never-seen")
            } else {
                "not-cacheable"
            }
        });
        RouteCoverage {
            route,
            group,
            copies: self.copies,
            served: served as u64,
            from_lists: self.on_pages.len() as u64,
            ages: Ages::of(self.own.values().chain(self.on_pages.values()).copied().collect()),
            refused: self.refused.clone(),
            unservable,
            why_not,
        }
    }
}

// === impl Ages ===

impl Ages {
    fn of(mut ages: Vec<u64>) -> Self {
        ages.sort_unstable();
        Self {
            age_p50_seconds: ages.get(ages.len().saturating_sub(1) / 2).copied(),
            age_max_seconds: ages.last().copied(),
        }
    }
}

fn youngest<K: Eq + std::hash::Hash>(ages: &mut HashMap<K, u64>, key: K, age: u64) {
    let known = ages.entry(key).or_insert(age);
    *known = age.min(*known);
}

/// `total_count` of a page: it stands before the objects.
fn total_count(body: &[u8]) -> Option<u64> {
    const HEAD: usize = 4096;
    let head = &body[..body.len().min(HEAD)];
    let at = memchr::memmem::find(head, b"\"total_count\":")? + 14;
    let digits = head[at..].trim_ascii_start();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

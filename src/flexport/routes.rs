//! Pure. Flexport's endpoints and what is done with each: the built-in table of the whole v2 API.
//!
//! A route is found by method and path **octets as they will be forwarded**: nothing is decoded or normalised, so
//! that router, cache and upstream cannot disagree. A segment that stands for an id is letters, digits, `-` and `_`
//! only; dots, percent signs and empty segments match no route, and what matches none belongs to the group `other`:
//! forwarded, never cached, never queued. One trailing slash is allowed, since Flexport itself links to
//! `/invoices/?per=1`.

use http::Method;
use std::sync::Arc;
use std::time::Duration;

/// What is done with the requests of one endpoint. The built-in values, as changed by `[[route]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutePolicy {
    /// The method that the row is for. `GET` rows serve `HEAD` too. `None` for the row of what nothing matches.
    pub method: Option<Method>,
    /// The path with `:id` for an id, such as `/shipments/:id`.
    pub template: String,
    /// The group: its requests share two breakers, `<group>:read` and `<group>:write`.
    pub group: Arc<str>,
    /// The time limit of the whole call, waiting included.
    pub timeout: Duration,
    /// Whether a failed attempt may be followed by another.
    pub retries: bool,
    /// Whether and how answers are kept.
    pub cache: Option<CachePolicy>,
    /// Whether and how the write is queued.
    pub queue: QueuePolicy,
}

/// How answers of a route are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct CachePolicy {
    /// How long an answer that names no freshness of its own is fresh. Zero: never.
    pub ttl: Duration,
    /// How long after it was last confirmed a copy may be served in an outage.
    pub max_stale: Duration,
    /// Whether a copy is served in an outage although the answer says `must-revalidate`, `no-cache` and the like.
    pub overrides_revalidation: bool,
    /// What `invalidates` of writes name: by default the collection, such as `bookings`.
    pub tag: String,
    /// Whether its answers are pages of objects that have a row of their own, `<template>/:id`.
    pub holds_objects: bool,
    /// Whether, in an outage, an object of which there is no copy is served out of a page of its collection.
    pub object_fallback: bool,
}

/// How a write is queued.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuePolicy {
    /// What may be done after an outcome that is not known. `None`: the route is never queued.
    pub class: Option<WriteClass>,
    /// The longest body that is queued, in bytes.
    pub max_body: u64,
    /// Which writes keep their order.
    pub order: OrderRule,
    /// Whether `503` with `Retry-After` proves, for what creates, that nothing was done.
    pub trusts_503: bool,
    /// Whether a head whose outcome is unknown keeps those behind it waiting.
    pub blocks_behind_unknown: bool,
    /// Whether a dead head keeps those behind it waiting.
    pub blocks_behind_dead: bool,
    /// Whether an equal write without a key is answered from one that was settled just before.
    pub answers_settled_twins: bool,
    /// Cache tags that a success makes stale, besides the path's own entries.
    pub invalidates: Vec<String>,
}

/// What may be done after an outcome that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum WriteClass {
    /// Replayable: it sets whole values, so sending it again changes nothing more.
    R,
    /// Natural key: a second one is refused by Flexport.
    N,
    /// Probe-able: its effect can be looked for.
    P,
    /// Opaque: only a person can tell.
    X,
}

/// Which writes keep their order among each other, inside a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderRule {
    /// No other: each write has a key of its own and never waits.
    None,
    /// Those of the same path.
    Path,
    /// Those that name the same parent in this member of their JSON body, under this collection's name.
    Body {
        /// The collection of the parent, such as `bookings`.
        collection: &'static str,
        /// The member, such as `booking_id`.
        member: &'static str,
    },
    /// All of the collection.
    Collection,
}

/// Finds the policy of a request.
#[derive(Clone, Debug)]
pub struct RouteTable {
    rows: Vec<Arc<RoutePolicy>>,
    /// By the first segment; of those that fit, the first counts.
    by_first: foldhash::HashMap<String, Vec<Pattern>>,
    other: Arc<RoutePolicy>,
}

/// A row as it is compared.
#[derive(Clone, Debug)]
struct Pattern {
    method: Option<Method>,
    /// The segments behind the first; `None` for an id.
    rest: Vec<Option<String>>,
    row: usize,
}

/// A value for each group. There are few, and a request asks several times: an address is compared sooner than a
/// name is hashed.
#[derive(Clone, Debug)]
pub struct ByGroup<T>(Vec<(Arc<str>, T)>);

/// Group and path of the cheap read that tells whether a group is well.
pub const PROBES: &[(&str, &str)] = &[
    ("shipments", "/shipments?per=1"),
    ("shipment_legs", "/shipment_legs?per=1"),
    ("containers", "/ocean/shipment_containers?per=1"),
    ("bookings", "/bookings?per=1"),
    ("documents", "/documents?per=1"),
    ("commercial_invoices", "/commercial_invoices?per=1"),
    ("customs_entries", "/customs_entries?per=1"),
    ("invoices", "/invoices?per=1"),
    ("products", "/products?per=1"),
    ("purchase_orders", "/purchase_orders?per=1"),
    ("ports", "/ports?per=1"),
    ("network", "/network/me/companies"),
    ("events", "/events?per=1"),
];

/// The name of the group of what no row matches.
pub const OTHER: &str = "other";

const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// The paths that are read, with their groups. `:id` rows follow from each but those marked.
const READS: &[(&str, &str, bool)] = &[
    ("/shipments", "shipments", true),
    ("/shipment_legs", "shipment_legs", true),
    ("/ocean/shipment_containers", "containers", true),
    ("/ocean/shipment_container_legs", "containers", true),
    ("/bookings", "bookings", true),
    ("/booking_line_items", "bookings", true),
    ("/documents", "documents", true),
    ("/commercial_invoices", "commercial_invoices", true),
    ("/customs_entries", "customs_entries", true),
    ("/invoices", "invoices", true),
    ("/products", "products", true),
    ("/purchase_orders", "purchase_orders", true),
    ("/purchase_order_line_items", "purchase_orders", true),
    ("/ports", "ports", true),
    ("/network/companies", "network", true),
    ("/network/company_entities", "network", true),
    ("/network/contacts", "network", true),
    ("/network/locations", "network", true),
    ("/network/me/companies", "network", false),
    ("/events", "events", true),
];

// === impl WriteClass ===

impl WriteClass {
    /// Whether it makes something new, so that a second arrival would take effect twice.
    pub fn creates(self) -> bool {
        match self {
            Self::P | Self::X | Self::N => true,
            Self::R => false,
        }
    }

    /// Whether it may be sent again after an outcome that is not known. Class N needs a look-up by its natural key
    /// for that, and until there is one it is treated like X.
    pub fn is_replayable(self) -> bool {
        match self {
            Self::R => true,
            Self::N | Self::P | Self::X => false,
        }
    }
}

// === impl QueuePolicy ===

impl QueuePolicy {
    /// Never queued: forwarded, and refused in an outage.
    pub fn never() -> Self {
        Self {
            class: None,
            max_body: MIB,
            order: OrderRule::None,
            trusts_503: false,
            blocks_behind_unknown: false,
            blocks_behind_dead: false,
            answers_settled_twins: true,
            invalidates: Vec::new(),
        }
    }

    fn of(class: WriteClass, order: OrderRule) -> Self {
        Self { class: Some(class), order, ..Self::never() }
    }
}

// === impl RoutePolicy ===

impl RoutePolicy {
    /// The row of what no other row matches.
    pub fn other() -> Self {
        Self {
            method: None,
            template: "*".to_owned(),
            group: Arc::from(OTHER),
            timeout: TOTAL_TIMEOUT,
            retries: true,
            cache: None,
            queue: QueuePolicy::never(),
        }
    }

    /// The label of the route in logs and metrics, such as `GET /shipments/:id`. Bounded in number.
    pub fn label(&self) -> String {
        match &self.method {
            Some(method) => format!("{method} {}", self.template),
            None => OTHER.to_owned(),
        }
    }
}

/// The built-in table.
pub fn built_in() -> Vec<RoutePolicy> {
    let mut rows = Vec::new();
    for (path, group, has_items) in READS {
        let tag = path.rsplit('/').next().unwrap_or(path).to_owned();
        let row = |template: String, holds_objects: bool, object_fallback: bool| RoutePolicy {
            method: Some(Method::GET),
            template,
            group: Arc::from(*group),
            timeout: TOTAL_TIMEOUT,
            retries: true,
            cache: Some(CachePolicy {
                ttl: Duration::ZERO,
                max_stale: Duration::from_secs(24 * 3600),
                overrides_revalidation: true,
                tag: tag.clone(),
                holds_objects,
                object_fallback,
            }),
            queue: QueuePolicy::never(),
        };
        rows.push(row((*path).to_owned(), *has_items, false));
        if *has_items {
            // Flexport documents no read of one port: what it would not answer is not made up.
            rows.push(row(format!("{path}/:id"), false, *path != "/ports"));
        }
        if *path == "/documents" {
            rows.push(row("/documents/:id/download".to_owned(), false, false));
        }
    }
    let mut write = |method: Method, template: &str, group: &str, queue: QueuePolicy| {
        rows.push(RoutePolicy {
            method: Some(method),
            template: template.to_owned(),
            group: Arc::from(group),
            timeout: TOTAL_TIMEOUT,
            retries: true,
            cache: None,
            queue,
        });
    };
    use OrderRule::{Body, Collection, None as Free, Path};
    use WriteClass::{N, P, R, X};
    let to_booking = Body { collection: "bookings", member: "booking_id" };
    let stale = |tag: &str| vec![tag.to_owned()];
    write(
        Method::PATCH,
        "/shipments/:id",
        "shipments",
        QueuePolicy { invalidates: stale("shipments"), ..QueuePolicy::of(R, Path) },
    );
    write(
        Method::POST,
        "/bookings",
        "bookings",
        QueuePolicy { invalidates: stale("bookings"), ..QueuePolicy::of(P, Free) },
    );
    write(
        Method::POST,
        "/booking_amendments",
        "bookings",
        QueuePolicy {
            invalidates: stale("bookings"),
            blocks_behind_unknown: true,
            blocks_behind_dead: true,
            ..QueuePolicy::of(X, to_booking.clone())
        },
    );
    write(
        Method::POST,
        "/booking_line_items",
        "bookings",
        QueuePolicy {
            invalidates: stale("booking_line_items"),
            blocks_behind_unknown: true,
            answers_settled_twins: false,
            ..QueuePolicy::of(X, to_booking)
        },
    );
    write(
        Method::POST,
        "/documents",
        "documents",
        QueuePolicy {
            max_body: 16 * MIB,
            invalidates: stale("documents"),
            ..QueuePolicy::of(P, Body { collection: "documents", member: "shipment_id" })
        },
    );
    write(
        Method::POST,
        "/commercial_invoices",
        "commercial_invoices",
        QueuePolicy { invalidates: stale("commercial_invoices"), ..QueuePolicy::of(N, Free) },
    );
    write(
        Method::PATCH,
        "/commercial_invoices",
        "commercial_invoices",
        QueuePolicy { invalidates: stale("commercial_invoices"), ..QueuePolicy::of(R, Collection) },
    );
    for kind in ["companies", "company_entities", "contacts", "locations"] {
        write(
            Method::POST,
            &format!("/network/{kind}"),
            "network",
            QueuePolicy { invalidates: stale(kind), ..QueuePolicy::of(P, Free) },
        );
        write(
            Method::PATCH,
            &format!("/network/{kind}/:id"),
            "network",
            QueuePolicy { invalidates: stale(kind), ..QueuePolicy::of(R, Path) },
        );
    }
    write(
        Method::POST,
        "/products",
        "products",
        QueuePolicy { invalidates: stale("products"), ..QueuePolicy::of(N, Free) },
    );
    write(
        Method::PATCH,
        "/products/:id",
        "products",
        QueuePolicy { invalidates: stale("products"), ..QueuePolicy::of(R, Path) },
    );
    write(
        Method::POST,
        "/purchase_orders",
        "purchase_orders",
        QueuePolicy { invalidates: stale("purchase_orders"), ..QueuePolicy::of(P, Free) },
    );
    write(Method::POST, "/carbon_calculation", "carbon", QueuePolicy::never());
    write(Method::POST, "/oauth/token", "oauth", QueuePolicy::never());
    rows
}

// === impl RouteTable ===

impl RouteTable {
    /// A table of these rows; the row of the rest is `other`.
    pub fn new(rows: Vec<RoutePolicy>, other: RoutePolicy) -> Self {
        // One name for each group, so that `ByGroup` mostly compares addresses.
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut shared = |mut row: RoutePolicy| {
            match names.iter().find(|name| **name == row.group) {
                Some(name) => row.group = name.clone(),
                None => names.push(row.group.clone()),
            }
            Arc::new(row)
        };
        let rows: Vec<_> = rows.into_iter().map(&mut shared).collect();
        let other = shared(other);
        let mut by_first = foldhash::HashMap::<String, Vec<Pattern>>::default();
        for (index, row) in rows.iter().enumerate() {
            let mut segments = row.template.trim_start_matches('/').split('/');
            let first = segments.next().unwrap_or_default();
            let rest = segments.map(|name| (!name.starts_with(':')).then(|| name.to_owned())).collect();
            by_first.entry(first.to_owned()).or_default().push(Pattern {
                method: row.method.clone(),
                rest,
                row: index,
            });
        }
        for patterns in by_first.values_mut() {
            // A literal segment wins over an id: `/network/me/companies` has no rival today, but a file may add one.
            patterns.sort_by_key(|pattern| pattern.rest.iter().filter(|name| name.is_none()).count());
        }
        Self { rows, by_first, other }
    }

    /// The policy of a request with this method and this path (without the query).
    pub fn find(&self, method: &Method, path: &str) -> &Arc<RoutePolicy> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let Some(rest) = path.strip_prefix('/') else { return &self.other };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (first, rest) = segment(rest);
        let Some(patterns) = self.by_first.get(first) else { return &self.other };
        patterns
            .iter()
            .find(|pattern| pattern.method.as_ref() == Some(method) && pattern.fits(rest))
            .map_or(&self.other, |pattern| &self.rows[pattern.row])
    }

    /// All rows, that of the rest last.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<RoutePolicy>> {
        self.rows.iter().chain(std::iter::once(&self.other))
    }

    /// The names of all groups, each once, in the table's order.
    pub fn groups(&self) -> Vec<Arc<str>> {
        let mut groups: Vec<Arc<str>> = Vec::new();
        for row in self.rows() {
            if !groups.contains(&row.group) {
                groups.push(row.group.clone());
            }
        }
        groups
    }
}

// === impl ByGroup ===

impl<T> ByGroup<T> {
    /// One value for each group.
    pub fn new(groups: &[Arc<str>], value: impl Fn(&Arc<str>) -> T) -> Self {
        Self(groups.iter().map(|group| (group.clone(), value(group))).collect())
    }

    /// The value of a group.
    pub fn get(&self, group: &str) -> Option<&T> {
        let same = |known: &Arc<str>| std::ptr::eq(known.as_ptr(), group.as_ptr());
        self.0
            .iter()
            .find(|(known, _)| same(known))
            .or_else(|| self.0.iter().find(|(known, _)| **known == *group))
            .map(|(_, value)| value)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}
// === impl Pattern ===

impl Pattern {
    /// Whether this is what stands behind the first segment, if anything does.
    fn fits(&self, mut rest: Option<&str>) -> bool {
        for expected in &self.rest {
            let Some(path) = rest else { return false };
            let (found, behind) = segment(path);
            match expected {
                Some(name) if name == found => {}
                None if is_id(found) => {}
                _ => return false,
            }
            rest = behind;
        }
        rest.is_none()
    }
}

/// The first segment, and what stands behind its slash.
fn segment(path: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'/', path.as_bytes()) {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

fn is_id(segment: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !segment.is_empty() && segment.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RouteTable {
        RouteTable::new(built_in(), RoutePolicy::other())
    }

    fn label(method: &Method, path: &str) -> String {
        table().find(method, path).label()
    }

    #[test]
    fn requests_find_their_row() {
        assert_eq!(label(&Method::GET, "/shipments"), "GET /shipments");
        assert_eq!(label(&Method::HEAD, "/shipments/12"), "GET /shipments/:id");
        assert_eq!(label(&Method::GET, "/invoices/"), "GET /invoices");
        assert_eq!(label(&Method::GET, "/network/me/companies"), "GET /network/me/companies");
        assert_eq!(label(&Method::GET, "/documents/a_-Z/download"), "GET /documents/:id/download");
        assert_eq!(label(&Method::PATCH, "/network/contacts/abc"), "PATCH /network/contacts/:id");
        assert_eq!(label(&Method::POST, "/bookings"), "POST /bookings");
    }

    #[test]
    fn what_another_server_could_read_differently_is_other() {
        for path in [
            "/shipments/..",
            "/shipments/.",
            "/shipments//1",
            "/shipments/%2e%2e",
            "/shipments/1%2F2",
            "//shipments",
            "/shipments/1;a=b",
            "/Shipments",
            "*",
            "",
            "/shipments/1/2",
        ] {
            assert_eq!(label(&Method::GET, path), OTHER, "{path}");
        }
        assert_eq!(label(&Method::DELETE, "/shipments/1"), OTHER);
    }

    #[test]
    fn every_group_with_reads_has_a_probe_that_is_a_read_of_it() {
        let table = table();
        for group in table.groups() {
            let reads = table.rows().any(|row| row.group == group && row.method == Some(Method::GET));
            let probe = PROBES.iter().find(|(name, _)| **name == *group);
            assert_eq!(reads, probe.is_some(), "{group}");
            if let Some((name, path)) = probe {
                let path = path.split('?').next().unwrap();
                assert_eq!(&*table.find(&Method::GET, path).group, *name);
            }
        }
    }
}

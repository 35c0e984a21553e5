//! The simulated account: its objects, how they are found, and what writes do to them.
//!
//! Every object is kept both as a value (for filters, orders and changes) and, once read, serialised (so that a page
//! is put together by copying). Objects stand in the order of their creation, which is also that of integer ids; the
//! same seed makes the same bytes. Only the stamps of writes come from outside, as `now`.
//!
//! A write is checked as little as the real API is known to check, takes effect as a whole or not at all, and its
//! refusal says which field is wrong. What happens by itself, as the clock goes on, is in `voyage`.

mod events;
mod expand;
mod kind;
mod select;
mod voyage;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{lock, seed};

pub(in crate::sim) use events::Happening;
pub(in crate::sim) use kind::Kind;
pub(in crate::sim) use voyage::Voyage;
#[cfg(test)]
pub(in crate::sim) use write::{Holds, NULLABLE};

use voyage::Schedule;

/// An object.
#[derive(Debug)]
pub(in crate::sim) struct Item {
    /// The id as it stands in a path; empty for what has none.
    pub(in crate::sim) id: String,
    pub(in crate::sim) value: Value,
    json: OnceLock<Bytes>,
}

/// The bytes behind a document.
#[derive(Debug)]
pub(in crate::sim) struct File {
    pub(in crate::sim) name: String,
    pub(in crate::sim) mime_type: String,
    pub(in crate::sim) content: Content,
}

/// Where a document's bytes come from.
#[derive(Debug)]
pub(in crate::sim) enum Content {
    /// Made from a seed when first asked for.
    Seeded {
        seed: u64,
        size: usize,
        made: OnceLock<Bytes>,
    },
    Given(Bytes),
}

/// A write that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sim) struct Refusal {
    pub(in crate::sim) status: u16,
    pub(in crate::sim) code: &'static str,
    pub(in crate::sim) message: String,
}

/// Everything that the account has.
#[derive(Debug)]
pub(in crate::sim) struct World {
    pub(in crate::sim) links: Links,
    collections: Vec<Collection>,
    files: HashMap<String, Arc<File>>,
    /// Makes ids for what is created later.
    rng: fastrand::Rng,
    pub(in crate::sim) seed: u64,
    /// What happens when the clock goes on.
    schedule: Schedule,
    /// Events that nobody has fetched yet for delivery.
    outbox: Vec<Arc<Item>>,
    /// Which contacts are at which locations: location, contact.
    places: Vec<(String, String)>,
    /// Counts the changes; what was selected before the last one may be wrong.
    changes: u64,
    /// What filters selected lately, by kind and query: all pages of a list are cut from it.
    selections: Mutex<HashMap<(usize, String), Selection>>,
}

/// The places of the objects that a query selects, in its order, and the state of the world that it is of.
#[derive(Debug, Clone)]
struct Selection {
    changes: u64,
    places: Arc<[usize]>,
}

/// Makes the absolute links that the API's bodies carry.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Links {
    base: Arc<str>,
}

#[derive(Debug, Default)]
struct Collection {
    items: Vec<Arc<Item>>,
    by_id: HashMap<String, usize>,
    last_id: u64,
    /// Where the objects stand that refer to another one: by the referring field's place in
    /// [`Kind::parents`] and the id referred to. References never change.
    by_parent: HashMap<(usize, u64), Vec<usize>>,
    /// The orders that were asked for since the last change: by field, the places of all objects.
    orders: Mutex<HashMap<String, Arc<[usize]>>>,
}

// === impl File ===

impl File {
    pub(in crate::sim) fn bytes(&self) -> Bytes {
        match &self.content {
            Content::Given(bytes) => bytes.clone(),
            Content::Seeded { seed, size, made } => {
                made.get_or_init(|| seed::file_bytes(*seed, *size, &self.mime_type)).clone()
            }
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(in crate::sim) fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, code: "bad_request", message: message.into() }
    }

    pub(in crate::sim) fn not_found(kind: Kind, id: &str) -> Self {
        Self { status: 404, code: "not_found", message: format!("no {} with id {id:?}", kind.object()) }
    }

    pub(in crate::sim) fn duplicate(message: String) -> Self {
        Self { status: 422, code: "duplicate", message }
    }
}

// === impl Links ===

impl Links {
    pub(in crate::sim) fn new(base: &str) -> Self {
        Self { base: base.trim_end_matches('/').into() }
    }

    pub(in crate::sim) fn base(&self) -> &str {
        &self.base
    }

    /// A reference to one object.
    pub(in crate::sim) fn object(&self, kind: Kind, id: &Value) -> Value {
        let text = id_text(id);
        json!({
            "_object": "/api/refs/object",
            "ref_type": kind.object(),
            "link": format!("{}{}/{text}", self.base, kind.path()),
            "id": id,
        })
    }

    /// A reference to the objects that a filter selects.
    pub(in crate::sim) fn collection(&self, kind: Kind, filter: &str, id: &Value) -> Value {
        json!({
            "_object": "/api/refs/collection",
            "ref_type": kind.object(),
            "link": format!("{}{}?{filter}={}", self.base, kind.path(), id_text(id)),
        })
    }
}

// === impl World ===

impl World {
    /// The world of a seed.
    pub(in crate::sim) fn new(seed: u64, shipments: usize, link_base: &str) -> Self {
        let mut world = Self {
            links: Links::new(link_base),
            collections: Kind::ALL.iter().map(|_| Collection::default()).collect(),
            files: HashMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ 0x5ea_0a11),
            seed,
            schedule: Schedule::default(),
            outbox: Vec::new(),
            places: Vec::new(),
            changes: 0,
            selections: Mutex::default(),
        };
        seed::fill(&mut world, seed, shipments);
        // What the seed tells of the past was delivered in the past.
        world.outbox.clear();
        world
    }

    /// Adds an object of the seeded world, or one just created.
    pub(in crate::sim) fn insert(&mut self, kind: Kind, value: Value) -> Arc<Item> {
        self.changes += 1;
        let collection = &mut self.collections[kind as usize];
        if let Some(id) = value["id"].as_u64() {
            collection.last_id = collection.last_id.max(id);
        }
        for (field, name) in kind.parents().iter().enumerate() {
            let parents = match &value[*name] {
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            for parent in parents.iter().filter_map(|parent| parent["id"].as_u64()) {
                collection.by_parent.entry((field, parent)).or_default().push(collection.items.len());
            }
        }
        collection.add(Arc::new(Item::new(value)))
    }

    /// The objects of a kind that refer to another one by a field.
    pub(in crate::sim) fn children(&self, kind: Kind, field: &str, parent: u64) -> &[usize] {
        let place = kind.parents().iter().position(|name| *name == field);
        let places = place.and_then(|place| self.collections[kind as usize].by_parent.get(&(place, parent)));
        places.map_or(&[], Vec::as_slice)
    }

    pub(in crate::sim) fn at(&self, kind: Kind, place: usize) -> &Arc<Item> {
        &self.collections[kind as usize].items[place]
    }

    /// The events since the last call, oldest first.
    pub(in crate::sim) fn take_events(&mut self) -> Vec<Arc<Item>> {
        std::mem::take(&mut self.outbox)
    }

    /// Says that a contact is at a location.
    pub(in crate::sim) fn place(&mut self, location: &str, contact: &str) {
        self.changes += 1;
        self.places.push((location.to_owned(), contact.to_owned()));
    }

    pub(in crate::sim) fn insert_file(&mut self, id: &str, file: File) {
        self.files.insert(id.to_owned(), Arc::new(file));
    }

    pub(in crate::sim) fn get(&self, kind: Kind, id: &str) -> Option<&Arc<Item>> {
        let collection = &self.collections[kind as usize];
        collection.by_id.get(id).map(|index| &collection.items[*index])
    }

    pub(in crate::sim) fn file(&self, id: &str) -> Option<&Arc<File>> {
        self.files.get(id)
    }

    pub(in crate::sim) fn all(&self, kind: Kind) -> &[Arc<Item>] {
        &self.collections[kind as usize].items
    }

    /// The number of objects in each collection.
    pub(in crate::sim) fn counts(&self) -> Value {
        let count = |kind: &Kind| {
            let name = kind.path().trim_start_matches('/').to_owned();
            (name, json!(self.all(*kind).len()))
        };
        Value::Object(Kind::ALL.iter().map(count).collect())
    }

    pub(in crate::sim) fn replace(&mut self, kind: Kind, id: &str, value: Value) -> Arc<Item> {
        self.changes += 1;
        let collection = &mut self.collections[kind as usize];
        let item = Arc::new(Item::new(value));
        if let Some(index) = collection.by_id.get(id) {
            collection.items[*index] = Arc::clone(&item);
            lock(&collection.orders).clear();
        }
        item
    }

    pub(in crate::sim) fn next_id(&self, kind: Kind) -> u64 {
        self.collections[kind as usize].last_id + 1
    }

    pub(in crate::sim) fn text_id(&mut self) -> String {
        text_id(&mut self.rng)
    }
}

// === impl Collection ===

impl Collection {
    fn add(&mut self, item: Arc<Item>) -> Arc<Item> {
        if !item.id.is_empty() {
            self.by_id.insert(item.id.clone(), self.items.len());
        }
        self.items.push(Arc::clone(&item));
        lock(&self.orders).clear();
        item
    }
}

// === impl Item ===

impl Item {
    fn new(value: Value) -> Self {
        Self { id: id_text(&value["id"]), json: OnceLock::new(), value }
    }

    /// An object of which only what filters and orders look at is kept as a value.
    fn written(value: Value, json: Bytes) -> Self {
        Self { id: id_text(&value["id"]), json: OnceLock::from(json), value }
    }

    /// The object serialised; made when first asked for, since most are never.
    pub(in crate::sim) fn json(&self) -> &Bytes {
        self.json.get_or_init(|| self.value.to_string().into())
    }
}

/// An id as it stands in a path.
pub(in crate::sim) fn id_text(id: &Value) -> String {
    match id {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// A 22-character id.
pub(in crate::sim) fn text_id(rng: &mut fastrand::Rng) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rng.u128(..).to_be_bytes())
}

//! The simulated account: its objects, how they are found, and what writes do to them.
//!
//! Every object is kept both as a value (for filters, orders and changes) and, once read, serialised (so that a page
//! is put together by copying). Objects stand in the order of their creation, which is also that of integer ids; the
//! same seed makes the same bytes. Only the stamps of writes come from outside, as `now`.
//!
//! A write is checked as little as the real API is known to check, takes effect as a whole or not at all, and its
//! refusal says which field is wrong.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::query::{Filter, Needle, Op, Query, compare};
use super::seed;

/// The kinds of objects, each with a collection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shipment,
    ShipmentLeg,
    Container,
    ContainerLeg,
    Booking,
    BookingLineItem,
    BookingAmendment,
    Document,
    CommercialInvoice,
    CustomsEntry,
    Invoice,
    Product,
    PurchaseOrder,
    PurchaseOrderLineItem,
    Port,
    Company,
    CompanyEntity,
    Contact,
    Location,
    Event,
}

/// An object.
#[derive(Debug)]
pub(super) struct Item {
    /// The id as it stands in a path; empty for what has none.
    pub(super) id: String,
    pub(super) value: Value,
    json: OnceLock<Bytes>,
}

/// The bytes behind a document.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) mime_type: String,
    pub(super) content: Content,
}

/// Where a document's bytes come from.
#[derive(Debug)]
pub(super) enum Content {
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
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) total: u64,
    pub(super) items: Vec<Arc<Item>>,
}

/// Everything that the account has.
#[derive(Debug)]
pub(super) struct World {
    pub(super) links: Links,
    collections: Vec<Collection>,
    files: HashMap<String, Arc<File>>,
    /// Makes ids for what is created later.
    rng: fastrand::Rng,
    pub(super) seed: u64,
}

/// Makes the absolute links that the API's bodies carry.
#[derive(Debug, Clone)]
pub(super) struct Links {
    base: Arc<str>,
}

#[derive(Debug, Default)]
struct Collection {
    items: Vec<Arc<Item>>,
    by_id: HashMap<String, usize>,
    last_id: u64,
}

// === impl Kind ===

impl Kind {
    pub(super) const ALL: [Self; 20] = [
        Self::Shipment,
        Self::ShipmentLeg,
        Self::Container,
        Self::ContainerLeg,
        Self::Booking,
        Self::BookingLineItem,
        Self::BookingAmendment,
        Self::Document,
        Self::CommercialInvoice,
        Self::CustomsEntry,
        Self::Invoice,
        Self::Product,
        Self::PurchaseOrder,
        Self::PurchaseOrderLineItem,
        Self::Port,
        Self::Company,
        Self::CompanyEntity,
        Self::Contact,
        Self::Location,
        Self::Event,
    ];

    /// The collection's path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Shipment => "/shipments",
            Self::ShipmentLeg => "/shipment_legs",
            Self::Container => "/ocean/shipment_containers",
            Self::ContainerLeg => "/ocean/shipment_container_legs",
            Self::Booking => "/bookings",
            Self::BookingLineItem => "/booking_line_items",
            Self::BookingAmendment => "/booking_amendments",
            Self::Document => "/documents",
            Self::CommercialInvoice => "/commercial_invoices",
            Self::CustomsEntry => "/customs_entries",
            Self::Invoice => "/invoices",
            Self::Product => "/products",
            Self::PurchaseOrder => "/purchase_orders",
            Self::PurchaseOrderLineItem => "/purchase_order_line_items",
            Self::Port => "/ports",
            Self::Company => "/network/companies",
            Self::CompanyEntity => "/network/company_entities",
            Self::Contact => "/network/contacts",
            Self::Location => "/network/locations",
            Self::Event => "/events",
        }
    }

    /// The `_object` of its objects.
    pub(super) fn object(self) -> &'static str {
        match self {
            Self::Shipment => "/shipment",
            Self::ShipmentLeg => "/shipment_leg",
            Self::Container => "/ocean/shipment_container",
            Self::ContainerLeg => "/ocean/shipment_container_leg",
            Self::Booking => "/booking",
            Self::BookingLineItem => "/purchase_orders/booking_line_item",
            Self::BookingAmendment => "/booking_amendment",
            Self::Document => "/document",
            Self::CommercialInvoice => "/commercial_invoice",
            Self::CustomsEntry => "/customs_entry",
            Self::Invoice => "/invoice",
            Self::Product => "/product",
            Self::PurchaseOrder => "/purchase_order",
            Self::PurchaseOrderLineItem => "/purchase_orders/line_item",
            Self::Port => "/place",
            Self::Company => "/network/company",
            Self::CompanyEntity => "/company_entity",
            Self::Contact => "/network/contact",
            Self::Location => "/network/location",
            Self::Event => "/event",
        }
    }

    fn of_object(object: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.object() == object)
    }

    /// Whether `GET` answers for its collection.
    pub(super) fn is_listed(self) -> bool {
        self != Self::BookingAmendment
    }

    /// Whether `GET` answers for one of its objects.
    pub(super) fn is_readable(self) -> bool {
        !matches!(self, Self::BookingAmendment | Self::Port)
    }

    pub(super) fn is_created(self) -> bool {
        matches!(
            self,
            Self::Booking
                | Self::BookingLineItem
                | Self::BookingAmendment
                | Self::Document
                | Self::CommercialInvoice
                | Self::Product
                | Self::PurchaseOrder
        ) || self.is_network()
    }

    pub(super) fn is_patched(self) -> bool {
        matches!(self, Self::Shipment | Self::Product) || self.is_network()
    }

    fn is_network(self) -> bool {
        matches!(self, Self::Company | Self::CompanyEntity | Self::Contact | Self::Location)
    }

    /// The paths inside an object that a documented filter name stands for.
    fn filter_paths(self, field: &str) -> Option<&'static [&'static [&'static str]]> {
        Some(match (self, field) {
            (Self::Shipment, "statuses") => &[&["status"]],
            (Self::Shipment, "house_bill_number") => {
                &[&["ocean_shipment", "house_bill_number"], &["air_shipment", "house_airway_bill"]]
            }
            (Self::Shipment, "master_bill_number") => {
                &[&["ocean_shipment", "master_bill_number"], &["air_shipment", "master_airway_bill"]]
            }
            (Self::Shipment, "consignee_external_ref") => &[&["consignees", "ref"]],
            (Self::Shipment, "purchase_order") => &[&["metadata", "purchase_order"]],
            (Self::Shipment, "sku") => &[&["metadata", "sku"]],
            (Self::Booking, "consignee_entity_ref") => &[&["consignee_entity", "ref"]],
            (Self::Booking, "shipper_entity_ref") => &[&["shipper_entity", "ref"]],
            (Self::Document, "uploaded_at") => &[&["file_metadata", "uploaded_at"]],
            (Self::Invoice, "shipment_id" | "shipment") => &[&["shipments", "id"]],
            (Self::Invoice, "entity") => &[&["recipient"]],
            (Self::Port, "unlocode") => &[&["address", "unlocode"]],
            (Self::PurchaseOrder, "buyer_ref") => &[&["buyer", "ref"]],
            (Self::PurchaseOrder, "seller_ref") => &[&["seller", "ref"]],
            (Self::BookingLineItem, "purchase_order") => &[&["purchase_order_line_item", "purchase_order"]],
            (Self::Contact | Self::Location, "company_ref") => &[&["company", "ref"]],
            (Self::Location, "contact") => &[&["contacts"]],
            (Self::Contact, "location") => &[&["locations"]],
            _ => return None,
        })
    }
}

// === impl File ===

impl File {
    pub(super) fn bytes(&self) -> Bytes {
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
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, code: "bad_request", message: message.into() }
    }

    fn not_found(kind: Kind, id: &str) -> Self {
        Self { status: 404, code: "not_found", message: format!("no {} with id {id:?}", kind.object()) }
    }

    fn duplicate(message: String) -> Self {
        Self { status: 422, code: "duplicate", message }
    }
}

// === impl Links ===

impl Links {
    pub(super) fn new(base: &str) -> Self {
        Self { base: base.trim_end_matches('/').into() }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// A reference to one object.
    pub(super) fn object(&self, kind: Kind, id: &Value) -> Value {
        let text = id_text(id);
        json!({
            "_object": "/api/refs/object",
            "ref_type": kind.object(),
            "link": format!("{}{}/{text}", self.base, kind.path()),
            "id": id,
        })
    }

    /// A reference to the objects that a filter selects.
    pub(super) fn collection(&self, kind: Kind, filter: &str, id: &Value) -> Value {
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
    pub(super) fn new(seed: u64, shipments: usize, link_base: &str) -> Self {
        let mut world = Self {
            links: Links::new(link_base),
            collections: Kind::ALL.iter().map(|_| Collection::default()).collect(),
            files: HashMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ 0x5ea_0a11),
            seed,
        };
        seed::fill(&mut world, seed, shipments);
        world
    }

    /// Adds an object of the seeded world, or one just created.
    pub(super) fn insert(&mut self, kind: Kind, value: Value) -> Arc<Item> {
        let collection = &mut self.collections[kind as usize];
        if let Some(id) = value["id"].as_u64() {
            collection.last_id = collection.last_id.max(id);
        }
        let item = Arc::new(Item::new(value));
        if !item.id.is_empty() {
            collection.by_id.insert(item.id.clone(), collection.items.len());
        }
        collection.items.push(Arc::clone(&item));
        item
    }

    pub(super) fn insert_file(&mut self, id: &str, file: File) {
        self.files.insert(id.to_owned(), Arc::new(file));
    }

    pub(super) fn get(&self, kind: Kind, id: &str) -> Option<&Arc<Item>> {
        let collection = &self.collections[kind as usize];
        collection.by_id.get(id).map(|index| &collection.items[*index])
    }

    pub(super) fn file(&self, id: &str) -> Option<&Arc<File>> {
        self.files.get(id)
    }

    pub(super) fn all(&self, kind: Kind) -> &[Arc<Item>] {
        &self.collections[kind as usize].items
    }

    /// The page of a list that a query asks for. The error is a sentence that names the parameter.
    pub(super) fn select(&self, kind: Kind, query: &Query) -> Result<Page, String> {
        let items = self.all(kind);
        let first = items.first().map(|item| &item.value);
        let mut filters = Vec::with_capacity(query.filters.len());
        for filter in &query.filters {
            filters.push(self.resolve(kind, filter, first)?);
        }
        let mut chosen: Vec<&Arc<Item>> = items
            .iter()
            .filter(|item| filters.iter().all(|(filter, paths)| self.passes(filter, paths, &item.value)))
            .collect();
        if let Some(field) = &query.sort {
            if first.is_some_and(|value| value.get(field).is_none()) {
                return Err(format!("sort: objects of this list have no field {field:?}"));
            }
            // Stable, and the items stand by age: equal fields are ordered by id.
            chosen.sort_by(|a, b| compare(&a.value[field], &b.value[field]));
        }
        if query.is_descending {
            chosen.reverse();
        }
        let total = chosen.len() as u64;
        let items = chosen
            .into_iter()
            .skip(usize::try_from(query.offset()).unwrap_or(usize::MAX))
            .take(query.per as usize)
            .cloned()
            .collect();
        Ok(Page { total, items })
    }

    /// The condition and the paths inside an object that it looks at.
    fn resolve<'q>(
        &self,
        kind: Kind,
        filter: &'q Filter,
        first: Option<&Value>,
    ) -> Result<(Cow<'q, Filter>, Vec<Vec<&'q str>>), String> {
        let field = filter.path[0].as_str();
        if let Some(ids) = self.joined(kind, filter, field) {
            let needles = ids.iter().map(|id| Needle::new(id)).collect();
            let by_id = Filter { path: Vec::new(), op: Op::Is, needles };
            return Ok((Cow::Owned(by_id), vec![vec!["id"]]));
        }
        if kind == Kind::Port && field == "port_type" {
            let objects = filter.needles.iter().map(|needle| {
                Needle::new(match needle.text() {
                    "airport" => "/air/port",
                    "railport" => "/ocean/railport",
                    "roadport" => "/trucking/port",
                    _ => "/ocean/port",
                })
            });
            let by_object = Filter { path: Vec::new(), op: filter.op, needles: objects.collect() };
            return Ok((Cow::Owned(by_object), vec![vec!["details", "_object"]]));
        }
        let rest = || filter.path[1..].iter().map(String::as_str);
        let paths = match kind.filter_paths(field) {
            Some(paths) => paths.iter().map(|path| path.iter().copied().chain(rest()).collect()).collect(),
            None if first.is_some_and(|value| value.get(field).is_none()) => {
                return Err(format!("f.{}: this list has no such filter", filter.path.join(".")));
            }
            None => vec![filter.path.iter().map(String::as_str).collect()],
        };
        Ok((Cow::Borrowed(filter), paths))
    }

    /// The ids that a filter across collections selects.
    fn joined(&self, kind: Kind, filter: &Filter, field: &str) -> Option<Vec<String>> {
        let (other, paths, id): (Kind, &[&str], &[&str]) = match (kind, field) {
            (Kind::Shipment, "container_number") => {
                (Kind::Container, &["container_number"], &["shipment", "id"])
            }
            (Kind::CompanyEntity, "company_id") => (Kind::Company, &["id"], &["entities", "id"]),
            (Kind::CompanyEntity, "company_ref") => (Kind::Company, &["ref"], &["entities", "id"]),
            _ => return None,
        };
        let mut ids = Vec::new();
        for item in self.all(other) {
            if self.passes(filter, &[paths.to_vec()], &item.value) {
                let mut found = Vec::new();
                self.find(&item.value, id, &mut found);
                ids.extend(found.into_iter().map(id_text));
            }
        }
        Some(ids)
    }

    fn passes(&self, filter: &Filter, paths: &[Vec<&str>], value: &Value) -> bool {
        let mut found = Vec::new();
        for path in paths {
            self.find(value, path, &mut found);
        }
        filter.passes(&found)
    }

    /// Collects the values at a path, through lists, and through references where the reference lacks the field.
    fn find<'a>(&'a self, value: &'a Value, path: &[&str], found: &mut Vec<&'a Value>) {
        match (value, path.split_first()) {
            (Value::Array(list), _) => {
                for value in list {
                    self.find(value, path, found);
                }
            }
            (_, None) => found.push(value),
            (Value::Object(fields), Some((field, rest))) => {
                if let Some(value) = fields.get(*field) {
                    self.find(value, rest, found);
                } else if let Some(target) = self.follow(fields) {
                    self.find(target, path, found);
                }
            }
            _ => {}
        }
    }

    fn follow(&self, reference: &Map<String, Value>) -> Option<&Value> {
        let kind = Kind::of_object(reference.get("ref_type")?.as_str()?)?;
        self.get(kind, &id_text(reference.get("id")?)).map(|item| &item.value)
    }

    /// Creates an object.
    pub(super) fn create(&mut self, kind: Kind, body: &Value, now: Timestamp) -> Result<Arc<Item>, Refusal> {
        let fields = body.as_object().ok_or_else(|| Refusal::bad("the body must be a JSON object"))?;
        let value = match kind {
            Kind::Booking => self.booking(fields, now)?,
            Kind::BookingLineItem => self.booking_line_item(fields)?,
            Kind::BookingAmendment => self.booking_amendment(fields)?,
            Kind::Document => self.document(fields, now)?,
            Kind::Product => self.product(fields)?,
            Kind::CommercialInvoice => self.commercial_invoice(fields)?,
            Kind::PurchaseOrder => self.purchase_order(fields, now)?,
            Kind::Company => self.company(fields)?,
            Kind::CompanyEntity => self.company_entity(fields)?,
            Kind::Contact => self.contact(fields)?,
            Kind::Location => self.location(fields)?,
            _ => return Err(Refusal::bad("objects of this collection cannot be created")),
        };
        Ok(self.insert(kind, value))
    }

    /// Changes an object.
    pub(super) fn patch(
        &mut self,
        kind: Kind,
        id: &str,
        body: &Value,
        now: Timestamp,
    ) -> Result<Arc<Item>, Refusal> {
        let fields = body.as_object().ok_or_else(|| Refusal::bad("the body must be a JSON object"))?;
        let Some(item) = self.get(kind, id) else {
            return Err(Refusal::not_found(kind, id));
        };
        let mut value = item.value.clone();
        if let Some(metadata) = fields.get("metadata") {
            check_metadata(metadata)?;
        }
        if kind == Kind::Shipment {
            let Some(metadata) = fields.get("metadata") else {
                return Err(Refusal::bad("metadata is missing: it is what this call replaces"));
            };
            value["metadata"] = metadata.clone();
            value["updated_at"] = json!(seed::stamp(now));
        } else {
            if let Some(sku) = fields.get("sku").and_then(Value::as_str).filter(|_| kind == Kind::Product) {
                self.check_sku(sku, Some(id))?;
            }
            merge(&mut value, fields);
        }
        Ok(self.replace(kind, id, value))
    }

    /// Changes the commercial invoice that the body names by `id` or by `invoice_number`.
    pub(super) fn patch_commercial_invoice(
        &mut self,
        body: &Value,
        now: Timestamp,
    ) -> Result<Arc<Item>, Refusal> {
        let field = if body.get("id").is_some() { "id" } else { "invoice_number" };
        let Some(wanted) = body.get(field).and_then(Value::as_str) else {
            return Err(Refusal::bad("invoice_number must be a string: it names the invoice to change"));
        };
        let id = self
            .all(Kind::CommercialInvoice)
            .iter()
            .rev()
            .find(|item| item.value[field] == wanted)
            .map(|item| item.id.clone())
            .ok_or_else(|| Refusal::not_found(Kind::CommercialInvoice, wanted))?;
        self.patch(Kind::CommercialInvoice, &id, body, now)
    }

    /// The number of objects in each collection.
    pub(super) fn counts(&self) -> Value {
        let count = |kind: &Kind| {
            let name = kind.path().trim_start_matches('/').to_owned();
            (name, json!(self.all(*kind).len()))
        };
        Value::Object(Kind::ALL.iter().map(count).collect())
    }

    fn replace(&mut self, kind: Kind, id: &str, value: Value) -> Arc<Item> {
        let collection = &mut self.collections[kind as usize];
        let item = Arc::new(Item::new(value));
        if let Some(index) = collection.by_id.get(id) {
            collection.items[*index] = Arc::clone(&item);
        }
        item
    }

    fn next_id(&self, kind: Kind) -> u64 {
        self.collections[kind as usize].last_id + 1
    }

    fn text_id(&mut self) -> String {
        text_id(&mut self.rng)
    }

    fn booking(&mut self, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let metadata = metadata(fields)?;
        let air = section(fields, "air_booking")?;
        let ocean = section(fields, "ocean_booking")?;
        let is_air = air.is_some() && ocean.is_none();
        let id = self.next_id(Kind::Booking);
        let shipment_id = self.next_id(Kind::Shipment);
        let mut value = seed::new_booking(self, id, shipment_id, is_air, now);
        let given = if is_air { air } else { ocean };
        let part = &mut value[if is_air { "air_booking" } else { "ocean_booking" }];
        for (field, wanted) in given.into_iter().flatten() {
            // Only what keeps the object's shape; ports and goods come as codes and would have to be resolved.
            let is_kept =
                matches!(field.as_str(), "is_lcl" | "wants_pickup_service" | "wants_delivery_service")
                    && wanted.is_boolean()
                    || field == "incoterm" && wanted.is_string();
            if is_kept && part.get(field).is_some() {
                part[field] = wanted.clone();
            }
        }
        for (role, given) in
            [("shipper_entity", "shipper_entity_ref"), ("consignee_entity", "consignee_entity_ref")]
        {
            if let Some(reference) = optional_text(fields, given)? {
                value[role] = self.entity_by_ref(reference);
            }
        }
        for (role, given) in
            [("origin_address", "origin_address_ref"), ("destination_address", "destination_address_ref")]
        {
            if let Some(reference) = optional_text(fields, given)? {
                value[role] = self.address_by_ref(reference, &value["origin_address"]);
            }
        }
        for field in ["notify_party", "cargo_ready_date", "delivery_date", "special_instructions"] {
            if let Some(text) = optional_text(fields, field)? {
                value[field] = json!(text);
            }
        }
        if let Some(wanted) = fields.get("wants_export_customs_service").filter(|wanted| wanted.is_boolean())
        {
            value["wants_export_customs_service"] = wanted.clone();
        }
        if let Some(cargo) = section(fields, "cargo")? {
            merge(&mut value["cargo"], cargo);
        }
        value["name"] = json!(name);
        value["metadata"] = metadata;
        let shipment = seed::new_shipment(self, shipment_id, &value, now);
        self.insert(Kind::Shipment, shipment);
        Ok(value)
    }

    fn entity_by_ref(&self, reference: &str) -> Value {
        let known = self.all(Kind::CompanyEntity).iter().find(|item| item.value["ref"] == reference);
        known.map_or_else(
            || {
                json!({
                    "_object": "/company_entity",
                    "id": 1,
                    "name": reference,
                    "mailing_address": null,
                    "ref": reference,
                    "vat_numbers": [],
                })
            },
            |item| item.value.clone(),
        )
    }

    fn address_by_ref(&self, reference: &str, default: &Value) -> Value {
        let known = self.all(Kind::Location).iter().find(|item| item.value["ref"] == reference);
        let mut address = known.map_or_else(|| default.clone(), |item| item.value["address"].clone());
        address["ref"] = json!(reference);
        address
    }

    fn booking_line_item(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let booking = required_number(fields, "booking_id")?;
        let line_item = required_number(fields, "purchase_order_line_item_id")?;
        let units = required_number(fields, "units")?;
        Ok(json!({
            "_object": Kind::BookingLineItem.object(),
            "id": self.next_id(Kind::BookingLineItem),
            "booking": self.links.object(Kind::Booking, &booking),
            "purchase_order_line_item": self.links.object(Kind::PurchaseOrderLineItem, &line_item),
            "units": units,
        }))
    }

    fn booking_amendment(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let booking = required_number(fields, "booking_id")?;
        let mut value = json!({
            "_object": Kind::BookingAmendment.object(),
            "id": self.next_id(Kind::BookingAmendment),
            "booking_id": booking,
            "is_pending": true,
            "new_name": null,
            "new_container_counts": null,
            "new_wants_pickup_service": null,
            "new_origin_address": null,
            "new_port_of_loading": null,
            "new_port_of_unloading": null,
            "new_cargo_ready_date": null,
            "new_product_descriptions": [],
            "new_cargo": null,
            "new_metadata": {},
        });
        merge(&mut value, fields);
        value["booking_id"] = booking;
        value["is_pending"] = json!(true);
        Ok(value)
    }

    fn document(&mut self, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, Refusal> {
        let encoded = required_text(fields, "document")?;
        let bytes = BASE64_STANDARD
            .decode(encoded)
            .map_err(|error| Refusal::bad(format!("document must be base64: {error}")))?;
        let name = required_text(fields, "file_name")?.to_owned();
        let document_type = optional_text(fields, "document_type")?.unwrap_or("other").to_owned();
        let mime_type = optional_text(fields, "mime_type")?.unwrap_or("application/octet-stream").to_owned();
        if http::HeaderValue::from_str(&mime_type).is_err() {
            return Err(Refusal::bad("mime_type must be a media type such as application/pdf"));
        }
        let shipment = required_number(fields, "shipment_id")?;
        let id = self.text_id();
        let value =
            seed::document(&self.links, &id, &document_type, bytes.len(), &seed::stamp(now), &shipment);
        self.insert_file(&id, File { name, mime_type, content: Content::Given(bytes.into()) });
        Ok(value)
    }

    fn product(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let sku = required_text(fields, "sku")?;
        self.check_sku(sku, None)?;
        let mut value = seed::product(self.next_id(Kind::Product), name, sku);
        merge(&mut value, fields);
        Ok(value)
    }

    fn check_sku(&self, sku: &str, own: Option<&str>) -> Result<(), Refusal> {
        let has_it = |item: &&Arc<Item>| item.value["sku"] == sku && own != Some(item.id.as_str());
        match self.all(Kind::Product).iter().find(has_it) {
            Some(item) => {
                Err(Refusal::duplicate(format!("sku {sku:?} has been taken by product {}", item.id)))
            }
            None => Ok(()),
        }
    }

    fn commercial_invoice(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let number = required_text(fields, "invoice_number")?;
        let metadata = metadata(fields)?;
        let id = self.text_id();
        let shipment = fields.get("shipment_id").filter(|id| id.is_u64());
        let shipment = shipment.map_or(Value::Null, |id| self.links.object(Kind::Shipment, id));
        let mut value = seed::commercial_invoice(&id, number, &shipment);
        merge(&mut value, fields);
        value["metadata"] = metadata;
        Ok(value)
    }

    fn purchase_order(&mut self, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let metadata = metadata(fields)?;
        let id = self.next_id(Kind::PurchaseOrder);
        let stamp = seed::stamp(now);
        let mut value = seed::purchase_order(&self.links, id, name, &stamp);
        merge(&mut value, fields);
        value["line_items"] =
            self.links.collection(Kind::PurchaseOrderLineItem, "f.purchase_order.id", &json!(id));
        value["created_at"] = json!(stamp);
        value["updated_at"] = json!(stamp);
        value["metadata"] = metadata;
        Ok(value)
    }

    fn company(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let id = self.text_id();
        let mut value = seed::company(&self.links, &id, name, optional_text(fields, "ref")?, &[]);
        value["metadata"] = metadata(fields)?;
        Ok(value)
    }

    fn company_entity(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let id = self.next_id(Kind::CompanyEntity);
        let mut value = json!({
            "_object": Kind::CompanyEntity.object(),
            "id": id,
            "name": name,
            "mailing_address": null,
            "ref": format!("entity-{id}"),
            "vat_numbers": [],
        });
        merge(&mut value, fields);
        Ok(value)
    }

    fn contact(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let company = self.company_of(fields)?;
        let id = self.text_id();
        let mut value = seed::contact(&self.links, &id, name, &company);
        merge(&mut value, fields);
        Ok(value)
    }

    fn location(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let company = self.company_of(fields)?;
        let metadata = metadata(fields)?;
        let id = self.text_id();
        let mut value = seed::location(&self.links, &id, name, &company, &Value::Null);
        merge(&mut value, fields);
        value["metadata"] = metadata;
        Ok(value)
    }

    fn company_of(&self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let id = optional_text(fields, "company_id")?;
        Ok(id.map_or(Value::Null, |id| self.links.object(Kind::Company, &json!(id))))
    }
}

// === impl Item ===

impl Item {
    fn new(value: Value) -> Self {
        Self { id: id_text(&value["id"]), json: OnceLock::new(), value }
    }

    /// The object serialised; made when first asked for, since most are never.
    pub(super) fn json(&self) -> &Bytes {
        self.json.get_or_init(|| self.value.to_string().into())
    }
}

/// An id as it stands in a path.
pub(super) fn id_text(id: &Value) -> String {
    match id {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// A 22-character id.
pub(super) fn text_id(rng: &mut fastrand::Rng) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rng.u128(..).to_be_bytes())
}

/// Takes over the given fields that the object has, but never its identity.
fn merge(value: &mut Value, given: &Map<String, Value>) {
    let Value::Object(fields) = value else { return };
    for (field, new) in given {
        if let Some(old) = fields.get_mut(field).filter(|_| !matches!(field.as_str(), "id" | "_object")) {
            *old = new.clone();
        }
    }
}

fn section<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(section)) => Ok(Some(section)),
        Some(_) => Err(Refusal::bad(format!("{name} must be an object"))),
    }
}

fn required_text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    optional_text(fields, name)?
        .ok_or_else(|| Refusal::bad(format!("{name} is missing; it must be a string")))
}

fn optional_text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::bad(format!("{name} must be a string"))),
    }
}

fn required_number(fields: &Map<String, Value>, name: &str) -> Result<Value, Refusal> {
    match fields.get(name) {
        Some(value) if value.is_u64() => Ok(value.clone()),
        _ => Err(Refusal::bad(format!("{name} must be an integer"))),
    }
}

fn metadata(fields: &Map<String, Value>) -> Result<Value, Refusal> {
    match fields.get("metadata") {
        None | Some(Value::Null) => Ok(json!({})),
        Some(metadata) => check_metadata(metadata).map(|()| metadata.clone()),
    }
}

fn check_metadata(metadata: &Value) -> Result<(), Refusal> {
    let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
    match metadata.as_object() {
        Some(keys) if keys.values().all(is_list) => Ok(()),
        _ => Err(Refusal::bad("metadata must map keys to lists of strings, such as {\"po\":[\"123\"]}")),
    }
}

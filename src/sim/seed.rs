//! Pure. The seeded world: what the account holds before anybody writes.
//!
//! Each shipment and all that belongs to it is made from dice of its own, cast from the seed and the shipment's
//! number, so that a larger world begins like a smaller one. Time in it begins at [`BASE`] and never meets a clock.
//! Objects whose real bodies are known have exactly their keys, order and types (`tests/fixtures/shapes.json`).

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use serde_json::{Value, json};

use super::world::{Content, File, Kind, Links, World, text_id};

/// The day on which the first shipment of the world was made: 2026-03-02T00:00:00Z.
const BASE: i64 = 1_772_409_600;
/// The size of the largest document, which every world with a shipment has: 700 KiB.
pub(super) const LARGEST_FILE: usize = 700 * 1024;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A town with its ports.
struct Town {
    city: &'static str,
    state: Option<&'static str>,
    country: &'static str,
    code: &'static str,
    zip: &'static str,
    unlocode: &'static str,
    timezone: &'static str,
    offset: i8,
    port_code: &'static str,
    /// IATA and ICAO; a town has either a seaport or an airport.
    air: Option<(&'static str, &'static str)>,
}

type Row = (
    &'static str,
    Option<&'static str>,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    i8,
    &'static str,
    Option<(&'static str, &'static str)>,
);

const CHINA: &str = "China";
const USA: &str = "United States of America";

/// Origins first (the first ten), then destinations.
const TOWNS: [Row; 20] = [
    ("Shenzhen", Some("Guangdong"), CHINA, "CN", "518083", "CNYTN", "Asia/Shanghai", 8, "57078", None),
    ("Ningbo", Some("Zhejiang"), CHINA, "CN", "315800", "CNNGB", "Asia/Shanghai", 8, "57020", None),
    ("Shanghai", Some("Shanghai"), CHINA, "CN", "200000", "CNSHA", "Asia/Shanghai", 8, "57035", None),
    ("Qingdao", Some("Shandong"), CHINA, "CN", "266000", "CNTAO", "Asia/Shanghai", 8, "57047", None),
    ("Ho Chi Minh City", None, "Vietnam", "VN", "700000", "VNSGN", "Asia/Ho_Chi_Minh", 7, "55206", None),
    ("Nhava Sheva", Some("Maharashtra"), "India", "IN", "400707", "INNSA", "Asia/Kolkata", 5, "53313", None),
    ("Laem Chabang", None, "Thailand", "TH", "20230", "THLCH", "Asia/Bangkok", 7, "54934", None),
    (
        "Hong Kong",
        None,
        "Hong Kong",
        "HK",
        "999077",
        "HKHKG",
        "Asia/Hong_Kong",
        8,
        "58201",
        Some(("HKG", "VHHH")),
    ),
    ("Seoul", None, "South Korea", "KR", "22382", "KRICN", "Asia/Seoul", 9, "58023", Some(("ICN", "RKSI"))),
    (
        "Shanghai",
        Some("Shanghai"),
        CHINA,
        "CN",
        "201202",
        "CNPVG",
        "Asia/Shanghai",
        8,
        "57036",
        Some(("PVG", "ZSPD")),
    ),
    ("Oakland", Some("CA"), USA, "US", "94607", "USOAK", "America/Los_Angeles", -8, "2811", None),
    ("Los Angeles", Some("CA"), USA, "US", "90731", "USLAX", "America/Los_Angeles", -8, "2704", None),
    ("Long Beach", Some("CA"), USA, "US", "90802", "USLGB", "America/Los_Angeles", -8, "2709", None),
    ("Savannah", Some("GA"), USA, "US", "31408", "USSAV", "America/New_York", -5, "1703", None),
    ("New York", Some("NY"), USA, "US", "10303", "USNYC", "America/New_York", -5, "1001", None),
    ("Rotterdam", None, "Netherlands", "NL", "3199", "NLRTM", "Europe/Amsterdam", 1, "42157", None),
    ("Hamburg", None, "Germany", "DE", "21129", "DEHAM", "Europe/Berlin", 1, "42879", None),
    (
        "Chicago",
        Some("IL"),
        USA,
        "US",
        "60666",
        "USORD",
        "America/Chicago",
        -6,
        "3901",
        Some(("ORD", "KORD")),
    ),
    (
        "Anchorage",
        Some("AK"),
        USA,
        "US",
        "99502",
        "USANC",
        "America/Anchorage",
        -9,
        "3126",
        Some(("ANC", "PANC")),
    ),
    (
        "Frankfurt",
        None,
        "Germany",
        "DE",
        "60547",
        "DEFRA",
        "Europe/Berlin",
        1,
        "42877",
        Some(("FRA", "EDDF")),
    ),
];
/// Where the origins end in [`TOWNS`], and where each half's airports begin.
const ORIGINS: usize = 10;
const ORIGIN_AIRPORTS: usize = 7;
const DESTINATION_AIRPORTS: usize = 17;

const NAMES: [&str; 12] = [
    "Harbor & Finch Trading",
    "Blue Heron Outfitters",
    "Meridian Home Goods",
    "Kestrel Cycle Works",
    "Juniper Lighting",
    "Tidewater Ceramics",
    "Golden Lotus Manufacturing",
    "Pearl River Electronics",
    "Eastern Crane Textiles",
    "Jade Mountain Tools",
    "Red Pine Furniture",
    "Silver Carp Plastics",
];
const GOODS: [(&str, &str); 8] = [
    ("LED desk lamp", "9405.20"),
    ("Cotton bath towel", "6302.60"),
    ("Bicycle frame", "8714.91"),
    ("Stoneware mug", "6912.00"),
    ("AC adapter 12V", "8504.40"),
    ("Oak side table", "9403.60"),
    ("Storage box", "3923.10"),
    ("Torque wrench", "8204.11"),
];
const STATUSES: [&str; 7] = [
    "seller_location",
    "in_transit_to_departure_port",
    "departure_port",
    "in_transit_to_arrival_port",
    "arrival_port",
    "in_transit_to_final_destination",
    "final_destination",
];
const CARRIERS: [(&str, &str); 5] =
    [("Maersk", "MAEU"), ("COSCO", "COSU"), ("Evergreen", "EGLV"), ("ONE", "ONEY"), ("Hapag-Lloyd", "HLCU")];
const VESSELS: [(&str, &str); 5] = [
    ("EVER LUCENT", "9604160"),
    ("COSCO PRIDE", "9472141"),
    ("MAERSK EINDHOVEN", "9456771"),
    ("ONE APUS", "9806079"),
    ("HANOI EXPRESS", "9343728"),
];
const DOCUMENT_TYPES: [&str; 5] =
    ["commercial_invoice", "packing_list", "house_bill_of_lading", "arrival_notice", "proof_of_delivery"];
const INCOTERMS: [&str; 4] = ["FOB", "EXW", "FCA", "DAP"];

/// A shipment's course, from which all its dates and those of its parts come.
struct Course {
    is_air: bool,
    is_lcl: bool,
    origin: Town,
    destination: Town,
    /// Index into [`STATUSES`].
    stage: usize,
    /// Ready, picked up, departed, arrived, delivered: seconds.
    times: [i64; 5],
}

// === impl Town ===

impl Town {
    fn at(index: usize) -> Self {
        let (city, state, country, code, zip, unlocode, timezone, offset, port_code, air) = TOWNS[index];
        Self { city, state, country, code, zip, unlocode, timezone, offset, port_code, air }
    }

    fn address(&self, street: Option<&str>, reference: Option<&str>) -> Value {
        json!({
            "_object": "/address",
            "street_address": street,
            "street_address2": null,
            "city": self.city,
            "state": self.state,
            "country": self.country,
            "country_code": self.code,
            "zip": self.zip,
            "unlocode": self.unlocode,
            "timezone": self.timezone,
            "ref": reference,
        })
    }

    /// The town as a port.
    fn port(&self) -> Value {
        let trucking = json!({"_object": "/trucking/port", "port_code": self.port_code});
        let (name, first) = match self.air {
            Some((iata, icao)) => (
                format!("{iata} - {}", self.city),
                json!({
                    "_object": "/air/port",
                    "port_code": self.port_code,
                    "iata_code": iata,
                    "icao_code": icao,
                }),
            ),
            None => (
                format!("{}, {}", self.city, self.state.unwrap_or(self.code)),
                json!({"_object": "/ocean/port", "port_code": self.port_code}),
            ),
        };
        json!({
            "_object": "/place",
            "name": name,
            "address": self.address(None, None),
            "details": [first, trucking],
        })
    }

    /// A door in the town.
    fn door(&self, street: &str) -> Value {
        json!({
            "_object": "/place",
            "name": format!("{street}, {}", self.city),
            "address": self.address(Some(street), None),
            "details": [],
        })
    }
}

// === impl Course ===

impl Course {
    fn cast(rng: &mut fastrand::Rng, created: i64, stage: usize) -> Self {
        let is_air = rng.u8(..100) < 20;
        let (origin, destination) = if is_air {
            (rng.usize(ORIGIN_AIRPORTS..ORIGINS), rng.usize(DESTINATION_AIRPORTS..TOWNS.len()))
        } else {
            (rng.usize(..ORIGIN_AIRPORTS), rng.usize(ORIGINS..DESTINATION_AIRPORTS))
        };
        let ready = created + rng.i64(5..12) * DAY;
        let picked_up = ready + rng.i64(1..3) * DAY;
        let departed = picked_up + rng.i64(2..6) * DAY;
        let arrived = departed + if is_air { rng.i64(1..3) } else { rng.i64(14..35) } * DAY;
        let delivered = arrived + rng.i64(2..9) * DAY;
        Self {
            is_air,
            is_lcl: !is_air && rng.u8(..100) < 25,
            origin: Town::at(origin),
            destination: Town::at(destination),
            stage,
            times: [ready, picked_up, departed, arrived, delivered],
        }
    }

    /// A milestone's date once it was passed: 1 picked up, 2 departed, 3 arrived, 4 delivered.
    fn actual(&self, milestone: usize) -> Value {
        // The stage at which each milestone is behind the shipment.
        let passed_at = [0, 1, 3, 4, 6][milestone];
        if self.stage >= passed_at { self.date(milestone) } else { Value::Null }
    }

    fn date(&self, milestone: usize) -> Value {
        let town = if milestone < 3 { &self.origin } else { &self.destination };
        json!(transit(self.times[milestone], town.offset))
    }
}

/// Fills an empty world.
pub(super) fn fill(world: &mut World, seed: u64, shipments: usize) {
    for index in 0..TOWNS.len() {
        world.insert(Kind::Port, Town::at(index).port());
    }
    network(world, seed);
    goods(world, seed);
    let mut ids = fastrand::Rng::with_seed(seed ^ 0x1d5);
    let (mut shipment_id, mut booking_id, mut leg_id) = (1_204_000_u64, 480_000_u64, 7_310_000_u64);
    let (mut container_id, mut container_leg_id) = (915_000_u64, 3_420_000_u64);
    for index in 0..shipments {
        shipment_id += ids.u64(1..40);
        booking_id += ids.u64(1..30);
        let mut rng = dice(seed, 1, index as u64);
        let created = BASE + (36 * HOUR).wrapping_mul(signed(index)) % (200 * DAY) + rng.i64(0..36 * HOUR);
        let stage = rng.usize(..STATUSES.len());
        let course = Course::cast(&mut rng, created, stage);
        let shipper = world.all(Kind::CompanyEntity)[rng.usize(6..12)].value.clone();
        let consignee = world.all(Kind::CompanyEntity)[rng.usize(..6)].value.clone();
        let booking = booking(
            &world.links,
            booking_id,
            shipment_id,
            &course,
            [&shipper, &consignee],
            created,
            &mut rng,
        );
        world.insert(Kind::Booking, booking);
        let shipment = shipment(
            &world.links,
            shipment_id,
            Some(booking_id),
            &course,
            [&shipper, &consignee],
            created,
            &mut rng,
        );
        world.insert(Kind::Shipment, shipment);

        let legs: Vec<u64> = (0..3)
            .map(|_| {
                leg_id += rng.u64(1..6);
                leg_id
            })
            .collect();
        for (position, id) in legs.iter().enumerate() {
            let leg = shipment_leg(&world.links, *id, shipment_id, &course, position, &mut rng);
            world.insert(Kind::ShipmentLeg, leg);
        }
        let containers = if course.is_air || course.is_lcl { 0 } else { rng.usize(1..4) };
        for _ in 0..containers {
            container_id += rng.u64(1..9);
            let value = container(&world.links, container_id, shipment_id, &course, &mut rng);
            world.insert(Kind::Container, value);
            for (position, leg) in legs.iter().enumerate() {
                container_leg_id += rng.u64(1..9);
                let value =
                    container_leg(&world.links, container_leg_id, container_id, *leg, &course, position);
                world.insert(Kind::ContainerLeg, value);
            }
        }
        papers(world, index, shipment_id, &course, created, [&shipper, &consignee], &mut rng);
    }
}

/// The booking that a caller makes; its goods are cast, the rest is laid over it.
pub(super) fn new_booking(world: &World, id: u64, shipment_id: u64, is_air: bool, now: Timestamp) -> Value {
    let mut rng = dice(world.seed, 2, id);
    let course = loop {
        let course = Course::cast(&mut rng, now.as_second(), 0);
        if course.is_air == is_air {
            break course;
        }
    };
    let entities = world.all(Kind::CompanyEntity);
    let parties = [&entities[6].value, &entities[0].value];
    let mut value = booking(&world.links, id, shipment_id, &course, parties, now.as_second(), &mut rng);
    value["status"] = json!("submitted");
    value["created_at"] = json!(stamp(now));
    value["notify_party"] = Value::Null;
    value["special_instructions"] = Value::Null;
    value["delivery_date"] = Value::Null;
    value
}

/// The shipment of a booking that a caller made.
pub(super) fn new_shipment(world: &World, id: u64, booking: &Value, now: Timestamp) -> Value {
    let mut rng = dice(world.seed, 3, id);
    let is_air = booking["air_booking"].is_object();
    let course = loop {
        let course = Course::cast(&mut rng, now.as_second(), 0);
        if course.is_air == is_air {
            break course;
        }
    };
    let booking_id = booking["id"].as_u64();
    let parties = [&booking["shipper_entity"], &booking["consignee_entity"]];
    let mut value = shipment(&world.links, id, booking_id, &course, parties, now.as_second(), &mut rng);
    value["name"] = booking["name"].clone();
    value["metadata"] = booking["metadata"].clone();
    value["updated_at"] = json!(stamp(now));
    value
}

/// A document's object.
pub(super) fn document(
    links: &Links,
    id: &str,
    kind: &str,
    size: usize,
    uploaded: &str,
    shipment: &Value,
) -> Value {
    json!({
        "_object": "/document",
        "id": id,
        "document_type": kind,
        "file_link": format!("{}/documents/{id}/download", links.base()),
        "archived_at": null,
        "file_metadata": {"_object": "/file/metadata", "size": size, "uploaded_at": uploaded},
        "shipment": links.object(Kind::Shipment, shipment),
    })
}

/// A product with nothing but its names.
pub(super) fn product(id: u64, name: &str, sku: &str) -> Value {
    json!({
        "_object": "/product",
        "id": id,
        "name": name,
        "sku": sku,
        "description": null,
        "archived_at": null,
        "product_category": null,
        "country_of_origin": null,
        "client_verified": false,
        "product_properties": [],
        "hs_codes": [],
        "classifications": [],
        "suppliers": [],
    })
}

/// A commercial invoice without lines.
pub(super) fn commercial_invoice(id: &str, number: &str, shipment: &Value) -> Value {
    json!({
        "_object": "/commercial_invoice",
        "id": id,
        "invoice_number": number,
        "line_items": [],
        "involved_parties": [],
        "is_related_parties": false,
        "manufacturer_addresses": [],
        "metadata": {},
        "shipment": shipment,
        "total_unit_count": "0.0",
        "total_value": money(0, "USD"),
        "total_volume": quantity("volume", 0.0, "cbm"),
        "total_weight": quantity("weight", 0.0, "kg"),
    })
}

/// An open purchase order without places.
pub(super) fn purchase_order(links: &Links, id: u64, name: &str, created: &str) -> Value {
    json!({
        "id": id,
        "_object": "/purchase_order",
        "name": name,
        "status": "open",
        "seller": null,
        "buyer": null,
        "incoterm": "FOB",
        "transportation_mode": "ocean",
        "cargo_ready_date": null,
        "must_arrive_date": null,
        "origin_port": null,
        "origin_address": null,
        "destination_port": null,
        "destination_address": null,
        "memo": null,
        "archived_at": null,
        "created_at": created,
        "updated_at": created,
        "line_items": links.collection(Kind::PurchaseOrderLineItem, "f.purchase_order.id", &json!(id)),
        "metadata": {},
    })
}

/// A company.
pub(super) fn company(
    links: &Links,
    id: &str,
    name: &str,
    reference: Option<&str>,
    entities: &[Value],
) -> Value {
    json!({
        "_object": "/network/company",
        "id": id,
        "metadata": {},
        "name": name,
        "ref": reference,
        "editable": true,
        "entities": entities,
        "locations": links.collection(Kind::Location, "f.company.id", &json!(id)),
        "contacts": links.collection(Kind::Contact, "f.company.id", &json!(id)),
    })
}

/// A contact.
pub(super) fn contact(links: &Links, id: &str, name: &str, company: &Value) -> Value {
    json!({
        "_object": "/network/contact",
        "id": id,
        "name": name,
        "email": null,
        "phone_number": null,
        "locations": links.collection(Kind::Location, "f.contact.id", &json!(id)),
        "company": company,
    })
}

/// A location.
pub(super) fn location(links: &Links, id: &str, name: &str, company: &Value, address: &Value) -> Value {
    json!({
        "_object": "/network/location",
        "id": id,
        "metadata": {},
        "name": name,
        "address": address,
        "editable": true,
        "company": company,
        "contacts": links.collection(Kind::Contact, "f.location.id", &json!(id)),
        "ref": null,
    })
}

/// A document's bytes.
pub(super) fn file_bytes(seed: u64, size: usize, mime_type: &str) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let head: &[u8] = if mime_type == "image/png" { b"\x89PNG\r\n\x1a\n" } else { b"%PDF-1.4\n" };
    let head = &head[..head.len().min(size)];
    bytes[..head.len()].copy_from_slice(head);
    bytes.into()
}

/// An audit stamp: UTC with milliseconds.
pub(super) fn stamp(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn network(world: &mut World, seed: u64) {
    for (index, name) in NAMES.iter().enumerate() {
        let mut rng = dice(seed, 4, index as u64);
        // The first six are customers, the others their suppliers.
        let town =
            Town::at(if index < 6 { rng.usize(ORIGINS..TOWNS.len()) } else { rng.usize(..ORIGIN_AIRPORTS) });
        let slug = slug(name);
        let street = street(&mut rng);
        let entity = json!({
            "_object": "/company_entity",
            "id": 9200 + index as u64 * 7 + rng.u64(..7),
            "name": format!("{name} {}", if town.code == "US" { "Inc." } else { "Co., Ltd." }),
            "mailing_address": town.address(Some(&street), None),
            "ref": format!("{slug}-entity"),
            "vat_numbers": [],
        });
        world.insert(Kind::CompanyEntity, entity.clone());
        let id = text_id(&mut rng);
        let company = company(&world.links, &id, name, Some(&slug), &[entity]);
        world.insert(Kind::Company, company);
        let owner = world.links.object(Kind::Company, &json!(id));
        let location_id = text_id(&mut rng);
        let place = town.address(Some(&street), Some(&format!("{slug}-warehouse")));
        let mut location = location(&world.links, &location_id, &format!("{name} warehouse"), &owner, &place);
        location["ref"] = json!(format!("{slug}-warehouse"));
        world.insert(Kind::Location, location);
        let contact_id = text_id(&mut rng);
        let mut contact = contact(&world.links, &contact_id, &format!("{name} logistics"), &owner);
        contact["email"] = json!(format!("logistics@{slug}.example"));
        contact["phone_number"] = json!(format!("+1 555 01{:02}", index));
        world.insert(Kind::Contact, contact);
    }
}

fn goods(world: &mut World, seed: u64) {
    for index in 0..40_u64 {
        let mut rng = dice(seed, 5, index);
        let (name, code) = GOODS[index as usize % GOODS.len()];
        let mut value = product(84_000 + index * 3, name, &format!("SKU-{:05}", 10_000 + index * 17));
        value["description"] = json!(format!("{name}, variant {}", index / 8 + 1));
        value["product_category"] = json!("Home goods");
        value["country_of_origin"] = json!(CHINA);
        value["client_verified"] = json!(rng.bool());
        value["product_properties"] = json!([{
            "_object": "/product/property",
            "type": "color",
            "value": pick(&mut rng, &["blue", "oak", "white"]),
        }]);
        value["hs_codes"] = json!([hs_code(name, code)]);
        value["classifications"] =
            json!([{"_object": "/product/classification", "codes": [code], "region": "US"}]);
        world.insert(Kind::Product, value);
    }
    for index in 0..30_u64 {
        let mut rng = dice(seed, 6, index);
        let id = 29_000 + index * 11;
        let created = BASE + signed(index as usize) * 3 * DAY + rng.i64(0..DAY);
        let (origin, destination) =
            (Town::at(rng.usize(..ORIGIN_AIRPORTS)), Town::at(rng.usize(ORIGINS..DESTINATION_AIRPORTS)));
        let mut order =
            purchase_order(&world.links, id, &format!("PO-{:06}", 2800 + index), &audit(created, 0));
        let companies = world.all(Kind::Company);
        order["seller"] = companies[rng.usize(6..12)].value.clone();
        order["buyer"] = companies[rng.usize(..6)].value.clone();
        order["cargo_ready_date"] = json!(plain(created + 20 * DAY));
        order["must_arrive_date"] = json!(plain(created + 70 * DAY));
        order["origin_port"] = origin.port();
        order["origin_address"] = origin.address(Some(&street(&mut rng)), None);
        order["destination_port"] = destination.port();
        order["destination_address"] = destination.address(Some(&street(&mut rng)), None);
        world.insert(Kind::PurchaseOrder, order);
        for line in 1..=2_u64 {
            let product = &world.all(Kind::Product)[rng.usize(..40)].value;
            let item_id = 121_000 + index * 5 + line;
            let item = json!({
                "_object": Kind::PurchaseOrderLineItem.object(),
                "id": item_id,
                "purchase_order": world.links.object(Kind::PurchaseOrder, &json!(id)),
                "line_item_number": line,
                "item_key": format!("item{line}"),
                "product": product,
                "units": rng.u64(20..900),
                "unit_cost": money(rng.u64(150..9000), "USD"),
                "booking_line_items": world.links.collection(
                    Kind::BookingLineItem,
                    "f.purchase_order_line_item.id",
                    &json!(item_id),
                ),
                "incoterm": "FOB",
                "transportation_mode": "ocean",
                "unit_of_measure": "EA",
                "must_arrive_date": plain(created + 70 * DAY),
                "origin_port": origin.port(),
                "origin_address": null,
                "destination_port": destination.port(),
                "destination_address": null,
                "hs_codes": product["hs_codes"],
                "metadata": {},
            });
            world.insert(Kind::PurchaseOrderLineItem, item);
        }
    }
}

fn shipment(
    links: &Links,
    id: u64,
    booking_id: Option<u64>,
    course: &Course,
    [shipper, consignee]: [&Value; 2],
    created: i64,
    rng: &mut fastrand::Rng,
) -> Value {
    let of = |kind: Kind| links.collection(kind, "f.shipment.id", &json!(id));
    let weight = rng.f64() * 8000.0 + 150.0;
    let volume = weight / 180.0;
    let updated = created + rng.i64(HOUR..3 * DAY) + signed(course.stage) * 4 * DAY;
    let shift = rng.i64(-2..=2) * 6 * HOUR;
    let estimated = |milestone: usize| {
        let town = if milestone < 3 { &course.origin } else { &course.destination };
        json!(transit(course.times[milestone] + shift, town.offset))
    };
    let best = |milestone: usize| {
        let actual = course.actual(milestone);
        if actual.is_null() { estimated(milestone) } else { actual }
    };
    let number = rng.u32(100_000..1_000_000);
    let shippers = if rng.u8(..3) == 0 { Vec::new() } else { vec![shipper] };
    let importers = if rng.u8(..12) == 0 { vec![consignee] } else { Vec::new() };
    // In two halves: one `json!` of this size passes the recursion limit.
    let first = json!({
        "metadata": {"purchase_order": [format!("PO-{:06}", 2800 + rng.u32(..30))]},
        "_object": "/shipment",
        "id": id,
        "name": format!("{} to {}, PO {number}", course.origin.city, course.destination.city),
        "booking": booking_id.map(|booking| links.object(Kind::Booking, &json!(booking))),
        "transportation_mode": if course.is_air { "air" } else { "ocean" },
        "freight_type": "door_to_door",
        "incoterm": INCOTERMS[rng.usize(..INCOTERMS.len())],
        "calculated_weight": quantity("weight", weight, "kg"),
        "calculated_volume": quantity("volume", volume, "cbm"),
        "pieces": rng.u32(1..800),
        "it_number": null,
        "created_date": plain(created),
        "status": STATUSES[course.stage],
        "priority": if rng.u8(..10) == 0 { "high" } else { "standard" },
        "updated_at": audit(updated, rng.i64(0..1000)),
        "archived_at": null,
        "estimated_departure_date": estimated(2),
        "actual_departure_date": course.actual(2),
        "estimated_arrival_date": estimated(3),
        "actual_arrival_date": course.actual(3),
        "estimated_picked_up_in_full_date": estimated(1),
        "actual_picked_up_in_full_date": course.actual(1),
        "estimated_delivered_in_full_date": estimated(4),
        "actual_delivered_in_full_date": course.actual(4),
        "cargo_ready_date": plain(course.times[0]),
    });
    let second = json!({
        "air_shipment": course.is_air.then(|| json!({
            "_object": "/air/shipment",
            "house_airway_bill": format!("FXA{number}"),
            "master_airway_bill": format!("160-{:08}", rng.u32(..100_000_000)),
            "chargeable_weight": quantity("weight", weight, "kg"),
            "chargeable_volume": quantity("volume", volume, "cbm"),
        })),
        "ocean_shipment": (!course.is_air).then(|| json!({
            "_object": "/ocean/shipment",
            "is_lcl": course.is_lcl,
            "house_bill_number": format!("FLXT{number:08}"),
            "master_bill_number": format!("MAEU{:09}", rng.u32(..1_000_000_000)),
            "carrier_booking_number": format!("{:09}", rng.u32(..1_000_000_000)),
            "containers": of(Kind::Container),
        })),
        "shippers": shippers,
        "consignees": [consignee],
        "buyers": [],
        "sellers": [],
        "importers_of_record": importers,
        "items": [],
        "legs": of(Kind::ShipmentLeg),
        "customs_entries": of(Kind::CustomsEntry),
        "commercial_invoices": of(Kind::CommercialInvoice),
        "documents": of(Kind::Document),
        "departure_date": best(2),
        "arrival_date": best(3),
        "picked_up_in_full_date": best(1),
        "delivered_in_full_date": best(4),
    });
    join(first, second)
}

fn shipment_leg(
    links: &Links,
    id: u64,
    shipment_id: u64,
    course: &Course,
    position: usize,
    rng: &mut fastrand::Rng,
) -> Value {
    let of = links.collection(Kind::ContainerLeg, "f.leg.id", &json!(id));
    let node = |place: Value, tag: &str, terminal: Value| json!({"_object": "/shipment_node", "tags": [tag], "place": place, "terminal": terminal});
    let terminal = |town: &Town| {
        if course.is_air {
            return Value::Null;
        }
        json!({
            "_object": "/shipment_node/terminal",
            "name": format!("{} Container Terminal", town.city),
            "address": town.address(Some("1 Harbor Road"), None),
        })
    };
    let (carrier, scac) = CARRIERS[rng.usize(..CARRIERS.len())];
    let (vessel, imo) = VESSELS[rng.usize(..VESSELS.len())];
    let (origin, destination) = (&course.origin, &course.destination);
    let (from, to) = match position {
        0 => (
            node(origin.door(&street(rng)), "seller_location", Value::Null),
            node(origin.port(), "port_of_loading", Value::Null),
        ),
        1 => (
            node(origin.port(), "port_of_loading", terminal(origin)),
            node(destination.port(), "port_of_unloading", terminal(destination)),
        ),
        _ => (
            node(destination.port(), "port_of_unloading", Value::Null),
            node(destination.door(&street(rng)), "final_destination", Value::Null),
        ),
    };
    // The milestones between which each leg runs.
    let (departs, arrives) = (position + 1, position + 2);
    let mode = match position {
        1 if course.is_air => "air",
        1 => "ocean",
        _ => "truck",
    };
    json!({
        "_object": "/shipment_leg",
        "id": id,
        "shipment": links.object(Kind::Shipment, &json!(shipment_id)),
        "estimated_arrival_date": course.date(arrives),
        "actual_arrival_date": course.actual(arrives),
        "estimated_departure_date": course.date(departs),
        "actual_departure_date": course.actual(departs),
        "cargo_ready_date": (position == 0).then(|| plain(course.times[0])),
        "additional_dates": {"loaded_on_truck_date": null, "delivery_completed": null},
        "origin": from,
        "destination": to,
        "transportation_mode": mode,
        "carrier_name": if mode == "truck" { None } else { Some(carrier) },
        "ocean_leg": (mode == "ocean").then(|| json!({
            "_object": "/ocean/shipment_leg",
            "scac_code": scac,
            "vessel_name": vessel,
            "vessel_imo": imo,
            "voyage_number": format!("{:03}E", rng.u32(1..400)),
            "container_legs": of,
        })),
        "air_leg": (mode == "air").then(|| json!({
            "_object": "/air/shipment_leg",
            "iata_code": "CX",
            "icao_code": "CPA",
            "flight_number": format!("CX{:03}", rng.u32(1..900)),
            "pieces": null,
        })),
        "trucking_leg": (mode == "truck").then(|| json!({
            "_object": "/trucking/shipment_leg",
            "tracking_number": null,
            "service_type": "drayage",
            "pieces": null,
            "container_legs": of,
        })),
        "rail_leg": null,
    })
}

fn container(links: &Links, id: u64, shipment_id: u64, course: &Course, rng: &mut fastrand::Rng) -> Value {
    json!({
        "metadata": {},
        "_object": "/ocean/shipment_container",
        "id": id,
        "container_type": "dry",
        "container_number": format!("{}U{:07}", ["MSK", "TCL", "CSN", "EGH"][rng.usize(..4)], rng.u32(..10_000_000)),
        "container_size": pick(rng, &["twenty_ft", "forty_ft", "forty_ft_hc"]),
        "seal_number": format!("CN{:07}", rng.u32(..10_000_000)),
        "estimated_departure_date": course.date(2),
        "actual_departure_date": course.actual(2),
        "estimated_arrival_date": course.date(3),
        "actual_arrival_date": course.actual(3),
        "estimated_pickup_date": course.date(1),
        "actual_pickup_date": course.actual(1),
        "estimated_delivery_date": course.date(4),
        "actual_delivery_date": course.actual(4),
        "last_free_day_date": plain(course.times[3] + 5 * DAY),
        "empty_returned_date": (course.stage == 6).then(|| plain(course.times[4] + 2 * DAY)),
        "cargo_ready_date": plain(course.times[0]),
        "available_for_pickup_date": null,
        "estimated_available_for_pickup_date": null,
        "shipment": links.object(Kind::Shipment, &json!(shipment_id)),
        "container_legs": links.collection(Kind::ContainerLeg, "f.shipment_container.id", &json!(id)),
        "items": [],
    })
}

fn container_leg(
    links: &Links,
    id: u64,
    container_id: u64,
    leg: u64,
    course: &Course,
    position: usize,
) -> Value {
    json!({
        "_object": "/ocean/shipment_container_leg",
        "id": id,
        "dates": {
            "estimated_departure_date": course.date(position + 1),
            "actual_departure_date": course.actual(position + 1),
            "estimated_arrival_date": course.date(position + 2),
            "actual_arrival_date": course.actual(position + 2),
        },
        "shipment_container": links.object(Kind::Container, &json!(container_id)),
        "leg": links.object(Kind::ShipmentLeg, &json!(leg)),
    })
}

fn booking(
    links: &Links,
    id: u64,
    shipment_id: u64,
    course: &Course,
    [shipper, consignee]: [&Value; 2],
    created: i64,
    rng: &mut fastrand::Rng,
) -> Value {
    let (name, code) = GOODS[rng.usize(..GOODS.len())];
    let products = json!([{
        "_object": "/bookings/product_description",
        "description": name,
        "description_for_export_customs": null,
        "description_for_export_customs_locale": null,
        "hs_code": hs_code(name, code),
    }]);
    let incoterm = INCOTERMS[rng.usize(..INCOTERMS.len())];
    let weight = rng.f64() * 8000.0 + 150.0;
    let count = rng.u32(1..300);
    json!({
        "metadata": {},
        "_object": "/booking",
        "id": id,
        "name": format!("{name}, {} to {}", course.origin.city, course.destination.city),
        "flex_id": format!("FLEX-{shipment_id}"),
        "shipment": links.object(Kind::Shipment, &json!(shipment_id)),
        "status": if course.stage == 0 { "submitted" } else { "booked" },
        "shipper_entity": shipper,
        "consignee_entity": consignee,
        "notify_party": "Same as consignee",
        "transportation_mode": if course.is_air { "air" } else { "ocean" },
        "ocean_booking": (!course.is_air).then(|| json!({
            "_object": "/ocean/booking",
            "is_lcl": course.is_lcl,
            "container_counts": {
                "_object": "/container_counts",
                "twenty_ft": null,
                "forty_ft": if course.is_lcl { None } else { Some(1) },
                "forty_ft_hc": null,
                "forty_five_ft_hc": null,
            },
            "incoterm": incoterm,
            "wants_pickup_service": true,
            "wants_delivery_service": true,
            "origin_port": course.origin.port(),
            "destination_port": course.destination.port(),
            "product_descriptions": products,
        })),
        "air_booking": course.is_air.then(|| json!({
            "_object": "/air/booking",
            "incoterm": incoterm,
            "wants_pickup_service": true,
            "wants_delivery_service": true,
            "origin_port": course.origin.port(),
            "destination_port": course.destination.port(),
            "product_descriptions": products,
        })),
        "trucking_booking": null,
        "origin_address": course.origin.address(Some(&street(rng)), None),
        "cargo_ready_date": plain(course.times[0]),
        "destination_address": course.destination.address(Some(&street(rng)), None),
        "delivery_date": plain(course.times[4]),
        "wants_export_customs_service": true,
        "cargo": {
            "_object": "/cargo",
            "volume": quantity("volume", weight / 180.0, "cbm"),
            "weight": quantity("weight", weight, "kg"),
            "marks_and_numbers": null,
            "shipping_units": [{
                "_object": "/shipping_unit",
                "name": null,
                "volume": quantity("volume", 0.12, "cbm"),
                "weight": quantity("weight", weight / f64::from(count), "kg"),
                "height": quantity("length", 40.0, "cm"),
                "length": quantity("length", 60.0, "cm"),
                "width": quantity("length", 50.0, "cm"),
                "count": count,
                "atomic_count": null,
                "unit_type": "carton",
            }],
            "contains_hazmat": false,
            "contains_magnets": false,
            "contains_other_dangerous_goods": false,
            "contains_li_ion": false,
            "contains_non_li_ion_battery": false,
            "lithium_batteries_packing_types": [],
        },
        "special_instructions": null,
        "booking_line_items": links.collection(Kind::BookingLineItem, "f.booking.id", &json!(id)),
        "created_at": audit(created, rng.i64(0..1000)),
    })
}

/// Documents, customs entry, invoices of a shipment.
fn papers(
    world: &mut World,
    index: usize,
    shipment_id: u64,
    course: &Course,
    created: i64,
    [shipper, consignee]: [&Value; 2],
    rng: &mut fastrand::Rng,
) {
    let shipment = json!(shipment_id);
    let documents = if index == 0 { 2 } else { rng.usize(..4) };
    for position in 0..documents {
        let id = text_id(rng);
        let size = if index == 0 && position == 0 { LARGEST_FILE } else { rng.usize(3_000..160_000) };
        let mime_type = if rng.u8(..4) == 0 { "image/png" } else { "application/pdf" };
        let kind = DOCUMENT_TYPES[rng.usize(..DOCUMENT_TYPES.len())];
        let uploaded = audit(created + (signed(position) + 1) * DAY, rng.i64(0..1000));
        let value = document(&world.links, &id, kind, size, &uploaded, &shipment);
        world.insert(Kind::Document, value);
        let extension = if mime_type == "image/png" { "png" } else { "pdf" };
        world.insert_file(
            &id,
            File {
                name: format!("{kind}-{shipment_id}.{extension}"),
                mime_type: mime_type.to_owned(),
                content: Content::Seeded { seed: rng.u64(..), size, made: std::sync::OnceLock::new() },
            },
        );
    }
    let reference = world.links.object(Kind::Shipment, &shipment);
    if course.stage >= 3 {
        let is_cleared = course.stage >= 5;
        let id = text_id(rng);
        world.insert(
            Kind::CustomsEntry,
            json!({
                "_object": "/customs_entry",
                "id": id,
                "entry_number": format!("9JW-{:07}-{}", rng.u32(..10_000_000), rng.u32(..10)),
                "release_status": if is_cleared { "cleared" } else { "pending" },
                "release_date": is_cleared.then(|| audit(course.times[3] + DAY, 0)),
                "shipment": reference,
            }),
        );
    }
    if rng.bool() {
        let id = text_id(rng);
        let number = format!("INVOICE-{shipment_id}");
        let mut value = commercial_invoice(&id, &number, &reference);
        let units = rng.u64(10..900);
        value["total_unit_count"] = json!(format!("{units}.0"));
        value["total_value"] = money(units * 1250, "USD");
        value["involved_parties"] = json!([{
            "_object": "/customs/involved_party",
            "address": consignee["mailing_address"],
            "company_entity": world.links.object(Kind::CompanyEntity, &consignee["id"]),
            "name": consignee["name"],
            "type": "consignee",
        }]);
        world.insert(Kind::CommercialInvoice, value);
    }
    if course.stage >= 2 {
        let id = text_id(rng);
        let cents = rng.u64(80_000..900_000);
        let is_paid = course.stage == 6;
        let issued = audit(course.times[2], rng.i64(0..1000));
        world.insert(
            Kind::Invoice,
            json!({
                "_object": "/invoice",
                "id": id,
                "name": format!("FLEX-{shipment_id}-1"),
                "issued_at": issued,
                "due_date": plain(course.times[2] + 30 * DAY),
                "total": money(cents, "USD"),
                "balance": money(if is_paid { 0 } else { cents }, "USD"),
                "status": if is_paid { "paid" } else { "outstanding" },
                "type": "Shipment",
                "voided_at": null,
                "last_updated_at": issued,
                "recipient": consignee,
                "issuer": shipper,
                "items": [{
                    "_object": "/invoice_item",
                    "name": "Ocean freight",
                    "slug": "ocean_freight",
                    "category": "freight",
                    "amount": money(cents, "USD"),
                    "rate": {"_object": "/invoice/rate", "value": "2.31", "qualifier": "USD"},
                    "quantity": {"_object": "/invoice/quantity", "value": "1000", "qualifier": "kg"},
                }],
                "notes": [],
                "credit_memos": [],
                "shipments": [reference],
            }),
        );
    }
}

/// Dice for one thing of the world.
fn dice(seed: u64, stream: u64, index: u64) -> fastrand::Rng {
    // Spread, since neighbouring seeds would cast alike.
    let mixed = (seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(index)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    fastrand::Rng::with_seed(mixed ^ (mixed >> 31))
}

/// One object of the fields of two.
fn join(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut fields), Value::Object(more)) => {
            fields.extend(more);
            Value::Object(fields)
        }
        (first, _) => first,
    }
}

fn pick<'a>(rng: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

fn street(rng: &mut fastrand::Rng) -> String {
    const STREETS: [&str; 6] = [
        "Settlers Lane",
        "Harbor Road",
        "Gangcheng Avenue",
        "Industrial Park Drive",
        "Dock Street",
        "Mill Road",
    ];
    format!("{} {}", rng.u32(10..9800), STREETS[rng.usize(..STREETS.len())])
}

fn slug(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

fn hs_code(description: &str, code: &str) -> Value {
    json!({"_object": "/hs_code", "description": description, "code": code, "country_code": "US"})
}

fn money(cents: u64, currency: &str) -> Value {
    json!({
        "_object": "/money",
        "amount": format!("{}.{:02}", cents / 100, cents % 100),
        "currency_code": currency,
    })
}

fn quantity(kind: &str, value: f64, unit: &str) -> Value {
    let rounded = (value * 100.0).round() / 100.0;
    let value = if rounded.fract() == 0.0 { json!(rounded as i64) } else { json!(rounded) };
    json!({"value": value, "unit": unit, "_object": format!("/quantity/{kind}")})
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn at(second: i64, millis: i64) -> Timestamp {
    Timestamp::from_millisecond(second * 1000 + millis).expect("the world's years are far inside the range")
}

fn audit(second: i64, millis: i64) -> String {
    stamp(at(second, millis))
}

fn transit(second: i64, offset: i8) -> String {
    let zone = TimeZone::fixed(Offset::constant(offset));
    at(second, 0).to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

fn plain(second: i64) -> String {
    at(second, 0).strftime("%Y-%m-%d").to_string()
}

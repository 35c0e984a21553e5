//! Pure. The seeded world: what the account holds before anybody writes.
//!
//! Each shipment and all that belongs to it is made from dice of its own, cast from the seed and the shipment's
//! number, so that a larger world begins like a smaller one. Time in it begins at [`BASE`] and never meets a clock.
//! Objects whose real bodies are known have exactly their keys, order and types (`tests/fixtures/shapes.txt`).

mod course;
mod freight;
mod network;
mod papers;
mod towns;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use serde_json::{Value, json};

use super::world::{Happening, Kind, Voyage, World};
pub(in crate::sim) use course::Course;
pub(in crate::sim) use freight::{booking, container, container_leg, shipment, shipment_leg};
pub(in crate::sim) use network::{
    booking_line_item, commercial_invoice, company, contact, location, order_line, product, purchase_order,
};
pub(in crate::sim) use papers::{bill, declare, document, file_bytes};
pub(in crate::sim) use towns::unknown_port;
use towns::{TOWNS, Town};

/// The day on which the first shipment of the world was made: 2026-03-02T00:00:00Z.
pub(in crate::sim) const BASE: i64 = 1_772_409_600;
/// The size of the largest document, which every world with a shipment has: 700 KiB.
pub(in crate::sim) const LARGEST_FILE: usize = 700 * 1024;

/// Of how many shipments, the newest, the events before the start are told.
const HISTORY: usize = 40;

pub(in crate::sim) const HOUR: i64 = 3600;
pub(in crate::sim) const DAY: i64 = 24 * HOUR;

pub(in crate::sim) const NAMES: [&str; 12] = [
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
pub(in crate::sim) const GOODS: [(&str, &str); 8] = [
    ("LED desk lamp", "9405.20"),
    ("Cotton bath towel", "6302.60"),
    ("Bicycle frame", "8714.91"),
    ("Stoneware mug", "6912.00"),
    ("AC adapter 12V", "8504.40"),
    ("Oak side table", "9403.60"),
    ("Storage box", "3923.10"),
    ("Torque wrench", "8204.11"),
];
pub(in crate::sim) const STATUSES: [&str; 7] = [
    "seller_location",
    "in_transit_to_departure_port",
    "departure_port",
    "in_transit_to_arrival_port",
    "arrival_port",
    "in_transit_to_final_destination",
    "final_destination",
];
pub(in crate::sim) const CARRIERS: [(&str, &str); 5] =
    [("Maersk", "MAEU"), ("COSCO", "COSU"), ("Evergreen", "EGLV"), ("ONE", "ONEY"), ("Hapag-Lloyd", "HLCU")];
pub(in crate::sim) const VESSELS: [(&str, &str); 5] = [
    ("EVER LUCENT", "9604160"),
    ("COSCO PRIDE", "9472141"),
    ("MAERSK EINDHOVEN", "9456771"),
    ("ONE APUS", "9806079"),
    ("HANOI EXPRESS", "9343728"),
];
pub(in crate::sim) const DOCUMENT_TYPES: [&str; 5] =
    ["commercial_invoice", "packing_list", "house_bill_of_lading", "arrival_notice", "proof_of_delivery"];
pub(in crate::sim) const INCOTERMS: [&str; 4] = ["FOB", "EXW", "FCA", "DAP"];

/// Fills an empty world.
pub(in crate::sim) fn fill(world: &mut World, seed: u64, shipments: usize) {
    for index in 0..TOWNS.len() {
        world.insert(Kind::Port, Town::at(index).port());
    }
    network::fill(world, seed);
    network::goods(world, seed);
    let mut ids = fastrand::Rng::with_seed(seed ^ 0x1d5);
    let (mut shipment_id, mut booking_id, mut leg_id) = (1_204_000_u64, 480_000_u64, 7_310_000_u64);
    let (mut container_id, mut container_leg_id) = (915_000_u64, 3_420_000_u64);
    let mut history = Vec::new();
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
        let count = if course.is_air || course.is_lcl { 0 } else { rng.usize(1..4) };
        let (mut containers, mut container_legs) = (Vec::new(), Vec::new());
        for _ in 0..count {
            container_id += rng.u64(1..9);
            let value = container(&world.links, container_id, shipment_id, &course, &mut rng);
            world.insert(Kind::Container, value);
            containers.push(container_id);
            for (position, leg) in legs.iter().enumerate() {
                container_leg_id += rng.u64(1..9);
                let value =
                    container_leg(&world.links, container_leg_id, container_id, *leg, &course, position);
                world.insert(Kind::ContainerLeg, value);
                container_legs.push((container_leg_id, position));
            }
        }
        papers::fill(world, index, shipment_id, &course, created, [&shipper, &consignee], &mut rng);
        if index % 3 == 0 {
            network::book_line_items(world, booking_id, &mut rng);
        }
        if index + HISTORY >= shipments {
            history.extend(past(shipment_id, &legs, &course, created));
        }
        let fraction = dice(seed, 9, shipment_id).f64();
        let ids = [shipment_id, booking_id];
        world.depart(Voyage::underway(ids, course, legs, containers, container_legs, fraction));
    }
    history.sort_by_key(|event| event.at);
    for Past { at, name, kind, id, shipment } in history {
        let occurred = self::at(at, 0);
        let created = self::at(at + dice(seed, 7, id ^ at.unsigned_abs()).i64(60..20 * HOUR), 0);
        world.emit(Happening { name, kind, id: &id.to_string(), shipment, occurred, created });
    }
}

/// Something that the seed tells of the past.
struct Past {
    at: i64,
    name: &'static str,
    kind: Kind,
    id: u64,
    shipment: u64,
}

/// The events of a shipment before the simulator was started.
fn past(shipment: u64, legs: &[u64], course: &Course, created: i64) -> Vec<Past> {
    let [ready, picked_up, departed, arrived, delivered] = course.times;
    let mut list = vec![(created, "/shipment#created", Kind::Shipment, shipment)];
    let passed = [
        (1, ready - 3 * DAY, "/shipment#booking_confirmed", Kind::Shipment, shipment),
        (1, picked_up, "/shipment_leg#departed", Kind::ShipmentLeg, legs[0]),
        (3, departed, "/shipment_leg#departed", Kind::ShipmentLeg, legs[1]),
        (4, arrived, "/shipment_leg#arrived", Kind::ShipmentLeg, legs[1]),
        (6, delivered, "/shipment#delivered_in_full", Kind::Shipment, shipment),
    ];
    let passed = passed.into_iter().filter(|(stage, ..)| *stage <= course.stage);
    list.extend(passed.map(|(_, at, name, kind, id)| (at, name, kind, id)));
    list.into_iter().map(|(at, name, kind, id)| Past { at, name, kind, id, shipment }).collect()
}

/// The booking that a caller makes, with its course; its goods are cast, the rest is laid over it.
pub(in crate::sim) fn new_booking(
    world: &World,
    [shipment_id, id]: [u64; 2],
    is_air: bool,
    now: Timestamp,
) -> (Value, Course) {
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
    (value, course)
}

/// The shipment of a booking that a caller made.
pub(in crate::sim) fn new_shipment(
    world: &World,
    id: u64,
    booking: &Value,
    course: &Course,
    now: Timestamp,
) -> Value {
    let mut rng = dice(world.seed, 3, id);
    let booking_id = booking["id"].as_u64();
    let parties = [&booking["shipper_entity"], &booking["consignee_entity"]];
    let mut value = shipment(&world.links, id, booking_id, course, parties, now.as_second(), &mut rng);
    value["name"] = booking["name"].clone();
    value["metadata"] = booking["metadata"].clone();
    value["updated_at"] = json!(stamp(now));
    value
}

/// A confirmed booking gets its legs and containers.
pub(in crate::sim) fn route(world: &mut World, voyage: &mut Voyage) {
    let mut rng = dice(world.seed, 10, voyage.shipment);
    for position in 0..3 {
        let id = world.next_id(Kind::ShipmentLeg);
        let leg = shipment_leg(&world.links, id, voyage.shipment, &voyage.course, position, &mut rng);
        world.insert(Kind::ShipmentLeg, leg);
        voyage.legs.push(id);
    }
    let counts = match world.get(Kind::Booking, &voyage.booking.to_string()) {
        Some(booking) if !voyage.course.is_lcl && !voyage.course.is_air => {
            let counts = &booking.value["ocean_booking"]["container_counts"];
            let sizes = ["twenty_ft", "forty_ft", "forty_ft_hc", "forty_five_ft_hc"];
            sizes.map(|size| (size, counts[size].as_u64().unwrap_or(0).min(20)))
        }
        _ => [("", 0); 4],
    };
    for (size, count) in counts {
        for _ in 0..count {
            let id = world.next_id(Kind::Container);
            let mut value = container(&world.links, id, voyage.shipment, &voyage.course, &mut rng);
            value["container_size"] = json!(size);
            world.insert(Kind::Container, value);
            voyage.containers.push(id);
            for (position, leg) in voyage.legs.iter().enumerate() {
                let leg_id = world.next_id(Kind::ContainerLeg);
                let value = container_leg(&world.links, leg_id, id, *leg, &voyage.course, position);
                world.insert(Kind::ContainerLeg, value);
                voyage.container_legs.push((leg_id, position));
            }
        }
    }
}

/// An audit stamp: UTC with milliseconds.
pub(in crate::sim) fn stamp(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// Dice for one thing of the world.
pub(in crate::sim) fn dice(seed: u64, stream: u64, index: u64) -> fastrand::Rng {
    // Spread, since neighbouring seeds would cast alike.
    let mixed = (seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(index)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    fastrand::Rng::with_seed(mixed ^ (mixed >> 31))
}

/// One object of the fields of two.
pub(in crate::sim) fn join(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut fields), Value::Object(more)) => {
            fields.extend(more);
            Value::Object(fields)
        }
        (first, _) => first,
    }
}

pub(in crate::sim) fn pick<'a>(rng: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

pub(in crate::sim) fn street(rng: &mut fastrand::Rng) -> String {
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

pub(in crate::sim) fn slug(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

pub(in crate::sim) fn hs_code(description: &str, code: &str) -> Value {
    json!({"_object": "/hs_code", "description": description, "code": code, "country_code": "US"})
}

pub(in crate::sim) fn money(cents: u64, currency: &str) -> Value {
    json!({
        "_object": "/money",
        "amount": format!("{}.{:02}", cents / 100, cents % 100),
        "currency_code": currency,
    })
}

pub(in crate::sim) fn quantity(kind: &str, value: f64, unit: &str) -> Value {
    let rounded = (value * 100.0).round() / 100.0;
    let value = if rounded.fract() == 0.0 { json!(rounded as i64) } else { json!(rounded) };
    json!({"value": value, "unit": unit, "_object": format!("/quantity/{kind}")})
}

pub(in crate::sim) fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(in crate::sim) fn at(second: i64, millis: i64) -> Timestamp {
    Timestamp::from_millisecond(second * 1000 + millis).expect("the world's years are far inside the range")
}

pub(in crate::sim) fn audit(second: i64, millis: i64) -> String {
    stamp(at(second, millis))
}

pub(in crate::sim) fn transit(second: i64, offset: i8) -> String {
    let zone = TimeZone::fixed(Offset::constant(offset));
    at(second, 0).to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

pub(in crate::sim) fn plain(second: i64) -> String {
    at(second, 0).strftime("%Y-%m-%d").to_string()
}

//! Pure. A shipment and what moves it: booking, legs, containers.

use serde_json::{Value, json};

use super::super::world::{Kind, Links};
use super::towns::Town;
use super::{
    CARRIERS, Course, DAY, GOODS, HOUR, INCOTERMS, VESSELS, audit, hs_code, join, pick, plain, quantity,
    signed, street, transit,
};

pub(in crate::sim) fn shipment(
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
        "status": course.status(),
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

pub(in crate::sim) fn shipment_leg(
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

pub(in crate::sim) fn container(
    links: &Links,
    id: u64,
    shipment_id: u64,
    course: &Course,
    rng: &mut fastrand::Rng,
) -> Value {
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

pub(in crate::sim) fn container_leg(
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
        "dates": course.leg_dates(position),
        "shipment_container": links.object(Kind::Container, &json!(container_id)),
        "leg": links.object(Kind::ShipmentLeg, &json!(leg)),
    })
}

pub(in crate::sim) fn booking(
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
    let carriage = |mut booking: Value| {
        let shared = json!({
            "incoterm": incoterm,
            "wants_pickup_service": true,
            "wants_delivery_service": true,
            "origin_port": course.origin.port(),
            "destination_port": course.destination.port(),
            "product_descriptions": products,
        });
        if let (Value::Object(booking), Value::Object(shared)) = (&mut booking, shared) {
            booking.extend(shared);
        }
        booking
    };
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
        "ocean_booking": (!course.is_air).then(|| carriage(json!({
            "_object": "/ocean/booking",
            "is_lcl": course.is_lcl,
            "container_counts": {
                "_object": "/container_counts",
                "twenty_ft": null,
                "forty_ft": if course.is_lcl { None } else { Some(1) },
                "forty_ft_hc": null,
                "forty_five_ft_hc": null,
            },
        }))),
        "air_booking": course.is_air.then(|| carriage(json!({"_object": "/air/booking"}))),
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

//! Pure. A shipment's papers: documents, customs entry, invoices.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::{Content, File, Kind, Links, Voyage, World, text_id};
use super::{
    Course, DAY, DOCUMENT_TYPES, LARGEST_FILE, audit, commercial_invoice, dice, money, plain, signed, stamp,
};

/// A document's object.
pub(in crate::sim) fn document(
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

/// A document's bytes.
pub(in crate::sim) fn file_bytes(seed: u64, size: usize, mime_type: &str) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let head: &[u8] = if mime_type == "image/png" { b"\x89PNG\r\n\x1a\n" } else { b"%PDF-1.4\n" };
    let head = &head[..head.len().min(size)];
    bytes[..head.len()].copy_from_slice(head);
    bytes.into()
}

/// Documents, customs entry, invoices of a shipment.
pub(in crate::sim) fn fill(
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
    if course.stage >= 3 {
        let is_cleared = course.stage >= 5;
        let mut entry = customs_entry(&world.links, &shipment, rng);
        if is_cleared {
            entry["release_status"] = json!("cleared");
            entry["release_date"] = json!(audit(course.times[3] + DAY, 0));
        }
        world.insert(Kind::CustomsEntry, entry);
    }
    if rng.bool() {
        let id = text_id(rng);
        let number = format!("INVOICE-{shipment_id}");
        let mut value = commercial_invoice(&id, &number, &world.links.object(Kind::Shipment, &shipment));
        let units = rng.u64(10..900);
        value["total_unit_count"] = json!(format!("{units}.0"));
        value["total_value"] = money(units * 1250, "USD");
        let party = |entity: &Value, kind: &str| {
            json!({
                "_object": "/customs/involved_party",
                "address": entity["mailing_address"],
                "company_entity": world.links.object(Kind::CompanyEntity, &entity["id"]),
                "name": entity["name"],
                "type": kind,
            })
        };
        value["involved_parties"] = json!([party(shipper, "seller"), party(consignee, "consignee")]);
        world.insert(Kind::CommercialInvoice, value);
    }
    if course.stage >= 2 {
        let issued = audit(course.times[2], rng.i64(0..1000));
        let mut value = invoice(&world.links, &shipment, [shipper, consignee], course.times[2], &issued, rng);
        if course.stage == 6 {
            value["status"] = json!("paid");
            value["balance"]["amount"] = json!("0.00");
        }
        world.insert(Kind::Invoice, value);
    }
    if index % 40 == 5 {
        // For what concerns no shipment, such as a subscription.
        let issued = audit(created, rng.i64(0..1000));
        let mut value = invoice(&world.links, &shipment, [shipper, consignee], created, &issued, rng);
        value["name"] = json!(format!("CLIENT-{shipment_id}"));
        value["type"] = json!("Client");
        value["shipments"] = json!([]);
        world.insert(Kind::Invoice, value);
    }
}

/// A shipment that departs is declared to customs.
pub(in crate::sim) fn declare(world: &mut World, voyage: &Voyage) {
    let mut rng = dice(world.seed, 11, voyage.shipment);
    let entry = customs_entry(&world.links, &json!(voyage.shipment), &mut rng);
    world.insert(Kind::CustomsEntry, entry);
}

/// A shipment at its port is billed.
pub(in crate::sim) fn bill(world: &mut World, voyage: &Voyage, at: Timestamp) {
    let mut rng = dice(world.seed, 12, voyage.shipment);
    let Some(booking) = world.get(Kind::Booking, &voyage.booking.to_string()) else { return };
    let parties = [&booking.value["shipper_entity"], &booking.value["consignee_entity"]];
    let shipment = json!(voyage.shipment);
    let value = invoice(&world.links, &shipment, parties, at.as_second(), &stamp(at), &mut rng);
    world.insert(Kind::Invoice, value);
}

fn customs_entry(links: &Links, shipment: &Value, rng: &mut fastrand::Rng) -> Value {
    json!({
        "_object": "/customs_entry",
        "id": text_id(rng),
        "entry_number": format!("9JW-{:07}-{}", rng.u32(..10_000_000), rng.u32(..10)),
        "release_status": "pending",
        "release_date": null,
        "shipment": links.object(Kind::Shipment, shipment),
    })
}

fn invoice(
    links: &Links,
    shipment: &Value,
    [issuer, recipient]: [&Value; 2],
    second: i64,
    issued: &str,
    rng: &mut fastrand::Rng,
) -> Value {
    let id = text_id(rng);
    let cents = rng.u64(80_000..900_000);
    json!({
        "_object": "/invoice",
        "id": id,
        "name": format!("FLEX-{shipment}-1"),
        "issued_at": issued,
        "due_date": plain(second + 30 * DAY),
        "total": money(cents, "USD"),
        "balance": money(cents, "USD"),
        "status": "outstanding",
        "type": "Shipment",
        "voided_at": null,
        "last_updated_at": issued,
        "recipient": recipient,
        "issuer": issuer,
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
        "shipments": [links.object(Kind::Shipment, shipment)],
    })
}

//! Pure. The network of companies, the goods and their orders.

use serde_json::{Value, json};

use super::super::world::{Kind, Links, World, text_id};
use super::towns::{CHINA, DESTINATION_AIRPORTS, ORIGIN_AIRPORTS, ORIGINS, TOWNS, Town};
use super::{
    BASE, DAY, GOODS, NAMES, audit, dice, hs_code, money, pick, plain, quantity, signed, slug, street,
};

/// A product with nothing but its names.
pub(in crate::sim) fn product(id: u64, name: &str, sku: &str) -> Value {
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
    })
}

/// A commercial invoice without lines.
pub(in crate::sim) fn commercial_invoice(id: &str, number: &str, shipment: &Value) -> Value {
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
pub(in crate::sim) fn purchase_order(links: &Links, id: u64, name: &str, created: &str) -> Value {
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
pub(in crate::sim) fn company(
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
pub(in crate::sim) fn contact(links: &Links, id: &str, name: &str, company: &Value) -> Value {
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
pub(in crate::sim) fn location(
    links: &Links,
    id: &str,
    name: &str,
    company: &Value,
    address: &Value,
) -> Value {
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

pub(in crate::sim) fn fill(world: &mut World, seed: u64) {
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
        let mut company = company(&world.links, &id, name, Some(&slug), &[entity]);
        company["metadata"] = json!({"role": [if index < 6 { "customer" } else { "supplier" }]});
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
        world.place(&location_id, &contact_id);
    }
}

pub(in crate::sim) fn goods(world: &mut World, seed: u64) {
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
            let order = &world.all(Kind::PurchaseOrder)[index as usize].value;
            let mut item = order_line(&world.links, order, line, product);
            let item_id = json!(121_000 + index * 5 + line);
            let filter = "f.purchase_order_line_item.id";
            item["booking_line_items"] = world.links.collection(Kind::BookingLineItem, filter, &item_id);
            item["id"] = item_id;
            item["units"] = json!(rng.u64(20..900));
            item["unit_cost"] = money(rng.u64(150..9000), "USD");
            world.insert(Kind::PurchaseOrderLineItem, item);
        }
    }
}

/// A line of a purchase order, without its id.
pub(in crate::sim) fn order_line(links: &Links, order: &Value, number: u64, product: &Value) -> Value {
    json!({
        "_object": Kind::PurchaseOrderLineItem.object(),
        "id": null,
        "purchase_order": links.object(Kind::PurchaseOrder, &order["id"]),
        "line_item_number": number,
        "item_key": format!("item{number}"),
        "product": product,
        "units": 0,
        "unit_cost": money(0, "USD"),
        "booking_line_items": null,
        "incoterm": order["incoterm"],
        "transportation_mode": order["transportation_mode"],
        "unit_of_measure": "PCS",
        "must_arrive_date": order["must_arrive_date"],
        "origin_port": order["origin_port"],
        "origin_address": null,
        "destination_port": order["destination_port"],
        "destination_address": null,
        "hs_codes": product["hs_codes"],
        "metadata": {},
    })
}

/// Takes up to two lines of a purchase order into a booking.
pub(in crate::sim) fn book_line_items(world: &mut World, booking: u64, rng: &mut fastrand::Rng) {
    let lines = world.all(Kind::PurchaseOrderLineItem).len();
    for _ in 0..rng.usize(1..=2) {
        let line = world.all(Kind::PurchaseOrderLineItem)[rng.usize(..lines)].value["id"].clone();
        let id = world.next_id(Kind::BookingLineItem).max(61_000);
        let units = rng.u64(10..500);
        let value = booking_line_item(&world.links, id, &json!(booking), &line, &json!(units));
        world.insert(Kind::BookingLineItem, value);
    }
}

/// A line of a purchase order in a booking.
pub(in crate::sim) fn booking_line_item(
    links: &Links,
    id: u64,
    booking: &Value,
    line: &Value,
    units: &Value,
) -> Value {
    json!({
        "_object": Kind::BookingLineItem.object(),
        "id": id,
        "booking": links.object(Kind::Booking, booking),
        "purchase_order_line_item": links.object(Kind::PurchaseOrderLineItem, line),
        "units": units,
    })
}

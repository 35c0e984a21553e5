//! Bookings, what they contain, and what is to be changed about them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::super::seed;
use super::super::{Item, Kind, Refusal, World};
use super::fields::{list, merge, metadata, optional_text, required_number, required_text, section, shaped};

impl World {
    /// A booking, and its shipment, which goes its way.
    pub(super) fn booking(
        &mut self,
        fields: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<Arc<Item>, Refusal> {
        let name = required_text(fields, "name")?;
        let metadata = metadata(fields)?;
        let (air, ocean) = (section(fields, "air_booking")?, section(fields, "ocean_booking")?);
        let is_air = air.is_some() && ocean.is_none();
        let ids = [self.next_id(Kind::Shipment), self.next_id(Kind::Booking)];
        let (mut value, mut course) = seed::new_booking(self, ids, is_air, now);
        let part = if is_air { "air_booking" } else { "ocean_booking" };
        if let Some(given) = if is_air { air } else { ocean } {
            self.book_carriage(&mut value[part], given, part)?;
            course.is_lcl = value[part]["is_lcl"].as_bool().unwrap_or(false);
        }
        if let Some(given) = section(fields, "trucking_booking")? {
            let template = json!({
                "_object": "/trucking/booking",
                "is_ftl": !given.get("is_ltl").and_then(Value::as_bool).unwrap_or(false),
                "payment_terms": "prepaid",
                "description_of_products": null,
            });
            value["trucking_booking"] = shaped(&Value::Object(given.clone()), &template, "trucking_booking")?;
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
        merge(&mut value, fields, &["wants_export_customs_service"])?;
        lay_cargo(&mut value["cargo"], fields, "cargo")?;
        value["name"] = json!(name);
        value["metadata"] = metadata;
        let shipment = seed::new_shipment(self, ids[0], &value, &course, now);
        self.insert(Kind::Shipment, shipment);
        let item = self.insert(Kind::Booking, value);
        self.depart_booked(ids, course, now);
        Ok(item)
    }

    /// What an `ocean_booking` or `air_booking` says.
    fn book_carriage(&self, part: &mut Value, given: &Map<String, Value>, at: &str) -> Result<(), Refusal> {
        merge(part, given, &["is_lcl", "incoterm", "wants_pickup_service", "wants_delivery_service"])?;
        if let Some(counts) =
            section(given, "container_counts")?.filter(|_| part["container_counts"].is_object())
        {
            part["container_counts"] = container_counts(counts);
        }
        if let Some(goods) = given.get("product_descriptions").filter(|goods| !goods.is_null()) {
            part["product_descriptions"] = descriptions(goods, &format!("{at}.product_descriptions"))?;
        }
        for end in ["origin", "destination"] {
            if let Some(port) = self.port(given, &format!("{end}_port"))? {
                part[format!("{end}_port")] = port;
            }
        }
        Ok(())
    }

    /// The port that a body names by one of its codes.
    fn port(&self, fields: &Map<String, Value>, end: &str) -> Result<Option<Value>, Refusal> {
        for (suffix, path) in [
            ("loc_code", "/address/unlocode"),
            ("us_cbp_port_code", "/details/0/port_code"),
            ("iata_code", "/details/0/iata_code"),
            ("icao_code", "/details/0/icao_code"),
        ] {
            let name = format!("{end}_{suffix}");
            let Some(code) = optional_text(fields, &name)? else { continue };
            let known = self
                .all(Kind::Port)
                .iter()
                .find(|item| item.value.pointer(path).is_some_and(|has| has == code));
            // Any code is taken: the simulator knows but a few of the world's ports.
            return Ok(Some(known.map_or_else(|| seed::unknown_port(code), |item| item.value.clone())));
        }
        Ok(None)
    }

    fn entity_by_ref(&self, reference: &str) -> Value {
        let own = || self.all(Kind::CompanyEntity).first().filter(|_| reference == "self");
        let known = self.all(Kind::CompanyEntity).iter().find(|item| item.value["ref"] == reference);
        known.or_else(own).map_or_else(
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
        let known = known.map(|item| item.value["address"].clone()).filter(Value::is_object);
        let mut address = known.unwrap_or_else(|| default.clone());
        address["ref"] = json!(reference);
        address
    }

    pub(super) fn booking_line_item(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let booking = required_number(fields, "booking_id")?;
        let line_item = required_number(fields, "purchase_order_line_item_id")?;
        let units = required_number(fields, "units")?;
        let id = self.next_id(Kind::BookingLineItem);
        Ok(seed::booking_line_item(&self.links, id, &booking, &line_item, &units))
    }

    /// An amendment, which is pending until Flexport's people have seen to it.
    pub(super) fn booking_amendment(&mut self, fields: &Map<String, Value>) -> Result<Arc<Item>, Refusal> {
        let booking = required_number(fields, "booking_id")?;
        let id = self.next_id(Kind::BookingAmendment);
        let mut value = json!({
            "_object": Kind::BookingAmendment.object(),
            "id": id,
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
        for field in ["new_name", "new_cargo_ready_date"] {
            value[field] = json!(optional_text(fields, field)?);
        }
        match fields.get("new_wants_pickup_service") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(wants)) => value["new_wants_pickup_service"] = json!(wants),
            Some(_) => return Err(Refusal::bad("new_wants_pickup_service must be true or false")),
        }
        if let Some(counts) = section(fields, "new_container_counts")? {
            value["new_container_counts"] = container_counts(counts);
        }
        if let Some(reference) = optional_text(fields, "new_origin_address_ref")? {
            let default = self.all(Kind::Location)[0].value["address"].clone();
            value["new_origin_address"] = self.address_by_ref(reference, &default);
        }
        for (field, given) in
            [("new_port_of_loading", "new_origin_port"), ("new_port_of_unloading", "new_destination_port")]
        {
            value[field] = self.port(fields, given)?.unwrap_or_default();
        }
        if let Some(goods) = fields.get("new_product_descriptions").filter(|goods| !goods.is_null()) {
            value["new_product_descriptions"] = descriptions(goods, "new_product_descriptions")?;
        }
        if fields.contains_key("new_cargo") {
            let template = self.all(Kind::Booking).first().map(|item| item.value["cargo"].clone());
            let mut cargo = template.unwrap_or(Value::Null);
            lay_cargo(&mut cargo, fields, "new_cargo")?;
            value["new_cargo"] = cargo;
        }
        let new_metadata = fields.get("new_metadata").map(|given| ("metadata".to_owned(), given.clone()));
        value["new_metadata"] = metadata(&new_metadata.into_iter().collect())?;
        let item = self.insert(Kind::BookingAmendment, value);
        self.amend_later(id);
        Ok(item)
    }
}

fn container_counts(given: &Map<String, Value>) -> Value {
    let mut counts = json!({
        "_object": "/container_counts",
        "twenty_ft": null,
        "forty_ft": null,
        "forty_ft_hc": null,
        "forty_five_ft_hc": null,
    });
    for (size, count) in given.iter().filter(|(_, count)| count.is_u64()) {
        if let Some(old) = counts.get_mut(size) {
            *old = count.clone();
        }
    }
    counts
}

/// Goods, whose customs code comes as a text and is kept as an object.
fn descriptions(given: &Value, at: &str) -> Result<Value, Refusal> {
    let template = json!({
        "_object": "/bookings/product_description",
        "description": "",
        "description_for_export_customs": null,
        "description_for_export_customs_locale": null,
        "hs_code": null,
    });
    let mut goods = list(given, &template, at)?;
    let laid = goods.as_array_mut().into_iter().flatten();
    for (index, (product, given)) in laid.zip(given.as_array().into_iter().flatten()).enumerate() {
        let description = product["description"].as_str().unwrap_or_default();
        let of = |code: &str| seed::hs_code(description, code);
        product["hs_code"] = match &given["hs_code"] {
            Value::Null => of(""),
            Value::String(code) => of(code),
            object => shaped(object, &of(""), &format!("{at}[{index}].hs_code"))?,
        };
    }
    Ok(goods)
}

fn lay_cargo(cargo: &mut Value, fields: &Map<String, Value>, name: &str) -> Result<(), Refusal> {
    let Some(given) = section(fields, name)? else {
        return Ok(());
    };
    let unit = cargo["shipping_units"][0].clone();
    let mut rest = given.clone();
    if let Some(units) = rest.remove("shipping_units").filter(|units| !units.is_null()) {
        cargo["shipping_units"] = list(&units, &unit, &format!("{name}.shipping_units"))?;
    }
    *cargo = shaped(&Value::Object(rest), cargo, name)?;
    Ok(())
}

//! Products and purchase orders.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::super::seed;
use super::super::{Item, Kind, Refusal, World};
use super::fields::{list, merge, metadata, required_text};

const PRODUCT_FIELDS: [&str; 6] =
    ["name", "sku", "description", "product_category", "country_of_origin", "client_verified"];

impl World {
    pub(super) fn product(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let sku = required_text(fields, "sku")?;
        let mut value = seed::product(self.next_id(Kind::Product), name, sku);
        self.change_product(&mut value, fields, "")?;
        Ok(value)
    }

    pub(super) fn change_product(
        &self,
        value: &mut Value,
        fields: &Map<String, Value>,
        own: &str,
    ) -> Result<(), Refusal> {
        if let Some(sku) = fields.get("sku").and_then(Value::as_str) {
            let has_it = |item: &&Arc<Item>| item.value["sku"] == sku && own != item.id;
            if let Some(item) = self.all(Kind::Product).iter().find(has_it) {
                return Err(Refusal::duplicate(format!("sku {sku:?} has been taken by product {}", item.id)));
            }
        }
        merge(value, fields, &PRODUCT_FIELDS)?;
        for (field, template) in [
            ("product_properties", json!({"_object": "/product/property", "type": "", "value": ""})),
            ("classifications", json!({"_object": "/product/classification", "codes": [], "region": ""})),
        ] {
            if let Some(given) = fields.get(field).filter(|given| !given.is_null()) {
                value[field] = list(given, &template, field)?;
            }
        }
        if fields.contains_key("classifications") {
            let name = value["name"].as_str().unwrap_or_default();
            let classes = value["classifications"].as_array().into_iter().flatten();
            let codes = classes.flat_map(|class| class["codes"].as_array().into_iter().flatten());
            let codes = codes.filter_map(Value::as_str).map(|code| seed::hs_code(name, code));
            value["hs_codes"] = codes.collect();
        }
        Ok(())
    }

    /// A purchase order with its lines.
    pub(super) fn purchase_order(
        &mut self,
        fields: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<Arc<Item>, Refusal> {
        let name = required_text(fields, "name")?;
        let id = self.next_id(Kind::PurchaseOrder);
        let mut value = seed::purchase_order(&self.links, id, name, &seed::stamp(now));
        let own =
            ["status", "incoterm", "transportation_mode", "cargo_ready_date", "must_arrive_date", "memo"];
        merge(&mut value, fields, &own)?;
        value["metadata"] = metadata(fields)?;
        for (role, given) in [("seller", "seller_ref"), ("buyer", "buyer_ref")] {
            if let Some(reference) = fields.get(given).and_then(Value::as_str) {
                let known = self.all(Kind::Company).iter().find(|item| item.value["ref"] == reference);
                value[role] = known.map_or(Value::Null, |item| item.value.clone());
            }
        }
        let lines = match fields.get("line_items") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(lines)) => lines.clone(),
            Some(_) => return Err(Refusal::bad("line_items must be a list")),
        };
        let mut made = Vec::with_capacity(lines.len());
        for (index, line) in lines.iter().enumerate() {
            made.push(self.order_line(&value, line, index)?);
        }
        for mut line in made {
            line["id"] = json!(self.next_id(Kind::PurchaseOrderLineItem));
            line["booking_line_items"] =
                self.links.collection(Kind::BookingLineItem, "f.purchase_order_line_item.id", &line["id"]);
            self.insert(Kind::PurchaseOrderLineItem, line);
        }
        Ok(self.insert(Kind::PurchaseOrder, value))
    }

    fn order_line(&self, order: &Value, given: &Value, index: usize) -> Result<Value, Refusal> {
        let at = format!("line_items[{index}]");
        let Value::Object(fields) = given else {
            return Err(Refusal::bad(format!("{at} must be an object")));
        };
        let sku = fields.get("product_sku").and_then(Value::as_str);
        let number = fields.get("product_id").map(super::super::id_text);
        let product = self.all(Kind::Product).iter().find(|item| {
            sku.is_some_and(|sku| item.value["sku"] == sku) || number.as_deref() == Some(item.id.as_str())
        });
        let Some(product) = product else {
            return Err(Refusal::bad(format!("{at}.product_sku must name a product that exists")));
        };
        let units = fields.get("units").filter(|units| units.is_u64());
        let mut line = seed::order_line(&self.links, order, index as u64 + 1, &product.value);
        line["units"] =
            units.cloned().ok_or_else(|| Refusal::bad(format!("{at}.units must be an integer")))?;
        merge(
            &mut line,
            fields,
            &["line_item_number", "item_key", "unit_cost", "unit_of_measure", "must_arrive_date"],
        )?;
        line["metadata"] = metadata(fields)?;
        Ok(line)
    }
}

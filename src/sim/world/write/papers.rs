//! Documents and commercial invoices.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::super::seed;
use super::super::{Content, File, Kind, Refusal, World};
use super::fields::{list, merge, metadata, optional_text, required_number, required_text};

impl World {
    pub(super) fn document(&mut self, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, Refusal> {
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

    pub(super) fn commercial_invoice(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let number = required_text(fields, "invoice_number")?;
        let metadata = metadata(fields)?;
        let id = self.text_id();
        let shipment = fields.get("shipment_id").filter(|id| id.is_u64());
        let shipment = shipment.map_or(Value::Null, |id| self.links.object(Kind::Shipment, id));
        let mut value = seed::commercial_invoice(&id, number, &shipment);
        value["metadata"] = metadata;
        self.change_commercial_invoice(&mut value, fields)?;
        Ok(value)
    }

    pub(super) fn change_commercial_invoice(
        &self,
        value: &mut Value,
        fields: &Map<String, Value>,
    ) -> Result<(), Refusal> {
        merge(value, fields, &["is_related_parties", "invoice_number"])?;
        if let Some(currency) = optional_text(fields, "currency_code")? {
            value["total_value"]["currency_code"] = json!(currency);
        }
        if let Some(refs) = fields.get("manufacturer_refs").and_then(Value::as_array) {
            let known = refs.iter().filter_map(|one| {
                let location = self.all(Kind::Location).iter().find(|item| item.value["ref"] == *one)?;
                Some(location.value["address"].clone())
            });
            value["manufacturer_addresses"] = known.collect();
        }
        let Some(given) = fields.get("line_items").filter(|lines| !lines.is_null()) else {
            return Ok(());
        };
        let currency = value["total_value"]["currency_code"].clone();
        let mut lines = list(given, &line(&currency), "line_items")?;
        let (mut units, mut cents) = (0.0, 0.0);
        for (line, given) in
            lines.as_array_mut().into_iter().flatten().zip(given.as_array().into_iter().flatten())
        {
            let count = given["quantity"]["value"].as_f64().unwrap_or_default();
            units += count;
            cents += line["value"]["amount"]
                .as_str()
                .and_then(|amount| amount.parse::<f64>().ok())
                .unwrap_or_default();
            line["total_units"] = json!(count as u64);
            if let Some(weight) = given.get("gross_weight").filter(|weight| weight.is_object()) {
                line["weight"]["value"] = weight["value"].clone();
            }
            let sku = given["product_sku"].as_str().unwrap_or_default();
            let product = self.all(Kind::Product).iter().find(|item| item.value["sku"] == sku);
            line["product"] =
                product.map_or(Value::Null, |item| self.links.object(Kind::Product, &item.value["id"]));
        }
        value["line_items"] = lines;
        value["total_unit_count"] = json!(format!("{units:.1}"));
        value["total_value"]["amount"] = json!(format!("{cents:.2}"));
        Ok(())
    }
}

/// An empty line of a commercial invoice.
fn line(currency: &Value) -> Value {
    let money = || json!({"_object": "/money", "amount": "0.00", "currency_code": currency});
    let weight = || json!({"value": 0, "unit": "kg", "_object": "/quantity/weight"});
    json!({
        "_object": "/commercial_invoice_line_item",
        "document_line_number": null,
        "price_per_unit": money(),
        "first_sale_value": null,
        "value": money(),
        "net_value": null,
        "total_units": 0,
        "container_number": null,
        "purchase_order_number": null,
        "weight": weight(),
        "volume": {"value": 0, "unit": "cbm", "_object": "/quantity/volume"},
        "net_weight": weight(),
        "net_net_weight": weight(),
        "manufacturer_address": null,
        "manufacturer_name": null,
        "product": null,
        "metadata": {},
    })
}

//! What writes do to the account: `POST` creates, `PATCH` changes.
//!
//! Whatever a caller gives, an object keeps the keys, the order and the types of its kind; what does not fit is
//! refused by the field's name, what the kind does not have is left out. What may be null is listed in `fields`.

mod booking;
mod fields;
mod goods;
mod network;
mod papers;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::seed;
use super::{Item, Kind, Refusal, World};
#[cfg(test)]
pub(in crate::sim) use fields::{Holds, NULLABLE};
use fields::{check_metadata, merge};

impl World {
    /// Creates an object.
    pub(in crate::sim) fn create(
        &mut self,
        kind: Kind,
        body: &Value,
        now: Timestamp,
    ) -> Result<Arc<Item>, Refusal> {
        let fields = body.as_object().ok_or_else(|| Refusal::bad("the body must be a JSON object"))?;
        let value = match kind {
            Kind::Booking => return self.booking(fields, now),
            Kind::BookingLineItem => self.booking_line_item(fields)?,
            Kind::BookingAmendment => return self.booking_amendment(fields),
            Kind::Document => self.document(fields, now)?,
            Kind::Product => self.product(fields)?,
            Kind::CommercialInvoice => self.commercial_invoice(fields)?,
            Kind::PurchaseOrder => return self.purchase_order(fields, now),
            Kind::Company => self.company(fields)?,
            Kind::CompanyEntity => return self.company_entity(fields),
            Kind::Contact => self.contact(fields)?,
            Kind::Location => return self.location(fields),
            _ => return Err(Refusal::bad("objects of this collection cannot be created")),
        };
        Ok(self.insert(kind, value))
    }

    /// Changes an object.
    pub(in crate::sim) fn patch(
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
            if value.get("metadata").is_some() {
                value["metadata"] = metadata.clone();
            }
        }
        match kind {
            Kind::Shipment => {
                if !fields.contains_key("metadata") {
                    return Err(Refusal::bad("metadata is missing: it is what this call replaces"));
                }
                value["updated_at"] = json!(seed::stamp(now));
            }
            Kind::Product => self.change_product(&mut value, fields, id)?,
            Kind::CommercialInvoice => self.change_commercial_invoice(&mut value, fields)?,
            Kind::CompanyEntity => self.change_company_entity(&mut value, fields)?,
            Kind::Location => self.change_location(&mut value, fields, id)?,
            _ => merge(&mut value, fields, &["name", "ref", "email", "phone_number"])?,
        }
        let item = self.replace(kind, id, value);
        if kind == Kind::CompanyEntity {
            self.renew_entity(&item);
        }
        Ok(item)
    }

    /// Changes the commercial invoice that the body names by `id` or by `invoice_number`.
    pub(in crate::sim) fn patch_commercial_invoice(
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
}

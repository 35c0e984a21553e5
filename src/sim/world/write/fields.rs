//! Pure. Reading the fields of a body, and laying them over an object without losing its shape.

use serde_json::{Map, Value, json};

use super::super::Refusal;

/// What a field holds that may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) enum Holds {
    Text,
    Flag,
    Whole,
    Money,
    Address,
    /// What no body gives in this form: a reference, a stamp, or an object that is read elsewhere.
    Other,
}

/// The fields that may be null of the objects that writes lay fields over. All others keep their type.
pub(in crate::sim) const NULLABLE: [(&str, &[(&str, Holds)]); 15] = {
    use Holds::{Address, Flag, Money, Other, Text, Whole};
    [
        (
            "/address",
            &[
                ("street_address", Text),
                ("street_address2", Text),
                ("state", Text),
                ("zip", Text),
                ("unlocode", Text),
                ("ref", Text),
            ],
        ),
        (
            "/booking",
            &[
                ("notify_party", Other),
                ("ocean_booking", Other),
                ("air_booking", Other),
                ("trucking_booking", Other),
                ("destination_address", Other),
                ("delivery_date", Other),
                ("wants_export_customs_service", Flag),
                ("special_instructions", Other),
            ],
        ),
        (
            "/bookings/product_description",
            &[("description_for_export_customs", Text), ("description_for_export_customs_locale", Text)],
        ),
        ("/cargo", &[("marks_and_numbers", Text), ("contains_non_li_ion_battery", Flag)]),
        (
            "/commercial_invoice_line_item",
            &[
                ("document_line_number", Whole),
                ("first_sale_value", Money),
                ("net_value", Money),
                ("container_number", Text),
                ("purchase_order_number", Text),
                ("manufacturer_address", Address),
                ("manufacturer_name", Text),
                ("product", Other),
            ],
        ),
        ("/company_entity", &[("mailing_address", Other)]),
        ("/network/company", &[("ref", Text)]),
        ("/network/contact", &[("email", Text), ("phone_number", Text), ("company", Other)]),
        ("/network/location", &[("address", Other), ("company", Other), ("ref", Text)]),
        ("/ocean/booking", &[("wants_delivery_service", Flag), ("destination_port", Other)]),
        (
            "/product",
            &[
                ("description", Text),
                ("archived_at", Other),
                ("product_category", Text),
                ("country_of_origin", Text),
            ],
        ),
        (
            "/purchase_order",
            &[
                ("seller", Other),
                ("buyer", Other),
                ("cargo_ready_date", Text),
                ("must_arrive_date", Text),
                ("origin_port", Other),
                ("origin_address", Other),
                ("destination_port", Other),
                ("destination_address", Other),
                ("memo", Text),
                ("archived_at", Other),
            ],
        ),
        (
            "/purchase_orders/line_item",
            &[
                ("must_arrive_date", Text),
                ("origin_port", Other),
                ("origin_address", Other),
                ("destination_port", Other),
                ("destination_address", Other),
            ],
        ),
        ("/shipping_unit", &[("name", Text), ("atomic_count", Whole)]),
        ("/trucking/booking", &[("description_of_products", Text)]),
    ]
};

/// Takes over those of the named fields that are given and that the object has.
pub(super) fn merge(value: &mut Value, given: &Map<String, Value>, names: &[&str]) -> Result<(), Refusal> {
    let object = object_of(value);
    for name in names {
        if let (Some(new), Some(old)) = (given.get(*name), value.get_mut(*name)) {
            overlay(old, new, holds(&object, name), &object, name)?;
        }
    }
    Ok(())
}

/// Lays a value over another: inside objects field by field, so that keys and `_object` stay; a list is replaced.
/// `holds` is what the field holds when it may be null, `object` what it is a field of.
fn overlay(
    old: &mut Value,
    new: &Value,
    holds: Option<Holds>,
    object: &str,
    at: &str,
) -> Result<(), Refusal> {
    if new.is_null() {
        return match holds {
            None => Err(Refusal::bad(format!("{at} must be {}, not null", kind_of(old)))),
            Some(Holds::Other) => Ok(()),
            Some(_) => {
                *old = Value::Null;
                Ok(())
            }
        };
    }
    let is_kept = match (&mut *old, holds) {
        // What is null and never may be is filled in later: no body gives it, either.
        (_, Some(Holds::Other)) | (Value::Null, None) => return Ok(()),
        (_, Some(Holds::Money)) => {
            *old = shaped(new, &json!({"_object": "/money", "amount": "0.00", "currency_code": "USD"}), at)?;
            return Ok(());
        }
        (_, Some(Holds::Address)) => {
            *old = address(new, at)?;
            return Ok(());
        }
        (Value::Object(fields), None) => {
            let given = new.as_object().ok_or_else(|| Refusal::bad(format!("{at} must be an object")))?;
            return lay(fields, given, at);
        }
        (_, Some(Holds::Text)) | (Value::String(_), None) => new.is_string(),
        (_, Some(Holds::Flag)) | (Value::Bool(_), None) => new.is_boolean(),
        (Value::Number(_), None) if object.starts_with("/quantity/") => new.is_number(),
        (_, Some(Holds::Whole)) | (Value::Number(_), None) => new.is_u64(),
        // All lists that get here are of texts.
        (Value::Array(_), None) => new.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
    };
    if !is_kept {
        let wanted = match holds {
            Some(Holds::Text) => "a string or null",
            Some(Holds::Flag) => "true, false or null",
            Some(_) => "an integer or null",
            None => kind_of(old),
        };
        return Err(Refusal::bad(format!("{at} must be {wanted}")));
    }
    *old = new.clone();
    Ok(())
}

fn lay(fields: &mut Map<String, Value>, given: &Map<String, Value>, at: &str) -> Result<(), Refusal> {
    let object = fields.get("_object").and_then(Value::as_str).unwrap_or_default().to_owned();
    for (name, old) in fields.iter_mut().filter(|(name, _)| name.as_str() != "_object") {
        if let Some(new) = given.get(name) {
            overlay(old, new, holds(&object, name), &object, &format!("{at}.{name}"))?;
        }
    }
    Ok(())
}

fn object_of(value: &Value) -> String {
    value["_object"].as_str().unwrap_or_default().to_owned()
}

fn holds(object: &str, field: &str) -> Option<Holds> {
    let (_, fields) = NULLABLE.iter().find(|(known, _)| *known == object)?;
    fields.iter().find(|(known, _)| *known == field).map(|(_, holds)| *holds)
}

/// A list whose objects have the shape of a template.
pub(super) fn list(given: &Value, template: &Value, at: &str) -> Result<Value, Refusal> {
    let Value::Array(given) = given else {
        return Err(Refusal::bad(format!("{at} must be a list")));
    };
    let shaped =
        given.iter().enumerate().map(|(index, given)| shaped(given, template, &format!("{at}[{index}]")));
    Ok(Value::Array(shaped.collect::<Result<_, _>>()?))
}

/// An object with the shape of a template.
pub(super) fn shaped(given: &Value, template: &Value, at: &str) -> Result<Value, Refusal> {
    let given = given.as_object().ok_or_else(|| Refusal::bad(format!("{at} must be an object")))?;
    let mut value = template.clone();
    if let Value::Object(fields) = &mut value {
        lay(fields, given, at)?;
    }
    Ok(value)
}

/// An address as a body gives it.
pub(super) fn address(given: &Value, at: &str) -> Result<Value, Refusal> {
    let country = match given["country_code"].as_str() {
        Some("CN") => "China",
        Some("US") => "United States of America",
        Some("VN") => "Vietnam",
        Some("IN") => "India",
        Some("DE") => "Germany",
        Some("NL") => "Netherlands",
        Some(other) => other,
        None => "",
    };
    let template = json!({
        "_object": "/address",
        "street_address": null,
        "street_address2": null,
        "city": "",
        "state": null,
        "country": country,
        "country_code": "",
        "zip": null,
        "unlocode": null,
        "timezone": "Etc/UTC",
        "ref": null,
    });
    shaped(given, &template, at)
}

pub(super) fn section<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(section)) => Ok(Some(section)),
        Some(_) => Err(Refusal::bad(format!("{name} must be an object"))),
    }
}

pub(super) fn required_text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    optional_text(fields, name)?
        .ok_or_else(|| Refusal::bad(format!("{name} is missing; it must be a string")))
}

pub(super) fn optional_text<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::bad(format!("{name} must be a string"))),
    }
}

pub(super) fn required_number(fields: &Map<String, Value>, name: &str) -> Result<Value, Refusal> {
    match fields.get(name) {
        Some(value) if value.is_u64() => Ok(value.clone()),
        _ => Err(Refusal::bad(format!("{name} must be an integer"))),
    }
}

pub(super) fn metadata(fields: &Map<String, Value>) -> Result<Value, Refusal> {
    match fields.get("metadata") {
        None | Some(Value::Null) => Ok(json!({})),
        Some(metadata) => check_metadata(metadata).map(|()| metadata.clone()),
    }
}

pub(super) fn check_metadata(metadata: &Value) -> Result<(), Refusal> {
    let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
    match metadata.as_object() {
        Some(keys) if keys.values().all(is_list) => Ok(()),
        _ => Err(Refusal::bad("metadata must map keys to lists of strings, such as {\"po\":[\"123\"]}")),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list of strings",
        _ => "an object",
    }
}

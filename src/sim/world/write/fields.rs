//! Pure. Reading the fields of a body, and laying them over an object without losing its shape.

use serde_json::{Map, Value, json};

use super::super::Refusal;

/// Takes over those of the named fields that are given and that the object has.
pub(super) fn merge(value: &mut Value, given: &Map<String, Value>, names: &[&str]) -> Result<(), Refusal> {
    for name in names {
        if let (Some(new), Some(old)) = (given.get(*name), value.get_mut(*name)) {
            overlay(old, new, name)?;
        }
    }
    Ok(())
}

/// Lays a value over another: inside objects field by field, so that keys and `_object` stay; a list is replaced.
fn overlay(old: &mut Value, new: &Value, at: &str) -> Result<(), Refusal> {
    let is_kept = matches!(
        (&*old, new),
        (Value::Null, _)
            | (_, Value::Null)
            | (Value::Bool(_), Value::Bool(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::String(_), Value::String(_))
            | (Value::Array(_), Value::Array(_))
    );
    match (&mut *old, new) {
        (Value::Object(fields), Value::Object(given)) => {
            for (name, old) in fields.iter_mut().filter(|(name, _)| name.as_str() != "_object") {
                if let Some(new) = given.get(name) {
                    overlay(old, new, &format!("{at}.{name}"))?;
                }
            }
            Ok(())
        }
        _ if is_kept => {
            *old = new.clone();
            Ok(())
        }
        _ => Err(Refusal::bad(format!("{at} must be {}", kind_of(old)))),
    }
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
    if !given.is_object() {
        return Err(Refusal::bad(format!("{at} must be an object")));
    }
    let mut value = template.clone();
    overlay(&mut value, given, at)?;
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
        Value::Array(_) => "a list",
        _ => "an object",
    }
}

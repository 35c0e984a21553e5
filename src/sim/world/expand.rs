//! Pure. `expand=a,b.c`: references replaced by what they refer to.
//!
//! A reference to one object becomes the object; one to a collection becomes the first page of that list, in the
//! same form as a list's answer, with its `next`. A dotted path goes on inside what was expanded. Whether the real
//! API expands collections in just this form nobody documents.

use serde_json::{Value, json};

use super::super::query::Query;
use super::{Kind, World, id_text};

/// The most parts that a path may have.
const DEPTH_MAX: usize = 4;

impl World {
    /// Expands one path in an object. The error is a sentence that names the parameter.
    pub(in crate::sim) fn expand(&self, value: &mut Value, path: &str) -> Result<(), String> {
        let parts: Vec<&str> = path.split('.').collect();
        if parts.len() > DEPTH_MAX {
            return Err(format!("expand: {path:?} has more than {DEPTH_MAX} parts"));
        }
        self.descend(value, &parts)
    }

    fn descend(&self, value: &mut Value, path: &[&str]) -> Result<(), String> {
        if let Value::Array(list) = value {
            return list.iter_mut().try_for_each(|value| self.descend(value, path));
        }
        self.resolve_reference(value);
        let Some((field, rest)) = path.split_first() else {
            return Ok(());
        };
        match value {
            Value::Object(fields)
                if fields.get("_object").is_some_and(|object| object == "/api/collections/paginated") =>
            {
                fields.get_mut("data").map_or(Ok(()), |data| self.descend(data, path))
            }
            Value::Object(fields) => match fields.get_mut(*field) {
                Some(value) => self.descend(value, rest),
                None => Err(format!("expand: there is no field {field:?} to expand")),
            },
            _ => Ok(()),
        }
    }

    /// Replaces a reference by its target; what is none, or leads nowhere, stays.
    fn resolve_reference(&self, value: &mut Value) {
        let Some(kind) = value["ref_type"].as_str().and_then(Kind::of_object) else { return };
        let target = if value["_object"] == "/api/refs/object" {
            self.get(kind, &id_text(&value["id"])).map(|item| item.value.clone())
        } else {
            value["link"].as_str().and_then(|link| self.first_page(kind, link))
        };
        if let Some(target) = target {
            *value = target;
        }
    }

    fn first_page(&self, kind: Kind, link: &str) -> Option<Value> {
        let query = Query::parse(link.split_once('?').map(|(_, query)| query)).ok()?;
        let page = self.select(kind, &query).ok()?;
        let has_next = (page.items.len() as u64) < page.total;
        let next = has_next.then(|| format!("{}{}", self.links.base(), query.page_link(kind.path(), 2)));
        Some(json!({
            "_object": "/api/collections/paginated",
            "prev": null,
            "next": next,
            "total_count": page.total,
            "data": page.items.iter().map(|item| item.value.clone()).collect::<Vec<_>>(),
        }))
    }
}

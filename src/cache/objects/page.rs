//! Pure. The objects on a page of a collection.
//!
//! A page is Flexport's envelope with a collection in `data` and the objects in `data.data`. Only what stands there
//! itself counts: an object that is nested in another, or named in a text, is none. Nothing is decoded or written anew,
//! so an object that is taken out has its bytes and the order of its keys. What is not exactly such a page has no
//! objects.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::ops::Range;

/// What a page says.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// `version`, as it stands there.
    pub(crate) version: &'a str,
    /// The ids, with where in the page each object stands.
    pub(crate) objects: Vec<(&'a str, Range<usize>)>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    version: &'a RawValue,
    #[serde(borrow)]
    data: Collection<'a>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Collection<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, rename = "_object")]
    kind: &'a RawValue,
    #[serde(borrow)]
    id: &'a RawValue,
}

/// The longest `version`.
const VERSION: usize = 32;

/// Reads a page.
pub(crate) fn read(body: &[u8]) -> Option<Page<'_>> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).ok()?;
    let version = envelope.version.get();
    if envelope.error.is_some() || version.len() > VERSION {
        return None;
    }
    let start = body.as_ptr().addr();
    let objects = envelope
        .data
        .data
        .into_iter()
        .filter_map(|raw| {
            let text = raw.get();
            let from = text.as_ptr().addr() - start;
            Some((id_of(text)?, from..from + text.len()))
        })
        .collect();
    Some(Page { version, objects })
}

/// The id of an object as a path names it. `None`: it is no object, but a reference to one, an error, or something else.
pub(crate) fn id_of(text: &str) -> Option<&str> {
    let object: Object<'_> = serde_json::from_str(text).ok()?;
    let kind = object.kind.get();
    if !kind.starts_with("\"/") || kind.starts_with("\"/api/") {
        return None;
    }
    let id = object.id.get();
    let id = id.strip_prefix('"').and_then(|id| id.strip_suffix('"')).unwrap_or(id);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (!id.is_empty() && id != "null" && id.bytes().all(is_plain)).then_some(id)
}

/// Whether a query asks for objects that are made up differently.
pub(crate) fn expands(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split('=').next().unwrap_or_default().as_bytes();
        let mut name = percent_encoding::percent_decode(name);
        b"expand".iter().all(|wanted| name.next().is_some_and(|byte| byte.eq_ignore_ascii_case(wanted)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(objects: &str) -> String {
        format!(
            r#"{{"_object":"/api/response","self":"x","version":2,"data":{{"_object":"/api/collections/paginated","prev":null,"next":null,"total_count":1,"data":[{objects}]}},"error":null}}"#
        )
    }

    fn ids(body: &str) -> Vec<&str> {
        read(body.as_bytes())
            .map(|page| page.objects.into_iter().map(|(id, _)| id).collect())
            .unwrap_or_default()
    }

    #[test]
    fn only_what_stands_on_the_page_itself_is_there() {
        let objects = r#"{"_object":"/shipment","id":12,"legs":[{"_object":"/shipment_leg","id":7}]},
            {"id": "a-1" ,"note":"\"_object\":\"/shipment\",\"id\":9","_object":"/shipment"},
            {"_object":"/api/refs/object","ref_type":"/shipment","link":"x","id":5},
            {"_object":"/shipment","id":null},{"_object":"/shipment","id":"a/b"},{"_object":3,"id":4},
            {"_object":"/shipment","id":6,"id":8},17"#;
        let body = page(objects);
        assert_eq!(ids(&body), ["12", "a-1"]);
        let found = read(body.as_bytes()).unwrap();
        assert_eq!(found.version, "2");
        let text = &body[found.objects[0].1.clone()];
        assert_eq!(text, r#"{"_object":"/shipment","id":12,"legs":[{"_object":"/shipment_leg","id":7}]}"#);
    }

    #[test]
    fn what_is_no_page_has_no_objects() {
        let object = r#"{"_object":"/shipment","id":12}"#;
        let whole = page(object);
        assert!(!ids(&whole).is_empty());
        for body in [
            "",
            "[]",
            object,
            &whole[..whole.len() - 1],
            &whole.replace("\"error\":null", "\"error\":{}"),
            &whole.replace("\"version\":2,", ""),
            &format!(r#"{{"version":2,"data":{object},"error":null}}"#),
            &format!(r#"{{"version":2,"data":[{object}],"error":null}}"#),
        ] {
            assert!(ids(body).is_empty(), "{body}");
        }
        assert!(read(&[whole.as_bytes(), b"\xff"].concat()).is_none());
    }

    #[test]
    fn an_expansion_is_found_however_it_is_written() {
        for query in ["expand=legs", "page=1&expand[]=x", "a=b&e%78pand=legs", "Expand=x", "expand"] {
            assert!(expands(query), "{query}");
        }
        for query in ["", "page=1&per=2", "f.metadata.x=expand", "sort=expand", "ex=pand"] {
            assert!(!expands(query), "{query}");
        }
    }
}

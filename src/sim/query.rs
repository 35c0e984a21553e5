//! Pure. What a list's query asks for: page, order and filters, and whether an object passes a filter.
//!
//! Parameters that the API documents are read strictly (a wrong `per` is a 400, as nothing is known of what the
//! real one does and a silent default hides mistakes); parameters that do not begin with `f.` and are not known
//! are ignored, as everybody's framework does.

use std::cmp::Ordering;

use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::Value;

/// Objects in a page when the caller does not say.
const PER_DEFAULT: u64 = 10;
/// The most objects that a page may have.
const PER_MAX: u64 = 100;

/// What a list's query asks for.
#[derive(Debug, PartialEq)]
pub(super) struct Query {
    pub(super) page: u64,
    pub(super) per: u64,
    /// The field to order by; `None` is the order of creation, which is that of the ids.
    pub(super) sort: Option<String>,
    pub(super) is_descending: bool,
    pub(super) filters: Vec<Filter>,
    /// The query's parameters but `page` and `per`, as octets, in their order: what `prev` and `next` repeat.
    kept: String,
}

/// One condition: at least one of `needles` holds for at least one value at `path`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Filter {
    pub(super) path: Vec<String>,
    pub(super) op: Op,
    pub(super) needles: Vec<Needle>,
}

/// The comparison of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Is,
    Any,
    Exists,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// A value that the caller compares with, read once in each way that a field may need it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Needle {
    text: String,
    number: Option<f64>,
    instant: Option<Timestamp>,
}

/// What an object is ordered by, read once.
#[derive(Debug, Clone, Copy)]
pub(super) enum SortKey<'a> {
    Nothing,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    Instant(Timestamp),
    /// A list or an object, which has no order.
    Other,
}

// === impl Query ===

impl Query {
    /// Reads a raw query. The error is a sentence that names the parameter.
    pub(super) fn parse(raw: Option<&str>) -> Result<Self, String> {
        let mut query = Self {
            page: 1,
            per: PER_DEFAULT,
            sort: None,
            is_descending: true,
            filters: Vec::new(),
            kept: String::new(),
        };
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name), decode(value));
            match name.as_str() {
                "page" => query.page = number(&name, &value, u64::MAX / PER_MAX)?,
                "per" => query.per = number(&name, &value, PER_MAX)?,
                "sort" => query.sort = Some(value).filter(|field| field != "id"),
                "direction" => {
                    query.is_descending = match value.as_str() {
                        "asc" => false,
                        "desc" => true,
                        other => return Err(format!("direction must be asc or desc, not {other:?}")),
                    }
                }
                _ => {
                    if let Some(field) = name.strip_prefix("f.") {
                        query.add(field, &value)?;
                    }
                }
            }
            if !matches!(name.as_str(), "page" | "per") {
                if !query.kept.is_empty() {
                    query.kept.push('&');
                }
                query.kept.push_str(pair);
            }
        }
        Ok(query)
    }

    /// Adds a condition; the same field with the same comparison again widens it.
    fn add(&mut self, field: &str, value: &str) -> Result<(), String> {
        let (path, op) = split(field);
        if path.iter().any(String::is_empty) {
            return Err(format!("filter f.{field} has an empty part"));
        }
        if op == Op::Exists && !matches!(value, "true" | "false") {
            return Err(format!("filter f.{field} must be true or false, not {value:?}"));
        }
        let needles: Vec<Needle> = match op {
            Op::Any => value.split(',').map(Needle::new).collect(),
            _ => vec![Needle::new(value)],
        };
        match self.filters.iter_mut().find(|filter| filter.path == path && filter.op == op) {
            Some(filter) => filter.needles.extend(needles),
            None => self.filters.push(Filter { path, op, needles }),
        }
        Ok(())
    }

    /// The paths that the caller wants expanded.
    pub(super) fn expand(raw: Option<&str>) -> Vec<String> {
        let pairs = raw.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let lists = pairs.filter(|(name, _)| *name == "expand").map(|(_, value)| decode(value));
        lists
            .flat_map(|list| list.split(',').map(|path| path.trim().to_owned()).collect::<Vec<_>>())
            .filter(|path| !path.is_empty())
            .collect()
    }

    /// The path and query of another page of the same list.
    pub(super) fn page_link(&self, path: &str, page: u64) -> String {
        let separator = if self.kept.is_empty() { "" } else { "&" };
        format!("{path}?{}{separator}page={page}&per={}", self.kept, self.per)
    }

    /// What the pages of one list have in common.
    pub(super) fn selection(&self) -> &str {
        &self.kept
    }

    /// The index of the page's first object.
    pub(super) fn offset(&self) -> u64 {
        (self.page - 1).saturating_mul(self.per)
    }
}

// === impl Filter ===

impl Filter {
    /// Whether the values found at the filter's path satisfy it. Nothing found is like `null`.
    pub(super) fn passes(&self, found: &[&Value]) -> bool {
        if self.op == Op::Exists {
            let exists = found.iter().any(|value| !is_empty(value));
            return self.needles.iter().any(|needle| (needle.text == "true") == exists);
        }
        found.iter().any(|value| self.needles.iter().any(|needle| needle.holds(self.op, value)))
    }
}

// === impl Needle ===

impl Needle {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), number: text.parse().ok(), instant: instant(text) }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn holds(&self, op: Op, value: &Value) -> bool {
        let ordering = match value {
            Value::Number(number) => number.as_f64().zip(self.number).and_then(|(a, b)| a.partial_cmp(&b)),
            Value::String(text) if *text == self.text => Some(Ordering::Equal),
            Value::String(text) => match (self.instant, instant(text)) {
                (Some(wanted), Some(has)) => Some(has.cmp(&wanted)),
                _ => Some(text.as_str().cmp(&self.text)),
            },
            Value::Bool(is) => (self.text == if *is { "true" } else { "false" }).then_some(Ordering::Equal),
            _ => None,
        };
        ordering.is_some_and(|ordering| match op {
            Op::Is | Op::Any => ordering.is_eq(),
            Op::Gt => ordering.is_gt(),
            Op::Gte => ordering.is_ge(),
            Op::Lt => ordering.is_lt(),
            Op::Lte => ordering.is_le(),
            Op::Exists => false,
        })
    }
}

// === impl SortKey ===

impl<'a> SortKey<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(is) => Self::Bool(*is),
            Value::Number(number) => Self::Number(number.as_f64().unwrap_or_default()),
            Value::String(text) => instant(text).map_or(Self::Text(text), Self::Instant),
            _ => Self::Other,
        }
    }

    /// Orders two values of one field: instants by time, nothing after everything.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => Ordering::Equal,
            (Self::Nothing, _) => Ordering::Greater,
            (_, Self::Nothing) => Ordering::Less,
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Instant(a), Self::Instant(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }
}

/// Decodes a part of a query: percent escapes, and `+` as a space.
pub(super) fn decode(raw: &str) -> String {
    let spaced = raw.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

fn number(name: &str, value: &str, max: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ if max == PER_MAX => Err(format!("{name} must be a number from 1 to {max}, not {value:?}")),
        _ => Err(format!("{name} must be a number from 1, not {value:?}")),
    }
}

/// Splits a filter's field into path and comparison. A metadata key may itself contain dots.
fn split(field: &str) -> (Vec<String>, Op) {
    if let Some(key) = field.strip_prefix("metadata.") {
        return (vec!["metadata".to_owned(), key.to_owned()], Op::Is);
    }
    let mut path: Vec<String> = field.split('.').map(str::to_owned).collect();
    let op = match path.last().map(String::as_str) {
        Some("gt") => Op::Gt,
        Some("gte") => Op::Gte,
        Some("lt") => Op::Lt,
        Some("lte") => Op::Lte,
        Some("exists") => Op::Exists,
        Some("any") => Op::Any,
        _ => Op::Is,
    };
    if op != Op::Is && path.len() > 1 {
        path.pop();
        return (path, op);
    }
    (path, Op::Is)
}

/// The instant that a text names: RFC 3339, or a plain date (its midnight, UTC).
fn instant(text: &str) -> Option<Timestamp> {
    // Cheap refusal first: nearly every text is no date.
    if text.len() < 10 || text.as_bytes()[4] != b'-' || !text.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if text.len() == 10 {
        let date: jiff::civil::Date = text.parse().ok()?;
        return date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    }
    // A raw `+08:00` in a query has become ` 08:00`.
    text.parse().ok().or_else(|| text.replace(' ', "+").parse().ok())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn passes(query: &str, value: &Value) -> bool {
        Query::parse(Some(query)).unwrap().filters[0].passes(&[value])
    }

    #[test]
    fn defaults_are_ten_newest_first() {
        let query = Query::parse(None).unwrap();
        assert_eq!((query.page, query.per, query.is_descending), (1, 10, true));
        assert_eq!(query.page_link("/shipments", 2), "/shipments?page=2&per=10");
    }

    #[test]
    fn other_pages_keep_the_filters_as_octets_then_page_and_per() {
        let query = Query::parse(Some("f.status=a%2Cb&page=3&sort=id&per=7")).unwrap();
        assert_eq!(query.page_link("/shipments", 4), "/shipments?f.status=a%2Cb&sort=id&page=4&per=7");
        assert_eq!(query.offset(), 14);
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for (query, name) in [
            ("per=0", "per"),
            ("per=101", "per"),
            ("page=x", "page"),
            ("page=0", "page"),
            ("direction=up", "direction"),
            ("f.archived_at.exists=yes", "f.archived_at.exists"),
        ] {
            let error = Query::parse(Some(query)).unwrap_err();
            assert!(error.contains(name), "{query}: {error}");
        }
    }

    #[test]
    fn instants_compare_across_offsets_and_with_plain_dates() {
        let value = json!("2026-03-12T12:00:00.000+08:00");
        assert!(passes("f.at.gt=2026-03-12T03:59:59Z", &value));
        assert!(passes("f.at.gte=2026-03-12T12:00:00.000+08:00", &value));
        assert!(!passes("f.at.lt=2026-03-12", &value));
        assert!(passes("f.at.lte=2026-03-13", &value));
    }

    #[test]
    fn the_same_key_again_widens_and_any_takes_a_list() {
        assert!(passes("f.metadata.PO%20%23=1&f.metadata.PO%20%23=2", &json!("2")));
        assert!(passes("f.statuses.any=a,b", &json!("b")));
        assert!(!passes("f.statuses.any=a,b", &json!("c")));
        assert!(passes("f.id=12", &json!(12)));
        assert!(passes("f.archived_at.exists=false", &Value::Null));
    }
}

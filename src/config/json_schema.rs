//! Pure. The table of keys for others: as JSON Schema (draft 2020-12) for editors and CI, and as docs/CONFIGURATION.md.
//!
//! The schema takes at least what [`load`](super::load) takes: what goes across fields, and whether files exist, only
//! `seawall check` can tell. Two annotations are ours: `x-seawall-restart` (a change waits for a restart) and
//! `x-seawall-env` (the environment variable).

use super::overlay::as_variable;
use super::raw::Settings;
use super::schema::{self, Field, Kind, Shape};
use super::{describe, show};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

struct Texts {
    of: BTreeMap<String, String>,
    defaults: Value,
}

/// JSON Schema of `proxy.toml`.
pub fn json_schema() -> Value {
    let mut schema = object("", schema::ROOT, &Texts::new());
    let head = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Seawall's proxy.toml",
        "description": "Settings of Seawall, a resilience proxy for the Flexport API. What goes across keys is checked by `seawall check`.",
    });
    if let (Value::Object(all), Value::Object(mut first)) = (&mut schema, head) {
        first.append(all);
        return Value::Object(first);
    }
    schema
}

/// docs/CONFIGURATION.md.
pub fn reference() -> String {
    let texts = Texts::new();
    let mut page = String::from(HEAD);
    let top: Vec<Field> =
        schema::ROOT.iter().filter(|(_, shape)| matches!(shape, Shape::Leaf(_))).copied().collect();
    page.push_str("\n## Top level\n");
    table("", &top, &texts, &mut page);
    sections("", schema::ROOT, &texts, &mut page);
    page
}

const HEAD: &str = "\
# Configuration

<!-- Made from the table of keys and the comments of proxy.toml. A test compares it; `SEAWALL_BLESS=1 cargo test
the_reference_is_up_to_date` writes it. -->

Later beats earlier: defaults < file < environment < command line (`--set section.key=value`). The file is looked for
as `--config FILE`, `$SEAWALL_CONFIG`, `./proxy.toml`, `/etc/seawall/proxy.toml`; without one the defaults apply. The
shipped [`proxy.toml`](../proxy.toml) has every key with its default, so that it changes nothing as it is.

* `seawall check` names every problem with `file:line:column`, and exits with 0 or 78.
* `seawall config show` prints each effective value and where it comes from; `GET /api/v1/config` does so for a running
  Seawall.
* `seawall config schema` prints a JSON Schema (draft 2020-12) for editors and CI.

Durations are written `\"250ms\"`, `\"30s\"`, `\"1m 30s\"`, `\"4h\"`, `\"2d\"`; sizes `\"512B\"`, `\"64KiB\"`, `\"128MiB\"`,
`\"1GiB\"`. Secrets never stand in the file: `*_file` names a file, `*_env` an environment variable. In the environment a
list is written as in TOML (`[\"a\", \"b\"]`); lists of tables (`[[caller]]`, `[[breaker.scope]]`) are set in the file only.

## Reload

SIGHUP, `POST /api/v1/config/reload`, and a change of the file or of a file with a secret (looked at every two seconds,
taken when it has been still for as long; swapped links and renamed files count) read every source again. It is all or
nothing: when anything is wrong, the running configuration stays, the log and the answer name each problem with its
place, and `seawall_config_reload_successful` is 0 until a reload succeeds. Requests under way end with the
configuration that they began with.

The column *reload* says what becomes of a change: **live** takes effect with the next request (or at once, where no
request is concerned); **restart** keeps the running value, and each reload names the key in its answer and in the log
until the restart.
";

// === impl Texts ===

impl Texts {
    fn new() -> Self {
        let defaults = toml::Table::try_from(Settings::default()).expect("the defaults can be written");
        Self { of: describe::texts(), defaults: serde_json::to_value(defaults).expect("TOML is JSON, too") }
    }

    fn text(&self, path: &str) -> &str {
        self.of.get(path).map_or("", String::as_str)
    }

    /// The default of a key at a fixed place, or of one in a list or table of tables when left out.
    fn default(&self, path: &str, kind: Kind) -> Option<Value> {
        if path.starts_with("route[]") || is_required(path) {
            return None;
        }
        if path.contains(['[', '*']) {
            return match kind {
                Kind::Text | Kind::Path | Kind::Variable | Kind::Hash => Some(json!("")),
                _ => None,
            };
        }
        path.split('.').try_fold(&self.defaults, |value, name| value.get(name)).cloned()
    }
}

/// Whether a row must have it.
fn is_required(path: &str) -> bool {
    matches!(
        path,
        "caller[].name"
            | "route[].method"
            | "route[].path"
            | "breaker.scope[].name"
            | "credentials.identity[].name"
            | "credentials.identity[].token_sha256"
    )
}

/// The section's path with this key.
fn under(prefix: &str, name: &str, shape: Shape) -> String {
    let path = schema::join(prefix, name);
    match shape {
        Shape::Leaf(_) | Shape::Section(_) => path,
        Shape::Rows(_) => format!("{path}[]"),
        Shape::Named(_) => format!("{path}.*"),
    }
}

fn object(prefix: &str, fields: &[Field], texts: &Texts) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, shape) in fields {
        let path = under(prefix, name, *shape);
        let mut value = match shape {
            Shape::Leaf(kind) => leaf(&path, *kind, texts),
            Shape::Section(inner) => object(&path, inner, texts),
            Shape::Rows(inner) => json!({ "type": "array", "items": object(&path, inner, texts) }),
            Shape::Named(inner) => json!({
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z0-9_-]{1,64}$" },
                "additionalProperties": object(&path, inner, texts),
            }),
        };
        let text = texts.text(&path);
        if !text.is_empty() {
            value["description"] = text.into();
        }
        if is_required(&path) {
            required.push(*name);
        }
        properties.insert((*name).to_owned(), value);
    }
    let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn leaf(path: &str, kind: Kind, texts: &Texts) -> Value {
    let mut value = match kind {
        Kind::Text | Kind::Path => json!({ "type": "string" }),
        Kind::Variable => json!({ "type": "string", "pattern": "^[A-Z0-9_]{0,64}$" }),
        Kind::Hash => json!({ "type": "string", "pattern": "^( *[0-9A-Fa-f]{64} *)?$" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Count => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        Kind::Share => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
        Kind::Span => json!({ "type": "string", "pattern": "^( *[0-9]+ *(ms|s|m|min|h|d))+ *$" }),
        Kind::Size => json!({ "type": "string", "pattern": "^ *[0-9]+ *(B|KiB|MiB|GiB) *$" }),
        Kind::Address => {
            json!({ "type": "string", "pattern": "^([0-9.]+|\\[[0-9A-Fa-f:.]+(%[0-9]+)?\\]):[0-9]{1,5}$" })
        }
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
    };
    if let Some(default) = texts.default(path, kind) {
        value["default"] = default;
    }
    if show::needs_restart(path) {
        value["x-seawall-restart"] = true.into();
    }
    if let Some(variable) = variable(path) {
        value["x-seawall-env"] = variable.into();
    }
    value
}

/// Lists of tables are set in the file only.
fn variable(path: &str) -> Option<String> {
    (!path.contains('[')).then(|| as_variable(&path.replace('*', "<name>")).replace("<NAME>", "<name>"))
}

fn sections(prefix: &str, fields: &[Field], texts: &Texts, page: &mut String) {
    for (name, shape) in fields {
        let path = under(prefix, name, *shape);
        let (head, inner) = match shape {
            Shape::Leaf(_) => continue,
            Shape::Section(inner) => (format!("[{path}]"), inner),
            Shape::Rows(inner) => (format!("[[{}]]", path.trim_end_matches("[]")), inner),
            Shape::Named(inner) => (format!("[{}]", path.replace('*', "<name>")), inner),
        };
        let _ = write!(page, "\n## `{head}`\n");
        let text = texts.text(&path);
        if !text.is_empty() {
            let _ = write!(page, "\n{text}\n");
        }
        table(&path, inner, texts, page);
        sections(&path, inner, texts, page);
    }
}

fn table(prefix: &str, fields: &[Field], texts: &Texts, page: &mut String) {
    let leaves: Vec<_> = fields
        .iter()
        .filter_map(|(name, shape)| match shape {
            Shape::Leaf(kind) => Some((*name, *kind, under(prefix, name, *shape))),
            _ => None,
        })
        .collect();
    if leaves.is_empty() {
        return;
    }
    let has_variables = leaves.iter().any(|(_, _, path)| variable(path).is_some());
    page.push_str(if has_variables {
        "\n| key | type | default | reload | environment | meaning |\n|---|---|---|---|---|---|\n"
    } else {
        "\n| key | type | default | reload | meaning |\n|---|---|---|---|---|\n"
    });
    for (name, kind, path) in leaves {
        let default = match texts.default(&path, kind) {
            Some(value) => format!("`{value}`"),
            None if is_required(&path) => "required".to_owned(),
            None => "as it is".to_owned(),
        };
        let reload = if show::needs_restart(&path) { "restart" } else { "live" };
        let _ = write!(page, "| `{name}` | {} | {default} | {reload} | ", of_kind(kind));
        if let Some(variable) = variable(&path) {
            let _ = write!(page, "`{variable}` | ");
        }
        let _ = writeln!(page, "{} |", texts.text(&path).replace('|', "\\|"));
    }
}

fn of_kind(kind: Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Variable => "name of a variable".to_owned(),
        Kind::Hash => "SHA-256 in hexadecimal".to_owned(),
        Kind::Bool => "`true`, `false`".to_owned(),
        Kind::Count => "whole number".to_owned(),
        Kind::Share => "share, above 0, at most 1".to_owned(),
        Kind::Span => "duration".to_owned(),
        Kind::Size => "size".to_owned(),
        Kind::Address => "IP address and port".to_owned(),
        Kind::Choice(words) => {
            words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Texts => "list of texts".to_owned(),
    }
}

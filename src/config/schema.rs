//! Pure. The table of keys: what there is to set, and of which kind each value is.
//!
//! The types in `raw` say the same to serde, but serde stops at the first problem and knows no places. A test
//! holds the two to each other.

/// What may stand under a name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A value.
    Leaf(Kind),
    /// A table with these keys, such as `[server]`.
    Section(&'static [Field]),
    /// A list of tables with these keys, such as `[[caller]]`.
    Rows(&'static [Field]),
    /// A table of tables with names of the operator's choice, such as `[credentials.alias.<name>]`.
    Named(&'static [Field]),
}

/// A name and what may stand under it.
pub(super) type Field = (&'static str, Shape);

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// A file or folder.
    Path,
    /// The name of an environment variable.
    Variable,
    /// Hexadecimal text.
    Hash,
    /// Yes or no.
    Bool,
    /// A whole number that fits 32 bits.
    Count,
    /// A number, checked further in `validate`.
    Share,
    /// A duration.
    Span,
    /// A number of bytes.
    Size,
    /// IP address and port.
    Address,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
}

use Kind::{Address, Bool, Choice, Count, Hash, Path, Share, Size, Span, Text, Texts, Variable};
use Shape::{Leaf, Named, Rows, Section};

/// All of `proxy.toml`.
pub(super) const ROOT: &[Field] = &[
    ("profile", Leaf(Choice(&["flexport", "strict"]))),
    ("data_dir", Leaf(Path)),
    ("server", Section(SERVER)),
    ("admin", Section(ADMIN)),
    ("upstream", Section(UPSTREAM)),
    ("credentials", Section(CREDENTIALS)),
    ("caller", Rows(CALLER)),
    ("route", Rows(ROUTE)),
    ("breaker", Section(BREAKER)),
    ("limiter", Section(LIMITER)),
    ("rate", Section(&[("per_second", Leaf(Count)), ("burst", Leaf(Count))])),
    ("retry", Section(&[("budget", Leaf(Share)), ("per_second", Leaf(Count))])),
    ("probe", Section(&[("enabled", Leaf(Bool)), ("interval", Leaf(Span))])),
    ("status_page", Section(&[("url", Leaf(Text)), ("interval", Leaf(Span))])),
    ("cache", Section(CACHE)),
    ("queue", Section(QUEUE)),
    ("store", Section(STORE)),
    ("telemetry", Section(TELEMETRY)),
];

const SERVER: &[Field] = &[
    ("listen", Leaf(Address)),
    ("public_url", Leaf(Text)),
    ("max_body", Leaf(Size)),
    ("max_head", Leaf(Size)),
    ("first_byte_timeout", Leaf(Span)),
    ("head_timeout", Leaf(Span)),
    ("body_idle_timeout", Leaf(Span)),
    ("write_idle_timeout", Leaf(Span)),
    ("idle_timeout", Leaf(Span)),
    ("max_connections", Leaf(Count)),
    ("h2_max_streams", Leaf(Count)),
    ("h2_max_resets", Leaf(Count)),
    ("drain", Section(&[("grace", Leaf(Span))])),
];

const ADMIN: &[Field] = &[
    ("listen", Leaf(Address)),
    ("token_file", Leaf(Path)),
    ("token_env", Leaf(Variable)),
    ("open_health", Leaf(Bool)),
];

const UPSTREAM: &[Field] = &[
    ("base_url", Leaf(Text)),
    ("link_bases", Leaf(Texts)),
    ("protocol", Leaf(Choice(&["h1", "h2"]))),
    ("timeout", Leaf(Span)),
    ("connect_timeout", Leaf(Span)),
    ("body_idle_timeout", Leaf(Span)),
    ("idle_timeout", Leaf(Span)),
    ("max_idle", Leaf(Count)),
    ("connection_max_age", Leaf(Span)),
    ("tcp_keepalive", Leaf(Span)),
    ("h2_ping_interval", Leaf(Span)),
    ("h2_ping_timeout", Leaf(Span)),
    ("proxy", Leaf(Text)),
    ("proxy_authorization_file", Leaf(Path)),
    ("proxy_authorization_env", Leaf(Variable)),
    ("tls", Section(UPSTREAM_TLS)),
];

const UPSTREAM_TLS: &[Field] = &[
    ("ca_file", Leaf(Path)),
    ("platform_roots", Leaf(Bool)),
    ("cert_file", Leaf(Path)),
    ("key_file", Leaf(Path)),
    ("min_version", Leaf(Choice(&["1.2", "1.3"]))),
];

const CREDENTIALS: &[Field] = &[
    ("mode", Leaf(Choice(&["passthrough", "inject"]))),
    ("default", Leaf(Text)),
    ("alias", Named(&[("token_file", Leaf(Path)), ("token_env", Leaf(Variable))])),
    ("identity", Rows(&[("name", Leaf(Text)), ("token_sha256", Leaf(Texts))])),
];

const CALLER: &[Field] = &[
    ("name", Leaf(Text)),
    ("token_file", Leaf(Path)),
    ("token_env", Leaf(Variable)),
    ("token_sha256", Leaf(Hash)),
    ("credential", Leaf(Text)),
];

const ROUTE: &[Field] = &[
    ("method", Leaf(Text)),
    ("path", Leaf(Text)),
    ("timeout", Leaf(Span)),
    ("retry", Leaf(Bool)),
    ("ttl", Leaf(Span)),
    ("max_stale", Leaf(Span)),
    ("cache", Leaf(Bool)),
    ("override_revalidation", Leaf(Bool)),
    ("object_fallback", Leaf(Bool)),
    ("queue", Leaf(Choice(&["never", "default"]))),
    ("queue_max_body", Leaf(Size)),
    ("trust_503", Leaf(Bool)),
    ("on_unknown_head", Leaf(Choice(&["block", "continue"]))),
    ("on_dead_head", Leaf(Choice(&["block", "continue"]))),
];

const LIMITER: &[Field] =
    &[("max", Leaf(Count)), ("start", Leaf(Count)), ("min", Leaf(Count)), ("max_wait", Leaf(Span))];

const BREAKER: &[Field] = &[
    ("window", Leaf(Span)),
    ("min_calls", Leaf(Count)),
    ("failure_share", Leaf(Share)),
    ("consecutive_failures", Leaf(Count)),
    ("consecutive_span", Leaf(Span)),
    ("slow_share", Leaf(Share)),
    ("slow", Leaf(Span)),
    ("open_wait", Leaf(Span)),
    ("open_wait_max", Leaf(Span)),
    ("retry_after_max", Leaf(Span)),
    ("half_open_probes", Leaf(Count)),
    ("half_open_successes", Leaf(Count)),
    ("quiet_span", Leaf(Span)),
    ("half_open_failures", Leaf(Count)),
    ("ramp", Leaf(Span)),
    ("stale_deadline", Leaf(Span)),
    ("scope", Rows(BREAKER_SCOPE)),
];

const BREAKER_SCOPE: &[Field] = &[
    ("name", Leaf(Text)),
    ("window", Leaf(Span)),
    ("min_calls", Leaf(Count)),
    ("failure_share", Leaf(Share)),
    ("consecutive_failures", Leaf(Count)),
    ("consecutive_span", Leaf(Span)),
    ("slow_share", Leaf(Share)),
    ("slow", Leaf(Span)),
    ("open_wait", Leaf(Span)),
    ("open_wait_max", Leaf(Span)),
    ("retry_after_max", Leaf(Span)),
    ("half_open_probes", Leaf(Count)),
    ("half_open_successes", Leaf(Count)),
    ("quiet_span", Leaf(Span)),
    ("half_open_failures", Leaf(Count)),
    ("ramp", Leaf(Span)),
];

const CACHE: &[Field] = &[
    ("memory", Leaf(Size)),
    ("max_object", Leaf(Size)),
    ("max_stale", Leaf(Span)),
    ("max_stale_429", Leaf(Span)),
    ("lock_wait", Leaf(Span)),
    ("honour_request_cc", Leaf(Bool)),
    ("disk", Leaf(Bool)),
    ("disk_max", Leaf(Size)),
    ("stale_auth_window", Leaf(Span)),
    ("object_fallback", Leaf(Bool)),
];

const QUEUE: &[Field] = &[
    ("enabled", Leaf(Bool)),
    ("max_age", Leaf(Span)),
    ("max_records", Leaf(Count)),
    ("max_bytes", Leaf(Size)),
    ("max_per_key", Leaf(Count)),
    ("buffer_total", Leaf(Size)),
    ("on_unknown", Leaf(Choice(&["error", "accept"]))),
    ("passthrough", Leaf(Choice(&["sealed", "refuse"]))),
    ("duplicate_window", Leaf(Span)),
    ("answer_retention", Leaf(Span)),
    ("done_retention", Leaf(Span)),
    ("dead_retention", Leaf(Span)),
    ("max_parallel", Leaf(Count)),
    ("backoff", Leaf(Span)),
    ("backoff_max", Leaf(Span)),
    ("max_attempts", Leaf(Count)),
];

const STORE: &[Field] = &[
    ("key_file", Leaf(Path)),
    ("key_env", Leaf(Variable)),
    ("previous_key_file", Leaf(Path)),
    ("previous_key_env", Leaf(Variable)),
    ("min_free", Leaf(Size)),
    ("lock_wait", Leaf(Span)),
];

const TELEMETRY: &[Field] =
    &[("log", Leaf(Text)), ("format", Leaf(Choice(&["text", "json"]))), ("access_log", Leaf(Bool))];

// === impl Kind ===

impl Kind {
    /// What is expected, for messages.
    pub(super) fn expected(self) -> String {
        match self {
            Text => "a string".to_owned(),
            Path => "a path as a string".to_owned(),
            Variable => "the name of an environment variable as a string".to_owned(),
            Hash => "a SHA-256 in hexadecimal as a string".to_owned(),
            Bool => "true or false".to_owned(),
            Count => "a whole number from 0 to 4294967295".to_owned(),
            Share => "a number such as 0.5".to_owned(),
            Span => "a duration such as \"30s\"".to_owned(),
            Size => "a size such as \"64MiB\"".to_owned(),
            Address => "an IP address and a port such as \"127.0.0.1:8460\"".to_owned(),
            Choice(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                quoted.join(" or ")
            }
            Texts => "a list of strings such as [\"a\", \"b\"]".to_owned(),
        }
    }

    /// Whether a mistake here may show a secret, so that the value must not be shown.
    pub(super) fn is_near_secrets(self) -> bool {
        match self {
            Path | Variable | Hash | Text | Texts => true,
            Bool | Count | Share | Span | Size | Address | Choice(_) => false,
        }
    }
}

/// What stands under a path such as `["server", "listen"]`; the name in a [`Shape::Named`] is free. `None`: nothing.
pub(super) fn find<'a>(path: impl IntoIterator<Item = &'a str>) -> Option<Shape> {
    let mut shape = Section(ROOT);
    for name in path {
        shape = match shape {
            Section(fields) => fields.iter().find(|(known, _)| *known == name)?.1,
            Named(fields) if !name.is_empty() => Section(fields),
            Leaf(_) | Rows(_) | Named(_) => return None,
        };
    }
    Some(shape)
}

/// The path of each key and section that stands at a fixed place, such as `server.drain.grace`.
pub(super) fn paths() -> Vec<String> {
    fn walk(prefix: &str, fields: &[Field], paths: &mut Vec<String>) {
        for (name, shape) in fields {
            let path = join(prefix, name);
            if let Section(inner) = shape {
                walk(&path, inner, paths);
            }
            paths.push(path);
        }
    }
    let mut paths = Vec::new();
    walk("", ROOT, &mut paths);
    paths
}

/// `prefix.name`, or the name alone at the top.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw;

    /// The keys that serde writes must be those of the table, at every level, and each section must refuse others.
    fn compare(prefix: &str, fields: &[Field], written: &toml::Table) {
        let mut known: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        let mut found: Vec<_> = written.keys().map(String::as_str).collect();
        known.sort_unstable();
        found.sort_unstable();
        assert_eq!(known, found, "{prefix}");
        for (name, shape) in fields {
            let path = join(prefix, name);
            match (shape, &written[*name]) {
                (Section(inner), toml::Value::Table(table)) => compare(&path, inner, table),
                (Named(inner), toml::Value::Table(table)) => {
                    compare(&path, inner, table["x"].as_table().unwrap());
                }
                (Rows(inner), toml::Value::Array(rows)) => compare(&path, inner, rows[0].as_table().unwrap()),
                (Leaf(Bool), toml::Value::Boolean(_))
                | (Leaf(Count), toml::Value::Integer(_))
                | (Leaf(Share), toml::Value::Float(_))
                | (Leaf(Texts), toml::Value::Array(_)) => {}
                (Leaf(kind), toml::Value::String(_)) => {
                    assert!(!matches!(kind, Bool | Count | Share | Texts), "{path}");
                }
                (shape, value) => panic!("{path}: {shape:?} is written as {value:?}"),
            }
        }
    }

    #[test]
    fn the_table_is_what_serde_reads() {
        let mut full = raw::Settings::default();
        full.callers.push(raw::Caller::default());
        full.credentials.alias.insert("x".to_owned(), raw::Alias::default());
        full.credentials.identity.push(raw::IdentityOf::default());
        let span = raw::Span(std::time::Duration::ZERO);
        full.routes.push(raw::Route {
            method: String::new(),
            path: String::new(),
            timeout: Some(span),
            retry: Some(true),
            ttl: Some(span),
            max_stale: Some(span),
            cache: Some(true),
            override_revalidation: Some(true),
            object_fallback: Some(true),
            queue: Some(raw::QueueChoice::Never),
            queue_max_body: Some(raw::Size(0)),
            trust_503: Some(true),
            on_unknown_head: Some(raw::HeadChoice::Block),
            on_dead_head: Some(raw::HeadChoice::Block),
        });
        full.breaker.scopes.push(raw::BreakerScope {
            name: String::new(),
            window: Some(span),
            min_calls: Some(0),
            failure_share: Some(0.0),
            consecutive_failures: Some(0),
            consecutive_span: Some(span),
            slow_share: Some(0.0),
            slow: Some(span),
            open_wait: Some(span),
            open_wait_max: Some(span),
            retry_after_max: Some(span),
            half_open_probes: Some(0),
            half_open_successes: Some(0),
            quiet_span: Some(span),
            half_open_failures: Some(0),
            ramp: Some(span),
        });
        compare("", ROOT, &toml::Table::try_from(&full).unwrap());
    }

    #[test]
    fn every_choice_is_one_that_serde_reads() {
        fn walk(prefix: &str, fields: &[Field]) {
            for (name, shape) in fields {
                let path = join(prefix, name);
                match shape {
                    Section(inner) => walk(&path, inner),
                    Rows(inner) => {
                        for (key, shape) in *inner {
                            if let Leaf(Choice(words)) = shape {
                                for word in *words {
                                    let text = format!("[[{path}]]\n{key} = \"{word}\"");
                                    toml::from_str::<raw::Settings>(&text).unwrap();
                                }
                            }
                        }
                    }
                    Leaf(Choice(words)) => {
                        for word in *words {
                            toml::from_str::<raw::Settings>(&format!("{path} = \"{word}\"")).unwrap();
                        }
                    }
                    Leaf(_) | Named(_) => {}
                }
            }
        }
        walk("", ROOT);
    }
}

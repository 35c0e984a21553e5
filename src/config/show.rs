//! Pure. The values in force, each with its origin, secrets masked: for `config show` and the admin API; and what
//! differs between two of them, for a reload's report.
//!
//! The settings hold no secrets, only where secrets are. What could help to find one is cut short all the same: the
//! hashes of tokens, and a user and password in a URL.

use super::raw::Settings;
use super::schema::{self, Field, Kind, Shape, join};
use super::{NEEDS_RESTART, Origin, Snapshot};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A value in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// Such as `cache.max_stale` or `caller[0].name`.
    pub key: String,
    /// As the file would write it, masked.
    pub value: Value,
    /// Where it comes from: `default`, `<file>:<line>:<column>`, `environment variable <name>` or `--set <key>`.
    pub origin: String,
    /// Whether a change of it waits for a restart.
    pub needs_restart: bool,
}

/// Whether a key keeps its running value until a restart.
pub(super) fn needs_restart(key: &str) -> bool {
    NEEDS_RESTART.contains(&key)
}

// === impl Snapshot ===

impl Snapshot {
    /// Every value in force, in the order of the shipped file.
    pub fn shown(&self) -> Vec<Shown> {
        let values = flat(&self.settings).into_iter();
        values
            .map(|(key, kind, value)| {
                let origin = match self.origins.get(&key) {
                    Some(Origin::Default) | None => "default".to_owned(),
                    Some(origin) => origin.to_string(),
                };
                let needs_restart = needs_restart(&key);
                Shown { value: masked(&key, kind, &value), key, origin, needs_restart }
            })
            .collect()
    }

    /// The keys whose value, or whose secret, is another one in `next`; a list's row stands for all that is in it.
    pub(super) fn changed(&self, next: &Self) -> Vec<String> {
        let (old, new) = (flat(&self.settings), flat(&next.settings));
        let value_of = |list: &[(String, Kind, toml::Value)]| {
            list.iter().map(|(key, _, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        let (old_values, new_values) = (value_of(&old), value_of(&new));
        let keys = new.iter().chain(&old).map(|(key, ..)| key);
        let mut changed: Vec<String> = keys
            .filter(|key| old_values.get(*key) != new_values.get(*key))
            .map(|key| match key.split_once(']') {
                Some((row, _)) => format!("{row}]"),
                None => key.clone(),
            })
            .collect();
        let mut say = |prefix: &str, name: &str, file_is_set: bool| {
            changed.push(format!("{prefix}.{name}_{}", if file_is_set { "file" } else { "env" }));
        };
        if self.admin_token != next.admin_token {
            say("admin", "token", !next.settings.admin.token_file.as_os_str().is_empty());
        }
        if self.proxy_authorization != next.proxy_authorization {
            say(
                "upstream",
                "proxy_authorization",
                !next.settings.upstream.proxy_authorization_file.as_os_str().is_empty(),
            );
        }
        for (alias, value) in &next.credentials {
            if self.credentials.get(alias) != Some(value)
                && let Some(alias_of) = next.settings.credentials.alias.get(&**alias)
            {
                let prefix = format!("credentials.alias.{alias}");
                say(&prefix, "token", !alias_of.token_file.as_os_str().is_empty());
            }
        }
        for (index, caller) in next.callers.iter().enumerate() {
            if self.callers.get(index).is_none_or(|old| old.token_sha256 != caller.token_sha256) {
                changed.push(format!("caller[{index}]"));
            }
        }
        let tls = &next.settings.upstream.tls;
        if self.upstream_tls.digest != next.upstream_tls.digest
            && !changed.iter().any(|key| key.starts_with("upstream.tls."))
        {
            // Which of them has other contents is not kept.
            for (name, file) in
                [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)]
            {
                if !file.as_os_str().is_empty() {
                    changed.push(format!("upstream.tls.{name}"));
                }
            }
        }
        let mut seen = BTreeSet::new();
        changed.retain(|key| seen.insert(key.clone()));
        changed
    }
}

/// The files that the settings name to be read: each `*_file` that is set.
pub(super) fn files(settings: &Settings) -> Vec<PathBuf> {
    let is_file = |key: &str, kind| kind == Kind::Path && key.ends_with("_file");
    flat(settings)
        .into_iter()
        .filter(|(key, kind, _)| is_file(key, *kind))
        .filter_map(|(_, _, value)| value.as_str().filter(|path| !path.is_empty()).map(PathBuf::from))
        .collect()
}

/// Each value with its key and kind.
fn flat(settings: &Settings) -> Vec<(String, Kind, toml::Value)> {
    fn walk(
        prefix: &str,
        fields: &[Field],
        table: &toml::Table,
        list: &mut Vec<(String, Kind, toml::Value)>,
    ) {
        for (name, shape) in fields {
            let key = join(prefix, name);
            match (shape, table.get(*name)) {
                (Shape::Leaf(kind), Some(value)) => list.push((key, *kind, value.clone())),
                (Shape::Section(inner), Some(toml::Value::Table(table))) => walk(&key, inner, table, list),
                (Shape::Named(inner), Some(toml::Value::Table(tables))) => {
                    for (name, table) in tables {
                        if let toml::Value::Table(table) = table {
                            walk(&join(&key, name), inner, table, list);
                        }
                    }
                }
                (Shape::Rows(inner), Some(toml::Value::Array(rows))) => {
                    for (index, row) in rows.iter().enumerate() {
                        if let toml::Value::Table(table) = row {
                            walk(&format!("{key}[{index}]"), inner, table, list);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    let table =
        toml::Table::try_from(settings).expect("settings are read from text, so they can be written as text");
    let mut list = Vec::new();
    walk("", schema::ROOT, &table, &mut list);
    list
}

/// The value as JSON, with what could help to find a secret cut out.
fn masked(key: &str, kind: Kind, value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => {
            let is_hash = kind == Kind::Hash || key.ends_with("sha256");
            Value::String(if is_hash { short(text) } else { without_password(text) })
        }
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(is_set) => (*is_set).into(),
        toml::Value::Array(values) => values.iter().map(|value| masked(key, kind, value)).collect(),
        toml::Value::Datetime(_) | toml::Value::Table(_) => Value::Null,
    }
}

/// The beginning of a hash: enough to tell one from another, too little to test a guess.
fn short(hash: &str) -> String {
    let shown: String = hash.trim().chars().take(8).collect();
    if shown.is_empty() { shown } else { format!("{shown}…") }
}

/// `http://user:password@host` → `http://***@host`.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_help_to_find_a_secret_is_cut() {
        let hash =
            toml::Value::String("6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090".into());
        assert_eq!(masked("caller[0].token_sha256", Kind::Hash, &hash), "6ca13d52…");
        let list = toml::Value::Array(vec![hash]);
        let masked_list = masked("credentials.identity[0].token_sha256", Kind::Texts, &list);
        assert_eq!(masked_list, serde_json::json!(["6ca13d52…"]));
        let url = toml::Value::String("http://me:sk-secret@proxy.example:3128/x@y".into());
        assert_eq!(masked("upstream.proxy", Kind::Text, &url), "http://***@proxy.example:3128/x@y");
        let plain = toml::Value::String("https://api.flexport.com".into());
        assert_eq!(masked("upstream.base_url", Kind::Text, &plain), "https://api.flexport.com");
    }
}

//! Pure. What the comments of the shipped `proxy.toml` say of each key: the one text for the file, the JSON Schema and
//! docs/CONFIGURATION.md.
//!
//! A key's text is the comment above it, up to an empty line, a header or another key's comment; keys that follow each
//! other without a comment share one. A section's text is the comment above its header. A line that begins with `#`
//! and no space is an example, read as if it stood there. Tests hold the file to the table of keys, so that no key is
//! without its text.

use std::collections::BTreeMap;

/// The file itself, built in.
pub(super) const SHIPPED: &str = include_str!("../../proxy.toml");

/// A text for each key and section; `caller[].name` for a key of a list of tables, `credentials.alias.*.token_env` for
/// one of a table of tables.
pub(super) fn texts() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let mut section = String::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut is_used = false;
    for line in SHIPPED.lines() {
        if line.is_empty() {
            comment.clear();
            continue;
        }
        if let Some(text) = line.strip_prefix("# ").or((line == "#").then_some("")) {
            if is_used {
                comment.clear();
            }
            is_used = false;
            comment.push(text.trim());
            continue;
        }
        let line = line.strip_prefix('#').unwrap_or(line);
        let path = if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.split(']').next()) {
            section = format!("{name}[]");
            section.clone()
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = match name.strip_prefix("credentials.alias.") {
                Some(_) => "credentials.alias.*".to_owned(),
                None => name.to_owned(),
            };
            section.clone()
        } else {
            let name = line.split('=').next().unwrap_or_default().trim();
            is_used = true;
            super::schema::join(&section, name)
        };
        let text = comment.join(" ");
        let text = text.strip_prefix("[restart] ").unwrap_or(&text).to_owned();
        if !text.is_empty() {
            texts.entry(path.clone()).or_insert(text);
        }
        if path == section {
            comment.clear();
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_share_a_comment_and_sections_have_theirs() {
        let texts = super::texts();
        let of = |key: &str| texts.get(key).map_or("", String::as_str);
        assert_eq!(of("admin.token_env"), of("admin.token_file"));
        assert!(of("admin.token_env").starts_with("The token that the admin API asks for"));
        assert!(of("breaker").starts_with("The breaker stops traffic"));
        assert_eq!(of("breaker.window"), "How far back calls are counted.");
        assert!(
            of("server.listen").starts_with("The address that your services"),
            "{:?}",
            of("server.listen")
        );
        assert_eq!(of("caller[].name"), "Its name in logs and tickets.");
        assert!(of("credentials.alias.*.token_env").starts_with("The token: a file"));
    }
}

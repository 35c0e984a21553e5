//! Pure. Which bearer tokens are good, and where.

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderValue;
use serde_json::{Value, json};

/// What is set about tokens; every token that is not named is good everywhere.
#[derive(Default)]
pub(super) struct Tokens {
    bad: BTreeSet<String>,
    expired: BTreeSet<String>,
    forbidden: BTreeMap<String, Vec<String>>,
}

/// What a caller's token is worth for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    /// Missing, malformed, bad or expired: the API tells them apart no further.
    Bad,
    Forbidden,
}

// === impl Tokens ===

impl Tokens {
    /// Reads `{"bad":[…],"expired":[…],"forbidden":{"<token>":["/bookings"]}}`. The error names the field.
    pub(super) fn parse(spec: &Value) -> Result<Self, String> {
        let Value::Object(fields) = spec else {
            return Err("tokens: must be an object with bad, expired, forbidden".to_owned());
        };
        let mut tokens = Self::default();
        for (field, value) in fields {
            match field.as_str() {
                "bad" => tokens.bad = texts("tokens.bad", value)?.into_iter().collect(),
                "expired" => tokens.expired = texts("tokens.expired", value)?.into_iter().collect(),
                "forbidden" => {
                    let Value::Object(map) = value else {
                        return Err("tokens.forbidden: must map tokens to lists of path prefixes".to_owned());
                    };
                    for (token, paths) in map {
                        let paths = texts("tokens.forbidden: the paths of a token", paths)?;
                        tokens.forbidden.insert(token.clone(), paths);
                    }
                }
                _ => return Err(format!("tokens.{field}: unknown field; known: bad, expired, forbidden")),
            }
        }
        Ok(tokens)
    }

    /// How many tokens are named; never the tokens themselves.
    pub(super) fn describe(&self) -> Value {
        json!({"bad": self.bad.len(), "expired": self.expired.len(), "forbidden": self.forbidden.len()})
    }

    pub(super) fn standing(&self, authorization: Option<&HeaderValue>, path: &str) -> Standing {
        let token = authorization
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Standing::Bad;
        };
        if self.bad.contains(token) || self.expired.contains(token) {
            return Standing::Bad;
        }
        let is_below = |prefix: &String| {
            let prefix = prefix.trim_end_matches(['*', '/']);
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self.forbidden.get(token) {
            Some(paths) if paths.iter().any(is_below) => Standing::Forbidden,
            _ => Standing::Good,
        }
    }
}

fn texts(at: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().and_then(|list| {
        list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    list.ok_or_else(|| format!("{at}: must be a list of strings"))
}

//! Pure. Which bearer tokens are good, where, and for which account.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, header::AUTHORIZATION};
use serde_json::{Value, json};

const FIELDS: &str = "bad, expired, forbidden, accounts, clients";

/// What is set about tokens; every token that is not named is good everywhere, for the first account.
#[derive(Default)]
pub(super) struct Tokens {
    bad: BTreeSet<String>,
    expired: BTreeSet<String>,
    forbidden: BTreeMap<String, Vec<String>>,
    /// By token, or by the client that it was issued to.
    accounts: BTreeMap<String, String>,
    /// Secrets by client; empty is any.
    clients: BTreeMap<String, String>,
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
    /// Reads `{"bad":[…],"expired":[…],"forbidden":{"<token>":["/bookings"]},"accounts":{"<token>":"<name>"},
    /// "clients":{"<id>":"<secret>"}}`. The error names the field.
    pub(super) fn parse(spec: &Value) -> Result<Self, String> {
        let Value::Object(fields) = spec else {
            return Err(format!("tokens: must be an object with one or more of {FIELDS}"));
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
                "accounts" => tokens.accounts = map("tokens.accounts", "tokens to names of accounts", value)?,
                "clients" => tokens.clients = map("tokens.clients", "client ids to secrets", value)?,
                _ => return Err(format!("tokens.{field}: unknown field; known: {FIELDS}")),
            }
        }
        Ok(tokens)
    }

    /// How many tokens are named; never the tokens themselves.
    pub(super) fn describe(&self) -> Value {
        json!({
            "bad": self.bad.len(),
            "expired": self.expired.len(),
            "forbidden": self.forbidden.len(),
            "accounts": self.accounts.len(),
            "clients": self.clients.len(),
        })
    }

    /// The names of the accounts beside the first.
    pub(super) fn accounts(&self) -> BTreeSet<&str> {
        self.accounts.values().map(String::as_str).collect()
    }

    /// The account that a token, or the client that it was issued to, belongs to; none is the first.
    pub(super) fn account(&self, token: &str, client: Option<&str>) -> Option<&str> {
        let by = |key: &str| self.accounts.get(key).map(String::as_str);
        by(token).or_else(|| client.and_then(by))
    }

    /// Whether a client may ask for tokens.
    pub(super) fn is_client(&self, id: &str, secret: &str) -> bool {
        self.clients.is_empty() || self.clients.get(id).is_some_and(|known| known == secret)
    }

    pub(super) fn standing(&self, token: Option<&str>, path: &str) -> Standing {
        let Some(token) = token else {
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

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

fn texts(at: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().and_then(|list| {
        list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    list.ok_or_else(|| format!("{at}: must be a list of strings"))
}

fn map(at: &str, what: &str, value: &Value) -> Result<BTreeMap<String, String>, String> {
    let map = value.as_object().and_then(|map| {
        let pairs = map.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        pairs.collect::<Option<BTreeMap<_, _>>>()
    });
    map.ok_or_else(|| format!("{at}: must map {what}"))
}

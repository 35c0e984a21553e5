//! Short names of partitions, for people.
//!
//! A partition's id is an HMAC under a key of this installation, so neither it nor a part of it tells anything of a
//! token. People call a partition by the name that the configuration gives it: an alias of `[credentials]` in `inject`,
//! a declared identity in `passthrough`. One that has none, a token that was passed through, is `p-` and the first ten
//! digits of its id: always the same in one installation, and the same nowhere else.

use super::Admin;
use super::problem::Problem;
use crate::cache::EVERYBODY;
use crate::ids::PartitionId;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// The names in force.
pub(super) struct Names(HashMap<PartitionId, Arc<str>>);

/// Digits of the id in a short name.
const DIGITS: usize = 10;
/// Names that an error lists.
const LISTED: usize = 20;

// === impl Names ===

impl Names {
    pub(super) fn of(admin: &Admin) -> Self {
        let mut names: HashMap<_, _> = admin.identifier.named(&admin.config.current()).into_iter().collect();
        names.insert(EVERYBODY, "everybody".into());
        Self(names)
    }

    /// The name of a partition.
    pub(super) fn name(&self, partition: PartitionId) -> String {
        match self.0.get(&partition) {
            Some(name) => name.to_string(),
            None => format!("p-{}", &partition.to_string()[..DIGITS]),
        }
    }

    /// Puts name and id of its partition into what is told of something.
    pub(super) fn tell(&self, told: &mut Value, partition: PartitionId) {
        told["partition"] = json!(self.name(partition));
        told["partition_id"] = json!(partition);
    }

    /// The partition that is meant by a name or an id. An id always exists; a name is of the configuration, or of
    /// something that the cache holds.
    pub(super) fn find(&self, admin: &Admin, text: &str) -> Result<PartitionId, Problem> {
        if let Some((partition, _)) = self.0.iter().find(|(_, name)| &***name == text) {
            return Ok(*partition);
        }
        if let Ok(id) = serde_json::from_value(Value::String(text.to_owned())) {
            return Ok(id);
        }
        let held = admin.cache.partitions();
        let mut meant = held.keys().filter(|partition| self.name(**partition) == text);
        match (meant.next(), meant.next()) {
            (Some(partition), None) => Ok(*partition),
            (Some(_), Some(_)) => Err(Problem::new(
                StatusCode::CONFLICT,
                format!("partition: several are called {text:?}; name one by its partition_id"),
            )),
            (None, _) => {
                let mut names: Vec<String> =
                    held.keys().chain(self.0.keys()).map(|partition| self.name(*partition)).collect();
                names.retain(|name| name != "everybody" || held.contains_key(&EVERYBODY));
                names.sort_unstable();
                names.dedup();
                let more = if names.len() > LISTED { ", and more" } else { "" };
                names.truncate(LISTED);
                let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("partition: there is none called {text:?}; there are: {there}{more}"),
                ))
            }
        }
    }
}

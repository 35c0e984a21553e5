//! The configuration as the layers see it: checked, resolved, immutable. A reload makes a new one.

use super::{Secret, Settings};
use crate::flexport::routes::RouteTable;
use http::HeaderValue;
use std::collections::HashMap;
use std::sync::Arc;

/// One consistent state of the configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// What was set, with defaults.
    pub settings: Settings,
    /// The endpoints with their policies.
    pub routes: RouteTable,
    /// Base of our own URLs, without a slash at its end.
    pub public_url: Arc<str>,
    /// Declared callers.
    pub callers: Vec<Caller>,
    /// `Authorization` of each alias: `Bearer <secret>`, marked sensitive.
    pub credentials: HashMap<Arc<str>, HeaderValue>,
    /// SHA-256 (of a token) → name of its declared identity.
    pub identities: HashMap<[u8; 32], Arc<str>>,
    /// The admin API's token.
    pub admin_token: Option<Secret>,
    /// The key that wraps the store's data key, and the one for HMACs, when given; else `<data_dir>/secret` is used.
    pub store_key: Option<Secret>,
    /// Counts reloads, from 1.
    pub generation: u64,
}

/// A service that is allowed to connect.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its name, for logs, tickets and owners.
    pub name: Arc<str>,
    /// SHA-256 of its token.
    pub token_sha256: [u8; 32],
    /// The alias it goes to Flexport as, in `inject`.
    pub credential: Arc<str>,
}

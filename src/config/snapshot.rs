//! The configuration as the layers see it: checked, resolved, immutable. A reload makes a new one.

use super::diagnose::origin_of;
use super::{Origin, Origins, Secret, Settings, UpstreamTls};
use crate::flexport::routes::RouteTable;
use http::HeaderValue;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// One consistent state of the configuration.
#[derive(Debug, Clone)]
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
    /// The key that wraps the store's data keys, when given; else that of `<data_dir>/secret` is used.
    pub store_key: Option<Secret>,
    /// The one before, when given. Only a start asks.
    pub previous_store_key: Option<Secret>,
    /// Whom new connections to the upstream trust, and as whom they come.
    pub upstream_tls: Arc<UpstreamTls>,
    /// What the egress proxy is told in `Proxy-Authorization`, marked sensitive.
    pub proxy_authorization: Option<HeaderValue>,
    /// Counts reloads, from 1.
    pub generation: u64,
    /// The configuration file. `None`: the built-in defaults, since there is none.
    pub source: Option<PathBuf>,
    /// Every file that was read: the configuration's and those of secrets. A change of one is a reason to reload.
    pub files: Vec<PathBuf>,
    /// What works but is hardly meant, a line each.
    pub warnings: Vec<String>,
    /// Where each key that something sets comes from.
    pub origins: Arc<Origins>,
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

// === impl Snapshot ===

impl Snapshot {
    /// Where the value of a key comes from, such as `cache.max_stale` or `caller[0].name`.
    pub fn origin_of(&self, key: &str) -> Origin {
        origin_of(&self.origins, key)
    }
}

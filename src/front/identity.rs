//! Pure. Who asks, as whom it goes to Flexport, and whose data it is.
//!
//! | | passthrough | inject |
//! |---|---|---|
//! | caller's token | `Seawall-Token` only | `Seawall-Token` or `Authorization`; both and different: refused |
//! | anonymous | anywhere: it can do only what its own token can | from loopback to a loopback listener |
//! | goes to Flexport | the caller's `Authorization` | the alias of the caller, else the default one |
//! | partition | declared identity of the token, else the token | the alias |
//!
//! A partition's id is an HMAC, so it names a token without giving it away, and different kinds of names cannot
//! collide: each has a label of its own.

use crate::config::Snapshot;
use crate::config::raw::CredentialMode;
use crate::context::{Credential, Identity};
use crate::error::ProxyError;
use crate::http::headers::{self, SEAWALL_TOKEN};
use crate::http::origin;
use crate::ids::{OwnerId, PartitionId};
use aws_lc_rs::{digest, hmac};
use foldhash::quality::RandomState;
use http::{HeaderMap, HeaderValue, header};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Mutex;

/// Makes identities. Holds the key of the partitions' HMAC.
pub struct Identifier {
    key: hmac::Key,
    /// Partitions of the tokens seen last: a service sends the same one with every request.
    seen: [Mutex<Option<Seen>>; SEEN],
    hasher: RandomState,
}

/// A token whose partition is known, as of a configuration.
struct Seen {
    authorization: HeaderValue,
    generation: u64,
    partition: PartitionId,
}

const SEEN: usize = 64;

// === impl Identifier ===

impl Identifier {
    /// With the installation's HMAC key, which is never rotated: a new one would orphan cache and queue.
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            seen: std::array::from_fn(|_| Mutex::new(None)),
            hasher: RandomState::default(),
        }
    }

    /// Who sends a request with these fields from this address.
    pub fn identify(
        &self,
        fields: &HeaderMap,
        peer: IpAddr,
        config: &Snapshot,
    ) -> Result<Identity, ProxyError> {
        let authorization = single(fields, &header::AUTHORIZATION, "Authorization")?;
        let token = single(fields, &SEAWALL_TOKEN, "Seawall-Token")?;
        match config.settings.credentials.mode {
            CredentialMode::Passthrough => self.passthrough(authorization, token, config),
            CredentialMode::Inject => self.inject(fields, authorization, token, peer, config),
        }
    }

    /// The partitions that the configuration gives a name, with it: aliases, or declared identities.
    pub fn named(&self, config: &Snapshot) -> Vec<(PartitionId, std::sync::Arc<str>)> {
        match config.settings.credentials.mode {
            CredentialMode::Inject => {
                let names = config.credentials.keys();
                names.map(|name| (self.partition(b"alias", name.as_bytes()), name.clone())).collect()
            }
            CredentialMode::Passthrough => {
                let mut names: Vec<_> = config.identities.values().cloned().collect();
                names.sort_unstable();
                names.dedup();
                names.into_iter().map(|name| (self.partition(b"identity", name.as_bytes()), name)).collect()
            }
        }
    }

    /// Who acts with an alias of ours. `None`: there is no such alias.
    pub fn of_alias(&self, alias: &str, config: &Snapshot) -> Option<Identity> {
        let (alias, _) = config.credentials.get_key_value(alias)?;
        let partition = self.partition(b"alias", alias.as_bytes());
        Some(Identity {
            caller: None,
            credential: Credential::Alias(alias.clone()),
            partition: Some(partition),
            owner: Some(OwnerId(partition.0)),
        })
    }

    /// Who acts with a token of a caller's, passed through in this field.
    pub fn of_authorization(
        &self,
        authorization: &HeaderValue,
        config: &Snapshot,
    ) -> Result<Identity, ProxyError> {
        self.passthrough(Some(authorization), None, config)
    }

    fn passthrough(
        &self,
        authorization: Option<&HeaderValue>,
        token: Option<&HeaderValue>,
        config: &Snapshot,
    ) -> Result<Identity, ProxyError> {
        let caller = match token {
            Some(token) => Some(known_caller(token.as_bytes(), config)?.name.clone()),
            None => None,
        };
        let partition = authorization.map(|value| self.of_token(value, config));
        let owner = caller.as_ref().map(|name| self.owner(name)).or(partition.map(|id| OwnerId(id.0)));
        let credential = authorization.map_or(Credential::None, |value| {
            let mut value = value.clone();
            value.set_sensitive(true);
            Credential::Passed(value)
        });
        Ok(Identity { caller, credential, partition, owner })
    }

    fn inject(
        &self,
        fields: &HeaderMap,
        authorization: Option<&HeaderValue>,
        token: Option<&HeaderValue>,
        peer: IpAddr,
        config: &Snapshot,
    ) -> Result<Identity, ProxyError> {
        let bearer = authorization.map(|value| bearer(value).unwrap_or(value.as_bytes()));
        let presented = match (token.map(HeaderValue::as_bytes), bearer) {
            (Some(token), Some(bearer)) if !config.callers.is_empty() && sha256(token) != sha256(bearer) => {
                return Err(ProxyError::Unauthorized {
                    reason: "Seawall-Token and Authorization name different callers; send one of them",
                });
            }
            (Some(token), _) => Some(token),
            // Without declared callers a client's own key means nothing here, and real clients must send one.
            (None, Some(bearer)) if !config.callers.is_empty() => Some(bearer),
            (None, _) => None,
        };
        let caller = match presented {
            Some(token) => Some(known_caller(token, config)?),
            None if config.settings.server.listen.ip().is_loopback() && peer.to_canonical().is_loopback() => {
                refuse_browsers(fields, config)?;
                None
            }
            None => {
                return Err(ProxyError::Unauthorized {
                    reason: "this Seawall asks for a caller's token, in Seawall-Token or Authorization",
                });
            }
        };
        let alias = caller.map_or_else(
            || std::sync::Arc::from(config.settings.credentials.default.as_str()),
            |caller| caller.credential.clone(),
        );
        let partition = self.partition(b"alias", alias.as_bytes());
        let caller = caller.map(|caller| caller.name.clone());
        let owner = caller.as_ref().map_or(OwnerId(partition.0), |name| self.owner(name));
        Ok(Identity {
            caller,
            credential: Credential::Alias(alias),
            partition: Some(partition),
            owner: Some(owner),
        })
    }

    fn of_token(&self, authorization: &HeaderValue, config: &Snapshot) -> PartitionId {
        let slot = self.hasher.hash_one(authorization.as_bytes()) as usize % SEEN;
        let mut slot = self.seen[slot].lock().expect("no code panics with this lock held");
        if let Some(seen) = &*slot
            && seen.generation == config.generation
            && seen.authorization == *authorization
        {
            return seen.partition;
        }
        let token = bearer(authorization).unwrap_or(authorization.as_bytes());
        let identity =
            if config.identities.is_empty() { None } else { config.identities.get(&sha256(token)) };
        let partition = match identity {
            Some(name) => self.partition(b"identity", name.as_bytes()),
            None => self.partition(b"token", authorization.as_bytes()),
        };
        let mut authorization = headers::detached_value(authorization);
        authorization.set_sensitive(true);
        *slot = Some(Seen { authorization, generation: config.generation, partition });
        partition
    }

    fn partition(&self, label: &[u8], name: &[u8]) -> PartitionId {
        PartitionId(self.tag(label, name))
    }

    fn owner(&self, caller: &str) -> OwnerId {
        OwnerId(self.tag(b"caller", caller.as_bytes()))
    }

    fn tag(&self, label: &[u8], name: &[u8]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(label);
        context.update(&[0]);
        context.update(name);
        let tag = context.sign();
        tag.as_ref()[..16].try_into().expect("a tag of SHA-256 has 32 bytes")
    }
}

impl std::fmt::Debug for Identifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identifier")
    }
}

/// An anonymous request on loopback acts with our credential: a page in a browser on this machine must not make one.
fn refuse_browsers(fields: &HeaderMap, config: &Snapshot) -> Result<(), ProxyError> {
    let is_rebound = origin::is_foreign_name(fields, &config.public_url);
    if origin::is_cross_site(fields) || is_rebound {
        return Err(ProxyError::Unauthorized {
            reason: "a page of another site may not use this Seawall's credential; declare a [[caller]] and send its token",
        });
    }
    Ok(())
}

fn known_caller<'a>(token: &[u8], config: &'a Snapshot) -> Result<&'a crate::config::Caller, ProxyError> {
    // Digests are compared, so the time tells nothing of the token.
    let digest = sha256(token);
    config
        .callers
        .iter()
        .find(|caller| caller.token_sha256 == digest)
        .ok_or(ProxyError::Unauthorized { reason: "the caller's token is not known to this Seawall" })
}

fn single<'a>(
    fields: &'a HeaderMap,
    name: &header::HeaderName,
    field: &'static str,
) -> Result<Option<&'a HeaderValue>, ProxyError> {
    let mut values = fields.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ProxyError::BadRequest {
            field,
            message: "it came more than once; send it once".to_owned(),
        });
    }
    Ok(first)
}

/// The token of `Bearer <token>`.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let bytes = value.as_bytes();
    let (scheme, token) = bytes.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

//! Sealing: every value of every tree, AES-256-GCM-SIV with a random nonce.
//!
//! The associated data is schema, tree and the full key, so that a value cannot be moved or brought from an older
//! schema unseen. GCM-SIV (RFC 8452) because nonces are random and a store may seal billions: a repeated nonce then only
//! tells that two values are equal.
//!
//! Each value names its data key. Data keys live in the file `key` beside `CURRENT`, wrapped by the key-encryption key,
//! one line each. A line that cannot be unwrapped (a lost key) is kept, in case the right key comes back; new values
//! then get a new data key, and what the lost one sealed is reported value by value.
//!
//! Stored form: `format (1) · key id (4) · nonce (12) · ciphertext · tag (16)`.

use std::{
    fmt::{self, Write as _},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Alarm, Keys, OpenError, SCHEMA, api::MAX_KEY, fs};

/// What sealing adds to a value.
pub(super) const OVERHEAD: usize = HEAD + TAG;

const FORMAT: u8 = 1;
const NONCE: usize = 12;
const HEAD: usize = 1 + 4 + NONCE;
const TAG: usize = 16;
pub(super) const FILE: &str = "key";
const FIRST_LINE: &str = "seawall data keys 1";

/// A sealer for files that are no store: the data keys lie in their folder, as those of a store do.
#[derive(Debug)]
pub struct Seals(Sealer);

/// Seals and unseals the values of one store.
pub(super) struct Sealer {
    path: PathBuf,
    /// The last one seals.
    ring: Vec<DataKey>,
    /// Lines that cannot be unwrapped, as they are.
    lost: Vec<String>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

struct DataKey {
    id: u32,
    bytes: [u8; 32],
    aead: RandomizedNonceKey,
}

/// A value that cannot be unsealed.
#[derive(Debug)]
pub(super) struct Unsealable;

// === impl Seals ===

impl Seals {
    /// What sealing adds to a value.
    pub const OVERHEAD: usize = OVERHEAD;

    /// Reads the data keys in `dir`, or makes one. What was sealed with a lost one cannot be unsealed; that is no error
    /// here. Blocks.
    pub fn open(dir: &Path, keys: &Keys) -> Result<Seals, OpenError> {
        Sealer::open(dir, keys, true, &mut Vec::new()).map(Seals)
    }

    /// The stored form of a value, bound to `tree` and `key` (at most [`MAX_KEY`] bytes). `None`: the system gives no
    /// random numbers.
    pub fn seal(&self, tree: u8, key: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        self.0.seal(tree, key, plain)
    }

    /// The value behind a stored form; `None` when it is not one, or of another place.
    pub fn unseal(&self, tree: u8, key: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        self.0.unseal(tree, key, stored).ok()
    }
}

// === impl Sealer ===

impl Sealer {
    /// Reads the data keys, re-wraps what an older key wrapped, and makes one where none can be used.
    pub(super) fn open(
        dir: &Path,
        keys: &Keys,
        is_new: bool,
        alarms: &mut Vec<Alarm>,
    ) -> Result<Sealer, OpenError> {
        let (mut sealer, mut must_write) = Sealer::load(dir.join(FILE), keys)?;
        if !sealer.lost.is_empty() || (sealer.ring.is_empty() && !is_new) {
            alarms.push(Alarm::KeyLost { path: sealer.path.clone(), usable: sealer.ring.len() });
        }
        if sealer.ring.is_empty() {
            sealer.ring.push(DataKey::random().ok_or_else(|| sealer.unusable())?);
            must_write = true;
        }
        if must_write {
            sealer.write(&keys.wrapping)?;
        }
        Ok(sealer)
    }

    /// Reads the data keys and changes nothing; without one it can neither seal nor unseal.
    pub(super) fn read_only(dir: &Path, keys: &Keys) -> Result<Sealer, OpenError> {
        Ok(Sealer::load(dir.join(FILE), keys)?.0)
    }

    /// How many data keys cannot be unwrapped.
    pub(super) fn lost(&self) -> usize {
        self.lost.len()
    }

    /// How many data keys can be used.
    pub(super) fn usable(&self) -> usize {
        self.ring.len()
    }

    /// The data keys, and whether the file must be written since another key than the present one wrapped some.
    fn load(path: PathBuf, keys: &Keys) -> Result<(Sealer, bool), OpenError> {
        let text = match std::fs::read(&path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(OpenError::Io { doing: "read", path, source }),
        };
        let mut sealer = Sealer { path, ring: Vec::new(), lost: Vec::new(), writing: Mutex::new(()) };
        let mut must_write = false;
        for line in text.iter().flat_map(|text| text.lines().skip(1)).filter(|line| !line.is_empty()) {
            let found = unwrap_line(line, &keys.wrapping).or_else(|| {
                must_write = true;
                keys.previous.iter().find_map(|key| unwrap_line(line, key))
            });
            match found {
                Some(key) => sealer.ring.push(key),
                None => sealer.lost.push(line.to_owned()),
            }
        }
        Ok((sealer, must_write))
    }

    /// Wraps the data keys with another key from now on.
    pub(super) fn rewrap(&self, keys: &Keys) -> Result<(), OpenError> {
        self.write(&keys.wrapping)
    }

    /// The stored form of a value.
    pub(super) fn seal(&self, tree: u8, key: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let data_key = self.ring.last()?;
        let mut stored = Vec::with_capacity(plain.len() + OVERHEAD);
        stored.push(FORMAT);
        stored.extend_from_slice(&data_key.id.to_be_bytes());
        stored.extend_from_slice(&[0; NONCE]);
        stored.extend_from_slice(plain);
        let (nonce, tag) =
            data_key.aead.seal_in_place_separate_tag(associated(tree, key), &mut stored[HEAD..]).ok()?;
        stored[HEAD - NONCE..HEAD].copy_from_slice(nonce.as_ref());
        stored.extend_from_slice(tag.as_ref());
        Some(stored)
    }

    /// The value behind a stored form.
    pub(super) fn unseal(&self, tree: u8, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, Unsealable> {
        if stored.len() < OVERHEAD || stored[0] != FORMAT {
            return Err(Unsealable);
        }
        let (head, body) = stored.split_at(HEAD);
        let id = u32::from_be_bytes(head[1..5].try_into().map_err(|_| Unsealable)?);
        let nonce = Nonce::try_assume_unique_for_key(&head[5..]).map_err(|_| Unsealable)?;
        let mut body = body.to_vec();
        let data_key = self.ring.iter().rev().find(|data_key| data_key.id == id).ok_or(Unsealable)?;
        data_key.aead.open_in_place(nonce, associated(tree, key), &mut body).map_err(|_| Unsealable)?;
        body.truncate(body.len() - TAG);
        Ok(body)
    }

    fn write(&self, wrapping: &[u8; 32]) -> Result<(), OpenError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("{FIRST_LINE}\n");
        for line in &self.lost {
            let _ = writeln!(text, "{line}");
        }
        for key in &self.ring {
            let line = key.wrap(wrapping).ok_or_else(|| self.unusable())?;
            let _ = writeln!(text, "{line}");
        }
        fs::durable_write_private(&self.path, text.as_bytes()).map_err(OpenError::io("write", &self.path))
    }

    fn unusable(&self) -> OpenError {
        OpenError::Unusable { path: self.path.clone(), reason: "a data key cannot be made".into() }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("path", &self.path).finish_non_exhaustive()
    }
}

// === impl DataKey ===

impl DataKey {
    fn random() -> Option<DataKey> {
        let mut bytes = [0; 36];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        let (id, key) = bytes.split_first_chunk::<4>()?;
        DataKey::new(u32::from_be_bytes(*id), key.try_into().ok()?)
    }

    fn new(id: u32, bytes: [u8; 32]) -> Option<DataKey> {
        Some(DataKey { id, bytes, aead: RandomizedNonceKey::new(&AES_256_GCM_SIV, &bytes).ok()? })
    }

    fn wrap(&self, wrapping: &[u8; 32]) -> Option<String> {
        let mut bytes = self.bytes.to_vec();
        let aead = RandomizedNonceKey::new(&AES_256_GCM_SIV, wrapping).ok()?;
        let nonce = aead.seal_in_place_append_tag(wrap_associated(self.id), &mut bytes).ok()?;
        let mut whole = nonce.as_ref().to_vec();
        whole.extend_from_slice(&bytes);
        Some(format!("{:08x} {}", self.id, STANDARD.encode(whole)))
    }
}

fn unwrap_line(line: &str, wrapping: &[u8; 32]) -> Option<DataKey> {
    let (id, wrapped) = line.split_once(' ')?;
    let id = u32::from_str_radix(id, 16).ok()?;
    let wrapped = STANDARD.decode(wrapped.trim()).ok()?;
    let (nonce, body) = wrapped.split_at_checked(NONCE)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut body = body.to_vec();
    let aead = RandomizedNonceKey::new(&AES_256_GCM_SIV, wrapping).ok()?;
    let plain = aead.open_in_place(nonce, wrap_associated(id), &mut body).ok()?;
    DataKey::new(id, plain.get(..32)?.try_into().ok()?)
}

fn wrap_associated(id: u32) -> Aad<[u8; 24]> {
    let mut bytes = *b"seawall data key 1  ____";
    bytes[20..].copy_from_slice(&id.to_be_bytes());
    Aad::from(bytes)
}

fn associated(tree: u8, key: &[u8]) -> Aad<Associated> {
    debug_assert!(key.len() <= MAX_KEY, "checked with the batch");
    let mut bytes = [0; 5 + MAX_KEY];
    let length = key.len().min(MAX_KEY);
    bytes[..4].copy_from_slice(&SCHEMA.to_be_bytes());
    bytes[4] = tree;
    bytes[5..5 + length].copy_from_slice(&key[..length]);
    Aad::from(Associated { bytes, length: 5 + length })
}

/// On the stack: there is one for every value read or written.
struct Associated {
    bytes: [u8; 5 + MAX_KEY],
    length: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        Keys::from_bytes([byte; 32], [0; 32])
    }

    fn open(dir: &Path, keys: &Keys, is_new: bool) -> (Sealer, Vec<Alarm>) {
        let mut alarms = Vec::new();
        (Sealer::open(dir, keys, is_new, &mut alarms).unwrap(), alarms)
    }

    #[test]
    fn a_value_opens_only_in_its_place_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (sealer, alarms) = open(dir.path(), &keys(1), true);
        assert!(alarms.is_empty());
        let mut stored = sealer.seal(b'r', b"key", b"value").unwrap();
        assert_eq!(stored.len(), 5 + OVERHEAD);
        assert_eq!(sealer.unseal(b'r', b"key", &stored).unwrap(), b"value");
        assert!(sealer.unseal(b'b', b"key", &stored).is_err(), "another tree");
        assert!(sealer.unseal(b'r', b"kez", &stored).is_err(), "another key");
        for at in 0..stored.len() {
            stored[at] ^= 1;
            assert!(sealer.unseal(b'r', b"key", &stored).is_err(), "bit {at}");
            stored[at] ^= 1;
            assert!(sealer.unseal(b'r', b"key", &stored[..at]).is_err(), "cut at {at}");
        }
        assert_ne!(stored, sealer.seal(b'r', b"key", b"value").unwrap(), "random nonces");
        assert!(sealer.unseal(b'm', b"", &sealer.seal(b'm', b"", b"").unwrap()).unwrap().is_empty());
    }

    #[test]
    fn a_new_wrapping_key_with_the_one_before_opens_everything_and_rewraps() {
        let dir = tempfile::tempdir().unwrap();
        let stored = open(dir.path(), &keys(1), true).0.seal(b'r', b"k", b"v").unwrap();
        let both = Keys { previous: vec![[1; 32]], ..keys(2) };
        let (sealer, alarms) = open(dir.path(), &both, false);
        assert!(alarms.is_empty());
        assert_eq!(sealer.unseal(b'r', b"k", &stored).unwrap(), b"v");
        let (sealer, alarms) = open(dir.path(), &keys(2), false);
        assert!(alarms.is_empty(), "{alarms:?}");
        assert_eq!(sealer.unseal(b'r', b"k", &stored).unwrap(), b"v");
        sealer.rewrap(&keys(3)).unwrap();
        assert_eq!(open(dir.path(), &keys(3), false).0.unseal(b'r', b"k", &stored).unwrap(), b"v");
    }

    #[test]
    fn a_lost_key_is_told_and_comes_back_with_the_right_one() {
        let dir = tempfile::tempdir().unwrap();
        let old = open(dir.path(), &keys(1), true).0.seal(b'r', b"k", b"v").unwrap();
        let (sealer, alarms) = open(dir.path(), &keys(2), false);
        assert!(matches!(alarms[..], [Alarm::KeyLost { usable: 0, .. }]), "{alarms:?}");
        assert!(sealer.unseal(b'r', b"k", &old).is_err());
        let new = sealer.seal(b'r', b"k", b"w").unwrap();
        let both = Keys { previous: vec![[1; 32]], ..keys(2) };
        let (sealer, alarms) = open(dir.path(), &both, false);
        assert!(alarms.is_empty(), "{alarms:?}");
        assert_eq!(sealer.unseal(b'r', b"k", &old).unwrap(), b"v");
        assert_eq!(sealer.unseal(b'r', b"k", &new).unwrap(), b"w");
    }

    #[test]
    fn a_key_file_that_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (_, alarms) = open(dir.path(), &keys(1), false);
        assert!(matches!(alarms[..], [Alarm::KeyLost { usable: 0, .. }]), "{alarms:?}");
    }
}

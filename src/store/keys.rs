//! The two secrets of an installation: the key-encryption key and the HMAC key.
//!
//! The first wraps the store's data keys and may be changed at any start: it re-wraps, as long as the one before is
//! named too. The second makes fingerprints that outlive any rotation, so it is a secret of its own and is never
//! derived from the first. It is generated into `<data>/secret` (mode 0600, synced), and so is the first where none is
//! given, with a warning: whoever has the volume then has the key.

use std::{
    fmt::{self, Write as _},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::hmac;
use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};

use super::fs;

/// The file of generated secrets, in the data folder.
pub const SECRET_FILE: &str = "secret";

/// The fewest bytes of a secret.
const MIN: usize = 32;

/// What the operator gave, as read from a file or the environment: raw, hex or base64, at least 32 bytes.
#[derive(Clone, Copy, Default)]
pub struct Given<'a> {
    /// The key-encryption secret.
    pub wrapping: Option<&'a [u8]>,
    /// The key-encryption secret before this one, while a rotation is under way.
    pub previous: Option<&'a [u8]>,
}

/// The keys in use.
#[derive(Clone)]
pub struct Keys {
    pub(super) wrapping: [u8; 32],
    /// Older wrapping keys that may still be needed to unwrap.
    pub(super) previous: Vec<[u8; 32]>,
    pub(super) hmac: hmac::Key,
}

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Too little to be a secret.
    #[error(
        "the {which} secret has {bytes} bytes and needs at least {MIN}: make one with `openssl rand -base64 32`"
    )]
    TooShort {
        /// Which secret.
        which: &'static str,
        /// Its length, decoded.
        bytes: usize,
    },
    /// The file of generated secrets makes no sense.
    #[error("{} is not a file of generated secrets (line {line}): restore it from a copy, or move it away", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// The file of generated secrets cannot be read or written.
    #[error("cannot use the file of generated secrets {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The answer of the system.
        source: io::Error,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

// === impl Given ===

impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("wrapping", &self.wrapping.is_some())
            .field("previous", &self.previous.is_some())
            .finish()
    }
}

// === impl Keys ===

impl Keys {
    /// Takes what is given and generates the rest into `<data_dir>/secret`. Also gives warnings for the log. Blocks.
    ///
    /// A wrapping secret that was generated once and is given now stays known as the one before, so that moving from a
    /// generated to a given secret needs no further step.
    pub fn load(given: Given<'_>, data_dir: &Path) -> Result<(Keys, Vec<String>), KeyError> {
        let path = data_dir.join(SECRET_FILE);
        let mut warnings = Vec::new();
        let mut file = SecretFile::read(&path, &mut warnings)?;
        let mut is_changed = false;
        if given.wrapping.is_none() && file.wrapping.is_none() {
            file.wrapping = Some(random()?);
            is_changed = true;
        }
        if file.hmac.is_none() {
            file.hmac = Some(random()?);
            is_changed = true;
        }
        if is_changed {
            file.write(&path)?;
        }
        if given.wrapping.is_none() {
            warnings.push(format!(
                "no key for the write queue is configured: a generated one in {} is used, and whoever has the volume \
                 can read the queue",
                path.display()
            ));
        }
        Ok((Keys::of(given, &file)?.ok_or(KeyError::Random)?, warnings))
    }

    /// Takes what is given and what the file of generated secrets has, and generates and writes nothing. `None`:
    /// neither has both keys. Blocks.
    pub fn existing(given: Given<'_>, secret_file: &Path) -> Result<Option<Keys>, KeyError> {
        Keys::of(given, &SecretFile::read(secret_file, &mut Vec::new())?)
    }

    fn of(given: Given<'_>, file: &SecretFile) -> Result<Option<Keys>, KeyError> {
        let mut previous = Vec::new();
        if let Some(secret) = given.previous {
            previous.push(derive(b"wrapping", &decode("previous wrapping", secret)?));
        }
        let wrapping = match (given.wrapping, &file.wrapping) {
            (Some(secret), old) => {
                previous.extend(old.as_ref().map(|old| derive(b"wrapping", old)));
                derive(b"wrapping", &decode("wrapping", secret)?)
            }
            (None, Some(own)) => derive(b"wrapping", own),
            (None, None) => return Ok(None),
        };
        let Some(hmac) = &file.hmac else { return Ok(None) };
        Ok(Some(Keys { previous, ..Keys::from_bytes(wrapping, derive(b"hmac", hmac)) }))
    }

    /// Keys as they are, for tests and tools.
    pub fn from_bytes(wrapping: [u8; 32], hmac: [u8; 32]) -> Keys {
        Keys { wrapping, previous: Vec::new(), hmac: hmac::Key::new(hmac::HMAC_SHA256, &hmac) }
    }

    /// HMAC-SHA-256 of `data`, apart for each `label`.
    pub fn hmac(&self, label: &str, data: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.hmac);
        // The length in front keeps ("ab", "c") and ("a", "bc") apart.
        context.update(&(label.len() as u64).to_be_bytes());
        context.update(label.as_bytes());
        context.update(data);
        digest(&context.sign())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

// === impl SecretFile ===

#[derive(Default)]
struct SecretFile {
    wrapping: Option<Vec<u8>>,
    hmac: Option<Vec<u8>>,
}

impl SecretFile {
    fn read(path: &Path, warnings: &mut Vec<String>) -> Result<SecretFile, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SecretFile::default()),
            Err(error) => return Err(failed(error)),
        };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            warnings.push(format!(
                "{} may be read by others (mode {:o}): chmod 600 it",
                path.display(),
                mode & 0o777
            ));
        }
        let mut file = SecretFile::default();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let malformed = || KeyError::Malformed { path: path.to_owned(), line: index + 1 };
            let (name, value) = line.split_once(' ').ok_or_else(malformed)?;
            let value = general_purpose::STANDARD.decode(value.trim()).map_err(|_| malformed())?;
            if value.len() < MIN {
                return Err(malformed());
            }
            match name {
                "wrapping" => file.wrapping = Some(value),
                "hmac" => file.hmac = Some(value),
                _ => return Err(malformed()),
            }
        }
        Ok(file)
    }

    fn write(&self, path: &Path) -> Result<(), KeyError> {
        let mut text = String::new();
        for (name, value) in [("wrapping", &self.wrapping), ("hmac", &self.hmac)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{name} {}", general_purpose::STANDARD.encode(value));
            }
        }
        fs::create_dir(fs::parent(path))
            .and_then(|()| fs::durable_write_private(path, text.as_bytes()))
            .map_err(|source| KeyError::Io { path: path.to_owned(), source })
    }
}

fn random() -> Result<Vec<u8>, KeyError> {
    let mut bytes = vec![0; MIN];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

/// Hex or base64 where it is one and long enough so, else the bytes as they are.
fn decode(which: &'static str, given: &[u8]) -> Result<Vec<u8>, KeyError> {
    const ANY: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let given = given.trim_ascii();
    let decoded = hex(given).into_iter().chain(
        [STANDARD, URL_SAFE]
            .iter()
            .filter_map(|alphabet| GeneralPurpose::new(alphabet, ANY).decode(given).ok()),
    );
    match decoded.into_iter().find(|bytes| bytes.len() >= MIN) {
        Some(bytes) => Ok(bytes),
        None if given.len() >= MIN => Ok(given.to_vec()),
        None => Err(KeyError::TooShort { which, bytes: given.len() }),
    }
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn derive(label: &[u8], secret: &[u8]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(b"seawall 1 ");
    context.update(label);
    digest(&context.sign())
}

fn digest(tag: &hmac::Tag) -> [u8; 32] {
    tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &[u8] = b"0123456789abcdef0123456789abcde!";

    fn keys(wrapping: &[u8], dir: &Path) -> Result<(Keys, Vec<String>), KeyError> {
        Keys::load(Given { wrapping: Some(wrapping), previous: None }, dir)
    }

    #[test]
    fn raw_hex_and_base64_of_one_secret_are_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut hex = String::new();
        for byte in RAW {
            write!(hex, "{byte:02x}").unwrap();
        }
        let base64 = general_purpose::STANDARD.encode(RAW) + "\n";
        let bare = general_purpose::URL_SAFE_NO_PAD.encode(RAW);
        let raw = keys(RAW, dir.path()).unwrap().0.wrapping;
        for text in [hex, base64, bare] {
            assert_eq!(keys(text.as_bytes(), dir.path()).unwrap().0.wrapping, raw, "{text}");
        }
        let generated = std::fs::read_to_string(dir.path().join("secret")).unwrap();
        assert!(generated.starts_with("hmac "), "no wrapping key is generated: {generated}");
    }

    #[test]
    fn a_short_secret_is_refused_by_name_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let error = keys(b"hunter2", dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("wrapping") && error.contains("at least 32") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn generated_secrets_are_private_kept_and_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let (first, warnings) = Keys::load(Given::default(), dir.path()).unwrap();
        assert!(warnings[0].contains("secret"), "{warnings:?}");
        let path = dir.path().join("secret");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (again, _) = Keys::load(Given::default(), dir.path()).unwrap();
        assert_eq!(first.wrapping, again.wrapping);
        assert_eq!(first.hmac("a", b"b"), again.hmac("a", b"b"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Keys::load(Given::default(), dir.path()).unwrap().1[0].contains("chmod"));
    }

    #[test]
    fn a_given_secret_makes_the_generated_one_the_one_before_and_leaves_the_hmac_key() {
        let dir = tempfile::tempdir().unwrap();
        let (own, _) = Keys::load(Given::default(), dir.path()).unwrap();
        let (given, warnings) =
            Keys::load(Given { wrapping: Some(RAW), ..Given::default() }, dir.path()).unwrap();
        assert_eq!(given.previous, [own.wrapping]);
        assert_eq!(given.hmac("a", b"b"), own.hmac("a", b"b"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn a_broken_secret_file_is_an_error_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "wrapping AAAA\n").unwrap();
        let error = Keys::load(Given::default(), dir.path()).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { line: 1, .. }), "{error}");
        assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"wrapping AAAA\n");
    }

    #[test]
    fn labels_keep_macs_apart_and_debug_shows_nothing() {
        let keys = Keys::from_bytes([1; 32], [2; 32]);
        assert_ne!(keys.hmac("ab", b"c"), keys.hmac("a", b"bc"));
        assert_eq!(format!("{keys:?}"), "Keys { .. }");
    }
}

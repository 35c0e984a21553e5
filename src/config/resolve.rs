//! Settings become a [`Snapshot`]: the checks across fields, the secrets from their files and variables, the table
//! of endpoints. It reads files and nothing else, and every reload reads them again.
//!
//! A secret is one line of visible ASCII, so that it can stand in a header field. No message shows one; the path
//! or name that the operator wrote is shown only when it looks like a path or a name, since a token may have been
//! put there by mistake.

use super::diagnose::{Diagnostics, Origins, Problem};
use super::raw::Settings;
use super::validate::{self, Checker};
use super::{Caller, Secret, Snapshot, policy, show, tls};
use http::HeaderValue;
use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest secret that is read.
const MAX_SECRET: u64 = 64 * 1024;

/// Below this many characters a token can be guessed.
const GOOD_TOKEN: usize = 16;

/// Below this many characters a key is not as strong as the cipher it is for.
const GOOD_KEY: usize = 32;

/// What settings are made of.
pub(super) struct Raw {
    /// The settings.
    pub(super) settings: Settings,
    /// The origins.
    pub(super) origins: Arc<Origins>,
    /// The configuration file.
    pub(super) source: Option<PathBuf>,
    /// What was noticed when it was read.
    pub(super) warnings: Vec<String>,
    /// What is wrong already.
    pub(super) problems: Vec<Problem>,
}

/// Where the store's key comes from.
#[derive(Clone, Copy)]
pub(super) enum StoreKey<'a> {
    /// Read as the settings say.
    Read,
    /// In use already, and not read again: its file may be gone by now.
    InUse(Option<&'a Secret>),
}

/// Makes the snapshot, or names all that is wrong.
pub(super) fn build(raw: Raw, env: &BTreeMap<String, String>) -> Result<Snapshot, Diagnostics> {
    build_with(raw, env, StoreKey::Read)
}

/// The same with a word on the store's key.
pub(super) fn build_with(
    raw: Raw,
    env: &BTreeMap<String, String>,
    key: StoreKey<'_>,
) -> Result<Snapshot, Diagnostics> {
    let Raw { settings, origins, source, mut warnings, problems } = raw;
    let mut checker = Checker::new(&origins, &problems);
    validate::check(&settings, &mut checker);
    let mut reader = Reader { env, files: source.iter().cloned().collect() };
    let callers = callers(&settings, &mut reader, &mut checker);
    let credentials = credentials(&settings, &mut reader, &mut checker);
    let admin = &settings.admin;
    let admin_token = reader.secret("admin", "token", &admin.token_file, &admin.token_env, &mut checker);
    if let Some(token) = &admin_token {
        warn_if_short("admin", token, &mut checker);
    }
    let store = &settings.store;
    let (store_key, previous_store_key) = match key {
        StoreKey::InUse(key) => (key.cloned(), None),
        StoreKey::Read => (
            store_key(&mut reader, "key", &store.key_file, &store.key_env, &mut checker),
            store_key(
                &mut reader,
                "previous_key",
                &store.previous_key_file,
                &store.previous_key_env,
                &mut checker,
            ),
        ),
    };
    let upstream = &settings.upstream;
    let proxy_authorization = reader.secret_as(
        "upstream",
        "proxy_authorization",
        (&upstream.proxy_authorization_file, &upstream.proxy_authorization_env),
        proxy_authorization,
        &mut checker,
    );
    let upstream_tls = tls::read(&upstream.tls, &mut reader, &mut checker);
    let files = reader.files;
    let Checker { problems: found, warnings: noticed, .. } = checker;
    warnings.extend(noticed);
    let all: Vec<Problem> = problems.into_iter().chain(found).collect();
    if !all.is_empty() {
        return Err(Diagnostics::new(all));
    }
    let mut identities = HashMap::new();
    for identity in &settings.credentials.identity {
        let name: Arc<str> = Arc::from(identity.name.as_str());
        for hash in identity.token_sha256.iter().filter_map(|text| validate::sha256(text).ok()) {
            identities.insert(hash, name.clone());
        }
    }
    Ok(Snapshot {
        routes: policy::table(&settings),
        public_url: public_url(&settings),
        callers,
        credentials,
        identities,
        admin_token,
        store_key,
        previous_store_key,
        upstream_tls: Arc::new(upstream_tls),
        proxy_authorization,
        generation: 1,
        source,
        files,
        warnings,
        origins,
        settings,
    })
}

/// A key of the store's.
fn store_key(
    reader: &mut Reader<'_>,
    name: &str,
    file: &Path,
    variable: &str,
    checker: &mut Checker<'_>,
) -> Option<Secret> {
    let key = reader.secret("store", name, file, variable, checker)?;
    if key.expose().len() < GOOD_KEY {
        let what = format!(
            "the key is shorter than {GOOD_KEY} characters; make one with `openssl rand -base64 {GOOD_KEY}`"
        );
        let source = if variable.is_empty() { "file" } else { "env" };
        checker.say(&format!("store.{name}_{source}"), what);
    }
    Some(key)
}

/// Every file that these settings name to be read, the configuration's own first.
pub(super) fn files(raw: &Raw) -> Vec<PathBuf> {
    raw.source.iter().cloned().chain(show::files(&raw.settings)).collect()
}

/// `server.public_url` without a slash at its end, else the listen address.
pub(super) fn public_url(settings: &Settings) -> Arc<str> {
    let server = &settings.server;
    if server.public_url.is_empty() {
        return Arc::from(format!("http://{}", server.listen));
    }
    Arc::from(server.public_url.trim_end_matches('/'))
}

fn callers(settings: &Settings, reader: &mut Reader<'_>, checker: &mut Checker<'_>) -> Vec<Caller> {
    let mut callers: Vec<Caller> = Vec::with_capacity(settings.callers.len());
    for (index, caller) in settings.callers.iter().enumerate() {
        let prefix = format!("caller[{index}]");
        let hash = if caller.token_sha256.is_empty() {
            let secret = reader.secret(&prefix, "token", &caller.token_file, &caller.token_env, checker);
            secret.map(|token| {
                warn_if_short(&prefix, &token, checker);
                sha256_of(token.expose())
            })
        } else {
            validate::sha256(&caller.token_sha256).ok()
        };
        let Some(token_sha256) = hash else { continue };
        if let Some(other) = callers.iter().find(|other| other.token_sha256 == token_sha256) {
            let what = format!("has the same token as caller `{}`; give each its own", other.name);
            checker.say(&prefix, what);
            continue;
        }
        let credential = match caller.credential.as_str() {
            "" => settings.credentials.default.as_str(),
            name => name,
        };
        callers.push(Caller {
            name: Arc::from(caller.name.as_str()),
            token_sha256,
            credential: Arc::from(credential),
        });
    }
    callers
}

fn credentials(
    settings: &Settings,
    reader: &mut Reader<'_>,
    checker: &mut Checker<'_>,
) -> HashMap<Arc<str>, HeaderValue> {
    let mut credentials = HashMap::new();
    for (name, alias) in &settings.credentials.alias {
        let prefix = format!("credentials.alias.{name}");
        let secret = reader.secret(&prefix, "token", &alias.token_file, &alias.token_env, checker);
        let Some(secret) = secret else { continue };
        let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", secret.expose())) else { continue };
        value.set_sensitive(true);
        credentials.insert(Arc::from(name.as_str()), value);
    }
    credentials
}

fn sha256_of(text: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

fn warn_if_short(key: &str, token: &Secret, checker: &mut Checker<'_>) {
    if token.expose().len() < GOOD_TOKEN {
        let what = format!("the token is shorter than {GOOD_TOKEN} characters and can be guessed");
        checker.warn(key, what);
    }
}

/// Reads files and variables, and knows which.
pub(super) struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    files: Vec<PathBuf>,
}

// === impl Reader ===

impl Reader<'_> {
    /// The secret of `<prefix>.<name>_file` or `<prefix>.<name>_env`. `None` when neither or both are set, and when
    /// there is a problem with it, which is told.
    fn secret(
        &mut self,
        prefix: &str,
        name: &str,
        file: &Path,
        variable: &str,
        checker: &mut Checker<'_>,
    ) -> Option<Secret> {
        self.secret_as(prefix, name, (file, variable), usable, checker)
    }

    /// The same, made into something by `usable`.
    fn secret_as<T>(
        &mut self,
        prefix: &str,
        name: &str,
        (file, variable): (&Path, &str),
        usable: fn(&str) -> Result<T, String>,
        checker: &mut Checker<'_>,
    ) -> Option<T> {
        let (key, text) = match (file.as_os_str().is_empty(), variable.is_empty()) {
            (true, true) | (false, false) => return None,
            (false, true) => (format!("{prefix}.{name}_file"), self.file(file)),
            (true, false) => (format!("{prefix}.{name}_env"), self.variable(variable)),
        };
        match text.and_then(|text| usable(&text)) {
            Ok(secret) => Some(secret),
            Err(what) => {
                checker.say(&key, what);
                None
            }
        }
    }

    fn file(&mut self, path: &Path) -> Result<String, String> {
        String::from_utf8(self.bytes(path, MAX_SECRET)?)
            .map_err(|_| "the file is not text; a token of visible ASCII is expected".into())
    }

    /// What a file holds; from now on a change of it is a reason to reload.
    pub(super) fn bytes(&mut self, path: &Path, limit: u64) -> Result<Vec<u8>, String> {
        let bytes = read(path, limit).map_err(|what| match shown(path) {
            Some(path) => format!("`{path}` {what}"),
            None => format!("the file that is named {what}"),
        })?;
        self.files.push(path.to_owned());
        Ok(bytes)
    }

    fn variable(&self, name: &str) -> Result<String, String> {
        let is_name = name.len() <= 64
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        if !is_name {
            return Err(
                "expected the name of an environment variable (capital letters, digits, `_`), not the \
                        secret itself"
                    .to_owned(),
            );
        }
        self.env.get(name).cloned().ok_or_else(|| format!("the environment variable {name} is not set"))
    }
}

/// What a file holds, at most `limit` bytes; else what is wrong, as the end of a sentence.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let what = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "may not be read by the user that Seawall runs as".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    if std::fs::metadata(path).map_err(what)?.is_dir() {
        return Err(
            "is a folder, a file is expected (container engines make a folder where a file to mount is \
                    missing)"
                .to_owned(),
        );
    }
    let mut bytes = Vec::new();
    let mut file = std::fs::File::open(path).map_err(what)?.take(limit + 1);
    file.read_to_end(&mut bytes).map_err(what)?;
    if bytes.len() as u64 > limit {
        return Err(format!("is longer than {limit} bytes"));
    }
    Ok(bytes)
}

/// A path as text, when it looks like one.
fn shown(path: &Path) -> Option<String> {
    let text = path.display().to_string();
    ["/", "./", "../"].iter().any(|start| text.starts_with(start)).then_some(text)
}

fn usable(text: &str) -> Result<Secret, String> {
    let secret = Secret::new(text);
    let text = secret.expose();
    if text.is_empty() {
        return Err("the secret is empty".to_owned());
    }
    if text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        return Err("the secret begins with `Bearer `; give the token alone".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the secret must be one line of visible ASCII without spaces".to_owned());
    }
    Ok(secret)
}

/// `Proxy-Authorization`: `user:password` (RFC 7617), or the field's whole value, scheme and credentials.
fn proxy_authorization(text: &str) -> Result<HeaderValue, String> {
    const EXPECTED: &str = "expected `user:password`, or a whole field value such as `Bearer <token>`";
    let text = text.trim();
    let is_whole = text.split_once(' ').is_some_and(|(scheme, _)| !scheme.contains(':'));
    let value = if is_whole {
        text.to_owned()
    } else if text.contains(':') {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    } else {
        return Err(EXPECTED.to_owned());
    };
    if !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(EXPECTED.to_owned());
    }
    let mut value = HeaderValue::try_from(value).map_err(|_| EXPECTED.to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

// === impl Snapshot ===

impl Snapshot {
    /// The snapshot of settings that were made in code, as by tests and the demo: the same checks, no file, no
    /// environment. An empty `data_dir` stays empty.
    pub fn of(settings: Settings) -> Result<Self, Diagnostics> {
        let raw = Raw {
            settings,
            origins: Arc::default(),
            source: None,
            warnings: Vec::new(),
            problems: Vec::new(),
        };
        build(raw, &BTreeMap::new())
    }
}

//! Finds the configuration's sources and reads them.
//!
//! The file is `--config`, else `$SEAWALL_CONFIG`, else `./proxy.toml`, else `/etc/seawall/proxy.toml`, else none.
//! A file that is named must exist; of the others the first that exists counts, and when that one cannot be read it
//! is a problem, not a reason to look further.

use super::diagnose::{Diagnostics, Origin, Problem};
use super::overlay::{self, Node};
use super::resolve::{self, Raw};
use super::{Settings, Snapshot};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Where it is looked for when none is named.
const PLACES: [&str; 2] = ["./proxy.toml", "/etc/seawall/proxy.toml"];

/// What a configuration is loaded from. Kept for reloads, so that each reads the same sources again.
#[derive(Clone, Default)]
pub struct LoadArgs {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Each `--set`, as `section.key=value`.
    pub sets: Vec<String>,
    /// The environment: `SEAWALL__…`, `SEAWALL_CONFIG`, `STATE_DIRECTORY`, and variables with secrets.
    pub env: BTreeMap<String, String>,
}

// === impl LoadArgs ===

impl LoadArgs {
    /// The sources with this environment.
    pub fn new(
        config: Option<PathBuf>,
        sets: Vec<String>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self { config, sets, env: env.into_iter().collect() }
    }

    /// The sources with the environment of this process.
    pub fn from_process(config: Option<PathBuf>, sets: Vec<String>) -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Self::new(config, sets, std::env::vars_os().map(|(name, value)| (text(name), text(value))))
    }
}

impl fmt::Debug for LoadArgs {
    /// Without the environment, since secrets stand in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadArgs").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Loads the configuration, or names every problem of it. Reads files and blocks for as long.
pub fn load(args: &LoadArgs) -> Result<Snapshot, Diagnostics> {
    resolve::build(gather(args), &args.env)
}

/// All layers over each other, held to the table of keys.
pub(super) fn gather(args: &LoadArgs) -> Raw {
    gather_from(args, &PLACES.map(Path::new))
}

pub(super) fn gather_from(args: &LoadArgs, places: &[&Path]) -> Raw {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let named = args
        .config
        .clone()
        .or_else(|| args.env.get("SEAWALL_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let source = named.or_else(|| places.iter().find(|path| path.exists()).map(|path| tidy(path).to_owned()));
    let mut root = match &source {
        Some(path) => read_file(path, &mut problems, &mut warnings),
        None => Node::empty(),
    };
    let is_readable = problems.is_empty();
    overlay::environment(&args.env, &mut root, &mut problems);
    overlay::sets(&args.sets, &mut root, &mut problems);
    let (mut settings, mut origins) = overlay::settle(&root, &mut problems);
    if settings.data_dir.as_os_str().is_empty() {
        let folder = args.env.get("STATE_DIRECTORY").and_then(|list| list.split(':').next());
        settings.data_dir = match folder.filter(|folder| !folder.is_empty()) {
            Some(folder) => {
                origins.insert("data_dir".to_owned(), Origin::Environment(Arc::from("STATE_DIRECTORY")));
                PathBuf::from(folder)
            }
            None => PathBuf::from("./data"),
        };
    }
    if !is_readable {
        // What the file would have set is not known, so that nothing can be said across fields.
        settings = Settings { data_dir: settings.data_dir, ..Settings::default() };
    }
    Raw { settings, origins: Arc::new(origins), source, warnings, problems }
}

/// Without `./`, for messages.
fn tidy(path: &Path) -> &Path {
    path.strip_prefix(".").unwrap_or(path)
}

fn read_file(path: &Path, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Node {
    let origin_path: Arc<Path> = Arc::from(path);
    let bytes = match resolve::read(path, MAX_FILE) {
        Ok(bytes) => bytes,
        Err(what) => {
            let message = format!("the configuration file {what}");
            problems.push(Problem::at(Origin::Source(origin_path), "", message));
            return Node::empty();
        }
    };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let good = String::from_utf8_lossy(good);
            let line_start = good.rfind('\n').map_or(0, |at| at + 1);
            let origin = Origin::File {
                path: origin_path,
                line: 1 + good.matches('\n').count() as u32,
                column: 1 + good[line_start..].chars().count() as u32,
            };
            let message = "the file is not UTF-8 from here on; save it as UTF-8".to_owned();
            problems.push(Problem::at(origin, "", message));
            return Node::empty();
        }
    };
    if text.trim().is_empty() {
        warnings.push(format!("{}: the file is empty; the defaults apply", path.display()));
    }
    overlay::file(&text, &origin_path, problems)
}

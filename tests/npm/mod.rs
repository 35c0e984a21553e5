//! What tests take from npm: packages that are AGPL, so that nothing of them is committed. They are installed when a
//! test runs, into `target/npm/`, where they stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

const SANDBOX: &str = "@distributeaid/flexport-api-sandbox";
const SANDBOX_VERSION: &str = "1.5.4";
/// What a sandbox lets in.
pub const API_KEY: &str = "sandbox-test-key";
/// The most time for what npm, node and their like do. It bounds a hang only: machines may be slow and loaded.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running sandbox: bodies that a real Flexport account returned.
pub struct Sandbox {
    process: Child,
    /// Its base URL.
    pub url: String,
    /// Of the installed package and what it needs.
    folder: PathBuf,
    /// Once it was ended: its port, at which nobody listens and that nobody else is given.
    port: Option<TcpSocket>,
}

// === impl Sandbox ===

impl Sandbox {
    /// `None` when it cannot be had here, which is said.
    pub async fn start() -> Option<Self> {
        let package = format!("{SANDBOX}@{SANDBOX_VERSION}");
        let folder = installed(&format!("sandbox-{SANDBOX_VERSION}"), &[&package, "node-fetch@2"]).await?;
        let mut process = Command::new("node")
            .args([fixture("sandbox.mjs").as_os_str(), folder.as_os_str(), API_KEY.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let url = line.expect("the sandbox does not start").unwrap().expect("the sandbox ended at once");
        Some(Self { process, url, folder, port: None })
    }

    /// Ends it, at once. From then on connections to it are refused: its port is taken, so that no other server of
    /// this machine's comes to stand in its place.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
        let port = TcpSocket::new_v4().unwrap();
        // Its old connections may linger.
        port.set_reuseaddr(true).unwrap();
        port.bind(self.url.trim_start_matches("http://").parse().unwrap()).unwrap();
        port.set_reuseaddr(false).unwrap();
        self.port = Some(port);
    }

    /// The paths of all recorded bodies: those of the files, without `.js`.
    pub fn paths(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, paths: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, paths);
                } else if let Some(path) =
                    path.strip_prefix(root).unwrap().to_str().unwrap().strip_suffix(".js")
                {
                    paths.push(format!("/{path}"));
                }
            }
        }
        let root = self.folder.join("node_modules").join(SANDBOX).join("sandbox");
        let mut paths = Vec::new();
        walk(&root, &root, &mut paths);
        paths.sort_unstable();
        paths
    }
}

/// A file of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What a test needs, or `None` when it cannot be had here: with `CI=true` that is a failure, else it is said.
pub fn had<T>(what: Result<T, String>) -> Option<T> {
    match what {
        Ok(what) => Some(what),
        Err(why) if std::env::var("CI").as_deref() == Ok("true") => panic!("{why}"),
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            None
        }
    }
}

/// The folder that these packages are installed in, if node is there, too; at the first call they are fetched.
pub async fn installed(name: &str, packages: &[&str]) -> Option<PathBuf> {
    had(try_installed(name, packages).await)
}

async fn try_installed(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let npm = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("npm");
    let folder = npm.join(name);
    fs::create_dir_all(&npm).unwrap();
    // Tests are processes of their own: one installs, the others wait.
    let lock = fs::File::create(npm.join(format!("{name}.lock"))).unwrap();
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    if !folder.exists() {
        // What is cut short leaves no folder that looks complete.
        let partial = TempDir::new_in(&npm).unwrap();
        fs::write(partial.path().join("package.json"), r#"{ "private": true }"#).unwrap();
        let install = Command::new("npm")
            .args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"])
            .args(packages)
            .current_dir(partial.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, install)
            .await
            .map_err(|_| format!("npm did not install {packages:?} within {PATIENCE:?}"))?
            .map_err(|error| format!("npm cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "npm cannot install {packages:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        fs::rename(partial.keep(), &folder).unwrap();
    }
    drop(lock);
    let node = Command::new("node").arg("--version").output().await;
    node.map(|_| folder).map_err(|error| format!("node cannot be run: {error}"))
}

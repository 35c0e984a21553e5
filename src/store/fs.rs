//! Files that are whole or not there.
//!
//! A file is written beside its place, synced, renamed over it, and its folder synced: after a power cut there is the
//! old content or the new one, never a part. `rename` alone promises neither content nor name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The temporary name is fixed, so that no leftovers pile up; this keeps two writers of one file apart.
static WRITING: Mutex<()> = Mutex::new(());

/// Puts `bytes` into the file `path`, durably and as a whole. Blocks. Errors name the path.
pub fn durable_write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o644)
}

/// [`durable_write_file`] for secrets: only the owner may read it.
pub fn durable_write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o600)
}

/// Syncs a folder, which makes the names in it durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(named("sync", path))
}

/// Makes a folder and its parents, for the owner only, and syncs the names.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(named("create", path))?;
    sync_dir(parent(path))
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let tmp = write_beside(path, bytes, mode)?;
    fs::rename(&tmp, path).map_err(named("rename a file to", path))?;
    sync_dir(parent(path))
}

/// The first half: the content, synced, under the temporary name.
pub(super) fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    // A leftover of a crash may have other rights.
    match fs::remove_file(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named("remove", &tmp)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&tmp)
        .map_err(named("create", &tmp))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(named("write", &tmp))?;
    Ok(tmp)
}

/// The folder that it lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts the path into an error; its kind stays.
pub(super) fn named(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.to_owned();
    move |error| io::Error::new(error.kind(), format!("cannot {doing} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.json");
        durable_write_file(&path, b"one").unwrap();
        fs::write(dir.path().join("overrides.json.tmp"), b"left by a crash").unwrap();
        durable_write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_private_file_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        durable_write_private(&path, b"x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = durable_write_file(Path::new("/nowhere/at/all"), b"x").unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}

//! The schema version of a store, in the file `VERSION`.
//!
//! A newer version is refused and left alone: setting such a folder aside would lose acknowledged writes to a mere
//! roll-back. The version is also part of the associated data of every sealed value.

use std::{io, path::Path};

use super::{Alarm, OpenError, fs};

/// The schema that this version writes.
pub const SCHEMA: u32 = 1;

pub(super) const FILE: &str = "VERSION";

/// Checks the folder's version and writes ours where there is none.
pub(super) fn check(dir: &Path, alarms: &mut Vec<Alarm>) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(SCHEMA) => return Ok(()),
            Ok(found) if found > SCHEMA => {
                return Err(OpenError::NewerSchema { path, found, supported: SCHEMA });
            }
            // There is no older one yet, and a broken file says nothing: each sealed value proves its own schema.
            _ => alarms.push(Alarm::VersionUnreadable { path: path.clone() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            alarms.push(Alarm::VersionUnreadable { path: path.clone() });
        }
        Err(source) => return Err(OpenError::Io { doing: "read", path, source }),
    }
    fs::durable_write_file(&path, format!("{SCHEMA}\n").as_bytes()).map_err(OpenError::io("write", &path))
}

//! Keeps sled from deleting its own metadata when it is opened.
//!
//! Opening merges the snapshot and the logs of `metadata/` into a new snapshot, named after the newest log,
//! removes the old files and starts an empty log. A process that dies before the last step leaves a snapshot
//! without a log. The next opening then gives its new snapshot the name of the old one, and removes the old
//! one, which is the new one. The opening after that finds only what was written since. An empty log beside
//! the snapshot prevents this.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Adds the empty log if it is missing. Must be called before sled opens `dir`, which may be missing too.
pub(super) fn complete(dir: &Path) -> io::Result<()> {
    let metadata = dir.join("metadata");
    let (mut snapshot, mut log) = (None, None);
    let files = match fs::read_dir(&metadata) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let name = file?.file_name();
        let name = name.to_str().unwrap_or_default();
        snapshot = snapshot.max(number(name, "snapshot_"));
        log = log.max(number(name, "log_"));
    }
    match snapshot {
        Some(snapshot) if log <= Some(snapshot) => {
            File::create(metadata.join(format!("log_{:016x}", snapshot.saturating_add(1))))?.sync_all()?;
            File::open(&metadata)?.sync_all()
        }
        _ => Ok(()),
    }
}

/// The hexadecimal number in a file's name.
fn number(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

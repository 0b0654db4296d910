//! Keeps sled from deleting its own metadata when it is opened.
//!
//! Opening merges the snapshot and the logs of `metadata/` into a new snapshot, named after the newest log, removes
//! the old files and starts an empty log. A process that dies before the last step leaves a snapshot without a log.
//! Then the next opening gives its new snapshot the name of the old one, and removes the old one: the new one. What
//! is written from then on is all that the opening after that finds. An empty log beside the snapshot prevents it.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Adds the empty log if it is missing. To be called before sled opens `dir`, which may be missing too.
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

/// The number of a file's name, which is hexadecimal.
fn number(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

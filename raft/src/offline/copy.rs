//! Copies of what a data directory holds, inside the directory itself: there is room where the data are, and
//! whoever may write the data may write the copy.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::RecoverError;
use crate::space;

/// What is left free besides a copy, for the log that grows.
const MARGIN_BYTES: u64 = 128 << 20;

/// How the name of a copy of the old state begins.
const BACKUP: &str = "before-recovery-";

/// Removes a directory that may be missing.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Copies a file, or a directory with everything below it, durably. Returns the bytes copied.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    if !from.is_dir() {
        let bytes = fs::copy(from, to)?;
        File::open(to)?.sync_all()?;
        return Ok(bytes);
    }
    fs::create_dir_all(to)?;
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        bytes += copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    File::open(to)?.sync_all()?;
    Ok(bytes)
}

/// The bytes of a file, or of everything below a directory; 0 for what is missing.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += size(&entry?.path())?;
    }
    Ok(bytes)
}

/// Refuses if `dir` has no room for `bytes` and a margin.
pub(super) fn check_room(dir: &Path, bytes: u64) -> Result<(), RecoverError> {
    let needed = bytes.saturating_add(MARGIN_BYTES);
    let room = space::room(dir);
    let free = room.map_err(super::io(format!("cannot tell the free space of {}", dir.display())))?.free;
    if free >= needed { Ok(()) } else { Err(RecoverError::NoRoom { dir: dir.to_owned(), needed, free }) }
}

/// The parts of a node's state, by name.
fn parts(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // `.old` and `.new` are what a crash leaves of a replacement of the pages.
        if matches!(name.as_str(), "identity.json" | "log" | "pages" | "pages.old" | "pages.new") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Copies the state of the node in `dir` into a new directory in it, which is itself a complete data
/// directory. After a crash the copy is whole under its name, or not there under it.
pub(super) fn back_up(dir: &Path) -> Result<PathBuf, RecoverError> {
    let failed = |source| super::io(format!("cannot copy the state of {}", dir.display()))(source);
    let parts = parts(dir).map_err(failed)?;
    let sizes: io::Result<u64> = parts.iter().map(|part| size(&dir.join(part))).sum();
    check_room(dir, sizes.map_err(failed)?)?;
    let name = |n: u32| dir.join(format!("{BACKUP}{n}"));
    let backup = (1..).map(name).find(|path| !path.exists()).expect("there are fewer than 4 Gi copies");
    let unfinished = dir.join(format!("{BACKUP}unfinished"));
    let copied = || {
        remove(&unfinished)?;
        fs::create_dir(&unfinished)?;
        for part in &parts {
            copy(&dir.join(part), &unfinished.join(part))?;
        }
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, &backup)?;
        File::open(dir)?.sync_all()
    };
    copied().map_err(failed)?;
    Ok(backup)
}

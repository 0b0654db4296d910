//! What a file system reports of its space.

use std::{
    ffi::CString,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// Fewer free names than this are as bad as no space: nothing can be created.
const NAMES_MIN: u64 = 16;

/// The space of a file system, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// All of it, used or not.
    pub(crate) total: u64,
    /// What this user may still take.
    pub(crate) free: u64,
}

/// Asks the file system that holds `dir`.
pub(crate) fn room(dir: &Path) -> io::Result<Room> {
    let path = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `stat` has room for what is written.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, so it is written.
    let stat = unsafe { stat.assume_init() };
    if stat.f_blocks == 0 {
        // Some file systems report nothing, and are not full for it.
        return Err(io::ErrorKind::Unsupported.into());
    }
    let has_names = stat.f_files == 0 || stat.f_favail >= NAMES_MIN;
    let free = if has_names { stat.f_bavail.saturating_mul(stat.f_frsize) } else { 0 };
    Ok(Room { total: stat.f_blocks.saturating_mul(stat.f_frsize), free })
}

/// What a file, or everything below a directory, occupies; 0 for what is missing or disappears meanwhile.
pub(crate) fn occupied(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
    metadata.blocks() * 512 + inside.map(|entry| occupied(&entry.path())).sum::<u64>()
}

/// Whether this is how a full disk, or an exhausted quota, shows.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

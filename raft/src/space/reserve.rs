//! The reserve: a file whose only use is the space that it occupies. It is shrunk when something must be
//! written and there is no other space, and takes that space back when there is some.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

/// The file's name in a data directory.
const FILE: &str = "reserve";

/// Space is given up in whole multiples of this: a part of a file system's block would stay taken.
pub(super) const STEP_BYTES: u64 = 1 << 20;

/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// The file, and how much it holds.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    file: Option<File>,
    held_bytes: u64,
}

impl Reserve {
    /// Opens the file, or creates it, which takes no space. What it holds is what is really occupied: a copy
    /// of it may be all holes.
    pub(super) fn open(dir: &Path) -> io::Result<Reserve> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(FILE))?;
        let held_bytes = occupied(&file)?.min(file.metadata()?.len());
        Ok(Reserve { file: Some(file), held_bytes })
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Gives up at least this much of it, or all that there is. Returns how much that was.
    pub(super) fn shrink(&mut self, bytes: u64) -> io::Result<u64> {
        let Some(file) = self.file.as_ref().filter(|_| self.held_bytes > 0) else { return Ok(0) };
        let left = self.held_bytes.saturating_sub(bytes) / STEP_BYTES * STEP_BYTES;
        file.set_len(left)?;
        let given = self.held_bytes - left;
        self.held_bytes = left;
        // Some file systems free the space only with their next commit.
        file.sync_all()?;
        Ok(given)
    }

    /// Takes this much more. False if the file system cannot set space aside, or does not have that much.
    pub(super) fn grow(&mut self, bytes: u64) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let offset = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
        let (from, len) = (offset(self.held_bytes)?, offset(bytes)?);
        // SAFETY: the descriptor is open for the whole call, and fallocate touches no memory.
        let is_taken = unsafe { libc::fallocate(file.as_raw_fd(), 0, from, len) } == 0;
        let is_taken = is_taken && occupied(file)? >= self.held_bytes + bytes;
        if is_taken {
            self.held_bytes += bytes;
        } else {
            // What a failed call has taken stays taken until it is cut off.
            file.set_len(self.held_bytes)?;
        }
        Ok(is_taken)
    }
}

fn occupied(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn it_holds_what_it_occupies_and_gives_it_back() {
        let dir = TempDir::new().unwrap();
        let mut reserve = Reserve::open(dir.path()).unwrap();
        assert_eq!((reserve.held_bytes(), reserve.shrink(1 << 20).unwrap()), (0, 0));
        assert!(reserve.grow(4 << 20).unwrap(), "tests need a file system that can set space aside");
        assert!(occupied(reserve.file.as_ref().unwrap()).unwrap() >= 4 << 20);
        assert_eq!(reserve.shrink(1).unwrap(), 1 << 20);
        drop(reserve);
        let mut reserve = Reserve::open(dir.path()).unwrap();
        assert_eq!(reserve.held_bytes(), 3 << 20);
        assert!(reserve.grow(1 << 20).unwrap());
        assert_eq!(reserve.shrink(u64::MAX).unwrap(), 4 << 20);
        assert_eq!(occupied(reserve.file.as_ref().unwrap()).unwrap(), 0);
    }

    #[test]
    fn a_copy_that_is_all_holes_holds_nothing() {
        let dir = TempDir::new().unwrap();
        File::create(dir.path().join(FILE)).unwrap().set_len(8 << 20).unwrap();
        let mut reserve = Reserve::open(dir.path()).unwrap();
        assert_eq!(reserve.held_bytes(), 0);
        assert!(reserve.grow(2 << 20).unwrap());
        assert_eq!(reserve.held_bytes(), 2 << 20);
    }

    #[test]
    fn what_cannot_be_had_is_not_taken_in_part() {
        let dir = TempDir::new().unwrap();
        let mut reserve = Reserve::open(dir.path()).unwrap();
        assert!(reserve.grow(1 << 20).unwrap());
        assert!(!reserve.grow(1 << 60).unwrap_or(false));
        assert_eq!(reserve.held_bytes(), 1 << 20);
        assert!(occupied(reserve.file.as_ref().unwrap()).unwrap() < 2 << 20);
    }
}

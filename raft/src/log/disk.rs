//! The file layer under the log: one flat directory of files with positional reads and writes. `RealDisk` is
//! the operating system's; the tests' `FaultyDisk` loses, tears and refuses.
//!
//! Nothing is durable before `DiskFile::sync` (content) and `Disk::sync_dir` (names), and the log relies on
//! nothing else.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A directory of files.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Names and lengths of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Creates a file that reads as `bytes` zeros. Its space is reserved where the system can do so. If that
    /// fails, nothing of the file remains.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file; `to` must not exist.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Those who have it open can still read it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// The name of the file in messages to the operator.
    fn path(&self, name: &str) -> PathBuf;
    /// How long the next sync takes in simulated time; the log of a simulated disk has tasks instead of
    /// threads. None for a disk that takes real time.
    fn simulated_sync(&self) -> Option<Duration> {
        None
    }
}

/// An open file. Concurrent calls are fine.
pub(crate) trait DiskFile: Send + Sync + 'static {
    /// Fills `buffer` from `offset`, or fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all content written so far durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the operating system. It is kept open, so that a sync of it never needs a descriptor.
pub(super) struct RealDisk {
    dir: PathBuf,
    opened: File,
}

impl RealDisk {
    /// Creates the directory if it is missing, durably.
    pub(super) fn new(dir: PathBuf) -> io::Result<RealDisk> {
        fs::create_dir_all(&dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let opened = File::open(&dir)?;
        Ok(RealDisk { dir, opened })
    }
}

/// Names and lengths of the files in a directory.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        let metadata = file.metadata()?;
        if let (true, Ok(name)) = (metadata.is_file(), file.file_name().into_string()) {
            files.push((name, metadata.len()));
        }
    }
    Ok(files)
}

/// Makes an empty file read as this many zeros.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call, and fallocate touches no memory.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => file.set_len(bytes),
        error => Err(error),
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        list(&self.dir)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        if let Err(error) = reserve(&file, bytes) {
            // If the file remains, the next attempt reports that.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.opened.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

//! The undo journal: what has to be put back to get what a disk holds of which nobody knows that it is durable.
//!
//! All of it is in files, which are opened and locked for every step: threads and processes need no other agreement,
//! and it goes on where a process that was killed has left it. A step holds the lock until what it notes has been
//! done, so that a sync never forgets the note of a write that it has not seen.

use std::{
    ffi::{CStr, CString},
    sync::atomic::Ordering,
};

use libc::c_int;

use crate::{
    Setup,
    format::{NAMES, RECORD_BYTES, Record, SYNCED, WRITE},
    real,
};

/// A file of the journal, locked while this lives.
pub(crate) struct Held(c_int);

impl Drop for Held {
    fn drop(&mut self) {
        real::close(self.0);
    }
}

impl Held {
    /// None if it cannot be opened: with `flags` without O_CREAT, most often because there is none.
    fn open(setup: &Setup, name: &str, flags: c_int) -> Option<Held> {
        let path = setup.journal_path(name);
        let flags = flags | libc::O_RDWR | libc::O_APPEND | libc::O_CLOEXEC;
        let fd = real::open(libc::AT_FDCWD, &path, flags, 0o600);
        (fd >= 0).then(|| {
            real::lock(fd);
            Held(fd)
        })
    }

    fn size(&self) -> u64 {
        real::stat(self.0).map_or(0, |stat| stat.st_size as u64)
    }

    fn append(&self, bytes: &[u8]) -> bool {
        // SAFETY: the slice is readable for its length.
        let written = unsafe { real::write(self.0, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written) == Ok(bytes.len())
    }
}

fn to_bytes(record: Record) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let fields = [record.kind, record.offset, record.len, record.saved, record.size];
    for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// Reads what `fd`'s file holds, also when `fd` is for writing only.
fn read(fd: c_int, bytes: &mut [u8], offset: u64) -> bool {
    let fill = |fd: c_int, bytes: &mut [u8]| {
        let mut done = 0;
        while done < bytes.len() {
            match real::pread(fd, &mut bytes[done..], offset + done as u64) {
                read if read > 0 => done += read as usize,
                _ => return false,
            }
        }
        true
    };
    if fill(fd, bytes) {
        return true;
    }
    let Ok(path) = CString::new(format!("/proc/self/fd/{fd}")) else { return false };
    let readable = real::open(libc::AT_FDCWD, &path, libc::O_RDONLY | libc::O_CLOEXEC, 0);
    if readable < 0 {
        return false;
    }
    let is_read = fill(readable, bytes);
    real::close(readable);
    is_read
}

/// Notes that `len` bytes from `offset` on are about to be written to `fd`'s file, or that its size changes. What is
/// given has to live until that is done.
pub(crate) fn note(setup: &Setup, fd: c_int, inode: u64, offset: u64, len: u64) -> Option<Held> {
    let held = Held::open(setup, &inode.to_string(), libc::O_CREAT);
    let size = real::stat(fd).map_or(0, |stat| stat.st_size as u64);
    let saved = size.min(offset.saturating_add(len)).saturating_sub(offset);
    let mut bytes = vec![0; RECORD_BYTES + saved as usize];
    bytes[..RECORD_BYTES].copy_from_slice(&to_bytes(Record { kind: WRITE, offset, len, saved, size }));
    let is_read = read(fd, &mut bytes[RECORD_BYTES..], offset);
    let is_noted = is_read && held.as_ref().is_some_and(|held| held.append(&bytes));
    let counter = if is_noted { &setup.control.journaled_bytes } else { &setup.control.unnoted };
    counter.fetch_add(if is_noted { saved } else { 1 }, Ordering::Relaxed);
    held
}

/// What the journal of a file says up to here. To be asked for before a sync, and given to `forget` after it.
pub(crate) fn mark(setup: &Setup, inode: &str) -> Option<u64> {
    Held::open(setup, inode, 0).map(|held| held.size())
}

/// Everything up to the mark is durable.
pub(crate) fn forget(setup: &Setup, inode: &str, mark: u64) {
    let Some(held) = Held::open(setup, inode, 0).filter(|_| mark > 0) else { return };
    if held.size() == mark {
        real::truncate(held.0, 0);
    } else if held.size() > mark {
        held.append(&to_bytes(Record { kind: SYNCED, offset: mark, ..Record::default() }));
    }
}

/// The files of the journal that are about contents.
pub(crate) fn inodes(setup: &Setup) -> Vec<String> {
    let entries = std::fs::read_dir(setup.journal_text()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

/// The journal of names, locked.
pub(crate) struct Names<'a> {
    setup: &'a Setup,
    held: Option<Held>,
}

impl Names<'_> {
    pub(crate) fn open(setup: &Setup) -> Names<'_> {
        Names { setup, held: Held::open(setup, NAMES, libc::O_CREAT) }
    }

    /// Notes what was done: a word and paths, without tabs and line ends.
    pub(crate) fn note(&self, words: &[&[u8]]) {
        let mut line = words.join(&b'\t');
        line.push(b'\n');
        if !self.held.as_ref().is_some_and(|held| held.append(&line)) {
            self.setup.control.unnoted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives a file a second name in the journal before its own is gone; `-` if it has none or is a directory.
    pub(crate) fn keep(&self, path: &CStr) -> String {
        let number = self.setup.control.kept.fetch_add(1, Ordering::Relaxed);
        let name = format!("kept-{number}");
        if real::link(path, &self.setup.journal_path(&name)) == 0 { name } else { "-".to_owned() }
    }
}

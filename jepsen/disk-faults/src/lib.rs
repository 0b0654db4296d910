//! A library for LD_PRELOAD that stands between a node and its disk: syncs take long, fail or lie, the disk is full,
//! and an undo journal tells what a power cut would lose. The harness gives orders in a mapped file (`format.rs`), and
//! puts back what was not synced while the node is down.
//!
//! Only files below the data directory are touched; everything else passes after one fstat. The functions put before
//! libc's are those that Rust's standard library calls, and their relatives. Files that are written through a mapping
//! are not seen.
//!
//! Nothing here keeps state in memory or holds a lock while it calls a library function that is put before libc's,
//! so threads, forks and calls from within need no care.

pub mod format;
mod journal;
mod names;
mod real;
mod space;
mod writes;

use std::{
    ffi::{CStr, CString, OsStr},
    os::unix::ffi::OsStrExt as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use libc::c_int;

use format::{CONTROL_VARIABLE, Control, DATA_VARIABLE, JOURNAL_VARIABLE};

/// What the harness has told by the environment.
pub(crate) struct Setup {
    control: &'static Control,
    data: Vec<u8>,
    journal: Vec<u8>,
}

/// None in a process that the harness has told nothing.
pub(crate) fn setup() -> Option<&'static Setup> {
    static SETUP: OnceLock<Option<Setup>> = OnceLock::new();
    SETUP.get_or_init(Setup::from_environment).as_ref()
}

fn variable(name: &str) -> Option<CString> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string; what getenv returns is one, and is copied before anybody can change it.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: as above.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_owned())
}

impl Setup {
    fn from_environment() -> Option<Setup> {
        let control = variable(CONTROL_VARIABLE)?;
        let (data, journal) = (variable(DATA_VARIABLE)?, variable(JOURNAL_VARIABLE)?);
        let fd = real::open(libc::AT_FDCWD, &control, libc::O_RDWR | libc::O_CLOEXEC, 0);
        if fd < 0 || real::stat(fd)?.st_size < size_of::<Control>() as i64 {
            return None;
        }
        let (len, rights) = (size_of::<Control>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping of a file that is long enough, which nobody shortens.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, fd, 0) };
        real::close(fd);
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: mapped for good, page-aligned, and made of atomics only.
        let control: &'static Control = unsafe { &*at.cast::<Control>() };
        control.loaded.fetch_add(1, Ordering::Relaxed);
        Some(Setup { control, data: data.into_bytes(), journal: journal.into_bytes() })
    }

    fn journal_text(&self) -> &OsStr {
        OsStr::from_bytes(&self.journal)
    }

    /// The path of one of the journal's files.
    fn journal_path(&self, name: &str) -> CString {
        CString::new([&self.journal[..], b"/", name.as_bytes()].concat()).unwrap_or_default()
    }

    /// Whether a path is the data directory or below it.
    fn is_data(&self, path: &[u8]) -> bool {
        path.strip_prefix(&self.data[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// The path of a descriptor, if it is data that has a name.
    fn data_path(&self, fd: c_int) -> Option<Vec<u8>> {
        let link = CString::new(format!("/proc/self/fd/{fd}")).ok()?;
        let mut buffer = [0; 4096];
        let path = real::read_link(&link, &mut buffer);
        (self.is_data(path) && !path.ends_with(b" (deleted)")).then(|| path.to_vec())
    }

    /// A number from `least` to `most`.
    fn between(&self, least: u64, most: u64) -> u64 {
        let mut mixed = self.control.dice.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + (mixed ^ (mixed >> 31)) % (most.saturating_sub(least) + 1)
    }
}

/// One more.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a function of libc returns when it fails with `error`.
fn fail(error: c_int) -> c_int {
    real::set_errno(error);
    -1
}

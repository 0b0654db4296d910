//! Contents: writes, sizes and syncs.

use std::{sync::atomic::Ordering, time::Duration};

use libc::{c_int, c_void, off64_t, size_t, ssize_t};

use crate::{
    Setup, count, fail,
    format::{FULL, FULL_GROWTH, LOG, PAGES},
    journal, real, setup,
};

/// A regular file of the data directory.
struct DataFile {
    setup: &'static Setup,
    fd: c_int,
    inode: u64,
    size: u64,
}

impl DataFile {
    fn of(fd: c_int) -> Option<DataFile> {
        let setup = setup()?;
        let stat = real::stat(fd).filter(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)?;
        setup.data_path(fd)?;
        Some(DataFile { setup, fd, inode: stat.st_ino, size: stat.st_size as u64 })
    }

    /// Whether the disk is full for a write, which may need more space.
    fn is_refused(&self, grows: bool) -> bool {
        let is_refused = match self.setup.control.full.load(Ordering::Relaxed) {
            FULL => true,
            FULL_GROWTH => grows,
            _ => false,
        };
        if is_refused {
            count(&self.setup.control.refused);
        }
        is_refused
    }

    fn note(&self, offset: u64, len: u64) -> Option<journal::Held> {
        journal::note(self.setup, self.fd, self.inode, offset, len)
    }
}

fn write_with(
    fd: c_int,
    len: size_t,
    offset: Option<off64_t>,
    real_write: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let Some(file) = DataFile::of(fd) else { return real_write() };
    let place = || if real::appends(fd) { file.size } else { real::position(fd) as u64 };
    let offset = offset.map_or_else(place, |offset| offset as u64);
    if file.is_refused(offset + len as u64 > file.size) {
        return fail(libc::ENOSPC) as ssize_t;
    }
    let _held = file.note(offset, len as u64);
    real_write()
}

/// # Safety
/// `parts` are `count` readable parts.
unsafe fn bytes_of(parts: *const libc::iovec, count: c_int) -> size_t {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: as the caller promises.
    (0..count).map(|at| unsafe { (*parts.add(at)).iov_len }).sum()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller keeps write's contract.
    write_with(fd, len, None, || unsafe { real::write(fd, bytes, len) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller keeps writev's contract.
    write_with(fd, unsafe { bytes_of(parts, count) }, None, || unsafe { real::writev(fd, parts, count) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, len: size_t, offset: off64_t) -> ssize_t {
    // SAFETY: the caller keeps pwrite's contract.
    write_with(fd, len, Some(offset), || unsafe { real::pwrite(fd, bytes, len, offset) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, offset: off64_t) -> ssize_t {
    // SAFETY: the caller keeps pwrite's contract.
    unsafe { pwrite64(fd, bytes, len, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64(
    fd: c_int,
    parts: *const libc::iovec,
    count: c_int,
    offset: off64_t,
) -> ssize_t {
    // SAFETY: the caller keeps pwritev's contract.
    let (len, real_write) = unsafe { (bytes_of(parts, count), || real::pwritev(fd, parts, count, offset)) };
    write_with(fd, len, Some(offset), real_write)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev(fd: c_int, parts: *const libc::iovec, count: c_int, offset: off64_t) -> ssize_t {
    // SAFETY: the caller keeps pwritev's contract.
    unsafe { pwritev64(fd, parts, count, offset) }
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(fd: c_int, size: off64_t) -> c_int {
    let Some(file) = DataFile::of(fd) else { return real::truncate(fd, size) };
    let new = size.max(0) as u64;
    if file.is_refused(new > file.size) {
        return fail(libc::ENOSPC);
    }
    // What is cut off is kept like what is overwritten.
    let _held = file.note(new, file.size.saturating_sub(new));
    real::truncate(fd, size)
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate(fd: c_int, size: off64_t) -> c_int {
    ftruncate64(fd, size)
}

#[unsafe(no_mangle)]
extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    let Some(file) = DataFile::of(fd) else { return real::allocate(fd, mode, offset, len) };
    if file.is_refused(mode == 0) {
        return fail(libc::ENOSPC);
    }
    // A reservation changes the size alone; other modes change content.
    let changed = if mode == 0 { 0 } else { len.max(0) as u64 };
    let _held = file.note(offset.max(0) as u64, changed);
    real::allocate(fd, mode, offset, len)
}

#[unsafe(no_mangle)]
extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    fallocate64(fd, mode, offset, len)
}

/// Whether the next sync is to fail, if it is of this file. Counts it.
fn fails(setup: &Setup, path: &[u8]) -> bool {
    let control = setup.control;
    if control.failing_syncs.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let inside = &path[setup.data.len()..];
    let is_meant = match control.failing_where.load(Ordering::Relaxed) {
        LOG => inside.starts_with(b"/log/") && inside.ends_with(b".log"),
        PAGES => inside.starts_with(b"/pages/"),
        _ => false,
    };
    let take = |left: u64| left.checked_sub(1);
    let taken =
        is_meant && control.failing_syncs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
    if taken {
        count(&control.failed);
    }
    taken
}

fn sync_with(fd: c_int, is_data_only: bool) -> c_int {
    let Some(setup) = setup() else { return real::sync(fd, is_data_only) };
    let kind = real::stat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    let is_file = kind == libc::S_IFREG || kind == libc::S_IFDIR;
    let Some(path) = is_file.then(|| setup.data_path(fd)).flatten() else {
        return real::sync(fd, is_data_only);
    };
    let control = setup.control;
    let most = control.slow_ms_max.load(Ordering::Relaxed);
    if most > 0 {
        count(&control.delayed);
        let ms = setup.between(control.slow_ms_min.load(Ordering::Relaxed), most);
        std::thread::sleep(Duration::from_millis(ms));
    }
    if fails(setup, &path) {
        return fail(libc::EIO);
    }
    if control.lying.load(Ordering::Relaxed) != 0 {
        count(&control.lied);
        return 0;
    }
    count(&control.syncs);
    if kind == libc::S_IFDIR {
        let names = journal::Names::open(setup);
        let result = real::sync(fd, is_data_only);
        if result == 0 {
            names.note(&[b"sync", &path]);
        }
        return result;
    }
    let inode = real::stat(fd).map_or(0, |stat| stat.st_ino).to_string();
    let mark = journal::mark(setup, &inode);
    let result = real::sync(fd, is_data_only);
    if let (0, Some(mark)) = (result, mark) {
        journal::forget(setup, &inode, mark);
    }
    result
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync_with(fd, false)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync_with(fd, true)
}

/// All files: sled runs the program of this name, which inherits the environment.
#[unsafe(no_mangle)]
extern "C" fn sync() {
    let Some(setup) = setup().filter(|setup| setup.control.lying.load(Ordering::Relaxed) == 0) else {
        return real::sync_all();
    };
    let names = journal::Names::open(setup);
    let marks: Vec<_> = journal::inodes(setup)
        .into_iter()
        .filter_map(|inode| Some((journal::mark(setup, &inode)?, inode)))
        .collect();
    real::sync_all();
    marks.iter().for_each(|(mark, inode)| journal::forget(setup, inode, *mark));
    names.note(&[b"sync", b"*"]);
}

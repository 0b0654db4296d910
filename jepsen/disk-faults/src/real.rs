//! The system calls themselves, past every library function: so nothing here comes back to the functions that
//! this library puts before libc's. All of them set errno.

use std::ffi::CStr;

use libc::{c_int, c_long, c_void, mode_t, off64_t, size_t, ssize_t};

pub(crate) fn open(dir: c_int, path: &CStr, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the path is a C string for the whole call.
    unsafe { libc::syscall(libc::SYS_openat, dir, path.as_ptr(), flags, mode) as c_int }
}

pub(crate) fn close(fd: c_int) {
    // SAFETY: closing touches no memory. Nothing can be done about an error.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// # Safety
/// `bytes` are `len` readable bytes.
pub(crate) unsafe fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_write, fd, bytes, len) as ssize_t }
}

/// # Safety
/// `bytes` are `len` readable bytes.
pub(crate) unsafe fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, offset: off64_t) -> ssize_t {
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, len, offset) as ssize_t }
}

/// # Safety
/// `parts` are `count` readable parts.
pub(crate) unsafe fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t {
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) as ssize_t }
}

/// # Safety
/// `parts` are `count` readable parts.
pub(crate) unsafe fn pwritev(fd: c_int, parts: *const libc::iovec, count: c_int, offset: off64_t) -> ssize_t {
    // SAFETY: as the caller promises. The offset's upper half is a number of its own, which a 64-bit kernel ignores.
    unsafe { libc::syscall(libc::SYS_pwritev, fd, parts, count, offset, 0 as c_long) as ssize_t }
}

/// Reads up to `bytes.len()` bytes; gives how many, or -1.
pub(crate) fn pread(fd: c_int, bytes: &mut [u8], offset: u64) -> isize {
    let offset = offset as off64_t;
    // SAFETY: the buffer is writable for its length.
    unsafe { libc::syscall(libc::SYS_pread64, fd, bytes.as_mut_ptr(), bytes.len(), offset) as isize }
}

pub(crate) fn sync(fd: c_int, is_data_only: bool) -> c_int {
    let number = if is_data_only { libc::SYS_fdatasync } else { libc::SYS_fsync };
    // SAFETY: touches no memory.
    unsafe { libc::syscall(number, fd) as c_int }
}

pub(crate) fn sync_all() {
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_sync) };
}

pub(crate) fn truncate(fd: c_int, size: off64_t) -> c_int {
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, size) as c_int }
}

pub(crate) fn allocate(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, len) as c_int }
}

pub(crate) fn rename(from_dir: c_int, from: &CStr, to_dir: c_int, to: &CStr, flags: u32) -> c_int {
    // SAFETY: the paths are C strings for the whole call.
    unsafe {
        libc::syscall(libc::SYS_renameat2, from_dir, from.as_ptr(), to_dir, to.as_ptr(), flags) as c_int
    }
}

pub(crate) fn unlink(dir: c_int, path: &CStr, flags: c_int) -> c_int {
    // SAFETY: the path is a C string for the whole call.
    unsafe { libc::syscall(libc::SYS_unlinkat, dir, path.as_ptr(), flags) as c_int }
}

pub(crate) fn make_dir(dir: c_int, path: &CStr, mode: mode_t) -> c_int {
    // SAFETY: the path is a C string for the whole call.
    unsafe { libc::syscall(libc::SYS_mkdirat, dir, path.as_ptr(), mode) as c_int }
}

/// A second name for a file.
pub(crate) fn link(path: &CStr, name: &CStr) -> c_int {
    let here = libc::AT_FDCWD;
    // SAFETY: the paths are C strings for the whole call.
    unsafe { libc::syscall(libc::SYS_linkat, here, path.as_ptr(), here, name.as_ptr(), 0) as c_int }
}

pub(crate) fn lock(fd: c_int) {
    // SAFETY: touches no memory. It is released when the descriptor is closed.
    unsafe { libc::syscall(libc::SYS_flock, fd, libc::LOCK_EX) };
}

/// The target of a symbolic link, in `buffer`; empty if it is none or too long.
pub(crate) fn read_link<'a>(path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let (at, len) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the path is a C string and the buffer writable, for the whole call.
    let read = unsafe { libc::syscall(libc::SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), at, len) };
    match usize::try_from(read) {
        Ok(read) if read < len => &buffer[..read],
        _ => &[],
    }
}

/// What a descriptor is; None if it is none.
pub(crate) fn stat(fd: c_int) -> Option<libc::stat> {
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: fstat fills the struct when it returns 0.
    unsafe { (libc::fstat(fd, stat.as_mut_ptr()) == 0).then(|| stat.assume_init()) }
}

/// The file system that has a path; None if that cannot be told.
pub(crate) fn file_system(path: &CStr) -> Option<libc::statfs> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a C string for the whole call; statfs fills the struct when it returns 0.
    unsafe {
        (libc::syscall(libc::SYS_statfs, path.as_ptr(), stat.as_mut_ptr()) == 0).then(|| stat.assume_init())
    }
}

pub(crate) fn exists(dir: c_int, path: &CStr) -> bool {
    // SAFETY: the path is a C string for the whole call.
    unsafe { libc::syscall(libc::SYS_faccessat, dir, path.as_ptr(), libc::F_OK) == 0 }
}

/// Where the next `write` goes, if the file is not opened for appending.
pub(crate) fn position(fd: c_int) -> off64_t {
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_lseek, fd, 0 as off64_t, libc::SEEK_CUR) as off64_t }
}

pub(crate) fn appends(fd: c_int) -> bool {
    // SAFETY: touches no memory.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFL) };
    flags >= 0 && flags & c_long::from(libc::O_APPEND) != 0
}

pub(crate) fn set_errno(error: c_int) {
    // SAFETY: errno's address is valid for the thread's life.
    unsafe { *libc::__errno_location() = error };
}

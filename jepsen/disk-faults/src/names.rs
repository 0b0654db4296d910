//! Names: files and directories that are created, renamed and removed.

use std::{
    ffi::{CStr, CString},
    sync::atomic::Ordering,
};

use libc::{c_char, c_int, c_uint, mode_t};

use crate::{Setup, count, fail, journal, journal::Names, real, setup};

const HERE: c_int = libc::AT_FDCWD;

/// The absolute path of a name, if that is data.
fn data_path(dir: c_int, name: &CStr) -> Option<(&'static Setup, CString)> {
    let setup = setup()?;
    let name = name.to_bytes();
    let path = if name.starts_with(b"/") {
        name.to_vec()
    } else {
        let place = if dir == HERE { "/proc/self/cwd".to_owned() } else { format!("/proc/self/fd/{dir}") };
        let place = CString::new(place).ok()?;
        let mut buffer = [0; 4096];
        [real::read_link(&place, &mut buffer), b"/", name].concat()
    };
    let is_data = setup.is_data(&path) && path != setup.data;
    if is_data { CString::new(path).ok().map(|path| (setup, path)) } else { None }
}

/// # Safety
/// `name` is a C string.
unsafe fn open_with(dir: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as the caller promises.
    let name = unsafe { CStr::from_ptr(name) };
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let Some((setup, path)) = changes.then(|| data_path(dir, name)).flatten() else {
        return real::open(dir, name, flags, mode);
    };
    let names = Names::open(setup);
    if real::exists(dir, name) {
        let fd = real::open(dir, name, flags & !libc::O_TRUNC, mode);
        let cuts = fd >= 0 && flags & libc::O_TRUNC != 0;
        if let Some(stat) = cuts.then(|| real::stat(fd)).flatten() {
            let _held = journal::note(setup, fd, stat.st_ino, 0, stat.st_size as u64);
            real::truncate(fd, 0);
        }
        return fd;
    }
    if flags & libc::O_CREAT != 0 && setup.control.full.load(Ordering::Relaxed) != 0 {
        count(&setup.control.refused);
        return fail(libc::ENOSPC);
    }
    let fd = real::open(dir, name, flags, mode);
    if fd >= 0 {
        names.note(&[b"create", path.as_bytes()]);
    }
    fd
}

// open is variadic. A mode that is not given is a number that nobody looks at, as it is for libc's own.

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps open's contract.
    unsafe { open_with(HERE, name, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps open's contract.
    unsafe { open_with(HERE, name, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(dir: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps openat's contract.
    unsafe { open_with(dir, name, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(dir: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps openat's contract.
    unsafe { open_with(dir, name, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat2(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller keeps rename's contract.
    let (from, to) = unsafe { (CStr::from_ptr(from), CStr::from_ptr(to)) };
    let (Some((setup, old)), Some((_, new))) = (data_path(from_dir, from), data_path(to_dir, to)) else {
        return real::rename(from_dir, from, to_dir, to, flags);
    };
    let names = Names::open(setup);
    let kept = names.keep(&new);
    let result = real::rename(from_dir, from, to_dir, to, flags);
    if result == 0 {
        names.note(&[b"rename", old.as_bytes(), new.as_bytes(), kept.as_bytes()]);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: the caller keeps rename's contract.
    unsafe { renameat2(from_dir, from, to_dir, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller keeps rename's contract.
    unsafe { renameat2(HERE, from, HERE, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(dir: c_int, name: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller keeps unlink's contract.
    let name = unsafe { CStr::from_ptr(name) };
    let Some((setup, path)) = data_path(dir, name) else { return real::unlink(dir, name, flags) };
    let names = Names::open(setup);
    if flags & libc::AT_REMOVEDIR != 0 {
        let result = real::unlink(dir, name, flags);
        if result == 0 {
            names.note(&[b"rmdir", path.as_bytes()]);
        }
        return result;
    }
    let kept = names.keep(&path);
    let result = real::unlink(dir, name, flags);
    if result == 0 {
        names.note(&[b"unlink", path.as_bytes(), kept.as_bytes()]);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    // SAFETY: the caller keeps unlink's contract.
    unsafe { unlinkat(HERE, name, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(name: *const c_char) -> c_int {
    // SAFETY: the caller keeps rmdir's contract.
    unsafe { unlinkat(HERE, name, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(dir: c_int, name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps mkdir's contract.
    let name = unsafe { CStr::from_ptr(name) };
    let Some((setup, path)) = data_path(dir, name) else { return real::make_dir(dir, name, mode) };
    let names = Names::open(setup);
    let result = real::make_dir(dir, name, mode);
    if result == 0 {
        names.note(&[b"mkdir", path.as_bytes()]);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps mkdir's contract.
    unsafe { mkdirat(HERE, name, mode) }
}

//! How much space is free: none, while the disk is full by order.

use std::{ffi::CStr, sync::atomic::Ordering};

use libc::{c_char, c_int};

use crate::{real, setup};

/// Whether the file system of a path is full by order.
fn is_full(path: &CStr) -> bool {
    setup().is_some_and(|setup| {
        setup.control.full.load(Ordering::Relaxed) != 0 && setup.is_data(path.to_bytes())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs(path: *const c_char, stat: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller keeps statvfs's contract: a C string, and room for what is written.
    let (path, stat) = unsafe { (CStr::from_ptr(path), &mut *stat) };
    let Some(real) = real::file_system(path) else { return -1 };
    // SAFETY: made of numbers alone, for which zeros are fine.
    *stat = unsafe { std::mem::zeroed() };
    let free = if is_full(path) { 0 } else { u64::MAX };
    stat.f_bsize = real.f_bsize as u64;
    stat.f_frsize = real.f_frsize as u64;
    stat.f_blocks = real.f_blocks;
    stat.f_bfree = real.f_bfree.min(free);
    stat.f_bavail = real.f_bavail.min(free);
    stat.f_files = real.f_files;
    stat.f_ffree = real.f_ffree;
    stat.f_favail = real.f_ffree;
    stat.f_namemax = real.f_namelen as u64;
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs64(path: *const c_char, stat: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller keeps statvfs's contract; with 64 bits both structs are the same.
    unsafe { statvfs(path, stat) }
}

//! The system's entropy, which comes from the seed in a process that simulates: the keys of hash tables, and from them
//! tokio's own chance. Everywhere else it is the system's.

use std::sync::atomic::{AtomicU64, Ordering};

/// 0 for the system's.
static SEED: AtomicU64 = AtomicU64::new(0);
/// How often it was asked, so that no two answers are the same.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// From now on, in the whole process.
pub(super) fn comes_from(seed: u64) {
    SEED.store(seed.wrapping_mul(2) | 1, Ordering::Relaxed);
}

/// Takes the place of libc's function, which std names weakly for this purpose.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    let seed = SEED.load(Ordering::Relaxed);
    if seed == 0 {
        // SAFETY: the arguments are those of getrandom(2), as the caller gave them.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize };
    }
    // SAFETY: the caller gives a buffer of `len` bytes to write to.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, len) };
    fastrand::Rng::with_seed(seed ^ CALLS.fetch_add(1, Ordering::Relaxed).rotate_right(16)).fill(bytes);
    isize::try_from(len).unwrap_or(isize::MAX)
}

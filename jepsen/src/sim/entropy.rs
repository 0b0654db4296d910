//! The system's entropy, which is derived from the seed in a simulating process: the keys of hash tables, and
//! from them tokio's randomness. In other processes it is the system's.

use std::sync::atomic::{AtomicU64, Ordering};

/// 0 for the system's entropy.
static SEED: AtomicU64 = AtomicU64::new(0);
/// The number of calls, so that no two results are equal.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Derives all entropy of this process from `seed` from now on.
pub(super) fn comes_from(seed: u64) {
    SEED.store(seed.wrapping_mul(2) | 1, Ordering::Relaxed);
}

/// Replaces libc's function, to which std refers by a weak symbol for this purpose.
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

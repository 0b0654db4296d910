//! Sizes that are constants in a server. A simulation makes them small, so that few bytes reach what
//! otherwise takes many. In a process that turns none, all have their usual values.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A constant that can be turned. Zero stands for its usual value.
#[derive(Debug)]
pub struct Knob(AtomicUsize);

impl Knob {
    const fn new() -> Knob {
        Knob(AtomicUsize::new(0))
    }

    /// Sets another value, in this process and for good; zero for the usual one.
    pub fn turn(&self, value: usize) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it was turned to, or else its usual value.
    pub fn or(&self, usual: usize) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => usual,
            turned => turned,
        }
    }
}

/// Page bytes in one frame of a snapshot.
pub static SNAPSHOT_CHUNK_BYTES: Knob = Knob::new();
/// How many bits of the store's hash of keys and elements count; see [`cut_hash`].
pub static HASH_BITS: Knob = Knob::new();
/// How many elements a packed form has at most.
pub static PACKED_MAX: Knob = Knob::new();
/// How many items a page of keys or elements has before it is split.
pub static PAGE_ITEMS_MAX: Knob = Knob::new();
/// How many bytes a page of a list has at most.
pub static LIST_PAGE_BYTES_MAX: Knob = Knob::new();

/// What is left of a hash: with few bits, equal hashes are common, which otherwise are rare by chance and
/// common under attack. The highest bits stay, which order pages and cursors.
pub fn cut_hash(hash: u64) -> u64 {
    match HASH_BITS.or(64) {
        bits @ 1..64 => hash >> (64 - bits) << (64 - bits),
        _ => hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_that_is_cut_keeps_its_highest_bits() {
        assert_eq!(cut_hash(u64::MAX), u64::MAX);
        HASH_BITS.turn(4);
        assert_eq!(cut_hash(u64::MAX), 0xf << 60);
        assert_eq!(cut_hash(0x1234 << 48), 1 << 60);
        HASH_BITS.turn(0);
        assert_eq!(cut_hash(7), 7);
    }
}

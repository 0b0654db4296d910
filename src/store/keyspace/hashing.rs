//! The two hashes of a key: its slot, as defined by Redis Cluster, and the hash that orders keys within a
//! slot. Both are part of page ids on disk, so neither may ever change.

use std::fmt;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64;

use crate::store::{knobs, level};

/// The number of hash slots.
pub const SLOTS: usize = 16384;

const CRC16: [u16; 256] = crc16_table();

const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// The hash slot of a key, as Redis Cluster computes it: CRC16/XMODEM of the key, or of its hash tag, the
/// text between the first `{` and the next `}`, if that is not empty.
pub fn slot_of(key: &[u8]) -> u16 {
    let crc = hash_tag(key)
        .iter()
        .fold(0u16, |crc, &byte| crc << 8 ^ CRC16[usize::from(crc >> 8) ^ usize::from(byte)]);
    crc & (SLOTS as u16 - 1)
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    match key[open + 1..].iter().position(|&byte| byte == b'}') {
        None | Some(0) => key,
        Some(len) => &key[open + 1..open + 1 + len],
    }
}

/// The unkeyed hash: XXH3, 64 bits, without a seed.
#[inline]
pub fn hash_of(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The hash that orders keys within a slot, and items in a table. It is the same throughout a state.
///
/// With the cluster's key it is SipHash-1-3, and nobody can choose names that collide, although cursors
/// reveal hashes. Without a key it is XXH3, whose collisions are known: everything ordered by hash must
/// tolerate them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Hashing {
    /// The key; zeros mean none.
    halves: [u64; 2],
}

impl Hashing {
    /// Without a key.
    pub const PLAIN: Hashing = Hashing { halves: [0; 2] };

    /// With a key.
    pub fn keyed(key: [u8; 16]) -> Hashing {
        let (first, second) = key.split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight of sixteen bytes"));
        Hashing { halves: [half(first), half(second)] }
    }

    /// The key, if there is one.
    pub fn key(&self) -> Option<[u8; 16]> {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.halves[0].to_le_bytes());
        key[8..].copy_from_slice(&self.halves[1].to_le_bytes());
        (*self != Hashing::PLAIN).then_some(key)
    }

    /// The hash of a key or item.
    #[inline]
    pub fn of(&self, key: &[u8]) -> u64 {
        let hash = match self.halves {
            [0, 0] => hash_of(key),
            [first, second] => SipHasher13::new_with_keys(first, second).hash(key),
        };
        knobs::cut_hash(hash)
    }
}

impl fmt::Debug for Hashing {
    /// Keeps the key secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Hashing::PLAIN { "Hashing(plain)" } else { "Hashing(keyed)" })
    }
}

/// A random sequence determined by a seed: SplitMix64. It carries the level, which determines how items are
/// chosen.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
    level: u32,
}

impl Chance {
    /// The sequence of `seed`, with choices by the rules of the highest level.
    pub fn new(seed: u64) -> Chance {
        Chance::at_level(seed, level::LEVEL_MAX)
    }

    /// The sequence of `seed`, in an entry of this level.
    pub fn at_level(seed: u64, level: u32) -> Chance {
        Chance { state: seed, level }
    }

    /// Whether every item must be equally likely to be chosen, whatever the hashes are.
    pub fn is_even(&self) -> bool {
        self.level >= level::BOUNDED
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{Hashing, hash_of, slot_of};

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{foo}.bar"), slot_of(b"foo"));
        assert_eq!(slot_of(b"a{foo}{bar}"), slot_of(b"foo"));
        assert_ne!(slot_of(b"{}foo"), slot_of(b"foo"));
        assert_eq!(slot_of(b""), 0);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash_of(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(Hashing::PLAIN.of(b""), hash_of(b""));
        let key: [u8; 16] = std::array::from_fn(|byte| byte as u8);
        assert_eq!(Hashing::keyed(key).of(b""), 0xabac_0158_050f_c4dc);
        assert_eq!(Hashing::keyed(key).key(), Some(key));
        assert_eq!(Hashing::PLAIN.key(), None);
    }
}

//! The two hashes of a key: its slot, which Redis Cluster defines, and the hash that orders keys in a slot.
//! Both stand in page ids on disk, so neither may ever change.

use xxhash_rust::xxh3::xxh3_64;

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

/// The hash slot of a key, as Redis Cluster computes it: CRC16/XMODEM of the key, or of what stands between
/// its first `{` and the next `}` if that is not empty.
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

/// The hash that orders keys in a slot, and items in a table: XXH3, 64 bits, without a seed.
#[inline]
pub fn hash_of(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// A sequence of chance from one seed: SplitMix64. Whoever starts with the same seed sees the same sequence.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// A sequence that `seed` determines.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
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
    use super::{hash_of, slot_of};

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
    }
}

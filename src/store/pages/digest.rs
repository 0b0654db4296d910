//! A digest of content: equal (collisions aside) if and only if the same keys have the same values, deadlines
//! and versions. Independent of page boundaries, of page marks and of the history of the content.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The accumulator.
#[derive(Default)]
pub struct Digest(Xxh3);

impl Digest {
    /// Feeds a number.
    pub fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    /// Feeds bytes and their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Feeds elements whose order does not matter. Each is one slice; if it is made of several parts, they
    /// must be joined unambiguously.
    pub fn unordered<B: AsRef<[u8]>>(&mut self, elements: impl Iterator<Item = B>) {
        let (count, sum) = elements.fold((0u64, 0u128), |(count, sum), element| {
            (count + 1, sum.wrapping_add(xxh3_128(element.as_ref())))
        });
        self.number(count);
        self.0.update(&sum.to_le_bytes());
    }

    /// The digest of everything that was fed.
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

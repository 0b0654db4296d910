//! A digest of content: equal if and only if (but for chance) the same keys hold the same values, deadlines
//! and versions. Independent of page boundaries, of page marks and of the history that led to the content.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// What content is fed to.
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

    /// Feeds elements whose order means nothing. Each is one slice; join what belongs together with care that
    /// the parts cannot be confused.
    pub fn unordered<B: AsRef<[u8]>>(&mut self, elements: impl Iterator<Item = B>) {
        let (count, sum) = elements.fold((0u64, 0u128), |(count, sum), element| {
            (count + 1, sum.wrapping_add(xxh3_128(element.as_ref())))
        });
        self.number(count);
        self.0.update(&sum.to_le_bytes());
    }

    /// The digest of all that was fed.
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

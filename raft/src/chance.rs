//! Random bytes that nobody can guess and that no two processes share, from the operating system. A generator
//! seeded by time and thread would give the clones of one virtual machine the same ids.

use crate::Entropy;

/// 16 bytes.
pub fn entropy() -> Entropy {
    let mut bytes = Entropy::default();
    fill(&mut bytes);
    bytes
}

/// A number that identifies something for as long as it lives.
pub fn id() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Through libc's function, which a simulation replaces with its own.
fn fill(bytes: &mut [u8]) {
    // SAFETY: the pointer and the length are those of a slice that may be written to.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole, and only a kernel older than 3.17 has none.
    assert_eq!(usize::try_from(filled), Ok(bytes.len()), "the system has no random bytes");
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_the_same() {
        assert_ne!(super::entropy(), super::entropy());
        assert_ne!(super::id(), super::id());
    }
}

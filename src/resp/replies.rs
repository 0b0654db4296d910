//! The buffer of encoded replies on its way to a client. It may have a limit, which holds while a reply grows.

use std::ops::Deref;

/// A reply that is larger than this makes the buffer grow by no more than a quarter of its size beyond what it
/// needs: doubling would take twice the limit.
const LARGE_BYTES: usize = 1 << 20;

/// Encoded replies.
///
/// Invariants:
/// - `bytes` is never longer than `bytes_max`.
/// - Once it is over its limit it is empty, and stays so: the client cannot be told anything any more.
#[derive(Debug)]
pub struct Replies {
    bytes: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Default for Replies {
    fn default() -> Replies {
        Replies::within(usize::MAX)
    }
}

impl Replies {
    /// An empty buffer with a limit.
    pub fn within(bytes_max: usize) -> Replies {
        Replies { bytes: Vec::new(), bytes_max, is_over: false }
    }

    /// Changes the limit for what is written from here on.
    pub fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// An empty buffer with the same limit, in whose place this one stays.
    pub fn take(&mut self) -> Replies {
        let empty = Replies::within(self.bytes_max);
        std::mem::replace(self, empty)
    }

    /// Whether a reply was given up because it would have passed the limit.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Appends `len` bytes that `write` writes. False if that would pass the limit: then all is given up.
    pub(super) fn write(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let end = self.bytes.len().saturating_add(len);
        if self.is_over || end > self.bytes_max {
            (self.bytes, self.is_over) = (Vec::new(), true);
            return false;
        }
        if len > LARGE_BYTES && end > self.bytes.capacity() {
            self.bytes.reserve_exact(len + end / 4);
        }
        write(&mut self.bytes);
        true
    }

    /// Appends encoded bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.write(bytes.len(), |out| out.extend_from_slice(bytes));
    }

    /// Appends what was written to another buffer; what was given up there is given up here.
    pub fn append(&mut self, other: &Replies) {
        if other.is_over {
            (self.bytes, self.is_over) = (Vec::new(), true);
        } else {
            self.extend_from_slice(other);
        }
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Empties the buffer, and frees it if it is larger than this.
    pub fn clear(&mut self, kept_bytes_max: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > kept_bytes_max {
            self.bytes = Vec::new();
        }
    }

    /// The bytes alone.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl From<Vec<u8>> for Replies {
    fn from(bytes: Vec<u8>) -> Replies {
        Replies { bytes, ..Replies::default() }
    }
}

impl Deref for Replies {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Replies;
    use crate::resp::{Protocol, Reply};

    #[test]
    fn a_reply_that_passes_the_limit_is_given_up_while_it_grows() {
        let mut reply = Reply::new(Replies::within(1000), Protocol::Resp2);
        reply.array(400);
        let value = [b'x'; 300];
        (0..3).for_each(|_| reply.bulk(&value));
        assert!(reply.is_on() && !reply.buffer().is_over());
        (0..397).for_each(|_| reply.bulk(&value));
        // Nothing is kept, and nothing more is made.
        assert!(!reply.is_on());
        reply.ok();
        let mut replies = reply.into_buffer();
        assert!(replies.is_over() && replies.is_empty());
        replies.extend_from_slice(b"x");
        assert!(replies.is_empty());
        let again = Reply::new(replies, Protocol::Resp2);
        assert!(!again.is_on());
    }

    #[test]
    fn a_large_buffer_does_not_double() {
        let mut replies = Replies::within(64 << 20);
        let value = vec![b'x'; 4 << 20];
        (0..15).for_each(|_| replies.extend_from_slice(&value));
        assert_eq!(replies.len(), 60 << 20);
        assert!(replies.bytes.capacity() < 80 << 20);
        replies.clear(1000);
        assert_eq!((replies.len(), replies.bytes.capacity()), (0, 0));
    }
}

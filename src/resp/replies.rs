//! The encoded replies on their way to a client. They may have a limit, which holds while a reply grows.
//!
//! Small replies are written into one buffer, one behind the other. A long value is not copied: it stands between two
//! buffers, as a piece that is shared with whoever made it.

use std::collections::VecDeque;

use bytes::Bytes;

/// A buffer that has reached this size is put aside when it is full, and another one is begun: to grow, it would have to
/// be copied, and would take twice its size meanwhile.
const BUFFER_BYTES: usize = 1 << 20;

/// A value is shared from this length on. Below it, a copy is cheaper.
pub const SHARED_BYTES_MIN: usize = 64 << 10;

/// Encoded replies.
///
/// Invariants:
/// - They are the bytes of `pieces`, none of which is empty, and then those of `tail`.
/// - There are never more of them than `bytes_max`.
/// - A line of the protocol is in one piece.
/// - Once they are over their limit they are empty, and stay so: the client cannot be told anything any more.
#[derive(Debug)]
pub struct Replies {
    pub(super) pieces: VecDeque<Bytes>,
    /// The length of `pieces` together.
    pieces_bytes: usize,
    tail: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Default for Replies {
    fn default() -> Replies {
        Replies::within(usize::MAX)
    }
}

impl Replies {
    /// None yet, with a limit.
    pub fn within(bytes_max: usize) -> Replies {
        Replies { pieces: VecDeque::new(), pieces_bytes: 0, tail: Vec::new(), bytes_max, is_over: false }
    }

    /// Changes the limit for what is written from here on.
    pub fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The limit.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Leaves none behind, with the same limit.
    pub fn take(&mut self) -> Replies {
        let empty = Replies::within(self.bytes_max);
        std::mem::replace(self, empty)
    }

    /// Whether a reply was given up because it would have passed the limit.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The number of bytes. Shared ones count like others.
    #[inline]
    pub fn len(&self) -> usize {
        self.pieces_bytes + self.tail.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether so many bytes more are within the limit. If not, all is given up.
    #[inline]
    fn admits(&mut self, len: usize) -> bool {
        if self.is_over || self.len().saturating_add(len) > self.bytes_max {
            self.give_up();
        }
        !self.is_over
    }

    #[cold]
    fn give_up(&mut self) {
        *self = Replies { is_over: true, ..Replies::within(self.bytes_max) };
    }

    /// Appends `len` bytes that `write` writes. False if that would pass the limit: then all is given up.
    #[inline]
    pub(super) fn write(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if !self.admits(len) {
            return false;
        }
        if len > self.tail.capacity() - self.tail.len() && len.max(self.tail.len()) > BUFFER_BYTES {
            self.set_aside();
            self.tail.reserve_exact(len.max(BUFFER_BYTES));
        }
        write(&mut self.tail);
        true
    }

    /// Appends bytes without copying them. False if that would pass the limit: then all is given up.
    pub(super) fn share(&mut self, bytes: Bytes) -> bool {
        if !self.admits(bytes.len()) {
            return false;
        }
        self.set_aside();
        self.push(bytes);
        true
    }

    /// Makes the tail a piece.
    fn set_aside(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        self.push(tail.into());
    }

    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces_bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The last bytes, which one call has written.
    pub(super) fn last(&self, len: usize) -> &[u8] {
        &self.tail[self.tail.len() - len..]
    }

    /// Appends encoded bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.write(bytes.len(), |out| out.extend_from_slice(bytes));
    }

    /// Appends others; if they were given up, so are these.
    pub fn append(&mut self, mut other: Replies) {
        if other.is_over || !self.admits(other.len()) {
            return self.give_up();
        }
        if !other.pieces.is_empty() {
            other.set_aside();
        }
        for piece in other.pieces {
            if piece.len() < SHARED_BYTES_MIN {
                self.extend_from_slice(&piece);
            } else {
                self.share(piece);
            }
        }
        self.extend_from_slice(&other.tail);
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.tail.truncate(len.saturating_sub(self.pieces_bytes));
        while self.pieces_bytes > len
            && let Some(mut last) = self.pieces.pop_back()
        {
            self.pieces_bytes -= last.len();
            if self.pieces_bytes < len {
                last.truncate(len - self.pieces_bytes);
                self.push(last);
            }
        }
    }

    /// Takes the first `len` bytes off.
    pub(super) fn split_to(&mut self, len: usize) -> Replies {
        self.set_aside();
        let mut front = Replies::default();
        while front.len() < len
            && let Some(mut piece) = self.pieces.pop_front()
        {
            self.pieces_bytes -= piece.len();
            let taken = piece.split_to(piece.len().min(len - front.len()));
            front.push(taken);
            if !piece.is_empty() {
                self.pieces_bytes += piece.len();
                self.pieces.push_front(piece);
            }
        }
        front
    }

    /// Frees the pieces of which all is among the first `sent` bytes. How many of those are left at the front.
    pub fn free_sent(&mut self, mut sent: usize) -> usize {
        while let Some(piece) = self.pieces.front().filter(|piece| piece.len() <= sent) {
            sent -= piece.len();
            self.pieces_bytes -= piece.len();
            self.pieces.pop_front();
        }
        sent
    }

    /// Removes all bytes, and frees the buffer if it is larger than this.
    pub fn clear(&mut self, kept_bytes_max: usize) {
        self.pieces = VecDeque::new();
        self.pieces_bytes = 0;
        self.tail.clear();
        if self.tail.capacity() > kept_bytes_max {
            self.tail = Vec::new();
        }
    }

    /// The bytes from `start` on, in parts.
    pub fn parts(&self, start: usize) -> impl Iterator<Item = &[u8]> {
        let mut skipped = start;
        let parts = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
        parts.filter_map(move |part| {
            let rest = &part[skipped.min(part.len())..];
            skipped -= part.len() - rest.len();
            (!rest.is_empty()).then_some(rest)
        })
    }

    /// All bytes, if they are in one buffer. They are, unless there is a value of [`SHARED_BYTES_MIN`] bytes among them, or
    /// they are more than so many.
    pub fn as_slice(&self) -> Option<&[u8]> {
        self.pieces.is_empty().then_some(&self.tail)
    }

    /// All bytes in one buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        if self.pieces.is_empty() {
            return self.tail;
        }
        let mut bytes = Vec::with_capacity(self.len());
        self.parts(0).for_each(|part| bytes.extend_from_slice(part));
        bytes
    }
}

impl From<Vec<u8>> for Replies {
    fn from(bytes: Vec<u8>) -> Replies {
        Replies { tail: bytes, ..Replies::default() }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{BUFFER_BYTES, Replies, SHARED_BYTES_MIN};
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
    fn a_long_value_is_shared_and_counts_like_any_other() {
        let value = Bytes::from(vec![b'v'; SHARED_BYTES_MIN]);
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let mut reply = Reply::new(Replies::within(10 * SHARED_BYTES_MIN), protocol);
            for _ in 0..9 {
                reply.bulk_or_share(&value, || value.clone());
                assert!(reply.buffer().parts(0).any(|part| part.as_ptr() == value.as_ptr()));
            }
            let expected = [&b"$65536\r\n"[..], &value, b"\r\n"].concat().repeat(9);
            assert_eq!(reply.buffer().len(), expected.len());
            assert_eq!(reply.buffer().as_slice(), None);
            assert!(reply.is_on());
            reply.bulk_or_share(&value, || value.clone());
            assert!(!reply.is_on() && reply.buffer().is_over() && reply.buffer().is_empty());
            // None of them is held any more.
            assert!(value.is_unique());
        }
        let mut reply = Reply::new(Replies::default(), Protocol::Resp2);
        reply.bulk_or_share(&value[1..], || unreachable!("a short one is copied"));
        reply.ok();
        assert_eq!(reply.buffer().as_slice().unwrap().len(), 8 + SHARED_BYTES_MIN - 1 + 2 + 5);
    }

    /// Replies in any number of pieces behave as the bytes that they are.
    #[test]
    fn pieces_behave_as_one_buffer() {
        for seed in 0..200 {
            println!("seed {seed}");
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut replies, mut model) = (Replies::default(), Vec::new());
            let mut count = 0u8;
            let mut bytes = |random: &mut fastrand::Rng| {
                count = count.wrapping_add(1);
                vec![count; random.usize(0..20) * if random.bool() { 1 } else { 10_000 }]
            };
            for _ in 0..40 {
                match random.u8(0..7) {
                    0 | 1 => {
                        let bytes = bytes(&mut random);
                        replies.extend_from_slice(&bytes);
                        model.extend(bytes);
                    }
                    2 => {
                        let bytes = bytes(&mut random);
                        assert!(replies.share(bytes.clone().into()));
                        model.extend(bytes);
                    }
                    3 => {
                        let len = random.usize(..=model.len());
                        replies.truncate(len);
                        model.truncate(len);
                    }
                    4 => {
                        let mut other = Replies::default();
                        let (shared, written) = (bytes(&mut random), bytes(&mut random));
                        other.share(shared.clone().into());
                        other.extend_from_slice(&written);
                        replies.append(other);
                        model.extend([shared, written].concat());
                    }
                    5 => {
                        let len = random.usize(..=model.len());
                        let front = replies.split_to(len);
                        let rest = model.split_off(len);
                        assert!(front.into_bytes() == std::mem::replace(&mut model, rest));
                    }
                    _ => {
                        let sent = random.usize(..=model.len());
                        let left = replies.free_sent(sent);
                        model.drain(..sent - left);
                    }
                }
                assert_eq!((replies.len(), replies.is_empty()), (model.len(), model.is_empty()));
                assert!(replies.pieces.iter().all(|piece| !piece.is_empty()));
                let start = random.usize(..=model.len());
                assert!(replies.parts(start).collect::<Vec<_>>().concat() == model[start..]);
            }
            assert!(replies.take().into_bytes() == model);
            assert!(replies.is_empty());
        }
    }

    #[test]
    fn many_bytes_take_little_more_than_themselves() {
        let mut replies = Replies::within(64 << 20);
        let value = vec![b'x'; 4 << 20];
        (0..15).for_each(|_| replies.extend_from_slice(&value));
        assert_eq!(replies.len(), 60 << 20);
        assert!(replies.tail.capacity() <= 4 << 20);
        let mut replies = Replies::default();
        (0..10_000).for_each(|_| replies.extend_from_slice(&value[..1_000]));
        assert_eq!(replies.len(), 10_000_000);
        assert!(replies.tail.capacity() <= 2 * BUFFER_BYTES);
        assert!(replies.pieces.len() <= 10);
        replies.clear(1000);
        assert_eq!((replies.len(), replies.tail.capacity()), (0, 0));
    }
}

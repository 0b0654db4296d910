//! A batch of proposals: the proposals of one node that travel together, to the leader and in an entry, under
//! a number by which that node finds, when it applies the entry, who waits for them.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{
    NodeId,
    codec::{CodecError, Reader, put_u32, put_u64},
};

/// Origin, boot, sequence number, count and length.
const BATCH_HEAD_BYTES: usize = 8 + 8 + 8 + 4 + 4;

/// What precedes a batch of this node in memory: room for the head of an entry, so that the two become one payload
/// without a copy.
const ROOM_BYTES: usize = 64;

/// Where a batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BatchId {
    /// The node that proposed.
    pub origin: NodeId,
    /// A random number of that node's process: a restarted node no longer knows who waited.
    pub boot: u64,
    /// Counts that process's batches.
    pub sequence: u64,
}

/// A batch that is being filled.
pub(crate) struct BatchBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl BatchBuilder {
    pub(crate) fn new() -> BatchBuilder {
        BatchBuilder { bytes: vec![0; ROOM_BYTES + BATCH_HEAD_BYTES], count: 0 }
    }

    /// A batch of one proposal, which is moved to its place rather than copied if it is owned.
    pub(crate) fn of(proposal: Cow<'_, [u8]>) -> BatchBuilder {
        let mut before = BatchBuilder::new().bytes;
        put_u32(&mut before, proposal.len() as u32);
        let bytes = match proposal {
            Cow::Owned(mut bytes) => {
                bytes.reserve_exact(before.len());
                bytes.splice(0..0, before);
                bytes
            }
            Cow::Borrowed(bytes) => [&before[..], bytes].concat(),
        };
        BatchBuilder { bytes, count: 1 }
    }

    pub(crate) fn push(&mut self, proposal: &[u8]) {
        put_u32(&mut self.bytes, proposal.len() as u32);
        self.bytes.extend_from_slice(proposal);
        self.count += 1;
    }

    /// The bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - ROOM_BYTES
    }

    /// The proposals so far.
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(crate) fn finish(mut self, id: BatchId) -> OwnBatch {
        let len = (self.len() - BATCH_HEAD_BYTES) as u32;
        let mut head = Vec::with_capacity(BATCH_HEAD_BYTES);
        put_u64(&mut head, id.origin);
        put_u64(&mut head, id.boot);
        put_u64(&mut head, id.sequence);
        put_u32(&mut head, self.count);
        put_u32(&mut head, len);
        self.bytes[ROOM_BYTES..][..BATCH_HEAD_BYTES].copy_from_slice(&head);
        OwnBatch(self.bytes.into())
    }
}

/// A batch of this node.
///
/// Invariant: [`ROOM_BYTES`] precede it.
#[derive(Clone, Debug)]
pub(crate) struct OwnBatch(Bytes);

impl OwnBatch {
    /// The batch.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.slice(ROOM_BYTES..)
    }

    /// The length of the batch.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - ROOM_BYTES
    }

    /// The payload of an entry that has this head and this batch. Without a copy, unless the batch is a part of another
    /// payload still.
    pub(crate) fn into_entry(self, head: &[u8]) -> (OwnBatch, Bytes) {
        let Some(start) = ROOM_BYTES.checked_sub(head.len()) else { return self.copied(head) };
        match self.0.try_into_mut() {
            Ok(mut bytes) => {
                bytes[start..ROOM_BYTES].copy_from_slice(head);
                let bytes = bytes.freeze();
                (OwnBatch(bytes.clone()), bytes.slice(start..))
            }
            Err(bytes) => OwnBatch(bytes).copied(head),
        }
    }

    fn copied(self, head: &[u8]) -> (OwnBatch, Bytes) {
        let payload = [head, &self.0[ROOM_BYTES..]].concat();
        (self, payload.into())
    }
}

/// One batch in a payload.
#[derive(Clone, Debug)]
pub(crate) struct ProposalBatch<'a> {
    pub id: BatchId,
    proposals: Reader<'a>,
    count: u32,
}

impl<'a> Iterator for ProposalBatch<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        self.proposals.bytes().ok()
    }
}

pub(super) fn read<'a>(reader: &mut Reader<'a>) -> Result<ProposalBatch<'a>, CodecError> {
    let id = BatchId { origin: reader.u64()?, boot: reader.u64()?, sequence: reader.u64()? };
    let count = reader.u32()?;
    let len = reader.u32()?;
    Ok(ProposalBatch { id, proposals: Reader::new(reader.take(len as usize)?), count })
}

/// Checks that `bytes` are exactly one batch with all of its proposals, before the leader takes a peer's
/// bytes into the log.
pub(crate) fn check(bytes: &[u8]) -> Result<BatchId, CodecError> {
    let mut reader = Reader::new(bytes);
    let mut batch = read(&mut reader)?;
    reader.finish()?;
    for _ in 0..batch.count {
        batch.proposals.bytes()?;
    }
    batch.proposals.finish()?;
    Ok(batch.id)
}

/// How many proposals are in a checked batch.
pub(crate) fn proposals_of(batch: &[u8]) -> usize {
    let count = batch.get(24..28).and_then(|bytes| bytes.try_into().ok());
    count.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
}

/// A leader's answer to a forwarded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Forwarded {
    /// It is applied on the leader; the origin learns the rest from its own `apply`.
    Applied = 0,
    /// It was not appended to any log.
    NotAppended = 1,
    /// It was appended and its outcome is not known.
    Unknown = 2,
}

impl Forwarded {
    pub(crate) fn of(body: &[u8]) -> Forwarded {
        match body {
            [0] => Forwarded::Applied,
            [1] => Forwarded::NotAppended,
            _ => Forwarded::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::{BatchBuilder, BatchId, ROOM_BYTES, check};

    #[test]
    fn an_entry_takes_over_a_batch_and_a_batch_a_large_proposal() {
        let id = BatchId { origin: 3, boot: 9, sequence: 77 };
        let mut builder = BatchBuilder::new();
        builder.push(b"proposal");
        let expected = builder.finish(id).bytes();
        assert_eq!(check(&expected).unwrap(), id);
        let mut proposal = Vec::with_capacity(1 << 10);
        proposal.extend_from_slice(b"proposal");
        let place = proposal.as_ptr();
        for proposal in [Cow::Borrowed(&b"proposal"[..]), Cow::Owned(proposal)] {
            let is_owned = matches!(proposal, Cow::Owned(_));
            let batch = BatchBuilder::of(proposal).finish(id);
            assert_eq!((batch.len(), batch.bytes()), (expected.len(), expected.clone()));
            let (batch, payload) = batch.into_entry(b"head");
            assert_eq!(payload, [b"head", &expected[..]].concat());
            assert_eq!(batch.bytes(), expected);
            if is_owned {
                // Nothing was copied to another place.
                assert_eq!(payload.as_ptr(), place.wrapping_add(ROOM_BYTES - 4));
            }
            // Proposed again while the first payload is still there, and with a head that has no room.
            let (batch, second) = batch.into_entry(b"other");
            assert_eq!(second, [b"other", &expected[..]].concat());
            assert_eq!(payload, [b"head", &expected[..]].concat());
            let (_, third) = batch.into_entry(&[7; ROOM_BYTES + 1]);
            assert_eq!(third, [&[7; ROOM_BYTES + 1], &expected[..]].concat());
        }
    }
}

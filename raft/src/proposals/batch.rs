//! A batch of proposals: the proposals of one node that travel together, to the leader and in an entry, under
//! a number by which that node finds, when it applies the entry, who waits for them.

use crate::{
    NodeId,
    codec::{CodecError, Reader, put_u32, put_u64},
};

/// Origin, boot, sequence number, count and length.
const BATCH_HEAD_BYTES: usize = 8 + 8 + 8 + 4 + 4;

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
        BatchBuilder { bytes: vec![0; BATCH_HEAD_BYTES], count: 0 }
    }

    pub(crate) fn push(&mut self, proposal: &[u8]) {
        put_u32(&mut self.bytes, proposal.len() as u32);
        self.bytes.extend_from_slice(proposal);
        self.count += 1;
    }

    /// The bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The proposals so far.
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(crate) fn finish(mut self, id: BatchId) -> Vec<u8> {
        let len = (self.bytes.len() - BATCH_HEAD_BYTES) as u32;
        let mut head = Vec::with_capacity(BATCH_HEAD_BYTES);
        put_u64(&mut head, id.origin);
        put_u64(&mut head, id.boot);
        put_u64(&mut head, id.sequence);
        put_u32(&mut head, self.count);
        put_u32(&mut head, len);
        self.bytes[..BATCH_HEAD_BYTES].copy_from_slice(&head);
        self.bytes
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

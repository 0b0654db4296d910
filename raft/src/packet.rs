//! The form of an entry's payload: the leader's stamp, then packets. A packet holds proposals of one node,
//! under a number that lets that node find, when it applies the entry, who waits for them. An entry may also raise the
//! level by which it and all that follow are applied, or ask every node for a checkpoint of the state behind it.

use crate::{
    Entropy, NodeId,
    codec::{CodecError, Reader, put_u8, put_u32, put_u64},
};

const ENTRY_VERSION: u8 = 1;
/// With a level and entropy behind the stamp.
const ENTRY_VERSION_RAISE: u8 = 2;
/// Without packets: every node begins a checkpoint here. From level [`CHECKPOINTS`](crate::level::CHECKPOINTS) on.
const ENTRY_VERSION_CHECKPOINT: u8 = 3;

/// Origin, boot, sequence number, count and length.
const PACKET_HEAD_BYTES: usize = 8 + 8 + 8 + 4 + 4;

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PacketId {
    /// The node that proposed.
    pub origin: NodeId,
    /// A random number of that node's process: a restarted node has forgotten who waited.
    pub boot: u64,
    /// Counts that process's packets.
    pub sequence: u64,
}

/// A packet that is being filled.
pub(crate) struct PacketBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl PacketBuilder {
    pub(crate) fn new() -> PacketBuilder {
        PacketBuilder { bytes: vec![0; PACKET_HEAD_BYTES], count: 0 }
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

    pub(crate) fn finish(mut self, id: PacketId) -> Vec<u8> {
        let len = (self.bytes.len() - PACKET_HEAD_BYTES) as u32;
        let mut head = Vec::with_capacity(PACKET_HEAD_BYTES);
        put_u64(&mut head, id.origin);
        put_u64(&mut head, id.boot);
        put_u64(&mut head, id.sequence);
        put_u32(&mut head, self.count);
        put_u32(&mut head, len);
        self.bytes[..PACKET_HEAD_BYTES].copy_from_slice(&head);
        self.bytes
    }
}

/// A level that an entry raises the group to, with the chance that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raise {
    pub level: u32,
    pub entropy: Entropy,
}

/// Starts an entry's payload, to which packets are then appended as they are.
pub(crate) fn begin_entry(out: &mut Vec<u8>, stamp_ms: u64, raise: Option<Raise>) {
    put_u8(out, if raise.is_some() { ENTRY_VERSION_RAISE } else { ENTRY_VERSION });
    put_u64(out, stamp_ms);
    if let Some(Raise { level, entropy }) = raise {
        put_u32(out, level);
        out.extend_from_slice(&entropy);
    }
}

/// The payload of an entry that asks for a checkpoint.
pub(crate) fn checkpoint_entry(stamp_ms: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_u8(&mut out, ENTRY_VERSION_CHECKPOINT);
    put_u64(&mut out, stamp_ms);
    out
}

/// An entry's payload, taken apart.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub stamp_ms: u64,
    pub raise: Option<Raise>,
    /// Every node begins a checkpoint here.
    pub is_checkpoint: bool,
    pub packets: Vec<Packet<'a>>,
}

/// One packet in a payload.
#[derive(Clone, Debug)]
pub(crate) struct Packet<'a> {
    pub id: PacketId,
    proposals: Reader<'a>,
    count: u32,
}

impl<'a> Iterator for Packet<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        self.proposals.bytes().ok()
    }
}

fn packet<'a>(reader: &mut Reader<'a>) -> Result<Packet<'a>, CodecError> {
    let id = PacketId { origin: reader.u64()?, boot: reader.u64()?, sequence: reader.u64()? };
    let count = reader.u32()?;
    let len = reader.u32()?;
    Ok(Packet { id, proposals: Reader::new(reader.take(len as usize)?), count })
}

/// Checks that `bytes` are exactly one packet with all of its proposals: before the leader takes a peer's
/// bytes into the log.
pub(crate) fn check_packet(bytes: &[u8]) -> Result<PacketId, CodecError> {
    let mut reader = Reader::new(bytes);
    let mut packet = packet(&mut reader)?;
    reader.finish()?;
    for _ in 0..packet.count {
        packet.proposals.bytes()?;
    }
    packet.proposals.finish()?;
    Ok(packet.id)
}

/// How many proposals are in a checked packet.
pub(crate) fn proposals_of(packet: &[u8]) -> usize {
    let count = packet.get(24..28).and_then(|bytes| bytes.try_into().ok());
    count.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
}

/// Takes an entry's payload apart. Entries were checked when they were made, and the log has its CRC: an error here means
/// that a later version has made it, or is a broken invariant.
pub(crate) fn entry(payload: &[u8]) -> Result<Content<'_>, CodecError> {
    let mut reader = Reader::new(payload);
    let version = reader.u8()?;
    if !matches!(version, ENTRY_VERSION | ENTRY_VERSION_RAISE | ENTRY_VERSION_CHECKPOINT) {
        return Err(CodecError::Invalid("entry version"));
    }
    let stamp_ms = reader.u64()?;
    let raise = match version {
        ENTRY_VERSION_RAISE => Some(Raise { level: reader.u32()?, entropy: reader.array()? }),
        _ => None,
    };
    let mut packets = Vec::new();
    while reader.remaining() > 0 {
        packets.push(packet(&mut reader)?);
    }
    Ok(Content { stamp_ms, raise, is_checkpoint: version == ENTRY_VERSION_CHECKPOINT, packets })
}

/// A leader's answer to a forwarded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Forwarded {
    /// It is applied on the leader; the origin learns the rest from its own `apply`.
    Applied = 0,
    /// It was not appended to any log.
    NotAppended = 1,
    /// It was appended and its fate is not known.
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
    use super::{PacketBuilder, PacketId, Raise, begin_entry, check_packet, checkpoint_entry, entry};

    #[test]
    fn a_checkpoint_is_asked_for_by_an_entry_of_its_own() {
        let payload = checkpoint_entry(1234);
        let content = entry(&payload).unwrap();
        assert!(content.is_checkpoint && content.raise.is_none() && content.packets.is_empty());
        assert_eq!(content.stamp_ms, 1234);
    }

    #[test]
    fn packets_survive_an_entry() {
        let id = PacketId { origin: 3, boot: 9, sequence: 77 };
        let mut builder = PacketBuilder::new();
        builder.push(b"one");
        builder.push(b"");
        let packet = builder.finish(id);
        assert_eq!(check_packet(&packet).unwrap(), id);
        for len in 0..packet.len() {
            assert!(check_packet(&packet[..len]).is_err());
        }
        for raise in [None, Some(Raise { level: 7, entropy: *b"sixteen bytes ok" })] {
            let mut payload = Vec::new();
            begin_entry(&mut payload, 1234, raise);
            payload.extend_from_slice(&packet);
            payload.extend_from_slice(&packet);
            let content = entry(&payload).unwrap();
            assert!(!content.is_checkpoint);
            assert_eq!((content.stamp_ms, content.raise, content.packets.len()), (1234, raise, 2));
            for packet in content.packets {
                assert_eq!(packet.id, id);
                assert_eq!(packet.collect::<Vec<_>>(), [&b"one"[..], b""]);
            }
        }
    }
}

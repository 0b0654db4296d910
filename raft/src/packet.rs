//! The form of an entry's payload: the leader's stamp, then packets. A packet holds proposals of one node,
//! under a number that lets that node find, when it applies the entry, who waits for them. An entry may also raise the
//! level by which it and all that follow are applied, say how far the log clock is ahead of the wall clock, set its pace, or ask
//! every node for a checkpoint of the state behind it. What it has nothing to say of takes no bytes.

use crate::{
    Entropy, NodeId,
    clock::Stamp,
    codec::{CodecError, Reader, put_u8, put_u32, put_u64},
};

const ENTRY_VERSION: u8 = 1;
/// With a level and entropy behind the stamp.
const ENTRY_VERSION_RAISE: u8 = 2;
/// With a byte of flags behind the stamp, and what they say that follows. From `DISTANCE_LEVEL` on.
const ENTRY_VERSION_FLAGS: u8 = 3;

/// A level and entropy follow.
const FLAG_RAISE: u8 = 1;
/// The distance from the wall clock follows, eight bytes.
const FLAG_DISTANCE: u8 = 2;
/// The clock waits for the wall clock from here on, or does not any more.
const FLAG_CLOSE: u8 = 4;
const FLAG_GO_ON: u8 = 8;
/// Every node begins a checkpoint here. From `CHECKPOINTS` on.
const FLAG_CHECKPOINT: u8 = 16;

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

/// The pace of the log clock from an entry on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It waits for the wall clock, at half speed.
    Close,
    /// It goes at the speed of time.
    GoOn,
}

/// What an entry says beside its packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub stamp: Stamp,
    pub raise: Option<Raise>,
    pub pace: Option<Pace>,
    /// Every node begins a checkpoint here.
    pub is_checkpoint: bool,
}

impl Head {
    fn flags(&self) -> u8 {
        let pace = match self.pace {
            None => 0,
            Some(Pace::Close) => FLAG_CLOSE,
            Some(Pace::GoOn) => FLAG_GO_ON,
        };
        let distance = if self.stamp.ahead_ms == 0 { 0 } else { FLAG_DISTANCE };
        let raise = if self.raise.is_some() { FLAG_RAISE } else { 0 };
        let checkpoint = if self.is_checkpoint { FLAG_CHECKPOINT } else { 0 };
        raise | distance | pace | checkpoint
    }

    /// Starts an entry's payload, to which packets are then appended as they are.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = self.flags();
        // As older versions know it, where it says nothing else.
        match flags {
            0 => put_u8(out, ENTRY_VERSION),
            FLAG_RAISE => put_u8(out, ENTRY_VERSION_RAISE),
            _ => put_u8(out, ENTRY_VERSION_FLAGS),
        }
        put_u64(out, self.stamp.clock_ms);
        if flags & !FLAG_RAISE != 0 {
            put_u8(out, flags);
        }
        if let Some(Raise { level, entropy }) = self.raise {
            put_u32(out, level);
            out.extend_from_slice(&entropy);
        }
        if flags & FLAG_DISTANCE != 0 {
            put_u64(out, self.stamp.ahead_ms.cast_unsigned());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Head, CodecError> {
        let version = reader.u8()?;
        let clock_ms = reader.u64()?;
        let flags = match version {
            ENTRY_VERSION => 0,
            ENTRY_VERSION_RAISE => FLAG_RAISE,
            ENTRY_VERSION_FLAGS => reader.u8()?,
            _ => return Err(CodecError::Invalid("entry version")),
        };
        let pace = match flags & (FLAG_CLOSE | FLAG_GO_ON) {
            0 => None,
            FLAG_CLOSE => Some(Pace::Close),
            FLAG_GO_ON => Some(Pace::GoOn),
            _ => return Err(CodecError::Invalid("pace")),
        };
        if flags & !(FLAG_RAISE | FLAG_DISTANCE | FLAG_CLOSE | FLAG_GO_ON | FLAG_CHECKPOINT) != 0 {
            return Err(CodecError::Invalid("entry flags"));
        }
        let raise = if flags & FLAG_RAISE == 0 {
            None
        } else {
            Some(Raise { level: reader.u32()?, entropy: reader.array()? })
        };
        let ahead_ms = if flags & FLAG_DISTANCE == 0 { 0 } else { reader.u64()?.cast_signed() };
        let is_checkpoint = flags & FLAG_CHECKPOINT != 0;
        Ok(Head { stamp: Stamp { clock_ms, ahead_ms }, raise, pace, is_checkpoint })
    }
}

/// An entry's payload, taken apart.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub head: Head,
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
    let head = Head::read(&mut reader)?;
    let mut packets = Vec::new();
    while reader.remaining() > 0 {
        packets.push(packet(&mut reader)?);
    }
    Ok(Content { head, packets })
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
    use super::{Head, Pace, PacketBuilder, PacketId, Raise, check_packet, entry};
    use crate::{clock::Stamp, codec::CodecError};

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
        for head in heads() {
            let mut payload = Vec::new();
            head.put(&mut payload);
            payload.extend_from_slice(&packet);
            payload.extend_from_slice(&packet);
            let content = entry(&payload).unwrap();
            assert_eq!((content.head, content.packets.len()), (head, 2));
            for packet in content.packets {
                assert_eq!(packet.id, id);
                assert_eq!(packet.collect::<Vec<_>>(), [&b"one"[..], b""]);
            }
        }
    }

    fn heads() -> Vec<Head> {
        let raises = [None, Some(Raise { level: 7, entropy: *b"sixteen bytes ok" })];
        let of_raise = |raise| {
            [None, Some(Pace::Close), Some(Pace::GoOn)].into_iter().flat_map(move |pace| {
                [0, 1, -86_400_000, i64::MIN, i64::MAX].map(|ahead_ms| Head {
                    stamp: Stamp { clock_ms: 1234, ahead_ms },
                    raise,
                    pace,
                    is_checkpoint: ahead_ms == 1,
                })
            })
        };
        let checkpoint = Head { is_checkpoint: true, ..Head::default() };
        raises.into_iter().flat_map(of_raise).chain([checkpoint]).collect()
    }

    fn encoded(head: &Head) -> Vec<u8> {
        let mut out = Vec::new();
        head.put(&mut out);
        out
    }

    #[test]
    fn what_a_head_does_not_say_takes_no_bytes_and_older_versions_read_it() {
        let stamp = Stamp { clock_ms: 1, ahead_ms: 0 };
        let plain = Head { stamp, ..Head::default() };
        assert_eq!(encoded(&plain), [1, 1, 0, 0, 0, 0, 0, 0, 0]);
        let raised = Head { raise: Some(Raise { level: 2, entropy: [5; 16] }), ..plain };
        assert_eq!(encoded(&raised), [&[2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0][..], &[5; 16]].concat());
    }

    #[test]
    fn a_head_that_is_cut_or_says_what_is_not_known_is_an_error() {
        for head in heads() {
            let bytes = encoded(&head);
            (0..bytes.len()).for_each(|len| assert!(entry(&bytes[..len]).is_err(), "{head:?} cut at {len}"));
        }
        let with_flags = |flags: u8| entry(&[3, 0, 0, 0, 0, 0, 0, 0, 0, flags]).map(|content| content.head);
        assert_eq!(with_flags(32), Err(CodecError::Invalid("entry flags")));
        assert_eq!(with_flags(4 | 8), Err(CodecError::Invalid("pace")));
        assert_eq!(with_flags(4).unwrap().pace, Some(Pace::Close));
        assert_eq!(entry(&[4; 40]).unwrap_err(), CodecError::Invalid("entry version"));
    }
}

//! The content of a segment: frames, and in each frame the records of one batch. Pure: no I/O, no state.
//!
//! ```text
//! frame:  magic u32 | body bytes u32 | segment u64 | batch u64 | synced u64 | body CRC u32 | salt u64 | header CRC u32 | body
//! record: payload bytes u32 | CRC u32 | group u32 | kind u8 | term u64 | index u64 | payload
//! ```
//!
//! `synced` is the highest batch known to be durable when the frame was written: it tells damage (a bad frame
//! at or below it) from a write that a crash cut short. A record has a CRC of its own, so that one entry can
//! be read back without its frame. The magic's last byte is the format's version.
//!
//! The salt belongs to the directory and never leaves it: without it nobody can put bytes into a value that
//! pass for a header when the frame around them is torn. Format 1 has no salt. All frames of a segment have
//! the format of its first.

use thiserror::Error;

use crate::{
    codec::{self, CodecError, Reader},
    machine::GroupId,
    types::{LogId, Vote},
};

/// A frame's header in the format that is written.
pub(super) const FRAME_HEADER_BYTES: usize = 48;

/// A record's header.
pub(super) const RECORD_HEADER_BYTES: usize = 29;

/// A record of [`Kind::Size`].
pub(super) const SIZE_RECORD_BYTES: usize = RECORD_HEADER_BYTES + 8;

/// Where the part of a record begins that its CRC covers.
const RECORD_CRC_FROM: usize = 8;

const MAGIC: [u8; 3] = [0xc7, b'K', b'v'];

/// The format of a segment's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    One,
    Two { salt: u64 },
}

impl Format {
    pub(super) fn header_bytes(self) -> usize {
        match self {
            Format::One => 40,
            Format::Two { .. } => FRAME_HEADER_BYTES,
        }
    }

    fn version(self) -> u8 {
        match self {
            Format::One => 1,
            Format::Two { .. } => 2,
        }
    }

    /// The format of an undamaged header at the front of `bytes`, if there is one.
    pub(super) fn at_front(bytes: &[u8]) -> Option<Format> {
        let salt = bytes.get(36..44)?.try_into().map(u64::from_le_bytes).ok()?;
        [Format::One, Format::Two { salt }].into_iter().find(|format| header(bytes, *format).is_some())
    }
}

/// A frame's header, its CRC verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// The segment it was written to.
    pub(super) segment: u64,
    /// Rises by one from frame to frame, across segments. The first is 1.
    pub(super) batch: u64,
    /// The highest batch that was known to be durable, less than `batch`.
    pub(super) synced: u64,
    /// The body's length.
    pub(super) body_bytes: u32,
    body_crc: u32,
}

/// Why the bytes at a place are not the frame expected there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum BadFrame {
    #[error("no frame header")]
    Header,
    #[error("the frame belongs to segment {0}")]
    Segment(u64),
    #[error("the frame has batch number {0}")]
    Batch(u64),
    #[error("the frame is longer than its segment")]
    Length,
    #[error("the frame's CRC does not match its content")]
    BodyCrc,
}

/// Completes a frame whose body follows the space for its header.
pub(super) fn seal(frame: &mut [u8], format: Format, segment: u64, batch: u64, synced: u64) {
    assert!(synced < batch, "a frame cannot be durable before it is written");
    let (header, body) = frame.split_at_mut(format.header_bytes());
    let body_bytes = u32::try_from(body.len()).expect("batches are bounded far below 4 GiB");
    header[0..3].copy_from_slice(&MAGIC);
    header[3] = format.version();
    header[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    header[8..16].copy_from_slice(&segment.to_le_bytes());
    header[16..24].copy_from_slice(&batch.to_le_bytes());
    header[24..32].copy_from_slice(&synced.to_le_bytes());
    header[32..36].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    if let Format::Two { salt } = format {
        header[36..44].copy_from_slice(&salt.to_le_bytes());
    }
    let (covered, crc) = header.split_at_mut(format.header_bytes() - 4);
    crc.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
}

/// The header at the front of `bytes`, if there is an undamaged one of this format.
pub(super) fn header(bytes: &[u8], format: Format) -> Option<FrameHeader> {
    let header = bytes.get(..format.header_bytes())?;
    if header[..3] != MAGIC || header[3] != format.version() {
        return None;
    }
    let covered = &header[..header.len() - 4];
    let parse = || -> Result<(FrameHeader, u32), CodecError> {
        let mut reader = Reader::new(&header[4..]);
        let body_bytes = reader.u32()?;
        let (segment, batch, synced) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let body_crc = reader.u32()?;
        if let Format::Two { salt } = format
            && reader.u64()? != salt
        {
            return Err(CodecError::Invalid("salt"));
        }
        Ok((FrameHeader { segment, batch, synced, body_bytes, body_crc }, reader.u32()?))
    };
    let (parsed, crc) = parse().ok()?;
    (crc == crc32fast::hash(covered) && parsed.synced < parsed.batch).then_some(parsed)
}

/// The frame at `at` in a segment's bytes, when it is undamaged, belongs to `segment`, and has the batch
/// number `batch` (or any, for None). Returns its header and its body.
pub(super) fn frame(
    bytes: &[u8],
    at: usize,
    format: Format,
    segment: u64,
    batch: Option<u64>,
) -> Result<(FrameHeader, &[u8]), BadFrame> {
    let rest = bytes.get(at..).ok_or(BadFrame::Header)?;
    let header = header(rest, format).ok_or(BadFrame::Header)?;
    if header.segment != segment {
        return Err(BadFrame::Segment(header.segment));
    }
    if batch.is_some_and(|batch| batch != header.batch) {
        return Err(BadFrame::Batch(header.batch));
    }
    let body = rest[format.header_bytes()..].get(..header.body_bytes as usize).ok_or(BadFrame::Length)?;
    if crc32fast::hash(body) != header.body_crc {
        return Err(BadFrame::BodyCrc);
    }
    Ok((header, body))
}

/// The highest `synced` of all undamaged headers of `segment` at or after `from`, at any byte.
pub(super) fn highest_synced(bytes: &[u8], from: usize, format: Format, segment: u64) -> Option<u64> {
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let mut highest = None;
    let mut at = from;
    while let Some(found) = bytes.get(at..end).and_then(|rest| rest.iter().position(|byte| *byte == MAGIC[0]))
    {
        at += found;
        if let Some(header) = header(&bytes[at..], format)
            && header.segment == segment
        {
            highest = highest.max(Some(header.synced));
        }
        at += 1;
    }
    highest
}

/// Where the next undamaged frame of `segment` begins, at or after `from`, at any byte.
pub(super) fn next_frame(bytes: &[u8], from: usize, format: Format, segment: u64) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == MAGIC[0])?;
        if frame(bytes, at, format, segment, None).is_ok() {
            return Some(at);
        }
        at += 1;
    }
}

/// What a record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A log entry; the payload is `codec::payload`.
    Entry = 1,
    /// The group's vote; the payload is `codec::vote`.
    Vote = 2,
    /// Entries after an optional log id, which is the payload, are gone.
    TruncateAfter = 3,
    /// Entries up to the record's term and index are gone.
    Purge = 4,
    /// The group's commit mark; the payload is an optional log id.
    Commit = 5,
    /// A group's state when the segment was begun; the payload is a `GroupState`.
    State = 6,
    /// How large the segment's file is, in bytes: a u64. The first record of a segment.
    Size = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        let all = [
            Kind::Entry,
            Kind::Vote,
            Kind::TruncateAfter,
            Kind::Purge,
            Kind::Commit,
            Kind::State,
            Kind::Size,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record, its CRC verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) group: GroupId,
    pub(super) kind: Kind,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) payload: &'a [u8],
}

impl Record<'_> {
    /// The length with the header.
    pub(super) fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.len()
    }
}

/// Appends a record whose payload is what `write` appends. Returns its length.
pub(super) fn put_record(
    out: &mut Vec<u8>,
    group: GroupId,
    kind: Kind,
    term: u64,
    index: u64,
    write: impl FnOnce(&mut Vec<u8>),
) -> u32 {
    let start = out.len();
    let mut header = [0; RECORD_HEADER_BYTES];
    header[8..12].copy_from_slice(&group.to_le_bytes());
    header[12] = kind as u8;
    header[13..21].copy_from_slice(&term.to_le_bytes());
    header[21..29].copy_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&header);
    write(out);
    let payload_bytes =
        u32::try_from(out.len() - start - RECORD_HEADER_BYTES).expect("an entry is below 4 GiB");
    let crc = crc32fast::hash(&out[start + RECORD_CRC_FROM..]);
    out[start..start + 4].copy_from_slice(&payload_bytes.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    RECORD_HEADER_BYTES as u32 + payload_bytes
}

/// The record at the front of `bytes`.
pub(super) fn record(bytes: &[u8]) -> Result<Record<'_>, CodecError> {
    let mut reader = Reader::new(bytes);
    let payload_bytes = reader.u32()? as usize;
    let crc = reader.u32()?;
    let group = reader.u32()?;
    let kind = Kind::from_byte(reader.u8()?).ok_or(CodecError::Invalid("record kind"))?;
    let (term, index) = (reader.u64()?, reader.u64()?);
    let payload = reader.take(payload_bytes)?;
    if crc != crc32fast::hash(&bytes[RECORD_CRC_FROM..RECORD_HEADER_BYTES + payload_bytes]) {
        return Err(CodecError::Invalid("record CRC"));
    }
    Ok(Record { group, kind, term, index, payload })
}

/// The state that a group's records so far add up to, without its entries.
///
/// The writer and the recovery maintain it with the same methods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupState {
    /// The vote.
    pub(super) vote: Option<Vote>,
    /// The last entry purged.
    pub(super) purged: Option<LogId>,
    /// The commit mark.
    pub(super) committed: Option<LogId>,
    /// The last entry appended and not truncated, whether purged or not.
    pub(super) last_index: Option<u64>,
}

impl GroupState {
    /// Takes a purge. One that is not ahead of the last changes nothing.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// Takes a truncation to `last`, inclusive.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) {
        self.last_index = self.last_index.min(last.map(|id| id.index));
    }

    /// Appends a record of this state.
    pub(super) fn put(&self, out: &mut Vec<u8>, group: GroupId) {
        put_record(out, group, Kind::State, 0, 0, |out| {
            codec::put_bool(out, self.vote.is_some());
            if let Some(vote) = &self.vote {
                codec::put_vote(out, vote);
            }
            codec::put_log_id_option(out, self.purged.as_ref());
            codec::put_log_id_option(out, self.committed.as_ref());
            codec::put_bool(out, self.last_index.is_some());
            if let Some(index) = self.last_index {
                codec::put_u64(out, index);
            }
        });
    }

    /// Reads the payload of a state record.
    pub(super) fn decode(payload: &[u8]) -> Result<GroupState, CodecError> {
        let mut reader = Reader::new(payload);
        let vote = if reader.bool()? { Some(codec::vote(&mut reader)?) } else { None };
        let purged = codec::log_id_option(&mut reader)?;
        let committed = codec::log_id_option(&mut reader)?;
        let last_index = if reader.bool()? { Some(reader.u64()?) } else { None };
        reader.finish()?;
        Ok(GroupState { vote, purged, committed, last_index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Format = Format::Two { salt: 77 };

    fn sample(format: Format) -> Vec<u8> {
        let mut bytes = vec![0; format.header_bytes()];
        put_record(&mut bytes, 7, Kind::Entry, 3, 9, |out| out.extend_from_slice(b"content"));
        put_record(&mut bytes, 0, Kind::Purge, 3, 8, |_| ());
        seal(&mut bytes, format, 5, 12, 11);
        bytes
    }

    #[test]
    fn a_frame_and_its_records_round_trip() {
        for format in [Format::One, TWO] {
            let bytes = sample(format);
            assert_eq!(Format::at_front(&bytes), Some(format));
            let (header, body) = frame(&bytes, 0, format, 5, Some(12)).unwrap();
            assert_eq!((header.batch, header.synced, header.body_bytes as usize), (12, 11, body.len()));
            let first = record(body).unwrap();
            assert_eq!((first.group, first.kind, first.term, first.index), (7, Kind::Entry, 3, 9));
            assert_eq!(first.payload, b"content");
            let second = record(&body[first.bytes()..]).unwrap();
            assert_eq!((second.kind, second.payload.len()), (Kind::Purge, 0));
            assert_eq!(first.bytes() + second.bytes(), body.len());
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        for format in [Format::One, TWO] {
            let bytes = sample(format);
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut flipped = bytes.clone();
                    flipped[at] ^= 1 << bit;
                    assert!(frame(&flipped, 0, format, 5, Some(12)).is_err(), "byte {at} bit {bit}");
                }
                assert!(frame(&bytes[..at], 0, format, 5, Some(12)).is_err(), "cut at {at}");
            }
            for at in format.header_bytes()..format.header_bytes() + RECORD_HEADER_BYTES + 7 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x10;
                assert!(record(&flipped[format.header_bytes()..]).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn a_frame_of_another_segment_batch_or_directory_is_refused() {
        let bytes = sample(TWO);
        assert_eq!(frame(&bytes, 0, TWO, 4, Some(12)), Err(BadFrame::Segment(5)));
        assert_eq!(frame(&bytes, 0, TWO, 5, Some(11)), Err(BadFrame::Batch(12)));
        assert_eq!(frame(&bytes, 0, Format::Two { salt: 78 }, 5, Some(12)), Err(BadFrame::Header));
        assert_eq!(frame(&bytes, 0, Format::One, 5, Some(12)), Err(BadFrame::Header));
    }

    #[test]
    fn headers_of_the_format_are_found_at_any_byte() {
        let mut bytes = vec![0xc7; 13];
        bytes.extend_from_slice(&sample(TWO));
        bytes.extend_from_slice(&[0; 100]);
        assert_eq!(highest_synced(&bytes, 0, TWO, 5), Some(11));
        assert_eq!(highest_synced(&bytes, 14, TWO, 5), None);
        assert_eq!(highest_synced(&bytes, 0, TWO, 6), None);
        assert_eq!(highest_synced(&bytes, 0, Format::Two { salt: 78 }, 5), None);
        assert_eq!(highest_synced(&bytes, 0, Format::One, 5), None);
    }

    #[test]
    fn a_group_state_round_trips() {
        let id = |index| Some(LogId::new_term_index(2, index));
        let full = GroupState {
            vote: Some(Vote::new_committed(4, 1)),
            purged: id(3),
            committed: id(5),
            last_index: Some(6),
        };
        for state in [full, GroupState::default()] {
            let mut out = Vec::new();
            state.put(&mut out, 1);
            assert_eq!(GroupState::decode(record(&out).unwrap().payload), Ok(state));
        }
    }
}

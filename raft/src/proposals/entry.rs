//! The format of an entry's payload: the leader's stamp, then batches of proposals (`batch.rs`). An entry may
//! also raise the level at which it and all that follow are applied, say how far the log clock is ahead of
//! the wall clock, set its pace, or ask every node for a checkpoint of the state after it. What it does not
//! say takes no bytes.

use crate::{
    Entropy,
    clock::Stamp,
    codec::{CodecError, Reader, put_u8, put_u32, put_u64},
    proposals::batch::{self, ProposalBatch},
};

const ENTRY_VERSION: u8 = 1;
/// With a level and entropy after the stamp.
const ENTRY_VERSION_RAISE: u8 = 2;
/// With a byte of flags after the stamp, then what they announce. From `DISTANCE_LEVEL` on.
const ENTRY_VERSION_FLAGS: u8 = 3;

/// A level and entropy follow.
const FLAG_RAISE: u8 = 1;
/// The distance from the wall clock follows, eight bytes.
const FLAG_DISTANCE: u8 = 2;
/// The clock waits for the wall clock from here on, or no longer does.
const FLAG_CLOSE: u8 = 4;
const FLAG_GO_ON: u8 = 8;
/// Every node begins a checkpoint here. From `CHECKPOINTS` on.
const FLAG_CHECKPOINT: u8 = 16;

/// A level that an entry raises the group to, with the entropy that goes with it.
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
    /// It runs at full speed.
    GoOn,
}

/// What an entry says besides its batches.
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

    /// Starts an entry's payload, to which batches are then appended as they are.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = self.flags();
        // In the format that older versions know, if it says nothing else.
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

/// An entry's payload, parsed.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub head: Head,
    pub batches: Vec<ProposalBatch<'a>>,
}

/// Parses an entry's payload. Entries were checked when they were made, and the log has its CRC: an error
/// here means that a later version has made it, or that an invariant is broken.
pub(crate) fn decode(payload: &[u8]) -> Result<Content<'_>, CodecError> {
    let mut reader = Reader::new(payload);
    let head = Head::read(&mut reader)?;
    let mut batches = Vec::new();
    while reader.remaining() > 0 {
        batches.push(batch::read(&mut reader)?);
    }
    Ok(Content { head, batches })
}

#[cfg(test)]
mod tests {
    use super::{Head, Pace, Raise, decode};
    use crate::{
        clock::Stamp,
        codec::CodecError,
        proposals::batch::{self, BatchBuilder, BatchId},
    };

    #[test]
    fn batches_survive_an_entry() {
        let id = BatchId { origin: 3, boot: 9, sequence: 77 };
        let mut builder = BatchBuilder::new();
        builder.push(b"one");
        builder.push(b"");
        let batch = builder.finish(id).bytes();
        assert_eq!(batch::check(&batch).unwrap(), id);
        for len in 0..batch.len() {
            assert!(batch::check(&batch[..len]).is_err());
        }
        for head in heads() {
            let mut payload = Vec::new();
            head.put(&mut payload);
            payload.extend_from_slice(&batch);
            payload.extend_from_slice(&batch);
            let content = decode(&payload).unwrap();
            assert_eq!((content.head, content.batches.len()), (head, 2));
            for batch in content.batches {
                assert_eq!(batch.id, id);
                assert_eq!(batch.collect::<Vec<_>>(), [&b"one"[..], b""]);
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
            (0..bytes.len()).for_each(|len| assert!(decode(&bytes[..len]).is_err(), "{head:?} cut at {len}"));
        }
        let with_flags = |flags: u8| decode(&[3, 0, 0, 0, 0, 0, 0, 0, 0, flags]).map(|content| content.head);
        assert_eq!(with_flags(32), Err(CodecError::Invalid("entry flags")));
        assert_eq!(with_flags(4 | 8), Err(CodecError::Invalid("pace")));
        assert_eq!(with_flags(4).unwrap().pace, Some(Pace::Close));
        assert_eq!(decode(&[4; 40]).unwrap_err(), CodecError::Invalid("entry version"));
    }
}

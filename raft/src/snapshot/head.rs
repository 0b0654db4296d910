//! The head of a checkpoint, as the page store keeps it and a snapshot begins with it: a version, the last
//! applied log id, the membership, the ids of former members, the apply level, the running hash of the
//! entries, whether the log clock waits for the wall clock, and the machine's own head.

use std::collections::BTreeSet;

use crate::{
    codec::{self, CodecError, Reader, put_bool, put_bytes, put_u8, put_u32, put_u64},
    state::progress::Progress,
    types::SnapshotMeta,
};

const HEAD_VERSION: u8 = 5;
/// Lacks the flag whether the log clock waits for the wall clock. Written while the clock does not wait, as
/// members of an earlier version may need the checkpoint.
const HEAD_VERSION_4: u8 = 4;
/// Also lacks the running hash.
const HEAD_VERSION_3: u8 = 3;
/// Also lacks the apply level, which was 1.
const HEAD_VERSION_2: u8 = 2;
/// Also lacks the ids of former members.
const HEAD_VERSION_1: u8 = 1;

/// The head of a commit in the page store: everything but its pages.
pub(crate) struct Head {
    pub progress: Progress,
    pub machine: Vec<u8>,
}

impl Head {
    pub(crate) fn encode(progress: &Progress, machine: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + machine.len());
        put_u8(&mut out, if progress.is_closing { HEAD_VERSION } else { HEAD_VERSION_4 });
        codec::put_log_id_option(&mut out, progress.last.as_ref());
        codec::put_stored_membership(&mut out, &progress.membership);
        put_u32(&mut out, progress.retired.len() as u32);
        progress.retired.iter().for_each(|id| put_u64(&mut out, *id));
        put_u32(&mut out, progress.level);
        put_bool(&mut out, progress.hash.is_some());
        put_u64(&mut out, progress.hash.unwrap_or(0));
        if progress.is_closing {
            put_bool(&mut out, true);
        }
        put_bytes(&mut out, machine);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Head, CodecError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version > HEAD_VERSION {
            return Err(CodecError::Later("checkpoint"));
        }
        if version < HEAD_VERSION_1 {
            return Err(CodecError::Invalid("checkpoint version"));
        }
        let last = codec::log_id_option(&mut reader)?;
        let membership = codec::stored_membership(&mut reader)?;
        let mut retired = BTreeSet::new();
        if version != HEAD_VERSION_1 {
            for _ in 0..reader.u32()? {
                retired.insert(reader.u64()?);
            }
        }
        let level = if version > HEAD_VERSION_2 { reader.u32()? } else { 1 };
        let hash = if version > HEAD_VERSION_3 {
            let (is_known, hash) = (reader.bool()?, reader.u64()?);
            is_known.then_some(hash)
        } else {
            None
        };
        let is_closing = version > HEAD_VERSION_4 && reader.bool()?;
        let machine = reader.bytes()?.to_vec();
        reader.finish()?;
        Ok(Head { progress: Progress { last, membership, retired, level, hash, is_closing }, machine })
    }

    /// The last applied log index.
    pub(crate) fn index(&self) -> u64 {
        self.progress.last.map_or(0, |id| id.index)
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        self.progress.snapshot_meta()
    }
}

#[cfg(test)]
mod tests {
    use super::{HEAD_VERSION, HEAD_VERSION_1, HEAD_VERSION_2, HEAD_VERSION_3, HEAD_VERSION_4, Head};
    use crate::{
        codec::{self, CodecError},
        state::progress::Progress,
        types::LogId,
    };

    #[test]
    fn a_head_keeps_all_progress_and_earlier_ones_are_read() {
        let last = Some(LogId::new_term_index(2, 9));
        let progress =
            Progress { last, retired: [3, 8].into(), level: 7, hash: Some(6), ..Progress::default() };
        for (version, is_closing) in [(HEAD_VERSION_4, false), (HEAD_VERSION, true)] {
            let mut encoded = Head::encode(&Progress { is_closing, ..progress.clone() }, b"machine");
            let head = Head::decode(&encoded).unwrap();
            assert_eq!((head.index(), head.progress.retired), (9, [3, 8].into()));
            assert_eq!((head.progress.level, head.progress.hash), (7, Some(6)));
            assert_eq!((encoded[0], head.progress.is_closing), (version, is_closing));
            assert_eq!(head.machine, b"machine");
            encoded[0] = HEAD_VERSION + 1;
            assert_eq!(Head::decode(&encoded).err(), Some(CodecError::Later("checkpoint")));
        }
        for version in [HEAD_VERSION_1, HEAD_VERSION_2, HEAD_VERSION_3] {
            let mut earlier = vec![version];
            codec::put_log_id_option(&mut earlier, last.as_ref());
            codec::put_stored_membership(&mut earlier, &progress.membership);
            if version > HEAD_VERSION_1 {
                codec::put_u32(&mut earlier, 0);
            }
            if version > HEAD_VERSION_2 {
                codec::put_u32(&mut earlier, 1);
            }
            codec::put_bytes(&mut earlier, b"machine");
            let head = Head::decode(&earlier).unwrap();
            assert_eq!((head.index(), head.machine.as_slice()), (9, b"machine".as_slice()));
            assert_eq!((head.progress.retired.len(), head.progress.level, head.progress.hash), (0, 1, None));
        }
    }
}

//! The binary form of what this crate writes to disk and sends to peers: little endian, lengths before bytes,
//! never openraft's serde form, so that an upgrade of openraft cannot change what is on a disk.
//!
//! A form that can grow starts with a version or kind byte. The containers (log frames, the peer handshake,
//! the checkpoint's head) carry versions of their own. Nothing here does I/O or keeps checksums.
//!
//! Decoding is total: no bytes make it panic, and no length in them makes it allocate more than they hold.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use thiserror::Error;

use crate::types::{Entry, LogId, MemberNode, Payload, StoredMembership, Vote};

/// A membership: the voters' configurations and all nodes.
pub(crate) type Membership = openraft::Membership<u64, MemberNode>;

/// An entry's content.
pub(crate) type RaftPayload = EntryPayload<Payload, u64, MemberNode>;

/// The only version of a membership's form.
const MEMBERSHIP_VERSION: u8 = 1;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_NORMAL: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum CodecError {
    /// They end too early.
    #[error("the bytes end too early")]
    Truncated,
    /// They go on after the end.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    /// The named form is one of a later version.
    #[error("the {0} was written by a later version")]
    Later(&'static str),
    /// The named part has a value that it cannot have.
    #[error("not a valid {0}")]
    Invalid(&'static str),
}

/// Reads values from the front of a slice. After an error the position is unspecified.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Takes exactly `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a byte that is 0 or 1.
    pub(crate) fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Invalid("boolean")),
        }
    }

    /// Takes a u32 length and as many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let count = self.u32()?;
        self.take(usize::try_from(count).map_err(|_| CodecError::Truncated)?)
    }

    /// Takes a u32 length and as many bytes of UTF-8.
    pub(crate) fn str(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CodecError::Invalid("UTF-8 text"))
    }

    /// Takes all that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Demands the end.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(CodecError::Trailing(more)),
        }
    }
}

pub(crate) fn put_u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// Writes a u32 length and the bytes. Panics at 4 GiB, which every limit in `NodeConfig` forbids.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u32(out, u32::try_from(count).expect("limits keep every encoded count below 4 Gi"));
}

/// 16 bytes: term, index.
pub(crate) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    put_u64(out, id.leader_id.term);
    put_u64(out, id.index);
}

pub(crate) fn log_id(reader: &mut Reader<'_>) -> Result<LogId, CodecError> {
    let (term, index) = (reader.u64()?, reader.u64()?);
    Ok(LogId::new_term_index(term, index))
}

/// A byte 0 for None; else a byte 1 and the log id.
pub(crate) fn put_log_id_option(out: &mut Vec<u8>, id: Option<&LogId>) {
    put_bool(out, id.is_some());
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn log_id_option(reader: &mut Reader<'_>) -> Result<Option<LogId>, CodecError> {
    if reader.bool()? { log_id(reader).map(Some) } else { Ok(None) }
}

/// 17 bytes: term, node voted for, whether a quorum granted it.
pub(crate) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    put_u64(out, vote.leader_id.term);
    put_u64(out, vote.leader_id.voted_for);
    put_bool(out, vote.committed);
}

pub(crate) fn vote(reader: &mut Reader<'_>) -> Result<Vote, CodecError> {
    let (term, node) = (reader.u64()?, reader.u64()?);
    Ok(if reader.bool()? { Vote::new_committed(term, node) } else { Vote::new(term, node) })
}

pub(crate) fn put_member_node(out: &mut Vec<u8>, node: &MemberNode) {
    put_str(out, &node.peer);
    put_count(out, node.endpoints.len());
    for (name, address) in &node.endpoints {
        put_str(out, name);
        put_str(out, address);
    }
}

pub(crate) fn member_node(reader: &mut Reader<'_>) -> Result<MemberNode, CodecError> {
    let peer = reader.str()?.to_owned();
    let mut endpoints = BTreeMap::new();
    for _ in 0..reader.u32()? {
        let name = reader.str()?.to_owned();
        endpoints.insert(name, reader.str()?.to_owned());
    }
    Ok(MemberNode { peer, endpoints })
}

/// Version, the joint configurations' voters, then all nodes.
pub(crate) fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    put_u8(out, MEMBERSHIP_VERSION);
    let configs = membership.get_joint_config();
    put_count(out, configs.len());
    for config in configs {
        put_count(out, config.len());
        for id in config {
            put_u64(out, *id);
        }
    }
    put_count(out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        put_u64(out, *id);
        put_member_node(out, node);
    }
}

/// Also refuses what openraft would refuse: an empty configuration, a voter without a node.
pub(crate) fn membership(reader: &mut Reader<'_>) -> Result<Membership, CodecError> {
    if reader.u8()? != MEMBERSHIP_VERSION {
        return Err(CodecError::Invalid("membership version"));
    }
    let mut configs = Vec::new();
    for _ in 0..reader.u32()? {
        let mut config = BTreeSet::new();
        for _ in 0..reader.u32()? {
            config.insert(reader.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..reader.u32()? {
        let id = reader.u64()?;
        nodes.insert(id, member_node(reader)?);
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Invalid("membership"))
}

pub(crate) fn put_stored_membership(out: &mut Vec<u8>, stored: &StoredMembership) {
    put_log_id_option(out, stored.log_id().as_ref());
    put_membership(out, stored.membership());
}

pub(crate) fn stored_membership(reader: &mut Reader<'_>) -> Result<StoredMembership, CodecError> {
    let id = log_id_option(reader)?;
    Ok(StoredMembership::new(id, membership(reader)?))
}

/// A kind byte, then the content to the end: a payload knows its length only from its container.
pub(crate) fn put_payload(out: &mut Vec<u8>, payload: &RaftPayload) {
    match payload {
        EntryPayload::Blank => put_u8(out, PAYLOAD_BLANK),
        EntryPayload::Normal(content) => {
            put_u8(out, PAYLOAD_NORMAL);
            out.extend_from_slice(&content.0);
        }
        EntryPayload::Membership(content) => {
            put_u8(out, PAYLOAD_MEMBERSHIP);
            put_membership(out, content);
        }
    }
}

/// The whole of `bytes` as a payload. A normal one is a slice of `bytes`, not a copy.
pub(crate) fn payload(bytes: &Bytes) -> Result<RaftPayload, CodecError> {
    let mut reader = Reader::new(bytes);
    match reader.u8()? {
        PAYLOAD_BLANK => reader.finish().map(|()| EntryPayload::Blank),
        PAYLOAD_NORMAL => Ok(EntryPayload::Normal(Payload(bytes.slice(1..)))),
        PAYLOAD_MEMBERSHIP => {
            let content = membership(&mut reader)?;
            reader.finish().map(|()| EntryPayload::Membership(content))
        }
        _ => Err(CodecError::Invalid("payload kind")),
    }
}

/// The log id and the payload to the end: an entry knows its length only from its container.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_log_id(out, &entry.log_id);
    put_payload(out, &entry.payload);
}

/// What `put_entry` writes before the content of a normal payload.
pub(crate) fn put_normal_head(out: &mut Vec<u8>, id: &LogId) {
    put_log_id(out, id);
    put_u8(out, PAYLOAD_NORMAL);
}

/// The whole of `bytes` as an entry. A normal payload is a slice of `bytes`, not a copy.
pub(crate) fn entry(bytes: &Bytes) -> Result<Entry, CodecError> {
    let mut reader = Reader::new(bytes);
    let log_id = log_id(&mut reader)?;
    let payload = payload(&bytes.slice_ref(reader.rest()))?;
    Ok(Entry { log_id, payload })
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    /// Encoded and decoded it is the same; cut anywhere, or followed by a byte, it is an error.
    fn round_trip<T: PartialEq + Debug>(
        value: &T,
        put: impl Fn(&mut Vec<u8>, &T),
        get: impl Fn(&mut Reader<'_>) -> Result<T, CodecError>,
    ) {
        let mut out = Vec::new();
        put(&mut out, value);
        let whole = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            let value = get(&mut reader)?;
            reader.finish().map(|()| value)
        };
        assert_eq!(whole(&out).as_ref(), Ok(value));
        for end in 0..out.len() {
            assert_eq!(whole(&out[..end]), Err(CodecError::Truncated), "cut at {end}");
        }
        out.push(0);
        assert_eq!(whole(&out), Err(CodecError::Trailing(1)));
    }

    fn sample_membership() -> Membership {
        let node = |n: u64| MemberNode {
            peer: format!("host{n}:7000"),
            endpoints: [("resp".to_owned(), format!("host{n}:6379")), ("http".to_owned(), String::new())]
                .into(),
        };
        let nodes: BTreeMap<u64, MemberNode> = (1..=4).map(|n| (n, node(n))).collect();
        Membership::new(vec![[1, 2, 3].into(), [2, 3].into()], nodes).unwrap()
    }

    #[test]
    fn every_form_round_trips_and_refuses_a_cut() {
        let id = LogId::new_term_index(7, u64::MAX);
        round_trip(&id, put_log_id, log_id);
        round_trip(&Some(id), |out, id| put_log_id_option(out, id.as_ref()), log_id_option);
        round_trip(&None, |out, id| put_log_id_option(out, id.as_ref()), log_id_option);
        round_trip(&Vote::new(3, 9), put_vote, vote);
        round_trip(&Vote::new_committed(u64::MAX, 0), put_vote, vote);
        round_trip(&Membership::default(), put_membership, membership);
        round_trip(&sample_membership(), put_membership, membership);
        round_trip(&StoredMembership::default(), put_stored_membership, stored_membership);
        round_trip(
            &StoredMembership::new(Some(id), sample_membership()),
            put_stored_membership,
            stored_membership,
        );
    }

    fn entries() -> Vec<Entry> {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::new())),
            EntryPayload::Normal(Payload(Bytes::from_static(b"some content"))),
            EntryPayload::Membership(sample_membership()),
        ];
        payloads.into_iter().map(|payload| Entry { log_id: LogId::new_term_index(1, 2), payload }).collect()
    }

    #[test]
    fn an_entry_round_trips_and_a_normal_payload_is_not_copied() {
        for expected in entries() {
            let mut out = Vec::new();
            put_entry(&mut out, &expected);
            let bytes = Bytes::from(out);
            let got = entry(&bytes).unwrap();
            assert_eq!(got, expected);
            if let EntryPayload::Normal(content) = got.payload
                && !content.0.is_empty()
            {
                assert_eq!(content.0.as_ptr(), bytes[17..].as_ptr());
            }
        }
    }

    /// The length of a normal payload is its container's; all else notices a cut or an addition.
    #[test]
    fn a_cut_entry_is_an_error() {
        for expected in entries() {
            let mut out = Vec::new();
            put_entry(&mut out, &expected);
            let end_max = if matches!(expected.payload, EntryPayload::Normal(_)) { 17 } else { out.len() };
            for end in 0..end_max {
                assert_eq!(
                    entry(&Bytes::copy_from_slice(&out[..end])),
                    Err(CodecError::Truncated),
                    "cut at {end}"
                );
            }
            if !matches!(expected.payload, EntryPayload::Normal(_)) {
                out.push(0);
                assert_eq!(entry(&Bytes::from(out)), Err(CodecError::Trailing(1)));
            }
        }
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut valid = Vec::new();
        put_payload(&mut valid, &EntryPayload::Membership(sample_membership()));
        for _ in 0..20_000 {
            let mut bytes = valid.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = if rng.bool() { 0xff } else { rng.u8(..) };
            }
            let _ = payload(&Bytes::from(bytes));
        }
    }
}

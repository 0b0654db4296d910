//! What peers send, and what entries hold, with hostile bytes: no panic, no memory for lengths that are only claimed,
//! and what is understood means the same when it is written and read again.

use std::{collections::BTreeMap, fmt::Debug};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use kvorum_fuzz::{bounded, fuzz};
use openraft::{
    EntryPayload,
    raft::{AppendEntriesResponse, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse},
};

use crate::{
    PageWrite,
    clock::Stamp,
    codec::{self, Membership, Reader},
    identity::{
        lives::Lives,
        witness::{Begun, Held},
    },
    net::{
        frame::{self, Kind},
        handshake::{Hello, PROTOCOL_VERSION},
        messages::{self, AppendRequest},
    },
    proposals::{
        batch::{self, BatchBuilder, BatchId},
        entry::{self, Pace, Raise},
    },
    snapshot::{
        head::Head,
        transfer::{self, Announced},
    },
    state::progress::Progress,
    types::{Entry, LogId, MemberNode, Payload, StoredMembership, Vote},
};

/// Decoded values take more than their bytes: each list element, text and map node has a head of its own.
const PER_BYTE: usize = 64;
const FIXED: usize = 256 << 10;

/// What a decoder makes of the bytes, as text; None where it refuses them. Limits its memory.
fn decoded<T: Debug, E>(bytes: &[u8], decode: impl FnOnce(&[u8]) -> Result<T, E>) -> Option<T> {
    bounded(bytes.len(), PER_BYTE, FIXED, || decode(bytes)).ok()
}

/// What is understood is understood in the same way once it was written.
fn survives<T: Debug, E: Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    put: impl Fn(&mut Vec<u8>, &T),
) {
    let Some(value) = decoded(bytes, &decode) else { return };
    let mut again = Vec::new();
    put(&mut again, &value);
    assert_eq!(format!("{:?}", decode(&again).unwrap()), format!("{value:?}"));
}

fn id(index: u64) -> LogId {
    LogId::new_term_index(3, index)
}

fn membership() -> Membership {
    let node = |n: u64| MemberNode {
        peer: format!("host{n}:7000"),
        endpoints: [("resp".to_owned(), format!("host{n}:6379"))].into(),
    };
    let nodes: BTreeMap<u64, MemberNode> = (1..=3).map(|n| (n, node(n))).collect();
    Membership::new(vec![[1, 2, 3].into(), [2, 3].into()], nodes).unwrap()
}

fn payload() -> Vec<u8> {
    let head = entry::Head {
        stamp: Stamp { clock_ms: 1_700_000_000_000, ahead_ms: -5 },
        raise: Some(Raise { level: 3, entropy: [7; 16] }),
        pace: Some(Pace::Close),
        is_checkpoint: true,
    };
    let mut builder = BatchBuilder::new();
    builder.push(b"a proposal");
    builder.push(b"");
    let mut out = Vec::new();
    head.put(&mut out);
    out.extend_from_slice(&builder.finish(BatchId { origin: 1, boot: 2, sequence: 3 }).bytes());
    out
}

fn entries() -> Vec<Entry> {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Payload(payload().into())),
        EntryPayload::Membership(membership()),
    ];
    payloads.into_iter().map(|payload| Entry { log_id: id(7), payload }).collect()
}

#[test]
fn frames() {
    let one = frame::encode(Kind::Vote, 7, 1, b"body").to_vec();
    let large = frame::encode(Kind::Stream, u64::MAX, 0, &[9; 70_000]).to_vec();
    fuzz("frames", vec![one.clone(), [one, large].concat()], |bytes| {
        let (mut rest, mut buffer, mut read) = (bytes, BytesMut::new(), 0);
        loop {
            // All bytes are there, so nothing waits.
            let next = || frame::read(&mut rest, &mut buffer).now_or_never().unwrap();
            let Ok(frame) = bounded(bytes.len(), 4, 4 << 20, next) else { break };
            let whole = frame::encode(frame.kind, frame.id, frame.group, &frame.body);
            assert_eq!(whole, bytes[read..][..whole.len()]);
            read += whole.len();
        }
    });
}

fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: "6316dce56d097dde1276577461b331d1".into(),
        node_id: 1,
        to: 2,
        disk_id: "3912a45c2397b085e1a7b337ee6c2fa3".into(),
        clock_ms: Some(1_700_000_000_000),
        refusal: String::new(),
        former_clusters: vec!["former".into()],
        protocol_oldest: PROTOCOL_VERSION,
        has_log: true,
        first_members: vec![1, 2, 3],
        apply_level: 3,
        apply_level_max: 3,
        begun: Begun {
            lives: Lives { number: 2, names: vec![4, 5], is_met: false },
            boot: 9,
            with: Held::new(Some(id(7)), 4),
        },
        address: "host1:7000".into(),
        went_back: String::new(),
        wall_ms: 0,
    }
}

#[test]
fn messages_of_peers() {
    let request = AppendRequest {
        vote: Vote::new_committed(3, 1),
        prev_log_id: Some(id(6)),
        entries: entries(),
        leader_commit: None,
    };
    let mut seeds = vec![hello().encode()];
    let mut seed = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        seeds.push(out);
    };
    seed(&|out| messages::put_append_request(out, &request));
    seed(&|out| messages::put_append_result(out, &Err(StreamAppendError::Conflict(id(5)))));
    seed(&|out| messages::put_append_response(out, &AppendEntriesResponse::PartialSuccess(Some(id(4)))));
    seed(&|out| messages::put_vote_request(out, &VoteRequest::new(Vote::new(4, 2), Some(id(9)))));
    seed(&|out| messages::put_vote_response(out, &VoteResponse::new(Vote::new(4, 2), None, true), 17));
    seed(&|out| {
        messages::put_transfer_request(out, &TransferLeaderRequest::new(Vote::new_committed(4, 2), 3, None));
    });
    seed(&|out| transfer::put_pages(out, &[(vec![1; 9], vec![2; 40]), (vec![3], Vec::new())]));
    let membership = StoredMembership::new(Some(id(2)), membership());
    let progress = Progress { membership, retired: [8, 9].into(), last: Some(id(9)), ..Progress::default() };
    let head = Head::encode(&progress, b"machine");
    seed(&|out| {
        codec::put_vote(out, &Vote::new_committed(4, 2));
        out.extend_from_slice(&[5; 16]);
        codec::put_bytes(out, &head);
        codec::put_u32(out, 1);
        out.extend_from_slice(&[6; 16]);
    });
    seed(&|out| out.extend_from_slice(&head));
    fuzz("messages", seeds, |bytes| {
        let shared = |bytes: &[u8]| messages::append_request(&Bytes::copy_from_slice(bytes));
        survives(bytes, shared, messages::put_append_request);
        survives(bytes, messages::append_result, messages::put_append_result);
        survives(bytes, messages::append_response, messages::put_append_response);
        survives(bytes, messages::vote_request, messages::put_vote_request);
        let put = |out: &mut Vec<u8>, (response, clock_ms): &(VoteResponse<_>, u64)| {
            messages::put_vote_response(out, response, *clock_ms);
        };
        survives(bytes, messages::vote_response, put);
        survives(bytes, messages::transfer_request, messages::put_transfer_request);
        survives(bytes, transfer::decode_pages, |out, pages: &Vec<PageWrite>| {
            let pages = pages.iter().map(|page| (page.id.clone(), page.content.clone().unwrap()));
            transfer::put_pages(out, &pages.collect::<Vec<_>>());
        });
        survives(bytes, Hello::decode, |out, hello: &Hello| *out = hello.encode());
        let progress = |bytes: &[u8]| Head::decode(bytes).map(|head| (head.progress, head.machine));
        survives(bytes, progress, |out, (progress, machine)| *out = Head::encode(progress, machine));
        decoded(bytes, |bytes| Announced::decode(bytes).map(|announced| announced.trail.len()));
    });
}

#[test]
fn entries_of_the_log() {
    let mut seeds = vec![payload()];
    for entry in entries() {
        let mut out = Vec::new();
        codec::put_payload(&mut out, &entry.payload);
        seeds.push(out);
    }
    fuzz("entries", seeds, |bytes| {
        let shared = |bytes: &[u8]| codec::payload(&Bytes::copy_from_slice(bytes));
        survives(bytes, shared, codec::put_payload);
        let stored = |bytes: &[u8]| codec::stored_membership(&mut Reader::new(bytes));
        survives(bytes, stored, codec::put_stored_membership);
        for bytes in [bytes, bytes.get(1..).unwrap_or_default()] {
            let _ = bounded(bytes.len(), PER_BYTE, FIXED, || batch::check(bytes));
            if let Ok(content) = bounded(bytes.len(), PER_BYTE, FIXED, || entry::decode(bytes)) {
                let proposals = content.batches.into_iter().flatten();
                // A count may claim more than there are.
                assert!(proposals.map(<[u8]>::len).sum::<usize>() <= bytes.len());
            }
        }
    });
}

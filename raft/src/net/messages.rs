//! The bodies of the frames that carry Raft's own messages. Decoding never panics, whatever the bytes.

use bytes::Bytes;
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, VoteRequest, VoteResponse,
    },
};

use crate::{
    codec::{self, CodecError, Reader, put_bool, put_log_id, put_log_id_option, put_u8, put_u32, put_vote},
    types::{Entry, TypeConfig},
};

pub(crate) type AppendRequest = AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResult = StreamAppendResult<TypeConfig>;

/// The content of an entry at the end of a request is shared from this size on, not copied.
const SHARED_BYTES_MIN: usize = 64 << 10;

pub(crate) fn put_append_request(out: &mut Vec<u8>, request: &AppendRequest) {
    let rest = put_append_request_head(out, request);
    out.extend_from_slice(&rest);
}

/// About how much of a request's entries is copied.
pub(crate) fn copied_bytes(request: &AppendRequest) -> usize {
    let last = request.entries.len().saturating_sub(1);
    let bytes_of = |(at, entry): (usize, &Entry)| match &entry.payload {
        EntryPayload::Normal(content) if at == last && content.0.len() >= SHARED_BYTES_MIN => 64,
        EntryPayload::Normal(content) => content.0.len() + 64,
        EntryPayload::Blank | EntryPayload::Membership(_) => 320,
    };
    request.entries.iter().enumerate().map(bytes_of).sum()
}

/// Appends all of a request but the large content of its last entry, which it returns; empty if that is not large.
pub(crate) fn put_append_request_head(out: &mut Vec<u8>, request: &AppendRequest) -> Bytes {
    put_vote(out, &request.vote);
    put_log_id_option(out, request.prev_log_id.as_ref());
    put_log_id_option(out, request.leader_commit.as_ref());
    put_u32(out, request.entries.len() as u32);
    let mut rest = Bytes::new();
    for (at, entry) in request.entries.iter().enumerate() {
        let start = out.len();
        put_u32(out, 0);
        match &entry.payload {
            EntryPayload::Normal(content)
                if at + 1 == request.entries.len() && content.0.len() >= SHARED_BYTES_MIN =>
            {
                codec::put_normal_head(out, &entry.log_id);
                rest = content.0.clone();
            }
            _ => codec::put_entry(out, entry),
        }
        let len = (out.len() - start - 4 + rest.len()) as u32;
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }
    rest
}

/// Entries are slices of `body`.
pub(crate) fn append_request(body: &Bytes) -> Result<AppendRequest, CodecError> {
    let mut reader = Reader::new(body);
    let vote = codec::vote(&mut reader)?;
    let prev_log_id = codec::log_id_option(&mut reader)?;
    let leader_commit = codec::log_id_option(&mut reader)?;
    let count = reader.u32()?;
    let mut entries = Vec::with_capacity(count.min(4096) as usize);
    for _ in 0..count {
        entries.push(codec::entry(&body.slice_ref(reader.bytes()?))?);
    }
    reader.finish()?;
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

const OK: u8 = 0;
const CONFLICT: u8 = 1;
const HIGHER_VOTE: u8 = 2;
const SUCCESS: u8 = 3;

pub(crate) fn put_append_result(out: &mut Vec<u8>, result: &AppendResult) {
    match result {
        Ok(matched) => {
            put_u8(out, OK);
            put_log_id_option(out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(log_id)) => {
            put_u8(out, CONFLICT);
            put_log_id(out, log_id);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            put_u8(out, HIGHER_VOTE);
            put_vote(out, vote);
        }
    }
}

pub(crate) fn append_result(body: &[u8]) -> Result<AppendResult, CodecError> {
    let mut reader = Reader::new(body);
    let result = match reader.u8()? {
        OK => Ok(codec::log_id_option(&mut reader)?),
        CONFLICT => Err(StreamAppendError::Conflict(codec::log_id(&mut reader)?)),
        HIGHER_VOTE => Err(StreamAppendError::HigherVote(codec::vote(&mut reader)?)),
        _ => return Err(CodecError::Invalid("append result")),
    };
    reader.finish()?;
    Ok(result)
}

pub(crate) fn put_append_response(out: &mut Vec<u8>, response: &AppendEntriesResponse<TypeConfig>) {
    match response {
        AppendEntriesResponse::Success => put_u8(out, SUCCESS),
        AppendEntriesResponse::PartialSuccess(matched) => {
            put_u8(out, OK);
            put_log_id_option(out, matched.as_ref());
        }
        AppendEntriesResponse::Conflict => put_u8(out, CONFLICT),
        AppendEntriesResponse::HigherVote(vote) => {
            put_u8(out, HIGHER_VOTE);
            put_vote(out, vote);
        }
    }
}

pub(crate) fn append_response(body: &[u8]) -> Result<AppendEntriesResponse<TypeConfig>, CodecError> {
    let mut reader = Reader::new(body);
    let response = match reader.u8()? {
        SUCCESS => AppendEntriesResponse::Success,
        OK => AppendEntriesResponse::PartialSuccess(codec::log_id_option(&mut reader)?),
        CONFLICT => AppendEntriesResponse::Conflict,
        HIGHER_VOTE => AppendEntriesResponse::HigherVote(codec::vote(&mut reader)?),
        _ => return Err(CodecError::Invalid("append response")),
    };
    reader.finish()?;
    Ok(response)
}

pub(crate) fn put_vote_request(out: &mut Vec<u8>, request: &VoteRequest<TypeConfig>) {
    put_vote(out, &request.vote);
    put_log_id_option(out, request.last_log_id.as_ref());
    put_bool(out, request.leadership_transfer);
}

pub(crate) fn vote_request(body: &[u8]) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let mut reader = Reader::new(body);
    let mut request = VoteRequest::new(codec::vote(&mut reader)?, codec::log_id_option(&mut reader)?);
    request.leadership_transfer = reader.bool()?;
    reader.finish()?;
    Ok(request)
}

/// `clock_ms` is the answering node's clock, 0 if it does not know the time.
pub(crate) fn put_vote_response(out: &mut Vec<u8>, response: &VoteResponse<TypeConfig>, clock_ms: u64) {
    put_vote(out, &response.vote);
    put_bool(out, response.vote_granted);
    put_log_id_option(out, response.last_log_id.as_ref());
    codec::put_u64(out, clock_ms);
}

pub(crate) fn vote_response(body: &[u8]) -> Result<(VoteResponse<TypeConfig>, u64), CodecError> {
    let mut reader = Reader::new(body);
    let (vote, granted) = (codec::vote(&mut reader)?, reader.bool()?);
    let (last_log_id, clock_ms) = (codec::log_id_option(&mut reader)?, reader.u64()?);
    reader.finish()?;
    Ok((VoteResponse::new(vote, last_log_id, granted), clock_ms))
}

pub(crate) fn put_transfer_request(out: &mut Vec<u8>, request: &TransferLeaderRequest<TypeConfig>) {
    put_vote(out, request.from_leader());
    codec::put_u64(out, *request.to_node_id());
    put_log_id_option(out, request.last_log_id());
}

pub(crate) fn transfer_request(body: &[u8]) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let mut reader = Reader::new(body);
    let (vote, to, last) = (codec::vote(&mut reader)?, reader.u64()?, codec::log_id_option(&mut reader)?);
    reader.finish()?;
    Ok(TransferLeaderRequest::new(vote, to, last))
}

#[cfg(test)]
mod tests {
    use openraft::{entry::RaftEntry, raft::StreamAppendError};

    use super::*;
    use crate::types::{LogId, Payload, Vote};

    fn log_id(index: u64) -> LogId {
        openraft::testing::log_id::<TypeConfig>(3, 1, index)
    }

    #[test]
    fn append_requests_survive_the_wire() {
        let request = AppendRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(log_id(9)),
            entries: vec![
                Entry::new_blank(log_id(10)),
                Entry::new(
                    log_id(11),
                    openraft::EntryPayload::Normal(Payload(Bytes::from_static(b"content"))),
                ),
            ],
            leader_commit: None,
        };
        let mut out = Vec::new();
        put_append_request(&mut out, &request);
        let decoded = append_request(&Bytes::from(out.clone())).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{request:?}"));
        // Large content is not copied, and the bytes are the same.
        let large = Bytes::from(vec![7; SHARED_BYTES_MIN]);
        let mut with_large = request.clone();
        with_large
            .entries
            .push(Entry::new(log_id(12), openraft::EntryPayload::Normal(Payload(large.clone()))));
        let mut head = Vec::new();
        let rest = put_append_request_head(&mut head, &with_large);
        assert_eq!((rest.len(), rest.as_ptr()), (large.len(), large.as_ptr()));
        let mut whole = Vec::new();
        put_append_request(&mut whole, &with_large);
        assert_eq!(whole, [&head[..], &rest].concat());
        let decoded = append_request(&Bytes::from(whole)).unwrap();
        assert_eq!(decoded.entries, with_large.entries);
        for len in 0..out.len() {
            assert!(append_request(&Bytes::copy_from_slice(&out[..len])).is_err());
        }
    }

    #[test]
    fn append_results_survive_the_wire() {
        for result in [
            Ok(None),
            Ok(Some(log_id(4))),
            Err(StreamAppendError::Conflict(log_id(5))),
            Err(StreamAppendError::HigherVote(Vote::new(8, 2))),
        ] {
            let mut out = Vec::new();
            put_append_result(&mut out, &result);
            assert_eq!(append_result(&out).unwrap(), result);
            assert!(append_result(&out[..out.len() - 1]).is_err());
        }
    }
}

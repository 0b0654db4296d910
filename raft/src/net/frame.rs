//! One frame: the length of what follows (u32), the kind (u8), the call's or stream's id (u64), the group
//! (u32), then the body. Little endian. An answer carries the kind and id of what it answers.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use crate::{GroupId, config::ENTRY_BYTES_LIMIT};

/// The bytes of a frame before its body, without the length itself.
const HEAD_BYTES: usize = 13;

/// The largest frame accepted: the largest entry and some overhead.
const FRAME_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(ENTRY_BYTES_LIMIT + (1 << 20) <= FRAME_BYTES_MAX);

/// The largest greeting accepted. One of a node that was started hundreds of times has 2.5 KB.
pub(crate) const GREETING_BYTES_MAX: usize = 16 * 1024;

/// Frames up to this size are merged into one write.
const MERGE_BYTES_MAX: usize = 64 * 1024;

/// The most space that is made for a frame before more than as much has arrived: whoever reaches the port can
/// claim the largest frame with four bytes.
const CLAIM_BYTES_MAX: usize = 1 << 20;

/// ... or, once more has arrived, than so many times as much: with each growth, what has arrived is copied.
const CLAIM_FACTOR: usize = 3;

/// The buffer of a larger frame is not used again.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// What a frame asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The first frame of a connection.
    Hello = 1,
    /// A request of a stream of AppendEntries.
    Stream = 2,
    /// No more requests on that stream.
    StreamEnd = 3,
    /// A single AppendEntries: a heartbeat.
    Append = 4,
    Vote = 5,
    PreVote = 6,
    TransferLeader = 7,
    SnapshotBegin = 8,
    SnapshotPages = 9,
    SnapshotEnd = 10,
    /// A batch of proposals for the leader.
    Forward = 11,
    /// The leader's confirmed read index.
    ReadIndex = 12,
    /// An administrative request for the leader.
    Admin = 13,
    /// Pages for a peer that lost its own.
    FetchPages = 14,
    /// A leader asks for the peer's vote.
    Confirm = 15,
    /// Asks whether the other side is there at all.
    Ping = 16,
    /// What members tell each other twice a second.
    Report = 17,
}

impl Kind {
    const ALL: [Kind; 17] = [
        Kind::Hello,
        Kind::Stream,
        Kind::StreamEnd,
        Kind::Append,
        Kind::Vote,
        Kind::PreVote,
        Kind::TransferLeader,
        Kind::SnapshotBegin,
        Kind::SnapshotPages,
        Kind::SnapshotEnd,
        Kind::Forward,
        Kind::ReadIndex,
        Kind::Admin,
        Kind::FetchPages,
        Kind::Confirm,
        Kind::Ping,
        Kind::Report,
    ];

    /// Whether its request or its answer can occupy a connection for long.
    pub(crate) fn may_be_huge(self) -> bool {
        match self {
            Kind::Stream
            | Kind::StreamEnd
            | Kind::SnapshotBegin
            | Kind::SnapshotPages
            | Kind::SnapshotEnd
            | Kind::Forward
            | Kind::FetchPages => true,
            Kind::Hello
            | Kind::Append
            | Kind::Vote
            | Kind::PreVote
            | Kind::TransferLeader
            | Kind::ReadIndex
            | Kind::Admin
            | Kind::Confirm
            | Kind::Ping
            | Kind::Report => false,
        }
    }

    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// A frame as received.
pub(crate) struct Frame {
    pub kind: Kind,
    pub id: u64,
    pub group: GroupId,
    pub body: Bytes,
}

/// A frame ready to be sent.
pub(crate) fn encode(kind: Kind, id: u64, group: GroupId, body: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(4 + HEAD_BYTES + body.len());
    begin(&mut out, kind, id, group);
    out.extend_from_slice(body);
    finish(out)
}

/// Starts a frame in an empty buffer, to which the body is then appended.
pub(crate) fn begin(out: &mut Vec<u8>, kind: Kind, id: u64, group: GroupId) {
    out.extend_from_slice(&[0; 4]);
    out.push(kind as u8);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&group.to_le_bytes());
}

/// Fills in the length of a frame started with `begin`.
pub(crate) fn finish(mut out: Vec<u8>) -> Bytes {
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
    out.into()
}

/// A frame on its way out: most are in one piece, and large content that others share follows its head.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    head: Bytes,
    rest: Bytes,
}

impl From<Bytes> for Outgoing {
    fn from(frame: Bytes) -> Outgoing {
        Outgoing { head: frame, rest: Bytes::new() }
    }
}

/// Fills in the length of a frame started with `begin` whose content ends with `rest`.
pub(crate) fn finish_with(mut out: Vec<u8>, rest: Bytes) -> Outgoing {
    let len = (out.len() - 4 + rest.len()) as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
    Outgoing { head: out.into(), rest }
}

/// Reads the next frame; `buffer` keeps what was read beyond it.
pub(crate) async fn read(reader: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Frame> {
    read_up_to(FRAME_BYTES_MAX, reader, buffer).await
}

/// Reads the first frame of a connection: nobody has said yet who sends it, so it is small.
pub(crate) async fn read_greeting(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Frame> {
    read_up_to(GREETING_BYTES_MAX, reader, buffer).await
}

async fn read_up_to(
    bytes_max: usize,
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Frame> {
    loop {
        if buffer.len() >= 4 {
            let len = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
            if !(HEAD_BYTES..=bytes_max).contains(&len) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
            }
            if buffer.len() >= 4 + len {
                buffer.advance(4);
                let mut body = buffer.split_to(len).freeze();
                if len > KEPT_BYTES_MAX {
                    // What follows would hold the space of the large frame for as long as the connection lasts.
                    *buffer = BytesMut::from(&buffer[..]);
                }
                let kind = body.get_u8();
                let (id, group) = (body.get_u64_le(), body.get_u32_le());
                let kind = Kind::of(kind).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of unknown kind {kind}"))
                })?;
                return Ok(Frame { kind, id, group, body });
            }
            buffer.reserve((4 + len - buffer.len()).min((CLAIM_FACTOR * buffer.len()).max(CLAIM_BYTES_MAX)));
        } else {
            buffer.reserve(bytes_max.min(64 * 1024));
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The whole frames at the front of some bytes, each with its kind.
#[cfg(feature = "simulation")]
pub(crate) fn split(mut bytes: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        let (whole, rest) = bytes.split_at_checked(4 + len)?;
        bytes = rest;
        Some((Kind::of(*whole.get(4)?)?, whole))
    })
}

/// Writes frames as they come, small ones merged, until the sender or the connection is gone.
pub(crate) async fn write_all(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::UnboundedReceiver<Outgoing>,
) {
    let mut waiting = Vec::new();
    let mut merged = Vec::new();
    while frames.recv_many(&mut waiting, 256).await > 0 {
        for part in waiting.drain(..).flat_map(|frame: Outgoing| [frame.head, frame.rest]) {
            if merged.len() + part.len() <= MERGE_BYTES_MAX {
                merged.extend_from_slice(&part);
                continue;
            }
            if writer.write_all(&merged).await.is_err() || writer.write_all(&part).await.is_err() {
                return;
            }
            merged.clear();
        }
        if writer.write_all(&merged).await.is_err() {
            return;
        }
        merged.clear();
    }
    // The connection closes when both halves are dropped; what was queued has been written.
    let _ = writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{GREETING_BYTES_MAX, HEAD_BYTES, Kind, encode, read, read_greeting};

    #[tokio::test]
    async fn frames_survive_any_split() {
        let mut wire = encode(Kind::Vote, 7, 1, b"body").to_vec();
        wire.extend_from_slice(&encode(Kind::Hello, u64::MAX, 0, b""));
        for split in 0..wire.len() {
            let (left, right) = wire.split_at(split);
            let mut reader = tokio::io::AsyncReadExt::chain(left, right);
            let mut buffer = BytesMut::new();
            let first = read(&mut reader, &mut buffer).await.unwrap();
            assert_eq!(
                (first.kind, first.id, first.group, &first.body[..]),
                (Kind::Vote, 7, 1, &b"body"[..])
            );
            let second = read(&mut reader, &mut buffer).await.unwrap();
            assert_eq!((second.kind, second.id, second.body.len()), (Kind::Hello, u64::MAX, 0));
            assert!(read(&mut reader, &mut buffer).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_greeting_is_small_and_nothing_is_made_room_for_before() {
        let largest = encode(Kind::Hello, 0, 0, &vec![7; GREETING_BYTES_MAX - HEAD_BYTES]);
        let read = read_greeting(&mut &largest[..], &mut BytesMut::new()).await.unwrap();
        assert_eq!(read.body.len(), GREETING_BYTES_MAX - HEAD_BYTES);
        let larger = encode(Kind::Hello, 0, 0, &vec![7; GREETING_BYTES_MAX - HEAD_BYTES + 1]);
        let mut buffer = BytesMut::new();
        assert!(read_greeting(&mut &larger[..], &mut buffer).await.is_err());
        assert!(buffer.capacity() <= 2 * GREETING_BYTES_MAX, "{}", buffer.capacity());
        assert!(super::read(&mut &larger[..], &mut BytesMut::new()).await.is_ok());
    }

    #[tokio::test]
    async fn hostile_frames_are_refused() {
        for wire in
            [&[0xff; 64][..], &[1, 0, 0, 0, 9], &[13, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert!(read(&mut &wire[..], &mut BytesMut::new()).await.is_err());
        }
    }
}

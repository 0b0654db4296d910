//! Sending the pages of the last checkpoint to a node that needs entries which were purged, and receiving
//! them. Bytes are produced only here; the receiver collects them in a staging directory, and a transfer that
//! broke off goes on where it was, as long as the sender's checkpoint is still the same.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use crate::{
    GroupId, Machine, PageWrite,
    checkpoint::{Checkpointer, Head},
    codec::{self, CodecError, Reader, put_bool, put_bytes, put_u32},
    net::{frame::Kind, peer::Peer},
    pages::PageStore,
    platform::Platform,
    state::SnapshotMeta,
    types::Vote,
};

/// Page bytes in one frame.
const CHUNK_BYTES: usize = 1 << 20;

fn chunk_bytes() -> usize {
    #[cfg(feature = "simulation")]
    return crate::simulation::knobs::SNAPSHOT_CHUNK_BYTES.or(CHUNK_BYTES);
    #[cfg(not(feature = "simulation"))]
    CHUNK_BYTES
}

/// A receiver keeps at most about this much in memory.
const SPILL_BYTES: usize = 32 << 20;

/// How long one chunk, or the installation, may take.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// openraft's snapshot content.
pub(crate) enum SnapshotData {
    /// The pages of the last durable checkpoint, on disk.
    LastCheckpoint,
    /// Pages that a leader has sent.
    Received(Received),
}

/// A complete snapshot in its staging directory.
pub(crate) struct Received {
    pub store: PageStore,
}

/// Sends snapshots; hides the machine's type from the network.
pub(crate) trait SnapshotSender: Send + Sync + 'static {
    /// Sends the last checkpoint; returns the vote that the peer answered with.
    fn send<'a>(&'a self, peer: &'a Peer, vote: Vote) -> BoxFuture<'a, Result<Vote, String>>;
}

/// Counts, and reads, the checkpoint of one group.
pub(crate) struct Sender<M: Machine> {
    pub group: GroupId,
    pub checkpointer: Arc<Checkpointer<M>>,
    pub sent: AtomicU64,
}

impl<M: Machine> SnapshotSender for Sender<M> {
    fn send<'a>(&'a self, peer: &'a Peer, vote: Vote) -> BoxFuture<'a, Result<Vote, String>> {
        Box::pin(self.send_checkpoint(peer, vote))
    }
}

impl<M: Machine> Sender<M> {
    async fn send_checkpoint(&self, peer: &Peer, vote: Vote) -> Result<Vote, String> {
        // No checkpoint is written meanwhile, so all pages are of one.
        let _shared = self.checkpointer.in_use.read().await;
        let store = self.checkpointer.store();
        let head = store.head(self.group).await.map_err(text)?.ok_or("there is no checkpoint")?;
        let mut begin = Vec::new();
        codec::put_vote(&mut begin, &vote);
        put_bytes(&mut begin, &head);
        let answer = self.call(peer, Kind::SnapshotBegin, &begin, CHUNK_TIMEOUT).await?;
        let mut after = resume_point(&answer).map_err(text)?;
        tracing::info!(resumed = after.is_some(), "sending a snapshot");
        loop {
            let pages = store.scan(self.group, after.take(), chunk_bytes()).await.map_err(text)?;
            let Some((last, _)) = pages.last() else { break };
            after = Some(last.clone());
            let answer = self.call(peer, Kind::SnapshotPages, &encode_pages(&pages), CHUNK_TIMEOUT).await?;
            if answer[..] != [1] {
                return Err("the peer has given the transfer up".into());
            }
        }
        let mut end = Vec::new();
        codec::put_vote(&mut end, &vote);
        let answer = self.call(peer, Kind::SnapshotEnd, &end, INSTALL_TIMEOUT).await?;
        let vote = codec::vote(&mut Reader::new(&answer)).map_err(text)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        tracing::info!("the snapshot is installed on the peer");
        Ok(vote)
    }

    async fn call(&self, peer: &Peer, kind: Kind, body: &[u8], timeout: Duration) -> Result<Bytes, String> {
        peer.call(kind, self.group, body, timeout).await.map_err(text)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn encode_pages(pages: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let bytes: usize = pages.iter().map(|(id, content)| id.len() + content.len() + 8).sum();
    let mut out = Vec::with_capacity(4 + bytes);
    put_u32(&mut out, pages.len() as u32);
    for (id, content) in pages {
        put_bytes(&mut out, id);
        put_bytes(&mut out, content);
    }
    out
}

pub(crate) fn decode_pages(body: &[u8]) -> Result<Vec<PageWrite>, CodecError> {
    let mut reader = Reader::new(body);
    let count = reader.u32()?;
    let mut pages = Vec::new();
    for _ in 0..count {
        let id = reader.bytes()?.to_vec();
        pages.push(PageWrite { id, content: Some(reader.bytes()?.to_vec()) });
    }
    reader.finish()?;
    Ok(pages)
}

fn resume_point(answer: &[u8]) -> Result<Option<Vec<u8>>, CodecError> {
    let mut reader = Reader::new(answer);
    let resumes = reader.bool()?;
    let id = reader.bytes()?.to_vec();
    Ok(resumes.then_some(id))
}

/// Collects the pages of one snapshot at a time.
pub(crate) struct Receiver {
    group: GroupId,
    platform: Platform,
    dir: PathBuf,
    cache_bytes: usize,
    staging: Mutex<Option<Staging>>,
}

/// A transfer under way, or broken off.
struct Staging {
    store: PageStore,
    head: Vec<u8>,
    /// The last page that came.
    last: Option<Vec<u8>>,
    /// What is in memory only.
    unspilled_bytes: usize,
}

impl Receiver {
    /// `dir` is the staging directory; what an earlier process left there is of no use.
    pub(crate) fn new<M: Machine>(checkpointer: &Checkpointer<M>, dir: PathBuf) -> Receiver {
        let platform = checkpointer.platform.clone();
        let (group, cache_bytes) = (checkpointer.group, checkpointer.cache_bytes);
        Receiver { group, platform, dir, cache_bytes, staging: Mutex::new(None) }
    }

    /// The answer is the page after which to go on.
    pub(crate) async fn begin(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let mut reader = Reader::new(body);
        codec::vote(&mut reader).map_err(text)?;
        let head = reader.bytes().map_err(text)?.to_vec();
        Head::decode(&head).map_err(text)?;
        let mut staging = self.staging.lock().await;
        if staging.as_ref().is_none_or(|staging| staging.head != head) {
            *staging = None;
            let store = self.create_staging().await?;
            *staging = Some(Staging { store, head, last: None, unspilled_bytes: 0 });
        }
        let last = staging.as_ref().and_then(|staging| staging.last.as_ref());
        let mut answer = Vec::new();
        put_bool(&mut answer, last.is_some());
        put_bytes(&mut answer, last.map_or(&[], |id| id));
        Ok(answer)
    }

    async fn create_staging(&self) -> Result<PageStore, String> {
        self.platform.remove_pages(&self.dir).await.map_err(text)?;
        self.platform.open_pages(self.dir.clone(), self.cache_bytes).await.map_err(text)
    }

    pub(crate) async fn pages(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let pages = decode_pages(body).map_err(text)?;
        let mut staging = self.staging.lock().await;
        let Some(staging) = staging.as_mut() else { return Ok(vec![0]) };
        let last = pages.last().map(|page| page.id.clone());
        let bytes = body.len();
        staging.store.write(self.group, pages).await.map_err(text)?;
        staging.unspilled_bytes += bytes;
        if staging.unspilled_bytes >= SPILL_BYTES {
            staging.store.spill(self.group).await.map_err(text)?;
            staging.unspilled_bytes = 0;
        }
        staging.last = last.or(staging.last.take());
        Ok(vec![1])
    }

    /// The complete snapshot, with the leader's vote.
    pub(crate) async fn end(&self, body: &[u8]) -> Result<(Vote, SnapshotMeta, Received), String> {
        let vote = codec::vote(&mut Reader::new(body)).map_err(text)?;
        let staging = self.staging.lock().await.take().ok_or("no snapshot is being received")?;
        let meta = Head::decode(&staging.head).map_err(text)?.meta();
        staging.store.commit(self.group, staging.head).await.map_err(text)?;
        Ok((vote, meta, Received { store: staging.store }))
    }
}

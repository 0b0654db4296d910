//! Sends the pages of the last checkpoint to a node that needs purged entries, and receives them. The bytes
//! of a snapshot are produced only here, while it is sent. The receiver collects them in a staging directory,
//! and an interrupted transfer resumes where it stopped, as long as the sender's checkpoint is still the
//! same.

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
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::{
    GroupId, Machine, PageWrite,
    agreement::trail::Mark,
    chance,
    codec::{self, CodecError, Reader, put_bool, put_bytes, put_u32, put_u64},
    log::LogStore,
    net::{frame::Kind, peer::Peer},
    pages::{PageStore, PagesError, Tally},
    platform::Platform,
    snapshot::{checkpoint::Checkpointer, content::Received, head::Head},
    types::{LogId, SnapshotMeta, Vote},
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

/// The answers to a piece.
const TAKEN: u8 = 1;
pub(crate) const REFUSED: u8 = 0;

const NOT_NOW: &str = "the peer follows a later leader, or installs what it has received before";
const GIVEN_UP: &str = "the peer has given the transfer up";
const NO_ROOM: &str = "the disk has no room for the snapshot";

/// What must be free in addition to the reserve before a snapshot begins.
const ROOM_BYTES: u64 = 4 << 20;

/// Sends snapshots; hides the machine's type from the network.
pub(crate) trait SnapshotSender: Send + Sync + 'static {
    /// Sends the last checkpoint; returns the vote that the peer answered with.
    fn send<'a>(&'a self, peer: &'a Peer, vote: Vote) -> BoxFuture<'a, Result<Vote, String>>;
}

/// Reads and sends the checkpoint of one group, and counts.
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
    pub(crate) fn new(checkpointer: Arc<Checkpointer<M>>) -> Sender<M> {
        Sender { group: checkpointer.group, checkpointer, sent: AtomicU64::new(0) }
    }

    async fn send_checkpoint(&self, peer: &Peer, vote: Vote) -> Result<Vote, String> {
        self.checkpointer.check_undisputed()?;
        // No checkpoint is written meanwhile, so all pages are of the same one.
        let _shared = self.checkpointer.in_use.read().await;
        let store = self.checkpointer.store();
        let (head, tally) =
            store.head_and_tally(self.group).await.map_err(text)?.ok_or("there is no checkpoint")?;
        let mut begin = Vec::new();
        codec::put_vote(&mut begin, &vote);
        tally.put(&mut begin);
        put_bytes(&mut begin, &head);
        put_marks(&mut begin, &self.checkpointer.applier.trail());
        let answer = self.call(peer, Kind::SnapshotBegin, &begin, CHUNK_TIMEOUT).await?;
        let (transfer, mut after) = begun(&answer).map_err(text)?.ok_or(NOT_NOW)?;
        tracing::info!(resumed = after.is_some(), "sending a snapshot");
        for number in 0.. {
            let pages = store.scan(self.group, after.take(), chunk_bytes()).await.map_err(text)?;
            let Some((last, _)) = pages.last() else { break };
            after = Some(last.clone());
            let mut piece = Vec::new();
            put_u64(&mut piece, transfer);
            put_u64(&mut piece, number);
            put_pages(&mut piece, &pages);
            let answer = self.call(peer, Kind::SnapshotPages, &piece, CHUNK_TIMEOUT).await?;
            if answer[..] != [TAKEN] {
                return Err(GIVEN_UP.into());
            }
        }
        let mut end = Vec::new();
        put_u64(&mut end, transfer);
        let answer = self.call(peer, Kind::SnapshotEnd, &end, INSTALL_TIMEOUT).await?;
        if answer[..] == [REFUSED] {
            return Err(GIVEN_UP.into());
        }
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

fn why(error: PagesError) -> String {
    if matches!(error, PagesError::Full(_)) { NO_ROOM.into() } else { text(error) }
}

pub(crate) fn put_pages(out: &mut Vec<u8>, pages: &[(Vec<u8>, Vec<u8>)]) {
    let bytes: usize = pages.iter().map(|(id, content)| id.len() + content.len() + 8).sum();
    out.reserve(4 + bytes);
    put_u32(out, pages.len() as u32);
    for (id, content) in pages {
        put_bytes(out, id);
        put_bytes(out, content);
    }
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

fn put_marks(out: &mut Vec<u8>, marks: &[Mark]) {
    put_u32(out, marks.len() as u32);
    for mark in marks {
        put_u64(out, mark.index);
        put_u64(out, mark.hash);
    }
}

/// What a leader announces of a snapshot before it sends it.
pub(crate) struct Announced {
    pub(crate) vote: Vote,
    /// The tally of its pages.
    tally: Tally,
    head: Vec<u8>,
    /// The running hashes of the log that it comes from. Earlier versions send none.
    pub(crate) trail: Vec<Mark>,
    /// The last entry in it.
    pub(crate) last: Option<LogId>,
}

impl Announced {
    pub(crate) fn decode(body: &[u8]) -> Result<Announced, CodecError> {
        let mut reader = Reader::new(body);
        let vote = codec::vote(&mut reader)?;
        let tally = Tally::read(&mut reader)?;
        let head = reader.bytes()?.to_vec();
        let last = Head::decode(&head)?.progress.last;
        let mut trail = Vec::new();
        if reader.remaining() > 0 {
            for _ in 0..reader.u32()? {
                trail.push(Mark { index: reader.u64()?, hash: reader.u64()? });
            }
        }
        Ok(Announced { vote, tally, head, trail, last })
    }
}

/// The number of a transfer that was begun, and the page after which to resume.
type Begun = (u64, Option<Vec<u8>>);

/// Decodes a receiver's answer; None if it refuses.
fn begun(answer: &[u8]) -> Result<Option<Begun>, CodecError> {
    if answer == [REFUSED] {
        return Ok(None);
    }
    let mut reader = Reader::new(answer);
    let transfer = reader.u64()?;
    let resumes = reader.bool()?;
    let id = reader.bytes()?.to_vec();
    Ok(Some((transfer, resumes.then_some(id))))
}

/// Collects the pages of one snapshot at a time.
///
/// A piece names its transfer and its number in it: pieces that come late, from a leader that was cut off or
/// over a connection that was given up, change nothing. What was collected is installed only if it is what
/// the sender had.
pub(crate) struct Receiver {
    group: GroupId,
    platform: Platform,
    dir: PathBuf,
    cache_bytes: usize,
    votes: LogStore,
    staging: Mutex<Option<Staging>>,
    /// Held by whoever uses the directory: a transfer, or after it the installation. A leader that has lost
    /// its connection meanwhile starts over, and must not find the directory free.
    directory: Arc<Semaphore>,
}

/// A transfer that is under way, or was interrupted.
struct Staging {
    store: PageStore,
    claim: OwnedSemaphorePermit,
    /// The receiver's number for it: a new one each time it begins, so that only one sender's pieces count.
    transfer: u64,
    /// The leader that sends it.
    vote: Vote,
    head: Vec<u8>,
    /// The tally of the pages that belong to it.
    tally: Tally,
    /// The number of the next piece.
    next: u64,
    /// The last page that came.
    last: Option<Vec<u8>>,
    /// Bytes that are only in memory.
    unspilled_bytes: usize,
}

impl Receiver {
    /// `dir` is the staging directory; what an earlier process left there is of no use.
    pub(crate) fn new<M: Machine>(checkpointer: &Checkpointer<M>, dir: PathBuf, votes: LogStore) -> Receiver {
        let platform = checkpointer.platform.clone();
        let (group, cache_bytes) = (checkpointer.group, checkpointer.cache_bytes);
        let directory = Arc::new(Semaphore::new(1));
        Receiver { group, platform, dir, cache_bytes, votes, staging: Mutex::new(None), directory }
    }

    /// The answer is the transfer's number and the page after which to resume; or a refusal, if the sender no
    /// longer leads or what was received before is still being installed.
    pub(crate) async fn begin(&self, announced: Announced) -> Result<Vec<u8>, String> {
        let Announced { vote, tally, head, .. } = announced;
        let mut staging = self.staging.lock().await;
        let known = staging.as_ref().map(|staging| staging.vote).into_iter().chain(self.votes.vote());
        if known.into_iter().any(|known| known.leader_id.term > vote.leader_id.term) {
            return Ok(vec![REFUSED]);
        }
        let transfer = chance::id();
        match staging.as_mut().filter(|staging| staging.head == head && staging.tally == tally) {
            Some(staging) => (staging.transfer, staging.vote, staging.next) = (transfer, vote, 0),
            None => {
                *staging = None;
                self.check_room().await?;
                let Ok(claim) = self.directory.clone().try_acquire_owned() else { return Ok(vec![REFUSED]) };
                let (store, claim) = self.create_staging(claim).await?;
                let (next, last, unspilled_bytes) = (0, None, 0);
                *staging =
                    Some(Staging { store, claim, transfer, vote, head, tally, next, last, unspilled_bytes });
            }
        }
        let last = staging.as_ref().and_then(|staging| staging.last.as_ref());
        let mut answer = Vec::new();
        put_u64(&mut answer, transfer);
        put_bool(&mut answer, last.is_some());
        put_bytes(&mut answer, last.map_or(&[], |id| id));
        Ok(answer)
    }

    /// Runs in a task of its own: the sender's connection may end, and a half-removed directory must not meet
    /// the next transfer.
    async fn create_staging(
        &self,
        claim: OwnedSemaphorePermit,
    ) -> Result<(PageStore, OwnedSemaphorePermit), String> {
        let (platform, dir, cache_bytes) = (self.platform.clone(), self.dir.clone(), self.cache_bytes);
        let creating = tokio::spawn(async move {
            platform.remove_pages(&dir).await.map_err(text)?;
            let store = platform.open_pages(dir, cache_bytes).await.map_err(text)?;
            Ok((store, claim))
        });
        creating.await.map_err(text)?
    }

    /// A snapshot must not take the last free space of a node that needs it.
    async fn check_room(&self) -> Result<(), String> {
        let space = self.platform.space.clone();
        let has_room = self.platform.block(move || space.has_free(ROOM_BYTES)).await.map_err(text)?;
        if has_room { Ok(()) } else { Err(NO_ROOM.into()) }
    }

    /// Takes one piece, if it is the next one of the transfer under way.
    pub(crate) async fn pages(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let mut staging = self.staging.lock().await;
        let taken = self.take(staging.as_mut(), body).await;
        if taken.as_ref().is_err_and(|why| why == NO_ROOM) {
            // What has arrived so far takes up space that the log may need.
            drop(staging.take());
            self.platform.remove_pages(&self.dir).await.map_err(text)?;
        }
        taken
    }

    async fn take(&self, staging: Option<&mut Staging>, body: &[u8]) -> Result<Vec<u8>, String> {
        let mut reader = Reader::new(body);
        let (transfer, number) = (reader.u64().map_err(text)?, reader.u64().map_err(text)?);
        let pages = decode_pages(reader.rest()).map_err(text)?;
        let Some(staging) = staging.filter(|staging| (staging.transfer, staging.next) == (transfer, number))
        else {
            return Ok(vec![REFUSED]);
        };
        let last = pages.last().map(|page| page.id.clone());
        let bytes = body.len();
        staging.store.write(self.group, pages).await.map_err(text)?;
        staging.unspilled_bytes += bytes;
        if staging.unspilled_bytes >= SPILL_BYTES {
            staging.store.spill(self.group).await.map_err(why)?;
            staging.unspilled_bytes = 0;
        }
        staging.next += 1;
        staging.last = last.or(staging.last.take());
        Ok(vec![TAKEN])
    }

    /// The complete snapshot, with the vote of the leader that sent it. None if the transfer is not the one
    /// under way, or the content is not what was announced.
    pub(crate) async fn end(&self, body: &[u8]) -> Result<Option<(Vote, SnapshotMeta, Received)>, String> {
        let transfer = Reader::new(body).u64().map_err(text)?;
        let mut staging = self.staging.lock().await;
        let Some(Staging { store, claim, vote, head, tally, .. }) =
            staging.take_if(|staging| staging.transfer == transfer)
        else {
            return Ok(None);
        };
        let meta = Head::decode(&head).map_err(text)?.meta();
        if let Err(error) = store.commit(self.group, head).await {
            drop((store, claim));
            self.platform.remove_pages(&self.dir).await.map_err(text)?;
            return Err(why(error));
        }
        let received = store.head_and_tally(self.group).await.map_err(text)?.map(|(_, tally)| tally);
        if received != Some(tally) {
            tracing::error!(expected = ?tally, ?received, "a snapshot is not what its sender has announced; it is thrown away");
            return Ok(None);
        }
        Ok(Some((vote, meta, Received { store, claim })))
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;

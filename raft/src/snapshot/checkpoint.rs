//! Checkpoints: the machine's dirty pages and what belongs to them, written to the page store as one commit.
//! Runs beside `apply`; the log may be purged up to the last durable one.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, RwLock, oneshot},
    time::Instant,
};

use crate::{
    DiskState, GroupId, Machine,
    agreement::trail::Mark,
    codec::CodecError,
    pages::{PageStore, PagesError},
    platform::Platform,
    snapshot::{content::Received, head::Head},
    space::occupied,
    state::{
        applier::{Applier, Begun},
        level,
        progress::Progress,
    },
    types::SnapshotMeta,
    want::Want,
};

/// Page bytes serialized in one step, during which nothing is applied.
const STEP_BYTES: usize = 128 * 1024;

/// The most applied bytes between two checkpoints, however large the state is: a restart replays them.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// A node writes a checkpoint on its own, if nobody has asked for one at a common entry, when the log has
/// grown to this many quarters of its limit.
const ALONE_QUARTERS: u64 = 5;

/// How many checkpoints' states are remembered.
const STATES: usize = 8;

/// How often a checkpoint is written while room is short, if anything was applied, and retried while there is
/// none: so none needs much room, and the log is purged soon.
const EAGER: Duration = Duration::from_millis(500);

/// The most empty commits that follow a checkpoint while room is short, and how many of them in a row may
/// free nothing: sled frees space only with later commits, and first moves what lies behind it.
const SETTLING_MAX: usize = 16;
const SETTLING_IN_VAIN: usize = 4;

/// Page bytes asked for at once when loading.
const LOAD_BYTES: usize = 4 << 20;

/// Why a new state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Pages(#[from] PagesError),
    #[error("the head of the checkpoint: {0}")]
    Head(#[from] CodecError),
    /// The checkpoint itself is sound.
    #[error("the checkpoint has apply level {found}, and this version knows {known}: start a later version")]
    Level { found: u32, known: u32 },
    #[error("page {id}: {why}")]
    Page { id: String, why: String },
    #[error("{0}")]
    Incomplete(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl LoadError {
    /// Whether the pages are sound, and only this version cannot use them.
    pub(crate) fn is_of_a_later_version(&self) -> bool {
        matches!(self, LoadError::Level { .. } | LoadError::Head(CodecError::Later(_)))
    }
}

/// Loads the state of the last commit into the machine. None when there is no commit.
pub(crate) async fn load<M: Machine>(
    store: &PageStore,
    group: GroupId,
    machine: &M,
) -> Result<Option<Progress>, LoadError> {
    let Some(head) = store.head(group).await? else { return Ok(None) };
    let head = Head::decode(&head)?;
    let (found, known) = (head.progress.level, machine.apply_level_max());
    if found > known {
        return Err(LoadError::Level { found, known });
    }
    let mut loader = machine.loader();
    let mut after = None;
    loop {
        let pages = store.scan(group, after.take(), LOAD_BYTES).await?;
        let Some((last, _)) = pages.last() else { break };
        after = Some(last.clone());
        for (id, content) in &pages {
            loader.page(id, content).map_err(|why| LoadError::Page { id: hex(id), why })?;
        }
    }
    loader.finish(&head.machine).map_err(LoadError::Incomplete)?;
    Ok(Some(head.progress))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Someone who waits for a checkpoint, and is told why if there is none.
type Requester = oneshot::Sender<Result<u64, String>>;

/// A checkpoint that was just written, and those who wait for it.
pub(crate) struct Durable {
    index: u64,
    requests: Vec<Requester>,
}

fn answer(requests: Vec<Requester>, answer: &Result<u64, String>) {
    for request in requests {
        // A requester that has gone away does not need the answer.
        let _ = request.send(answer.clone());
    }
}

impl Durable {
    /// Answers those who wait.
    pub(crate) fn announce(self) {
        answer(self.requests, &Ok(self.index));
    }
}

/// Writes checkpoints of one group, one at a time.
pub(crate) struct Checkpointer<M: Machine> {
    pub group: GroupId,
    pub platform: Platform,
    pub applier: Arc<Applier<M>>,
    store: parking_lot::RwLock<Arc<PageStore>>,
    /// The fewest applied bytes that start a checkpoint.
    threshold_bytes: u64,
    /// Page bytes that the last checkpoint wrote.
    written_bytes: AtomicU64,
    /// For a store that replaces the present one.
    pub cache_bytes: usize,
    /// The applier's lock.
    pub in_use: Arc<RwLock<()>>,
    last: Mutex<SnapshotMeta>,
    /// `Applier::bytes` when the last checkpoint began.
    begun_at_bytes: AtomicU64,
    wake: Notify,
    /// A checkpoint is due, and an entry should ask all nodes for it.
    wish: Notify,
    requests: Mutex<Vec<Requester>>,
    /// The system refused the last one something that it may have again.
    is_refused: AtomicBool,
    /// When one was last attempted.
    tried: Mutex<Option<Instant>>,
    /// The digests of all pages at the last checkpoints.
    states: Mutex<VecDeque<Mark>>,
    /// Others have another state or log, and this node's may be wrong: nobody is given it.
    pub is_disputed: AtomicBool,
    pub count: AtomicU64,
    pub pages_written: AtomicU64,
    pub installed: AtomicU64,
}

impl<M: Machine> Checkpointer<M> {
    pub(crate) fn new(
        group: GroupId,
        platform: Platform,
        applier: Arc<Applier<M>>,
        store: Arc<PageStore>,
        threshold_bytes: u64,
        cache_bytes: usize,
    ) -> Checkpointer<M> {
        let last = applier.paused(|_, progress| progress.snapshot_meta());
        let in_use = applier.in_use.clone();
        Checkpointer {
            group,
            platform,
            applier,
            store: parking_lot::RwLock::new(store),
            threshold_bytes,
            written_bytes: AtomicU64::new(0),
            cache_bytes,
            in_use,
            last: Mutex::new(last),
            begun_at_bytes: AtomicU64::new(0),
            wake: Notify::new(),
            wish: Notify::new(),
            requests: Mutex::default(),
            states: Mutex::default(),
            is_disputed: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            tried: Mutex::default(),
            count: AtomicU64::new(0),
            pages_written: AtomicU64::new(0),
            installed: AtomicU64::new(0),
        }
    }

    /// Why this state is not given to others, if it is not.
    pub(crate) fn check_undisputed(&self) -> Result<(), String> {
        if self.is_disputed.load(Ordering::Acquire) {
            return Err("the members do not agree whose state is right".to_owned());
        }
        Ok(())
    }

    /// The page store. Installing a snapshot replaces it, so this must not be kept across `in_use`.
    pub(crate) fn store(&self) -> Arc<PageStore> {
        self.store.read().clone()
    }

    /// The last durable checkpoint.
    pub(crate) fn last(&self) -> SnapshotMeta {
        self.last.lock().clone()
    }

    /// Applied bytes since the last checkpoint began.
    pub(crate) fn bytes_since(&self) -> u64 {
        self.applier.bytes.load(Ordering::Relaxed).saturating_sub(self.begun_at_bytes.load(Ordering::Relaxed))
    }

    /// How far the log may grow. Random writes touch all pages, so a checkpoint costs as much as the state is
    /// large: letting the log grow as long as the last checkpoint was bounds the write amplification.
    fn allowed_bytes(&self) -> u64 {
        self.threshold_bytes.max(self.written_bytes.load(Ordering::Relaxed).min(LOG_BYTES_MAX))
    }

    fn has_tried_lately(&self) -> bool {
        self.tried.lock().is_some_and(|tried| tried.elapsed() < EAGER)
    }

    /// Whether an entry should ask all nodes for a checkpoint.
    pub(crate) fn is_wished(&self) -> bool {
        self.bytes_since() >= self.allowed_bytes()
            && self.applier.level() >= level::CHECKPOINTS
            && self.applier.is_whole()
    }

    /// Whether this node should write one, whatever the others do.
    fn is_due(&self) -> bool {
        let (since, allowed, space) = (self.bytes_since(), self.allowed_bytes(), &self.platform.space);
        if space.checkpoint_waits() || self.is_refused.load(Ordering::Relaxed) {
            return !self.has_tried_lately();
        }
        if since > 0 && space.is_tight() && !self.has_tried_lately() {
            return true;
        }
        let quarters = if self.applier.level() >= level::CHECKPOINTS { ALONE_QUARTERS } else { 4 };
        since >= allowed.saturating_mul(quarters) / 4
    }

    /// Starts a checkpoint if one is asked for or due. Cheap.
    pub(crate) fn consider(&self) {
        if self.applier.has_begun() || self.is_due() {
            self.wake.notify_one();
        } else if self.is_wished() {
            self.wish.notify_one();
        }
    }

    /// Returns when an entry should ask all nodes for a checkpoint.
    pub(crate) async fn wished(&self) {
        loop {
            self.wish.notified().await;
            if self.is_wished() {
                return;
            }
        }
    }

    /// The states at the last checkpoints, to tell others.
    pub(crate) fn states(&self) -> Vec<Mark> {
        self.states.lock().iter().copied().collect()
    }

    /// The state at a checkpoint; None if there was none at that entry, or it is not remembered.
    pub(crate) fn state_at(&self, index: u64) -> Option<u64> {
        self.states.lock().iter().find(|mark| mark.index == index).map(|mark| mark.hash)
    }

    /// Remembers the state that is on disk.
    pub(crate) async fn note_state(&self) -> Result<(), PagesError> {
        let Some((head, tally)) = self.store().head_and_tally(self.group).await? else { return Ok(()) };
        // It was decoded before, or written by this version.
        let Ok(head) = Head::decode(&head) else { return Ok(()) };
        // Below that level pages may have had other forms on other nodes.
        if head.progress.level >= level::CHECKPOINTS {
            let mut states = self.states.lock();
            states.retain(|mark| mark.index != head.index());
            if states.len() == STATES {
                states.pop_front();
            }
            states.push_back(Mark { index: head.index(), hash: tally.digest });
        }
        Ok(())
    }

    /// Asks for a checkpoint of at least what is applied now; resolves to its index when it is durable.
    pub(crate) fn request(&self) -> oneshot::Receiver<Result<u64, String>> {
        let (sender, receiver) = oneshot::channel();
        self.requests.lock().push(sender);
        self.wake.notify_one();
        receiver
    }

    /// Waits until a checkpoint is due and writes it.
    pub(crate) async fn next(&self) -> Durable {
        loop {
            self.wake.notified().await;
            let requests = if self.applier.has_begun() {
                // That one is of an earlier entry: requests get the next.
                self.wake.notify_one();
                Vec::new()
            } else {
                let requests = std::mem::take(&mut *self.requests.lock());
                if requests.is_empty() && !self.is_due() {
                    continue;
                }
                requests
            };
            let begun_at_bytes = self.begun_at_bytes.load(Ordering::Relaxed);
            let written = self.write().await;
            self.platform.space.set_checkpoint_waits(matches!(written, Err(PagesError::Full(_))));
            self.is_refused.store(matches!(written, Err(PagesError::Refused { .. })), Ordering::Relaxed);
            *self.tried.lock() = Some(Instant::now());
            match written {
                Ok(index) => return Durable { index, requests },
                // What was to be written becomes part of the next one.
                Err(PagesError::Full(why)) => {
                    tracing::debug!(why, "there is no room for a checkpoint");
                    self.begun_at_bytes.store(begun_at_bytes, Ordering::Relaxed);
                    answer(requests, &Err(format!("the disk has no room for a checkpoint: {why}")));
                }
                Err(error) if error.may_pass() => {
                    tracing::warn!(%error, "a checkpoint has to wait");
                    self.begun_at_bytes.store(begun_at_bytes, Ordering::Relaxed);
                    answer(requests, &Err(format!("there is no checkpoint at present: {error}")));
                }
                // The page store is poisoned and its fatal handler is ending the process.
                Err(error) => tracing::error!(%error, "the checkpoint failed"),
            }
        }
    }

    async fn write(&self) -> Result<u64, PagesError> {
        let started = Instant::now();
        let begun = self.applier.begin_checkpoint().await;
        let Begun { progress, head, bytes: begun_at, exclusive: _exclusive } = begun;
        self.begun_at_bytes.store(begun_at, Ordering::Relaxed);
        let store = self.store();
        let (mut written, mut bytes, mut removed) = (0, 0, 0);
        loop {
            let mut pages = Vec::new();
            let more = self.applier.paused(|machine, _| machine.checkpoint_step(STEP_BYTES, &mut pages));
            written += pages.len();
            bytes += pages.iter().filter_map(|page| page.content.as_ref()).map(Vec::len).sum::<usize>();
            removed += pages.iter().filter(|page| page.content.is_none()).count();
            if !pages.is_empty() {
                store.write(self.group, pages).await?;
            }
            if !more {
                break;
            }
        }
        self.applier.written();
        let head = Head::encode(&progress, &head);
        store.commit(self.group, head.clone()).await?;
        let space = &self.platform.space;
        if space.is_tight() && (removed > 0 || space.disk().state >= DiskState::Short) {
            self.settle(&store, &head).await?;
            drop(store);
            self.renew(&head).await?;
        }
        self.note_state().await?;
        let index = progress.last.map_or(0, |id| id.index);
        *self.last.lock() = progress.snapshot_meta();
        self.written_bytes.store(bytes as u64, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.pages_written.fetch_add(written as u64, Ordering::Relaxed);
        let ms = started.elapsed().as_millis() as u64;
        if space.is_tight() {
            // Checkpoints are frequent then.
            tracing::debug!(index, pages = written, ms, "checkpoint written");
        } else {
            tracing::info!(index, pages = written, ms, "checkpoint written");
        }
        Ok(index)
    }

    /// Makes the page store free the space of what was removed or replaced.
    async fn settle(&self, store: &PageStore, head: &[u8]) -> Result<(), PagesError> {
        let dir = store.dir().to_owned();
        let (mut least, mut in_vain) = (u64::MAX, 0);
        for _ in 0..SETTLING_MAX {
            let looked_at = dir.clone();
            // It fails only by a panic, which is reported.
            let present = self.platform.block(move || occupied(&looked_at)).await.unwrap_or(0);
            in_vain = if present < least { 0 } else { in_vain + 1 };
            least = least.min(present);
            if in_vain == SETTLING_IN_VAIN {
                break;
            }
            match store.commit(self.group, head.to_vec()).await {
                Err(error) if error.may_pass() => break,
                settled => settled?,
            }
        }
        Ok(())
    }

    /// Replaces the state with a received snapshot: first in memory, then on disk. After a crash in between,
    /// the old pages and the old log are still there, and the leader sends the snapshot again.
    pub(crate) async fn install(&self, received: Received) -> Result<(), LoadError> {
        let _exclusive = self.in_use.write().await;
        let Received { store: staging, claim: _claim } = received;
        let progress = load(&staging, self.group, &*self.applier.machine)
            .await?
            .ok_or_else(|| LoadError::Incomplete("the snapshot has no head".into()))?;
        self.replace_store(staging).await?;
        self.begun_at_bytes.store(self.applier.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        *self.last.lock() = progress.snapshot_meta();
        self.applier.replaced(progress);
        self.note_state().await?;
        self.installed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Replaces the live directory with the staging directory. Nobody uses either: `in_use` is held.
    pub(crate) async fn replace_store(&self, staging: PageStore) -> Result<(), LoadError> {
        let live = self.store();
        let (live_dir, staging_dir) = (live.dir().to_owned(), staging.dir().to_owned());
        let close = move || {
            live.close();
            staging.close();
        };
        self.platform.block(close).await?;
        let mut replaced = self.platform.replace_pages(live_dir.clone(), staging_dir.clone()).await;
        while let Err(error) = &replaced
            && self.is_worth_waiting(Want::of(error), error).await
        {
            replaced = self.platform.replace_pages(live_dir.clone(), staging_dir.clone()).await;
        }
        replaced?;
        let mut opened = self.platform.open_pages(live_dir.clone(), self.cache_bytes).await;
        while let Err(error @ PagesError::Refused { want, .. }) = &opened
            && self.is_worth_waiting(Some(*want), error).await
        {
            opened = self.platform.open_pages(live_dir.clone(), self.cache_bytes).await;
        }
        *self.store.write() = Arc::new(opened?);
        Ok(())
    }

    /// Waits a moment where the system may give later what it refused: there is no way back, and a node must
    /// not end for it.
    async fn is_worth_waiting(&self, want: Option<Want>, error: &impl std::fmt::Display) -> bool {
        if !want.is_some_and(Want::may_pass) || self.platform.space.is_over() {
            return false;
        }
        tracing::warn!(%error, "new pages have to wait");
        tokio::time::sleep(EAGER).await;
        true
    }
}

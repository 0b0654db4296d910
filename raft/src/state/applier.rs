//! Applies entries to the [`Machine`], keeps what a checkpoint has to record of the log (`progress.rs`), and
//! begins checkpoints between two entries.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::EntryPayload;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};

use crate::{
    Batch, Entropy, Machine, Proposal,
    agreement::trail::{self, Mark, Trail},
    aside,
    clock::{Clock, Stamp},
    fatal,
    proposals::{
        batch::ProposalBatch,
        entry::{self, Head, Pace},
        propose::Proposer,
    },
    state::progress::Progress,
    types::{Entry, LogId, StoredMembership},
};

/// How long a thread is held to wait until an entry is applied: it may be one that takes long.
const PATIENCE: Duration = Duration::from_millis(5);

/// How often a task that waits for the pages checks whether an entry has begun a checkpoint meanwhile.
const BEGUN_LOOK: Duration = Duration::from_millis(50);

/// A checkpoint that has begun, with no page written yet.
pub(crate) struct Begun {
    pub progress: Progress,
    /// The machine's head.
    pub head: Vec<u8>,
    /// The payload bytes applied by then.
    pub bytes: u64,
    /// Keeps readers off the pages until they are written.
    pub exclusive: OwnedRwLockWriteGuard<()>,
}

/// What an entry asks of a node besides its proposals.
#[derive(Default)]
struct Asks {
    /// The entropy that came with a higher level, if this entry raised the level.
    raised: Option<Entropy>,
    checkpoint: bool,
}

/// How far the machine is with a checkpoint.
#[derive(Default)]
enum Stage {
    #[default]
    None,
    /// An entry has asked for it, and nobody writes it yet.
    Begun(Begun),
    Writing,
}

/// Applies entries on one node. Shared by openraft's worker, the checkpointer and the readers.
pub(crate) struct Applier<M: Machine> {
    pub machine: Arc<M>,
    pub clock: Arc<Clock>,
    pub proposer: Arc<Proposer<M::Local>>,
    /// Locked while the machine changes, so that a checkpoint sees both as of one entry.
    progress: Mutex<Progress>,
    applied_index: watch::Sender<u64>,
    applied_term: AtomicU64,
    level: Arc<AtomicU32>,
    is_closing: AtomicBool,
    fatal: fatal::Handler,
    /// The running hash at the latest entries.
    trail: Mutex<Trail>,
    /// The checkpoint being taken. Where both are locked, `progress` comes first.
    stage: Mutex<Stage>,
    /// Held for reading while pages are read for a peer, for writing while a checkpoint is written.
    pub in_use: Arc<RwLock<()>>,
    /// Payload bytes applied since the start.
    pub bytes: AtomicU64,
    pub entries: AtomicU64,
}

impl<M: Machine> Applier<M> {
    pub(crate) fn new(
        machine: Arc<M>,
        clock: Arc<Clock>,
        proposer: Arc<Proposer<M::Local>>,
        progress: Progress,
        level: Arc<AtomicU32>,
        fatal: fatal::Handler,
    ) -> Applier<M> {
        level.store(progress.level, Ordering::Release);
        clock.observe(stamp_of(&*machine));
        clock.close(progress.is_closing);
        let index = progress.last.map_or(0, |id| id.index);
        let term = progress.last.map_or(0, |id| id.committed_leader_id().term);
        let mut trail = Trail::default();
        trail.begin(progress.mark());
        Applier {
            machine,
            clock,
            proposer,
            level,
            is_closing: AtomicBool::new(progress.is_closing),
            fatal,
            trail: Mutex::new(trail),
            stage: Mutex::default(),
            in_use: Arc::default(),
            progress: Mutex::new(progress),
            applied_index: watch::Sender::new(index),
            applied_term: AtomicU64::new(term),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    pub(crate) fn index(&self) -> u64 {
        *self.applied_index.borrow()
    }

    pub(crate) fn term(&self) -> u64 {
        self.applied_term.load(Ordering::Acquire)
    }

    /// The level at which entries are applied; 0 before the first.
    pub(crate) fn level(&self) -> u32 {
        self.level.load(Ordering::Acquire)
    }

    /// Whether the log clock waits for the wall clock.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Waits until `index` is applied.
    pub(crate) async fn wait(&self, index: u64) {
        if self.index() < index {
            let mut applied = self.applied_index.subscribe();
            // Cannot fail: the sender lives in `self`.
            let _ = applied.wait_for(|applied| *applied >= index).await;
        }
    }

    /// Follows the index of the last applied entry.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    /// The running hash after an entry; None if it is not kept.
    pub(crate) fn hash_at(&self, index: u64) -> Option<u64> {
        self.trail.lock().at(index)
    }

    /// Falsifies the running hash.
    #[cfg(feature = "simulation")]
    pub(crate) fn mislead(&self) {
        let mut progress = self.progress.lock();
        progress.hash = progress.hash.map(u64::reverse_bits);
        self.trail.lock().begin(progress.mark());
    }

    /// The running hash after each entry for which it is kept.
    pub(crate) fn trail(&self) -> Vec<Mark> {
        self.trail.lock().all()
    }

    /// The running hashes to tell others.
    pub(crate) fn told(&self) -> Vec<Mark> {
        self.trail.lock().told()
    }

    /// Runs `step` while nothing is applied.
    pub(crate) fn paused<R>(&self, step: impl FnOnce(&M, &Progress) -> R) -> R {
        let progress = self.rest();
        step(&self.machine, &progress)
    }

    /// Waits until neither an entry is being applied nor a checkpoint takes a step.
    fn rest(&self) -> MutexGuard<'_, Progress> {
        let soon = self.progress.try_lock_for(PATIENCE);
        soon.unwrap_or_else(|| aside::run(|| self.progress.lock()))
    }

    /// Whether no checkpoint is under way.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(*self.stage.lock(), Stage::None)
    }

    /// Whether an entry has asked for a checkpoint that nobody writes yet.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Begun(_))
    }

    /// The checkpoint that an entry has asked for, or else one that begins now. Ends with
    /// [`Applier::written`].
    pub(crate) async fn begin_checkpoint(&self) -> Begun {
        loop {
            if let Some(begun) = self.take_begun() {
                return begun;
            }
            // An entry that begins a checkpoint meanwhile takes the lock; the loop then takes over that
            // checkpoint.
            let exclusive = tokio::time::timeout(BEGUN_LOOK, self.in_use.clone().write_owned());
            if let Ok(exclusive) = exclusive.await {
                let progress = self.rest();
                *self.stage.lock() = Stage::Writing;
                return self.begin_at(&progress, exclusive);
            }
        }
    }

    fn take_begun(&self) -> Option<Begun> {
        let mut stage = self.stage.lock();
        if !matches!(*stage, Stage::Begun(_)) {
            return None;
        }
        match std::mem::replace(&mut *stage, Stage::Writing) {
            Stage::Begun(begun) => Some(begun),
            Stage::None | Stage::Writing => None,
        }
    }

    /// The machine has delivered all pages of the checkpoint.
    pub(crate) fn written(&self) {
        *self.stage.lock() = Stage::None;
    }

    fn begin_at(&self, progress: &Progress, exclusive: OwnedRwLockWriteGuard<()>) -> Begun {
        let bytes = self.bytes.load(Ordering::Relaxed);
        Begun { progress: progress.clone(), head: self.machine.checkpoint_begin(), bytes, exclusive }
    }

    /// An entry asks for a checkpoint. A node that is still writing one skips it, and so does one whose pages
    /// a peer is reading: that may take long, and until then the old content of everything that changes would
    /// have to be kept.
    fn stage(&self, progress: &Progress) {
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::None)
            && let Ok(exclusive) = self.in_use.clone().try_write_owned()
        {
            *stage = Stage::Begun(self.begin_at(progress, exclusive));
        }
    }

    pub(super) fn apply(&self, entry: Entry) {
        let mut progress = self.rest();
        if !progress.is_followed_by(&entry.log_id) {
            // openraft counts what it asked for as applied, without checking what it got.
            self.give_up(format!("log entry {} was to be applied after {:?}", entry.log_id, progress.last));
        }
        let asks = match &entry.payload {
            EntryPayload::Blank => Asks::default(),
            EntryPayload::Membership(membership) => {
                progress.change_membership(StoredMembership::new(Some(entry.log_id), membership.clone()));
                Asks::default()
            }
            EntryPayload::Normal(payload) => self.apply_payload(&entry.log_id, &payload.0, &mut progress),
        };
        progress.last = Some(entry.log_id);
        progress.hash = trail::follow(progress.hash, &entry, asks.raised);
        if let Some(mark) = progress.mark() {
            self.trail.lock().push(mark);
        }
        if asks.checkpoint {
            self.stage(&progress);
        }
        drop(progress);
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.moved_to(&entry.log_id);
    }

    fn moved_to(&self, last: &LogId) {
        self.applied_term.store(last.committed_leader_id().term, Ordering::Release);
        self.applied_index.send_replace(last.index);
    }

    fn apply_payload(&self, id: &LogId, payload: &[u8], progress: &mut Progress) -> Asks {
        let (index, term) = (id.index, id.committed_leader_id().term);
        // The leader framed it and the log's CRC guards it: what cannot be read must not be guessed.
        let content = entry::decode(payload).unwrap_or_else(|error| {
            self.give_up(format!(
                "log entry {index} is not one of this version ({error}): start a later version"
            ))
        });
        let Head { stamp, raise, pace, is_checkpoint } = content.head;
        let raise = raise.filter(|raise| raise.level > progress.level);
        let level = raise.map_or(progress.level.max(1), |raise| raise.level);
        progress.level = level;
        let known = self.machine.apply_level_max();
        if level > known {
            self.give_up(format!(
                "log entry {index} has apply level {level}, and this version knows {known}: start a later version"
            ));
        }
        self.level.store(level, Ordering::Release);
        self.clock.observe(stamp);
        if let Some(pace) = pace {
            progress.is_closing = pace == Pace::Close;
            self.set_pace(progress.is_closing);
        }
        self.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let proposals = content.batches.into_iter().flat_map(|batch| self.with_locals(batch)).collect();
        let batch = Batch {
            index,
            stamp_ms: stamp.clock_ms,
            ahead_ms: stamp.ahead_ms,
            term,
            level,
            raised: raise.map(|raise| raise.entropy),
            proposals,
        };
        // The machine is not used again after a panic.
        if catch_unwind(AssertUnwindSafe(|| self.machine.apply(batch))).is_err() {
            self.give_up(format!("log entry {index} could not be applied"));
        }
        Asks { raised: raise.map(|raise| raise.entropy), checkpoint: is_checkpoint }
    }

    fn set_pace(&self, is_closing: bool) {
        self.is_closing.store(is_closing, Ordering::Release);
        self.clock.close(is_closing);
    }

    /// Ends the process: what cannot be applied as on the other nodes must not be applied at all.
    fn give_up(&self, why: String) -> ! {
        (self.fatal)(why.clone());
        panic!("{why}")
    }

    fn with_locals<'a>(&self, batch: ProposalBatch<'a>) -> impl Iterator<Item = Proposal<'a, M::Local>> {
        let mut locals = self.proposer.applied(batch.id).into_iter().flatten();
        batch.map(move |bytes| Proposal { bytes, local: locals.next() })
    }

    /// A new state was loaded into the machine.
    pub(crate) fn replaced(&self, progress: Progress) {
        *self.progress.lock() = progress.clone();
        self.trail.lock().begin(progress.mark());
        *self.stage.lock() = Stage::None;
        self.level.store(progress.level, Ordering::Release);
        self.clock.observe(stamp_of(&*self.machine));
        self.set_pace(progress.is_closing);
        if let Some(last) = &progress.last {
            self.moved_to(last);
        }
        self.proposer.skipped();
    }
}

/// The log clock as of the last entry that a machine has applied.
fn stamp_of(machine: &impl Machine) -> Stamp {
    Stamp { clock_ms: machine.clock_ms(), ahead_ms: machine.ahead_ms() }
}

//! openraft's state machine over [`Machine`]: applies entries, keeps what a checkpoint has to say of the log
//! (last applied entry, membership), and answers snapshot requests with the last durable checkpoint.

use std::{
    collections::BTreeSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
    type_config::alias::{SnapshotMetaOf, SnapshotOf},
};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};

use crate::{
    Batch, Entropy, Machine, NodeId, Proposal,
    checkpoint::Checkpointer,
    clock::{Clock, Stamp},
    fatal,
    packet::{self, Head, Pace, Packet},
    propose::Proposer,
    snapshot::SnapshotData,
    trail::{self, Mark, Trail},
    types::{Applied, Entry, LogId, StoredMembership, TypeConfig},
};

pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

/// How often one who waits for the pages looks whether an entry has begun a checkpoint meanwhile.
const BEGUN_LOOK: Duration = Duration::from_millis(50);

/// What has been applied: everything of the state that is not the machine's.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub last: Option<LogId>,
    pub membership: StoredMembership,
    /// Ids of nodes that were members and are not any more. They are never given again.
    pub retired: BTreeSet<NodeId>,
    /// The level by which entries are applied; 0 before the first.
    pub level: u32,
    /// The running hash of the entries; None where it is not known.
    pub hash: Option<u64>,
    /// Whether the log clock waits for the wall clock.
    pub is_closing: bool,
}

impl Default for Progress {
    /// The beginning.
    fn default() -> Progress {
        let (last, membership, retired) = Default::default();
        Progress { last, membership, retired, level: 0, hash: Some(0), is_closing: false }
    }
}

impl Progress {
    /// Where the running hash is.
    fn mark(&self) -> Option<Mark> {
        Some(Mark { index: self.last?.index, hash: self.hash? })
    }

    /// Whether an entry is the next one.
    fn is_followed_by(&self, id: &LogId) -> bool {
        id.index == self.last.map_or(0, |last| last.index + 1)
    }

    fn change_membership(&mut self, next: StoredMembership) {
        self.retired.extend(self.membership.membership().nodes().map(|(id, _)| *id));
        for (id, _) in next.membership().nodes() {
            self.retired.remove(id);
        }
        self.membership = next;
    }
}

/// A checkpoint of which no page is written yet.
pub(crate) struct Begun {
    pub progress: Progress,
    /// The machine's head.
    pub head: Vec<u8>,
    /// The payload bytes applied until then.
    pub bytes: u64,
    /// Nobody reads the pages until they are written.
    pub exclusive: OwnedRwLockWriteGuard<()>,
}

/// What an entry asks of a node beside its proposals.
#[derive(Default)]
struct Asks {
    /// The chance that came with a higher level, if there is a higher one from here on.
    raised: Option<Entropy>,
    checkpoint: bool,
}

/// Where the machine is with a checkpoint.
#[derive(Default)]
enum Stage {
    #[default]
    None,
    /// An entry has asked for it, and nobody has begun to write it.
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
    /// The running hash at the last entries.
    trail: Mutex<Trail>,
    /// The checkpoint that is being taken. Locked with `progress` in hand.
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

    /// The level by which entries are applied; 0 before the first.
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
            // The sender lives in `self`.
            let _ = applied.wait_for(|applied| *applied >= index).await;
        }
    }

    /// Changes, and notices, whenever an entry is applied.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    /// The running hash behind an entry; None if it is not kept.
    pub(crate) fn hash_at(&self, index: u64) -> Option<u64> {
        self.trail.lock().at(index)
    }

    /// Makes the running hash another one.
    #[cfg(feature = "simulation")]
    pub(crate) fn mislead(&self) {
        let mut progress = self.progress.lock();
        progress.hash = progress.hash.map(u64::reverse_bits);
        self.trail.lock().begin(progress.mark());
    }

    /// What to tell others of the running hash.
    pub(crate) fn told(&self) -> Vec<Mark> {
        self.trail.lock().told()
    }

    /// Runs `step` while nothing is applied.
    pub(crate) fn paused<R>(&self, step: impl FnOnce(&M, &Progress) -> R) -> R {
        let progress = self.progress.lock();
        step(&self.machine, &progress)
    }

    /// Whether no checkpoint is begun.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(*self.stage.lock(), Stage::None)
    }

    /// Whether an entry has asked for a checkpoint that nobody writes yet.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Begun(_))
    }

    /// The checkpoint that an entry has asked for, or else one that begins now. Ends with [`Applier::written`].
    pub(crate) async fn begin_checkpoint(&self) -> Begun {
        loop {
            if let Some(begun) = self.take_begun() {
                return begun;
            }
            // Whatever begins meanwhile has it, for this one to go on with.
            let exclusive = tokio::time::timeout(BEGUN_LOOK, self.in_use.clone().write_owned());
            if let Ok(exclusive) = exclusive.await {
                let progress = self.progress.lock();
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

    /// The machine has given all pages of the checkpoint.
    pub(crate) fn written(&self) {
        *self.stage.lock() = Stage::None;
    }

    fn begin_at(&self, progress: &Progress, exclusive: OwnedRwLockWriteGuard<()>) -> Begun {
        let bytes = self.bytes.load(Ordering::Relaxed);
        Begun { progress: progress.clone(), head: self.machine.checkpoint_begin(), bytes, exclusive }
    }

    /// An entry asks for a checkpoint. A node that is still writing one leaves it out, and so does one whose pages a peer reads:
    /// that may take long, and until then the old content of all that changes would have to be kept.
    fn stage(&self, progress: &Progress) {
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::None)
            && let Ok(exclusive) = self.in_use.clone().try_write_owned()
        {
            *stage = Stage::Begun(self.begin_at(progress, exclusive));
        }
    }

    fn apply(&self, entry: Entry) {
        let mut progress = self.progress.lock();
        if !progress.is_followed_by(&entry.log_id) {
            // openraft takes for applied what it asked for, and does not count what it got.
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
        // The leader framed it and the log's CRC guards it: nothing may be guessed here.
        let content = packet::entry(payload).unwrap_or_else(|error| {
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
        let proposals = content.packets.into_iter().flat_map(|packet| self.with_locals(packet)).collect();
        let batch = Batch {
            index,
            stamp_ms: stamp.clock_ms,
            ahead_ms: stamp.ahead_ms,
            term,
            level,
            raised: raise.map(|raise| raise.entropy),
            proposals,
        };
        // Nothing of the machine is used any more after a panic.
        if catch_unwind(AssertUnwindSafe(|| self.machine.apply(batch))).is_err() {
            self.give_up(format!("log entry {index} could not be applied"));
        }
        Asks { raised: raise.map(|raise| raise.entropy), checkpoint: is_checkpoint }
    }

    fn set_pace(&self, is_closing: bool) {
        self.is_closing.store(is_closing, Ordering::Release);
        self.clock.close(is_closing);
    }

    /// Ends the process: what cannot be applied as others apply it must not be applied at all.
    fn give_up(&self, why: String) -> ! {
        (self.fatal)(why.clone());
        panic!("{why}")
    }

    fn with_locals<'a>(&self, packet: Packet<'a>) -> impl Iterator<Item = Proposal<'a, M::Local>> {
        let mut locals = self.proposer.applied(packet.id).into_iter().flatten();
        packet.map(move |bytes| Proposal { bytes, local: locals.next() })
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

/// The time as of the last entry that a machine has applied.
fn stamp_of(machine: &impl Machine) -> Stamp {
    Stamp { clock_ms: machine.clock_ms(), ahead_ms: machine.ahead_ms() }
}

/// The adapter that openraft owns.
pub(crate) struct StateMachine<M: Machine> {
    pub applier: Arc<Applier<M>>,
    pub checkpointer: Arc<Checkpointer<M>>,
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = LastCheckpoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.applier.paused(|_, progress| (progress.last, progress.membership.clone())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            self.applier.apply(entry);
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        self.checkpointer.consider();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> LastCheckpoint {
        LastCheckpoint(self.checkpointer.last())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        match snapshot {
            SnapshotData::Received(received) => {
                self.checkpointer.install(received).await.map_err(io::Error::other)
            }
            SnapshotData::LastCheckpoint => {
                Err(io::Error::other("a snapshot without content cannot be installed"))
            }
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let meta = self.checkpointer.last();
        Ok(meta
            .last_log_id
            .is_some()
            .then(|| SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot: SnapshotData::LastCheckpoint }))
    }
}

/// "Builds" a snapshot by naming the last durable checkpoint; its bytes are made when a peer needs them.
pub(crate) struct LastCheckpoint(SnapshotMeta);

impl RaftSnapshotBuilder<TypeConfig> for LastCheckpoint {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        Ok(SnapshotOf::<TypeConfig, SnapshotData> {
            meta: self.0.clone(),
            snapshot: SnapshotData::LastCheckpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use crate::types::LogId;

    #[test]
    fn only_the_next_entry_follows() {
        let follows = |last: Option<u64>, index| {
            let last = last.map(|index| LogId::new_term_index(2, index));
            let progress = Progress { last, ..Progress::default() };
            progress.is_followed_by(&LogId::new_term_index(3, index))
        };
        assert!(follows(None, 0) && follows(Some(0), 1) && follows(Some(7), 8));
        assert!(!follows(None, 1) && !follows(Some(7), 7) && !follows(Some(7), 9) && !follows(Some(7), 3));
    }
}

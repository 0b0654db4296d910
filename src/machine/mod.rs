//! The replicated state machine: decodes a batch, advances the log clock, removes expired keys, checks
//! WATCHes, runs the calls, and builds the replies for the connections of this node.
//!
//! It never looks at which node proposed an entry. A connection's reads run at their positions between its
//! writes; they exist on this node alone and change nothing.

mod applying;
mod published;
mod waits;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use applying::Applying;
use kvorum_raft::{
    Batch, Loader, PageWrite, aside,
    safeguard::{self, Safeguard},
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use published::Published;

use crate::{
    effects::{Changes, Effects, Listener, Outcome, Replaced},
    proposal::{Pipeline, Requests},
    resp::Reply,
    store::{Chance, ClusterSetting, DATABASES_MAX, PageId, State, StateLoader, Ticket, View, level},
};

/// The highest level of entries that this build can apply; see [`level`] for what each level means.
pub const APPLY_LEVEL_MAX: u32 = level::LEVEL_MAX;

/// How long a thread is held to wait for the lock, ...
const PATIENCE: Duration = Duration::from_millis(5);
/// ... and how long readers then pause, at most so many times.
const READ_PAUSE: Duration = Duration::from_millis(1);
const PAUSES_MAX: usize = 20;

/// The Redis state machine.
pub struct Machine {
    state: RwLock<State>,
    listeners: Vec<Arc<dyn Listener>>,
    /// The lock could not be had in time: readers do not block their threads for it.
    is_slow: AtomicBool,
    readers_turn: tokio::sync::Mutex<()>,
    published: Published,
    /// The sizes of databases as they were last asked for.
    sizes: Mutex<Vec<(u32, usize, usize)>>,
    /// Calls that were refused because they did not fit into memory.
    refused: AtomicU64,
    /// Reused from entry to entry.
    changes: Mutex<Changes>,
}

impl Machine {
    /// An empty state. Databases are created when they are first written to; `databases` is how many the
    /// connections offer, and no call may depend on it.
    pub fn new(databases: u32) -> Machine {
        assert!(databases <= DATABASES_MAX, "the configuration allows no more");
        Machine {
            published: Published::of(&State::new()),
            state: RwLock::new(State::new()),
            is_slow: AtomicBool::new(false),
            readers_turn: tokio::sync::Mutex::default(),
            sizes: Mutex::default(),
            listeners: Vec::new(),
            refused: AtomicU64::new(0),
            changes: Mutex::default(),
        }
    }

    /// The same machine, with another listener to what entries do. They are told in the order in which they
    /// are added.
    pub fn with_listener(mut self, listener: Arc<dyn Listener>) -> Machine {
        self.listeners.push(listener);
        self
    }

    /// What is to be recorded of the next entry.
    fn changes(&self) -> Option<(Changes, usize)> {
        let wanted = self.listeners.iter().filter_map(|listener| listener.wants_changes()).max()?;
        let mut changes = std::mem::take(&mut *self.changes.lock());
        changes.begin(wanted);
        Some((changes, wanted))
    }

    /// How a wait that began at this key ended, after the last applied entry, whose index comes with it; None if it goes
    /// on.
    pub fn outcome_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<(u64, Outcome)> {
        let state = self.read_patiently();
        let outcome = state.outcome_at(db, key, ticket)?;
        Some((state.applied(), waits::outcome_of_claim(&outcome)))
    }

    /// The nodes that have pending waits, each with its run.
    pub fn waiting_nodes(&self) -> BTreeSet<(u64, u64)> {
        self.read_patiently().waiting_nodes().collect()
    }

    /// Runs `read` on a view of database `db`, under the shared lock.
    /// `estimate_ms` is the log clock estimated now (`Node::clock_ms`); `chance` is any number.
    pub fn read<R>(&self, db: u32, estimate_ms: u64, chance: u64, read: impl FnOnce(&View<'_>) -> R) -> R {
        read(&View::new(&self.state.read(), db, estimate_ms, chance))
    }

    /// Runs an encoded request on this node alone, bypassing the log, so that its state diverges from the
    /// others'.
    #[cfg(all(feature = "simulation", debug_assertions))]
    pub fn drift(&self, request: &[u8]) {
        let mut state = self.state.write();
        let mut applying = Applying::new(&mut state, None, 0);
        applying.run_all(&mut Requests::new(request), &mut Reply::off());
    }

    /// The same, once the lock can be had: readers wait without holding a thread while a long call has it. The time
    /// is estimated then.
    pub async fn read_soon<R>(
        &self,
        db: u32,
        estimate_ms: impl Fn() -> u64,
        chance: u64,
        read: impl FnOnce(&View<'_>) -> R,
    ) -> R {
        for _ in 0..PAUSES_MAX {
            if let Some(state) = self.try_read() {
                return read(&View::new(&state, db, estimate_ms(), chance));
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
        // Between entries that follow each other the lock is free for a moment only: one reader at a time queues for it.
        let _turn = self.readers_turn.lock().await;
        read(&View::new(&self.read_patiently(), db, estimate_ms(), chance))
    }

    /// The lock for reading, in turn with entries.
    fn read_patiently(&self) -> RwLockReadGuard<'_, State> {
        self.state.try_read_for(PATIENCE).unwrap_or_else(|| aside::run(|| self.state.read()))
    }

    fn try_read(&self) -> Option<RwLockReadGuard<'_, State>> {
        if let Some(state) = self.state.try_read() {
            self.is_slow.store(false, Relaxed);
            return Some(state);
        }
        if self.is_slow.load(Relaxed) {
            return None;
        }
        let state = self.state.try_read_for(PATIENCE);
        self.is_slow.store(state.is_none(), Relaxed);
        state
    }

    /// The lock for an entry. A long read may have it.
    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.try_write_for(PATIENCE).unwrap_or_else(|| aside::run(|| self.state.write()))
    }

    /// The last applied entry.
    pub fn applied(&self) -> u64 {
        self.published.applied()
    }

    /// The digest of all content. Walks over everything.
    pub fn digest(&self) -> u128 {
        self.digest_at().1
    }

    /// The last applied entry, and the digest of all content at that point. Blocks the applying of entries.
    pub fn digest_at(&self) -> (u64, u128) {
        let state = self.state.read();
        (state.applied(), state.digest())
    }

    /// Each nonempty database, with its number of keys and of keys with a deadline. While a long call is running,
    /// what it was when somebody asked before.
    pub fn database_sizes(&self) -> Vec<(u32, usize, usize)> {
        let Some(state) = self.try_read() else { return self.sizes.lock().clone() };
        let sizes = (0..state.databases()).map(|db| {
            let view = View::new(&state, db, 0, 0);
            (db, view.len(), view.expires())
        });
        let sizes: Vec<_> = sizes.filter(|&(_, keys, _)| keys > 0).collect();
        self.sizes.lock().clone_from(&sizes);
        sizes
    }

    /// The level of the last applied entry; the highest level before the first.
    pub fn level(&self) -> u32 {
        self.published.level()
    }

    /// What all content costs in memory, counted alike on all nodes.
    pub fn used_bytes(&self) -> u64 {
        self.published.used_bytes()
    }

    /// A setting of the whole cluster; None if it was never set.
    pub fn setting(&self, setting: ClusterSetting) -> Option<u64> {
        self.published.setting(setting)
    }

    /// The limit for [`Machine::used_bytes`]; 0 means that there is none, and None that it was never set.
    pub fn maxmemory(&self) -> Option<u64> {
        self.setting(ClusterSetting::Maxmemory)
    }

    /// How many calls of entries were refused for it since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// The log clock.
    pub fn now_ms(&self) -> u64 {
        self.published.now_ms()
    }
}

impl kvorum_raft::Machine for Machine {
    type Local = Pipeline;

    fn apply_level_max(&self) -> u32 {
        APPLY_LEVEL_MAX
    }

    fn clock_ms(&self) -> u64 {
        self.now_ms()
    }

    fn ahead_ms(&self) -> i64 {
        self.published.ahead_ms()
    }

    fn apply(&self, batch: Batch<'_, Pipeline>) {
        assert!(
            batch.level <= APPLY_LEVEL_MAX,
            "log entry {} is of apply level {}, and this version knows levels up to {APPLY_LEVEL_MAX}: start a later one",
            batch.index,
            batch.level,
        );
        let mut answered = Vec::new();
        let mut state = self.write();
        state.enter(batch.index, batch.level);
        if let Some(key) = batch.raised
            && batch.level >= level::BOUNDED
        {
            state.take_hash_key(key);
        }
        let (mut changes, wanted) = self.changes().unzip();
        state.note_touched(wanted);
        let stamp_ms = safeguard::clock_ms(batch.stamp_ms);
        if batch.term == state.term() {
            state.advance(stamp_ms, batch.term);
        } else {
            // All that is due is ended first.
            aside::run(|| state.advance(stamp_ms, batch.term));
        }
        state.set_ahead(batch.ahead_ms);
        let is_own = safeguard::is_off(Safeguard::ReplicatedChance);
        let seed = Chance::new(if is_own { fastrand::u64(..) } else { batch.index }).next_u64();
        let mut applying = Applying::new(&mut state, changes.as_mut(), seed);
        applying.reap();
        for proposal in batch.proposals {
            let mut requests = Requests::new(proposal.bytes);
            applying.caller = None;
            match proposal.local {
                None => applying.run_all(&mut requests, &mut Reply::off()),
                Some(pipeline) => answered.push(applying.run_pipeline(&mut requests, pipeline)),
            }
            check_end(&requests, batch.index, batch.level);
        }
        self.refused.fetch_add(applying.refused, Relaxed);
        let mut ended = applying.ended;
        debug_assert!(
            !state.has_fed(),
            "no page knows which keys were fed: they are served in their own entry"
        );
        let garbage = state.take_garbage();
        ended.extend(state.take_wakes().into_iter().map(waits::ended_of_claim));
        self.published.publish(&state);
        drop(state);
        // Before the replies: a client that subscribes after a reply gets only what comes after it.
        let effects = Effects { index: batch.index, changes, ended };
        self.listeners.iter().for_each(|listener| listener.applied(&effects));
        if let Some(changes) = effects.changes {
            *self.changes.lock() = changes;
        }
        for (done, answer) in answered {
            // If the connection is gone, nobody needs the replies.
            let _ = done.send(answer);
        }
        if !garbage.is_empty() {
            drop_aside(garbage);
        }
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        // A key is dead when the clock is past its deadline, not on it.
        self.published.first_deadline_ms().map(|deadline| deadline.saturating_add(1))
    }

    fn checkpoint_begin(&self) -> Vec<u8> {
        self.write().checkpoint_begin()
    }

    fn checkpoint_step(&self, bytes_max: usize, pages: &mut Vec<PageWrite>) -> bool {
        self.write()
            .checkpoint_step(bytes_max, |id, content| pages.push(PageWrite { id: id.encode(), content }))
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(MachineLoader { machine: self, loader: StateLoader::default() })
    }
}

/// No part of an entry may be skipped: another node may understand it.
fn check_end(requests: &Requests<'_>, index: u64, level: u32) {
    if let Some(tag) = requests.unknown_tag() {
        panic!(
            "log entry {index} has a request of kind {tag}, which this version does not know: start a later one"
        );
    }
    // By the rules of the first level, a malformed request is ignored.
    assert!(!requests.is_malformed() || level < level::BOUNDED, "log entry {index} has a malformed request");
}

/// Drops large values in another thread so as not to hold up the log, or here if no thread can be started.
/// Only memory is freed: the state does not change.
fn drop_aside<T: Send + 'static>(garbage: T) {
    // If the spawn fails, the closure and what it owns are dropped with the error.
    let _ = thread::Builder::new().name("drop".into()).spawn(move || drop(garbage));
}

struct MachineLoader<'a> {
    machine: &'a Machine,
    loader: StateLoader,
}

impl Loader for MachineLoader<'_> {
    fn page(&mut self, id: &[u8], content: &[u8]) -> Result<(), String> {
        let id =
            PageId::decode(id).ok_or_else(|| format!("page id {id:02x?} is not known to this version"))?;
        self.loader.page(id, content).map_err(|error| format!("page {id:?}: {error}"))
    }

    fn finish(self: Box<Self>, head: &[u8]) -> Result<(), String> {
        let new = self.loader.finish(head)?;
        let applied = new.applied();
        let old = {
            let mut state = self.machine.write();
            self.machine.published.publish(&new);
            state.replace(new)
        };
        drop_aside(old);
        let state = self.machine.read_patiently();
        let outcome_of = |ticket| state.outcome_of(ticket).map(|outcome| waits::outcome_of_claim(&outcome));
        let replaced = Replaced { applied, outcome_of: &outcome_of };
        self.machine.listeners.iter().for_each(|listener| listener.replaced(&replaced));
        Ok(())
    }
}

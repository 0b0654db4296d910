//! Room on this node's disk: how much there is, and what happens when there is little.
//!
//! A full disk must not end a node, nor keep anybody from making room. So a reserve is set aside
//! (`reserve.rs`), and growth is refused before the reserve is needed (`room.rs` also asks the
//! others). The reserve is for what frees space, for changes of the membership, and for what consensus itself
//! writes. A writer that finds no space all the same takes some of the reserve and tries again, or waits;
//! nothing that was synced is ever written a second time.
//!
//! What counts is free space and reserve together, whichever of them holds it. The state changes with what
//! this node creates, and is checked several times a second for what others do.

mod probe;
mod reserve;
pub(crate) mod room;
pub(crate) mod room_watch;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::probe::{is_full, occupied, room};
use self::{
    probe::Room,
    reserve::{Reserve, STEP_BYTES},
};
use crate::{Disk, DiskState, NodeConfig, sparse::Sparse, want::Want};

/// By default the reserve, and what is left free beside it, are at most one part in this many of the file
/// system.
const RESERVE_PART: u64 = 8;
const MARGIN_PART: u64 = 16;

/// How long the reserve does not take back what it gave up: a checkpoint may take its time.
const LENT_FOR: Duration = Duration::from_secs(10);

/// How long a writer that found no space waits before it tries again.
const RETRY: Duration = Duration::from_millis(50);

/// How often something small is tried again that the system refused: for two seconds.
const RETRIES_MAX: u32 = 40;

/// How much is to be kept free.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The reserve; None for what fits the file system.
    reserve: Option<u64>,
    /// The default reserve where the file system is large.
    usual: u64,
    /// What is left free beside the reserve: one segment of the log.
    margin: u64,
    /// How long what was given up is left to whoever needed it.
    lent_for: Duration,
}

type Probe = Box<dyn Fn() -> io::Result<Room> + Send + Sync>;

/// The room on a node's disk.
pub(crate) struct Space {
    /// None where nothing is known of the disk, as in a simulation or for a copy: there all is well.
    place: Option<Place>,
    /// Held while the disk is queried.
    reserve: Mutex<Reserve>,
    /// Never held while the disk is queried.
    state: Mutex<State>,
    /// What the log waits for, if it cannot write.
    log_waits_for: Mutex<Option<Want>>,
    /// Whether the last checkpoint found no space.
    checkpoint_waits: AtomicBool,
    /// The node is stopping: nobody waits for space any more.
    is_over: AtomicBool,
    /// Notified at every change of the state.
    changed: Notify,
}

struct Place {
    dir: PathBuf,
    plan: Plan,
    probe: Probe,
}

/// As last measured.
#[derive(Default)]
struct State {
    room: Room,
    held_bytes: u64,
    level: DiskState,
    /// When the reserve gave something up.
    lent: Option<Instant>,
    said: Sparse<&'static str>,
}

impl State {
    /// Free space and reserve together.
    fn kept(&self) -> u64 {
        self.room.free.saturating_add(self.held_bytes)
    }
}

impl Default for Space {
    fn default() -> Space {
        Space {
            place: None,
            reserve: Mutex::default(),
            state: Mutex::default(),
            log_waits_for: Mutex::default(),
            checkpoint_waits: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("dir", &self.place.as_ref().map(|place| &place.dir)).finish()
    }
}

impl Plan {
    fn reserve(&self, total: u64) -> u64 {
        self.reserve.map_or(self.usual.min(total / RESERVE_PART), |bytes| bytes.min(total / 2))
    }

    fn margin(&self, total: u64) -> u64 {
        self.margin.min(total / MARGIN_PART)
    }

    /// The state that follows from what is kept, which is free space and reserve together.
    fn judge(&self, before: DiskState, total: u64, kept: u64) -> DiskState {
        let (reserve, margin) = (self.reserve(total), self.margin(total));
        let room = kept.saturating_sub(reserve);
        // A state is left only with some more room than it was entered with.
        let is_below =
            |state: DiskState, mark: u64| room < if before >= state { mark + mark / 2 } else { mark };
        if kept < reserve / 4 {
            DiskState::Full
        } else if is_below(DiskState::Short, margin) {
            DiskState::Short
        } else if is_below(DiskState::Low, 2 * reserve.max(margin)) {
            DiskState::Low
        } else {
            DiskState::Ample
        }
    }
}

impl Space {
    /// The room of a node's directory. Touches nothing yet.
    pub(crate) fn of(config: &NodeConfig) -> Space {
        let plan = Plan {
            reserve: config.disk_reserve_bytes,
            usual: (2 * config.log_segment_bytes).saturating_add(config.checkpoint_log_bytes),
            margin: config.log_segment_bytes,
            lent_for: LENT_FOR,
        };
        let dir = config.dir.clone();
        Space::with(plan, config.dir.clone(), Box::new(move || probe::room(&dir)))
    }

    fn with(plan: Plan, dir: PathBuf, probe: Probe) -> Space {
        Space { place: Some(Place { dir, plan, probe }), ..Space::default() }
    }

    /// Takes over the reserve in the directory, which is locked for this process. Blocks.
    pub(crate) fn open(&self) {
        let Some(place) = &self.place else { return };
        match Reserve::open(&place.dir) {
            Ok(reserve) => *self.reserve.lock() = reserve,
            Err(error) => tracing::warn!(%error, "no space can be set aside"),
        }
        self.look();
    }

    /// Whether anything is known of the disk.
    pub(crate) fn is_known(&self) -> bool {
        self.place.is_some()
    }

    /// Measures how much room there is, and adjusts the reserve. Blocks.
    pub(crate) fn look(&self) {
        let Some(place) = &self.place else { return };
        let mut reserve = self.reserve.lock();
        let Some(Room { total, free }) = self.measure(place, &reserve) else { return };
        let (wanted, held) = (place.plan.reserve(total), reserve.held_bytes());
        let missing = wanted.saturating_sub(held);
        let taken = missing.min(free.saturating_sub(place.plan.margin(total)));
        let is_lent = self.state.lock().lent.is_some_and(|lent| lent.elapsed() < place.plan.lent_for);
        let changed = if held > wanted {
            reserve.shrink(held - wanted).map(|_| true)
        } else if taken > 0
            && taken >= missing.min(STEP_BYTES)
            && !is_lent
            && self.log_waits_for() != Some(Want::Space)
        {
            reserve.grow(taken)
        } else {
            return self.judge(place);
        };
        match changed {
            Ok(true) => {}
            Ok(false) => {
                // Not tried again at once.
                self.state.lock().lent = Some(Instant::now());
                self.say("this file system sets no space aside, or not enough: others can take the reserve")
            }
            Err(error) => tracing::debug!(%error, "the reserve could not be changed"),
        }
        self.measure(place, &reserve);
        self.judge(place);
    }

    /// None if the file system does not tell.
    fn measure(&self, place: &Place, reserve: &Reserve) -> Option<Room> {
        match (place.probe)() {
            Ok(room) => {
                let mut state = self.state.lock();
                (state.room, state.held_bytes) = (room, reserve.held_bytes());
                Some(room)
            }
            Err(error) => {
                tracing::debug!(%error, "the file system does not tell its free space");
                None
            }
        }
    }

    fn judge(&self, place: &Place) {
        let waits = if self.log_waits_for() == Some(Want::Space) {
            DiskState::Full
        } else if self.checkpoint_waits() {
            DiskState::Short
        } else {
            DiskState::Ample
        };
        let (before, level, free, reserve) = {
            let mut state = self.state.lock();
            let level = place.plan.judge(state.level, state.room.total, state.kept()).max(waits);
            let before = std::mem::replace(&mut state.level, level);
            (before, level, state.room.free, state.held_bytes)
        };
        if before == level {
            return;
        }
        self.changed.notify_one();
        let text = match level {
            DiskState::Ample => "there is room on the disk again",
            DiskState::Low if before > level => "the disk has some room again",
            DiskState::Low => "the disk has little room left",
            DiskState::Short => "the disk has no room for more data",
            DiskState::Full => "the disk is full, and so is most of what this node had set aside",
        };
        let Some(times) = self.state.lock().said.say(text) else { return };
        let dir = place.dir.display();
        if level < before {
            tracing::info!(%dir, free, reserve, times, "{text}");
        } else if level == DiskState::Low {
            tracing::warn!(%dir, free, reserve, times, "{text}");
        } else {
            tracing::error!(%dir, free, reserve, times, "{text}");
        }
    }

    fn say(&self, text: &'static str) {
        let times = self.state.lock().said.say(text);
        if times.is_some() {
            tracing::warn!("{text}");
        }
    }

    /// Gives up some of the reserve. False if there is none. Blocks.
    fn release(&self, bytes: u64) -> bool {
        let Some(place) = &self.place else { return false };
        let mut reserve = self.reserve.lock();
        match reserve.shrink(bytes.max(STEP_BYTES)) {
            Ok(0) => false,
            Ok(given) => {
                tracing::debug!(given, left = reserve.held_bytes(), "took from the reserve of the disk");
                self.state.lock().lent = Some(Instant::now());
                self.measure(place, &reserve);
                self.judge(place);
                true
            }
            Err(error) => {
                // It is tried again at every write that finds no room.
                let text = "the reserve could not be given up";
                if let Some(times) = self.state.lock().said.say(text) {
                    tracing::warn!(%error, times, "{text}");
                }
                false
            }
        }
    }

    /// Makes sure that this much is free, from the reserve if need be. False if it cannot be had. Blocks.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let Some(place) = &self.place else { return true };
        let missing = {
            let reserve = self.reserve.lock();
            let Some(room) = self.measure(place, &reserve) else { return true };
            let missing = bytes.saturating_sub(room.free);
            if missing > reserve.held_bytes() {
                return false;
            }
            missing
        };
        missing == 0 || self.release(missing) && self.has_free(bytes)
    }

    /// Whether this much is free beside the reserve. Blocks.
    pub(crate) fn has_free(&self, bytes: u64) -> bool {
        let Some(place) = &self.place else { return true };
        self.measure(place, &self.reserve.lock()).is_none_or(|room| room.free >= bytes)
    }

    /// Writes something small, from the reserve if there is no other space, and some moments later if there
    /// are no descriptors. `write` must be safe to repeat. Blocks.
    pub(crate) fn with_room<T>(&self, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut retries = 0..RETRIES_MAX;
        loop {
            match write() {
                Err(error) if is_full(&error) && self.release(STEP_BYTES) => {}
                Err(error) if passes(&error) && !self.is_over() && retries.next().is_some() => {
                    std::thread::sleep(RETRY);
                }
                result => return result,
            }
        }
    }

    /// Writes what the log cannot do without: from the reserve, or as soon as there is space, or whatever else
    /// the system has refused and may give later. Gives up when `is_closed`, or when the node stops. `write`
    /// takes about `bytes` bytes, and must be safe to repeat: nothing of it was synced. Blocks.
    pub(crate) fn patiently<T>(
        &self,
        bytes: u64,
        is_closed: impl Fn() -> bool,
        mut write: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let result = loop {
            match write() {
                Err(error) if passes(&error) && !self.is_over() && !is_closed() => {
                    self.wait_for_log(Want::of(&error), &error);
                }
                Err(error) if self.is_known() && is_full(&error) && !self.is_over() && !is_closed() => {
                    if !self.release(bytes) {
                        self.wait_for_log(Some(Want::Space), &error);
                    }
                }
                result => break result,
            }
        };
        self.set_log_waits(None);
        result
    }

    /// From here on nobody waits for space: a waiter would keep the node from stopping.
    pub(crate) fn give_up(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether nobody waits for space any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn wait_for_log(&self, want: Option<Want>, error: &io::Error) {
        if want != Some(Want::Space)
            && let Some(times) = self.state.lock().said.say("the log waits for what the system refuses")
        {
            tracing::error!(%error, times, "the log has to wait, because the system refuses what it needs");
        }
        self.set_log_waits(want);
        std::thread::sleep(RETRY);
    }

    fn set_log_waits(&self, want: Option<Want>) {
        let is_news = std::mem::replace(&mut *self.log_waits_for.lock(), want) != want;
        if let (true, Some(place)) = (is_news, &self.place) {
            self.judge(place);
        }
    }

    /// What the log waits for, if it does: space, or something else that the system has refused.
    pub(crate) fn log_waits_for(&self) -> Option<Want> {
        *self.log_waits_for.lock()
    }

    /// Sets whether the last checkpoint found no space.
    pub(crate) fn set_checkpoint_waits(&self, waits: bool) {
        let is_news = self.checkpoint_waits.swap(waits, Ordering::Relaxed) != waits;
        if let (true, Some(place)) = (is_news, &self.place) {
            self.judge(place);
        }
    }

    /// Whether the last checkpoint found no space.
    pub(crate) fn checkpoint_waits(&self) -> bool {
        self.checkpoint_waits.load(Ordering::Relaxed)
    }

    /// Whether room is so short that nothing is kept that only saves time.
    pub(crate) fn is_tight(&self) -> bool {
        self.place.is_some() && self.state.lock().level > DiskState::Ample
    }

    /// Returns at the next change of the state. Serves one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The state of the disk.
    pub(crate) fn disk(&self) -> Disk {
        let state = self.state.lock();
        let Some(place) = &self.place else { return Disk::default() };
        Disk {
            total_bytes: state.room.total,
            free_bytes: state.room.free,
            reserve_bytes: state.held_bytes,
            reserve_wanted_bytes: place.plan.reserve(state.room.total),
            state: state.level,
        }
    }

    /// How much more data there is room for, beside the reserve and the margin.
    pub(crate) fn growth(&self) -> u64 {
        let Some(place) = &self.place else { return u64::MAX };
        let state = self.state.lock();
        if state.room.total == 0 {
            // The file system does not tell.
            return u64::MAX;
        }
        if state.level >= DiskState::Short {
            return 0;
        }
        let total = state.room.total;
        state.kept().saturating_sub(place.plan.reserve(total)).saturating_sub(place.plan.margin(total))
    }
}

/// Whether the system may give later what it refused now.
pub(crate) fn passes(error: &io::Error) -> bool {
    Want::of(error).is_some_and(Want::may_pass)
}

/// The room of a disk of which nothing is known.
pub(crate) fn unknown() -> Arc<Space> {
    Arc::default()
}

#[cfg(test)]
pub(crate) mod tests;

//! The border between consensus and what it replicates: the trait that a replicated machine implements, and
//! what it is given. Everything that crosses it is opaque bytes; neither side names the other's types.
//!
//! The surprising part is `Local`: a proposer leaves a value of its own with its proposal, and gets it back
//! in `apply` on this node, at the proposal's position in the log. So replies are made once, by the node that
//! serves the connection, also when that node is a follower and the leader never sees the connection.

use thiserror::Error;

/// A node's number, chosen by the operator, never reused for another node.
pub type NodeId = u64;

/// A Raft group. One process runs one group; every frame, record and page carries its id.
pub type GroupId = u32;

/// The replicated state machine.
///
/// Invariants the implementor keeps:
/// - `apply` is a pure function of (state, index, stamp, bytes): no clock, no randomness, no iteration order
///   that depends on history. `Local` values may be answered, they never influence the state.
/// - Pages written by one checkpoint and loaded by `loader` give a state that behaves identically.
/// - The rules by which `apply` turns entries into state have a number, the apply level. What an entry does
///   at a level never changes: an entry may be applied again by any later version of the implementor, and
///   must do the same.
///
/// The caller keeps: `apply`, `checkpoint_begin`, `checkpoint_step` and `Loader::finish` are never called
/// concurrently with each other, only with reads that the implementor offers beside this trait.
pub trait Machine: Send + Sync + 'static {
    /// What a proposer leaves on this node with its proposal.
    type Local: Local;

    /// The highest level at which this version can apply entries, at least 1. A node tells it to its peers;
    /// an entry raises the group's level once all members can follow.
    fn apply_level_max(&self) -> u32;

    /// Applies one log entry. Must not block on anything but the machine's own lock.
    fn apply(&self, batch: Batch<'_, Self::Local>);

    /// The machine's clock, in milliseconds since the Unix epoch: the highest stamp applied, 0 before the
    /// first.
    fn clock_ms(&self) -> u64;

    /// The last `Batch::ahead_ms` applied, 0 before the first. It is part of checkpoints, as the clock is.
    fn ahead_ms(&self) -> i64;

    /// The log clock's value, in milliseconds since the Unix epoch, at which this machine wants an entry even
    /// if nobody proposes one (the earliest expiry). The leader then proposes an empty one.
    fn next_deadline_ms(&self) -> Option<u64>;

    /// Starts a checkpoint of the state as it is: fixes the set of pages to write, and returns the head, a
    /// small record (under 64 KiB) of what is not in pages. Cheap: nothing is serialized yet.
    fn checkpoint_begin(&self) -> Vec<u8>;

    /// Serializes pages of the checkpoint begun, about `bytes_max` bytes of them, in ascending order of their
    /// ids, appending to `pages`. Each page has its content as of `checkpoint_begin`, whatever was applied
    /// since. False when there are no more; then the checkpoint is over for the machine.
    fn checkpoint_step(&self, bytes_max: usize, pages: &mut Vec<PageWrite>) -> bool;

    /// Starts loading a whole new state off to the side. The present state keeps serving until
    /// `Loader::finish`.
    fn loader(&self) -> Box<dyn Loader + '_>;
}

/// A new state under construction, from the pages of one checkpoint.
pub trait Loader: Send {
    /// Takes one page. Pages come in ascending order of their ids. An error names what is wrong with the
    /// page.
    fn page(&mut self, id: &[u8], content: &[u8]) -> Result<(), String>;

    /// Takes the head that `checkpoint_begin` returned, checks that nothing is missing, and makes the loaded
    /// state the machine's state, with all pages clean and no checkpoint under way.
    fn finish(self: Box<Self>, head: &[u8]) -> Result<(), String>;
}

/// A page to be written, or to be deleted when there is no content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// At most 64 bytes; the order of pages is the order of these bytes.
    pub id: Vec<u8>,
    /// The serial form with the machine's own version and CRC; None deletes the page.
    pub content: Option<Vec<u8>>,
}

/// Randomness that is stored in the log, so that it is the same on all nodes and nobody outside the group
/// knows it.
pub type Entropy = [u8; 16];

/// One applied log entry.
pub struct Batch<'a, L> {
    /// The entry's log index. Rises from call to call, with gaps (Raft's own entries are not shown).
    pub index: u64,
    /// The leader's clock when it proposed the entry, in milliseconds since the Unix epoch. May be lower than
    /// an earlier one; the machine's clock is the maximum of all.
    pub stamp_ms: u64,
    /// How far the log clock is ahead of the wall clock, in milliseconds, from this entry on: an instant by
    /// the wall clock is this much later by the log clock. 0 in entries below `DISTANCE_LEVEL`.
    pub ahead_ms: i64,
    /// The term of the leader that proposed it. A change means that there was a new leader.
    pub term: u64,
    /// The level at which this entry is applied, at most `Machine::apply_level_max`.
    pub level: u32,
    /// Set on the one entry that raised the level to `level`, which happens before its proposals: randomness,
    /// drawn by the leader that proposed it. The first entry of a group whose members all state their level
    /// is such an entry.
    pub raised: Option<Entropy>,
    /// The proposals in their order. May be none (a tick).
    pub proposals: Vec<Proposal<'a, L>>,
}

/// One proposal in an entry.
pub struct Proposal<'a, L> {
    /// The bytes as they were proposed.
    pub bytes: &'a [u8],
    /// Returned to the node that proposed it, if it still waits.
    pub local: Option<L>,
}

/// What a proposer waits with. Exactly one of two things happens: the machine gets it in `apply`, or `failed`
/// is called.
pub trait Local: Send + 'static {
    /// The proposal will not be answered by `apply` on this node.
    fn failed(self, error: ProposeError);
}

/// Why a proposal was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// It never entered any log, and never will. Safe to retry.
    #[error("not applied: {0}")]
    NotApplied(Unavailable),
    /// It was sent into the log and its outcome is not known.
    #[error(
        "the outcome is unknown: the request was sent into the log, and the leader was lost before it was confirmed"
    )]
    Unknown,
}

/// Why the group cannot serve a request at present.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// No leader is known, and none appeared within the time limit.
    #[error("no leader is known")]
    NoLeader,
    /// The leader was not confirmed by a majority within the time limit.
    #[error("a majority of the members cannot be reached")]
    NoQuorum,
    /// This node's queue is full.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The proposal is larger than an entry may be.
    #[error("the request is larger than {0} bytes (proposal-bytes-max), and is not applied")]
    TooLarge(usize),
    /// This node is stopping, or it is not part of a cluster yet.
    #[error("this node is not serving: {0}")]
    NotServing(&'static str),
    /// This node does not serve, because members have different logs or states.
    #[error("{0}")]
    Apart(&'static str),
    /// There is no room for it on the disks.
    #[error("{0}")]
    NoRoom(String),
}

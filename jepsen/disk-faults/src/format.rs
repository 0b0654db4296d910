//! What the library and the harness share: the control file with orders and counters, and the records of the undo
//! journal. Both compile this file, and both run on one machine, so nothing here is portable or versioned.
//!
//! The journal's directory holds a file of [`Record`]s for every file with unsynced content, named after its inode;
//! the file [`NAMES`], a line for every change of a name and every sync of a directory; and `kept-N`, hard links to
//! what was removed.

use std::sync::atomic::AtomicU64;

/// Where the node finds its control file, its data, and the journal: absolute, without symbolic links.
pub const CONTROL_VARIABLE: &str = "KVORUM_DISK_FAULTS_CONTROL";
/// The directory whose files get the faults.
pub const DATA_VARIABLE: &str = "KVORUM_DISK_FAULTS_DATA";
/// The directory of the undo journal, on the same file system as the data.
pub const JOURNAL_VARIABLE: &str = "KVORUM_DISK_FAULTS_JOURNAL";

/// The journal's file of names.
pub const NAMES: &str = "names";

/// Orders of the harness, and counters of the library. The file's content, mapped by both.
///
/// - All zero means: no fault.
#[repr(C)]
#[derive(Default)]
pub struct Control {
    /// The least and the most that a sync takes longer, in milliseconds.
    pub slow_ms_min: AtomicU64,
    /// See `slow_ms_min`.
    pub slow_ms_max: AtomicU64,
    /// How many syncs are still to fail with EIO.
    pub failing_syncs: AtomicU64,
    /// Of which files: [`LOG`] or [`PAGES`].
    pub failing_where: AtomicU64,
    /// [`FULL_GROWTH`] or [`FULL`]: writes are refused with ENOSPC.
    pub full: AtomicU64,
    /// Not zero: syncs report success and do nothing.
    pub lying: AtomicU64,
    /// Processes that have loaded the library.
    pub loaded: AtomicU64,
    /// Syncs done.
    pub syncs: AtomicU64,
    /// Syncs that took longer by order.
    pub delayed: AtomicU64,
    /// Syncs that failed by order.
    pub failed: AtomicU64,
    /// Writes, reservations and creations that were refused by order.
    pub refused: AtomicU64,
    /// Syncs that did nothing by order.
    pub lied: AtomicU64,
    /// Bytes overwritten that the journal has kept.
    pub journaled_bytes: AtomicU64,
    /// Writes that the journal could not note: a rollback would keep them.
    pub unnoted: AtomicU64,
    /// The source of names for what is kept.
    pub kept: AtomicU64,
    /// The source of chance.
    pub dice: AtomicU64,
}

/// The segments of the log.
pub const LOG: u64 = 1;
/// Everything that sled writes.
pub const PAGES: u64 = 2;

/// Refuses what needs more space: writes beyond a file's end, reservations, new files.
pub const FULL_GROWTH: u64 = 1;
/// Refuses all writes, as a file system that never overwrites in place would.
pub const FULL: u64 = 2;

/// The head of a record in a file's journal, in the order of its fields; the bytes that were overwritten follow a
/// write's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// [`WRITE`] or [`SYNCED`].
    pub kind: u64,
    /// Where the write began in the file; for `SYNCED`, up to where the journal means nothing any more.
    pub offset: u64,
    /// How many bytes were written.
    pub len: u64,
    /// How many of them overwrote something, and follow.
    pub saved: u64,
    /// The file's size before.
    pub size: u64,
}

/// A write, or a change of the size as a write of nothing.
pub const WRITE: u64 = 0x7772_6974_6500_0001;
/// What stands before `offset` in the journal became durable.
pub const SYNCED: u64 = 0x7379_6e63_6500_0002;

/// The bytes of a record's head.
pub const RECORD_BYTES: usize = std::mem::size_of::<Record>();

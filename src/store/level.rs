//! The rules by which entries are applied. An entry stands in the log with the level that was in force, and every
//! node applies it by that rule, at first and at each replay: what a mend changes in the state, in a reply that is kept, or
//! in the order of anything, it changes from a level on. docs/architecture.md has the rule for whoever adds one.

/// The rule of the first version.
pub const FIRST: u32 = 1;
/// Members and fields are chosen with equal chances, in bounded time; what leases end at one key ends together; the work of
/// one reaping, of a pattern and of LCS is bounded; a refused claim changes nothing; reads behind FENCE have chance; no claim
/// is guarded; LEASE.KEEPALIVE knows BINDING.
pub const BOUNDED: u32 = 2;
/// Entries say how far the log clock is ahead of the wall clock; instants that clients name are of the wall clock. And entries
/// ask for checkpoints, whose pages nodes compare: from here on whoever changes the form of a page does so from a level on, whose
/// rise touches all pages.
pub const WALL_TIMES: u32 = kvorum_raft::DISTANCE_LEVEL;
/// The highest that this version can apply.
pub const LEVEL_MAX: u32 = WALL_TIMES;

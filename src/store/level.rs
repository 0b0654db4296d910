//! The rules by which entries are applied. The log has each entry with the level in force, and every node
//! applies it by that level's rules, at first and at each replay: a fix that affects the state, a stored
//! reply or any order takes effect from a level on. docs/architecture.md explains how to add a level.

/// The rules of the first version.
pub const FIRST: u32 = 1;
/// Members and fields are chosen uniformly, in bounded time; leases that end at one key end together; the
/// work of one removal of expired keys, of a pattern and of LCS is bounded; a refused claim changes nothing;
/// reads behind FENCE have randomness; claims cannot be guarded; LEASE.KEEPALIVE accepts BINDING.
pub const BOUNDED: u32 = 2;
/// Entries carry the offset of the log clock from the wall clock; instants given by clients are by the wall
/// clock. And entries request checkpoints, whose pages nodes compare: from here on, a change to the form of a
/// page needs a new level, and the switch to it touches all pages.
pub const WALL_TIMES: u32 = kvorum_raft::DISTANCE_LEVEL;
/// Calls may wait for keys: BLPOP and its like.
pub const WAITS: u32 = WALL_TIMES + 1;
/// The settings of the whole cluster have a limit for memory, and calls that would pass it are refused. A lease has a
/// limit of keys; leases that run out together end in steps, and nobody sees their keys meanwhile.
pub const LIMITS: u32 = WAITS + 1;
/// The types of Redis that were missing. It grows until there is a release that has it.
pub const TYPES: u32 = LIMITS + 1;
/// The highest level that this version can apply.
pub const LEVEL_MAX: u32 = TYPES;

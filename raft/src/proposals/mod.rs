//! From a proposal to a log entry: `propose.rs` queues proposals and sends them in batches (`batch.rs`),
//! `group_commit.rs` decides how long an entry waits for more of them, `entry.rs` is the format of an entry.
//! `group.rs` is what all this needs of the Raft group.

pub(crate) mod batch;
pub(crate) mod entry;
pub(crate) mod group;
pub(crate) mod group_commit;
pub(crate) mod propose;

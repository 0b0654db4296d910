//! The state on disk, as of one entry, and its ways to other nodes. `checkpoint.rs` writes it, with the head
//! of `head.rs`; `common_checkpoint.rs` makes all nodes do so at the same entry; `renewal.rs` rewrites it to
//! free space. `transfer.rs` sends it to a node that needs purged entries, as the snapshot that openraft
//! knows by `content.rs`; `recover.rs` fetches it for a node whose pages are unreadable.

pub(crate) mod checkpoint;
pub(crate) mod common_checkpoint;
pub(crate) mod content;
pub(crate) mod head;
pub(crate) mod recover;
pub(crate) mod renewal;
pub(crate) mod transfer;

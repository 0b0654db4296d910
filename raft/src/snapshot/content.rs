//! What openraft holds when it holds a snapshot: never the bytes, but where they are.

use tokio::sync::OwnedSemaphorePermit;

use crate::pages::PageStore;

/// openraft's snapshot content.
pub(crate) enum SnapshotData {
    /// The pages of the last durable checkpoint, on disk.
    LastCheckpoint,
    /// Pages that a leader has sent.
    Received(Received),
}

/// A complete snapshot in its staging directory.
pub(crate) struct Received {
    pub store: PageStore,
    /// The exclusive use of the directory, until the snapshot is installed or refused.
    pub claim: OwnedSemaphorePermit,
}

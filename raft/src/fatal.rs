//! What happens when a node must not continue: after a failed write or fsync nothing that it says can be
//! trusted, so the process ends at once, without a second try and without a goodbye. The same where the
//! cluster contradicts what this node has applied.

use std::sync::Arc;

/// Called with the reason; does not return in production.
pub(crate) type Handler = Arc<dyn Fn(String) + Send + Sync>;

/// The exit code of a node that the cluster contradicts.
pub const EXIT_CONTRADICTED: i32 = 7;

/// Logs and ends with [`EXIT_CONTRADICTED`].
pub(crate) fn contradiction() -> Handler {
    Arc::new(|why| {
        tracing::error!(
            "fatal: {why}: acknowledged writes are lost on the other nodes, or this disk is not the one that it should be. \
             Nothing was changed here: keep this data directory, and compare it with the others before you go on \
             (docs/recovery.md). To go on without it, remove this node, and start it with an empty directory under an id that \
             was never used"
        );
        // SAFETY: it ends the process; nothing runs afterwards.
        unsafe { libc::_exit(EXIT_CONTRADICTED) }
    })
}

/// Logs and aborts.
pub(crate) fn handler() -> Handler {
    Arc::new(|why| {
        tracing::error!("fatal: {why}; the process ends here, so that nothing false is acknowledged");
        std::process::abort();
    })
}

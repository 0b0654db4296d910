//! What happens when a node must not go on: after a failed write or fsync nothing that it says can be
//! trusted, so the process ends at once, without a second try and without a goodbye.

use std::sync::Arc;

/// Told why, does not come back in production.
pub(crate) type Handler = Arc<dyn Fn(String) + Send + Sync>;

/// Logs and aborts.
pub(crate) fn handler() -> Handler {
    Arc::new(|why| {
        tracing::error!("fatal: {why}; the process ends here, so that nothing false is acknowledged");
        std::process::abort();
    })
}

//! Whether followers are waiting to hear of commits. They are while they serve clients of their own, whose
//! writes and reads they send to the leader: the leader remembers the latest of those for a while.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How long a follower that has asked for something is assumed to serve clients.
const MEMORY: Duration = Duration::from_millis(100);

/// Kept by the leader, for all followers together.
pub(crate) struct Interest {
    started: Instant,
    /// Milliseconds since `started`; 0 if nobody ever asked.
    until_ms: AtomicU64,
    news: Notify,
}

impl Interest {
    pub(crate) fn new() -> Interest {
        Interest { started: Instant::now(), until_ms: AtomicU64::new(0), news: Notify::new() }
    }

    /// A follower has asked for something that it answers once it has applied it.
    pub(crate) fn shown(&self) {
        let until = self.started.elapsed() + MEMORY;
        self.until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
        self.news.notify_waiters();
    }

    pub(crate) fn is_there(&self) -> bool {
        (self.started.elapsed().as_millis() as u64) < self.until_ms.load(Ordering::Relaxed)
    }

    /// Returns when interest is next shown.
    pub(crate) async fn next(&self) {
        self.news.notified().await;
    }
}

//! Whether followers wait to hear of commits. They do while they serve clients of their own, whose writes and reads
//! they send to the leader: the leader remembers the last of those for a while.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How long a follower that has asked for something is taken to serve clients.
const MEMORY: Duration = Duration::from_millis(100);

/// Kept by the leader, over all followers.
pub(crate) struct Interest {
    started: Instant,
    /// Milliseconds since `started`; 0 when nobody ever asked.
    until_ms: AtomicU64,
    news: Notify,
}

impl Interest {
    pub(crate) fn new() -> Interest {
        Interest { started: Instant::now(), until_ms: AtomicU64::new(0), news: Notify::new() }
    }

    /// A follower has asked for something that it answers when it has applied it.
    pub(crate) fn shown(&self) {
        let until = self.started.elapsed() + MEMORY;
        self.until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
        self.news.notify_waiters();
    }

    pub(crate) fn is_there(&self) -> bool {
        (self.started.elapsed().as_millis() as u64) < self.until_ms.load(Ordering::Relaxed)
    }

    /// Returns when it is shown the next time.
    pub(crate) async fn next(&self) {
        self.news.notified().await;
    }
}

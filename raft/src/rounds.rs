//! One round for all who wait: a read-index round or a tick is shared by everybody who asked before it began.

use std::future::Future;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::Unavailable;

/// How often the tasks that are ready may run before a round begins.
const GATHER_YIELDS_MAX: usize = 8;

type Waiter = oneshot::Sender<Result<u64, Unavailable>>;

/// Invariant: a waiter is served by a round that began after it had come.
#[derive(Default)]
pub(crate) struct Rounds {
    waiting: Mutex<Vec<Waiter>>,
    wake: Notify,
}

impl Rounds {
    /// Waits for the next round; its result is a log index.
    pub(crate) async fn join(&self) -> Result<u64, Unavailable> {
        let (sender, receiver) = oneshot::channel();
        let first = {
            let mut waiting = self.waiting.lock();
            waiting.push(sender);
            waiting.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
        receiver.await.unwrap_or(Err(Unavailable::NotServing("it is stopping")))
    }

    /// Lets the tasks that are ready join the round that is about to begin.
    async fn gather(&self) {
        let mut joined = 0;
        for _ in 0..GATHER_YIELDS_MAX {
            let present = self.waiting.lock().len();
            if present <= joined {
                break;
            }
            joined = present;
            tokio::task::yield_now().await;
        }
    }

    /// Runs rounds, one at a time, for ever.
    pub(crate) async fn run<F: Future<Output = Result<u64, Unavailable>>>(&self, round: impl Fn() -> F) {
        loop {
            self.wake.notified().await;
            self.gather().await;
            let waiters = std::mem::take(&mut *self.waiting.lock());
            if waiters.is_empty() {
                continue;
            }
            let result = round().await;
            for waiter in waiters {
                // Whoever went away does not need it.
                let _ = waiter.send(result.clone());
            }
        }
    }
}

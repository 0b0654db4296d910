//! One round for all who wait: a read-index round or a tick is shared by everybody who asked before it began.

use std::{future::Future, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::Unavailable;

/// How many times the tasks that are ready may run before a round begins.
const GATHER_YIELDS_MAX: usize = 8;

/// The most rounds in flight: without a majority each lasts for as long as a request may take. On a follower
/// over a link of 300 ms there are 150.
const UNDER_WAY_MAX: usize = 256;

/// What a read round has confirmed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    /// Every write that was acknowledged before this moment, by any node ...
    pub before: Instant,
    /// ... has at most this index.
    pub index: u64,
}

type Waiter = oneshot::Sender<Result<u64, Unavailable>>;

/// When a round may begin while others are under way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// When they have ended.
    OneByOne,
    /// This long after the last one began: over a long link a caller would otherwise wait for two round
    /// trips.
    Every(Duration),
}

/// Invariant: a waiter is served by a round that began after it had asked.
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

    /// Waits until somebody waits. Cancelling this loses nothing.
    async fn wanted(&self) {
        while self.waiting.lock().is_empty() {
            self.wake.notified().await;
        }
    }

    /// Runs rounds for ever.
    pub(crate) async fn run<F: Future<Output = Result<u64, Unavailable>>>(
        &self,
        pace: Pace,
        round: impl Fn() -> F,
    ) {
        let mut under_way = FuturesUnordered::new();
        let mut begun = Instant::now();
        loop {
            let (is_under_way, is_full) = (!under_way.is_empty(), under_way.len() >= UNDER_WAY_MAX);
            let turn = async {
                self.wanted().await;
                match pace {
                    _ if is_full => std::future::pending().await,
                    Pace::OneByOne if is_under_way => std::future::pending().await,
                    Pace::Every(pause) if is_under_way => tokio::time::sleep_until(begun + pause).await,
                    _ => self.gather().await,
                }
            };
            tokio::select! {
                biased;
                Some(()) = under_way.next(), if is_under_way => continue,
                () = turn => {}
            }
            let waiters = std::mem::take(&mut *self.waiting.lock());
            begun = Instant::now();
            let round = round();
            under_way.push(async move {
                let result = round.await;
                for waiter in waiters {
                    // A waiter that has gone away does not need it.
                    let _ = waiter.send(result.clone());
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    use tokio::time::Instant;

    use super::{Pace, Rounds, UNDER_WAY_MAX};

    /// Ten ask, a hundredth of a second apart, where a round takes a tenth. Returns how long each waited.
    async fn waits(pace: Pace) -> Vec<Duration> {
        let rounds = Arc::new(Rounds::default());
        let running = rounds.clone();
        let runner = tokio::spawn(async move {
            let round = || async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(7)
            };
            running.run(pace, round).await;
        });
        let asked = (0..10).map(|at| {
            let rounds = rounds.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(10 * at)).await;
                let since = Instant::now();
                assert_eq!(rounds.join().await, Ok(7));
                since.elapsed()
            }
        });
        let waits = futures::future::join_all(asked).await;
        runner.abort();
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn not_every_client_of_a_group_that_cannot_be_reached_has_a_round_of_its_own() {
        let (rounds, under_way) = (Arc::new(Rounds::default()), Arc::new(AtomicUsize::new(0)));
        let (running, begun) = (rounds.clone(), under_way.clone());
        let runner = tokio::spawn(async move {
            let round = || async {
                begun.fetch_add(1, Relaxed);
                std::future::pending().await
            };
            running.run(Pace::Every(Duration::from_millis(1)), round).await;
        });
        for _ in 0..1000 {
            let rounds = rounds.clone();
            tokio::spawn(async move { rounds.join().await });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(under_way.load(Relaxed), UNDER_WAY_MAX);
        runner.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_amid_a_round_waits_for_the_next_which_need_not_wait_for_it() {
        let paced = waits(Pace::Every(Duration::from_millis(1))).await;
        assert!(paced.iter().all(|wait| *wait <= Duration::from_millis(102)), "{paced:?}");
        let in_turn = waits(Pace::OneByOne).await;
        assert!(in_turn[1] >= Duration::from_millis(180), "{in_turn:?}");
    }
}

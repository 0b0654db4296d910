//! Work that takes long enough to hold up others: the tasks that this thread would run next, of other clients,
//! of peers, of health checks, are taken over by another one before it begins.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does something that takes long.
pub fn run<R>(work: impl FnOnce() -> R) -> R {
    // In a simulation there is one thread, and its time stands still.
    let has_threads =
        Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_threads { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::run;

    #[test]
    fn others_go_on_meanwhile() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        runtime.block_on(async {
            let work = tokio::spawn(async { run(|| thread::sleep(Duration::from_secs(2))) });
            tokio::time::sleep(Duration::from_millis(50)).await;
            let started = Instant::now();
            tokio::spawn(async {}).await.unwrap();
            assert!(started.elapsed() < Duration::from_secs(1));
            work.await.unwrap();
        });
        // Without threads, and without a runtime.
        let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(alone.block_on(async { run(|| 1) }) + run(|| 2), 3);
    }
}

//! Time limits for calls. What counts is the time that the calling thread was on a processor, so that a machine that has
//! other things to do makes no test fail. A call that does not end at all ends the process, with what it was.

use std::{
    fmt::Display,
    io::Write,
    sync::{
        LazyLock, Mutex,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

/// A call may take so long: 100 ms, and ten times as much without optimization. Profiles with assertions that are optimized too say
/// so in `KVORUM_OPTIMIZED`.
pub static CALL_MS_MAX: LazyLock<u64> = LazyLock::new(|| {
    let is_optimized = !cfg!(debug_assertions) || std::env::var_os("KVORUM_OPTIMIZED").is_some();
    if is_optimized { 100 } else { 1_000 }
});
/// After so long by the clock it is taken for endless.
const ENDLESS: Duration = Duration::from_secs(120);

/// The calls under way are said here, and the ends of them.
static WATCHER: LazyLock<Mutex<Sender<Option<String>>>> = LazyLock::new(|| {
    let (says, said) = mpsc::channel();
    thread::spawn(move || {
        let mut running: Option<String> = None;
        loop {
            match said.recv_timeout(if running.is_some() { ENDLESS } else { Duration::MAX }) {
                Ok(call) => running = call,
                Err(RecvTimeoutError::Timeout) => {
                    // What the macros print is kept by the tests' runner, and lost here.
                    let text = format!("does not end: {}\n", running.unwrap_or_default());
                    let _ = std::io::stderr().write_all(text.as_bytes());
                    std::process::abort();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    Mutex::new(says)
});

/// How long this thread has been on a processor.
fn on_processor() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "the clock is there on Linux");
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Runs a call. Panics if it takes too long. One call at a time is watched; tests of one process take turns.
pub fn watched<R>(call: impl Display, run: impl FnOnce() -> R) -> R {
    let watcher = WATCHER.lock().unwrap_or_else(|broken| broken.into_inner());
    let call = call.to_string();
    let text: String = call.chars().take(300).collect();
    watcher.send(Some(text.clone())).unwrap();
    let started = on_processor();
    let result = run();
    let taken = on_processor() - started;
    watcher.send(None).unwrap();
    assert!(taken.as_millis() as u64 <= *CALL_MS_MAX, "{} ms: {text}", taken.as_millis());
    result
}

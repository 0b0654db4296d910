//! What the integration tests share. Each uses a part of it.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod alone;
pub mod crowd;
pub mod grammar;
pub mod hostile;
pub mod peer;
pub mod process;
pub mod random_log;
pub mod redis_server;
pub mod resp;
pub mod slow_disk;
pub mod small_disk;
pub mod transcript;
pub mod watchdog;
pub mod way;

/// The seed of a random test: `KVORUM_SEED`, or a new one. It is printed, with what replays it.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("KVORUM_SEED").ok().map(|text| text.parse().expect("KVORUM_SEED is a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("replay with: KVORUM_SEED={seed} cargo test --test {test}");
    seed
}

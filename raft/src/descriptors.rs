//! File descriptors of this process: how many it may have, how many it has, and whether some more can be had.
//!
//! The soft limit is raised to the hard one at the start: the usual soft limit of 1024 is there for programs
//! that use `select`. A node then keeps some for itself that no client can take (the server's part), and
//! makes sure that enough are left before it starts what must not fail half way.

use std::{fs::File, io};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::NodeConfig;

/// What one open page store has: 78 files of sled, its directories, and what it opens for a moment.
pub(crate) const OF_PAGES: u64 = 90;

/// What a commit, or opening a page store again, takes beyond what the store has.
pub(crate) const OF_COMMIT: u64 = 10;

/// Page stores that a node may have open at once: the live one, a snapshot that it receives, and one that it
/// writes anew to free space.
const STORES: u64 = 3;

/// Everything else that a node has open on its own: standard streams, the runtime, listeners, lock, reserve,
/// the directory of the log, and files that are written now and then. At most 30 were counted.
const OWN: u64 = 64;

/// The log's segments besides those between two checkpoints, and its spare ones.
const SEGMENTS_MIN: u64 = 16;

/// What a node needs for itself, whoever is connected to it.
pub const RESERVED: u64 = OWN + STORES * OF_PAGES + SEGMENTS_MIN;

/// The fewest connections of all kinds with which a node makes sense.
const CONNECTIONS_MIN: u64 = 64;

/// The fewest descriptors with which a node starts.
pub const NEEDED: u64 = RESERVED + CONNECTIONS_MIN;

/// The most bytes of the log between two checkpoints, whatever is configured.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// Raises the soft limit to the hard one, as far as the system allows it. Returns the limit that is in force.
pub fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, the limit stays as it is, and everything is fitted to that.
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
    limit_in_force()
}

/// How many descriptors this process may have.
pub fn limit_in_force() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many it has; None where the system does not tell. Takes longer the more there are.
pub fn open() -> Option<u64> {
    // One of them is that of the directory.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// How many segments of the log a node may have open, besides those that `RESERVED` counts.
pub fn of_segments(config: &NodeConfig) -> u64 {
    let bytes = config.checkpoint_log_bytes.max(LOG_BYTES_MAX);
    // A checkpoint may take as long as the log needs to grow by as much again.
    bytes.saturating_mul(2) / config.log_segment_bytes.max(1)
}

/// Makes sure that this many more can be had, by opening and closing them. Nothing keeps others from taking
/// them at once.
pub(crate) fn ensure(count: u64) -> io::Result<()> {
    // It is there in every environment, unlike the files of a device directory.
    let first = File::open("/")?;
    let more: io::Result<Vec<File>> = (1..count).map(|_| first.try_clone()).collect();
    more.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted() {
        let before = open().unwrap();
        let files: Vec<File> = (0..50).map(|_| File::open("/dev/null").unwrap()).collect();
        // Other tests open and close files meanwhile.
        assert!(open().unwrap() + 20 >= before + 50);
        assert!(limit_in_force() > files.len() as u64);
        ensure(OF_PAGES).unwrap();
    }

    #[test]
    fn small_segments_need_more_of_them() {
        let config = NodeConfig::new(1, "data");
        assert_eq!(of_segments(&config), 32);
        assert_eq!(of_segments(&NodeConfig { log_segment_bytes: 1 << 20, ..config }), 2048);
    }
}

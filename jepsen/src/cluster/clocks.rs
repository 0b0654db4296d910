//! The nodes' wall clocks, each with an offset set by faults: by faketime, which a node loads at its start.
//! Monotonic clocks are not affected. Overlapping faults add up.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};

/// Where distributions install the library.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

/// All wall clocks.
pub(crate) struct Clocks {
    pub(crate) library: PathBuf,
    dir: PathBuf,
    /// How far each node's clock is ahead, in microseconds.
    offsets_us: Mutex<BTreeMap<u64, i64>>,
}

impl Clocks {
    /// Keeps the clocks' files in `dir`. Err if faketime is not installed.
    pub(crate) fn find(dir: &Path) -> Result<Clocks> {
        let library = LIBRARIES.iter().map(Path::new).find(|path| path.is_file());
        let library = library.context("faketime is not installed (libfaketimeMT.so.1)")?.to_owned();
        Ok(Clocks { library, dir: dir.to_owned(), offsets_us: Mutex::default() })
    }

    fn offsets(&self) -> MutexGuard<'_, BTreeMap<u64, i64>> {
        self.offsets_us.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_of(&self, node: u64) -> PathBuf {
        self.dir.join(format!("node{node}.clock"))
    }

    /// The environment of a node's process.
    pub(crate) fn environment(&self, node: u64) -> Result<Vec<(&'static str, OsString)>> {
        self.shift(node, 0)?;
        Ok(vec![
            ("FAKETIME_TIMESTAMP_FILE", self.file_of(node).into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ])
    }

    /// Shifts a node's clock, whether it is running or not.
    pub(crate) fn shift(&self, node: u64, by_us: i64) -> Result<()> {
        let mut offsets = self.offsets();
        let offset_us = offsets.entry(node).or_default();
        *offset_us += by_us;
        // Replaced atomically: the node reads it each time it reads the clock.
        let (file, next) = (self.file_of(node), self.file_of(node).with_extension("next"));
        std::fs::write(&next, format!("{:+.6}\n", *offset_us as f64 / 1e6))
            .and_then(|()| std::fs::rename(next, file))
            .context("cannot write a clock's file")
    }

    /// How far a node's clock should be ahead, in microseconds.
    pub(crate) fn offset_us(&self, node: u64) -> i64 {
        self.offsets().get(&node).copied().unwrap_or_default()
    }

    /// Resets all clocks.
    pub(crate) fn heal(&self) -> Result<()> {
        let nodes: Vec<(u64, i64)> = self.offsets().iter().map(|(node, us)| (*node, *us)).collect();
        nodes.into_iter().filter(|(_, us)| *us != 0).try_for_each(|(node, us)| self.shift(node, -us))
    }

    /// Removes what faketime leaves behind for a process that could not clean up.
    pub(crate) fn has_ended(&self, pid: u32) {
        for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
            // The process may have removed it itself.
            let _ = std::fs::remove_file(Path::new("/dev/shm").join(name));
        }
    }
}

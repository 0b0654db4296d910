//! The nodes' disks, as seen through a library that each node loads at its start (`disk-faults/`): orders for
//! it, its counters, and what a power cut loses.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use anyhow::{Context as _, Result, bail};

use crate::cluster::rollback::{self, Extent, Lost};

// The library's own file: both sides of the mapping are compiled from it.
#[path = "../../disk-faults/src/format.rs"]
pub(crate) mod format;

use format::{CONTROL_VARIABLE, Control, DATA_VARIABLE, JOURNAL_VARIABLE};

/// The library, next to this program or where cargo puts it for tests.
const LIBRARIES: &[&str] = &["libkvorum_disk_faults.so", "deps/libkvorum_disk_faults.so"];

/// All disks.
pub(crate) struct Disks {
    pub(crate) library: PathBuf,
    /// The directory of control files and journals, on the same file system as the data.
    dir: PathBuf,
    /// Mapped forever, since other threads may access them at any time.
    controls: Mutex<BTreeMap<u64, &'static Control>>,
}

impl Disks {
    /// Keeps its files below `data`. Err if the library was not built.
    pub(crate) fn find(data: &Path) -> Result<Disks> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let place = program.parent().context("a program is in a directory")?;
        let built = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).ok();
        let found = LIBRARIES.iter().map(|name| place.join(name)).filter(|path| built(path).is_some());
        let library = found.max_by_key(built).context(
            "libkvorum_disk_faults.so is not beside this program: cargo build -p kvorum-disk-faults",
        )?;
        Ok(Disks { library, dir: data.join("disk-faults"), controls: Mutex::default() })
    }

    fn journal_of(&self, node: u64) -> PathBuf {
        self.dir.join(format!("node{node}"))
    }

    fn control_of(&self, node: u64) -> PathBuf {
        self.dir.join(format!("node{node}.control"))
    }

    /// The environment of a node's process.
    pub(crate) fn environment(&self, node: u64, data: &Path) -> Result<Vec<(&'static str, OsString)>> {
        std::fs::create_dir_all(self.journal_of(node)).context("cannot create a journal's directory")?;
        rollback::mend(&self.journal_of(node))?;
        self.control(node)?;
        Ok(vec![
            (CONTROL_VARIABLE, self.control_of(node).into()),
            (DATA_VARIABLE, data.into()),
            (JOURNAL_VARIABLE, self.journal_of(node).into()),
        ])
    }

    /// The orders for a node's disk, and its counters; the node may be down.
    pub(crate) fn control(&self, node: u64) -> Result<&'static Control> {
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = controls.get(&node) {
            return Ok(control);
        }
        let path = self.control_of(node);
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = opened.context("cannot create a control file")?;
        let len = size_of::<Control>();
        file.set_len(len as u64).context("cannot size a control file")?;
        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping of an open file of that length.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            bail!("cannot map a control file: {}", std::io::Error::last_os_error());
        }
        // SAFETY: mapped for good, page-aligned, and made of atomics only; nobody shortens the file.
        let control: &'static Control = unsafe { &*at.cast::<Control>() };
        controls.insert(node, control);
        Ok(control)
    }

    /// From now on all syncs of all existing nodes do nothing.
    pub(crate) fn lie(&self) {
        for control in self.controls.lock().unwrap_or_else(PoisonError::into_inner).values() {
            control.lying.store(1, Ordering::Relaxed);
        }
    }

    /// Clears the orders for all disks. Lying disks stay: they are not a fault of a nemesis, but the subject
    /// of the run.
    pub(crate) fn heal(&self) {
        for control in self.controls.lock().unwrap_or_else(PoisonError::into_inner).values() {
            for order in [&control.slow_ms_max, &control.slow_ms_min, &control.failing_syncs, &control.full] {
                order.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Rolls back what a node has not synced. Its process must have ended.
    pub(crate) fn cut_power(
        &self,
        node: u64,
        data: &Path,
        random: &mut fastrand::Rng,
        extent: Extent,
    ) -> Result<Lost> {
        rollback::roll_back(data, &self.journal_of(node), random, extent)
    }
}

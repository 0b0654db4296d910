//! A disk in memory that does what disks do in a power cut: it forgets what was not synced, write by write
//! and sector by sector, and refuses when told to. Names are forgotten from the newest change backwards, as a
//! journalling file system does. The simulation's nodes have their logs on it.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

const SECTOR_BYTES: usize = 512;
const NEVER: u64 = u64::MAX;
/// A smaller file has no frames to spare.
#[cfg(feature = "simulation")]
const FLIPPED_BYTES_MIN: usize = 4 << 10;

#[derive(Clone)]
pub(crate) struct FaultyDisk {
    directory: Arc<Mutex<Directory>>,
    faults: Arc<Faults>,
    /// How long the next sync takes in simulated time.
    pace: Option<Pace>,
}

pub(crate) type Pace = Arc<dyn Fn() -> Duration + Send + Sync>;

#[derive(Default)]
struct Directory {
    names: BTreeMap<String, Arc<Inode>>,
    durable: BTreeMap<String, Arc<Inode>>,
    /// All states of `names` since `durable`, oldest first.
    since: Vec<BTreeMap<String, Arc<Inode>>>,
}

struct Faults {
    /// Counts down; the sync or write that finds 0 fails, and so do all that follow.
    syncs_left: AtomicU64,
    writes_left: AtomicU64,
    /// Syncs succeed and do nothing.
    lies: AtomicBool,
    /// There is no space: writes stop half way.
    is_full: AtomicBool,
    /// Larger files find no space.
    file_bytes_max: AtomicU64,
    /// There are no descriptors: no file can be created.
    has_no_descriptors: AtomicBool,
}

#[derive(Default)]
struct Inode {
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl FaultyDisk {
    pub(crate) fn new() -> FaultyDisk {
        FaultyDisk::with(BTreeMap::new())
    }

    /// A disk with these files, all durable.
    pub(crate) fn with(files: BTreeMap<String, Vec<u8>>) -> FaultyDisk {
        let inode = |bytes: Vec<u8>| {
            let content = Content { now: bytes.clone(), durable: bytes, unsynced: Vec::new() };
            Arc::new(Inode { content: Mutex::new(content) })
        };
        let names: BTreeMap<_, _> = files.into_iter().map(|(name, bytes)| (name, inode(bytes))).collect();
        let directory = Directory { durable: names.clone(), names, since: Vec::new() };
        let faults = Faults {
            syncs_left: AtomicU64::new(NEVER),
            writes_left: AtomicU64::new(NEVER),
            lies: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            file_bytes_max: AtomicU64::new(NEVER),
            has_no_descriptors: AtomicBool::new(false),
        };
        FaultyDisk { directory: Arc::new(Mutex::new(directory)), faults: Arc::new(faults), pace: None }
    }

    /// The files as a reader sees them.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let directory = self.directory.lock();
        directory.names.iter().map(|(name, inode)| (name.clone(), inode.content.lock().now.clone())).collect()
    }

    /// The same disk for a log that runs in simulated time.
    #[cfg(feature = "simulation")]
    pub(crate) fn paced(self, pace: Pace) -> FaultyDisk {
        FaultyDisk { pace: Some(pace), ..self }
    }

    /// The same disk with these files, all durable. The present one no longer works.
    #[cfg(feature = "simulation")]
    pub(crate) fn with_files(&self, files: BTreeMap<String, Vec<u8>>) -> FaultyDisk {
        self.fail_after_syncs(0);
        self.fail_after_writes(0);
        FaultyDisk { pace: self.pace.clone(), ..FaultyDisk::with(files) }
    }

    /// From now on syncs succeed and do nothing.
    #[cfg(feature = "simulation")]
    pub(crate) fn lie(&self) {
        self.faults.lies.store(true, Ordering::SeqCst);
    }

    /// Flips one bit of a file whose name ends with `suffix`, in the first half of what is durable: a later
    /// frame says that it was. False if there is no such file.
    #[cfg(feature = "simulation")]
    pub(crate) fn flip(&self, suffix: &str, rng: &mut fastrand::Rng) -> bool {
        let directory = self.directory.lock();
        let files: Vec<_> = directory.durable.iter().filter(|(name, _)| name.ends_with(suffix)).collect();
        let Some((_, inode)) = rng.choice(&files) else { return false };
        let mut content = inode.content.lock();
        let written = content.durable.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        if written < FLIPPED_BYTES_MIN {
            return false;
        }
        let (at, bit) = (rng.usize(..written / 2), rng.u8(..8));
        content.durable[at] ^= 1 << bit;
        content.now = content.durable.clone();
        true
    }

    pub(crate) fn fail_after_syncs(&self, syncs: u64) {
        self.faults.syncs_left.store(syncs, Ordering::SeqCst);
    }

    /// From now on there is no space, or there is space again.
    #[cfg(test)]
    pub(crate) fn fill(&self, is_full: bool) {
        self.faults.is_full.store(is_full, Ordering::SeqCst);
    }

    /// From now on there are no descriptors, or there are some again.
    #[cfg(test)]
    pub(crate) fn take_descriptors(&self, are_taken: bool) {
        self.faults.has_no_descriptors.store(are_taken, Ordering::SeqCst);
    }

    /// From now on there is no space for larger files.
    #[cfg(test)]
    pub(crate) fn limit_files(&self, bytes_max: u64) {
        self.faults.file_bytes_max.store(bytes_max, Ordering::SeqCst);
    }

    pub(crate) fn fail_after_writes(&self, writes: u64) {
        self.faults.writes_left.store(writes, Ordering::SeqCst);
    }

    /// What a power cut leaves, as a new disk. The present one no longer works.
    pub(crate) fn crash(&self, rng: &mut fastrand::Rng) -> FaultyDisk {
        self.fail_after_syncs(0);
        self.fail_after_writes(0);
        let directory = self.directory.lock();
        let survived = rng.usize(..=directory.since.len());
        let names = if survived == 0 { &directory.durable } else { &directory.since[survived - 1] };
        let files =
            names.iter().map(|(name, inode)| (name.clone(), inode.content.lock().crash(rng))).collect();
        FaultyDisk { pace: self.pace.clone(), ..FaultyDisk::with(files) }
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Arc<Inode>>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut directory = self.directory.lock();
        change(&mut directory.names)?;
        let names = directory.names.clone();
        directory.since.push(names);
        Ok(())
    }
}

impl Content {
    fn crash(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, write) in &self.unsynced {
            let mode = rng.u8(..3);
            let mut at = *offset;
            while at < offset + write.len() {
                let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(offset + write.len());
                if mode == 0 || (mode == 1 && rng.bool()) {
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[at..end].copy_from_slice(&write[at - offset..end - offset]);
                }
                at = end;
            }
        }
        bytes
    }
}

fn count_down(left: &AtomicU64) -> io::Result<()> {
    let step = |left: u64| if left == NEVER { Some(left) } else { left.checked_sub(1) };
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("injected fault")),
    }
}

impl Faults {
    fn descriptor(&self) -> io::Result<()> {
        let are_taken = self.has_no_descriptors.load(Ordering::SeqCst);
        if are_taken { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(()) }
    }

    fn space(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files().into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        count_down(&self.faults.writes_left)?;
        self.faults.descriptor()?;
        self.faults.space()?;
        if bytes > self.faults.file_bytes_max.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = Content { now: vec![0; bytes as usize], ..Content::default() };
        let inode = Arc::new(Inode { content: Mutex::new(content) });
        self.change(|names| match names.insert(name.to_owned(), inode.clone()) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        })?;
        Ok(Arc::new(FaultyFile { inode, faults: self.faults.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.descriptor()?;
        let inode = self.directory.lock().names.get(name).cloned().ok_or_else(|| not_found(name))?;
        Ok(Arc::new(FaultyFile { inode, faults: self.faults.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        count_down(&self.faults.writes_left)?;
        self.change(|names| {
            let inode = names.remove(from).ok_or_else(|| not_found(from))?;
            assert!(names.insert(to.to_owned(), inode).is_none(), "{to} exists");
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        count_down(&self.faults.writes_left)?;
        self.change(|names| names.remove(name).map(drop).ok_or_else(|| not_found(name)))
    }

    fn sync_dir(&self) -> io::Result<()> {
        count_down(&self.faults.syncs_left)?;
        let mut directory = self.directory.lock();
        directory.durable = directory.names.clone();
        directory.since.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn simulated_sync(&self) -> Option<Duration> {
        self.pace.as_ref().map(|pace| pace())
    }
}

struct FaultyFile {
    inode: Arc<Inode>,
    faults: Arc<Faults>,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.inode.content.lock();
        let from = content.now.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        count_down(&self.faults.writes_left)?;
        let space = self.faults.space();
        let bytes = if space.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        let (mut content, offset) = (self.inode.content.lock(), offset as usize);
        let end = offset + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(bytes);
        content.unsynced.push((offset, bytes.to_vec()));
        space
    }

    fn sync(&self) -> io::Result<()> {
        count_down(&self.faults.syncs_left)?;
        if self.faults.lies.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut content = self.inode.content.lock();
        content.durable = content.now.clone();
        content.unsynced.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A fault injector needs proof that it injects faults.
    #[test]
    fn a_crash_forgets_and_tears_what_was_not_synced() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut outcomes = HashSet::new();
        for _ in 0..100 {
            let disk = FaultyDisk::new();
            let file = disk.create("a", 4096).unwrap();
            disk.sync_dir().unwrap();
            file.write_at(&[1; 1024], 0).unwrap();
            file.sync().unwrap();
            file.write_at(&[2; 2048], 0).unwrap();
            disk.rename("a", "b").unwrap();
            let (name, bytes) = disk.crash(&mut rng).files().pop_first().unwrap();
            assert!(bytes[..1024].iter().all(|byte| *byte != 0));
            let sectors: Vec<u8> = bytes.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            outcomes.insert((name, sectors));
        }
        assert!(outcomes.len() > 10, "{outcomes:?}");
        assert!(outcomes.contains(&("a".to_owned(), vec![1, 1, 0, 0, 0, 0, 0, 0])));
        assert!(outcomes.contains(&("b".to_owned(), vec![2, 2, 2, 2, 0, 0, 0, 0])));
    }
}

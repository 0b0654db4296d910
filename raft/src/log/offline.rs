//! A look at the log of a node that is stopped, without a change: what opening would cut or remove is left as it is.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::EntryPayload;

use super::{
    LogConfig, LogError, SEGMENT_BYTES_MAX,
    disk::{Disk, DiskFile, list},
    recovery,
    segment::{is_spare, segment_of},
    store::read_positions,
};
use crate::{
    machine::GroupId,
    types::{LogId, StoredMembership, Vote},
};

/// Bytes of entries read at once.
const READ_BYTES: u64 = 4 << 20;

/// What was found of one group.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The last entry, or the purged one.
    pub(crate) last: Option<LogId>,
    /// The last membership in the log, if one is in what was not purged.
    pub(crate) membership: Option<StoredMembership>,
    /// The size of a segment, as far as the files tell.
    pub(crate) segment_bytes: u64,
}

/// Reads the log in `dir`, which may be missing: that is an empty one. Blocks.
pub(crate) fn look(dir: &Path, group: GroupId) -> Result<Found, LogError> {
    let disk = Unchanged { dir: dir.to_owned() };
    let failed = |source| LogError::Io { context: "read the log".to_owned(), source };
    let segment_bytes = segment_bytes(&disk.list().map_err(failed)?);
    let config = LogConfig {
        dir: dir.to_owned(),
        segment_bytes,
        cache_bytes: 0,
        spare_segments: 0,
        space: crate::space::unknown(),
    };
    let recovered = recovery::recover(&disk, &config)?;
    let Some(log) = recovered.logs.get(&group) else {
        return Ok(Found { segment_bytes, ..Found::default() });
    };
    let mut found = Found {
        vote: log.vote,
        committed: log.committed,
        purged: log.purged,
        last: log.last_log_id(),
        membership: None,
        segment_bytes,
    };
    let files: HashMap<u64, Arc<dyn DiskFile>> =
        recovered.segments.iter().map(|(number, segment)| (*number, segment.file.clone())).collect();
    let mut next = 0;
    loop {
        let positions = log.find(next..u64::MAX, READ_BYTES);
        let entries = read_positions(&files, group, positions.first, &positions.on_disk).map_err(failed)?;
        let Some(last) = entries.last() else { return Ok(found) };
        next = last.log_id.index + 1;
        for entry in entries {
            if let EntryPayload::Membership(membership) = entry.payload {
                found.membership = Some(StoredMembership::new(Some(entry.log_id), membership));
            }
        }
    }
}

/// The configured size is not written down: spares have it, and so have most segments. Only a segment for one large
/// batch is larger, and one for which the disk had no more room smaller.
fn segment_bytes(files: &[(String, u64)]) -> u64 {
    if let Some((_, bytes)) = files.iter().find(|(name, _)| is_spare(name)) {
        return (*bytes).clamp(1, SEGMENT_BYTES_MAX);
    }
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, bytes) in files.iter().filter(|(name, _)| segment_of(name).is_some()) {
        *counts.entry(*bytes).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(bytes, count)| (*count, std::cmp::Reverse(*bytes)));
    most.map_or(1 << 20, |(bytes, _)| bytes.clamp(1, SEGMENT_BYTES_MAX))
}

/// A directory in which every change is forgotten at once. The recovery reads nothing that it has written.
struct Unchanged {
    dir: PathBuf,
}

impl Disk for Unchanged {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        match list(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn create(&self, name: &str, _: u64) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{name} is not created by a look")))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnchangedFile(File::open(self.dir.join(name))?)))
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

struct UnchangedFile(File);

impl DiskFile for UnchangedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

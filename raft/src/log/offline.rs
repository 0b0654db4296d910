//! Reads the log of a stopped node without changing it: what opening would cut off or remove is left as it
//! is.

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
    frame::RECORD_HEADER_BYTES,
    group::Position,
    recovery,
    salvage::{self, Salvaged, Skipped},
    segment::{is_spare, segment_of},
    store::read_positions,
};
use crate::{
    codec::RaftPayload,
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
    /// The last membership among the entries that were not purged, if there is one.
    pub(crate) membership: Option<StoredMembership>,
    /// The size of a segment, as far as the files tell.
    pub(crate) segment_bytes: u64,
}

/// The entries of one group in a log, as far as it can be read. Holds where they are, not the entries.
pub(crate) struct Listing {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Why no node can be started on this log; None for a sound one.
    pub(crate) damage: Option<LogError>,
    /// What cannot be read of a damaged log.
    pub(crate) skipped: Vec<Skipped>,
    /// By index, with gaps where the log is damaged.
    positions: Vec<(u64, Position)>,
    files: HashMap<u64, Arc<dyn DiskFile>>,
    group: GroupId,
}

/// One entry of a [`Listing`].
pub(crate) struct Listed {
    pub(crate) id: LogId,
    /// The bytes of its content on disk.
    pub(crate) bytes: usize,
    /// Or why it cannot be read.
    pub(crate) content: Result<RaftPayload, String>,
}

impl Listing {
    /// The ids of the first and of the last entry.
    pub(crate) fn ends(&self) -> Option<(LogId, LogId)> {
        let id = |(index, position): &(u64, Position)| LogId::new_term_index(position.term, *index);
        Some((id(self.positions.first()?), id(self.positions.last()?)))
    }

    /// All entries, read some megabytes at a time. Blocks.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Listed> {
        let mut rest = &self.positions[..];
        std::iter::from_fn(move || {
            let (first, mut bytes, mut count) = (rest.first()?.0, 0, 0);
            for (index, position) in rest {
                bytes += u64::from(position.bytes);
                if *index != first + count as u64 || count > 0 && bytes > READ_BYTES {
                    break;
                }
                count += 1;
            }
            let (next, later) = rest.split_at(count);
            rest = later;
            Some(self.read(next))
        })
        .flatten()
    }

    /// Reads entries that follow one another; each on its own, if they cannot be read together.
    fn read(&self, listed: &[(u64, Position)]) -> Vec<Listed> {
        let positions: Vec<Position> = listed.iter().map(|(_, position)| *position).collect();
        let first = listed.first().map_or(0, |(index, _)| *index);
        let contents = match read_positions(&self.files, self.group, first, &positions) {
            Ok(entries) => entries.into_iter().map(|entry| Ok(entry.payload)).collect(),
            Err(error) if listed.len() == 1 => vec![Err(error.to_string())],
            Err(_) => return listed.chunks(1).flat_map(|one| self.read(one)).collect(),
        };
        let entries = listed.iter().zip(contents);
        let entry = |((index, position), content): (&(u64, Position), _)| Listed {
            id: LogId::new_term_index(position.term, *index),
            bytes: (position.bytes as usize).saturating_sub(RECORD_HEADER_BYTES),
            content,
        };
        entries.map(entry).collect()
    }
}

/// Lists the log in `dir`, also a damaged one; a missing directory is an empty log. Blocks.
pub(crate) fn listing(dir: &Path, group: GroupId) -> Result<Listing, LogError> {
    let disk = Unchanged { dir: dir.to_owned() };
    let failed = |source| LogError::Io { context: "read the log".to_owned(), source };
    let config = config(dir, segment_bytes(&disk.list().map_err(failed)?));
    match recovery::recover(&disk, &config) {
        Ok(mut recovered) => {
            let log = recovered.logs.remove(&group).unwrap_or_default();
            let found = log.find(0..u64::MAX, u64::MAX);
            let files = recovered.segments.into_iter().map(|(number, segment)| (number, segment.file));
            Ok(Listing {
                vote: log.vote,
                committed: log.committed,
                purged: log.purged,
                damage: None,
                skipped: Vec::new(),
                positions: (found.first..).zip(found.on_disk).collect(),
                files: files.collect(),
                group,
            })
        }
        // Nothing is known of the log then.
        Err(refused @ LogError::Io { .. }) => Err(refused),
        Err(damage) => {
            let Salvaged { state, positions, files, skipped } =
                salvage::salvage(&disk, group).map_err(failed)?;
            Ok(Listing {
                vote: state.vote,
                committed: state.committed,
                purged: state.purged,
                damage: Some(damage),
                skipped,
                positions: positions.into_iter().collect(),
                files,
                group,
            })
        }
    }
}

fn config(dir: &Path, segment_bytes: u64) -> LogConfig {
    LogConfig {
        dir: dir.to_owned(),
        segment_bytes,
        cache_bytes: 0,
        spare_segments: 0,
        space: crate::space::unknown(),
    }
}

/// Reads the log in `dir`; a missing directory is an empty log. Blocks.
pub(crate) fn look(dir: &Path, group: GroupId) -> Result<Found, LogError> {
    let disk = Unchanged { dir: dir.to_owned() };
    let failed = |source| LogError::Io { context: "read the log".to_owned(), source };
    let segment_bytes = segment_bytes(&disk.list().map_err(failed)?);
    let recovered = recovery::recover(&disk, &config(dir, segment_bytes))?;
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

/// The configured size is not stored: spares have it, and so do most segments. Only a segment for one large
/// batch is larger, and one for which the disk had too little room is smaller.
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

/// A directory in which every change is dropped at once. The recovery reads nothing back that it has written.
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

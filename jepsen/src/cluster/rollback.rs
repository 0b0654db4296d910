//! A power cut: removes from a directory what was not synced, using the undo journal written by the library
//! in `disk-faults/`. It removes all of it, or what a disk might lose: some pages of the content, and the
//! last changes of names.
//!
//! Only what POSIX promises counts: content after a sync of its file, names after a sync of their directory.
//! Pages of content are lost independently of each other and of names; changes of names in reverse order.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cluster::disks::format::{NAMES, RECORD_BYTES, Record, SYNCED, WRITE};

/// The unit that a disk writes atomically.
const PAGE: usize = 4096;

/// How much of the unsynced data is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    /// A random part.
    Torn,
}

/// What was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Lost {
    /// Files whose content was rolled back.
    pub(crate) files: u64,
    /// The number of bytes that changed in them.
    pub(crate) bytes: u64,
    /// Unsynced pages that were kept.
    pub(crate) pages_kept: u64,
    /// Undone creations, renames and removals.
    pub(crate) names: u64,
}

impl Lost {
    pub(crate) fn is_nothing(&self) -> bool {
        self.files + self.names == 0
    }
}

/// Rolls back `data`, and empties the journal: what is left counts as synced.
pub(crate) fn roll_back(
    data: &Path,
    journal: &Path,
    random: &mut fastrand::Rng,
    extent: Extent,
) -> Result<Lost> {
    let mut lost = Lost::default();
    let mut paths = HashMap::new();
    find_inodes(journal, &mut paths)?;
    find_inodes(data, &mut paths)?;
    let mut inodes: Vec<u64> = paths.keys().copied().collect();
    inodes.sort_unstable();
    for inode in inodes {
        if let Ok(records) = fs::read(journal.join(inode.to_string())) {
            restore(&paths[&inode], &unsynced(&records).1, random, extent, &mut lost)
                .with_context(|| format!("cannot roll {} back", paths[&inode].display()))?;
        }
    }
    let names = fs::read_to_string(journal.join(NAMES)).unwrap_or_default();
    let mut undone = unsynced_names(&names);
    if extent == Extent::Torn && !undone.is_empty() {
        undone.drain(..random.usize(..=undone.len()));
    }
    lost.names = undone.iter().rev().filter(|change| undo(journal, change).is_ok()).count() as u64;
    for entry in fs::read_dir(journal).context("cannot list the journal")? {
        fs::remove_file(entry?.path()).context("cannot empty the journal")?;
    }
    Ok(lost)
}

/// Every regular file below `dir` by its inode.
fn find_inodes(dir: &Path, paths: &mut HashMap<u64, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.metadata()?;
        if kind.is_dir() {
            find_inodes(&entry.path(), paths)?;
        } else if kind.is_file() {
            paths.insert(kind.ino(), entry.path());
        }
    }
    Ok(())
}

/// The record header at the start of `bytes`; None if it is incomplete or there is none.
fn record(bytes: &[u8]) -> Option<Record> {
    let mut fields = [0; 5];
    for (field, place) in fields.iter_mut().zip(bytes.get(..RECORD_BYTES)?.chunks_exact(8)) {
        *field = u64::from_ne_bytes(place.try_into().ok()?);
    }
    let [kind, offset, len, saved, size] = fields;
    matches!(kind, WRITE | SYNCED).then_some(Record { kind, offset, len, saved, size })
}

/// A file's journal: the end of its complete records, and the writes among them that were not made durable,
/// oldest first, each with what it overwrote.
fn unsynced(journal: &[u8]) -> (usize, Vec<(Record, &[u8])>) {
    let (mut at, mut synced, mut writes) = (0, 0, Vec::new());
    while let Some(record) = record(&journal[at..]) {
        let begin = at + RECORD_BYTES;
        // A killed process has not executed a write whose record is incomplete.
        let Some(saved) = journal.get(begin..begin + record.saved as usize) else { break };
        match record.kind {
            SYNCED => synced = record.offset.max(synced),
            _ => writes.push((at as u64, record, saved)),
        }
        at = begin + saved.len();
    }
    let writes = writes.into_iter().filter(|(at, ..)| *at >= synced);
    (at, writes.map(|(_, record, saved)| (record, saved)).collect())
}

/// Removes the partial record of a killed process. Must be called before the next process appends.
pub(crate) fn mend(journal: &Path) -> Result<()> {
    for entry in fs::read_dir(journal).context("cannot list the journal")? {
        let path = entry?.path();
        let is_of_content =
            path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.parse::<u64>().is_ok());
        if is_of_content {
            let records = fs::read(&path).context("cannot read the journal")?;
            let (end, _) = unsynced(&records);
            if end < records.len() {
                let file = File::options().write(true).open(&path);
                file.and_then(|file| file.set_len(end as u64)).context("cannot mend the journal")?;
            }
        }
    }
    Ok(())
}

fn restore(
    path: &Path,
    writes: &[(Record, &[u8])],
    random: &mut fastrand::Rng,
    extent: Extent,
    lost: &mut Lost,
) -> Result<()> {
    let present = fs::read(path)?;
    let mut before = present.clone();
    let mut touched = BTreeSet::new();
    for (record, saved) in writes.iter().rev() {
        let offset = record.offset as usize;
        before.resize(before.len().max(offset + saved.len()), 0);
        before[offset..offset + saved.len()].copy_from_slice(saved);
        before.resize(record.size as usize, 0);
        let end = (offset + record.len as usize).min(present.len().max(before.len()));
        touched.extend(offset / PAGE..end.div_ceil(PAGE));
    }
    let is_torn = extent == Extent::Torn;
    let size = if is_torn && random.bool() { present.len() } else { before.len() };
    before.resize(size, 0);
    for page in touched.into_iter().filter(|_| is_torn) {
        let end = ((page + 1) * PAGE).min(size).min(present.len());
        if page * PAGE < end && random.bool() {
            before[page * PAGE..end].copy_from_slice(&present[page * PAGE..end]);
            lost.pages_kept += 1;
        }
    }
    let differing = present.iter().zip(&before).filter(|(present, before)| present != before).count();
    let bytes = differing + present.len().abs_diff(size);
    if bytes > 0 {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&before, 0)?;
        file.set_len(size as u64)?;
        lost.files += 1;
        lost.bytes += bytes as u64;
    }
    Ok(())
}

/// The changes of names not followed by a sync of their directory, oldest first, split into words.
fn unsynced_names(journal: &str) -> Vec<Vec<&str>> {
    let mut pending: Vec<Vec<&str>> = Vec::new();
    for line in journal.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["sync", "*"] => pending.clear(),
            ["sync", dir] => pending.retain(|change| !is_in(change, Path::new(dir))),
            ref change => pending.push(change.to_vec()),
        }
    }
    pending
}

/// Whether a change belongs to directory `dir`: a rename belongs to the directory of the new name.
fn is_in(change: &[&str], dir: &Path) -> bool {
    let name = if change[0] == "rename" { change.get(2) } else { change.get(1) };
    name.is_some_and(|name| Path::new(name).parent() == Some(dir))
}

/// Err if it cannot be undone, because a durable change came after it.
fn undo(journal: &Path, change: &[&str]) -> std::io::Result<()> {
    let put_back = |kept: &str, path: &str| match kept {
        "-" => Ok(()),
        kept => fs::rename(journal.join(kept), path),
    };
    match change {
        ["create", path] => fs::remove_file(path),
        ["rename", from, to, kept] => fs::rename(to, from).and_then(|()| put_back(kept, to)),
        ["unlink", path, kept] => put_back(kept, path),
        ["mkdir", path] => fs::remove_dir_all(path),
        ["rmdir", path] => fs::create_dir(path),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;

//! What a node remembers of its peers' disks: the newest life that it has met of each, and how far each had
//! acknowledged and voted in its lives, as of a moment ago. A disk that is put back to an older copy has
//! forgotten promises, as an empty one has. A node that remembers more than the disk holds refuses it.
//!
//! A greeting tells what a life began with, so a life can be judged at any time, also by what becomes known
//! later. Marks cover only committed entries: others may be truncated from a healthy log.
//!
//! Lives are stored in the identity file and are durable before a peer is listened to. Marks are written now
//! and then, to a file that nobody waits for: after a power cut they may be some seconds older.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId,
    identity::lives::{Life, Lives},
    types::LogId,
};

const FILE: &str = "witness.json";

/// How many starts of a disk have their marks kept: those of an older start bind all that follow.
const STARTS_MARKED: usize = 3;

/// The newest life of a peer's disk that was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Met {
    pub(crate) disk_id: String,
    pub(crate) life: Life,
}

/// What is on a disk: its last entry, and the term of its vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) last: Option<(u64, u64)>,
    pub(crate) voted: u64,
}

/// A start of a node: in which life of its disk, and what it began with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) lives: Lives,
    /// The process: a life that nobody has met may span several.
    pub(crate) boot: u64,
    pub(crate) with: Held,
}

/// What is known of a peer's disk in one of its starts: at least this was on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) disk_id: String,
    pub(crate) life: Life,
    pub(crate) boot: u64,
    pub(crate) held: Held,
}

/// By node, the newest starts with their marks, oldest first.
type Memory = BTreeMap<NodeId, Vec<Known>>;

/// A node's memory of its peers' disks.
pub(crate) struct Witness {
    file: PathBuf,
    memory: Mutex<Memory>,
    /// What the file holds; None once it is no longer written.
    saved: Mutex<Option<Memory>>,
}

impl Held {
    /// An entry, and a vote's term.
    pub(crate) fn new(last: Option<LogId>, voted: u64) -> Held {
        Held { last: last.map(|id| (id.leader_id.term, id.index)), voted }
    }

    /// What it lacks of `known`, in words.
    fn lacks(&self, known: &Held) -> Option<String> {
        let (term, index) = self.last.unwrap_or_default();
        if let Some((known_term, known_index)) = known.last
            && (index < known_index || term < known_term)
        {
            return Some(format!(
                "its log ends at {index} (term {term}), and it had acknowledged {known_index} (term {known_term})"
            ));
        }
        let (voted, known) = (self.voted, known.voted);
        (voted < known).then(|| format!("its vote is of term {voted}, and it had voted in term {known}"))
    }

    fn add(&mut self, other: &Held) {
        // Committed entries are in the order of their indexes.
        if other.last.map(|(_, index)| index) > self.last.map(|(_, index)| index) {
            self.last = other.last;
        }
        self.voted = self.voted.max(other.voted);
    }
}

/// Why a life does not follow from the one that was met; None if it may.
fn not_from(begun: &Lives, met: Life) -> Option<String> {
    let present = begun.present()?;
    match begun.name_of(met.number) {
        _ if present.number < met.number => {
            Some(format!("it is in life {}, and was met in life {}", present.number, met.number))
        }
        Some(name) if name != met.name => Some(format!("it was met in another life {}", met.number)),
        _ => None,
    }
}

impl Witness {
    /// Opens the memory of a data directory. Marks that make no sense are dropped: they were not durable. Those
    /// that the system does not let this process read are not dropped: they would be overwritten.
    pub(crate) fn open(dir: &Path) -> io::Result<Witness> {
        let file = dir.join(FILE);
        let memory = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "what was known of the peers' disks is lost");
                Memory::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(error) => return Err(error),
        };
        Ok(Witness { file, saved: Mutex::new(Some(memory.clone())), memory: Mutex::new(memory) })
    }

    /// Why the disk `disk_id` of a peer must have gone back: to before the life that was met, or to less than
    /// is known to have been on it. None if nothing shows that.
    pub(crate) fn objection(
        &self,
        id: NodeId,
        disk_id: &str,
        begun: &Begun,
        met: Option<&Met>,
    ) -> Option<String> {
        let present = begun.lives.present()?;
        if let Some(met) = met.filter(|met| met.disk_id == disk_id)
            && let Some(why) = not_from(&begun.lives, met.life)
        {
            return Some(why);
        }
        let memory = self.memory.lock();
        let known = memory.get(&id).into_iter().flatten().filter(|known| known.disk_id == disk_id);
        let mut reasons = known.filter_map(|known| {
            let is_older = known.life.number < present.number || known.boot != begun.boot;
            not_from(&begun.lives, known.life)
                .or_else(|| is_older.then(|| begun.with.lacks(&known.held)).flatten())
        });
        reasons.next()
    }

    /// Takes what is reported of a peer's disk.
    pub(crate) fn hear(&self, id: NodeId, heard: &Known) {
        let mut memory = self.memory.lock();
        let starts = memory.entry(id).or_default();
        // An id's disk changes only if the one before was never a member's.
        starts.retain(|known| known.disk_id == heard.disk_id);
        let of_life = |known: &&mut Known| known.life.number == heard.life.number;
        if starts.iter_mut().filter(of_life).any(|known| known.life.name != heard.life.name) {
            // Two lives of one number: the one that was met first is the right one.
            return;
        }
        match starts.iter_mut().filter(of_life).find(|known| known.boot == heard.boot) {
            Some(known) => known.held.add(&heard.held),
            None => {
                starts.push(heard.clone());
                starts.sort_by_key(|known| known.life.number);
                let superfluous = starts.len().saturating_sub(STARTS_MARKED);
                starts.drain(..superfluous);
            }
        }
    }

    /// The newest start of a peer's disk that is known of.
    #[cfg(test)]
    pub(crate) fn newest(&self, id: NodeId) -> Option<Known> {
        self.memory.lock().get(&id)?.last().cloned()
    }

    /// All that is known, to tell others.
    pub(crate) fn all(&self) -> Vec<(NodeId, Known)> {
        let memory = self.memory.lock();
        memory.iter().flat_map(|(id, starts)| starts.iter().map(|known| (*id, known.clone()))).collect()
    }

    /// Writes what is new to the file, without a sync. Blocks.
    pub(crate) fn save(&self) -> io::Result<()> {
        let memory = self.memory.lock().clone();
        let mut saved = self.saved.lock();
        if saved.as_ref().is_none_or(|saved| *saved == memory) {
            return Ok(());
        }
        let new = self.file.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec(&memory)?)?;
        std::fs::rename(&new, &self.file)?;
        *saved = Some(memory);
        Ok(())
    }

    /// Writes nothing more. Blocks.
    pub(crate) fn close(&self) {
        *self.saved.lock() = None;
    }
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;

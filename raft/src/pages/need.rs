//! How much space a commit takes before it frees what it replaces. sled rewrites a leaf as a whole, into a
//! slot of one of a few sizes, and keeps the old one until everything is durable.

use std::path::Path;

use super::{
    PagesError,
    worker::{Group, LEAF_FANOUT},
};
use crate::space::occupied;

/// What must be free in any case: for sled's own records, and names.
const LEAST_BYTES: u64 = 1 << 20;

/// The approximate size of a leaf's record in sled's log.
const RECORD_BYTES: u64 = 64;

/// A slot is at most half as large again as its content.
fn in_slots(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 2)
}

/// Opening a directory rewrites sled's records.
pub(super) fn of_opening(dir: &Path) -> u64 {
    LEAST_BYTES + 2 * occupied(&dir.join("metadata"))
}

/// The space that a commit of what is staged takes.
pub(super) struct Need {
    /// What is staged, in bytes and pages.
    staged: u64,
    pages: u64,
    /// What the whole directory occupies, and an average page in it.
    present: u64,
    page: u64,
    /// For sled's records.
    records: u64,
}

impl Need {
    pub(super) fn of(dir: &Path, group: &Group) -> Need {
        let staged = group.staged.values().flatten().map(|content| content.len() as u64).sum();
        let (pages, present) = (group.staged.len() as u64, occupied(dir));
        let page = present / group.tally.pages.max(1);
        Need { staged, pages, present, page, records: of_opening(dir) + RECORD_BYTES * pages }
    }

    /// An upper bound: at most all that is present is rewritten, and with each page no more than its leaf
    /// holds.
    pub(super) fn at_most(&self) -> u64 {
        in_slots(self.staged + self.present.min(self.pages.saturating_mul(self.beside()))) + self.records
    }

    /// A closer bound: what is staged is written, and what shares leaves with it, at both ends of each run of
    /// neighbours.
    pub(super) fn closely(&self, group: &Group) -> Result<u64, PagesError> {
        let bytes = in_slots(self.staged + beside(group)?) + self.records;
        Ok(bytes.min(self.at_most()))
    }

    /// What may share a leaf with a page, at either end.
    fn beside(&self) -> u64 {
        2 * (LEAF_FANOUT as u64 - 1) * self.page
    }
}

/// The bytes of the pages that are not staged and may share a leaf with one that is.
fn beside(group: &Group) -> Result<u64, PagesError> {
    let mut bytes = 0;
    // What follows the last page that was looked at.
    let mut behind: Option<(Option<Vec<u8>>, u64)> = None;
    for id in group.staged.keys() {
        let (is_gap, is_known) = match &behind {
            None => (true, false),
            Some((None, _)) => (false, true),
            Some((Some(page), _)) => (page < id, page > id),
        };
        if is_gap {
            bytes += behind.as_ref().map_or(0, |(_, bytes)| *bytes) + group.before(id)?;
        }
        if !is_known {
            behind = Some(group.behind(id)?);
        }
    }
    Ok(bytes + behind.map_or(0, |(_, bytes)| bytes))
}

//! What has been applied, apart from the machine's own state. A checkpoint records it, and a snapshot carries
//! it.

use std::collections::BTreeSet;

use crate::{
    NodeId,
    agreement::trail::Mark,
    types::{LogId, SnapshotMeta, StoredMembership},
};

/// What has been applied: all of the state that is not the machine's.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub last: Option<LogId>,
    pub membership: StoredMembership,
    /// Ids of former members. They are never reused.
    pub retired: BTreeSet<NodeId>,
    /// The level at which entries are applied; 0 before the first.
    pub level: u32,
    /// The running hash of the entries; None where it is not known.
    pub hash: Option<u64>,
    /// Whether the log clock waits for the wall clock.
    pub is_closing: bool,
}

impl Default for Progress {
    /// The state before the first entry.
    fn default() -> Progress {
        let (last, membership, retired) = Default::default();
        Progress { last, membership, retired, level: 0, hash: Some(0), is_closing: false }
    }
}

impl Progress {
    /// The running hash after the last entry, and its index.
    pub(super) fn mark(&self) -> Option<Mark> {
        Some(Mark { index: self.last?.index, hash: self.hash? })
    }

    /// Whether an entry is the next one to apply.
    pub(super) fn is_followed_by(&self, id: &LogId) -> bool {
        id.index == self.last.map_or(0, |last| last.index + 1)
    }

    pub(super) fn change_membership(&mut self, next: StoredMembership) {
        self.retired.extend(self.membership.membership().nodes().map(|(id, _)| *id));
        for (id, _) in next.membership().nodes() {
            self.retired.remove(id);
        }
        self.membership = next;
    }

    /// What openraft calls the metadata of a snapshot of this state.
    pub(crate) fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use crate::types::LogId;

    #[test]
    fn only_the_next_entry_follows() {
        let follows = |last: Option<u64>, index| {
            let last = last.map(|index| LogId::new_term_index(2, index));
            let progress = Progress { last, ..Progress::default() };
            progress.is_followed_by(&LogId::new_term_index(3, index))
        };
        assert!(follows(None, 0) && follows(Some(0), 1) && follows(Some(7), 8));
        assert!(!follows(None, 1) && !follows(Some(7), 7) && !follows(Some(7), 9) && !follows(Some(7), 3));
    }
}

//! Whether the members have applied the same log (`trail.rs`), and whether it has led to the same state
//! (`snapshot/common_checkpoint.rs`), as their reports show. Nodes that differ at an index that both have
//! applied serve different data, for ever. That must not happen: a node that a majority contradicts no longer
//! takes part, and where no majority agrees nobody writes.
//!
//! A node whose log differs has made other promises than the rest: it ends, and stays out. One whose log is
//! the same and whose state is not was let down by its memory, its disk or this program: its promises are
//! good, and it takes the state anew.

pub(crate) mod contradiction;
pub(crate) mod divergence;
pub(crate) mod trail;

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{NodeId, agreement::trail::Mark};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Logs,
    States,
}

impl Subject {
    /// How long no majority may be known to agree before nobody serves: the others are heard one after
    /// another, and write their checkpoints in their own time.
    fn split_min(self) -> Duration {
        match self {
            Subject::Logs => Duration::from_secs(2),
            Subject::States => Duration::from_secs(5),
        }
    }

    /// Said while no majority agrees.
    fn split(self) -> &'static str {
        match self {
            Subject::Logs => "the members have applied different logs, and no majority agrees",
            Subject::States => "the members have different states after the same log, and no majority agrees",
        }
    }
}

/// What the last comparison with a member has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Compared {
    index: u64,
    /// The first index at which it was seen to differ; None if it is the same up to `index`.
    differs_at: Option<u64>,
    /// The marks at which it differs, as it last reported them.
    others: Vec<Mark>,
}

/// How this node compares with the other members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody is known to differ.
    #[default]
    Agreed,
    /// These differ, and a majority agrees with this node.
    Others(BTreeMap<NodeId, u64>),
    /// A majority differs from this node.
    Apart(BTreeMap<NodeId, u64>),
    /// These differ, and no majority is known to agree.
    Split(BTreeMap<NodeId, u64>),
}

/// All comparisons of one kind.
pub(crate) struct Agreement {
    subject: Subject,
    compared: Mutex<BTreeMap<NodeId, Compared>>,
    /// Since when no majority is known to agree.
    split_since: Mutex<Option<Instant>>,
    /// The standing that this node acts on.
    standing: Mutex<Standing>,
}

/// One for each subject.
pub(crate) struct Agreements {
    pub(crate) logs: Agreement,
    pub(crate) states: Agreement,
}

impl Default for Agreements {
    fn default() -> Agreements {
        Agreements { logs: Agreement::of(Subject::Logs), states: Agreement::of(Subject::States) }
    }
}

impl Agreements {
    fn all(&self) -> [&Agreement; 2] {
        [&self.logs, &self.states]
    }
}

impl Agreement {
    fn of(subject: Subject) -> Agreement {
        Agreement {
            subject,
            compared: Mutex::default(),
            split_since: Mutex::default(),
            standing: Mutex::default(),
        }
    }

    /// Compares what a member reports with what this node has at the same index. The highest index decides: a
    /// member that took the state anew agrees from there on.
    pub(crate) fn compare(&self, id: NodeId, told: &[Mark], own: impl Fn(u64) -> Option<u64>) {
        let known: Vec<(Mark, u64)> =
            told.iter().filter_map(|mark| Some((*mark, own(mark.index)?))).collect();
        let Some((mark, hash)) = known.iter().max_by_key(|(mark, _)| mark.index) else { return };
        let mut compared = self.compared.lock();
        let before = compared.get(&id);
        // Reports may overtake each other.
        if before.is_none_or(|before| mark.index >= before.index) {
            let since = before.and_then(|before| before.differs_at).unwrap_or(mark.index);
            let differs_at = (mark.hash != *hash).then_some(since);
            let others =
                known.iter().filter(|(mark, own)| mark.hash != *own).map(|(mark, _)| *mark).collect();
            compared.insert(id, Compared { index: mark.index, differs_at, others });
        }
    }

    /// The standing of node `own` among these voters.
    pub(crate) fn standing(&self, own: NodeId, voters: &[NodeId]) -> Standing {
        let compared = self.compared.lock();
        let others =
            || voters.iter().filter(|id| **id != own).filter_map(|id| Some((*id, compared.get(id)?)));
        let differing: BTreeMap<NodeId, u64> =
            others().filter_map(|(id, compared)| Some((id, compared.differs_at?))).collect();
        let Some(last) = differing.values().max() else { return Standing::Agreed };
        // One that agreed only before that index says nothing about it.
        let agrees = |compared: &Compared| compared.differs_at.is_none() && compared.index >= *last;
        let agreeing = others().filter(|(_, compared)| agrees(compared)).count();
        let is_voter = usize::from(voters.contains(&own));
        if agreeing + is_voter > voters.len() / 2 {
            Standing::Others(differing)
        } else if most_alike(others().map(|(_, compared)| compared)) > voters.len() / 2 {
            Standing::Apart(differing)
        } else {
            Standing::Split(differing)
        }
    }
}

/// How many differ in the same way: nodes that differ from each other too are no majority.
fn most_alike<'a>(compared: impl Iterator<Item = &'a Compared>) -> usize {
    let mut alike: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for mark in
        compared.filter(|compared| compared.differs_at.is_some()).flat_map(|compared| &compared.others)
    {
        *alike.entry((mark.index, mark.hash)).or_default() += 1;
    }
    alike.into_values().max().unwrap_or(0)
}

impl Agreement {
    /// The same, except that a split must have lasted: the others are heard one after another.
    fn settled(&self, standing: Standing) -> Standing {
        let mut since = self.split_since.lock();
        if !matches!(standing, Standing::Split(_)) {
            *since = None;
            return standing;
        }
        let is_new = since.get_or_insert_with(Instant::now).elapsed() < self.subject.split_min();
        if is_new { Standing::Agreed } else { standing }
    }

    /// The standing of node `own`, if it has changed.
    fn news(&self, own: NodeId, voters: &[NodeId]) -> Option<Standing> {
        if matches!(*self.standing.lock(), Standing::Apart(_)) {
            // This node ends, whatever is heard until then.
            return None;
        }
        let standing = self.settled(self.standing(own, voters));
        let before = std::mem::replace(&mut *self.standing.lock(), standing.clone());
        (before != standing).then_some(standing)
    }

    /// Whether no majority is known to agree.
    pub(crate) fn is_split(&self) -> bool {
        matches!(*self.standing.lock(), Standing::Split(_))
    }

    /// The members that differ from this node.
    fn differing(&self) -> Vec<NodeId> {
        match &*self.standing.lock() {
            Standing::Agreed => Vec::new(),
            Standing::Others(others) | Standing::Apart(others) | Standing::Split(others) => {
                others.keys().copied().collect()
            }
        }
    }

    /// Why nothing may be served; None if it may.
    fn objection(&self) -> Option<&'static str> {
        match *self.standing.lock() {
            Standing::Split(_) => Some(self.subject.split()),
            Standing::Apart(_) => Some("a majority of the members differs from this node"),
            Standing::Agreed | Standing::Others(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Agreement, Standing, Subject};
    use crate::agreement::trail::Mark;

    fn tell(agreement: &Agreement, id: u64, index: u64, is_same: bool) {
        agreement.compare(id, &[Mark { index, hash: u64::from(is_same) }], |_| Some(1));
    }

    #[test]
    fn a_majority_is_right_and_without_one_nobody_is() {
        let agreement = Agreement::of(Subject::Logs);
        let standing = || agreement.standing(1, &[1, 2, 3]);
        assert_eq!(standing(), Standing::Agreed);
        tell(&agreement, 2, 50, false);
        assert_eq!(standing(), Standing::Split([(2, 50)].into()));
        tell(&agreement, 3, 40, true);
        assert_eq!(standing(), Standing::Split([(2, 50)].into()), "node 3 was not asked about 50");
        tell(&agreement, 3, 60, true);
        assert_eq!(standing(), Standing::Others([(2, 50)].into()));
        tell(&agreement, 3, 70, false);
        assert_eq!(standing(), Standing::Split([(2, 50), (3, 70)].into()), "of different entries");
        tell(&agreement, 2, 70, false);
        assert_eq!(standing(), Standing::Apart([(2, 50), (3, 70)].into()));
        // Late reports, and what cannot be compared, change nothing.
        tell(&agreement, 3, 65, true);
        agreement.compare(3, &[Mark { index: 90, hash: 1 }], |_| None);
        assert_eq!(standing(), Standing::Apart([(2, 50), (3, 70)].into()));
        // Each has something different.
        agreement.compare(2, &[Mark { index: 75, hash: 7 }], |_| Some(1));
        agreement.compare(3, &[Mark { index: 75, hash: 8 }], |_| Some(1));
        assert_eq!(standing(), Standing::Split([(2, 50), (3, 70)].into()));
        tell(&agreement, 2, 76, false);
        assert_eq!(standing(), Standing::Split([(2, 50), (3, 70)].into()));
        tell(&agreement, 2, 80, true);
        tell(&agreement, 3, 80, true);
        assert_eq!(standing(), Standing::Agreed);
    }
}

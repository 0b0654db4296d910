//! Whether the members have applied the same log, as their reports show (`trail.rs`). Nodes whose logs differ at an index that
//! both have applied serve different data, for ever. That must not be served: the one that a majority contradicts takes no part
//! any more, and where no majority agrees nobody writes.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    Machine, NodeId,
    core::Core,
    safeguard::{self, Safeguard},
    trail::Mark,
};

/// How long no majority is known to agree before nobody serves.
const SPLIT_MIN: Duration = Duration::from_secs(2);

/// Said while no majority agrees.
const SPLIT: &str = "the members have applied different logs, and no majority agrees";

/// What the last comparison with a member has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Compared {
    index: u64,
    /// The first index at which the logs were seen to differ; None if they are the same up to `index`.
    differs_at: Option<u64>,
}

/// How this node stands to the other members.
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

/// All comparisons.
#[derive(Default)]
pub(crate) struct Agreement {
    compared: Mutex<BTreeMap<NodeId, Compared>>,
    /// Since when no majority is known to agree.
    split_since: Mutex<Option<Instant>>,
    /// What this node does something about.
    standing: Mutex<Standing>,
}

impl Agreement {
    /// Compares what a member tells with what this node has at the same index. The highest index counts: a member that took
    /// the state anew agrees from there on.
    pub(crate) fn compare(&self, id: NodeId, told: &[Mark], own: impl Fn(u64) -> Option<u64>) {
        let newest =
            told.iter().filter_map(|mark| Some((mark, own(mark.index)?))).max_by_key(|(mark, _)| mark.index);
        let Some((mark, hash)) = newest else { return };
        let mut compared = self.compared.lock();
        let before = compared.get(&id).copied();
        // Reports may overtake each other.
        if before.is_none_or(|before| mark.index >= before.index) {
            let since = before.and_then(|before| before.differs_at).unwrap_or(mark.index);
            let differs_at = (mark.hash != hash).then_some(since);
            compared.insert(id, Compared { index: mark.index, differs_at });
        }
    }

    /// What follows for node `own` among these voters.
    pub(crate) fn standing(&self, own: NodeId, voters: &[NodeId]) -> Standing {
        let compared = self.compared.lock();
        let others =
            || voters.iter().filter(|id| **id != own).filter_map(|id| Some((*id, *compared.get(id)?)));
        let differing: BTreeMap<NodeId, u64> =
            others().filter_map(|(id, compared)| Some((id, compared.differs_at?))).collect();
        let Some(last) = differing.values().max() else { return Standing::Agreed };
        // Whoever agreed before that says nothing about it.
        let agrees = |compared: &Compared| compared.differs_at.is_none() && compared.index >= *last;
        let agreeing = others().filter(|(_, compared)| agrees(compared)).count();
        let is_voter = usize::from(voters.contains(&own));
        if agreeing + is_voter > voters.len() / 2 {
            Standing::Others(differing)
        } else if differing.len() > voters.len() / 2 {
            Standing::Apart(differing)
        } else {
            Standing::Split(differing)
        }
    }
}

impl Agreement {
    /// The same, but for a split that has not lasted: the others are heard one after the other.
    fn settled(&self, standing: Standing) -> Standing {
        let mut since = self.split_since.lock();
        if !matches!(standing, Standing::Split(_)) {
            *since = None;
            return standing;
        }
        let is_new = since.get_or_insert_with(Instant::now).elapsed() < SPLIT_MIN;
        if is_new { Standing::Agreed } else { standing }
    }
}

impl<M: Machine> Core<M> {
    /// Does what follows from how this node stands to the others.
    pub(crate) fn take_stand(&self) {
        if safeguard::is_off(Safeguard::Agreement) {
            return;
        }
        let voters: Vec<NodeId> = self.metrics().membership_config.membership().voter_ids().collect();
        let standing = self.agreement.settled(self.agreement.standing(self.config.id, &voters));
        if std::mem::replace(&mut *self.agreement.standing.lock(), standing.clone()) == standing {
            return;
        }
        self.proposer.refuse(matches!(standing, Standing::Split(_)).then_some(SPLIT));
        match standing {
            Standing::Agreed => tracing::warn!("all members have applied the same log again"),
            Standing::Others(others) => tracing::error!(
                "these members have applied another log than a majority with this node, at these indexes: {others:?}"
            ),
            Standing::Split(others) => tracing::error!(
                "these members have applied another log than this node, at these indexes, and no majority agrees: \
                 {others:?}. Nothing is written before that is settled: stop all nodes, keep their data directories, and \
                 see docs/recovery.md"
            ),
            Standing::Apart(others) => (self.table.platform.contradiction)(format!(
                "a majority has applied another log than this node, at these indexes: {others:?}"
            )),
        }
    }

    /// Why nothing may be served; None if it may.
    pub(crate) fn is_split(&self) -> Option<&'static str> {
        matches!(*self.agreement.standing.lock(), Standing::Split(_)).then_some(SPLIT)
    }
}

#[cfg(test)]
mod tests {
    use super::{Agreement, Standing};
    use crate::trail::Mark;

    fn tell(agreement: &Agreement, id: u64, index: u64, is_same: bool) {
        agreement.compare(id, &[Mark { index, hash: u64::from(is_same) }], |_| Some(1));
    }

    #[test]
    fn a_majority_is_right_and_without_one_nobody_is() {
        let agreement = Agreement::default();
        let standing = || agreement.standing(1, &[1, 2, 3]);
        assert_eq!(standing(), Standing::Agreed);
        tell(&agreement, 2, 50, false);
        assert_eq!(standing(), Standing::Split([(2, 50)].into()));
        tell(&agreement, 3, 40, true);
        assert_eq!(standing(), Standing::Split([(2, 50)].into()), "node 3 was not asked about 50");
        tell(&agreement, 3, 60, true);
        assert_eq!(standing(), Standing::Others([(2, 50)].into()));
        tell(&agreement, 3, 70, false);
        assert_eq!(standing(), Standing::Apart([(2, 50), (3, 70)].into()));
        tell(&agreement, 2, 75, false);
        // Of late news, and of what is not comparable, nothing follows.
        tell(&agreement, 3, 65, true);
        agreement.compare(3, &[Mark { index: 90, hash: 1 }], |_| None);
        assert_eq!(standing(), Standing::Apart([(2, 50), (3, 70)].into()));
        tell(&agreement, 2, 80, true);
        tell(&agreement, 3, 80, true);
        assert_eq!(standing(), Standing::Agreed);
    }
}

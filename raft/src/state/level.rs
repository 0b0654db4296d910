//! The apply level: the number of the rules by which entries become state.
//!
//! Each member publishes in the membership up to which level it can apply entries. Once all of them know a
//! higher one, an entry raises the group to it (`proposals/entry.rs`); what was written before is applied by
//! the rules of its time, for ever. A node that cannot follow is refused by its peers, and ends rather than
//! apply an entry by other rules than they do.
//!
//! The machine and this crate number their rules together: what an entry says to this crate comes with a
//! level too.

use std::collections::BTreeMap;

use crate::{NodeId, types::MemberNode};

/// From this level on entries say how far the log clock is ahead of the wall clock, and whether it waits for
/// it.
pub const DISTANCE_LEVEL: u32 = 3;

/// From this level on entries ask for checkpoints (`common_checkpoint.rs`).
pub(crate) const CHECKPOINTS: u32 = 3;

/// The endpoint under which a node publishes the highest level that it knows.
const LEVEL_ENDPOINT: &str = "apply-level";

/// Adds a node's highest level to what it publishes.
pub(crate) fn publish(endpoints: &mut BTreeMap<String, String>, level_max: u32) {
    endpoints.insert(LEVEL_ENDPOINT.to_owned(), level_max.to_string());
}

/// The highest level that all members know; None if one has not published any.
pub(crate) fn common<'a>(members: impl Iterator<Item = (&'a NodeId, &'a MemberNode)>) -> Option<u32> {
    let known = members.map(|(_, node)| node.endpoints.get(LEVEL_ENDPOINT)?.parse::<u32>().ok());
    known.collect::<Option<Vec<u32>>>()?.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::{common, publish};
    use crate::types::MemberNode;

    #[test]
    fn the_common_level_is_the_lowest_and_one_silent_member_makes_it_unknown() {
        let node = |level: Option<u32>| {
            let mut node = MemberNode::default();
            level.into_iter().for_each(|level| publish(&mut node.endpoints, level));
            node
        };
        let (two, three, silent) = (node(Some(2)), node(Some(3)), node(None));
        assert_eq!(common([(&1, &three), (&2, &two)].into_iter()), Some(2));
        assert_eq!(common([(&1, &three), (&2, &two), (&3, &silent)].into_iter()), None);
        assert_eq!(common(std::iter::empty()), None);
    }
}

//! Which of the survivors may become a new cluster. Pure.

use std::collections::BTreeSet;

use super::{RecoverError, Survivor};
use crate::NodeId;

/// The place of the survivor with the longest log among those that can be used: by the last term, then by the
/// last index, as in Raft's elections. Of equal ones the first.
pub fn longest(survivors: &[Survivor]) -> Option<usize> {
    let usable = survivors.iter().enumerate().filter(|(_, survivor)| survivor.unusable().is_none());
    usable.rev().max_by_key(|(_, survivor)| survivor.last).map(|(place, _)| place)
}

/// Whether the survivors are a majority of the voters by the last membership that one of them knows: then
/// nothing is lost, and they only have to be started.
pub fn surviving_majority(survivors: &[Survivor]) -> bool {
    let Some(longest) = longest(survivors) else { return false };
    let there: BTreeSet<NodeId> = survivors
        .iter()
        .filter(|survivor| survivor.unusable().is_none() && !survivor.is_unfinished)
        .map(|survivor| survivor.node_id)
        .collect();
    let voters = &survivors[longest].voters;
    !voters.is_empty() && voters.iter().all(|voters| voters.intersection(&there).count() > voters.len() / 2)
}

/// Refuses to make the survivor at `chosen` a new cluster if that would lose more than it must.
pub fn check(survivors: &[Survivor], chosen: usize, although_shorter: bool) -> Result<(), RecoverError> {
    let refused = |text: String| Err(RecoverError::Refused(text));
    let one = &survivors[chosen];
    if one.is_unfinished {
        // It was judged when it was begun.
        return Ok(());
    }
    let is_other = |other: &&Survivor| other.cluster_id.is_some() && other.cluster_id != one.cluster_id;
    if let Some(other) = survivors.iter().find(is_other).filter(|_| one.cluster_id.is_some()) {
        return refused(format!(
            "{} and {} belong to different clusters",
            one.dir.display(),
            other.dir.display()
        ));
    }
    if let Some(why) = one.unusable() {
        return refused(format!("{} cannot be recovered: {why}", one.dir.display()));
    }
    if surviving_majority(survivors) {
        return refused(
            "a majority of the voters is there: start these nodes as they are, and nothing is lost".into(),
        );
    }
    let longest = &survivors[longest(survivors).unwrap_or(chosen)];
    if longest.last > one.last && !although_shorter {
        return refused(format!(
            "node {} has more: its log ends at {} of term {}, that of node {} at {} of term {}",
            longest.node_id,
            longest.last.index,
            longest.last.term,
            one.node_id,
            one.last.index,
            one.last.term
        ));
    }
    Ok(())
}

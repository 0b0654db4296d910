//! A running hash over the entries that a node has applied, so that two nodes can tell, at any index that
//! both know, whether they have applied the same log. It is part of checkpoints and snapshots.
//!
//! It begins with the empty state, and anew with each entry that raises the apply level: a state from a
//! version without it has none until then.

use std::collections::VecDeque;

use openraft::EntryPayload;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    Entropy,
    types::{Entry, LogId},
};

/// How many of the newest entries can be compared, each of them.
const RECENT: usize = 1024;

/// The spacing of older entries that can be compared, ...
const SPACING: u64 = 1024;

/// ... and how many of these are kept.
const SPACED: usize = 256;

/// How many of these are told at once.
const TOLD: usize = 4;

/// The hash after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) index: u64,
    pub(crate) hash: u64,
}

/// The hashes of a node, as far back as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    recent: VecDeque<Mark>,
    spaced: VecDeque<Mark>,
}

/// The hash after an entry, given the one before it.
pub(crate) fn follow(before: Option<u64>, entry: &Entry, raised: Option<Entropy>) -> Option<u64> {
    let before = match raised {
        Some(entropy) => xxh3_64_with_seed(&entropy, 0),
        None => before?,
    };
    let LogId { leader_id, index } = entry.log_id;
    let (kind, payload): (u64, &[u8]) = match &entry.payload {
        EntryPayload::Blank => (0, &[]),
        EntryPayload::Normal(payload) => (1, &payload.0),
        // Its form in memory may change between versions; who may vote shows elsewhere.
        EntryPayload::Membership(_) => (2, &[]),
    };
    let content = xxh3_64_with_seed(payload, before);
    let place: Vec<u8> = [content, leader_id.term, index, kind].map(u64::to_le_bytes).concat();
    Some(xxh3_64_with_seed(&place, before))
}

impl Trail {
    /// Starts over with another hash.
    pub(crate) fn begin(&mut self, mark: Option<Mark>) {
        *self = Trail::default();
        mark.into_iter().for_each(|mark| self.push(mark));
    }

    pub(crate) fn push(&mut self, mark: Mark) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        if mark.index.is_multiple_of(SPACING) {
            if self.spaced.len() == SPACED {
                self.spaced.pop_front();
            }
            self.spaced.push_back(mark);
        }
    }

    /// The hash after an entry; None if it is not kept.
    pub(crate) fn at(&self, index: u64) -> Option<u64> {
        let find = |marks: &VecDeque<Mark>| {
            let at = marks.binary_search_by_key(&index, |mark| mark.index).ok()?;
            marks.get(at).map(|mark| mark.hash)
        };
        find(&self.recent).or_else(|| find(&self.spaced))
    }

    /// All that is kept, the newest last.
    pub(crate) fn all(&self) -> Vec<Mark> {
        let oldest = self.recent.front().map_or(u64::MAX, |mark| mark.index);
        let spaced = self.spaced.iter().take_while(|mark| mark.index < oldest);
        spaced.chain(&self.recent).copied().collect()
    }

    /// What to tell others: the newest, and some older ones that a node that is behind may know.
    pub(crate) fn told(&self) -> Vec<Mark> {
        let (last, spaced) = (self.recent.back(), self.spaced.iter().rev().take(TOLD));
        last.into_iter().chain(spaced).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::Payload;

    fn entry(term: u64, index: u64, payload: &'static [u8]) -> Entry {
        let payload = EntryPayload::Normal(Payload(Bytes::from_static(payload)));
        Entry { log_id: LogId::new_term_index(term, index), payload }
    }

    #[test]
    fn it_tells_content_place_and_order_apart() {
        let of =
            |entries: &[Entry]| entries.iter().try_fold(0, |hash, entry| follow(Some(hash), entry, None));
        let log = [entry(1, 1, b"a"), entry(1, 2, b"b")];
        assert_eq!(of(&log), of(&log));
        for other in [
            [entry(1, 1, b"a"), entry(1, 2, b"c")],
            [entry(1, 1, b"a"), entry(2, 2, b"b")],
            [entry(1, 2, b"b"), entry(1, 1, b"a")],
        ] {
            assert_ne!(of(&log), of(&other));
        }
        assert_eq!(follow(None, &log[0], None), None, "nothing is known of what came before");
        assert_eq!(follow(None, &log[0], Some([1; 16])), follow(Some(9), &log[0], Some([1; 16])));
    }

    #[test]
    fn the_newest_are_kept_and_some_of_the_others() {
        let mut trail = Trail::default();
        (0..10_000).for_each(|index| trail.push(Mark { index, hash: index + 1 }));
        assert_eq!((trail.at(9_999), trail.at(8_976)), (Some(10_000), Some(8_977)));
        assert_eq!((trail.at(8_192), trail.at(8_193), trail.at(10_000)), (Some(8_193), None, None));
        let told: Vec<u64> = trail.told().iter().map(|mark| mark.index).collect();
        assert_eq!(told, [9_999, 9_216, 8_192, 7_168, 6_144]);
        let all: Vec<u64> = trail.all().iter().map(|mark| mark.index).collect();
        assert_eq!((all.len(), all[0], all[8], all[9]), (9 + RECENT, 0, 8_192, 8_976));
        assert!(all.is_sorted_by(|one, next| one < next));
        trail.begin(None);
        assert_eq!((trail.at(9_999), trail.told()), (None, Vec::new()));
    }
}

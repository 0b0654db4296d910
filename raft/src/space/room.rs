//! How much room the members of the group have on their disks, and what is refused because of it.
//!
//! No write is refused as long as a majority has room: a full follower keeps up as far as its reserve goes,
//! and a full leader hands over. Where no majority would have room, a write is refused before it is proposed,
//! so that it is certainly not applied. Each node decides by what it measures and by what the others report;
//! what gets through before that news arrives is what the reserve is for.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use crate::{DiskState, NodeId, Unavailable, space::Space};

/// A node that has not reported for this long counts as away.
const AWAY: Duration = Duration::from_secs(3);

/// A write takes its bytes in the log, and up to twice as much in the pages of the next checkpoint.
const COPIES: u64 = 3;

/// What room a write needs on the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing: it is accepted as long as anything can be written, because it makes room for everything else.
    #[default]
    Nothing,
    /// An entry in the log.
    Entry,
    /// Room for data that stay.
    Growth,
}

/// What a node's disk has room for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Room {
    /// More data.
    pub(super) growth: u64,
    /// Entries.
    entries: u64,
}

impl Room {
    const ANY: Room = Room { growth: u64::MAX, entries: u64::MAX };

    pub(crate) fn of(space: &Space) -> Room {
        let entries = if space.disk().state == DiskState::Full { 0 } else { u64::MAX };
        Room { growth: space.growth(), entries }
    }

    pub(super) fn for_need(self, need: Need) -> u64 {
        match need {
            Need::Nothing => u64::MAX,
            Need::Entry => self.entries,
            Need::Growth => self.growth,
        }
    }
}

/// What each member has reported, and when.
pub(super) type Heard = BTreeMap<NodeId, (Instant, Option<Room>)>;

/// The room of the group, as this node knows it.
pub(crate) struct Rooms {
    pub(super) heard: Mutex<Heard>,
    /// What a majority has room for.
    growth: AtomicU64,
    entries: AtomicU64,
    /// The nodes that have no room for more data.
    short: Mutex<Vec<NodeId>>,
    /// Makes this node report its room to the members at once.
    pub(crate) news: Notify,
}

impl Default for Rooms {
    fn default() -> Rooms {
        let (growth, entries) = (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
        Rooms { heard: Mutex::default(), growth, entries, short: Mutex::default(), news: Notify::new() }
    }
}

impl Rooms {
    fn for_need(&self, need: Need) -> u64 {
        match need {
            Need::Nothing => u64::MAX,
            Need::Entry => self.entries.load(Ordering::Relaxed),
            Need::Growth => self.growth.load(Ordering::Relaxed),
        }
    }

    /// Whether a majority has room for a write of this many bytes.
    pub(crate) fn check(&self, need: Need, bytes: usize) -> Result<(), Unavailable> {
        let needed = if need == Need::Growth { (bytes as u64).saturating_mul(COPIES).max(1) } else { 1 };
        if needed <= self.for_need(need) {
            return Ok(());
        }
        let short = self.shortage(need);
        Err(Unavailable::NoRoom(short.unwrap_or_else(|| {
            format!("command not allowed when the disks of the nodes have no room for {needed} bytes more")
        })))
    }

    /// Why nothing with this need is accepted; None while something is.
    pub(crate) fn shortage(&self, need: Need) -> Option<String> {
        if self.for_need(need) > 0 {
            return None;
        }
        let short: Vec<String> = self.short.lock().iter().map(NodeId::to_string).collect();
        let (nodes, what) = (short.join(", "), if short.len() == 1 { "node" } else { "nodes" });
        Some(match need {
            Need::Entry => format!(
                "command not allowed when the disk is full ({what} {nodes}): make room there, or use FLUSHALL or FLUSHDB"
            ),
            _ => format!(
                "command not allowed when the disk is nearly full ({what} {nodes}): make room there, or delete keys"
            ),
        })
    }

    pub(super) fn set(&self, growth: u64, entries: u64, short: Vec<NodeId>) {
        *self.short.lock() = short;
        self.growth.store(growth, Ordering::Relaxed);
        self.entries.store(entries, Ordering::Relaxed);
    }

    /// The room of a voter; None if it is away.
    pub(super) fn of(heard: &Heard, id: NodeId) -> Option<Room> {
        match heard.get(&id) {
            // It may be of a version that does not report it.
            None => Some(Room::ANY),
            Some((_, None)) => Some(Room::ANY),
            Some((at, room)) => room.filter(|_| at.elapsed() < AWAY),
        }
    }
}

/// The room of a majority of the voters. `None` are those that are away. Where no majority is present, the
/// disks are not what keeps writes from being accepted.
pub(super) fn of_majority(rooms: impl Iterator<Item = Option<u64>>) -> u64 {
    let rooms: Vec<Option<u64>> = rooms.collect();
    let majority = rooms.len() / 2 + 1;
    let mut there: Vec<u64> = rooms.into_iter().flatten().collect();
    there.sort_unstable_by(|one, other| other.cmp(one));
    there.get(majority - 1).copied().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_that_is_there_must_have_room() {
        let room = |rooms: &[Option<u64>]| of_majority(rooms.iter().copied());
        assert_eq!(room(&[Some(0), Some(5), Some(9)]), 5, "one full disk of three is harmless");
        assert_eq!(room(&[Some(0), Some(0), Some(9)]), 0);
        assert_eq!(room(&[Some(0), None, Some(9)]), 0, "the full one is needed");
        assert_eq!(room(&[Some(7), None, Some(9)]), 7);
        assert_eq!(room(&[Some(0), None, None]), u64::MAX, "it is not for its disk that nothing is taken");
        assert_eq!(room(&[Some(3)]), 3);
        assert_eq!(room(&[Some(0), Some(0), Some(1), Some(1), Some(1)]), 1);
    }

    #[test]
    fn a_refusal_names_the_nodes_and_lets_pass_what_makes_room() {
        let rooms = Rooms::default();
        assert!(rooms.check(Need::Growth, 1 << 40).is_ok());
        rooms.set(3000, u64::MAX, Vec::new());
        assert!(rooms.check(Need::Growth, 1000).is_ok());
        let refused = rooms.check(Need::Growth, 1001).unwrap_err().to_string();
        assert!(refused.contains("no room for 3003 bytes"), "{refused}");
        rooms.set(0, u64::MAX, vec![1, 3]);
        let refused = rooms.check(Need::Growth, 1).unwrap_err().to_string();
        assert!(
            refused.starts_with("command not allowed when the disk is nearly full (nodes 1, 3)"),
            "{refused}"
        );
        assert!(rooms.check(Need::Growth, 0).is_err() && rooms.check(Need::Entry, 1 << 30).is_ok());
        rooms.set(0, 0, vec![2]);
        let refused = rooms.check(Need::Entry, 1).unwrap_err().to_string();
        assert!(refused.contains("disk is full (node 2)") && refused.contains("FLUSHALL"), "{refused}");
        assert!(rooms.check(Need::Nothing, 1 << 30).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_away_and_who_never_spoke_may_be_older() {
        let mut heard = Heard::new();
        assert_eq!(Rooms::of(&heard, 1), Some(Room::ANY));
        heard.insert(1, (Instant::now(), None));
        let full = Room { growth: 0, entries: u64::MAX };
        heard.insert(2, (Instant::now(), Some(full)));
        assert_eq!((Rooms::of(&heard, 1), Rooms::of(&heard, 2)), (Some(Room::ANY), Some(full)));
        tokio::time::advance(AWAY).await;
        assert_eq!((Rooms::of(&heard, 1), Rooms::of(&heard, 2)), (Some(Room::ANY), None));
    }
}

//! Digests during a run: nodes that differ may be made equal by a later snapshot, or removed, before the
//! comparison at the end. At one log index all nodes have the same digest, so by asking often enough each
//! node is compared with another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use serde_json::json;

use crate::{
    client::Connection,
    history::{Kind, Recorder},
    run::LAST_PROCESS,
    watch::contents,
};

/// The interval between two rounds.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often the nodes are asked until each has reported an index that another has reported too.
const ROUNDS: usize = 6;
/// Each digest has its own process, above those of the final reads.
static PROCESS: AtomicI64 = AtomicI64::new(2 * LAST_PROCESS);

/// The indexes of the digests that nodes have reported.
#[derive(Default)]
struct Told(BTreeMap<u64, BTreeSet<u64>>);

impl Told {
    /// Adds what a node has reported.
    fn add(&mut self, node: u64, index: u64) {
        self.0.entry(index).or_default().insert(node);
    }

    /// The nodes that have reported a digest, but none that can be compared with another node's.
    fn alone(&self) -> BTreeSet<u64> {
        let all: BTreeSet<u64> = self.0.values().flatten().copied().collect();
        let compared: BTreeSet<u64> =
            self.0.values().filter(|nodes| nodes.len() > 1).flatten().copied().collect();
        all.difference(&compared).copied().collect()
    }
}

/// Asks nodes at their own addresses, repeatedly, until each that answers has reported a digest at an index
/// that another node has reported too. `first`, which is about to be removed, is compared before all others.
pub(crate) fn ask(nodes: &[(u64, SocketAddr)], first: Option<u64>, recorder: &Recorder) {
    let address = |node: u64| nodes.iter().find(|(id, _)| *id == node).map(|(_, address)| *address);
    let mut nodes: Vec<u64> = nodes.iter().map(|(id, _)| *id).collect();
    nodes.sort_by_key(|node| Some(*node) != first);
    compare(&nodes, first, |node| ask_one(node, address(node)?, recorder));
}

/// Asks each node once, and then alternates between a node without a comparison and another one.
fn compare(nodes: &[u64], first: Option<u64>, mut ask: impl FnMut(u64) -> Option<u64>) {
    let mut told = Told::default();
    let mut tell = |node: u64, told: &mut Told| {
        if let Some(index) = ask(node) {
            told.add(node, index);
        }
    };
    nodes.iter().for_each(|node| tell(*node, &mut told));
    for turn in 0..(ROUNDS - 1) * nodes.len() / 2 {
        let alone: Vec<u64> = told.alone().into_iter().collect();
        if alone.is_empty() {
            return;
        }
        let urgent = first.filter(|first| turn < nodes.len() && alone.contains(first));
        let one = urgent.unwrap_or(alone[turn % alone.len()]);
        let others: Vec<u64> = nodes.iter().copied().filter(|node| *node != one).collect();
        if others.is_empty() {
            return;
        }
        // Asked right after each other, they may be at the same index.
        for node in [one, others[turn % others.len()]] {
            tell(node, &mut told);
        }
    }
}

/// The index of the digest that a node has reported. A node that does not answer in time is not recorded: it
/// may be down.
fn ask_one(node: u64, address: SocketAddr, recorder: &Recorder) -> Option<u64> {
    let digest = contents::digest(&mut Connection::open(node, address, PATIENCE).ok()?).ok()?;
    let process = PROCESS.fetch_add(1, Ordering::Relaxed);
    recorder.record(process, Kind::Invoke, "digest", json!({"amid": true}), Some(node), None);
    let index = digest["index"].as_u64();
    recorder.record(process, Kind::Ok, "digest", digest, Some(node), None);
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nodes that `compare` asks, given these answers.
    fn asked(first: Option<u64>, mut answer: impl FnMut(usize, u64) -> Option<u64>) -> Vec<u64> {
        let mut asked = Vec::new();
        compare(&[1, 2, 3], first, |node| {
            asked.push(node);
            answer(asked.len(), node)
        });
        asked
    }

    #[test]
    fn nodes_are_asked_until_each_has_told_what_another_has_told() {
        assert_eq!(asked(None, |_, _| Some(7)), [1, 2, 3]);
        // Two that agree are not enough; a node that is down is not waited for.
        assert_eq!(
            asked(None, |at, node| Some(if node == 3 && at < 5 { 6 } else { 7 })),
            [1, 2, 3, 3, 1, 3, 2]
        );
        assert_eq!(asked(None, |_, node| (node != 3).then_some(7)), [1, 2, 3]);
        assert_eq!(asked(None, |at, _| Some(at as u64)).len(), 3 + 2 * ((ROUNDS - 1) * 3 / 2));
    }

    #[test]
    fn who_will_be_gone_is_compared_first() {
        let indexes = |at: usize, _| Some(if at > 6 { 100 } else { at as u64 });
        assert_eq!(asked(Some(2), indexes)[3..7], [2, 1, 2, 3]);
    }
}

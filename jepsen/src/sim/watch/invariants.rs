//! Invariants at every step that no client can see: at most one leader per term, log matching, leader
//! completeness (what was applied anywhere is in the log of every later leader), the same entry at the same
//! index everywhere, the same content after the same entry, and monotonic clocks.

use std::collections::BTreeMap;

use kvorum::simulation::Server;
use kvorum_raft::simulation::Position;

use crate::check::Finding;

/// The maximum number of findings of a run.
const FINDINGS_MAX: usize = 20;

/// What is recorded of all nodes forever, and of each since its start.
#[derive(Default)]
pub(in crate::sim) struct Invariants {
    leaders: BTreeMap<u64, u64>,
    /// For each entry that any log had: the term of the previous entry, and a checksum of its content.
    entries: BTreeMap<Position, (Option<u64>, Option<u32>)>,
    /// The terms of applied entries.
    applied: BTreeMap<u64, u64>,
    /// The digest of the content and the clock, after the entry at an index.
    states: BTreeMap<u64, (u128, u64)>,
    nodes: BTreeMap<u64, Seen>,
    pub(in crate::sim) findings: Vec<Finding>,
    /// Anomalies that are expected, and so not reported.
    pub(in crate::sim) expected: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    applied: u64,
    checked: Option<Position>,
}

impl Invariants {
    /// A node's process has ended.
    pub(in crate::sim) fn ended(&mut self, node: u64) {
        self.nodes.remove(&node);
    }

    pub(in crate::sim) fn found(&mut self, anomaly: &str, detail: String) {
        let is_expected = self.expected.iter().any(|expected| expected == anomaly);
        if is_expected {
            tracing::info!(anomaly, detail, "as expected");
        } else if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding::new(anomaly, detail, &[]));
        }
    }

    /// The highest index that any node has applied.
    pub(in crate::sim) fn highest(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Checks a node after its step.
    pub(in crate::sim) fn look(&mut self, node: u64, server: &Server) {
        let peek = server.node().peek();
        let seen = self.nodes.get(&node).copied().unwrap_or_default();
        // Start a little before what was checked: the end of a log may have been replaced.
        let from = seen.checked.map_or(0, |checked| checked.index.saturating_sub(8));
        let changed = peek.last != seen.checked;
        let mut before = None;
        for (position, sum) in if changed { server.node().peek_log(from) } else { Vec::new() } {
            self.look_at_entry(node, position, before.replace(position.term), sum);
        }
        if peek.leads {
            self.look_at_leader(node, peek.term, server);
        }
        let Some(applied) = peek.applied else { return };
        if applied.index < seen.applied {
            let detail = format!("node {node} has applied {} after {}", applied.index, seen.applied);
            self.found("applied index went back", detail);
        }
        if applied.index != seen.applied {
            let known = *self.applied.entry(applied.index).or_insert(applied.term);
            if known != applied.term {
                let detail = format!(
                    "entry {} is of term {known} on one node, of term {} on node {node}",
                    applied.index, applied.term
                );
                self.found("committed entry lost", detail);
            }
            let state = (server.digest(), server.clock_ms());
            let known = *self.states.entry(applied.index).or_insert(state);
            if known != state {
                let detail = format!("node {node} differs from another after entry {}", applied.index);
                self.found("divergent replicas", detail);
            }
            let earlier =
                self.states.range(..applied.index).next_back().map(|(index, state)| (*index, state.1));
            if let Some((index, clock_ms)) = earlier.filter(|(_, clock_ms)| *clock_ms > state.1) {
                let detail = format!("{clock_ms} after entry {index}, {} after {}", state.1, applied.index);
                self.found("the log's clock went back", detail);
            }
        }
        self.nodes.insert(node, Seen { applied: applied.index, checked: peek.last });
    }

    fn look_at_entry(&mut self, node: u64, position: Position, before: Option<u64>, sum: Option<u32>) {
        let known = *self.entries.entry(position).or_insert((before, sum));
        let differs = |a: Option<u64>, b: Option<u64>| a.is_some() && b.is_some() && a != b;
        if differs(known.0, before) || differs(known.1.map(u64::from), sum.map(u64::from)) {
            let detail = format!(
                "entry {} of term {} on node {node} is another one, or follows another one, than elsewhere",
                position.index, position.term
            );
            self.found("log matching broken", detail);
        }
        self.entries.insert(position, (known.0.or(before), known.1.or(sum)));
    }

    fn look_at_leader(&mut self, node: u64, term: u64, server: &Server) {
        let known = *self.leaders.entry(term).or_insert(node);
        if known != node {
            self.found("two leaders of one term", format!("nodes {known} and {node} lead term {term}"));
        }
        // A leader of an old term that does not know that it was deposed may lack what was committed since.
        if self.leaders.last_key_value().is_some_and(|(last, _)| *last > term) {
            return;
        }
        let highest = self.highest();
        let log = server.node().peek_log(highest);
        let own = log.first().map(|(position, _)| *position);
        let has_snapshot = server.node().peek().last.is_some_and(|last| last.index >= highest);
        let is_there = match own {
            Some(position) => position.index > highest || self.applied.get(&highest) == Some(&position.term),
            None => has_snapshot,
        };
        if highest > 0 && !is_there {
            let detail = format!("node {node} leads term {term} without entry {highest}, which was applied");
            self.found("committed entry lost", detail);
        }
    }
}

//! Cycles in a graph of transactions, and their names, after Adya's thesis and Elle (Kingsbury and Alvaro,
//! 2020).
//!
//! Real time is part of the graph without an edge for every pair: each completion is a node of its own, in a
//! chain, so one edge suffices to order a transaction after all that were complete when it began.

use std::collections::{BTreeMap, HashMap, VecDeque};

use petgraph::{algo::kosaraju_scc, graph::DiGraph};

/// Why one transaction precedes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dependency {
    /// It wrote the version before the other's.
    WriteWrite,
    /// The other read what it wrote.
    WriteRead,
    /// It read the version that the other overwrote.
    ReadWrite,
    /// It was complete before the other began.
    RealTime,
}

use Dependency::{ReadWrite, RealTime, WriteRead, WriteWrite};

impl Dependency {
    fn name(self) -> &'static str {
        match self {
            WriteWrite => "ww",
            WriteRead => "wr",
            ReadWrite => "rw",
            RealTime => "rt",
        }
    }
}

/// A cycle: its name, and its transactions, each with its dependency to the next.
#[derive(Clone, Debug)]
pub(crate) struct Cycle {
    pub(crate) anomaly: &'static str,
    pub(crate) steps: Vec<(usize, Dependency)>,
}

impl Cycle {
    /// For example, `T1 -ww-> T4 -rw-> T1`.
    pub(crate) fn text(&self, name: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for (transaction, dependency) in &self.steps {
            text += &format!("{} -{}-> ", name(*transaction), dependency.name());
        }
        text + &name(self.steps[0].0)
    }
}

/// What to search for, in order: the edges that a cycle may use, the one that it must use, and its name,
/// without and with real-time edges. A cycle is reported once, under the first matching name.
const PATTERNS: &[(&[Dependency], Dependency, &str)] = &[
    (&[WriteWrite], WriteWrite, "G0"),
    (&[WriteWrite, WriteRead], WriteRead, "G1c"),
    (&[WriteWrite, WriteRead], ReadWrite, "G-single"),
    (&[WriteWrite, WriteRead, ReadWrite], ReadWrite, "G2"),
    (&[WriteWrite, RealTime], WriteWrite, "G0-realtime"),
    (&[WriteWrite, WriteRead, RealTime], WriteRead, "G1c-realtime"),
    (&[WriteWrite, WriteRead, RealTime], ReadWrite, "G-single-realtime"),
    (&[WriteWrite, WriteRead, ReadWrite, RealTime], ReadWrite, "G2-realtime"),
];

/// The maximum number of edges tried for one pattern.
const TRIES_MAX: usize = 2_000;
/// The maximum number of cycles reported under one name.
const CYCLES_MAX: usize = 5;

/// A graph of transactions, numbered from 0.
#[derive(Default)]
pub(crate) struct Graph {
    /// By node; the completions are numbered after the transactions.
    edges: Vec<BTreeMap<usize, Vec<Dependency>>>,
    transactions: usize,
}

impl Graph {
    /// `times`: when each transaction began and completed; `usize::MAX` for never.
    pub(crate) fn new(times: &[(usize, usize)]) -> Graph {
        let transactions = times.len();
        let mut complete: Vec<(usize, usize)> = (0..transactions)
            .filter(|transaction| times[*transaction].1 != usize::MAX)
            .map(|transaction| (times[transaction].1, transaction))
            .collect();
        complete.sort_unstable();
        let mut graph = Graph { edges: vec![BTreeMap::new(); transactions + complete.len()], transactions };
        for (place, (_, transaction)) in complete.iter().enumerate() {
            graph.add(*transaction, transactions + place, RealTime);
            if place > 0 {
                graph.add(transactions + place - 1, transactions + place, RealTime);
            }
        }
        for (transaction, (start, _)) in times.iter().enumerate() {
            let before = complete.partition_point(|(end, _)| end < start);
            if before > 0 {
                graph.add(transactions + before - 1, transaction, RealTime);
            }
        }
        graph
    }

    pub(crate) fn add(&mut self, from: usize, to: usize, dependency: Dependency) {
        if from != to {
            let dependencies = self.edges[from].entry(to).or_default();
            if !dependencies.contains(&dependency) {
                dependencies.push(dependency);
            }
        }
    }

    /// The cycles, a few of each name.
    pub(crate) fn cycles(&self) -> Vec<Cycle> {
        let mut found: Vec<Cycle> = Vec::new();
        let mut involved: Vec<Vec<usize>> = Vec::new();
        for (allowed, needed, anomaly) in PATTERNS {
            let component = self.components(allowed, *needed);
            let mut tries = 0;
            for (from, to) in self.edges_of(*needed) {
                if component.get(&from).is_none_or(|of| component.get(&to) != Some(of)) {
                    continue;
                }
                tries += 1;
                if tries > TRIES_MAX
                    || found.iter().filter(|cycle| cycle.anomaly == *anomaly).count() >= CYCLES_MAX
                {
                    break;
                }
                let Some(path) = self.path(to, from, allowed, &component) else { continue };
                let mut steps = vec![(from, *needed)];
                steps.extend(path);
                steps.retain(|(node, _)| *node < self.transactions);
                let mut nodes: Vec<usize> = steps.iter().map(|(node, _)| *node).collect();
                nodes.sort_unstable();
                let is_told = involved.iter().any(|told| told.iter().all(|node| nodes.contains(node)));
                if !is_told {
                    involved.push(nodes);
                    found.push(Cycle { anomaly, steps });
                }
            }
        }
        found
    }

    fn edges_of(&self, wanted: Dependency) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.edges.iter().enumerate().flat_map(move |(from, edges)| {
            edges.iter().filter(move |(_, kinds)| kinds.contains(&wanted)).map(move |(to, _)| (from, *to))
        })
    }

    /// The strongly connected component of each node, without components of one node.
    fn components(&self, allowed: &[Dependency], needed: Dependency) -> HashMap<usize, usize> {
        let mut graph = DiGraph::<(), ()>::with_capacity(self.edges.len(), self.edges.len() * 2);
        let nodes: Vec<_> = self.edges.iter().map(|_| graph.add_node(())).collect();
        for (from, edges) in self.edges.iter().enumerate() {
            for (to, kinds) in edges {
                if kinds.iter().any(|kind| *kind == needed || allowed.contains(kind)) {
                    graph.add_edge(nodes[from], nodes[*to], ());
                }
            }
        }
        let mut component = HashMap::new();
        for (number, members) in kosaraju_scc(&graph).into_iter().enumerate() {
            if members.len() > 1 {
                component.extend(members.into_iter().map(|node| (node.index(), number)));
            }
        }
        component
    }

    /// A shortest path within a component: each node with its outgoing edge, without the last node.
    fn path(
        &self,
        from: usize,
        to: usize,
        allowed: &[Dependency],
        component: &HashMap<usize, usize>,
    ) -> Option<Vec<(usize, Dependency)>> {
        let mut came: HashMap<usize, (usize, Dependency)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if node == to {
                let mut path = Vec::new();
                let mut at = to;
                while at != from {
                    let (before, dependency) = came[&at];
                    path.push((before, dependency));
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            for (next, kinds) in &self.edges[node] {
                let Some(kind) = allowed.iter().find(|kind| kinds.contains(kind)) else { continue };
                let is_new = *next != from && !came.contains_key(next);
                if is_new && component.get(next) == component.get(&node) {
                    came.insert(*next, (node, *kind));
                    queue.push_back(*next);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(times: &[(usize, usize)], edges: &[(usize, usize, Dependency)]) -> Vec<&'static str> {
        let mut graph = Graph::new(times);
        edges.iter().for_each(|(from, to, kind)| graph.add(*from, *to, *kind));
        graph.cycles().into_iter().map(|cycle| cycle.anomaly).collect()
    }

    /// All concurrent.
    const TOGETHER: &[(usize, usize)] = &[(0, 10), (1, 11), (2, 12)];
    /// All sequential.
    const APART: &[(usize, usize)] = &[(0, 1), (2, 3), (4, 5)];

    #[test]
    fn each_kind_of_cycle_has_its_name() {
        for (name, edges) in [
            ("G0", vec![(0, 1, WriteWrite), (1, 0, WriteWrite)]),
            ("G1c", vec![(0, 1, WriteWrite), (1, 0, WriteRead)]),
            ("G1c", vec![(0, 1, WriteRead), (1, 2, WriteRead), (2, 0, WriteRead)]),
            ("G-single", vec![(0, 1, ReadWrite), (1, 0, WriteRead)]),
            ("G2", vec![(0, 1, ReadWrite), (1, 0, ReadWrite)]),
        ] {
            assert_eq!(names(TOGETHER, &edges), [name], "{edges:?}");
        }
        for (name, edges) in [
            ("G0-realtime", vec![(2, 0, WriteWrite)]),
            ("G1c-realtime", vec![(1, 0, WriteRead)]),
            ("G-single-realtime", vec![(2, 1, ReadWrite)]),
            ("G2-realtime", vec![(1, 0, ReadWrite), (2, 1, ReadWrite), (0, 2, WriteRead)]),
        ] {
            assert!(names(APART, &edges).contains(&name) || name == "G2-realtime", "{edges:?}");
            assert!(names(TOGETHER, &[]).is_empty() && !names(APART, &edges).is_empty());
        }
    }

    #[test]
    fn a_graph_in_order_has_no_cycle() {
        assert!(names(APART, &[(0, 1, WriteWrite), (0, 2, WriteRead), (1, 2, ReadWrite)]).is_empty());
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let times: Vec<_> = (0..50_000).map(|index| (2 * index, 2 * index + 1)).collect();
        assert_eq!(names(&times, &[(49_999, 0, WriteRead)]), ["G1c-realtime"]);
    }
}

//! The options that a run and a suite share, and what the seed decides about a run: whether its clients
//! contend, and whether a bare majority comes back first. An option that is given is never overruled.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{breaker::Break, nemesis, pace::Contention, run::Plan, workload};

const RATE: f64 = 200.0;
const NODES: u64 = 5;
const CLIENTS: usize = 10;
/// One run in this many has contention.
const CONTENDED_ODDS: u8 = 4;
/// The fewest nodes: any late answer of one of two followers matters.
const CONTENDED_NODES: u64 = 3;
/// At each node, and as many writers or half of them. In half of these runs clients stay at their nodes. In the
/// others all read and write, and move: whoever comes to a deposed leader has not waited there since before.
const CONTENDED_READERS: usize = 2;
/// What is drawn here must not change what the seed means for faults and clients.
const STREAM: u64 = 0x6b76_6f72_756d;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Common {
    /// Seconds of load with faults
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) time: u64,
    /// Operations a second, of all clients together [default: 200]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Seed of the schedule of faults and of the choices of clients [default: a new one, printed]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Number of nodes [default: 5, or 3 with contention]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(3..=9))]
    pub(crate) nodes: Option<u64>,
    /// Number of clients, each with one operation in flight at a time [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) clients: Option<usize>,
    /// How many of the clients only read; if any, all clients are spread over the nodes and stay there
    /// [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) readers: Option<usize>,
    /// One or two keys, and clients without a pause [default: in one run of four that suits and gives no --rate,
    /// --clients or --readers]
    #[arg(long, value_name = "BOOL")]
    pub(crate) contended: Option<bool>,
    /// When the faults end, only a bare majority comes back at first, and must serve [default: in half of the
    /// runs with faults that leave the members alone]
    #[arg(long, value_name = "BOOL")]
    bare_majority: Option<bool>,
    /// Round trip between any two nodes, in addition to the effects of faults
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=300))]
    pub(crate) distance_ms: u64,
    /// Directory for the files of the run; missing or empty, except for a suite that is resumed
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The server [default: the file kvorum next to this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

impl Common {
    /// The seed that was given, or a new one.
    pub(crate) fn seed(&self) -> u64 {
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        eprintln!("seed {seed}");
        seed
    }

    /// The plan of a run.
    pub(crate) fn plan(
        &self,
        workload: &str,
        nemeses: Vec<String>,
        seed: u64,
        broken: Option<Break>,
    ) -> Plan {
        let mut random = fastrand::Rng::with_seed(seed ^ STREAM);
        let (is_half, is_quarter) = (random.bool(), random.u8(..CONTENDED_ODDS) == 0);
        let (keys, writers, are_pinned) = (random.u64(1..=2), random.usize(1..=2), random.bool());
        let is_free = self.rate.is_none() && self.clients.is_none() && self.readers.is_none();
        let suits = is_free && broken.is_none() && workload::suits_contention(workload);
        let is_contended = self.contended.unwrap_or(suits && is_quarter);
        let suits = broken.is_none() && !nemeses.is_empty();
        let suits = suits && !nemeses.iter().any(|name| nemesis::may_change_members(name));
        let bare_majority = self.bare_majority.unwrap_or(suits && is_half);
        let needs_more = nemeses.iter().any(|name| nemesis::needs_five(name));
        let usual = if is_contended && !needs_more { CONTENDED_NODES } else { NODES };
        let nodes = self.nodes.unwrap_or(usual);
        let at_nodes = |count: usize| count * nodes as usize;
        let (clients, readers) = match (is_contended, are_pinned) {
            (true, true) => (at_nodes(CONTENDED_READERS + writers), at_nodes(CONTENDED_READERS)),
            (true, false) => (at_nodes(CONTENDED_READERS + writers), 0),
            (false, _) => (CLIENTS, 0),
        };
        Plan {
            workload: workload.to_owned(),
            nemeses,
            time_s: self.time,
            rate: self.rate.unwrap_or(RATE).max(0.1),
            seed,
            nodes,
            clients: self.clients.unwrap_or(clients).max(1),
            readers: self.readers.unwrap_or(readers),
            contention: is_contended.then(|| Contention::new(keys, self.time)),
            bare_majority,
            distance_ms: self.distance_ms,
            broken: broken.map(|kind| format!("{kind:?}")),
        }
    }

    /// The options of one run of a suite, as they were given: the run draws the rest itself.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let text = |value: &dyn ToString| Some(value.to_string());
        let options = [
            ("--time", text(&self.time)),
            ("--distance-ms", text(&self.distance_ms)),
            ("--seed", self.seed.as_ref().and_then(|it| text(it))),
            ("--rate", self.rate.as_ref().and_then(|it| text(it))),
            ("--nodes", self.nodes.as_ref().and_then(|it| text(it))),
            ("--clients", self.clients.as_ref().and_then(|it| text(it))),
            ("--readers", self.readers.as_ref().and_then(|it| text(it))),
            ("--contended", self.contended.as_ref().and_then(|it| text(it))),
            ("--bare-majority", self.bare_majority.as_ref().and_then(|it| text(it))),
        ];
        options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten().collect()
    }

    pub(crate) fn binary(&self) -> Result<PathBuf> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().context("cannot find this program")?.with_file_name("kvorum"),
        };
        anyhow::ensure!(
            binary.is_file(),
            "there is no server at {}: build it, or name it with --binary",
            binary.display()
        );
        binary.canonicalize().context("cannot find the server")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Of 1000 seeds: how many runs have contention, and how many end with a bare majority.
    fn drawn(options: &Common, workload: &str, nemesis: &str) -> (usize, usize) {
        let plans: Vec<Plan> =
            (0..1000).map(|seed| options.plan(workload, vec![nemesis.to_owned()], seed, None)).collect();
        let contended = plans.iter().filter(|plan| plan.contention.is_some()).count();
        (contended, plans.iter().filter(|plan| plan.bare_majority).count())
    }

    #[test]
    fn a_quarter_of_the_runs_contend_and_half_end_with_a_bare_majority() {
        let usual = Common::default();
        let (contended, bare) = drawn(&usual, "register", "kill");
        assert!((200..300).contains(&contended) && (440..560).contains(&bare), "{contended} {bare}");
        assert_eq!(drawn(&usual, "bank", "kill").0, 0);
        assert_eq!(drawn(&usual, "register", "membership").1, 0);
        assert_eq!(drawn(&usual, "register", "disk").1, 0);
        let given = Common { readers: Some(6), bare_majority: Some(false), ..Common::default() };
        assert_eq!(drawn(&given, "register", "kill"), (0, 0));
    }

    #[test]
    fn contention_is_of_few_nodes_and_every_node_has_its_readers_or_none_has() {
        let options = Common { contended: Some(true), ..Common::default() };
        let plan = |nemesis: &str| options.plan("append", vec![nemesis.to_owned()], 7, None);
        for (nemesis, nodes) in [("kill", 3), ("partition", 3), ("lost-tail", 5)] {
            let plan = plan(nemesis);
            assert_eq!(plan.nodes, nodes);
            assert!(plan.clients >= 3 * nodes as usize);
            assert!(plan.contention.is_some_and(|it| (1..=2).contains(&it.keys)));
        }
        let readers: BTreeSet<usize> =
            (0..50).map(|seed| options.plan("append", Vec::new(), seed, None).readers).collect();
        assert_eq!(readers, [0, 6].into());
        assert_eq!(options.arguments(), ["--time", "0", "--distance-ms", "0", "--contended", "true"]);
    }
}

//! A bare majority makes progress: when the faults end, at first only as many nodes come back as must agree.
//! That must be enough, whichever they are.

use anyhow::Result;
use serde_json::json;

use crate::sim::{
    node::Node,
    script::action::Action,
    world::{World, voters_of},
};

/// How long the others stay down, in milliseconds.
const OFF_MS: std::ops::Range<u64> = 2_000..6_000;
/// Operations this soon after the faults may have been done before the others were down.
const EARLY_MS: u64 = 1_000;
/// How long it may take until an operation succeeds, plus this many times the latency between nodes.
const PROGRESS_MS_MAX: u64 = 10_000;
const PROGRESS_WAYS: u64 = 80;
/// The interval of probes to a node that must answer.
const PROBE_MS: u64 = 500;

impl World {
    /// Ends all faults, and starts only a bare majority: an operation must succeed. Does nothing if no
    /// majority is certain to be healthy. `steady` leaves running nodes alone, so that the log clock is kept.
    pub(in crate::sim) fn heal_a_majority(&mut self, chance: &mut fastrand::Rng, steady: bool) -> Result<()> {
        let Some(chosen) = self.bare_majority(chance, steady) else { return Ok(()) };
        let others: Vec<u64> = self.nodes.keys().copied().filter(|id| !chosen.contains(id)).collect();
        self.record("majority", json!({"nodes": chosen, "off": others}));
        for id in others {
            self.stays_off.insert(id);
            self.perform(&Action::Kill(id))?;
        }
        self.heal()?;
        let (began, off_ms) = (self.now, chance.u64(OFF_MS));
        let limit_ms = PROGRESS_MS_MAX + PROGRESS_WAYS * self.network.distance_ms;
        let (mut done_before, mut is_enough) = (None, true);
        while self.invariants.findings.is_empty() {
            self.step()?;
            let spent_ms = self.now - began;
            is_enough &= self.is_majority(&chosen);
            if spent_ms.is_multiple_of(PROBE_MS) {
                self.probe(chosen[(spent_ms / PROBE_MS) as usize % chosen.len()]);
            }
            if spent_ms >= EARLY_MS {
                let before = *done_before.get_or_insert_with(|| self.done());
                if spent_ms >= off_ms && self.done() > before {
                    break;
                }
            }
            if spent_ms > limit_ms {
                if is_enough {
                    let why = self.not_ready();
                    let detail = format!(
                        "nodes {chosen:?} alone, and nothing was done for {limit_ms} ms after {EARLY_MS} ms: {why}"
                    );
                    self.found("no progress with a majority", detail);
                }
                break;
            }
        }
        self.stays_off.clear();
        Ok(())
    }

    /// A minimal majority of voters. None if the membership is changing, or too many nodes are damaged or may
    /// end.
    fn bare_majority(&self, chance: &mut fastrand::Rng, steady: bool) -> Option<Vec<u64>> {
        let voters = self.voters_in_force()?;
        let mut good: Vec<u64> = voters.iter().copied().filter(|id| self.is_good(*id)).collect();
        chance.shuffle(&mut good);
        let runs = |id: u64| self.nodes.get(&id).is_some_and(|node| node.is_running());
        if steady {
            good.sort_by_key(|id| !runs(*id));
        }
        let keeps_time = !steady || self.nodes.keys().filter(|id| runs(**id)).all(|id| good.contains(id));
        good.truncate(voters.len() / 2 + 1);
        (keeps_time && good.len() > voters.len() / 2).then_some(good)
    }

    /// Whether a node has its disk, and no reason to end.
    fn is_good(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| {
            !node.is_damaged && !node.was_rolled_back && !node.is_stopping() && !self.may_end.contains(&id)
        })
    }

    /// Whether these are a majority, as far as each of them knows, and healthy.
    fn is_majority(&self, chosen: &[u64]) -> bool {
        let are_enough = |id: u64| {
            self.nodes.get(&id).and_then(Node::status).is_none_or(|status| {
                let voters = voters_of(&status);
                chosen.iter().filter(|id| voters.contains(id)).count() > voters.len() / 2
            })
        };
        self.is_settled() && chosen.iter().all(|id| self.is_good(*id) && are_enough(*id))
    }
}

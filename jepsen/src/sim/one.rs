//! One seed, in a process that does nothing else.

use std::{collections::BTreeMap, panic::catch_unwind};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use kvorum_raft::safeguard;
use serde::{Deserialize, Serialize};

use super::{Outcome, entropy, log, panics, seeds::World, simulate};
use crate::{
    check::{Finding, contents},
    edn,
    history::{self, Kind},
};

#[derive(Args, Debug)]
pub(crate) struct One {
    #[arg(long, value_name = "N")]
    seed: u64,
    /// What the nodes log, on standard error: a level, or a filter such as info,kvorum_raft=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    world: World,
}

/// What came of a seed, in short.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(super) workload: String,
    pub(super) findings: Vec<Finding>,
    pub(super) ok: usize,
    pub(super) unknown: usize,
    /// Simulated milliseconds.
    pub(super) steps: u64,
    /// A sum of all that happened, the same for the same seed.
    pub(super) trace: String,
    pub(super) faults: BTreeMap<String, usize>,
}

/// Prints the summary as one line of JSON.
pub(crate) fn run_one(options: &One) -> Result<bool> {
    let (seed, world) = (options.seed, &options.world);
    entropy::comes_from(seed);
    if let Some(safeguard) = world.without {
        safeguard::switch_off(safeguard);
    }
    if let Some(filter) = &options.log {
        log::show(filter)?;
    }
    let outcome = catch_unwind(|| simulate(seed, world))
        .unwrap_or_else(|_| Err(anyhow!("the world panicked: {:?}", panics::take())))
        .with_context(|| format!("seed {seed}"))?;
    if !outcome.findings.is_empty() {
        keep(seed, world, &outcome)?;
    }
    let count = |kind| outcome.events.iter().filter(|event| event.process >= 0 && event.kind == kind).count();
    let summary = Summary {
        ok: count(Kind::Ok),
        unknown: count(Kind::Info),
        workload: outcome.workload,
        findings: outcome.findings,
        steps: outcome.steps,
        trace: format!("{:016x}", outcome.trace),
        faults: outcome.faults,
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(summary.findings.is_empty())
}

/// Keeps the history of a seed that failed.
fn keep(seed: u64, world: &World, outcome: &Outcome) -> Result<()> {
    let dir = world.out.join(seed.to_string());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    history::write_lines(&dir.join("history.jsonl"), &outcome.events)?;
    let of_workload = outcome.events.iter().filter(|event| !contents::is_look(&event.f));
    edn::write(&dir.join("history.edn"), of_workload)?;
    let findings = serde_json::to_string_pretty(&outcome.findings)?;
    std::fs::write(dir.join("findings.json"), findings).context("cannot write the findings")
}

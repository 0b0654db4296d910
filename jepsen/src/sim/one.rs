//! Runs one seed, in a process that does nothing else.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use kvorum_raft::safeguard;
use serde::{Deserialize, Serialize};

use super::{Outcome, entropy, log, panics, script, seeds::World, simulate};
use crate::{
    check::{Finding, contents},
    history::{self, Kind, edn},
};

#[derive(Args, Debug)]
pub(crate) struct One {
    /// The seed [default: that of the script, or 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Play this script instead of random faults; its head replaces the options
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// What the nodes log, on standard error: a level, or a filter such as info,kvorum_raft=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    world: World,
}

/// The outcome of a seed, in short.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(super) workload: String,
    pub(super) findings: Vec<Finding>,
    pub(super) ok: usize,
    pub(super) unknown: usize,
    /// Simulated milliseconds.
    pub(super) steps: u64,
    /// A hash of everything that happened, equal for equal seeds.
    pub(super) trace: String,
    pub(super) faults: BTreeMap<String, usize>,
    /// What did not happen.
    pub(super) missing: Vec<String>,
    /// How often each operation was invoked, and how often it succeeded.
    pub(super) operations: BTreeMap<String, (usize, usize)>,
}

/// Runs a seed or a script, and prints the summary as one line of JSON.
pub(crate) fn run_one(options: &One) -> Result<bool> {
    let text = options.script.as_ref().map(std::fs::read_to_string).transpose();
    let script = text.context("cannot read the script")?.map(|text| script::read(&text)).transpose()?;
    let of_script = script.as_ref().and_then(|(head, _)| head.seed);
    let seed = options.seed.or(of_script).unwrap_or(1);
    let world = match &script {
        Some((head, _)) => {
            let of_head = head.options(&options.world.out)?;
            let without = [&of_head.without[..], &options.world.without].concat();
            let despite = [&of_head.despite[..], &options.world.despite].concat();
            &World { without, despite, ..of_head }
        }
        None => &options.world,
    };
    let script = script.map(|(_, script)| script);
    entropy::comes_from(seed);
    world.without.iter().copied().for_each(safeguard::switch_off);
    log::watch(options.log.as_deref())?;
    let script = AssertUnwindSafe(script);
    let outcome = catch_unwind(move || simulate(seed, world, { script }.0))
        .unwrap_or_else(|_| Err(anyhow!("the world panicked: {:?}", panics::take())))
        .with_context(|| format!("seed {seed}"))?;
    if !outcome.findings.is_empty() {
        keep(seed, world, &outcome)?;
    }
    let count = |kind| outcome.events.iter().filter(|event| event.process >= 0 && event.kind == kind).count();
    let mut operations: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for event in outcome.events.iter().filter(|event| event.process >= 0) {
        let (begun, done) = operations.entry(event.f.clone()).or_default();
        *begun += usize::from(event.kind == Kind::Invoke);
        *done += usize::from(event.kind == Kind::Ok);
    }
    let summary = Summary {
        operations,
        missing: outcome.missing,
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

/// Stores the history of a failed seed.
fn keep(seed: u64, world: &World, outcome: &Outcome) -> Result<()> {
    let dir = world.out.join(seed.to_string());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    history::write_lines(&dir.join("history.jsonl"), &outcome.events)?;
    let world = &World { unformed: outcome.is_unformed, ..world.clone() };
    let script = script::write(seed, world, &outcome.knobs, &outcome.done);
    std::fs::write(dir.join("script.txt"), script).context("cannot write the script")?;
    let of_workload = outcome.events.iter().filter(|event| !contents::is_look(&event.f));
    edn::write(&dir.join("history.edn"), of_workload)?;
    let findings = serde_json::to_string_pretty(&outcome.findings)?;
    std::fs::write(dir.join("findings.json"), findings).context("cannot write the findings")
}

//! Faults of packets, below TCP: not done. They need nodes in network namespaces of their own and the kernel's netem,
//! and a proxy of streams cannot stand in for it: what TCP has received it hands on once, whole and in order. Each
//! says what this machine lacks, so that a run with it alone is not clean.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

fn run(program: &str, words: &str) -> Result<()> {
    let output = Command::new(program).args(words.split(' ')).output();
    let output = output.with_context(|| format!("there is no {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {words}: {}", said.trim());
    Ok(())
}

/// Tries the fault on a namespace that is there for it alone. Err says what is missing: rights, a program, or netem.
fn probe(netem: &str) -> Result<()> {
    let name = format!("kvorum-probe-{}-{}", std::process::id(), fastrand::u32(..));
    run("ip", &format!("netns add {name}"))?;
    let added = run("ip", &format!("netns exec {name} tc qdisc add dev lo root netem {netem}"));
    run("ip", &format!("netns del {name}"))?;
    added
}

/// Says why packets are not lost, doubled, reordered or changed, as `netem` puts it.
pub(super) fn not_done(netem: &str) -> Result<Value> {
    probe(netem).context("not done: this machine cannot do it")?;
    bail!(
        "not done: this machine can do it, but this harness does not put its nodes in namespaces of their own"
    )
}

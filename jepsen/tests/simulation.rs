//! The simulation in CI: seeds that are always the same, some that are new each time, the promise that a seed decides
//! everything, and the proof that it finds what it is for.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_kvorum-jepsen");
    Command::new(program).args(arguments).arg("--out").arg(dir.path()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let [first, second] = [0, 1].map(|_| simulate(&["sim-one", "--seed", "430", "--time", "6"]));
    // The summary has a sum of every step.
    assert_eq!(text(&first), text(&second));
    assert!(first.status.success() && text(&first).contains("\"trace\":"), "{}", text(&first));
}

#[test]
fn no_seed_finds_anything() {
    // 442 and 462: a removed leader took another change of the members, and its consensus ended.
    for (from, seeds) in [("100", "20"), ("442", "1"), ("462", "1")] {
        let fixed = simulate(&["sim", "--from", from, "--seeds", seeds, "--time", "6"]);
        assert!(fixed.status.success(), "{}", text(&fixed));
    }
    let fresh = simulate(&["sim", "--seeds", "12", "--time", "6"]);
    assert!(fresh.status.success(), "{}", text(&fresh));
}

/// Goes on until a seed finds what is broken; gives what it says.
fn find(broken: &[&str]) -> String {
    let seeds = ["sim", "--find", "--from", "1", "--seeds", "100", "--time", "8"];
    let found = simulate(&[&seeds[..], broken].concat());
    assert!(found.status.success(), "{broken:?} was not found: {}", text(&found));
    text(&found)
}

#[test]
fn each_safeguard_that_is_off_is_found() {
    // What is wrong shows in one of these ways. An entry or a vote that is lost may meet an assertion of openraft's first.
    let lost = "committed entry lost";
    for (safeguard, workload, anomalies) in [
        ("read-round", Some("register"), &["stale read"][..]),
        ("sync-before-acknowledgement", None, &[lost, "follower log reversion is not allowed"]),
        ("durable-vote", None, &["two leaders of one term", lost, "must GE last_leader_log_ids"]),
        // Given up as not applied while it was proposed again, it is there all the same.
        ("no-retry-after-append", Some("append"), &["duplicate append", "G1a (aborted read)"]),
        ("sessions-in-checkpoints", Some("once"), &["divergent replicas"]),
        ("clock-in-checkpoints", None, &["the log's clock went back"]),
        ("log-clock", None, &["divergent replicas"]),
        ("replicated-chance", Some("pop"), &["divergent replicas"]),
    ] {
        let workload = workload.map(|name| ["--workload", name]);
        let arguments = ["--without", safeguard].into_iter().chain(workload.into_iter().flatten());
        let said = find(&arguments.collect::<Vec<_>>());
        let is_named = anomalies.iter().any(|anomaly| said.contains(anomaly));
        assert!(is_named, "without {safeguard}: {said}");
    }
}

/// The leader's lease is short, and what must meet within it is rare among all faults.
#[test]
fn a_missing_startup_guard_is_found() {
    let said = find(&["--without", "startup-guard", "--workload", "register", "--faults", "lone-leader"]);
    assert!(said.contains("stale read"), "{said}");
}

#[test]
fn disks_that_lie_are_found() {
    assert!(find(&["--disks-lie"]).contains("were durable"));
}

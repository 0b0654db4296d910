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
    for (safeguard, workload, anomaly) in [
        ("read-round", Some("register"), ""),
        // A committed entry is lost, or openraft asserts that a follower's log went back.
        ("sync-before-acknowledgement", None, ""),
        ("durable-vote", None, ""),
        ("no-retry-after-append", Some("append"), ""),
        ("sessions-in-checkpoints", Some("once"), ""),
        ("clock-in-checkpoints", None, ""),
        ("log-clock", None, "divergent replicas"),
        ("replicated-chance", Some("pop"), "divergent replicas"),
    ] {
        let workload = workload.map(|name| ["--workload", name]);
        let arguments = ["--without", safeguard].into_iter().chain(workload.into_iter().flatten());
        let said = find(&arguments.collect::<Vec<_>>());
        assert!(said.contains(anomaly), "without {safeguard}: {said}");
    }
}

#[test]
fn disks_that_lie_are_found() {
    assert!(find(&["--disks-lie"]).contains("were durable"));
}

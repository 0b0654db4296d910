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
    let fixed = simulate(&["sim", "--from", "100", "--seeds", "16", "--time", "6"]);
    assert!(fixed.status.success(), "{}", text(&fixed));
    let fresh = simulate(&["sim", "--seeds", "12", "--time", "6"]);
    assert!(fresh.status.success(), "{}", text(&fresh));
}

/// Kinds that found something once, where nothing else happens, so that they meet what they are for.
#[test]
fn no_seed_of_a_fault_alone_finds_anything() {
    for options in [
        &["--faults", "late-answers", "--workload", "register", "--contended"][..],
        &["--faults", "forsaken-change", "--workload", "append", "--members", "5"],
        &["--faults", "stop-all,wall-clock", "--workload", "counter"],
        &["--faults", "disk-rolled-back,kill,isolate", "--workload", "append"],
    ] {
        let alone = ["sim", "--from", "1", "--seeds", "6", "--time", "8"];
        let alone = simulate(&[&alone, options].concat());
        assert!(alone.status.success(), "{}", text(&alone));
    }
}

/// Goes on until a seed finds what is broken, in one of these words.
fn is_found(broken: &[&str], anomalies: &[&str]) {
    let seeds = ["sim", "--find", "--from", "1", "--seeds", "100", "--time", "8"];
    let words = anomalies.iter().flat_map(|anomaly| ["--finds", anomaly]);
    let found = simulate(&seeds.into_iter().chain(broken.iter().copied()).chain(words).collect::<Vec<_>>());
    assert!(found.status.success(), "{broken:?} was not found: {}", text(&found));
}

#[test]
fn each_safeguard_that_is_off_is_found() {
    // A disk that goes back under a leader is noticed by openraft too.
    const OF_OPENRAFT: &str = "follower log reversion is not allowed";
    // What is wrong shows in one of these ways. An entry or a vote that is lost may meet an assertion of openraft's first.
    let lost = "committed entry lost";
    // A slow disk makes the time longer in which there is something to lose. What it acknowledged, others know.
    let power = ["--faults", "power-cut-all,slow-disk"];
    let acknowledged = "and it had acknowledged";
    for (safeguard, options, anomalies) in [
        ("read-round", &["--workload", "register"][..], &["stale read"][..]),
        ("sync-before-acknowledgement", &power, &[lost, acknowledged, OF_OPENRAFT]),
        ("durable-vote", &[], &["two leaders of one term", lost, "must GE last_leader_log_ids"]),
        // Given up as not applied while it was proposed again, it is there all the same.
        ("no-retry-after-append", &["--workload", "append"], &["duplicate append", "G1a (aborted read)"]),
        ("sessions-in-checkpoints", &["--workload", "once"], &["divergent replicas"]),
        ("clock-in-checkpoints", &[], &["the log's clock went back"]),
        ("log-clock", &[], &["divergent replicas"]),
        ("replicated-chance", &["--workload", "pop"], &["divergent replicas"]),
        (
            "disk-witness",
            &["--faults", "disk-rolled-back"],
            &[lost, "and this node has applied", OF_OPENRAFT],
        ),
    ] {
        is_found(&[&["--without", safeguard], options].concat(), anomalies);
    }
}

/// The leader's lease is short, and what must meet within it is rare among all faults.
#[test]
fn a_missing_startup_guard_is_found() {
    let broken = ["--without", "startup-guard", "--workload", "register", "--faults", "lone-leader"];
    is_found(&broken, &["stale read"]);
}

/// Reads that openraft's clock confirms: a leader that was deposed takes answers from before the read for answers to it.
#[test]
fn reads_confirmed_by_late_answers_are_found() {
    let broken = [
        "--without",
        "own-confirmation",
        "--workload",
        "register",
        "--faults",
        "late-answers",
        "--contended",
    ];
    is_found(&broken, &["stale read"]);
}

#[test]
fn disks_that_lie_are_found() {
    is_found(&["--disks-lie"], &["were durable"]);
}

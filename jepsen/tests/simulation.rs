//! The simulation in CI: seeds that are always the same, some that are new each time, the promise that a seed decides
//! everything, and the proof that it finds a broken promise.
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
    let [first, second] = [0, 1].map(|_| simulate(&["sim-one", "--seed", "7", "--time", "5"]));
    // The summary has a sum of every step.
    assert_eq!(text(&first), text(&second));
    assert!(first.status.success() && text(&first).contains("\"trace\":"), "{}", text(&first));
}

#[test]
fn no_seed_finds_anything() {
    // Those that have found something before, and is mended, are in this list for ever.
    for (from, seeds) in [("100", "24"), ("139", "1")] {
        let fixed = simulate(&["sim", "--from", from, "--seeds", seeds, "--time", "5"]);
        assert!(fixed.status.success(), "{}", text(&fixed));
    }
    let fresh = simulate(&["sim", "--seeds", "12", "--time", "6"]);
    assert!(fresh.status.success(), "{}", text(&fresh));
}

#[test]
fn disks_that_lie_are_found() {
    let lies = simulate(&["sim", "--from", "1", "--seeds", "8", "--time", "8", "--disks-lie"]);
    assert_eq!(lies.status.code(), Some(1), "{}", text(&lies));
    assert!(text(&lies).contains("committed entry lost"), "{}", text(&lies));
}

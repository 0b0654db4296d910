//! What was found once, as scripts of the simulation: each does what it takes, whatever the seed is, and must end without a
//! finding. Unlike seeds they do not age: a build that draws other chances is shown the same thing.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The times of single pieces and syncs are the seed's; what happens is the script's.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=6;

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name).with_extension("sim")
}

/// What each seed finds, those that find nothing left out.
fn found(name: &str) -> Vec<String> {
    found_by(name, SEEDS)
}

/// The same with other seeds: a script that needs the times of one, as it was found.
fn found_by(name: &str, seeds: std::ops::RangeInclusive<u64>) -> Vec<String> {
    found_in(&script(name), seeds, &[])
}

fn found_in(script: &Path, seeds: std::ops::RangeInclusive<u64>, options: &[&str]) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let of_seed = |seed: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum-jepsen"));
        command.args(["sim-one", "--seed", &seed.to_string(), "--script"]).arg(script).args(options);
        let output = command.arg("--out").arg(out.path()).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains("\"findings\":"), "seed {seed}: {said}");
        (!output.status.success()).then(|| format!("seed {seed}: {said}"))
    };
    seeds.filter_map(of_seed).collect()
}

#[test]
fn late_answers_make_no_read_stale() {
    assert_eq!(found("late-answers-make-no-read-stale"), [""; 0]);
}

#[test]
fn pages_of_two_snapshots_do_not_mix() {
    assert_eq!(found("pages-of-two-snapshots-do-not-mix"), [""; 0]);
}

#[test]
fn time_goes_on_after_an_orderly_stop_of_all() {
    assert_eq!(found("time-goes-on-after-an-orderly-stop-of-all"), [""; 0]);
}

#[test]
fn times_are_of_the_wall_clock_after_a_start_with_wrong_ones() {
    assert_eq!(found("times-are-of-the-wall-clock"), [""; 0]);
}

#[test]
fn a_clock_that_waits_for_the_wall_clock_ends_no_lock_early() {
    assert_eq!(found("a-clock-that-waits-ends-no-lock-early"), [""; 0]);
}

#[test]
fn a_change_of_the_members_outlives_who_was_asked() {
    assert_eq!(found("a-change-of-the-members-outlives-who-was-asked"), [""; 0]);
}

#[test]
fn a_leader_that_a_change_removes_makes_no_other() {
    assert_eq!(found_by("a-leader-that-a-change-removes-makes-no-other", 20_108..=20_108), [""; 0]);
}

#[test]
fn a_wait_that_is_given_up_is_not_called_refused() {
    assert_eq!(found_by("a-wait-that-is-given-up-is-not-called-refused", 20_704..=20_704), [""; 0]);
}

#[test]
fn a_leader_that_is_removed_survives_the_next_change() {
    assert_eq!(found("a-leader-that-is-removed-survives-the-next-change"), [""; 0]);
}

#[test]
fn a_node_that_is_cut_off_is_not_ready() {
    let script = script("a-node-that-is-cut-off-is-not-ready");
    assert_eq!(found_in(&script, 1..=2, &[]), [""; 0]);
    // Its followers take the leader that they heard last for the present one.
    let found = found_in(&script, 1..=1, &["--without", "contact"]);
    assert!(found.iter().any(|said| said.contains("ready without a majority")), "{found:?}");
}

#[test]
fn nodes_far_from_each_other_serve() {
    assert_eq!(found("nodes-far-from-each-other-serve"), [""; 0]);
}

#[test]
fn an_older_disk_loses_nothing() {
    assert_eq!(found("an-older-disk-loses-nothing"), [""; 0]);
}

/// Without the memory of what was on it, what others have acknowledged with it is lost.
#[test]
fn an_older_disk_that_goes_unnoticed_is_found() {
    let found = found_in(&script("an-older-disk-loses-nothing"), SEEDS, &["--without", "disk-witness"]);
    assert_eq!(found.len(), SEEDS.count());
    assert!(found.iter().all(|said| said.contains("committed entry lost")), "{found:?}");
}

/// The defences against an old disk stand behind each other: what the one lets pass another one stops, before the node whose
/// history was overruled goes on. Which of those that are on comes first is the seed's.
#[test]
fn each_defence_against_an_older_disk_is_found_when_it_is_missing() {
    const APPLIED: &str = "and this node has applied";
    const AGREEMENT: &str = "a majority has applied another log than this node";
    // openraft's own, which servers have too.
    const LAST: &str = "consensus has ended";
    const DESPITE: &str = "committed entry lost,divergent replicas,error in a node's log";
    for (without, stopped_by) in [
        ("disk-witness", &[APPLIED, AGREEMENT][..]),
        ("disk-witness,agreement", &[APPLIED]),
        ("disk-witness,applied-stays", &[AGREEMENT, LAST]),
        ("disk-witness,applied-stays,agreement", &[LAST]),
    ] {
        let options = ["--without", without, "--despite", DESPITE];
        let found = found_in(&script("an-older-disk-loses-nothing"), SEEDS, &options);
        assert_eq!(found.len(), SEEDS.count(), "{without}");
        for said in found {
            let stops = [APPLIED, AGREEMENT, LAST].into_iter().filter(|stop| said.contains(stop));
            let stops: Vec<&str> = stops.collect();
            assert!(
                !stops.is_empty() && stops.iter().all(|stop| stopped_by.contains(stop)),
                "{without}: {said}"
            );
            assert!(!said.contains("\"divergent replicas\""), "{without}: {said}");
        }
    }
}

/// The last node with acknowledged writes ends with them, where all others have lost them and purged their logs.
#[test]
fn a_snapshot_overrules_nothing() {
    const DESPITE: &str =
        "committed entry lost,divergent replicas,error in a node's log,the log's clock went back";
    let script = script("a-snapshot-overrules-nothing");
    let found = found_in(&script, SEEDS, &["--despite", DESPITE]);
    let ends = |said: &String| {
        said.contains("sends a snapshot of another log") || said.contains("and this node has applied")
    };
    assert!(found.len() == SEEDS.count() && found.iter().all(ends), "{found:?}");
    assert!(!found.iter().any(|said| said.contains("lost write")), "{found:?}");
    let off = ["--despite", DESPITE, "--without", "applied-stays,agreement"];
    let found = found_in(&script, SEEDS, &off);
    assert!(found.iter().any(|said| said.contains("lost write")), "{found:?}");
}

/// Only builds with debug assertions have DEBUG DRIFT.
#[cfg(debug_assertions)]
#[test]
fn a_node_of_another_state_takes_it_anew() {
    let script = script("a-node-of-another-state-takes-it-anew");
    assert_eq!(found_in(&script, 1..=2, &[]), [""; 0]);
    let found = found_in(&script, 1..=2, &["--without", "agreement"]);
    assert!(found.iter().all(|said| said.contains("truth is null on node")), "{found:?}");
    assert_eq!(found.len(), 2);
}

#[cfg(debug_assertions)]
#[test]
fn a_node_that_applied_another_log_serves_nobody() {
    let script = script("a-node-that-applied-another-log-serves-nobody");
    let found = found_in(&script, 1..=2, &[]);
    let ends = |said: &String| said.contains("a majority has applied another log than this node");
    assert!(found.len() == 2 && found.iter().all(ends), "{found:?}");
    assert!(!found.iter().any(|said| said.contains("divergent replicas")), "{found:?}");
    let found = found_in(&script, 1..=2, &["--without", "agreement"]);
    assert!(found.iter().all(|said| said.contains("divergent replicas")), "{found:?}");
    assert_eq!(found.len(), 2);
}

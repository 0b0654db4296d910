//! Real clusters under the harness: one that is right gets a clean verdict although its nodes are killed and
//! partitioned, and each promise that is broken on purpose is found and named.
//!
//! A failure leaves its history behind and names the directory.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// One cluster at a time: the machine has others to serve.
static TURN: Mutex<()> = Mutex::new(());

fn harness() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kvorum-jepsen"))
}

/// Runs the harness; gives its exit code, the directory, and the verdict.
fn run(options: &[&str]) -> (Option<i32>, PathBuf, Value) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Path::new(env!("CARGO_BIN_EXE_kvorum-jepsen")).with_file_name("kvorum");
    assert!(server.is_file(), "build the server first: cargo build");
    let dir = tempfile::tempdir().unwrap().keep();
    let output = harness()
        .args(["run", "--nodes", "3", "--rate", "150", "--out", dir.to_str().unwrap()])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    eprintln!("{options:?}\n{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}in {}", String::from_utf8_lossy(&output.stdout), dir.display());
    let verdict = std::fs::read_to_string(dir.join("verdict.json")).expect("a run ends with a verdict");
    (output.status.code(), dir, serde_json::from_str(&verdict).unwrap())
}

fn anomalies(verdict: &Value) -> Vec<&str> {
    let findings = verdict["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["anomaly"].as_str().unwrap()).collect()
}

#[test]
fn a_right_server_under_faults_is_clean_and_is_judged_so_again() {
    for options in [
        ["--workload", "append", "--nemesis", "kill-one", "--time", "6"],
        ["--workload", "register", "--nemesis", "partition-leader", "--time", "6"],
        ["--workload", "expiry", "--nemesis", "stop-all", "--time", "10"],
    ] {
        let (code, dir, verdict) = run(&options);
        // A machine that is too busy for faults and work proves nothing, and is no anomaly.
        assert_eq!(anomalies(&verdict), [""; 0], "see {}", dir.display());
        assert!(code == Some(0) || !verdict["missing"].as_array().unwrap().is_empty(), "{verdict}");
        for file in ["history.jsonl", "history.edn", "verdict.txt", "latency.svg", "rate.svg", "node1.log"] {
            assert!(dir.join(file).metadata().unwrap().len() > 0, "{file}");
        }
        let again = harness().arg("check").arg(&dir).output().unwrap();
        assert_eq!(again.status.code(), code);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// Clients that ask often, and move: see `nemesis/late_answers.rs`.
#[test]
fn late_answers_to_a_former_leader_make_no_read_stale() {
    let clients = ["--contended", "true", "--clients", "9", "--readers", "0"];
    let fault = ["--workload", "register", "--nemesis", "partition-late-answers", "--time", "20"];
    let (code, dir, verdict) = run(&[clients.as_slice(), &fault].concat());
    assert_eq!(anomalies(&verdict), [""; 0], "see {}", dir.display());
    assert!(code == Some(0) || !verdict["missing"].as_array().unwrap().is_empty(), "{verdict}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// Runs until `anomaly` is found, longer each time: a machine that is busy with others gets little done in a short run.
fn is_found(options: &[&str], anomaly: &str) {
    for time in ["4", "8", "30"] {
        let (code, dir, verdict) = run(&[options, &["--time", time]].concat());
        if anomalies(&verdict).contains(&anomaly) {
            assert_eq!(code, Some(1));
            assert!(dir.join("anomaly-1.svg").is_file());
            return std::fs::remove_dir_all(dir).unwrap();
        }
    }
    panic!("{options:?}: no {anomaly} was found");
}

#[test]
fn each_broken_promise_is_found_and_named() {
    for (kind, workload, anomaly) in [
        ("stale-reads", "register", "stale read"),
        ("lost-writes", "set", "lost write"),
        ("duplicate-writes", "append", "duplicate append"),
        ("false-errors", "register", "G1a (aborted read)"),
        ("stale-reads", "read-levels", "token not honoured"),
        ("duplicate-writes", "once", "duplicate apply"),
        ("lost-events", "feed", "feed gap"),
        ("unfenced-writes", "election", "former holder wrote"),
    ] {
        is_found(&["--workload", workload, "--break", kind], anomaly);
    }
}

/// Nodes that lose power at one moment have what they acknowledged, because they synced it; the control is a disk that
/// only says so.
#[test]
fn a_power_cut_takes_what_was_not_synced_and_no_more() {
    let options = ["--workload", "append", "--nemesis", "disk-lost-unsynced-all"];
    let (code, dir, verdict) = run(&[&options[..], &["--time", "8"]].concat());
    assert_eq!(anomalies(&verdict), [""; 0], "see {}", dir.display());
    assert!(code == Some(0) || !verdict["missing"].as_array().unwrap().is_empty(), "{verdict}");
    std::fs::remove_dir_all(dir).unwrap();
    is_found(&[&options[..], &["--break", "lying-disks"]].concat(), "lost write");
}

/// Needs root, ip, tc and nft; without them the verdict says what is missing.
#[test]
fn packets_are_lost_doubled_and_overtaken() {
    let nemeses = "packet-loss,packet-duplicate,packet-reorder";
    let (_, dir, verdict) = run(&["--workload", "append", "--nemesis", nemeses, "--time", "8"]);
    assert_eq!(anomalies(&verdict), [""; 0], "see {}", dir.display());
    for (fault, outcome) in verdict["faults"].as_object().unwrap() {
        let why = outcome["reasons"].to_string();
        let is_possible = !["namespace of its own", "there is no"].iter().any(|lack| why.contains(lack));
        assert_eq!(outcome["effective"].as_u64() > Some(0), is_possible, "{fault}: {why}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// Nodes that say they are ready and refuse everything: they contradict themselves, and when the faults end a majority of
/// them is of no use.
#[test]
fn nodes_that_are_ready_and_refuse_everything_are_caught() {
    let options = ["--workload", "register", "--nemesis", "kill-one", "--bare-majority", "true"];
    let (code, dir, verdict) = run(&[&options[..], &["--break", "refusals", "--time", "10"]].concat());
    let found = anomalies(&verdict);
    for anomaly in ["ready and does not serve", "no progress with a majority"] {
        // A machine that is too busy proves nothing, and says so.
        assert!(
            found.contains(&anomaly) || verdict["missing"].to_string().contains("kept the harness waiting"),
            "{found:?}"
        );
    }
    assert_eq!(code, Some(1));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn locks_without_fencing_are_caught() {
    is_found(&["--workload", "lock-unfenced"], "lost update");
}

//! The nodes' own logs. A panic is a finding, and so is an ERROR of the server, unless a fault of the run
//! explains it. Messages of libraries do not count: openraft logs an error when its core ends before its
//! workers.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{check::Finding, nemesis::Shadow};

/// Errors that a fault causes: the text in the line, the prefixes of the names of such faults, and why it is
/// right.
const EXPECTED: &[(&str, &[&str], &str)] = &[
    ("fatal: cannot write the log", &["disk-fail"], "a node that cannot write ends itself"),
    ("fatal: cannot sync the log", &["disk-fail"], "a failed sync is never tried again"),
    ("fatal: ", &["disk-fail"], "pages and identity are on the same disk"),
    ("kvorum_raft::space: the disk ", &["disk-full"], "that is what the fault does"),
    ("the checkpoint failed", &["disk-full", "disk-fail"], "it is tried again"),
    (
        "the disk has not answered for",
        &["disk-slow", "pause", "disk-full"],
        "the leader gives way to another",
    ),
    (
        "hanging up on clients that did not finish in time",
        &["rolling-restart", "stop", "partition", "pause", "kill", "disk"],
        "they wait for what a cut-off node cannot give",
    ),
];
/// The maximum number of lines reported for each node.
const TOLD_MAX: usize = 3;

/// The findings in the logs of the nodes in a run's directory.
pub(crate) fn findings(dir: &Path, shadows: &[Shadow]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("node") || !name.ends_with(".log") {
            continue;
        }
        let text = std::fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        let text = String::from_utf8_lossy(&text);
        let amiss = text.lines().filter_map(|line| Some((amiss(line, shadows)?, line)));
        findings.extend(
            amiss.take(TOLD_MAX).map(|(anomaly, line)| Finding::new(anomaly, format!("{name}: {line}"), &[])),
        );
    }
    Ok(findings)
}

fn amiss(line: &str, shadows: &[Shadow]) -> Option<&'static str> {
    if line.contains("panicked at") {
        return Some("panic");
    }
    // The level follows the timestamp; quoted text comes later.
    let mut words = line.split_whitespace().skip(1);
    if words.next() != Some("ERROR") || !words.next().is_some_and(|target| target.starts_with("kvorum")) {
        return None;
    }
    let happened = |begin: &str| shadows.iter().any(|shadow| shadow.fault.starts_with(begin));
    let is_expected = EXPECTED
        .iter()
        .any(|(text, faults, _)| line.contains(text) && faults.iter().any(|begin| happened(begin)));
    (!is_expected).then_some("error in a node's log")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn shadow(fault: &str) -> Shadow {
        let fault = fault.to_owned();
        Shadow { nemesis: fault.clone(), fault, from_ns: 0, to_ns: 1, effect: true, detail: Value::Null }
    }

    #[test]
    fn panics_and_errors_are_found_unless_a_fault_explains_them() {
        let full = "2026-01-01T00:00:00Z ERROR kvorum_raft::fatal: fatal: cannot write the log: no space";
        assert_eq!(amiss(full, &[shadow("disk-fail-fsync")]), None);
        // A full disk ends no node.
        assert_eq!(amiss(full, &[shadow("disk-full")]), Some("error in a node's log"));
        let space =
            "2026-01-01T00:00:00Z ERROR kvorum_raft::space: the disk has no room for more data dir=/d";
        assert_eq!(amiss(space, &[shadow("disk-full")]), None);
        assert_eq!(amiss(space, &[shadow("disk-slow-fsync")]), Some("error in a node's log"));
        assert_eq!(amiss("thread 'x' panicked at src/a.rs:1:1:", &[shadow("disk-full")]), Some("panic"));
        assert_eq!(amiss("2026-01-01T00:00:00Z  INFO kvorum: ERROR is a word", &[]), None);
        assert_eq!(amiss("2026-01-01T00:00:00Z ERROR kvorum: odd", &[]), Some("error in a node's log"));
        assert_eq!(amiss("2026-01-01T00:00:00Z ERROR tokio::core: failed to send", &[]), None);
    }
}

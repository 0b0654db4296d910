//! Snapshots and checkpoints under load: megabytes in keys of every type, rewritten continuously, besides the
//! transactions of `append`. Followers that fall behind get snapshots; nodes report the digests of their
//! states, as at the end of every run, and how many snapshots they have installed. A run without any proves
//! nothing.
//!
//! `bulk` has `{kind, key, seed}`; `status` returns counts of the node that was asked.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, append::Append, words};
use crate::{
    check::{Judgement, append},
    client::{Connection, Failure, Outcome, Reply},
    history::Operation,
    watch::contents,
};

const KINDS: &[&str] = &["string", "list", "set", "hash", "zset"];
/// How many keys there are of each kind, and the number and size of the parts of each: 6 MB in all ...
const LARGE: Size = Size { keys: 40, parts: 64, part_bytes: 480 };
/// ... or 25 KB.
const SMALL: Size = Size { keys: 8, parts: 10, part_bytes: 60 };
/// The counters of a node since its start.
const COUNTS: &[&str] = &["snapshots_installed", "snapshots_sent", "checkpoints"];

#[derive(Clone, Copy)]
struct Size {
    keys: u64,
    parts: usize,
    part_bytes: usize,
}

pub(crate) struct Snapshot {
    size: Size,
    append: Append,
    bulk: AtomicU64,
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot { size: LARGE, append: Append::default(), bulk: AtomicU64::default() }
    }
}

impl Snapshot {
    /// With kilobytes, for where other limits than size make many pages.
    pub(crate) fn small() -> Snapshot {
        Snapshot { size: SMALL, ..Snapshot::default() }
    }
}

/// Rewrites a key, with content generated from the seed.
fn bulk(connection: &mut Connection, value: &Value, size: Size) -> Outcome<()> {
    let (kind, seed) =
        (value["kind"].as_str().unwrap_or_default(), value["seed"].as_u64().unwrap_or_default());
    let key = format!("bulk:{kind}:{}", value["key"]);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut part =
        || std::iter::repeat_with(|| random.alphanumeric()).take(size.part_bytes).collect::<String>();
    let mut parts = (0..size.parts).map(|_| part());
    let mut write = words(&match kind {
        "string" => ["SET", &key],
        "list" => ["RPUSH", &key],
        "set" => ["SADD", &key],
        "hash" => ["HSET", &key],
        _ => ["ZADD", &key],
    });
    match kind {
        "string" => write.push(parts.by_ref().collect()),
        "list" | "set" => write.extend(parts),
        // The fields of hashes, or the scores.
        _ => parts.enumerate().for_each(|(number, part)| write.extend([number.to_string(), part])),
    }
    let replies = connection.transaction(&[words(&["DEL", &key]), write])?;
    replies.map(|_| ()).ok_or_else(|| Failure::Info("EXEC gave nil".into()))
}

fn status(connection: &mut Connection) -> Outcome<Value> {
    let Reply::Text(info) = connection.call(&["INFO", "kvorum"])? else {
        return Err(Failure::Fail("INFO gave no text".into()));
    };
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let count = |name: &str| fields.get(name).and_then(|count| count.parse::<u64>().ok());
    Ok(COUNTS.iter().map(|name| ((*name).to_owned(), json!(count(name)))).collect())
}

impl Workload for Snapshot {
    fn prepare(&self, connection: &mut Connection) -> Outcome<()> {
        for key in 0..self.size.keys {
            for kind in KINDS {
                bulk(connection, &json!({"kind": kind, "key": key, "seed": key}), self.size)?;
            }
        }
        Ok(())
    }

    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        match random.u8(..80) {
            0..4 => {
                let seed = self.bulk.fetch_add(1, Ordering::Relaxed) + self.size.keys;
                let kind = random.choice(KINDS);
                ("bulk", json!({"kind": kind, "key": random.u64(..self.size.keys), "seed": seed}))
            }
            4 => ("digest", json!(null)),
            5..8 => ("status", json!(null)),
            _ => self.append.next(random),
        }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        self.append.read(random)
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        match f {
            "bulk" => bulk(connection, value, self.size)?,
            "digest" => return Ok(contents::digest(connection)?),
            "status" => return Ok(status(connection)?),
            _ => return self.append.invoke(connection, f, value),
        }
        Ok(value.clone())
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        self.append.last().into_iter().chain([("status", json!(null))]).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let transactions: Vec<Operation> = operations.iter().filter(|it| it.f == "txn").cloned().collect();
        let mut judgement = append::check(&transactions);
        look_for_snapshots(operations, &mut judgement);
        judgement
    }
}

/// A process loses its counts when it ends. A snapshot is counted on both sides, so one of the counts is
/// enough.
fn look_for_snapshots(operations: &[Operation], judgement: &mut Judgement) {
    let is_told = |counts: &[&str]| {
        let mut told = operations.iter().filter(|it| it.f == "status" && it.is_ok());
        told.any(|it| counts.iter().any(|count| it.output[*count].as_u64() > Some(0)))
    };
    if !is_told(&["snapshots_installed", "snapshots_sent"]) {
        judgement.missing.push("no node told that it installed or sent a snapshot".into());
    }
    if !is_told(&["checkpoints"]) {
        judgement.missing.push("no node told that it wrote a checkpoint".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Kind::{Invoke, Ok},
        operations,
        tests::history,
    };

    #[test]
    fn a_run_without_snapshots_is_not_clean() {
        let missing = |counts: [u64; 3]| {
            let counts = COUNTS.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count)));
            let lines = [(1, Invoke, "status", json!(null)), (1, Ok, "status", counts.collect())];
            Snapshot::default().check(&operations(&history(&lines)), Instant::now()).missing.len()
        };
        assert_eq!(missing([1, 1, 1]), 0);
        assert_eq!(missing([1, 0, 1]), 0);
        assert_eq!(missing([0, 1, 1]), 0);
        assert_eq!(missing([0, 0, 1]), 1);
        assert_eq!(missing([1, 1, 0]), 1);
    }
}

//! Snapshots and checkpoints under load: megabytes in keys of every type, rewritten all the time, beside the transactions
//! of `append`. Followers that fall behind get snapshots; nodes tell the digests of their states, by log index, and how
//! many snapshots they have installed. A run in which none did proves nothing.
//!
//! `bulk` has `{kind, key, seed}`; `digest` gives `{index, digest}` and `status` counts, both of the node that is asked.

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
};

const KINDS: &[&str] = &["string", "list", "set", "hash", "zset"];
/// How many keys there are of each kind, and of how many parts of which size each consists: together 6 MB.
const KEYS: u64 = 40;
const PARTS: usize = 64;
const PART_BYTES: usize = 480;
/// What a node counts since its start.
const COUNTS: &[&str] = &["snapshots_installed", "snapshots_sent", "checkpoints"];

#[derive(Default)]
pub(crate) struct Snapshot {
    append: Append,
    bulk: AtomicU64,
}

/// Writes a key anew, with content that the seed makes.
fn bulk(connection: &mut Connection, value: &Value) -> Outcome<()> {
    let (kind, seed) =
        (value["kind"].as_str().unwrap_or_default(), value["seed"].as_u64().unwrap_or_default());
    let key = format!("bulk:{kind}:{}", value["key"]);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut parts = (0..PARTS)
        .map(|_| std::iter::repeat_with(|| random.alphanumeric()).take(PART_BYTES).collect::<String>());
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
        // The names of fields and the scores.
        _ => parts.enumerate().for_each(|(number, part)| write.extend([number.to_string(), part])),
    }
    let replies = connection.transaction(&[words(&["DEL", &key]), write])?;
    replies.map(|_| ()).ok_or_else(|| Failure::Info("EXEC gave nil".into()))
}

fn digest(connection: &mut Connection) -> Outcome<Value> {
    match connection.call(&["DEBUG", "DIGEST"])? {
        Reply::Array(parts) => match &parts[..] {
            [Reply::Integer(index), Reply::Text(digest)] => Ok(json!({"index": index, "digest": digest})),
            _ => Err(Reply::Array(parts).unexpected()),
        },
        other => Err(other.unexpected()),
    }
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
        for key in 0..KEYS {
            for kind in KINDS {
                bulk(connection, &json!({"kind": kind, "key": key, "seed": key}))?;
            }
        }
        Ok(())
    }

    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        match random.u8(..40) {
            0..2 => {
                let seed = self.bulk.fetch_add(1, Ordering::Relaxed) + KEYS;
                let kind = random.choice(KINDS);
                ("bulk", json!({"kind": kind, "key": random.u64(..KEYS), "seed": seed}))
            }
            2 => ("digest", json!(null)),
            3 | 4 => ("status", json!(null)),
            _ => self.append.next(random),
        }
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        match f {
            "bulk" => bulk(connection, value)?,
            "digest" => return Ok(digest(connection)?),
            "status" => return Ok(status(connection)?),
            _ => return self.append.invoke(connection, f, value),
        }
        Ok(value.clone())
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let looks = ["status", "digest"].map(|f| (f, json!(null)));
        self.append.last().into_iter().chain(looks).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let transactions: Vec<Operation> = operations.iter().filter(|it| it.f == "txn").cloned().collect();
        let mut judgement = append::check(&transactions);
        compare(operations, &mut judgement);
        look_for_snapshots(operations, &mut judgement);
        judgement
    }
}

/// At one index of the log all nodes have one digest.
fn compare(operations: &[Operation], judgement: &mut Judgement) {
    let mut digests: HashMap<u64, &Operation> = HashMap::new();
    let mut is_compared = false;
    for told in operations.iter().filter(|it| it.f == "digest" && it.is_ok()) {
        let Some(index) = told.output["index"].as_u64() else { continue };
        let first = *digests.entry(index).or_insert(told);
        is_compared |= first.node != told.node;
        if first.output["digest"] != told.output["digest"] {
            let node = |it: &Operation| it.node.unwrap_or_default();
            let detail = format!("nodes {} and {} differ at index {index}", node(first), node(told));
            judgement.found("divergent replicas", detail, &[first.start, told.start]);
        }
    }
    if !is_compared {
        judgement.missing.push("no two nodes told their digests at one index".into());
    }
}

fn look_for_snapshots(operations: &[Operation], judgement: &mut Judgement) {
    for (count, missing) in COUNTS.iter().zip([
        "no node told that it installed a snapshot",
        "no node told that it sent a snapshot",
        "no node told that it wrote a checkpoint",
    ]) {
        let mut told = operations.iter().filter(|it| it.f == "status" && it.is_ok());
        if !told.any(|it| it.output[*count].as_u64() > Some(0)) {
            judgement.missing.push(missing.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Event,
        Kind::{Invoke, Ok},
        operations,
        tests::history,
    };

    /// Digests by node, index and content, and what one node counts.
    fn events(digests: &[(u64, u64, &str)], counts: [u64; 3]) -> Vec<Event> {
        let mut lines = vec![(1, Invoke, "status", json!(null))];
        let counts = COUNTS.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count)));
        lines.push((1, Ok, "status", counts.collect()));
        for (_, index, digest) in digests {
            lines.push((1, Invoke, "digest", json!(null)));
            lines.push((1, Ok, "digest", json!({"index": index, "digest": digest})));
        }
        let mut events = history(&lines);
        for (event, node) in events[2..].iter_mut().zip(digests.iter().flat_map(|it| [it.0, it.0])) {
            event.node = Some(node);
        }
        events
    }

    fn judge(digests: &[(u64, u64, &str)], counts: [u64; 3]) -> Judgement {
        Snapshot::default().check(&operations(&events(digests, counts)), Instant::now())
    }

    #[test]
    fn nodes_that_differ_at_one_index_are_found() {
        let good = judge(&[(1, 7, "a"), (2, 8, "b"), (2, 7, "a")], [1, 1, 1]);
        assert_eq!((good.findings, good.missing), (vec![], vec![]));
        let bad = judge(&[(1, 7, "a"), (2, 7, "b")], [1, 1, 1]);
        assert!(bad.names().contains("divergent replicas"));
    }

    #[test]
    fn a_run_without_snapshots_or_comparison_is_not_clean() {
        assert_eq!(judge(&[(1, 7, "a"), (1, 7, "a"), (2, 8, "a")], [1, 1, 1]).missing.len(), 1);
        for counts in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
            assert_eq!(judge(&[(1, 7, "a"), (2, 7, "a")], counts).missing.len(), 1);
        }
    }
}

//! All nodes have the same content at the end, when each is read after the faults are healed. At the same log
//! index they have the same content at any time.
//!
//! A `digest` operation returns `{index, digest}` of a node's own state. A `contents` operation returns
//! `{"key": "its type and value", ...}`, read through one node, once with linearizable reads and once as the
//! node's own state (`READONLY`).

use std::collections::HashMap;

use super::Judgement;
use crate::history::Operation;

/// Whether this operation only inspects a node's content.
pub(crate) fn is_look(f: &str) -> bool {
    matches!(f, "contents" | "digest")
}

/// Compares contents and digests.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = compare_contents(operations);
    compare_digests(operations, &mut judgement);
    judgement
}

/// All nodes must have the same digest at the same log index.
fn compare_digests(operations: &[Operation], judgement: &mut Judgement) {
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
        judgement.missing.push("no two nodes told their digests at one log index".into());
    }
}

/// Compares all contents with the first one.
fn compare_contents(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    let mut contents = operations.iter().filter(|operation| operation.f == "contents" && operation.is_ok());
    let Some(first) = contents.next() else { return judgement };
    for other in contents.filter(|other| other.output["content"] != first.output["content"]) {
        let (ours, theirs) = (&first.output["content"], &other.output["content"]);
        let keys = [ours, theirs].into_iter().filter_map(|content| content.as_object());
        let key = keys.flat_map(|content| content.keys()).find(|key| ours[*key] != theirs[*key]);
        let key = key.map_or("", String::as_str);
        let node = |operation: &Operation| operation.node.unwrap_or_default();
        let detail = format!(
            "{key} is {} on node {} and {} on node {}",
            ours[key],
            node(first),
            theirs[key],
            node(other)
        );
        judgement.found("divergent replicas", detail, &[first.start, other.start]);
    }
    judgement
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::history::{Kind, operations, tests::history};

    #[test]
    fn nodes_that_differ_are_found() {
        let contents = |value: Value| {
            let value = json!({"content": value});
            [(1, Kind::Invoke, "contents", json!(null)), (1, Kind::Ok, "contents", value)]
        };
        let judge = |a: Value, b: Value| check(&operations(&history(&[contents(a), contents(b)].concat())));
        assert_eq!(judge(json!({"a": "1"}), json!({"a": "1"})).findings, []);
        assert_eq!(judge(json!({"a": "1"}), json!({"a": "2"})).findings[0].anomaly, "divergent replicas");
        assert_eq!(judge(json!({"a": "1"}), json!({})).findings[0].anomaly, "divergent replicas");
    }

    #[test]
    fn nodes_that_differ_at_one_index_are_found() {
        let judge = |told: &[(u64, u64, &str)]| {
            let digest = |(_, index, digest): &(u64, u64, &str)| {
                let value = json!({"index": index, "digest": digest});
                [(1, Kind::Invoke, "digest", json!(null)), (1, Kind::Ok, "digest", value)]
            };
            let mut operations = operations(&history(&told.iter().flat_map(digest).collect::<Vec<_>>()));
            operations.iter_mut().zip(told).for_each(|(operation, it)| operation.node = Some(it.0));
            check(&operations)
        };
        let good = judge(&[(1, 7, "a"), (2, 8, "b"), (2, 7, "a")]);
        assert_eq!((good.findings, good.missing), (vec![], vec![]));
        let bad = judge(&[(1, 7, "a"), (2, 7, "b")]);
        assert_eq!(bad.findings[0].anomaly, "divergent replicas");
        assert_eq!(judge(&[(1, 7, "a"), (1, 7, "a"), (2, 8, "a")]).missing.len(), 1);
    }
}

//! All nodes hold the same at the end: each tells its content after the faults are healed.
//!
//! A `contents` operation gives `{"key": "its type and value", ...}`, read through one node, once with linearizable
//! reads and once as the node's own state (`READONLY`).

use super::Judgement;
use crate::history::Operation;

/// Compares the contents that nodes told with those of the first.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
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
}

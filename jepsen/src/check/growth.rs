//! Sets that only grow. An added element stays: it is a fault if it is missing in a read that began after its
//! addition was acknowledged, or after another read had shown it.
//!
//! `add` has `[key, element]`, `read` returns `[key, [elements]]`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::Judgement;
use crate::history::Operation;

/// One element: its addition, and since when it is known to be there.
struct Element<'a> {
    adder: &'a Operation,
    /// The earliest completion that proves it.
    since: usize,
    is_seen: bool,
}

fn elements(read: &Operation) -> impl Iterator<Item = i64> + '_ {
    read.output[1].as_array().into_iter().flatten().filter_map(Value::as_i64)
}

/// Judges every key.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut keys: BTreeMap<String, HashMap<i64, Element<'_>>> = BTreeMap::new();
    let mut judgement = Judgement::default();
    for operation in operations.iter().filter(|operation| operation.f == "add") {
        if let Some(element) = operation.input[1].as_i64() {
            let since = if operation.is_ok() { operation.end } else { usize::MAX };
            let elements = keys.entry(operation.input[0].to_string()).or_default();
            elements.insert(element, Element { adder: operation, since, is_seen: false });
        }
    }
    let reads: Vec<&Operation> =
        operations.iter().filter(|operation| operation.f == "read" && operation.is_ok()).collect();
    for read in &reads {
        let name = read.input[0].to_string();
        for value in elements(read) {
            match keys.entry(name.clone()).or_default().get_mut(&value) {
                None => judgement.found(
                    "phantom value",
                    format!("key {name}: nobody added {value}"),
                    &[read.start],
                ),
                Some(element) => {
                    element.is_seen = true;
                    element.since = element.since.min(read.end);
                    if !element.adder.may_have_happened() {
                        let detail = format!("key {name}: {value} is there, but its addition failed");
                        let operations = [read.start, element.adder.start];
                        judgement.found("G1a (aborted read)", detail, &operations);
                    }
                }
            }
        }
    }
    for read in &reads {
        let name = read.input[0].to_string();
        let present: HashSet<i64> = elements(read).collect();
        let known = keys.get(&name).into_iter().flatten();
        for (value, element) in
            known.filter(|(value, element)| element.since < read.start && !present.contains(value))
        {
            let anomaly = if element.is_seen { "stale read" } else { "lost write" };
            let detail = format!("key {name}: {value} was there before, and is not in a later read");
            judgement.found(anomaly, detail, &[read.start, element.adder.start]);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::{Kind, operations, tests::history};

    #[test]
    fn each_anomaly_is_found_and_named() {
        use Kind::{Fail, Info, Invoke, Ok};
        let add = |kind| vec![(1, Invoke, "add", json!([1, 5])), (1, kind, "add", json!([1, 5]))];
        let read =
            |values: Value| vec![(2, Invoke, "read", json!([1, null])), (2, Ok, "read", json!([1, values]))];
        for (name, parts) in [
            (None, vec![read(json!([])), add(Ok), read(json!([5])), read(json!([5]))]),
            (None, vec![add(Info), read(json!([])), read(json!([5]))]),
            (None, vec![add(Fail), read(json!([]))]),
            (Some("lost write"), vec![add(Ok), read(json!([]))]),
            (Some("stale read"), vec![add(Ok), read(json!([5])), read(json!([]))]),
            (Some("stale read"), vec![add(Info), read(json!([5])), read(json!([]))]),
            (Some("G1a (aborted read)"), vec![add(Fail), read(json!([5]))]),
            (Some("phantom value"), vec![read(json!([6]))]),
        ] {
            let judgement = check(&operations(&history(&parts.concat())));
            assert_eq!(judgement.names().into_iter().next(), name, "{parts:?}");
        }
    }
}

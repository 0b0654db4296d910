//! Registers by key: reads, writes and compare-and-set, each key linearizable by itself. Every value is
//! written only once, so anomalies can be named.
//!
//! A value is `[key, value]`, with `:missing` for an absent key; for a CAS `[key, [old, new]]`. A CAS that
//! found another value has failed and reports it, `[key, [old, new], found]`: that is a read.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use serde_json::Value;

use super::{
    Judgement,
    linear::{Action, Answer, Call, Limits, check as check_one},
};
use crate::history::{Kind, Operation};

const CONFIGURATIONS_MAX: usize = 2_000_000;

/// One key's calls, each with its operation.
#[derive(Default)]
struct Key<'a> {
    calls: Vec<Call>,
    owners: Vec<&'a Operation>,
    failed: Vec<(i64, &'a Operation)>,
}

fn action(operation: &Operation) -> Option<Action> {
    let (input, output) = (&operation.input[1], &operation.output);
    match (operation.f.as_str(), operation.outcome) {
        ("read", Kind::Ok) => Some(Action::Read(output[1].as_i64())),
        ("write", Kind::Ok | Kind::Info) => Some(Action::Write(input.as_i64()?)),
        ("cas", Kind::Ok | Kind::Info) => Some(Action::Cas(input[0].as_i64()?, input[1].as_i64()?)),
        ("cas", Kind::Fail) => output.get(2).map(|found| Action::Read(found.as_i64())),
        _ => None,
    }
}

fn written(operation: &Operation) -> Option<i64> {
    match operation.f.as_str() {
        "write" => operation.input[1].as_i64(),
        "cas" => operation.input[1][1].as_i64(),
        _ => None,
    }
}

/// Judges every key.
pub(crate) fn check(operations: &[Operation], deadline: Instant) -> Judgement {
    let mut keys: BTreeMap<String, Key<'_>> = BTreeMap::new();
    for operation in operations {
        let key = keys.entry(operation.input[0].to_string()).or_default();
        if let Some(action) = action(operation) {
            key.calls.push(Call { action, start: operation.start, end: operation.end });
            key.owners.push(operation);
        }
        if let Some(value) = written(operation).filter(|_| operation.outcome == Kind::Fail) {
            key.failed.push((value, operation));
        }
    }
    let mut judgement = Judgement::default();
    let limits = Limits { deadline, configurations_max: CONFIGURATIONS_MAX };
    for (name, key) in &keys {
        match check_one(&key.calls, limits) {
            Answer::Linearizable => {}
            Answer::Undecided(why) => judgement.undecided.push(format!("key {name}: {why}")),
            Answer::Impossible { call, values } => {
                let (anomaly, others) = key.diagnose(call);
                let culprit = key.owners[call];
                let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
                let detail = format!(
                    "key {name} is not linearizable: {} {} by process {} on node {} is impossible; the value could be {}",
                    culprit.f,
                    culprit.output,
                    culprit.process,
                    culprit.node.map_or(Value::Null, Value::from),
                    values.join(", ")
                );
                let operations: Vec<usize> = [culprit.start].into_iter().chain(others).collect();
                judgement.found(anomaly, detail, &operations);
            }
        }
    }
    judgement
}

impl Key<'_> {
    /// The name of the anomaly of a call, and the other operations involved.
    fn diagnose(&self, call: usize) -> (&'static str, Vec<usize>) {
        let seen = self.calls[call].action.sees();
        let writer = |value: i64| self.owners.iter().filter(move |owner| written(owner) == Some(value));
        if let Some(value) = seen {
            if let Some((_, failed)) = self.failed.iter().find(|(failed, _)| *failed == value) {
                return ("G1a (aborted read)", vec![failed.start]);
            }
            if writer(value).next().is_none() {
                return ("phantom value", Vec::new());
            }
        }
        let others: Vec<usize> = seen.into_iter().flat_map(writer).map(|owner| owner.start).collect();
        if matches!(self.calls[call].action, Action::Cas(..)) {
            return ("lost update", others);
        }
        (if self.is_overtaken(seen, call) { "stale read" } else { "lost write" }, others)
    }

    /// Whether any call saw a write that came after the one of `seen` and completed before `call` began: then
    /// it is not lost.
    fn is_overtaken(&self, seen: Option<i64>, call: usize) -> bool {
        let seen_by_some: HashSet<i64> = self.calls.iter().filter_map(|call| call.action.sees()).collect();
        let written = |value| self.calls.iter().find(move |other| other.action.writes() == Some(value));
        let old = seen.and_then(written);
        seen_by_some
            .into_iter()
            .filter(|value| Some(*value) != seen)
            .filter_map(written)
            .any(|newer| newer.end < self.calls[call].start && old.is_none_or(|old| old.end < newer.start))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::history::{operations, tests::history};

    fn judge(lines: &[(i64, Kind, &str, Value)]) -> Judgement {
        check(&operations(&history(lines)), Instant::now() + Duration::from_secs(10))
    }

    use Kind::{Fail, Info, Invoke, Ok};

    fn done(process: i64, f: &'static str, value: Value) -> [(i64, Kind, &'static str, Value); 2] {
        [(process, Invoke, f, value.clone()), (process, Ok, f, value)]
    }

    #[test]
    fn keys_are_judged_apart_and_unknown_writes_may_or_may_not_happen() {
        let mut lines = done(1, "write", json!([1, 1])).to_vec();
        lines.extend([(2, Invoke, "write", json!([1, 2])), (2, Info, "write", json!([1, 2]))]);
        lines.extend(done(1, "read", json!([2, ":missing"])));
        lines.extend(done(1, "read", json!([1, 1])));
        lines.extend(done(1, "read", json!([1, 2])));
        lines.extend(done(1, "cas", json!([1, [2, 3]])));
        lines.extend([
            (1, Invoke, "cas", json!([1, [2, 4]])),
            (1, Fail, "cas", json!([1, [2, 4], 3])),
            (1, Invoke, "write", json!([1, 5])),
            (1, Fail, "write", json!([1, 5])),
        ]);
        lines.extend(done(1, "read", json!([1, 3])));
        assert_eq!(judge(&lines).findings, []);
    }

    #[test]
    fn each_anomaly_has_its_name() {
        let [write, next] = [done(1, "write", json!([1, 1])), done(1, "write", json!([1, 2]))].map(Vec::from);
        let read = |value: Value| done(2, "read", json!([1, value])).to_vec();
        let failed = vec![(3, Invoke, "write", json!([1, 9])), (3, Fail, "write", json!([1, 9]))];
        let cas = |process, new| done(process, "cas", json!([1, [1, new]])).to_vec();
        for (name, parts) in [
            ("stale read", vec![write.clone(), next.clone(), read(json!(1)), read(json!(2))]),
            ("lost write", vec![write.clone(), next, read(json!(1)), read(json!(1))]),
            ("lost write", vec![write.clone(), read(json!(null))]),
            ("G1a (aborted read)", vec![write.clone(), failed, read(json!(9))]),
            ("phantom value", vec![write.clone(), read(json!(7))]),
            ("lost update", vec![write.clone(), cas(2, 5), cas(3, 6)]),
            (
                "stale read",
                vec![
                    write,
                    cas(2, 5),
                    vec![(4, Invoke, "cas", json!([1, [8, 6]])), (4, Fail, "cas", json!([1, [8, 6], 1]))],
                    read(json!(5)),
                ],
            ),
        ] {
            let judgement = judge(&parts.concat());
            assert_eq!(judgement.names().into_iter().collect::<Vec<_>>(), [name], "{parts:?}");
        }
    }
}

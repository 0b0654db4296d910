//! One counter: INCR and GET. A read is at least the number of increments acknowledged before it began, and
//! at most the number begun before it ended; the reply of an INCR counts as a read too, and no two are equal.

use std::{collections::HashMap, time::Instant};

use serde_json::{Value, json};

use super::{Ended, Workload};
use crate::{check::Judgement, client::Connection, history::Operation};

const KEY: &str = "counter";

pub(crate) struct Counter;

impl Workload for Counter {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        if random.u8(..3) > 0 { ("add", json!(1)) } else { ("read", json!(null)) }
    }

    fn read(&self, _: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        Some(("read", json!(null)))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, _: &Value) -> Result<Value, Ended> {
        let command: &[&str] = if f == "add" { &["INCR", KEY] } else { &["GET", KEY] };
        Ok(json!(connection.call(command)?.number()?.unwrap_or(0)))
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        vec![("read", json!(null))]
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        check(operations)
    }
}

fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    let adds = || operations.iter().filter(|operation| operation.f == "add");
    let mut acknowledged: Vec<usize> = adds().filter(|add| add.is_ok()).map(|add| add.end).collect();
    acknowledged.sort_unstable();
    // They are in the order of invocation already.
    let begun: Vec<usize> = adds().filter(|add| add.may_have_happened()).map(|add| add.start).collect();
    let mut answers: HashMap<i64, usize> = HashMap::new();
    for operation in operations.iter().filter(|operation| operation.is_ok()) {
        let Some(value) = operation.output.as_i64() else { continue };
        let is_add = operation.f == "add";
        let least = acknowledged.partition_point(|end| *end < operation.start) + usize::from(is_add);
        let most = begun.partition_point(|start| *start < operation.end);
        if value < least as i64 {
            let detail =
                format!("{} gave {value}, and at least {least} were acknowledged before", operation.f);
            judgement.found("lost write or stale read", detail, &[operation.start]);
        }
        if value > most as i64 {
            let detail = format!("{} gave {value}, and at most {most} were begun", operation.f);
            judgement.found("duplicate apply or aborted read", detail, &[operation.start]);
        }
        if is_add && let Some(other) = answers.insert(value, operation.start) {
            let detail = format!("two INCR gave {value}");
            judgement.found("lost update", detail, &[operation.start, other]);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Kind::{self, Fail, Info, Invoke, Ok},
        operations,
        tests::history,
    };

    #[test]
    fn each_anomaly_is_found_and_named() {
        let add = |kind: Kind, value: i64| vec![(1, Invoke, "add", json!(1)), (1, kind, "add", json!(value))];
        let read = |value: i64| vec![(2, Invoke, "read", json!(null)), (2, Ok, "read", json!(value))];
        for (name, parts) in [
            (None, vec![add(Ok, 1), add(Info, 1), read(1), read(2), add(Ok, 3)]),
            (Some("lost write or stale read"), vec![add(Ok, 1), read(0)]),
            (Some("duplicate apply or aborted read"), vec![add(Ok, 1), read(2)]),
            (Some("duplicate apply or aborted read"), vec![add(Fail, 1), read(1)]),
            (Some("lost update"), vec![add(Info, 1), add(Ok, 2), add(Ok, 2)]),
        ] {
            let judgement = check(&operations(&history(&parts.concat())));
            assert_eq!(judgement.names().into_iter().next_back(), name, "{parts:?}");
        }
    }
}

//! Numbers that are handed out: by INCR, and as fencing tokens, each from a different lock. None is given
//! twice, and one requested after another was received is greater.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload};
use crate::{
    check::{Judgement, rising},
    client::{Connection, Outcome, Reply},
    history::Operation,
};

#[derive(Default)]
pub(crate) struct Ids {
    locks: AtomicU64,
}

/// The token of a grant; None if others hold the lock.
pub(super) fn acquire(
    connection: &mut Connection,
    lock: &str,
    owner: &str,
    ms: &str,
) -> Outcome<Option<i64>> {
    match connection.call(&["LOCK.ACQUIRE", lock, owner, "PX", ms])? {
        Reply::Nil => Ok(None),
        Reply::Array(fields) if fields.len() == 4 => fields[1].number(),
        other => Err(other.unexpected()),
    }
}

impl Workload for Ids {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        if random.bool() {
            return ("incr", json!(null));
        }
        ("token", json!({"lock": self.locks.fetch_add(1, Ordering::Relaxed)}))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        if f == "incr" {
            return Ok(json!(connection.call(&["INCR", "ids"])?.number()?));
        }
        let lock = format!("ids:{}", value["lock"]);
        Ok(json!(acquire(connection, &lock, "owner", "2000")?))
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        vec![("incr", json!(null)), ("token", json!({"lock": self.locks.fetch_add(1, Ordering::Relaxed)}))]
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        check(operations)
    }
}

fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    for f in ["incr", "token"] {
        let done = operations.iter().filter(|operation| operation.f == f && operation.is_ok());
        let given = done.filter_map(|operation| Some((operation.output.as_i64()?, operation)));
        rising::check(f, "duplicate id", given, &mut judgement);
    }
    judgement
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
    fn each_anomaly_is_found_and_named() {
        let id = |value: i64| [(1, Invoke, "token", json!(null)), (1, Ok, "token", json!(value))];
        for (name, ids) in [
            (None, vec![1, 2, 5, 9]),
            (Some("duplicate id"), vec![1, 2, 2]),
            (Some("token regression"), vec![1, 5, 3, 6]),
        ] {
            let lines: Vec<_> = ids.into_iter().flat_map(id).collect();
            assert_eq!(check(&operations(&history(&lines))).names().into_iter().next(), name);
        }
    }
}

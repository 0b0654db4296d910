//! Work under a lock: acquire it, read a list, sometimes pause for longer than the hold lasts, write the list
//! with one more element, release. With FENCE the write of a client that has lost the lock is refused, so no
//! update is lost; without it (the control) updates must get lost, or the harness is blind.
//!
//! For the checker, each is a transaction that reads a list and appends to it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::workload::{Ended, Workload, ids::acquire};
use crate::{
    check::{Judgement, append},
    client::{Connection, Failure, Outcome, Reply},
    history::Operation,
};

/// How many lists are in use at a time, and how many operations are generated for all of them before the
/// next.
const KEYS: u64 = 3;
const GENERATION: u64 = 600;
/// The TTL of a hold, and the pause of a client that loses it.
const HOLD_MS: &str = "300";
const PAUSE_MS: u64 = 450;
/// How often and with which pauses a client tries to acquire a lock that others hold.
const ATTEMPTS: usize = 20;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Lock {
    is_fenced: bool,
    count: AtomicU64,
}

impl Lock {
    pub(crate) fn new(is_fenced: bool) -> Lock {
        Lock { is_fenced, count: AtomicU64::new(0) }
    }

    /// Does the work; returns the list before the write.
    fn work(&self, connection: &mut Connection, value: &Value) -> Outcome<Vec<i64>> {
        let (lock, data) = (format!("lock:{}", value["key"]), format!("data:{}", value["key"]));
        let owner = format!("owner-{}", value["element"]);
        let token = (0..ATTEMPTS).find_map(|attempt| {
            if attempt > 0 {
                connection.pause(ATTEMPT_PAUSE);
            }
            acquire(connection, &lock, &owner, HOLD_MS).transpose()
        });
        let token = token.unwrap_or_else(|| Err(Failure::Fail("others hold the lock".into())));
        let token = token.map_err(Failure::harmless)?.to_string();
        let before = read(connection, &data).map_err(Failure::harmless)?;
        connection.pause(Duration::from_millis(value["pause_ms"].as_u64().unwrap_or_default()));
        let mut after: Vec<String> = before.iter().map(i64::to_string).collect();
        after.push(value["element"].to_string());
        let after = after.join(",");
        match self.is_fenced {
            true => connection.call(&["FENCE", &lock, &token, "SET", &data, &after])?,
            false => connection.call(&["SET", &data, &after])?,
        };
        // The work is done, whatever the outcome; a hold that is not released expires.
        let _ = connection.call(&["LOCK.RELEASE", &lock, &owner, &token]);
        Ok(before)
    }
}

fn read(connection: &mut Connection, data: &str) -> Outcome<Vec<i64>> {
    match connection.call(&["GET", data])? {
        Reply::Nil => Ok(Vec::new()),
        Reply::Text(text) => {
            let elements: Result<Vec<i64>, _> = text.split(',').map(str::parse).collect();
            elements.map_err(|_| Failure::Info(format!("no list: {text:?}")))
        }
        other => Err(other.unexpected()),
    }
}

impl Workload for Lock {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        if random.u8(..4) == 0 {
            return ("read", json!({"key": key}));
        }
        let pause_ms = if random.u8(..10) == 0 { PAUSE_MS } else { 0 };
        ("work", json!({"key": key, "element": count, "pause_ms": pause_ms}))
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        Some(("read", json!({"key": key})))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let list = match f {
            "read" => read(connection, &format!("data:{}", value["key"]))?,
            _ => self.work(connection, value)?,
        };
        let mut done = value.clone();
        done["list"] = json!(list);
        Ok(done)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = (self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS;
        (0..keys).map(|key| ("read", json!({"key": key}))).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let transactions: Vec<Operation> = operations.iter().map(transaction).collect();
        append::check(&transactions)
    }
}

/// The form that the checker of appends expects.
fn transaction(operation: &Operation) -> Operation {
    let steps = |value: &Value| {
        let read = json!([":r", value["key"], value["list"]]);
        match operation.f.as_str() {
            "read" => json!([read]),
            _ => json!([read, [":append", value["key"], value["element"]]]),
        }
    };
    Operation { input: steps(&operation.input), output: steps(&operation.output), ..operation.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Kind::{Fail, Invoke, Ok},
        operations,
        tests::history,
    };

    #[test]
    fn a_breach_of_mutual_exclusion_is_found_and_order_is_not() {
        let work = |element: i64, list: Value| {
            let input = json!({"key": 1, "element": element, "pause_ms": 0});
            let mut output = input.clone();
            output["list"] = list;
            [(1, Invoke, "work", input), (1, Ok, "work", output)]
        };
        let read = |list: Value| {
            let output = json!({"key": 1, "list": list});
            [(2, Invoke, "read", json!({"key": 1})), (2, Ok, "read", output)]
        };
        let input = json!({"key": 1, "element": 9, "pause_ms": 0});
        let fenced = [(3, Invoke, "work", input.clone()), (3, Fail, "work", input)];
        let judge = |parts: &[[(i64, crate::history::Kind, &'static str, Value); 2]]| {
            Lock::new(true).check(&operations(&history(&parts.concat())), Instant::now())
        };
        let good = [work(1, json!([])), fenced, work(2, json!([1])), read(json!([1, 2]))];
        assert_eq!(judge(&good).findings, []);
        let bad = [work(1, json!([])), work(2, json!([])), read(json!([2]))];
        assert!(judge(&bad).names().contains("lost update") && judge(&bad).names().contains("lost write"));
    }
}

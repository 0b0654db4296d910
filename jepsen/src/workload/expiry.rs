//! Keys with a deadline: one SET PX for each key, and reads before and after. A key exists until its
//! deadline, by a clock that runs like the client's except for the slew of the log clock; once gone, it stays
//! gone, on every node.
//!
//! `set` has `[key, ttl_ms]`, `read` returns `[key, whether it exists]`.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Ended, Workload, reads_of_keys};
use crate::{
    check::Judgement,
    client::{Connection, Reply},
    history::Operation,
};

/// Reads choose among this many of the newest keys.
const KEYS: u64 = 30;
const TTL_MS: std::ops::Range<u64> = 200..3_000;
/// How much too early a key may expire: the slew of the log clock, and its steps of a millisecond.
const EARLY_MS: u64 = 20;
/// How long after its deadline a key may still be seen: a new leader's clock may lag by an election.
const LATE_MS: u64 = 2_000;

#[derive(Default)]
pub(crate) struct Expiry {
    keys: AtomicU64,
}

impl Workload for Expiry {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let keys = self.keys.load(Ordering::Relaxed);
        if keys == 0 || random.u8(..4) == 0 {
            let key = self.keys.fetch_add(1, Ordering::Relaxed);
            return ("set", json!([key, random.u64(TTL_MS)]));
        }
        ("read", json!([random.u64(keys.saturating_sub(KEYS)..keys), null]))
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let keys = self.keys.load(Ordering::Relaxed);
        (keys > 0).then(|| ("read", json!([random.u64(keys.saturating_sub(KEYS)..keys), null])))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let key = format!("expiry:{}", value[0]);
        if f == "set" {
            connection.call(&["SET", &key, "there", "PX", &value[1].to_string()])?;
            return Ok(value.clone());
        }
        Ok(json!([value[0], connection.call(&["GET", &key])? != Reply::Nil]))
    }

    fn settles_within(&self) -> Duration {
        Duration::from_millis(TTL_MS.end + EARLY_MS)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = self.keys.load(Ordering::Relaxed);
        let newest = reads_of_keys(keys).into_iter().skip(keys.saturating_sub(KEYS) as usize);
        newest.collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        check(operations)
    }
}

fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    let sets: HashMap<String, &Operation> = operations
        .iter()
        .filter(|operation| operation.f == "set")
        .map(|set| (set.input[0].to_string(), set))
        .collect();
    // The earliest completion of a read that found a key gone after it had been set.
    let mut gone: HashMap<String, usize> = HashMap::new();
    let mut reads: Vec<&Operation> =
        operations.iter().filter(|operation| operation.f == "read" && operation.is_ok()).collect();
    reads.sort_unstable_by_key(|read| read.end);
    for read in &reads {
        let name = read.input[0].to_string();
        let Some(set) = sets.get(&name) else { continue };
        let ttl_ns = set.input[1].as_u64().unwrap_or_default() * 1_000_000;
        let is_there = read.output[1] == json!(true);
        let operations = [read.start, set.start];
        let after_set = set.is_ok() && read.start > set.end;
        if !is_there && after_set {
            gone.entry(name.clone()).or_insert(read.end);
            if read.end_ns + EARLY_MS * 1_000_000 < set.start_ns + ttl_ns {
                let left_ms = (set.start_ns + ttl_ns - read.end_ns) / 1_000_000;
                let detail = format!("key {name} was gone at least {left_ms} ms before its deadline");
                judgement.found("expired early", detail, &operations);
            }
        }
        if is_there && !set.may_have_happened() {
            let detail = format!("key {name} is there, but setting it failed");
            judgement.found("G1a (aborted read)", detail, &operations);
        }
        if is_there && set.is_ok() && read.start_ns > set.end_ns + ttl_ns + LATE_MS * 1_000_000 {
            let detail = format!("key {name} was there more than {LATE_MS} ms after its deadline");
            judgement.found("expired late", detail, &operations);
        }
    }
    for read in reads.iter().filter(|read| read.output[1] == json!(true)) {
        let name = read.input[0].to_string();
        if gone.get(&name).is_some_and(|gone| *gone < read.start) {
            judgement.found("resurrected key", format!("key {name} is back"), &[read.start]);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Event,
        Kind::{Fail, Invoke, Ok},
        operations,
        tests::history,
    };

    #[test]
    fn each_anomaly_is_found_and_named() {
        let set = |kind| vec![(1, Invoke, "set", json!([1, 1000])), (1, kind, "set", json!([1, 1000]))];
        let read = |is_there: bool| {
            vec![(2, Invoke, "read", json!([1, null])), (2, Ok, "read", json!([1, is_there]))]
        };
        // The times of the events in milliseconds, two for each operation.
        for (name, parts, times) in [
            (None, vec![set(Ok), read(true), read(false)], [0, 5, 900, 901, 1001, 1002]),
            (Some("expired early"), vec![set(Ok), read(true), read(false)], [0, 5, 700, 701, 900, 901]),
            (Some("expired late"), vec![set(Ok), read(true), read(true)], [0, 5, 700, 701, 3900, 3901]),
            (Some("resurrected key"), vec![set(Ok), read(false), read(true)], [0, 5, 1100, 1101, 1102, 1103]),
            (Some("G1a (aborted read)"), vec![set(Fail), read(true), read(true)], [0, 5, 10, 11, 12, 13]),
        ] {
            let mut events: Vec<Event> = history(&parts.concat());
            events.iter_mut().zip(times).for_each(|(event, ms)| event.time_ns = ms * 1_000_000);
            assert_eq!(check(&operations(&events)).names().into_iter().next(), name);
        }
    }
}

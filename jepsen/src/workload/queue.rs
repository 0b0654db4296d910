//! Queues: RPUSH at one end, BLPOP and BLMOVE at the other, which wait for an element. Each element is taken at most
//! once and in the order of the queue, and nobody waits in vain while there is one.
//!
//! `add` has `[key, element]`, `pop` returns `[key, element or null]`, `read` returns `[key, [elements]]`.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, pop, reads_of_keys};
use crate::{
    check::{Judgement, by_key},
    client::{Connection, Failure, Reply},
    history::Operation,
};

/// How many queues are in use at a time, and how many operations are generated for all of them before the next.
const KEYS: u64 = 2;
const GENERATION: u64 = 400;
/// How long a client waits for an element, in seconds.
const TIMEOUT: &str = "0.3";

#[derive(Default)]
pub(crate) struct Queue {
    count: AtomicU64,
}

impl Workload for Queue {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        // As many takers as elements: now the ones wait, now the others.
        if random.bool() { ("add", json!([key, count])) } else { ("pop", json!([key, null])) }
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let (key, done) = (format!("queue:{}", value[0]), format!("done:{}", value[0]));
        match f {
            "add" => match connection.call(&["RPUSH", &key, &value[1].to_string()])?.number()? {
                Some(1..) => Ok(value.clone()),
                other => Err(Failure::Info(format!("RPUSH gave {other:?}")).into()),
            },
            "pop" if value[0].as_u64().is_some_and(|key| key % KEYS == 0) => {
                let popped = match connection.call(&["BLPOP", &key, TIMEOUT])? {
                    Reply::Array(parts) if parts.len() == 2 => parts[1].number()?,
                    other => other.number()?,
                };
                Ok(json!([value[0], popped]))
            }
            "pop" => {
                let moved = connection.call(&["BLMOVE", &key, &done, "LEFT", "RIGHT", TIMEOUT])?;
                Ok(json!([value[0], moved.number()?]))
            }
            _ => Ok(json!([value[0], connection.call(&["LRANGE", &key, "0", "-1"])?.numbers()?])),
        }
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        reads_of_keys((self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS)
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let mut judgement = Judgement::default();
        for operations in by_key(operations, 0).values() {
            pop::check(operations, &mut judgement);
            check_order(operations, &mut judgement);
        }
        judgement
    }
}

/// Judges the order in which one queue was emptied, and that it was.
fn check_order(operations: &[&Operation], judgement: &mut Judgement) {
    let done = |f: &'static str| operations.iter().copied().filter(move |done| done.f == f && done.is_ok());
    let adds: HashMap<i64, &Operation> =
        done("add").filter_map(|add| Some((add.input[1].as_i64()?, add))).collect();
    let takers: Vec<(&Operation, &Operation)> =
        done("pop").filter_map(|pop| Some((*adds.get(&pop.output[1].as_i64()?)?, pop))).collect();
    for (add, pop) in &takers {
        // One that was added before and was taken after: it was in front all the time.
        let overtaken = takers.iter().find(|(other, taken)| other.end < add.start && pop.end < taken.start);
        if let Some((other, _)) = overtaken {
            let detail = format!("{} was taken before {}", add.input[1], other.input[1]);
            judgement.found("overtaken", detail, &[pop.start, other.start]);
        }
    }
    for pop in done("pop").filter(|pop| pop.output[1].is_null()) {
        let there = takers.iter().find(|(add, taken)| add.end < pop.start && pop.end < taken.start);
        if let Some((add, _)) = there {
            let detail = format!("{} was there, and a client was told that there is nothing", add.input[1]);
            judgement.found("missed element", detail, &[pop.start, add.start]);
        }
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
    fn each_anomaly_is_found_and_named() {
        let add =
            |element: i64| vec![(1, Invoke, "add", json!([1, element])), (1, Ok, "add", json!([1, element]))];
        let pop =
            |element: Value| vec![(2, Invoke, "pop", json!([1, null])), (2, Ok, "pop", json!([1, element]))];
        // Two whose waits overlap may be told in any order.
        let both = vec![
            (2, Invoke, "pop", json!([1, null])),
            (3, Invoke, "pop", json!([1, null])),
            (3, Ok, "pop", json!([1, 2])),
            (2, Ok, "pop", json!([1, 1])),
        ];
        for (name, parts) in [
            (None, vec![pop(json!(null)), add(1), add(2), pop(json!(1)), pop(json!(2)), pop(json!(null))]),
            (None, vec![add(1), add(2), both]),
            (Some("overtaken"), vec![add(1), add(2), pop(json!(2)), pop(json!(1))]),
            (Some("missed element"), vec![add(1), pop(json!(null)), pop(json!(1))]),
            (Some("duplicate pop"), vec![add(1), pop(json!(1)), pop(json!(1))]),
        ] {
            let judgement = Queue::default().check(&operations(&history(&parts.concat())), Instant::now());
            assert_eq!(judgement.names().into_iter().next(), name, "{parts:?}");
        }
    }
}

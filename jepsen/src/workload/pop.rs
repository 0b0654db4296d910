//! Sets that are filled and emptied: SADD and SPOP, which chooses at random. Each element is taken at most
//! once, and replicas that choose differently are detected when their contents are compared.
//!
//! `add` has `[key, element]`, `pop` returns `[key, element or null]`, `read` returns `[key, [elements]]`.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, reads_of_keys};
use crate::{
    check::{Judgement, by_key},
    client::{Connection, Failure},
    history::Operation,
};

/// How many sets are in use at a time, and how many operations are generated for all of them before the next.
const KEYS: u64 = 2;
const GENERATION: u64 = 400;

#[derive(Default)]
pub(crate) struct Pop {
    count: AtomicU64,
}

impl Workload for Pop {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        if random.u8(..9) < 5 { ("add", json!([key, count])) } else { ("pop", json!([key, null])) }
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let key = format!("pop:{}", value[0]);
        match f {
            "add" => match connection.call(&["SADD", &key, &value[1].to_string()])?.number()? {
                Some(1) => Ok(value.clone()),
                other => Err(Failure::Info(format!("SADD gave {other:?}")).into()),
            },
            "pop" => Ok(json!([value[0], connection.call(&["SPOP", &key])?.number()?])),
            _ => {
                let mut elements = connection.call(&["SMEMBERS", &key])?.numbers()?;
                elements.sort_unstable();
                Ok(json!([value[0], elements]))
            }
        }
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        reads_of_keys((self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS)
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let mut judgement = Judgement::default();
        by_key(operations, 0).values().for_each(|operations| check(operations, &mut judgement));
        judgement
    }
}

/// Judges one key.
pub(super) fn check(operations: &[&Operation], judgement: &mut Judgement) {
    let of = |f: &'static str| operations.iter().copied().filter(move |operation| operation.f == f);
    let adds: HashMap<i64, &Operation> =
        of("add").filter_map(|add| Some((add.input[1].as_i64()?, add))).collect();
    let mut takers: HashMap<i64, &Operation> = HashMap::new();
    for pop in of("pop").filter(|pop| pop.is_ok()) {
        let Some(element) = pop.output[1].as_i64() else { continue };
        match adds.get(&element) {
            None => judgement.found("phantom value", format!("nobody added {element}"), &[pop.start]),
            Some(add) if !add.may_have_happened() => {
                let detail = format!("{element} was taken, but its addition failed");
                judgement.found("G1a (aborted read)", detail, &[pop.start, add.start]);
            }
            Some(_) => {}
        }
        if let Some(first) = takers.insert(element, pop) {
            judgement.found("duplicate pop", format!("{element} was taken twice"), &[first.start, pop.start]);
        }
    }
    let unknown = of("pop").filter(|pop| !pop.is_ok() && pop.may_have_happened()).count();
    for read in of("read").filter(|read| read.is_ok()) {
        let present: Vec<i64> =
            read.output[1].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        for element in &present {
            if let Some(pop) = takers.get(element).filter(|pop| pop.end < read.start) {
                let detail = format!("{element} is there after it was taken");
                judgement.found("resurrected value", detail, &[read.start, pop.start]);
            }
        }
        let is_missing = |(element, add): &(&i64, &&Operation)| {
            add.is_ok() && add.end < read.start && !takers.contains_key(element) && !present.contains(element)
        };
        let missing: Vec<i64> = adds.iter().filter(is_missing).map(|(element, _)| *element).collect();
        // An operation with an unknown outcome may have taken one.
        if missing.len() > unknown {
            let detail = format!("{missing:?} were added, and nobody has taken them");
            judgement.found("lost write", detail, &[read.start]);
        }
    }
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
        let add = |kind| vec![(1, Invoke, "add", json!([1, 5])), (1, kind, "add", json!([1, 5]))];
        let pop = |kind: Kind, element: Value| {
            vec![(2, Invoke, "pop", json!([1, null])), (2, kind, "pop", json!([1, element]))]
        };
        let read =
            |values: Value| vec![(3, Invoke, "read", json!([1, null])), (3, Ok, "read", json!([1, values]))];
        for (name, parts) in [
            (None, vec![pop(Ok, json!(null)), add(Ok), pop(Ok, json!(5)), read(json!([]))]),
            (None, vec![add(Ok), pop(Info, json!(null)), read(json!([]))]),
            (None, vec![add(Info), read(json!([]))]),
            (Some("duplicate pop"), vec![add(Ok), pop(Ok, json!(5)), pop(Ok, json!(5))]),
            (Some("lost write"), vec![add(Ok), read(json!([]))]),
            (Some("lost write"), vec![add(Ok), pop(Fail, json!(null)), read(json!([]))]),
            (Some("resurrected value"), vec![add(Ok), pop(Ok, json!(5)), read(json!([5]))]),
            (Some("G1a (aborted read)"), vec![add(Fail), pop(Ok, json!(5))]),
            (Some("phantom value"), vec![pop(Ok, json!(6))]),
        ] {
            let judgement = Pop::default().check(&operations(&history(&parts.concat())), Instant::now());
            assert_eq!(judgement.names().into_iter().next(), name, "{parts:?}");
        }
    }
}

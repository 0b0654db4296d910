//! Transactions of one to four appends to lists and reads of them: RPUSH and LRANGE in MULTI; a single step
//! without MULTI.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload};
use crate::{
    check::{Judgement, append},
    client::{Connection, Failure, Reply},
    history::Operation,
};

/// The default number of keys in use at a time, and how many steps are generated for all of them before the
/// next keys.
const KEYS: u64 = 3;
const GENERATION: u64 = 360;

pub(crate) struct Append {
    keys: u64,
    steps: AtomicU64,
}

impl Default for Append {
    fn default() -> Append {
        Append::with_keys(KEYS)
    }
}

impl Append {
    /// With this many keys in use at a time.
    pub(crate) fn with_keys(keys: u64) -> Append {
        Append { keys, steps: AtomicU64::default() }
    }
}

fn command(step: &Value) -> Vec<String> {
    let key = format!("append:{}", step[1]);
    match step[0].as_str() {
        Some(":append") => vec!["RPUSH".into(), key, step[2].to_string()],
        _ => vec!["LRANGE".into(), key, "0".into(), "-1".into()],
    }
}

impl Workload for Append {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let steps = (0..random.u8(1..=4)).map(|_| {
            let number = self.steps.fetch_add(1, Ordering::Relaxed);
            let key = number / GENERATION * self.keys + random.u64(..self.keys);
            if random.bool() { json!([":append", key, number]) } else { json!([":r", key, null]) }
        });
        ("txn", steps.collect())
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let steps = (0..random.u8(1..=4)).map(|_| {
            let number = self.steps.fetch_add(1, Ordering::Relaxed);
            json!([":r", number / GENERATION * self.keys + random.u64(..self.keys), null])
        });
        Some(("txn", steps.collect()))
    }

    fn invoke(&self, connection: &mut Connection, _: &str, value: &Value) -> Result<Value, Ended> {
        let steps = value.as_array().cloned().unwrap_or_default();
        let replies = match &steps[..] {
            [step] => vec![connection.call(&command(step))?],
            steps => {
                let commands: Vec<_> = steps.iter().map(command).collect();
                connection.transaction(&commands)?.ok_or_else(|| Failure::Info("EXEC gave nil".into()))?
            }
        };
        let mut done = steps;
        for (step, reply) in done.iter_mut().zip(&replies) {
            match (step[0].as_str(), reply) {
                (Some(":append"), Reply::Integer(_)) => {}
                (Some(":r"), Reply::Array(_)) => step[2] = json!(reply.numbers()?),
                _ => return Err(reply.unexpected().into()),
            }
        }
        Ok(Value::Array(done))
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = (self.steps.load(Ordering::Relaxed) / GENERATION + 1) * self.keys;
        (0..keys).map(|key| ("txn", json!([[":r", key, null]]))).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        append::check(operations)
    }
}

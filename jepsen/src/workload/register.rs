//! Registers: GET, SET, and compare-and-set by SET IFEQ (even values) and by WATCH, GET, MULTI, SET (odd
//! values).

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, reads_of_keys, words};
use crate::{
    check::{Judgement, register},
    client::{Connection, Failure, Outcome},
    history::Operation,
};

/// The default number of keys in use at a time, and how many operations are generated for all of them before
/// the next.
const KEYS: u64 = 4;
const GENERATION: u64 = 800;

pub(crate) struct Register {
    keys: u64,
    /// The number of operations generated; also the values written, so that each is written only once.
    count: AtomicU64,
    /// The last known value of each key, so that compare-and-set can succeed.
    known: Mutex<HashMap<u64, i64>>,
}

impl Default for Register {
    fn default() -> Register {
        Register::with_keys(KEYS)
    }
}

impl Register {
    /// With this many keys in use at a time.
    pub(crate) fn with_keys(keys: u64) -> Register {
        Register { keys, count: AtomicU64::default(), known: Mutex::default() }
    }

    fn learn(&self, key: u64, value: Option<i64>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(value.map(|value| (key, value)));
    }

    fn known(&self, key: u64) -> Option<i64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }
}

impl Workload for Register {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * self.keys + random.u64(..self.keys);
        match (random.u8(..10), self.known(key)) {
            (0..4, _) => ("read", json!([key, null])),
            (4..7, Some(old)) => ("cas", json!([key, [old, count]])),
            _ => ("write", json!([key, count])),
        }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * self.keys + random.u64(..self.keys);
        Some(("read", json!([key, null])))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let number = value[0].as_u64().unwrap_or_default();
        let key = format!("register:{number}");
        match f {
            "read" => {
                let found = connection.call(&["GET", &key])?.number()?;
                self.learn(number, found);
                // For Knossos, null is a read that matches any value.
                Ok(json!([number, found.map_or_else(|| ":missing".into(), Value::from)]))
            }
            "write" => {
                connection.call(&["SET", &key, &value[1].to_string()])?;
                self.learn(number, value[1].as_i64());
                Ok(value.clone())
            }
            _ => {
                let (old, new) = (value[1][0].as_i64(), value[1][1].as_i64().unwrap_or_default());
                let found = if new % 2 == 0 {
                    if_equal(connection, &key, value)?
                } else {
                    watch(connection, &key, value)?
                };
                self.learn(number, if found == old { Some(new) } else { found });
                if found == old {
                    return Ok(value.clone());
                }
                Err(Ended::Otherwise(json!([number, value[1], found])))
            }
        }
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        reads_of_keys((self.count.load(Ordering::Relaxed) / GENERATION + 1) * self.keys)
    }

    fn check(&self, operations: &[Operation], deadline: Instant) -> Judgement {
        register::check(operations, deadline)
    }
}

/// Both return the value that was found; if it is the expected one, it was replaced.
fn if_equal(connection: &mut Connection, key: &str, value: &Value) -> Outcome<Option<i64>> {
    let (old, new) = (value[1][0].to_string(), value[1][1].to_string());
    connection.call(&["SET", key, &new, "IFEQ", &old, "GET"])?.number()
}

fn watch(connection: &mut Connection, key: &str, value: &Value) -> Outcome<Option<i64>> {
    connection.call(&["WATCH", key]).map_err(Failure::harmless)?;
    let found = connection.call(&["GET", key]).and_then(|reply| reply.number()).map_err(Failure::harmless)?;
    if found != value[1][0].as_i64() {
        connection.call(&["UNWATCH"]).map_err(Failure::harmless)?;
        return Ok(found);
    }
    match connection.transaction(&[words(&["SET", key, &value[1][1].to_string()])])? {
        Some(_) => Ok(found),
        None => Err(Failure::Fail("a watched key has changed".into())),
    }
}

//! Growing sets: SADD and SMEMBERS.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, reads_of_keys};
use crate::{
    check::{Judgement, growth},
    client::Connection,
    history::Operation,
};

/// How many sets are in use at a time, and how many operations are generated for all of them before the next.
const KEYS: u64 = 2;
const GENERATION: u64 = 400;

#[derive(Default)]
pub(crate) struct Set {
    count: AtomicU64,
}

impl Workload for Set {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        if random.u8(..3) > 0 { ("add", json!([key, count])) } else { ("read", json!([key, null])) }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        Some(("read", json!([key, null])))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let key = format!("set:{}", value[0]);
        if f == "add" {
            return match connection.call(&["SADD", &key, &value[1].to_string()])?.number()? {
                Some(1) => Ok(value.clone()),
                other => Err(crate::client::Failure::Info(format!("SADD gave {other:?}")).into()),
            };
        }
        let mut elements = connection.call(&["SMEMBERS", &key])?.numbers()?;
        elements.sort_unstable();
        Ok(json!([value[0], elements]))
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        reads_of_keys((self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS)
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        growth::check(operations)
    }
}

//! Reads at every level: lists that grow by RPUSH, read by LRANGE on any node: linearizable, by lease, with
//! bounded staleness, stale, and stale after a token that another connection took on another node.
//!
//! `append` has `{key, element}` and returns its `length` too; a read has `{key}`, with `ms` or `after`, and
//! returns the `list`. Both return the `connection`, and the `token` if one was taken.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde_json::{Value, json};

use super::{Ended, Workload, words};
use crate::{
    check::{Judgement, levels},
    client::{Connection, Outcome, Reply},
    history::Operation,
};

/// How many lists are in use at a time, and how many operations are generated for all of them before the
/// next.
const KEYS: u64 = 3;
const GENERATION: u64 = 300;
/// The bounds that are used: both less and more than a round trip takes during a fault.
const BOUNDS_MS: &[u64] = &[20, 200, 1_000];
/// This many of the newest tokens are used by other clients.
const TOKENS: usize = 8;

#[derive(Default)]
pub(crate) struct ReadLevels {
    count: AtomicU64,
    tokens: Mutex<VecDeque<String>>,
}

impl ReadLevels {
    /// Takes a token on a connection, for other clients. It changes nothing, so a failure is ignored.
    fn take_token(&self, connection: &mut Connection) -> Option<String> {
        let Ok(Reply::Text(token)) = connection.call(&["CLIENT", "CONSISTENCY", "TOKEN"]) else {
            return None;
        };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.truncate(TOKENS - 1);
        tokens.push_front(token.clone());
        Some(token)
    }

    fn token(&self, random: &mut fastrand::Rng) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(random.usize(..TOKENS)).or(tokens.front()).cloned()
    }

    fn read(&self, connection: &mut Connection, f: &str, value: &Value) -> Outcome<Value> {
        if let Some(token) = value["after"].as_str() {
            connection.call(&["CLIENT", "CONSISTENCY", "AFTER", token])?;
        }
        let level = match f {
            "read-bounded" => words(&["BOUNDED", &value["ms"].to_string()]),
            "read-lease" => words(&["LEASE"]),
            "read-stale" | "read-after" => words(&["STALE"]),
            _ => words(&["LINEARIZABLE"]),
        };
        let key = format!("levels:{}", value["key"]);
        let command = [words(&["CONSISTENCY"]), level, words(&["LRANGE", &key, "0", "-1"])].concat();
        let mut done = value.clone();
        done["list"] = json!(connection.call(&command)?.numbers()?);
        Ok(done)
    }
}

/// A read at a random level; after the token, if there is one.
fn read_of(key: u64, random: &mut fastrand::Rng, token: Option<String>) -> (&'static str, Value) {
    match (random.u8(..6), token) {
        (0, _) => ("read-linearizable", json!({"key": key})),
        (1, _) => ("read-lease", json!({"key": key})),
        (2, _) => {
            let ms = random.choice(BOUNDS_MS).copied().unwrap_or_default();
            ("read-bounded", json!({"key": key, "ms": ms}))
        }
        (4.., Some(token)) => ("read-after", json!({"key": key, "after": token})),
        _ => ("read-stale", json!({"key": key})),
    }
}

impl Workload for ReadLevels {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        match random.u8(..10) {
            0..4 => ("append", json!({"key": key, "element": count})),
            _ => {
                let token = self.token(random);
                read_of(key, random, token)
            }
        }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        let token = self.token(random);
        Some(read_of(key, random, token))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let mut done = if f == "append" {
            let key = format!("levels:{}", value["key"]);
            let mut done = value.clone();
            done["length"] =
                json!(connection.call(&["RPUSH", &key, &value["element"].to_string()])?.number()?);
            done
        } else {
            self.read(connection, f, value)?
        };
        done["connection"] = json!(connection.id);
        done["token"] = json!(self.take_token(connection));
        Ok(done)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = (self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS;
        (0..keys).map(|key| ("read-linearizable", json!({"key": key}))).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        levels::check(operations)
    }
}

//! The change feed: writes to strings and lists, and readers that resume on any node from their last index,
//! after unsubscribing or after their connection was cut. At the end every node replays its whole history.
//!
//! `set`, `push`, `del` and `txn` have `{keys, element}`, a set sometimes `px` too; they return the `span`:
//! two log indexes between which they were applied, taken from tokens before and after. `watch` and `replay`
//! have `{prefix, from}`, and whether the end `is_cut`. They return where they `begin`, the `messages` as
//! `[index, events]`, and the index `until` which everything was received; or where the history begins, if it
//! is `compacted`. `read` has `{keys}` and returns the `value`.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Ended, Workload, listen, words};
use crate::{
    check::{Judgement, feed},
    client::{Connection, Failure, Outcome, Reply},
    history::Operation,
};

/// How many strings and lists are in use at a time, and how many operations are generated for them before the
/// next.
const KEYS: u64 = 4;
const GENERATION: u64 = 400;
/// The TTL of some strings.
const PX_MS: u64 = 300;
/// The filters of the readers, and how long they read at a time.
const PREFIXES: &[&str] = &["feed:", "feed:", "feed:string:"];
const WATCHED: Duration = Duration::from_millis(250);
/// How long a node may take to replay its history.
const REPLAYED: Duration = Duration::from_secs(5);
/// One reading in this many ends by cutting its connection.
const CUT_ODDS: u32 = 2;
/// One reading in this many begins further back, by at most this many indexes.
const BACK_ODDS: u32 = 8;
const BACK_MAX: u64 = 2_000;
/// How often a reader tries to find a node whose history reaches back far enough, before it resumes at a
/// later index.
const COMPACTED_MAX: u32 = 5;

/// The position of a reader.
#[derive(Clone, Copy, Default)]
struct Reader {
    last: Option<u64>,
    is_reading: bool,
    /// How many nodes in a row had too short a history.
    compacted: u32,
}

#[derive(Default)]
pub(crate) struct Feed {
    count: AtomicU64,
    readers: Mutex<BTreeMap<u64, Reader>>,
}

fn string(key: u64) -> String {
    format!("feed:string:{key}")
}

fn list(key: u64) -> String {
    format!("feed:list:{key}")
}

/// The log index of a token; None if none was received, which is harmless.
fn position(connection: &mut Connection) -> Option<u64> {
    let Ok(Reply::Text(token)) = connection.call(&["CLIENT", "CONSISTENCY", "TOKEN"]) else { return None };
    token.rsplit_once('-')?.1.parse().ok()
}

fn value(reply: &Reply) -> Value {
    match reply {
        Reply::Nil => Value::Null,
        Reply::Integer(integer) => json!(integer),
        Reply::Text(text) | Reply::Error(text) => json!(text),
        Reply::Array(parts) => parts.iter().map(value).collect(),
    }
}

fn is_compacted(failure: &Failure) -> Option<u64> {
    let Failure::Fail(why) = failure else { return None };
    why.strip_prefix("COMPACTED the history begins after index ")?.split(',').next()?.parse().ok()
}

fn write(connection: &mut Connection, f: &str, value: &Value) -> Outcome<()> {
    let keys: Vec<&str> = value["keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let element = value["element"].to_string();
    match f {
        "txn" => {
            let sets: Vec<_> = keys.iter().map(|key| words(&["SET", key, &element])).collect();
            connection.transaction(&sets)?.ok_or_else(|| Failure::Info("EXEC gave nil".into()))?;
        }
        "push" => drop(connection.call(&["RPUSH", keys[0], &element])?),
        "del" => drop(connection.call(&["DEL", keys[0]])?),
        _ => {
            let mut command = words(&["SET", keys[0], &element]);
            if let Some(px) = value["px"].as_u64() {
                command.extend(["PX".into(), px.to_string()]);
            }
            connection.call(&command)?;
        }
    }
    Ok(())
}

/// Reads from an index on, for a while or up to the index `enough`.
fn read_on(
    connection: &mut Connection,
    input: &Value,
    duration: Duration,
    enough: Option<u64>,
) -> Outcome<Value> {
    let mut done = input.clone();
    let prefix = input["prefix"].as_str().unwrap_or_default();
    let mut command = words(&["FEED.SUBSCRIBE", "PREFIX", prefix, "VALUES"]);
    command.extend(input["from"].as_u64().into_iter().flat_map(|from| ["FROM".into(), from.to_string()]));
    let begin = match connection.call(&command) {
        Ok(reply) => reply.number()?,
        Err(failure) => {
            done["compacted"] = json!(is_compacted(&failure).ok_or_else(|| failure.harmless())?);
            return Ok(done);
        }
    };
    let mut messages: Vec<Value> = Vec::new();
    let mut compacted = Value::Null;
    let goodbye = (input["is_cut"] == false).then_some("FEED.UNSUBSCRIBE");
    let last = listen(connection, duration, goodbye, |parts| {
        match parts {
            [_, _, Reply::Error(why)] => compacted = json!(is_compacted(&Failure::Fail(why.clone()))),
            [_, index, events] => messages.push(json!([index.number()?, value(events)])),
            _ => return Err(Reply::Array(parts.to_vec()).unexpected()),
        }
        let told = messages.last().and_then(|message| message[0].as_u64());
        Ok(compacted.is_null() && (enough.is_none() || told < enough))
    });
    // Reading changes nothing.
    let last = last.map_err(Failure::harmless)?.and_then(|reply| reply.number().ok().flatten());
    let told = messages.last().and_then(|message| message[0].as_i64()).or(begin);
    done["begin"] = json!(begin);
    done["until"] = json!(last.or(told));
    done["messages"] = Value::Array(messages);
    done["compacted"] = compacted;
    Ok(done)
}

impl Feed {
    fn readers(&self) -> MutexGuard<'_, BTreeMap<u64, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read, if this reader is not reading already.
    fn begin(&self, random: &mut fastrand::Rng) -> Option<Value> {
        let number = random.u64(..PREFIXES.len() as u64);
        let mut readers = self.readers();
        let reader = readers.entry(number).or_default();
        if reader.is_reading {
            return None;
        }
        reader.is_reading = true;
        let is_back = random.u32(..BACK_ODDS) == 0;
        let from =
            reader.last.map(|last| if is_back { last.saturating_sub(random.u64(..BACK_MAX)) } else { last });
        let is_cut = random.u32(..CUT_ODDS) == 0;
        let prefix = PREFIXES[number as usize];
        Some(json!({"reader": number, "prefix": prefix, "from": from, "is_cut": is_cut}))
    }

    fn watch(&self, connection: &mut Connection, input: &Value) -> Outcome<Value> {
        let done = read_on(connection, input, WATCHED, None);
        let mut readers = self.readers();
        let reader = readers.entry(input["reader"].as_u64().unwrap_or_default()).or_default();
        reader.is_reading = false;
        if let Ok(done) = &done {
            reader.last = done["until"].as_u64().or(reader.last);
            let oldest = done["compacted"].as_u64();
            reader.compacted = if oldest.is_some() { reader.compacted + 1 } else { 0 };
            if reader.compacted > COMPACTED_MAX {
                *reader = Reader { last: oldest, ..Reader::default() };
            }
        }
        done
    }
}

/// The whole history of a node: from the beginning, or from its oldest index.
fn replay(connection: &mut Connection, input: &Value) -> Outcome<Value> {
    let enough = position(connection);
    let done = read_on(connection, input, REPLAYED, enough)?;
    match done["compacted"].as_u64() {
        None => Ok(done),
        Some(oldest) => {
            let input = json!({"prefix": input["prefix"], "from": oldest});
            read_on(connection, &input, REPLAYED, enough)
        }
    }
}

impl Workload for Feed {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        if random.u8(..25) == 0
            && let Some(reading) = self.begin(random)
        {
            return ("watch", reading);
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let first = count / GENERATION * KEYS;
        let key = first + random.u64(..KEYS);
        match random.u8(..10) {
            0..3 => ("push", json!({"keys": [list(key)], "element": count})),
            3 => ("del", json!({"keys": [string(key)], "element": count})),
            4 => ("set", json!({"keys": [string(key)], "element": count, "px": PX_MS})),
            5 | 6 => {
                let other = first + (key - first + random.u64(1..KEYS)) % KEYS;
                ("txn", json!({"keys": [string(key), string(other)], "element": count}))
            }
            7 => ("read", json!({"keys": [if random.bool() { string(key) } else { list(key) }]})),
            _ => ("set", json!({"keys": [string(key)], "element": count})),
        }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        if let Some(reading) = self.begin(random) {
            return Some(("watch", reading));
        }
        let first = self.count.load(Ordering::Relaxed) / GENERATION * KEYS;
        let key = first + random.u64(..KEYS);
        Some(("read", json!({"keys": [if random.bool() { string(key) } else { list(key) }]})))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let mut done = value.clone();
        match f {
            "watch" => return Ok(self.watch(connection, value)?),
            "replay" => return Ok(replay(connection, value)?),
            "read" => {
                let key = value["keys"][0].as_str().unwrap_or_default();
                let command = match key.starts_with("feed:list:") {
                    true => words(&["LRANGE", key, "0", "-1"]),
                    false => words(&["GET", key]),
                };
                done["value"] = self::value(&connection.call(&command)?);
            }
            _ => {
                let before = position(connection);
                if connection.is_broken {
                    return Err(Failure::Fail("the connection broke before".into()).into());
                }
                write(connection, f, value)?;
                done["span"] = json!([before, position(connection)]);
            }
        }
        Ok(done)
    }

    fn settles_within(&self) -> Duration {
        Duration::from_millis(PX_MS * 2)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = 0..(self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS;
        let reads = keys.flat_map(|key| [string(key), list(key)]).map(|key| ("read", json!({"keys": [key]})));
        reads.chain([("replay", json!({"prefix": PREFIXES[0], "from": 0}))]).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        feed::check(operations)
    }
}

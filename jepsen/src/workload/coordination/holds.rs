//! Locks and elections by themselves: grants, renewals and releases as separate operations, and writes with
//! FENCE, also by former holders. In elections leaders also proclaim values, and clients read and observe the
//! leader.
//!
//! `acquire` has `{key, owner, ttl_ms, wait_ms}` and returns the `token`. `renew`, `release`, `proclaim` and
//! `write` have `{key, owner, token}`, the last two an `element` too. `read` returns the `list` that was
//! written, `leader` `[owner, token, element]` or nil, `observe` the `messages`, each in that form, and
//! resumes `from` a token.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::workload::{Ended, Workload, listen};
use crate::{
    check::{Judgement, election, holds},
    client::{Connection, Failure, Outcome, Reply},
    history::Operation,
};

/// How many locks are in use at a time, and how many operations are generated for all of them before the
/// next.
const KEYS: u64 = 2;
const GENERATION: u64 = 400;
const TTLS_MS: &[u64] = &[150, 500, 2_000];
const WAITS_MS: &[u64] = &[0, 200];
/// This many of the last grants of a lock are used, so that former holders try too.
const GRANTS: usize = 4;
/// How many clients observe an election, one at a time, and how long each time.
const OBSERVERS: u64 = 2;
const OBSERVED: Duration = Duration::from_millis(250);
/// One observation in this many ends by cutting its connection.
const CUT_ODDS: u32 = 3;

#[derive(Default)]
struct State {
    /// The last grants by key, as `{key, owner, token}`.
    grants: BTreeMap<u64, Vec<Value>>,
    /// The token from which each observer resumes, by key and observer. One that overlaps with itself starts
    /// over.
    observers: BTreeMap<(u64, u64), Option<u64>>,
}

impl State {
    fn begin_to_observe(&mut self, key: u64, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let observer = random.u64(..OBSERVERS);
        let from = self.observers.insert((key, observer), None).flatten();
        let is_cut = random.u32(..CUT_ODDS) == 0;
        ("observe", json!({"key": key, "observer": observer, "from": from, "is_cut": is_cut}))
    }
}

pub(crate) struct Holds {
    is_election: bool,
    count: AtomicU64,
    state: Mutex<State>,
}

impl Holds {
    pub(crate) fn of_locks() -> Holds {
        Holds { is_election: false, count: AtomicU64::new(0), state: Mutex::default() }
    }

    pub(crate) fn of_elections() -> Holds {
        Holds { is_election: true, ..Holds::of_locks() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, value: &Value) -> String {
        format!("{}:{}", if self.is_election { "election" } else { "mutex" }, value["key"])
    }

    /// Acquires it; the grant is then used by all clients.
    fn acquire(&self, connection: &mut Connection, value: &Value) -> Result<Value, Ended> {
        let (ttl_ms, wait_ms) = (value["ttl_ms"].to_string(), value["wait_ms"].to_string());
        let (key, owner) = (self.key(value), value["owner"].to_string());
        let name = if self.is_election { "ELECT.CAMPAIGN" } else { "LOCK.ACQUIRE" };
        let mut command = vec![name, &key, &owner, "PX", &ttl_ms, "WAIT", &wait_ms];
        if self.is_election {
            // As if it had been proclaimed.
            command.extend(["VALUE", &owner]);
        }
        let token = match connection.call(&command)? {
            Reply::Array(fields) if fields.len() == 4 => fields[1].number()?,
            Reply::Nil => return Err(Ended::Otherwise(value.clone())),
            other => return Err(other.unexpected().into()),
        };
        let grant = json!({"key": value["key"], "owner": value["owner"], "token": token});
        let mut state = self.state();
        let grants = state.grants.entry(value["key"].as_u64().unwrap_or_default()).or_default();
        grants.insert(0, grant);
        grants.truncate(GRANTS);
        let mut done = value.clone();
        done["token"] = json!(token);
        Ok(done)
    }

    /// An operation reserved to the holder.
    fn act(&self, connection: &mut Connection, f: &str, value: &Value) -> Outcome<Reply> {
        let (key, owner) = (self.key(value), value["owner"].to_string());
        let (token, element) = (value["token"].to_string(), value["element"].to_string());
        let ttl_ms = value["ttl_ms"].to_string();
        let list = format!("written:{}", value["key"]);
        let [renew, release] = match self.is_election {
            true => ["ELECT.RENEW", "ELECT.RESIGN"],
            false => ["LOCK.RENEW", "LOCK.RELEASE"],
        };
        match f {
            "renew" => connection.call(&[renew, &key, &owner, &token, "PX", &ttl_ms]),
            "release" => connection.call(&[release, &key, &owner, &token]),
            "proclaim" => connection.call(&["ELECT.PROCLAIM", &key, &owner, &token, &element]),
            _ => connection.call(&["FENCE", &key, &token, "RPUSH", &list, &element]),
        }
    }

    fn observe(&self, connection: &mut Connection, value: &Value) -> Outcome<Value> {
        let key = self.key(value);
        let mut command = vec!["ELECT.OBSERVE".to_owned(), key];
        command.extend(value["from"].as_u64().into_iter().flat_map(|from| ["FROM".into(), from.to_string()]));
        let mut done = value.clone();
        let observed = connection.call(&command).and_then(|_| messages(connection, value["is_cut"] == true));
        let (messages, is_compacted) = match observed {
            Ok(observed) => observed,
            Err(failure) => {
                let from = value["from"].as_u64().filter(|_| !is_compacted(&failure));
                self.leave(value, from);
                return Err(failure.harmless());
            }
        };
        let last = messages.iter().rev().find_map(|message| message[1].as_u64());
        let last = last.or(value["from"].as_u64()).filter(|_| !is_compacted);
        self.leave(value, last);
        done["messages"] = Value::Array(messages);
        done["is_compacted"] = json!(is_compacted);
        Ok(done)
    }

    /// Sets where the observer resumes.
    fn leave(&self, value: &Value, from: Option<u64>) {
        let key = value["key"].as_u64().zip(value["observer"].as_u64());
        key.into_iter().for_each(|key| {
            self.state().observers.insert(key, from);
        });
    }
}

fn is_compacted(failure: &Failure) -> bool {
    matches!(failure, Failure::Fail(why) if why.starts_with("COMPACTED"))
}

/// A leader as `[owner, token, element]`.
fn leader(candidate: &Reply, epoch: &Reply, value: &Reply) -> Outcome<Value> {
    Ok(json!([candidate.number()?, epoch.number()?, value.number()?]))
}

/// The messages that an observer receives for a while; and whether it was told that it missed something.
fn messages(connection: &mut Connection, is_cut: bool) -> Outcome<(Vec<Value>, bool)> {
    let (mut messages, mut is_compacted) = (Vec::new(), false);
    let goodbye = (!is_cut).then_some("ELECT.UNOBSERVE");
    listen(connection, OBSERVED, goodbye, |parts| {
        match parts {
            [_, _, Reply::Nil] => messages.push(Value::Null),
            [_, _, Reply::Error(_)] => is_compacted = true,
            [_, _, Reply::Array(it)] if it.len() == 3 => messages.push(leader(&it[0], &it[1], &it[2])?),
            _ => return Err(Reply::Array(parts.to_vec()).unexpected()),
        }
        Ok(!is_compacted)
    })?;
    Ok((messages, is_compacted))
}

impl Workload for Holds {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let key = count / GENERATION * KEYS + random.u64(..KEYS);
        let mut state = self.state();
        let grants = state.grants.get(&key).map_or(&[][..], Vec::as_slice);
        // The newest grant most often.
        let grant = grants.get(random.usize(..GRANTS)).or(grants.first()).cloned();
        let kind = random.u8(if self.is_election { 0..14 } else { 0..10 });
        let f = match kind {
            3..6 => "write",
            6 | 7 => "renew",
            8 => "release",
            12 => "proclaim",
            9 => return ("read", json!({"key": key})),
            10 | 11 => return ("leader", json!({"key": key})),
            13 => return state.begin_to_observe(key, random),
            _ => "acquire",
        };
        let ttl_ms = random.choice(TTLS_MS).copied();
        match grant {
            Some(mut grant) if f != "acquire" => {
                match f {
                    "write" | "proclaim" => grant["element"] = json!(count),
                    "renew" => grant["ttl_ms"] = json!(ttl_ms),
                    _ => {}
                }
                (f, grant)
            }
            _ => {
                let wait_ms = random.choice(WAITS_MS).copied();
                let value = json!({"key": key, "owner": count, "ttl_ms": ttl_ms, "wait_ms": wait_ms});
                ("acquire", value)
            }
        }
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let key = self.count.fetch_add(1, Ordering::Relaxed) / GENERATION * KEYS + random.u64(..KEYS);
        Some(match random.u8(if self.is_election { 0..4 } else { 0..1 }) {
            0 => ("read", json!({"key": key})),
            1 => self.state().begin_to_observe(key, random),
            _ => ("leader", json!({"key": key})),
        })
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let mut done = value.clone();
        match f {
            "acquire" => return self.acquire(connection, value),
            "read" => {
                let list = format!("written:{}", value["key"]);
                done["list"] = json!(connection.call(&["LRANGE", &list, "0", "-1"])?.numbers()?);
            }
            "leader" => {
                done["leader"] = match connection.call(&["ELECT.LEADER", &self.key(value)])? {
                    Reply::Nil => Value::Null,
                    Reply::Array(it) if it.len() == 8 => leader(&it[1], &it[3], &it[5])?,
                    other => return Err(other.unexpected().into()),
                };
            }
            "observe" => done = self.observe(connection, value)?,
            _ => {
                self.act(connection, f, value)?;
            }
        }
        Ok(done)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = (self.count.load(Ordering::Relaxed) / GENERATION + 1) * KEYS;
        let fs: &[&'static str] = if self.is_election { &["read", "leader"] } else { &["read"] };
        (0..keys).flat_map(|key| fs.iter().map(move |f| (*f, json!({"key": key})))).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        let mut judgement = holds::check(operations);
        if self.is_election {
            judgement.findings.extend(election::check(operations).findings);
        }
        judgement
    }
}

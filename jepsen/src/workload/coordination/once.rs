//! Exactly once: INCR, RPUSH and SET GET with ONCE in sessions. Unanswered commands are retried, by any
//! client on any node; so are sometimes answered ones, and those of sessions that have expired.
//!
//! `open` has `{session, ttl_ms}`. `incr`, `push` and `set` have `{session, number, key, element}` and return
//! the `reply` too. `read` has `{kind, key}` and returns the `value`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

use crate::workload::{Ended, Workload};
use crate::{
    check::{Judgement, once},
    client::{Connection, Failure, Outcome},
    history::Operation,
};

/// How many sessions write to the same keys, sequentially or concurrently.
const SESSIONS_PER_KEY: u64 = 3;
/// How many commands a session has: fewer than the replies that it stores, so none may be forgotten.
const COMMANDS: usize = 150;
/// How many sessions are in use at a time.
const SESSIONS: usize = 3;
/// The TTLs of sessions: some sessions expire in every run, even if nothing is slow.
const TTLS_MS: &[u64] = &[300, 1_000, 3_600_000];
const KINDS: &[&str] = &["incr", "push", "set"];

struct Command {
    f: &'static str,
    value: Value,
    is_answered: bool,
    is_under_way: bool,
}

#[derive(Default)]
struct Session {
    /// By number, from 1.
    commands: Vec<Command>,
    is_over: bool,
}

#[derive(Default)]
struct State {
    opened: u64,
    elements: u64,
    /// The sessions known to have been created.
    sessions: BTreeMap<u64, Session>,
}

#[derive(Default)]
pub(crate) struct Once(Mutex<State>);

impl State {
    /// The sessions that accept more commands.
    fn open(&self) -> Vec<u64> {
        let is_open = |session: &Session| !session.is_over && session.commands.len() < COMMANDS;
        self.sessions.iter().filter(|(_, session)| is_open(session)).map(|(session, _)| *session).collect()
    }

    /// An unanswered command that no client is trying at this moment.
    fn unanswered(&self) -> Option<(u64, usize)> {
        self.sessions.iter().filter(|(_, session)| !session.is_over).find_map(|(number, session)| {
            let is_open = |command: &Command| !command.is_answered && !command.is_under_way;
            Some((*number, session.commands.iter().position(is_open)?))
        })
    }

    fn answered(&self, random: &mut fastrand::Rng) -> Option<(u64, usize)> {
        let (number, session) = random.choice(self.sessions.iter().rev().take(2 * SESSIONS))?;
        let at = random.choice(0..session.commands.len())?;
        // Also an unanswered one, if its session is over: it must not be applied any more.
        (session.is_over || session.commands[at].is_answered).then_some((*number, at))
    }

    fn ask(&mut self, (session, at): (u64, usize)) -> Option<(&'static str, Value)> {
        let command = self.sessions.get_mut(&session)?.commands.get_mut(at)?;
        command.is_under_way = true;
        Some((command.f, command.value.clone()))
    }

    fn new_command(&mut self, session: u64, random: &mut fastrand::Rng) -> (&'static str, Value) {
        self.elements += 1;
        let f = random.choice(KINDS).copied().unwrap_or("incr");
        let (key, element) = (session / SESSIONS_PER_KEY, self.elements);
        let commands = &mut self.sessions.entry(session).or_default().commands;
        let value = json!({"session": session, "number": commands.len() + 1, "key": key, "element": element});
        commands.push(Command { f, value: value.clone(), is_answered: false, is_under_way: true });
        (f, value)
    }
}

fn key(kind: &str, value: &Value) -> String {
    format!("once:{kind}:{}", value["key"])
}

/// One attempt. The steps before ONCE change nothing that matters.
fn attempt(connection: &mut Connection, f: &str, value: &Value) -> Outcome<Option<i64>> {
    let session = format!("session:{}", value["session"]);
    connection.call(&["CLIENT", "SESSION", &session]).map_err(Failure::harmless)?;
    let (number, key) = (value["number"].to_string(), key(f, value));
    let element = value["element"].to_string();
    let command: &[&str] = match f {
        "incr" => &["ONCE", &number, "INCR", &key],
        "push" => &["ONCE", &number, "RPUSH", &key, &element],
        _ => &["ONCE", &number, "SET", &key, &element, "GET"],
    };
    connection.call(command)?.number()
}

fn read(connection: &mut Connection, value: &Value) -> Outcome<Value> {
    let kind = value["kind"].as_str().unwrap_or_default();
    let key = key(kind, value);
    if kind == "push" {
        return Ok(json!(connection.call(&["LRANGE", &key, "0", "-1"])?.numbers()?));
    }
    Ok(json!(connection.call(&["GET", &key])?.number()?))
}

impl Once {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opens(&self, connection: &mut Connection, value: &Value) -> Outcome<()> {
        let (session, ttl_ms) = (format!("session:{}", value["session"]), value["ttl_ms"].to_string());
        connection.call(&["CLIENT", "SESSION", &session, "NEW", "PX", &ttl_ms])?;
        self.state().sessions.insert(value["session"].as_u64().unwrap_or_default(), Session::default());
        Ok(())
    }

    fn learn(&self, value: &Value, outcome: &Outcome<Option<i64>>) {
        let mut state = self.state();
        let number = value["session"].as_u64().unwrap_or_default();
        let Some(session) = state.sessions.get_mut(&number) else { return };
        session.is_over |= matches!(outcome, Err(Failure::Fail(why)) if why.starts_with("NOSESSION"));
        if let Some(command) = session.commands.iter_mut().find(|command| command.value == *value) {
            command.is_under_way = false;
            command.is_answered |= outcome.is_ok();
        }
    }
}

impl Workload for Once {
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let mut state = self.state();
        let open = state.open();
        if open.len() < SESSIONS && random.u8(..3) == 0 || open.is_empty() {
            state.opened += 1;
            let ttl_ms = random.choice(TTLS_MS).copied().unwrap_or_default();
            return ("open", json!({"session": state.opened, "ttl_ms": ttl_ms}));
        }
        let again = match random.u8(..10) {
            0 => {
                let key = random.u64(..=state.opened / SESSIONS_PER_KEY);
                return ("read", json!({"kind": random.choice(KINDS), "key": key}));
            }
            1..4 => state.answered(random),
            4..8 => state.unanswered(),
            _ => None,
        };
        if let Some(asked) = again.and_then(|again| state.ask(again)) {
            return asked;
        }
        let session = random.choice(open).unwrap_or_default();
        state.new_command(session, random)
    }

    fn read(&self, random: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        let key = random.u64(..=self.state().opened / SESSIONS_PER_KEY);
        Some(("read", json!({"kind": random.choice(KINDS), "key": key})))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        let mut done = value.clone();
        match f {
            "open" => self.opens(connection, value)?,
            "read" => done["value"] = read(connection, value)?,
            _ => {
                let outcome = attempt(connection, f, value);
                self.learn(value, &outcome);
                done["reply"] = json!(outcome?);
            }
        }
        Ok(done)
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        let keys = 0..=self.state().opened / SESSIONS_PER_KEY;
        let reads = keys.flat_map(|key| KINDS.iter().map(move |kind| json!({"kind": kind, "key": key})));
        reads.map(|read| ("read", read)).collect()
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        once::check(operations)
    }
}

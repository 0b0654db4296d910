//! What clients do. A workload generates operations, executes each on a connection, and judges all of them.
//! It is shared by all clients; keys are used for a while and then abandoned, so that no key's history grows
//! without bound.

mod append;
mod bank;
mod coordination;
mod counter;
mod expiry;
mod feed;
mod ids;
mod pop;
mod queue;
mod read_levels;
mod register;
mod set;
mod snapshot;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coordination::{holds, lock, once};
use serde_json::Value;

use crate::{
    check::Judgement,
    client::{Connection, Failure, Outcome, Reply},
    history::{Kind, Operation, Recorder},
};

/// How an operation ended, if it did not simply succeed.
pub(crate) enum Ended {
    Failure(Failure),
    /// Nothing was done, and the value contains what was found instead.
    Otherwise(Value),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failure(failure)
    }
}

pub(crate) trait Workload: Send + Sync {
    /// Called once, before all operations.
    fn prepare(&self, _: &mut Connection) -> Outcome<()> {
        Ok(())
    }

    /// The next operation of a client: its function and its value.
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value);

    /// The next operation of a client that only reads. None if there is nothing to read.
    fn read(&self, _: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        None
    }

    /// Executes an operation; returns the value with what was read.
    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended>;

    /// Executes and records an operation. After an unknown outcome the process is finished.
    fn carry_out(
        &self,
        recorder: &Recorder,
        process: i64,
        connection: &mut Connection,
        f: &str,
        value: &Value,
    ) -> Kind {
        let node = Some(connection.node);
        recorder.record(process, Kind::Invoke, f, value.clone(), node, None);
        let (kind, value, error) = match self.invoke(connection, f, value) {
            Ok(done) => (Kind::Ok, done, None),
            Err(Ended::Otherwise(found)) => (Kind::Fail, found, None),
            Err(Ended::Failure(Failure::Fail(why))) => (Kind::Fail, value.clone(), Some(why)),
            Err(Ended::Failure(Failure::Info(why))) => (Kind::Info, value.clone(), Some(why)),
        };
        recorder.record(process, kind, f, value, node, error);
        kind
    }

    /// Longer than any TTL that it sets: only then do the nodes' contents stop changing.
    fn settles_within(&self) -> Duration {
        Duration::ZERO
    }

    /// The final reads through every node.
    fn last(&self) -> Vec<(&'static str, Value)>;

    /// Judges all operations, until `deadline` at the latest.
    fn check(&self, operations: &[Operation], deadline: Instant) -> Judgement;
}

/// The name of every workload, and what it tests.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("register", "reads, writes and compare-and-set (SET IFEQ, WATCH): each key linearizable"),
    ("append", "RPUSH and LRANGE in MULTI: strictly serializable, by cycles"),
    ("set", "SADD and SMEMBERS: nothing lost, nothing stale"),
    ("counter", "INCR and GET: within bounds"),
    ("ids", "INCR and the tokens of LOCK.ACQUIRE: unique and rising"),
    ("bank", "transfers in MULTI: the total is constant"),
    ("pop", "SADD and SPOP, which chooses by chance: nothing taken twice"),
    ("queue", "RPUSH, BLPOP and BLMOVE: nothing taken twice, in order, nobody waits in vain"),
    ("expiry", "SET PX: never early, never back"),
    ("lock", "read, pause, write under LOCK.ACQUIRE with FENCE: no lost update"),
    ("read-levels", "LRANGE at each level, and after tokens: no older than was asked for"),
    ("once", "ONCE in sessions, asked again on other nodes: applied once, the same answer"),
    ("mutex", "LOCK.ACQUIRE, LOCK.RENEW, LOCK.RELEASE, FENCE: one holder at a time"),
    ("election", "ELECT.CAMPAIGN, ELECT.RESIGN, ELECT.OBSERVE, FENCE: one leader an epoch, in order"),
    ("feed", "SET, RPUSH, DEL, MULTI, and FEED.SUBSCRIBE FROM on any node: every write once, in order"),
    (
        "snapshot",
        "megabytes of every type beside RPUSH and LRANGE in MULTI: snapshots installed, digests equal",
    ),
    ("lock-unfenced", "the same without FENCE, the control: lost updates must be found"),
];

/// The workload of that name.
pub(crate) fn named(name: &str) -> Option<Arc<dyn Workload>> {
    Some(match name {
        "register" => Arc::new(register::Register::default()),
        "append" => Arc::new(append::Append::default()),
        "set" => Arc::new(set::Set::default()),
        "counter" => Arc::new(counter::Counter),
        "ids" => Arc::new(ids::Ids::default()),
        "pop" => Arc::new(pop::Pop::default()),
        "queue" => Arc::new(queue::Queue::default()),
        "bank" => Arc::new(bank::Bank),
        "expiry" => Arc::new(expiry::Expiry::default()),
        "lock" => Arc::new(lock::Lock::new(true)),
        "read-levels" => Arc::new(read_levels::ReadLevels::default()),
        "once" => Arc::new(once::Once::default()),
        "mutex" => Arc::new(holds::Holds::of_locks()),
        "election" => Arc::new(holds::Holds::of_elections()),
        "feed" => Arc::new(feed::Feed::default()),
        "snapshot" => Arc::new(snapshot::Snapshot::default()),
        "lock-unfenced" => Arc::new(lock::Lock::new(false)),
        _ => return None,
    })
}

/// These have readers, keys that few clients can meet at, and checkers that are quick with long histories.
const CONTENDED: &[&str] = &["register", "append", "set", "counter"];

/// Whether clients of a workload can contend for few keys.
pub(crate) fn suits_contention(name: &str) -> bool {
    CONTENDED.contains(&name)
}

/// The same with this many keys at a time, where that can be chosen.
pub(crate) fn with_keys(name: &str, keys: u64) -> Option<Arc<dyn Workload>> {
    Some(match name {
        "register" => Arc::new(register::Register::with_keys(keys)),
        "append" => Arc::new(append::Append::with_keys(keys)),
        _ => return named(name),
    })
}

/// The same for a simulation, which checks everything after every step: less data, and only this many keys,
/// if given and supported.
pub(crate) fn simulated(name: &str, keys: Option<u64>) -> Option<Arc<dyn Workload>> {
    match (name, keys) {
        ("snapshot", _) => Some(Arc::new(snapshot::Snapshot::small())),
        (_, Some(keys)) => with_keys(name, keys),
        _ => named(name),
    }
}

/// The words of a command.
fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The reads of every key from 0 to `count`.
fn reads_of_keys(count: u64) -> Vec<(&'static str, Value)> {
    (0..count).map(|key| ("read", serde_json::json!([key, null]))).collect()
}

/// Receives messages, each split into its parts, for a while or until `take` returns false. Then sends
/// `goodbye` and returns its reply; None if the connection was cut, by others or because there is no goodbye.
fn listen(
    connection: &mut Connection,
    duration: Duration,
    mut goodbye: Option<&str>,
    mut take: impl FnMut(&[Reply]) -> Outcome<bool>,
) -> Outcome<Option<Reply>> {
    let mut deadline = connection.now() + duration;
    let mut is_ending = false;
    loop {
        let left = deadline.saturating_sub(connection.now());
        match connection.receive(left) {
            Ok(Some(Reply::Array(parts))) => match take(&parts) {
                Ok(true) => {}
                Ok(false) => deadline = Duration::ZERO,
                Err(failure) => {
                    connection.is_broken = true;
                    return Err(failure);
                }
            },
            Ok(Some(reply)) if is_ending => return Ok(Some(reply)),
            Ok(Some(reply)) => return Err(reply.unexpected()),
            // The messages received before count.
            Err(_) => return Ok(None),
            Ok(None) => {
                let Some(command) = goodbye.take() else {
                    connection.is_broken = true;
                    return Ok(None);
                };
                is_ending = true;
                deadline = connection.now() + connection.timeout;
                if connection.send(&[command]).is_err() {
                    return Ok(None);
                }
            }
        }
    }
}

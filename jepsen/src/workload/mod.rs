//! What clients do. A workload makes up operations, carries one out on a connection, and judges all of them. It is
//! shared by all clients; keys are used for a while and then left, so that no key's history grows without end.

mod append;
mod bank;
mod counter;
mod expiry;
mod feed;
mod holds;
mod ids;
mod lock;
mod once;
mod pop;
mod read_levels;
mod register;
mod set;
mod snapshot;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    check::Judgement,
    client::{Connection, Failure, Outcome, Reply},
    history::{Kind, Operation, Recorder},
};

/// How an operation ended, when it was not simply done.
pub(crate) enum Ended {
    Failure(Failure),
    /// Nothing was done, and the value says what was found instead.
    Otherwise(Value),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failure(failure)
    }
}

pub(crate) trait Workload: Send + Sync {
    /// Before all others, once.
    fn prepare(&self, _: &mut Connection) -> Outcome<()> {
        Ok(())
    }

    /// The next operation of a client: its function and its value.
    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value);

    /// The next operation of a client that only reads. None if there is nothing to read.
    fn read(&self, _: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        None
    }

    /// Carries it out; gives the value with what was read.
    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended>;

    /// One operation, recorded. A process whose outcome is not known is over.
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

    /// Longer than any deadline of a key that it sets: only then the nodes' contents stand still.
    fn settles_within(&self) -> Duration {
        Duration::ZERO
    }

    /// What is read through every node in the end.
    fn last(&self) -> Vec<(&'static str, Value)>;

    /// Judges all operations, until `deadline` at the longest.
    fn check(&self, operations: &[Operation], deadline: Instant) -> Judgement;
}

/// Every workload's name, and what it is about.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("register", "reads, writes and compare-and-set (SET IFEQ, WATCH): each key linearizable"),
    ("append", "RPUSH and LRANGE in MULTI: strictly serializable, by cycles"),
    ("set", "SADD and SMEMBERS: nothing lost, nothing stale"),
    ("counter", "INCR and GET: within bounds"),
    ("ids", "INCR and the tokens of LOCK.ACQUIRE: unique and rising"),
    ("bank", "transfers in MULTI: the total is constant"),
    ("pop", "SADD and SPOP, which chooses by chance: nothing taken twice"),
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

/// The same for a simulation, which looks at everything after every step: less in all, and on so few keys, if it is
/// said and can be.
pub(crate) fn simulated(name: &str, keys: Option<u64>) -> Option<Arc<dyn Workload>> {
    Some(match (name, keys) {
        ("register", Some(keys)) => Arc::new(register::Register::with_keys(keys)),
        ("append", Some(keys)) => Arc::new(append::Append::with_keys(keys)),
        ("snapshot", _) => Arc::new(snapshot::Snapshot::small()),
        _ => return named(name),
    })
}

/// Words of a command.
fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The reads that show every key from 0 to `count`.
fn reads_of_keys(count: u64) -> Vec<(&'static str, Value)> {
    (0..count).map(|key| ("read", serde_json::json!([key, null]))).collect()
}

/// Takes messages, each in its parts, for a while or until `take` gives false. Then says `goodbye` and gives its reply;
/// None if there is none, because the connection was cut: by others, or for want of a goodbye.
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
            // What was told before was told.
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

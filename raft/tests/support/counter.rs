//! The smallest machine that can go wrong: counters by key, a page each. A proposal is a key and an amount.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kvorum_raft::{Batch, Entropy, Loader, Local, Machine, PageWrite, ProposeError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub struct Counter {
    state: Mutex<State>,
    /// The highest level that it says it knows.
    level_max: u32,
    /// The levels by which entries were applied, and the entropy of those that raised it.
    pub levels: Mutex<Vec<(u32, Option<Entropy>)>>,
    /// How much too much this machine adds to each key.
    errors: Mutex<BTreeMap<u64, u64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    counts: BTreeMap<u64, u64>,
    clock_ms: u64,
    ahead_ms: i64,
    dirty: BTreeSet<u64>,
    writing: BTreeMap<u64, u64>,
}

/// Gets the counter's new value.
pub struct Waiter(pub oneshot::Sender<Result<u64, ProposeError>>);

impl Local for Waiter {
    fn failed(self, error: ProposeError) {
        let _ = self.0.send(Err(error));
    }
}

pub fn add(key: u64, amount: u64) -> Vec<u8> {
    [key.to_le_bytes(), amount.to_le_bytes()].concat()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

impl Counter {
    pub fn counts(&self) -> BTreeMap<u64, u64> {
        self.state.lock().counts.clone()
    }

    pub fn clock_ms(&self) -> u64 {
        self.state.lock().clock_ms
    }

    pub fn ahead_ms(&self) -> i64 {
        self.state.lock().ahead_ms
    }

    pub fn set_clock_ms(&self, clock_ms: u64) {
        self.state.lock().clock_ms = clock_ms;
    }

    /// Makes this machine's state another than the log says.
    pub fn corrupt(&self, key: u64) {
        let mut state = self.state.lock();
        *state.counts.entry(key).or_default() += 1_000_000;
        state.dirty.insert(key);
    }

    /// From here on this machine adds `error` too much to a key: with the entry that adds to it, its state becomes
    /// another than the log says.
    pub fn miscount(&self, key: u64, error: u64) {
        self.errors.lock().insert(key, error);
    }

    pub fn get(&self, key: u64) -> u64 {
        self.state.lock().counts.get(&key).copied().unwrap_or(0)
    }
}

impl Machine for Counter {
    type Local = Waiter;

    fn apply_level_max(&self) -> u32 {
        self.level_max
    }

    fn clock_ms(&self) -> u64 {
        self.state.lock().clock_ms
    }

    fn ahead_ms(&self) -> i64 {
        self.state.lock().ahead_ms
    }

    fn apply(&self, batch: Batch<'_, Waiter>) {
        self.levels.lock().push((batch.level, batch.raised));
        let mut state = self.state.lock();
        state.clock_ms = state.clock_ms.max(batch.stamp_ms);
        state.ahead_ms = batch.ahead_ms;
        for proposal in batch.proposals {
            let (key, amount) = (number(&proposal.bytes[..8]), number(&proposal.bytes[8..]));
            let count = state.counts.entry(key).or_default();
            *count += amount + self.errors.lock().get(&key).copied().unwrap_or(0);
            let count = *count;
            state.dirty.insert(key);
            if let Some(Waiter(waiter)) = proposal.local {
                let _ = waiter.send(Ok(count));
            }
        }
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        None
    }

    fn checkpoint_begin(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        let dirty = std::mem::take(&mut state.dirty);
        state.writing = dirty.into_iter().map(|key| (key, state.counts[&key])).collect();
        let numbers = [state.clock_ms, state.counts.len() as u64, state.ahead_ms.cast_unsigned()];
        numbers.map(u64::to_le_bytes).concat()
    }

    fn checkpoint_step(&self, bytes_max: usize, pages: &mut Vec<PageWrite>) -> bool {
        let mut state = self.state.lock();
        for _ in 0..bytes_max / 16 {
            let Some((key, count)) = state.writing.pop_first() else { return false };
            pages.push(PageWrite {
                id: key.to_be_bytes().to_vec(),
                content: Some(count.to_le_bytes().to_vec()),
            });
        }
        true
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(Loading { machine: self, state: State::default() })
    }
}

struct Loading<'a> {
    machine: &'a Counter,
    state: State,
}

impl Loader for Loading<'_> {
    fn page(&mut self, id: &[u8], content: &[u8]) -> Result<(), String> {
        let key = u64::from_be_bytes(id.try_into().map_err(|_| "the id is not a key")?);
        self.state.counts.insert(key, u64::from_le_bytes(content.try_into().map_err(|_| "not a count")?));
        Ok(())
    }

    fn finish(mut self: Box<Self>, head: &[u8]) -> Result<(), String> {
        self.state.clock_ms = number(&head[..8]);
        self.state.ahead_ms = number(&head[16..]).cast_signed();
        if self.state.counts.len() as u64 != number(&head[8..16]) {
            return Err("pages are missing".into());
        }
        *self.machine.state.lock() = self.state;
        Ok(())
    }
}

/// Proposes and waits.
pub async fn propose(node: &kvorum_raft::Node<Counter>, key: u64, amount: u64) -> Result<u64, ProposeError> {
    let (sender, receiver) = oneshot::channel();
    node.propose(add(key, amount), Waiter(sender));
    receiver.await.expect("a proposal is always answered")
}

/// Adds one to each key, a hundred at a time; each must succeed.
pub async fn propose_all(node: &kvorum_raft::Node<Counter>, keys: impl IntoIterator<Item = u64>) {
    let mut keys = keys.into_iter().peekable();
    while keys.peek().is_some() {
        let together = keys.by_ref().take(100).map(|key| propose(node, key, 1));
        for added in futures::future::join_all(together).await {
            added.expect("the cluster is well");
        }
    }
}

pub fn machine(level_max: u32) -> Arc<Counter> {
    Arc::new(Counter {
        state: Mutex::default(),
        level_max,
        levels: Mutex::default(),
        errors: Mutex::default(),
    })
}

//! Transactions that append to lists and read them must be strictly serializable: what Elle does for
//! list-append. A list shows its whole version history, so reads reveal the order of the writes, and with it
//! the graph of dependencies, in which [`super::cycles`] looks for cycles.
//!
//! A transaction is a list of `[":append", key, value]` and `[":r", key, values]`. A value is appended only
//! once.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{
    Judgement,
    cycles::{Dependency, Graph},
};
use crate::history::{Kind, Operation};

type Key = String;

/// One step of a transaction.
#[derive(Clone, Debug)]
enum Step {
    Append(Key, i64),
    Read(Key, Vec<i64>),
}

struct Transaction<'a> {
    operation: &'a Operation,
    /// With the results of reads, if the outcome is known.
    steps: Vec<Step>,
}

/// The transaction that appended a value, and whether it was its last append to this key.
#[derive(Clone, Copy)]
struct Writer {
    transaction: usize,
    is_last: bool,
}

struct Lists<'a> {
    transactions: Vec<Transaction<'a>>,
    writers: HashMap<(Key, i64), Writer>,
    /// The longest version that was read.
    longest: BTreeMap<Key, (Vec<i64>, usize)>,
    judgement: Judgement,
}

fn steps(value: &Value, is_done: bool) -> Vec<Step> {
    let steps = value.as_array().into_iter().flatten().filter_map(|step| {
        let key = step[1].to_string();
        match step[0].as_str()? {
            ":append" => Some(Step::Append(key, step[2].as_i64()?)),
            _ if is_done => {
                let values = step[2].as_array().into_iter().flatten();
                Some(Step::Read(key, values.filter_map(Value::as_i64).collect()))
            }
            _ => None,
        }
    });
    steps.collect()
}

/// Judges transactions in the form described above.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let transactions = operations.iter().map(|operation| {
        let is_ok = operation.is_ok();
        let value = if is_ok { &operation.output } else { &operation.input };
        Transaction { operation, steps: steps(value, is_ok) }
    });
    let mut lists = Lists {
        transactions: transactions.collect(),
        writers: HashMap::new(),
        longest: BTreeMap::new(),
        judgement: Judgement::default(),
    };
    lists.find_writers();
    lists.look_inside();
    lists.compare_versions();
    lists.look_for_missing();
    lists.look_for_lost_updates();
    lists.look_for_cycles();
    lists.judgement
}

impl Lists<'_> {
    fn start(&self, transaction: usize) -> usize {
        self.transactions[transaction].operation.start
    }

    fn find_writers(&mut self) {
        for (index, transaction) in self.transactions.iter().enumerate() {
            let mut last = HashSet::new();
            for step in transaction.steps.iter().rev() {
                if let Step::Append(key, value) = step {
                    let writer = Writer { transaction: index, is_last: last.insert(key) };
                    self.writers.insert((key.clone(), *value), writer);
                }
            }
        }
    }

    /// Every read of a completed transaction, with the values that the transaction itself had appended
    /// before.
    fn reads(&self) -> Vec<(usize, Key, Vec<i64>, Vec<i64>)> {
        let mut reads = Vec::new();
        for (index, transaction) in self.transactions.iter().enumerate() {
            let mut own: HashMap<&Key, Vec<i64>> = HashMap::new();
            for step in &transaction.steps {
                match step {
                    Step::Append(key, value) => own.entry(key).or_default().push(*value),
                    Step::Read(key, values) => {
                        let own = own.get(key).cloned().unwrap_or_default();
                        reads.push((index, key.clone(), values.clone(), own));
                    }
                }
            }
        }
        reads
    }

    /// Anomalies of single reads: G1a, G1b, repeated values, phantom values, and missing own writes.
    fn look_inside(&mut self) {
        for (reader, key, values, own) in self.reads() {
            let at = self.start(reader);
            if !values.ends_with(&own) {
                let detail = format!("key {key}: after appending {own:?} the transaction read {values:?}");
                self.judgement.found("internal", detail, &[at]);
            }
            let mut seen = HashSet::new();
            if let Some(twice) = values.iter().find(|value| !seen.insert(**value)) {
                let detail = format!("key {key}: {twice} stands twice in {values:?}");
                self.judgement.found("duplicate append", detail, &[at]);
            }
            for (place, value) in values.iter().enumerate() {
                let Some(writer) = self.writers.get(&(key.clone(), *value)).copied() else {
                    let detail = format!("key {key}: nobody appended {value}");
                    self.judgement.found("phantom value", detail, &[at]);
                    continue;
                };
                let by = self.start(writer.transaction);
                if writer.transaction == reader && !own.contains(value) {
                    let detail = format!("key {key}: {value} was read before the transaction appended it");
                    self.judgement.found("internal", detail, &[at]);
                }
                if !self.transactions[writer.transaction].operation.may_have_happened() {
                    let detail = format!("key {key}: {value} was read, but its append failed");
                    self.judgement.found("G1a (aborted read)", detail, &[at, by]);
                }
                let is_end = place + 1 == values.len();
                if is_end && !writer.is_last && writer.transaction != reader {
                    let detail = format!("key {key}: {value} was read, in the middle of its transaction");
                    self.judgement.found("G1b (intermediate read)", detail, &[at, by]);
                }
            }
        }
    }

    /// Versions must be prefixes of each other.
    fn compare_versions(&mut self) {
        let reads = self.reads();
        for (reader, key, values, _) in &reads {
            let longest = self.longest.entry(key.clone()).or_insert_with(|| (Vec::new(), *reader));
            if values.len() > longest.0.len() {
                *longest = (values.clone(), *reader);
            }
        }
        for (reader, key, values, _) in &reads {
            let (longest, by) = &self.longest[key];
            if !longest.starts_with(values) {
                let detail = format!("key {key}: {values:?} and {longest:?} have no common history");
                let operations = [self.start(*reader), self.start(*by)];
                self.judgement.found("incompatible order", detail, &operations);
            }
        }
    }

    /// Appends completed before a read began that are missing in it: stale if another read has them, lost
    /// otherwise.
    fn look_for_missing(&mut self) {
        let mut done: HashMap<&Key, Vec<(usize, i64, usize)>> = HashMap::new();
        for (index, transaction) in self.transactions.iter().enumerate() {
            for step in transaction.steps.iter().filter(|_| transaction.operation.is_ok()) {
                if let Step::Append(key, value) = step {
                    done.entry(key).or_default().push((transaction.operation.end, *value, index));
                }
            }
        }
        let mut findings = Vec::new();
        for (reader, key, values, _) in self.reads() {
            let start = self.start(reader);
            let present: HashSet<i64> = values.iter().copied().collect();
            let missing = done.get(&key).into_iter().flatten();
            for (_, value, writer) in
                missing.filter(|(end, value, _)| *end < start && !present.contains(value))
            {
                let is_known = self.longest[&key].0.contains(value);
                let anomaly = if is_known { "stale read" } else { "lost write" };
                let detail = format!("key {key}: {value} was appended before, and is not in {values:?}");
                findings.push((anomaly, detail, [start, self.start(*writer)]));
            }
        }
        for (anomaly, detail, operations) in findings {
            self.judgement.found(anomaly, detail, &operations);
        }
    }

    /// Two transactions that read the same version and both appended to it.
    fn look_for_lost_updates(&mut self) {
        let mut updates: BTreeMap<(Key, Vec<i64>), Vec<usize>> = BTreeMap::new();
        for (index, transaction) in self.transactions.iter().enumerate() {
            let mut touched = HashSet::new();
            for (place, step) in transaction.steps.iter().enumerate() {
                match step {
                    Step::Append(key, _) => {
                        touched.insert(key);
                    }
                    Step::Read(key, values) => {
                        let writes = |step: &Step| matches!(step, Step::Append(other, _) if other == key);
                        if touched.insert(key) && transaction.steps[place..].iter().any(writes) {
                            updates.entry((key.clone(), values.clone())).or_default().push(index);
                        }
                    }
                }
            }
        }
        for ((key, values), updaters) in updates.into_iter().filter(|(_, updaters)| updaters.len() > 1) {
            let detail =
                format!("key {key}: {} transactions read {values:?} and appended to it", updaters.len());
            let operations: Vec<usize> = updaters.iter().map(|updater| self.start(*updater)).collect();
            self.judgement.found("lost update", detail, &operations);
        }
    }

    fn look_for_cycles(&mut self) {
        let times = self.transactions.iter().map(|transaction| match transaction.operation.outcome {
            // It has no place in real time and no dependencies.
            Kind::Fail => (0, usize::MAX),
            _ => (transaction.operation.start, transaction.operation.end),
        });
        let mut graph = Graph::new(&times.collect::<Vec<_>>());
        let writer = |key: &Key, value: i64| {
            let writer = self.writers.get(&(key.clone(), value)).map(|writer| writer.transaction)?;
            Some(writer).filter(|writer| self.transactions[*writer].operation.may_have_happened())
        };
        for (key, (longest, _)) in &self.longest {
            // A repeated value is another anomaly, and defines no order.
            let mut seen = HashSet::new();
            let order: Vec<i64> = longest.iter().copied().filter(|value| seen.insert(*value)).collect();
            for pair in order.windows(2) {
                if let (Some(before), Some(after)) = (writer(key, pair[0]), writer(key, pair[1])) {
                    graph.add(before, after, Dependency::WriteWrite);
                }
            }
        }
        let unseen = self.unseen();
        for (reader, key, values, own) in self.reads() {
            let read = &values[..values.len().saturating_sub(own.len())];
            if let Some(by) = read.last().and_then(|value| writer(&key, *value)) {
                graph.add(by, reader, Dependency::WriteRead);
            }
            let longest = &self.longest[&key].0;
            if !longest.starts_with(&values) {
                continue;
            }
            match longest.get(values.len()) {
                Some(next) => {
                    if let Some(by) = writer(&key, *next) {
                        graph.add(reader, by, Dependency::ReadWrite);
                    }
                }
                // Appends that no read has come after all others.
                None => {
                    for by in unseen.get(&key).into_iter().flatten() {
                        graph.add(reader, *by, Dependency::ReadWrite);
                    }
                }
            }
        }
        for cycle in graph.cycles() {
            let name = |transaction: usize| format!("T{}", self.start(transaction));
            let operations: Vec<usize> = cycle.steps.iter().map(|(node, _)| self.start(*node)).collect();
            self.judgement.found(cycle.anomaly, cycle.text(name), &operations);
        }
    }

    /// Completed transactions whose appends to a key are in no read of it.
    fn unseen(&self) -> HashMap<Key, Vec<usize>> {
        let mut unseen: HashMap<Key, Vec<usize>> = HashMap::new();
        for ((key, value), writer) in &self.writers {
            let is_done = self.transactions[writer.transaction].operation.is_ok();
            if is_done && self.longest.get(key).is_some_and(|(longest, _)| !longest.contains(value)) {
                unseen.entry(key.clone()).or_default().push(writer.transaction);
            }
        }
        unseen
    }
}

//! The history of a run: the invocation and completion of every operation, and every fault, in one order.
//! Written as JSON lines during the run.
//!
//! Indexes are assigned under one lock: to an invocation before it is sent, to a completion after it was
//! received. So the order of indexes is consistent with real time, and checkers need no clock.
//!
//! Strings that begin with a colon are keywords in EDN ([`crate::history::edn`]).

pub(crate) mod edn;

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The process number of fault events.
pub(crate) const NEMESIS: i64 = -1;

/// What happened to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Invoke,
    /// Done.
    Ok,
    /// Certainly not done.
    Fail,
    /// The outcome is unknown.
    Info,
}

/// One line of the history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) index: usize,
    /// Since the start of the run.
    pub(crate) time_ns: u64,
    /// A client until its next unknown outcome; [`NEMESIS`] for faults.
    pub(crate) process: i64,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) f: String,
    pub(crate) value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// An invocation with its completion.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) process: i64,
    pub(crate) f: String,
    pub(crate) input: Value,
    /// The value of the completion; the input if there is none.
    pub(crate) output: Value,
    /// Never `Invoke`.
    pub(crate) outcome: Kind,
    pub(crate) start: usize,
    /// The index of the completion; `usize::MAX` if the outcome is unknown, because it may still take effect.
    pub(crate) end: usize,
    pub(crate) start_ns: u64,
    /// When the client stopped waiting, with or without an answer.
    pub(crate) end_ns: u64,
    pub(crate) node: Option<u64>,
    pub(crate) error: Option<String>,
}

impl Operation {
    pub(crate) fn is_ok(&self) -> bool {
        self.outcome == Kind::Ok
    }

    /// Whether it may have changed something.
    pub(crate) fn may_have_happened(&self) -> bool {
        self.outcome != Kind::Fail
    }
}

/// Every client operation, in order of invocation.
pub(crate) fn operations(events: &[Event]) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut open: HashMap<i64, usize> = HashMap::new();
    for event in events.iter().filter(|event| event.process != NEMESIS) {
        if event.kind == Kind::Invoke {
            open.insert(event.process, operations.len());
            operations.push(Operation {
                process: event.process,
                f: event.f.clone(),
                input: event.value.clone(),
                output: event.value.clone(),
                outcome: Kind::Info,
                start: event.index,
                end: usize::MAX,
                start_ns: event.time_ns,
                end_ns: event.time_ns,
                node: event.node,
                error: None,
            });
        } else if let Some(operation) = open.remove(&event.process).map(|at| &mut operations[at]) {
            operation.outcome = event.kind;
            operation.output = event.value.clone();
            operation.end_ns = event.time_ns;
            operation.error.clone_from(&event.error);
            if event.kind != Kind::Info {
                operation.end = event.index;
            }
        }
    }
    operations
}

/// Records events from all threads.
pub(crate) struct Recorder {
    /// Nanoseconds since the start of the run.
    now_ns: Box<dyn Fn() -> u64 + Send + Sync>,
    inner: Mutex<Inner>,
}

struct Inner {
    events: Vec<Event>,
    file: Option<BufWriter<File>>,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> Result<Recorder> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let inner = Mutex::new(Inner { events: Vec::new(), file: Some(BufWriter::new(file)) });
        let started = Instant::now();
        let now_ns = move || u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Recorder { now_ns: Box::new(now_ns), inner })
    }

    /// In memory only, with another clock.
    pub(crate) fn in_memory(now_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Recorder {
        Recorder { now_ns: Box::new(now_ns), inner: Mutex::new(Inner { events: Vec::new(), file: None }) }
    }

    /// Appends one event; if a line cannot be written, it is missing in the file only, and `finish` reports
    /// that.
    pub(crate) fn record(
        &self,
        process: i64,
        kind: Kind,
        f: &str,
        value: Value,
        node: Option<u64>,
        error: Option<String>,
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            index: inner.events.len(),
            time_ns: (self.now_ns)(),
            process,
            kind,
            f: f.to_owned(),
            value,
            node,
            error,
        };
        if let Some(file) = &mut inner.file {
            let _ = writeln!(file, "{}", event_line(&event));
        }
        inner.events.push(event);
    }

    /// How many events of a kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.events.iter().filter(|event| event.process != NEMESIS && event.kind == kind).count()
    }

    /// All events; the file is then complete.
    pub(crate) fn finish(&self) -> Result<Vec<Event>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            file.flush().context("cannot write the history")?;
        }
        Ok(inner.events.clone())
    }
}

fn event_line(event: &Event) -> String {
    serde_json::to_string(event).expect("an event has no maps with other keys than strings")
}

/// Writes a history as JSON lines.
pub(crate) fn write_lines(path: &Path, events: &[Event]) -> Result<()> {
    let lines: String = events.iter().map(|event| event_line(event) + "\n").collect();
    std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads the JSON lines of a run.
pub(crate) fn read(path: &Path) -> Result<Vec<Event>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut events = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let event: Event = serde_json::from_str(&line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        anyhow::ensure!(event.index == number, "{}, line {}: index", path.display(), number + 1);
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A history in the order of its lines: process, kind, f, value.
    pub(crate) fn history(lines: &[(i64, Kind, &str, Value)]) -> Vec<Event> {
        let event = |(index, (process, kind, f, value)): (usize, &(i64, Kind, &str, Value))| Event {
            index,
            time_ns: index as u64 * 1_000_000,
            process: *process,
            kind: *kind,
            f: (*f).to_owned(),
            value: value.clone(),
            node: None,
            error: None,
        };
        lines.iter().enumerate().map(event).collect()
    }

    #[test]
    fn a_history_survives_the_file_and_reads_as_edn() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(&dir.path().join("h")).unwrap();
        recorder.record(3, Kind::Invoke, "txn", json!([[":append", 1, 2], [":r", 1, null]]), Some(2), None);
        recorder.record(3, Kind::Info, "txn", json!({"a": "b"}), None, Some("timeout".into()));
        let events = recorder.finish().unwrap();
        let read = read(&dir.path().join("h")).unwrap();
        assert_eq!(format!("{events:?}"), format!("{read:?}"));
        let operations = operations(&events);
        assert_eq!((operations.len(), operations[0].end), (1, usize::MAX));
    }
}

//! Whether a history of one register is linearizable: Wing and Gong's search with Lowe's improvements
//! ("Testing for linearizability", 2017), by just-in-time linearization.
//!
//! Events are processed in order, with the set of all configurations possible so far: the register's value,
//! and which of the pending calls have taken effect already. A call must have taken effect only when it
//! returns, so only then are configurations extended. Equal configurations are stored once (the memoisation),
//! a pending read takes effect as soon as its value matches (it can do no harm), and calls that never
//! returned get the deadline implied by those that saw their effect, or are dropped if none did.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

/// The maximum number of pending calls of one register.
const SLOTS: usize = 128;

/// The effect or the result of a call. A register starts as None.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Read(Option<i64>),
    Write(i64),
    /// From one value to another. A CAS that failed is a read.
    Cas(i64, i64),
}

impl Action {
    pub(super) fn writes(self) -> Option<i64> {
        match self {
            Action::Read(_) => None,
            Action::Write(value) | Action::Cas(_, value) => Some(value),
        }
    }

    pub(super) fn sees(self) -> Option<i64> {
        match self {
            Action::Read(value) => value,
            Action::Write(_) => None,
            Action::Cas(old, _) => Some(old),
        }
    }

    /// The value afterwards; None if the action is impossible.
    fn apply(self, value: Option<i64>) -> Option<Option<i64>> {
        match self {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Write(new) => Some(Some(new)),
            Action::Cas(old, new) => (value == Some(old)).then_some(Some(new)),
        }
    }
}

/// A call, with its interval in real time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) action: Action,
    pub(crate) start: usize,
    /// `usize::MAX`: it may take effect at any time, or never.
    pub(crate) end: usize,
}

/// The limits of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) deadline: Instant,
    pub(crate) configurations_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Linearizable,
    /// This call cannot have returned as it did, whatever the others did; with the values that were possible
    /// at that point.
    Impossible {
        call: usize,
        values: Vec<Option<i64>>,
    },
    /// A limit was reached.
    Undecided(&'static str),
}

type Configuration = (Option<i64>, u128);

struct Search<'a> {
    calls: &'a [Call],
    /// The call in each slot.
    pending: [Option<usize>; SLOTS],
    configurations: HashSet<Configuration>,
    limits: Limits,
}

/// Judges one register.
pub(crate) fn check(calls: &[Call], limits: Limits) -> Answer {
    let calls = with_deadlines(calls);
    let mut events = Vec::with_capacity(2 * calls.len());
    for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.start < call.end) {
        events.push((call.start, false, index));
        if call.end != usize::MAX {
            events.push((call.end, true, index));
        }
    }
    events.sort_unstable();
    let mut search =
        Search { calls: &calls, pending: [None; SLOTS], configurations: HashSet::from([(None, 0)]), limits };
    for (_, is_end, call) in events {
        if is_end {
            if let Err(answer) = search.returned(call) {
                return answer;
            }
        } else {
            let Some(slot) = search.pending.iter().position(Option::is_none) else {
                return Answer::Undecided("too many calls were under way at once");
            };
            search.pending[slot] = Some(call);
        }
    }
    Answer::Linearizable
}

impl Search<'_> {
    fn returned(&mut self, call: usize) -> Result<(), Answer> {
        let slot = self.pending.iter().position(|pending| *pending == Some(call));
        let slot = slot.expect("a call returns after it was made");
        let bit = 1 << slot;
        let mut done = HashSet::new();
        let mut seen = HashSet::new();
        let mut open: Vec<Configuration> = self.configurations.iter().copied().collect();
        while let Some((value, mask)) = open.pop() {
            let mask = self.with_reads(value, mask);
            if mask & bit != 0 {
                done.insert((value, mask & !bit));
                continue;
            }
            if !seen.insert((value, mask)) {
                continue;
            }
            if seen.len() > self.limits.configurations_max {
                return Err(Answer::Undecided("too many configurations are possible"));
            }
            if seen.len() % 1024 == 1 && Instant::now() > self.limits.deadline {
                return Err(Answer::Undecided("the time limit was reached"));
            }
            for (slot, action) in self.open_calls(mask) {
                if let Some(value) = action.apply(value) {
                    open.push((value, mask | 1 << slot));
                }
            }
        }
        if done.is_empty() {
            let mut values: Vec<_> = self.configurations.iter().map(|(value, _)| *value).collect();
            values.sort_unstable();
            values.dedup();
            return Err(Answer::Impossible { call, values });
        }
        self.configurations = done;
        self.pending[slot] = None;
        Ok(())
    }

    /// The pending calls that have not taken effect.
    fn open_calls(&self, mask: u128) -> impl Iterator<Item = (usize, Action)> + '_ {
        self.pending.iter().enumerate().filter_map(move |(slot, call)| {
            let call = call.filter(|_| mask & (1 << slot) == 0)?;
            Some((slot, self.calls[call].action))
        })
    }

    /// The mask with every matching read added.
    fn with_reads(&self, value: Option<i64>, mask: u128) -> u128 {
        let fits = self.open_calls(mask).filter(|(_, action)| *action == Action::Read(value));
        fits.fold(mask, |mask, (slot, _)| mask | 1 << slot)
    }
}

/// If every value is written by only one call, a call that never returned must have taken effect before any
/// call that saw its value returned; and if no returned call saw it, it can be ignored. Such a call gets
/// `start == end` and is skipped.
fn with_deadlines(calls: &[Call]) -> Vec<Call> {
    let mut calls = calls.to_vec();
    let mut writers = HashMap::new();
    for (index, call) in calls.iter().enumerate() {
        if let Some(value) = call.action.writes()
            && writers.insert(value, index).is_some()
        {
            return calls;
        }
    }
    let mut settled: Vec<usize> = (0..calls.len()).filter(|index| calls[*index].end != usize::MAX).collect();
    let mut is_open: Vec<bool> = calls.iter().map(|call| call.end == usize::MAX).collect();
    while let Some(observer) = settled.pop() {
        let Call { action, end, .. } = calls[observer];
        let Some(&writer) = action.sees().and_then(|value| writers.get(&value)) else { continue };
        if is_open[writer] && end < calls[writer].end {
            calls[writer].end = end;
            settled.push(writer);
        }
    }
    for (index, call) in calls.iter_mut().enumerate() {
        if is_open[index] && (call.end == usize::MAX || call.end <= call.start) {
            // Its value was seen before it was invoked: the read is found to be impossible.
            call.end = call.start;
            is_open[index] = false;
        }
    }
    calls
}

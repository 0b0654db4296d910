//! Silence: a service that does nothing breaks no promise, so silence must be detected too. While no fault
//! takes a majority away, an operation must succeed every few seconds.

use std::collections::BTreeMap;

use crate::{
    check::Judgement,
    history::{Event, NEMESIS, Operation},
    nemesis::{Shadow, may_take_majority},
    run::LAST_PROCESS,
    watch::majority,
};

/// The maximum time without a completed operation.
const SILENCE_MS_MAX: u64 = 5_000;
/// How long after a fault that took the majority a silence is still attributed to it: nodes start, elect, and
/// catch up.
const RECOVERY_MS: u64 = 10_000;
/// A machine that delays the harness itself for longer than this is too busy to prove anything.
pub(crate) const KEPT_WAITING_MS_MAX: u64 = 500;

/// The ends of the successful operations of the load, and the last end of any operation.
fn ends(operations: &[Operation]) -> Vec<u64> {
    let load = || operations.iter().filter(|operation| operation.process < LAST_PROCESS);
    let mut ends: Vec<u64> =
        load().filter(|operation| operation.is_ok()).map(|operation| operation.end_ns).collect();
    // So that a silence at the end counts.
    ends.extend(load().map(|operation| operation.end_ns).max());
    ends.sort_unstable();
    ends
}

/// The longest time without a successful operation.
pub(crate) fn longest_ms(operations: &[Operation]) -> u64 {
    ends(operations).windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) / 1_000_000
}

/// By fault: the longest time from its beginning until the success of an operation that was invoked after it.
pub(crate) fn first_ok_ms(operations: &[Operation], shadows: &[Shadow]) -> BTreeMap<String, u64> {
    let done = operations.iter().filter(|operation| operation.is_ok() && operation.process < LAST_PROCESS);
    let done: Vec<(u64, u64)> = done.map(|operation| (operation.start_ns, operation.end_ns)).collect();
    let mut longest: BTreeMap<String, u64> = BTreeMap::new();
    for shadow in shadows.iter().filter(|shadow| shadow.effect) {
        let after = done.iter().filter(|(start_ns, _)| *start_ns > shadow.from_ns);
        if let Some(first_ns) = after.map(|(_, end_ns)| *end_ns).min() {
            let of = longest.entry(shadow.fault.clone()).or_default();
            *of = (*of).max((first_ns - shadow.from_ns) / 1_000_000);
        }
    }
    longest
}

/// For how long the machine did not run the harness.
pub(crate) fn kept_waiting_ms(events: &[Event]) -> u64 {
    let kept = events.iter().filter(|event| event.process == NEMESIS && event.f == "kept waiting");
    kept.filter_map(|event| event.value["ms"].as_u64()).max().unwrap_or(0)
}

/// Finds silences that no fault explains. While several faults are active, there may be no majority either.
pub(crate) fn judge(events: &[Event], operations: &[Operation], shadows: &[Shadow]) -> Judgement {
    let mut judgement = Judgement::default();
    let kept_ms = kept_waiting_ms(events);
    let ends = ends(operations);
    for pair in ends.windows(2).filter(|pair| pair[1] - pair[0] > SILENCE_MS_MAX * 1_000_000) {
        let (from_ns, to_ns) = (pair[0], pair[1]);
        let near: Vec<&Shadow> = shadows
            .iter()
            .filter(|shadow| shadow.from_ns < to_ns && shadow.to_ns + RECOVERY_MS * 1_000_000 > from_ns)
            // It leaves a majority.
            .filter(|shadow| shadow.fault != majority::FAULT)
            .collect();
        let is_explained = near.iter().any(|shadow| may_take_majority(&shadow.fault));
        let mut nemeses: Vec<&str> = near.iter().map(|shadow| shadow.nemesis.as_str()).collect();
        nemeses.sort_unstable();
        nemeses.dedup();
        if is_explained || nemeses.len() > 1 {
            continue;
        }
        let ms = (to_ns - from_ns) / 1_000_000;
        let detail = format!("nothing was done for {ms} ms from {} ms on", from_ns / 1_000_000);
        if kept_ms > KEPT_WAITING_MS_MAX {
            judgement
                .missing
                .push(format!("{detail}; the machine kept the harness waiting for {kept_ms} ms"));
        } else {
            judgement.found("silence", format!("{detail}, and a majority was there"), &[]);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::history::{Kind, operations, tests::history};

    fn shadow(fault: &str, from_ms: u64, to_ms: u64) -> Shadow {
        let (from_ns, to_ns) = (from_ms * 1_000_000, to_ms * 1_000_000);
        Shadow {
            nemesis: fault.into(),
            fault: fault.into(),
            from_ns,
            to_ns,
            effect: true,
            detail: Value::Null,
        }
    }

    /// Two reads, the second after this many milliseconds.
    fn events(silence_ms: u64) -> Vec<Event> {
        let read = |kind| (1, kind, "read", json!(null));
        let mut events = history(&[Kind::Invoke, Kind::Ok, Kind::Invoke, Kind::Ok].map(read));
        let times = [0, 1, silence_ms, silence_ms + 1];
        events.iter_mut().zip(times).for_each(|(event, ms)| event.time_ns = ms * 1_000_000);
        events
    }

    #[test]
    fn silence_is_found_unless_the_majority_was_away() {
        let found = |silence_ms, shadows: &[Shadow]| {
            let events = events(silence_ms);
            judge(&events, &operations(&events), shadows).findings.len()
        };
        assert_eq!(found(4_000, &[]), 0);
        assert_eq!(found(7_000, &[]), 1);
        assert_eq!(found(7_000, &[shadow("kill-one", 100, 3_000)]), 1);
        assert_eq!(found(7_000, &[shadow("kill-majority", 100, 3_000)]), 0);
        assert_eq!(found(30_000, &[shadow("kill-majority", 25_000, 28_000)]), 0);
        assert_eq!(found(7_000, &[shadow("kill-one", 100, 900), shadow("pause-one", 100, 900)]), 0);
    }

    #[test]
    fn a_busy_machine_proves_nothing() {
        let mut events = events(7_000);
        events.extend(history(&[(NEMESIS, Kind::Info, "kept waiting", json!({"ms": 900}))]));
        let judgement = judge(&events, &operations(&events), &[]);
        assert_eq!((judgement.findings.len(), judgement.missing.len()), (0, 1));
    }

    #[test]
    fn the_first_answer_after_a_fault_is_of_who_asked_after_it() {
        let events = events(2_000);
        let first = first_ok_ms(&operations(&events), &[shadow("kill-one", 500, 900)]);
        assert_eq!(first["kill-one"], 1_501);
    }
}

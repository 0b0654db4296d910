//! The verdict on a finished run: from its plan and its history alone, so that it can be repeated. A run is
//! clean only if nothing was found, everything was decided, every nemesis took effect, and clients got work
//! done.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    check::{Finding, Judgement, contents},
    history::{self, Event, Kind, NEMESIS, Operation, edn},
    nemesis::{self, Shadow},
    plot,
    run::{LAST_PROCESS, Plan, history_file, plan_file},
    watch::{logs, majority, readiness, silence},
    workload,
};

/// How long all checkers together may take.
const CHECK_TIME: Duration = Duration::from_secs(120);
/// The maximum number of kinds of errors that are reported.
const ERRORS_MAX: usize = 12;

/// How often a function was invoked, by outcome.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) ok: usize,
    pub(crate) fail: usize,
    pub(crate) info: usize,
}

/// The outcomes of one kind of fault.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Faults {
    pub(crate) begun: usize,
    pub(crate) effective: usize,
    /// Why the others had no effect.
    pub(crate) reasons: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) valid: bool,
    pub(crate) plan: Plan,
    pub(crate) findings: Vec<Finding>,
    /// What could not be decided.
    pub(crate) undecided: Vec<String>,
    /// What did not happen, so that the run proves less than it should.
    pub(crate) missing: Vec<String>,
    pub(crate) counts: BTreeMap<String, Count>,
    /// The errors of failed and unknown operations, most frequent first.
    pub(crate) errors: Vec<(String, usize)>,
    pub(crate) faults: BTreeMap<String, Faults>,
    /// The latency of successful operations in milliseconds: median, 99 %, maximum.
    pub(crate) latency_ms: (f64, f64, f64),
    /// The longest time without a successful operation.
    pub(crate) silence_ms: u64,
    /// By fault: the longest time from its beginning until the success of an operation that was invoked after
    /// it.
    #[serde(default)]
    pub(crate) first_ok_ms: BTreeMap<String, u64>,
    /// How often readiness was compared with a read, how often the node was not ready, and the longest
    /// contradiction that no fault explains.
    #[serde(default)]
    pub(crate) readiness: Value,
    /// How a bare majority served, if it came back first.
    #[serde(default)]
    pub(crate) bare_majority: Option<Value>,
}

/// Judges the run in `dir`, and writes the verdict, the history as EDN, and the pictures there.
pub(crate) fn judge(dir: &Path) -> Result<Verdict> {
    let plan = std::fs::read_to_string(plan_file(dir)).context("cannot read the run's plan")?;
    let plan: Plan = serde_json::from_str(&plan).context("the run's plan")?;
    let events = history::read(&history_file(dir))?;
    let operations = history::operations(&events);
    let shadows = nemesis::shadows(&events);
    let verdict = verdict(plan, &events, &operations, &shadows, logs::findings(dir, &shadows)?)?;
    edn::write(&dir.join("history.edn"), events.iter().filter(|event| !contents::is_look(&event.f)))?;
    let write = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("verdict.json", serde_json::to_string_pretty(&verdict)?)?;
    write("verdict.txt", verdict.text())?;
    let load: Vec<Operation> =
        operations.iter().filter(|operation| operation.process < LAST_PROCESS).cloned().collect();
    write("latency.svg", plot::latency(&load, &shadows))?;
    write("rate.svg", plot::rate(&load, &shadows))?;
    for (number, finding) in
        verdict.findings.iter().filter(|it| !it.operations.is_empty()).take(3).enumerate()
    {
        write(&format!("anomaly-{}.svg", number + 1), plot::timeline(&operations, finding))?;
    }
    Ok(verdict)
}

/// The stored verdict on the run in `dir`.
pub(crate) fn read(dir: &Path) -> Result<Verdict> {
    let text = std::fs::read_to_string(dir.join("verdict.json")).context("there is no verdict")?;
    serde_json::from_str(&text).context("the verdict of a run")
}

fn verdict(
    plan: Plan,
    events: &[Event],
    operations: &[Operation],
    shadows: &[Shadow],
    in_logs: Vec<Finding>,
) -> Result<Verdict> {
    let workload =
        workload::named(&plan.workload).with_context(|| format!("no workload {}", plan.workload))?;
    let (looks, work): (Vec<Operation>, Vec<Operation>) =
        operations.iter().cloned().partition(|operation| contents::is_look(&operation.f));
    let mut judgement = workload.check(&work, Instant::now() + CHECK_TIME);
    let looked = contents::check(&looks);
    judgement.findings.extend(looked.findings);
    judgement.missing.extend(looked.missing);
    judgement.findings.extend(noticed(events)?);
    judgement.findings.extend(in_logs);
    let (ready, compared) = readiness::judge(events, shadows, plan.distance_ms);
    for other in [silence::judge(events, operations, shadows), majority::judge(events, shadows), ready] {
        judgement.findings.extend(other.findings);
        judgement.missing.extend(other.missing);
    }
    judgement.shorten();
    let Judgement { findings, undecided, missing: not_done } = judgement;
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    let mut errors: BTreeMap<String, usize> = BTreeMap::new();
    for operation in operations {
        let count = counts.entry(operation.f.clone()).or_default();
        match operation.outcome {
            Kind::Ok => count.ok += 1,
            Kind::Fail => count.fail += 1,
            Kind::Info | Kind::Invoke => count.info += 1,
        }
        if let Some(error) = &operation.error {
            *errors.entry(error.clone()).or_default() += 1;
        }
    }
    let mut errors: Vec<_> = errors.into_iter().collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    errors.truncate(ERRORS_MAX);
    let mut faults: BTreeMap<String, Faults> = BTreeMap::new();
    for shadow in shadows {
        let of = faults.entry(shadow.fault.clone()).or_default();
        of.begun += 1;
        of.effective += usize::from(shadow.effect);
        let reason = shadow.detail.as_str().filter(|_| !shadow.effect).map(str::to_owned);
        of.reasons.extend(reason.filter(|reason| !of.reasons.contains(reason)));
    }
    let missing = [missing(&plan, events, &counts, &looks, shadows), not_done].concat();
    let valid = findings.is_empty() && undecided.is_empty() && missing.is_empty();
    let (latency_ms, silence_ms) = (latencies(operations), silence::longest_ms(operations));
    let first_ok_ms = silence::first_ok_ms(operations, shadows);
    Ok(Verdict {
        valid,
        plan,
        findings,
        undecided,
        missing,
        counts,
        errors,
        faults,
        latency_ms,
        silence_ms,
        first_ok_ms,
        readiness: readiness::told(&compared),
        bare_majority: majority::told(shadows).cloned(),
    })
}

/// The findings recorded during the run.
fn noticed(events: &[Event]) -> Result<Vec<Finding>> {
    let noticed = events.iter().filter(|event| event.process == NEMESIS && event.f == "finding");
    let findings = noticed.map(|event| {
        let text = |name: &str| event.value[name].as_str().unwrap_or_default().to_owned();
        Finding { anomaly: text("anomaly"), detail: text("detail"), operations: Vec::new() }
    });
    Ok(findings.collect())
}

fn missing(
    plan: &Plan,
    events: &[Event],
    counts: &BTreeMap<String, Count>,
    looks: &[Operation],
    shadows: &[Shadow],
) -> Vec<String> {
    let mut missing = Vec::new();
    for nemesis in &plan.nemeses {
        if !shadows.iter().any(|shadow| shadow.nemesis == *nemesis && shadow.effect) {
            missing.push(format!("no fault of nemesis {nemesis} took effect"));
        }
    }
    for (f, count) in counts.iter().filter(|(_, count)| count.ok == 0) {
        missing.push(format!("no {f} was done ({} failed, {} unknown)", count.fail, count.info));
    }
    if counts.is_empty() {
        missing.push("there was no load".into());
    }
    if plan.bare_majority && !shadows.iter().any(|shadow| shadow.fault == majority::FAULT) {
        missing.push("no bare majority came back first".into());
    }
    if !events.iter().any(|event| event.process == NEMESIS && event.f == "healed") {
        missing.push("the run did not come to its end".into());
    }
    let looks: Vec<&Operation> = looks.iter().filter(|look| look.f == "contents").collect();
    for look in looks.iter().filter(|look| !look.is_ok()) {
        let node = look.node.unwrap_or_default();
        let why = look.error.as_deref().unwrap_or_default();
        missing.push(format!("the contents of node {node} could not be read: {why}"));
    }
    if looks.len() < 4 {
        missing.push("the contents of the nodes were not compared".into());
    }
    missing
}

fn latencies(operations: &[Operation]) -> (f64, f64, f64) {
    let done = operations.iter().filter(|operation| operation.is_ok());
    let mut ns: Vec<u64> = done.map(|operation| operation.end_ns - operation.start_ns).collect();
    ns.sort_unstable();
    let at = |share: f64| {
        let place = (ns.len() as f64 * share) as usize;
        ns.get(place.min(ns.len().saturating_sub(1))).map_or(0.0, |ns| *ns as f64 / 1e6)
    };
    (at(0.5), at(0.99), at(1.0))
}

impl Verdict {
    /// The sum over all functions.
    pub(crate) fn total(&self) -> Count {
        self.counts.values().fold(Count::default(), |all, count| Count {
            ok: all.ok + count.ok,
            fail: all.fail + count.fail,
            info: all.info + count.info,
        })
    }

    /// The number of faults begun, and of those that took effect.
    pub(crate) fn faults(&self) -> (usize, usize) {
        self.faults.values().fold((0, 0), |all, faults| (all.0 + faults.begun, all.1 + faults.effective))
    }

    /// A human-readable report.
    pub(crate) fn text(&self) -> String {
        let plan = &self.plan;
        let mut out = String::new();
        let nemeses = if plan.nemeses.is_empty() { "none".into() } else { plan.nemeses.join(",") };
        let word = if self.valid { "CLEAN" } else { "NOT CLEAN" };
        let _ = writeln!(
            out,
            "{word}: workload {}, nemesis {nemeses}, {} s, {}, seed {}, {} nodes{}",
            plan.workload,
            plan.time_s,
            plan.load(),
            plan.seed,
            plan.nodes,
            plan.broken.as_ref().map_or(String::new(), |broken| format!(", BROKEN ON PURPOSE: {broken}"))
        );
        for finding in &self.findings {
            let _ = write!(out, "  FOUND {}: {}", finding.anomaly, finding.detail);
            let _ = match &finding.operations[..] {
                [] => writeln!(out),
                operations => writeln!(out, " (history lines {operations:?}, from 0)"),
            };
        }
        for undecided in &self.undecided {
            let _ = writeln!(out, "  UNDECIDED {undecided}");
        }
        for missing in &self.missing {
            let _ = writeln!(out, "  MISSING {missing}");
        }
        let _ = writeln!(out, "operations (ok, failed, unknown):");
        for (f, count) in &self.counts {
            let _ = writeln!(out, "  {f}: {}, {}, {}", count.ok, count.fail, count.info);
        }
        for (error, count) in &self.errors {
            let _ = writeln!(out, "  {count} x {error}");
        }
        let (median, high, most) = self.latency_ms;
        let _ = writeln!(out, "latency: median {median:.1} ms, 99 % {high:.1} ms, greatest {most:.1} ms");
        let _ = writeln!(out, "longest time without an operation done: {} ms", self.silence_ms);
        let count = |name: &str| self.readiness[name].as_u64().unwrap_or(0);
        let _ = writeln!(
            out,
            "readiness: compared {} times, not ready {} times, at most {} ms of unexplained contradiction",
            count("times"),
            count("not_ready"),
            count("longest_ms")
        );
        if let Some(told) = &self.bare_majority {
            let _ = writeln!(
                out,
                "a bare majority first: nodes {} with {} {}, served after {} ms, and later after {} ms",
                told["nodes"],
                told["off"],
                told["how"].as_str().unwrap_or_default(),
                told["served_ms"],
                told["again_ms"]
            );
        }
        let _ = writeln!(out, "faults (begun, effective):");
        for (fault, faults) in &self.faults {
            let first = self
                .first_ok_ms
                .get(fault)
                .map_or(String::new(), |ms| format!("; first done after {ms} ms at most"));
            let _ = writeln!(out, "  {fault}: {}, {}{first}", faults.begun, faults.effective);
            for reason in &faults.reasons {
                let _ = writeln!(out, "    without effect: {reason}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::tests::history;

    fn judged(lines: &[(i64, Kind, &str, Value)]) -> Verdict {
        let plan = Plan {
            workload: "set".into(),
            nemeses: vec!["loss".into()],
            time_s: 1,
            rate: 1.0,
            seed: 1,
            nodes: 2,
            clients: 1,
            readers: 0,
            contention: None,
            bare_majority: false,
            distance_ms: 0,
            broken: None,
        };
        let mut events = history(lines);
        // The last two operations are from two nodes.
        events.iter_mut().rev().take(2).for_each(|event| event.node = Some(2));
        let (operations, shadows) = (history::operations(&events), nemesis::shadows(&events));
        verdict(plan, &events, &operations, &shadows, Vec::new()).unwrap()
    }

    fn done(f: &'static str, value: Value) -> [(i64, Kind, &'static str, Value); 2] {
        [(1, Kind::Invoke, f, value.clone()), (1, Kind::Ok, f, value)]
    }

    /// A run of two nodes, with one fault.
    fn lines(effect: bool) -> Vec<(i64, Kind, &'static str, Value)> {
        let mut lines = vec![
            (NEMESIS, Kind::Info, "start", json!({"nemesis": "loss", "fault": "loss"})),
            (
                NEMESIS,
                Kind::Info,
                "stop",
                json!({"nemesis": "loss", "fault": "loss", "effect": effect, "detail": "why"}),
            ),
            (NEMESIS, Kind::Info, "healed", json!({"whole": true, "ms": 1})),
        ];
        lines.extend(done("add", json!([1, 1])));
        lines.extend(done("read", json!([1, [1]])));
        (0..4).for_each(|_| lines.extend(done("contents", json!({"content": {}}))));
        (0..2).for_each(|_| lines.extend(done("digest", json!({"index": 7, "digest": "a"}))));
        lines
    }

    #[test]
    fn a_run_is_clean_only_if_its_faults_happened_and_nothing_was_noticed() {
        assert!(judged(&lines(true)).valid);
        let idle = judged(&lines(false));
        assert_eq!(
            (idle.valid, &idle.missing[..]),
            (false, &["no fault of nemesis loss took effect".into()][..])
        );
        let mut crashed = lines(true);
        let finding = json!({"anomaly": "unexpected exit", "detail": "node 1"});
        crashed.push((NEMESIS, Kind::Info, "finding", finding));
        assert!(!judged(&crashed).valid);
        let cut_short: Vec<_> = lines(true).into_iter().filter(|line| line.2 != "healed").collect();
        assert!(!judged(&cut_short).valid);
    }
}

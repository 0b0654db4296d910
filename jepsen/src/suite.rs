//! Pairs of workload and nemesis, a few in parallel: a short list, or every workload with every fault.

use std::{
    fmt::Write as _,
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::ScopedJoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::die_with_this_thread,
    options::Common,
    run::Plan,
    verdict::{self, Verdict},
    workload,
};

/// The control: it is expected to fail.
const CONTROL: &str = "lock-unfenced";

/// A short list that covers every workload and every group of nemeses.
const SHORT: &[(&str, &str)] = &[
    ("register", "kill"),
    ("append", "partition"),
    ("set", "pause"),
    ("counter", "loss,delay"),
    ("ids", "transfer"),
    ("bank", "membership"),
    ("expiry", "rolling-restart"),
    ("lock", "pause,checkpoint"),
    ("register", "disk"),
    ("register", LATE_ANSWERS),
    ("append", SWIZZLE),
    ("expiry", "stop-one,clock-jump"),
    ("append", "disk-lost-unsynced-all"),
    ("expiry", "clock"),
    ("set", "load-hot-key,kill-leader"),
    ("read-levels", "kill,partition"),
    ("once", "kill,partition"),
    ("mutex", "pause"),
    ("election", "kill,partition"),
    ("feed", "kill,partition"),
    ("snapshot", "kill,partition"),
    ("queue", "kill,partition"),
    (CONTROL, "pause"),
];

/// Over a distance: each workload once, with the next of these.
const DISTANT: &[&str] = &["kill-leader", "partition-one", "transfer", "pause-one", BEHIND, "loss"];

/// These leave a node behind.
const BEHIND: &str = "kill-one,partition-leader";

/// Every fault, two at a time; each workload gets all of them. One of the two makes some node fall behind, so
/// that snapshots are sent.
const FULL: &[&str] = &[
    "kill-one,partition-oneway",
    "kill-one,packet-reorder",
    "kill-leader,partition-ring",
    "kill-minority,delay",
    "kill-majority,grow",
    "kill-all,partition-halves",
    "pause-one,transfer",
    "pause-leader,loss",
    "pause-majority,grow",
    "pause-all,partition-bridge",
    "rolling-restart,clock-jump",
    "flip-log,checkpoint",
    "truncate-log,load-hot-key",
    "lost-tail",
    "disk-slow-fsync,packet-duplicate",
    "disk-fail-fsync,packet-loss",
    "disk-full,clock-drift",
    "disk-lost-unsynced,partition-one",
    "disk-lost-unsynced-all,partition-leader",
    "replace,partition-clients",
    "shrink,pause-one",
    "clock-strobe,kill-one",
    "load-huge-value,pause-one",
    LATE_ANSWERS,
    "stop-one,clock-jump",
    "stop-all,delay",
    "disk-rolled-back,kill-one",
    "disk-rolled-back,grow",
    SWIZZLE,
];

/// These need three nodes, the smallest setup in which one late answer matters, and clients that contend.
const LATE_ANSWERS: &str = "partition-late-answers";
const SWIZZLE: &str = "partition-swizzle";
const OF_THREE: &[&str] = &[LATE_ANSWERS, SWIZZLE];

/// The nemesis for the control: its clients pause for longer than their holds last, which needs no fault.
const OF_CONTROL: &str = "pause";

/// One run in this many uses the server with all assertions.
const CHECKED_SHARE: usize = 4;
/// How often a run is polled.
const POLL: Duration = Duration::from_millis(200);

/// The parameters of a suite.
pub(crate) struct Suite {
    pub(crate) binary: PathBuf,
    /// The server for one run in four, with all assertions, if there is one.
    pub(crate) checked: Option<PathBuf>,
    /// The options of each run, except for its seed.
    pub(crate) common: Common,
    /// The seed of the first run.
    pub(crate) seed: u64,
    /// Every workload with every fault.
    pub(crate) is_full: bool,
    /// The number of parallel runs.
    pub(crate) jobs: usize,
}

fn pairs(is_full: bool, is_distant: bool) -> Vec<(&'static str, &'static str)> {
    let workloads = || workload::NAMES.iter().map(|(name, _)| *name).filter(|name| *name != CONTROL);
    if !is_full && is_distant {
        let pairs = workloads().zip(DISTANT.iter().copied().cycle());
        // Some node must be left behind, or no snapshot is sent.
        let pairs = pairs.map(|(name, nemeses)| (name, if name == "snapshot" { BEHIND } else { nemeses }));
        return pairs.chain([(CONTROL, OF_CONTROL)]).collect();
    }
    if !is_full {
        return SHORT.to_vec();
    }
    // Every workload gets one fault before any gets the next.
    let pairs = FULL.iter().flat_map(|nemeses| workloads().map(move |workload| (workload, *nemeses)));
    pairs.chain([(CONTROL, OF_CONTROL)]).collect()
}

/// The next run, and the finished ones.
struct Progress {
    next: AtomicUsize,
    done: Mutex<Done>,
}

struct Done {
    /// In the order of the pairs.
    rows: Vec<Option<String>>,
    is_good: bool,
}

impl Suite {
    /// Runs all pairs without a verdict in the directory; returns whether each ended as expected, and writes
    /// a table to `suite.md`.
    pub(crate) fn run(&self, is_asked_to_stop: fn() -> bool) -> Result<bool> {
        let pairs = pairs(self.is_full, self.common.distance_ms > 0);
        let dir = &self.common.out;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let done = Mutex::new(Done { rows: vec![None; pairs.len()], is_good: true });
        let progress = Progress { next: AtomicUsize::new(0), done };
        let ends: Vec<Result<()>> = std::thread::scope(|scope| {
            let work = || self.work(&pairs, &progress, is_asked_to_stop);
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(work)).collect();
            let joined = workers.into_iter().map(ScopedJoinHandle::join);
            joined.map(|done| done.unwrap_or_else(|_| bail!("a thread of the suite panicked"))).collect()
        });
        ends.into_iter().collect::<Result<()>>()?;
        let Done { rows, is_good } = progress.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        if is_asked_to_stop() {
            let count = rows.iter().flatten().count();
            bail!("stopped early, after {count} of {} runs; the same command goes on", pairs.len());
        }
        print!("{}", table(&rows));
        Ok(is_good)
    }

    /// Runs the next pair until none is left.
    fn work(
        &self,
        pairs: &[(&str, &str)],
        progress: &Progress,
        is_asked_to_stop: fn() -> bool,
    ) -> Result<()> {
        while !is_asked_to_stop() {
            let number = progress.next.fetch_add(1, Ordering::Relaxed);
            let Some((workload, nemesis)) = pairs.get(number) else { break };
            let seed = self.seed + number as u64;
            let mut options = self.common.clone();
            options.seed = Some(seed);
            if OF_THREE.contains(nemesis) {
                options.nodes = Some(3);
                options.contended = workload::suits_contention(workload).then_some(true);
                // Clients that stay hide what late answers do.
                options.readers = (*nemesis == LATE_ANSWERS).then_some(0);
            }
            let nemeses = nemesis.split(',').map(str::to_owned).collect();
            let plan = options.plan(workload, nemeses, seed, None);
            options.out =
                self.common.out.join(format!("{:03}-{workload}-{}", number + 1, nemesis.replace(',', "+")));
            let verdict = match verdict::read(&options.out) {
                Ok(verdict) => Ok(verdict),
                Err(_) => Suite::one(&plan, &options, self.server(number), is_asked_to_stop),
            };
            if is_asked_to_stop() {
                break;
            }
            let is_expected = verdict.as_ref().is_ok_and(is_expected);
            let row = match &verdict {
                Ok(verdict) => row(&verdict.plan, Some(verdict), is_expected),
                Err(_) => row(&plan, None, false),
            };
            let why = verdict.err().map_or(String::new(), |error| format!("{error:#}\n"));
            eprint!("[{}/{}] {row}{why}", number + 1, pairs.len());
            let mut done = progress.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.is_good &= is_expected;
            done.rows[number] = Some(row);
            let file = self.common.out.join("suite.md");
            std::fs::write(file, table(&done.rows)).context("cannot write the table")?;
        }
        Ok(())
    }

    fn server(&self, number: usize) -> &Path {
        let checked = self.checked.as_deref().filter(|_| number.is_multiple_of(CHECKED_SHARE));
        checked.unwrap_or(&self.binary)
    }

    /// One run, in its own process; its output goes to a file next to the run's directory.
    fn one(plan: &Plan, options: &Common, server: &Path, is_asked_to_stop: fn() -> bool) -> Result<Verdict> {
        let dir = &options.out;
        if dir.exists() {
            std::fs::remove_dir_all(dir).context("cannot remove what an earlier suite did not finish")?;
        }
        let log = dir.with_extension("log");
        let said = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command
            .args(["run", "--workload", &plan.workload, "--nemesis", &plan.nemeses.join(",")])
            .args(options.arguments())
            .arg("--binary")
            .arg(server)
            .arg("--out")
            .arg(dir)
            // Ctrl-C must reach only this process, which then ends its runs.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        let mut child = die_with_this_thread(&mut command).spawn().context("cannot start a run")?;
        let mut is_told = false;
        while child.try_wait().context("cannot wait for a run")?.is_none() {
            std::thread::sleep(POLL);
            if is_asked_to_stop() && !is_told {
                is_told = true;
                // SAFETY: it is a child that has not been waited for.
                unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
            }
        }
        verdict::read(dir).with_context(|| format!("see {}", log.display()))
    }
}

fn table(rows: &[Option<String>]) -> String {
    let mut table = String::from(
        "| workload | nemesis | seed | ok | failed | unknown | faults (effective) | longest silence | verdict |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    table.extend(rows.iter().flatten().map(String::as_str));
    table
}

/// A clean verdict; or, for the control, a lost update and nothing else wrong.
fn is_expected(verdict: &Verdict) -> bool {
    if verdict.plan.workload != CONTROL {
        return verdict.valid;
    }
    let is_caught = verdict.findings.iter().any(|finding| finding.anomaly == "lost update");
    is_caught && verdict.undecided.is_empty() && verdict.missing.is_empty()
}

fn row(plan: &Plan, verdict: Option<&Verdict>, is_expected: bool) -> String {
    let mut row = String::new();
    let _ = write!(row, "| {} | {} | {} ", plan.workload, plan.nemeses.join(", "), plan.seed);
    let Some(verdict) = verdict else { return row + "| | | | | | did not run |\n" };
    let (total, (begun, effective)) = (verdict.total(), verdict.faults());
    let word = match (is_expected, plan.workload == CONTROL) {
        (true, true) => "caught, as it should be".to_owned(),
        (true, false) => "clean".to_owned(),
        (false, _) => {
            let names: Vec<&str> = verdict.findings.iter().map(|finding| finding.anomaly.as_str()).collect();
            let mut names = [names, verdict.missing.iter().map(String::as_str).collect()].concat();
            names.dedup();
            format!("NOT AS EXPECTED: {}", names.join("; "))
        }
    };
    let _ = writeln!(
        row,
        "| {} | {} | {} | {begun} ({effective}) | {} ms | {word} |",
        total.ok, total.fail, total.info, verdict.silence_ms
    );
    row
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::nemesis;

    #[test]
    fn every_workload_meets_every_fault() {
        let pairs = pairs(true, false);
        for (workload, _) in workload::NAMES.iter().filter(|(name, _)| *name != CONTROL) {
            let met = pairs.iter().filter(|(name, _)| name == workload);
            let met: BTreeSet<&str> = met.flat_map(|(_, nemeses)| nemeses.split(',')).collect();
            assert_eq!(met, nemesis::faults().collect(), "{workload}");
        }
        assert!(pairs.iter().any(|(name, _)| *name == CONTROL));
        assert_eq!(super::pairs(true, true), pairs);
    }

    #[test]
    fn every_workload_goes_a_long_way_once() {
        let pairs = pairs(false, true);
        let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
        let all: BTreeSet<&str> = workload::NAMES.iter().map(|(name, _)| *name).collect();
        assert_eq!((names.len(), names.iter().copied().collect()), (all.len(), all));
        for name in pairs.iter().flat_map(|(_, nemeses)| nemeses.split(',')) {
            assert!(nemesis::named(name).is_some(), "{name}");
        }
    }
}

//! Pairs of workload and nemesis, a few at a time: a short list, or every workload with every fault.

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
    run::Plan,
    verdict::{self, Verdict},
    workload,
};

/// The control: it is expected to be found wrong.
const CONTROL: &str = "lock-unfenced";

/// A short list that touches every workload and every group of nemeses.
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
    (CONTROL, "pause"),
];

/// Over a distance: each workload once, with one of these in turn.
const DISTANT: &[&str] =
    &["kill-leader", "partition-one", "transfer", "pause-one", "kill-one,partition-leader", "loss"];

/// Every fault, two at a time; each workload has them all. One of the two leaves some node behind, so that snapshots are
/// sent.
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
];

/// One who writes and two who read at each of three nodes, which are the fewest that answer late.
const LATE_ANSWERS: &str = "partition-late-answers";
const OF_LATE_ANSWERS: (u64, usize, usize) = (3, 9, 6);

/// What is found wrong with the control: its clients hold for less than they pause, and that needs no fault.
const OF_CONTROL: &str = "pause";

/// One run in so many has the server with all assertions.
const CHECKED_SHARE: usize = 4;
/// How often a run is looked at.
const POLL: Duration = Duration::from_millis(200);

/// What a suite is.
pub(crate) struct Suite {
    pub(crate) binary: PathBuf,
    /// The server of one run in four, with all assertions, if there is one.
    pub(crate) checked: Option<PathBuf>,
    pub(crate) dir: PathBuf,
    /// Of each run; everything but workload, nemeses and seed.
    pub(crate) plan: Plan,
    /// Every workload with every fault.
    pub(crate) is_full: bool,
    /// How many runs at a time.
    pub(crate) jobs: usize,
}

fn pairs(is_full: bool, is_distant: bool) -> Vec<(&'static str, &'static str)> {
    let workloads = || workload::NAMES.iter().map(|(name, _)| *name).filter(|name| *name != CONTROL);
    if !is_full && is_distant {
        let pairs = workloads().zip(DISTANT.iter().copied().cycle());
        return pairs.chain([(CONTROL, OF_CONTROL)]).collect();
    }
    if !is_full {
        return SHORT.to_vec();
    }
    // All workloads have met a fault before the next one's turn.
    let pairs = FULL.iter().flat_map(|nemeses| workloads().map(move |workload| (workload, *nemeses)));
    pairs.chain([(CONTROL, OF_CONTROL)]).collect()
}

/// Which run is next, and those that are done.
struct Progress {
    next: AtomicUsize,
    done: Mutex<Done>,
}

struct Done {
    /// Each in its place.
    rows: Vec<Option<String>>,
    is_good: bool,
}

impl Suite {
    /// Runs all pairs that have no verdict in the directory yet; gives whether each ended as it should, with a table in
    /// `suite.md`.
    pub(crate) fn run(&self, is_asked_to_stop: fn() -> bool) -> Result<bool> {
        let pairs = pairs(self.is_full, self.plan.distance_ms > 0);
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
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

    /// Does what is next until nothing is left.
    fn work(
        &self,
        pairs: &[(&str, &str)],
        progress: &Progress,
        is_asked_to_stop: fn() -> bool,
    ) -> Result<()> {
        while !is_asked_to_stop() {
            let number = progress.next.fetch_add(1, Ordering::Relaxed);
            let Some((workload, nemesis)) = pairs.get(number) else { break };
            let seed = self.plan.seed + number as u64;
            let nemeses = nemesis.split(',').map(str::to_owned).collect();
            let mut plan = Plan { workload: (*workload).to_owned(), nemeses, seed, ..self.plan.clone() };
            if *nemesis == LATE_ANSWERS {
                (plan.nodes, plan.clients, plan.readers) = OF_LATE_ANSWERS;
            }
            let dir = self.dir.join(format!("{:03}-{workload}-{}", number + 1, nemesis.replace(',', "+")));
            let verdict = match verdict::read(&dir) {
                Ok(verdict) => Ok(verdict),
                Err(_) => self.one(&plan, &dir, self.server(number), is_asked_to_stop),
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
            std::fs::write(self.dir.join("suite.md"), table(&done.rows)).context("cannot write the table")?;
        }
        Ok(())
    }

    fn server(&self, number: usize) -> &Path {
        let checked = self.checked.as_deref().filter(|_| number.is_multiple_of(CHECKED_SHARE));
        checked.unwrap_or(&self.binary)
    }

    /// One run, in a process of its own; what that says is in a file beside the run's directory.
    fn one(&self, plan: &Plan, dir: &Path, server: &Path, is_asked_to_stop: fn() -> bool) -> Result<Verdict> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).context("cannot remove what an earlier suite did not finish")?;
        }
        let log = dir.with_extension("log");
        let said = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command
            .args(["run", "--workload", &plan.workload, "--nemesis", &plan.nemeses.join(",")])
            .args(["--time", &plan.time_s.to_string(), "--rate", &plan.rate.to_string()])
            .args(["--seed", &plan.seed.to_string(), "--nodes", &plan.nodes.to_string()])
            .args([
                "--clients",
                &plan.clients.to_string(),
                "--readers",
                &plan.readers.to_string(),
                "--distance-ms",
                &plan.distance_ms.to_string(),
                "--binary",
            ])
            .arg(server)
            .arg("--out")
            .arg(dir)
            // A Ctrl-C is for this process, which then ends its runs.
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

/// Clean; or, for the control, caught, with nothing else amiss.
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

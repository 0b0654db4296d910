//! Runs many seeds, several in parallel, each in its own process: randomness of a process (the keys of hash
//! tables, tokio's order of wake-ups) is derived from the seed too (`entropy.rs`), and a simulation that does
//! not end can be killed.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, builder::PossibleValuesParser};
use kvorum_raft::safeguard::Safeguard;

use super::{faults::KINDS, one::Summary};

/// The interval of progress lines.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long a seed may take: if its simulated time does not advance, something loops forever.
pub(super) const SEED_TIME_MAX: Duration = Duration::from_secs(300);

/// The options common to all seeds.
#[derive(Args, Clone, Debug)]
pub(crate) struct World {
    /// Simulated seconds of load with faults for each seed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) time: u64,
    /// The workload of the clients [default: the seed's choice]
    #[arg(long, value_name = "NAME")]
    pub(super) workload: Option<String>,
    /// The only kinds of faults to use [default: all]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = PossibleValuesParser::new(KINDS))]
    pub(super) faults: Vec<String>,
    /// Initial number of nodes [default: the seed's choice]
    #[arg(long, value_name = "N")]
    pub(super) members: Option<u64>,
    /// Maximize contention between clients [default: in half of the seeds]
    #[arg(long)]
    pub(super) contended: bool,
    /// Number of clients of the workload [default: the seed's choice]
    #[arg(long, value_name = "N")]
    pub(super) clients: Option<usize>,
    /// Begin the script while the cluster forms, not when it has formed
    #[arg(long)]
    pub(super) unformed: bool,
    /// Sizes that are otherwise the seed's choice, as log-entries-kept=1
    #[arg(long, value_name = "KNOB=N,...", value_delimiter = ',')]
    pub(super) knobs: Vec<String>,
    /// Directory for the histories of seeds that failed
    #[arg(long, value_name = "DIR", default_value = "sim-failures")]
    pub(super) out: PathBuf,
    /// Let log syncs do nothing: the simulation must detect it
    #[arg(long)]
    pub(super) disks_lie: bool,
    /// Switch these safeguards of the server off: the simulation must detect it
    #[arg(long, value_name = "SAFEGUARD,...", value_delimiter = ',', value_parser = safeguard_named)]
    pub(super) without: Vec<Safeguard>,
    /// Expected findings of the checks after every step, such as "committed entry lost"; they do not end the
    /// run, because what is of interest comes later. The findings of clients and of the end of the run count
    /// all the same
    #[arg(long, value_name = "ANOMALY,...", value_delimiter = ',')]
    pub(super) despite: Vec<String>,
}

/// What is missing in all seeds of a workload, and in at least this many, is not a coincidence.
const WONDERS: u64 = 6;

#[derive(Args, Debug)]
pub(crate) struct Seeds {
    /// Number of seeds
    #[arg(long, value_name = "N", default_value_t = 100)]
    seeds: u64,
    /// The first seed [default: a new one, printed]
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// Simulations to run in parallel [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Something is broken on purpose: continue until a seed detects it, and fail if none does
    #[arg(long)]
    find: bool,
    /// Text that a finding must contain; may be repeated [default: any finding]
    #[arg(long, value_name = "TEXT", requires = "find")]
    finds: Vec<String>,
    #[command(flatten)]
    world: World,
}

/// The totals of all seeds.
#[derive(Default)]
struct Sum {
    done: u64,
    failed: Vec<u64>,
    /// Seeds that found what was looked for.
    found: Vec<u64>,
    ok: usize,
    unknown: usize,
    simulated_ms: u64,
    faults: BTreeMap<String, usize>,
    workloads: BTreeMap<String, Done>,
}

/// The totals of one workload.
#[derive(Default)]
struct Done {
    seeds: u64,
    /// What did not happen, and in how many seeds.
    missing: BTreeMap<String, u64>,
    /// How often each operation was invoked, and how often it succeeded.
    operations: BTreeMap<String, (usize, usize)>,
}

impl Done {
    fn add(&mut self, summary: &Summary) {
        self.seeds += 1;
        for missing in &summary.missing {
            *self.missing.entry(missing.clone()).or_default() += 1;
        }
        for (f, (begun, done)) in &summary.operations {
            let sum = self.operations.entry(f.clone()).or_default();
            *sum = (sum.0 + begun, sum.1 + done);
        }
    }

    /// What did not happen in any of the seeds, if there are enough of them.
    fn missing(&self) -> Vec<String> {
        if self.seeds < WONDERS {
            return Vec::new();
        }
        let never =
            self.missing.iter().filter(|(_, seeds)| **seeds == self.seeds).map(|(text, _)| text.clone());
        let undone = self.operations.iter().filter(|(_, (_, done))| *done == 0);
        let undone = undone.map(|(f, (begun, _))| format!("no {f} was done ({begun} begun)"));
        never.chain(undone).collect()
    }
}

/// Runs all seeds. True if none failed.
pub(crate) fn run_seeds(options: &Seeds, is_asked_to_stop: fn() -> bool) -> Result<bool> {
    let from = options.from.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    println!("seeds {from} to {}, {jobs} at a time", from + options.seeds.saturating_sub(1));
    let (next, sum, started) = (AtomicU64::new(from), Mutex::new(Sum::default()), Instant::now());
    let told = Mutex::new(Instant::now());
    let work = || -> Result<()> {
        while !is_asked_to_stop() && (!options.find || locked(&sum).found.is_empty()) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + options.seeds {
                return Ok(());
            }
            let summary = options.world.process(seed)?;
            add(&mut locked(&sum), seed, summary, &options.finds);
            let mut told = locked(&told);
            if told.elapsed() >= PROGRESS {
                *told = Instant::now();
                eprintln!("{}", line(&locked(&sum), started));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let ends =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")));
        ends.collect::<Result<Vec<()>>>()
    })?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{}", line(&sum, started));
    let faults: Vec<String> = sum.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    if !sum.failed.is_empty() {
        println!("FAILED seeds: {:?}; their histories are in {}", sum.failed, options.world.out.display());
    }
    let mut is_missing = false;
    for (workload, done) in &sum.workloads {
        for missing in done.missing() {
            println!("MISSING {workload}, in all of {} seeds: {missing}", done.seeds);
            is_missing = true;
        }
    }
    let is_clean = sum.failed.is_empty() && !is_missing && sum.done == options.seeds;
    Ok(if options.find { !sum.found.is_empty() } else { is_clean })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(sum: &Sum, started: Instant) -> String {
    format!(
        "{} seeds in {} s: {} failed; {} operations done, {} unknown, {} simulated seconds",
        sum.done,
        started.elapsed().as_secs(),
        sum.failed.len(),
        sum.ok,
        sum.unknown,
        sum.simulated_ms / 1000
    )
}

fn add(sum: &mut Sum, seed: u64, summary: Option<Summary>, wanted: &[String]) {
    sum.done += 1;
    let Some(summary) = summary else {
        println!("seed {seed} does not come to an end");
        sum.failed.push(seed);
        sum.found.extend(wanted.is_empty().then_some(seed));
        return;
    };
    if !summary.findings.is_empty() {
        println!("seed {seed}, {}, after {} ms:", summary.workload, summary.steps);
        summary.findings.iter().for_each(|finding| println!("  {}: {}", finding.anomaly, finding.detail));
        sum.failed.push(seed);
        let is_meant = |text: &str| wanted.iter().any(|wanted| text.contains(wanted));
        let mut findings = summary.findings.iter();
        if wanted.is_empty() || findings.any(|it| is_meant(&it.anomaly) || is_meant(&it.detail)) {
            sum.found.push(seed);
        }
    }
    sum.workloads.entry(summary.workload.clone()).or_default().add(&summary);
    sum.ok += summary.ok;
    sum.unknown += summary.unknown;
    sum.simulated_ms += summary.steps;
    for (kind, count) in summary.faults {
        *sum.faults.entry(kind).or_default() += count;
    }
}

impl World {
    /// The options that are not left to the seed, with their values.
    pub(super) fn said(&self) -> Vec<(&'static str, String)> {
        let without = Safeguard::ALL.iter().filter(|(_, safeguard)| self.without.contains(safeguard));
        let without: Vec<&str> = without.map(|(name, _)| *name).collect();
        let mut said = vec![("time", self.time.to_string())];
        let number = |number: u64| number.to_string();
        said.extend(self.workload.iter().map(|name| ("workload", name.clone())));
        said.extend(self.members.map(|members| ("members", number(members))));
        said.extend(self.contended.then(|| ("contended", String::new())));
        said.extend(self.clients.map(|clients| ("clients", number(clients as u64))));
        said.extend(self.unformed.then(|| ("unformed", String::new())));
        said.extend((!self.knobs.is_empty()).then(|| ("knobs", self.knobs.join(","))));
        said.extend((!self.faults.is_empty()).then(|| ("faults", self.faults.join(","))));
        said.extend(self.disks_lie.then(|| ("disks-lie", String::new())));
        said.extend((!without.is_empty()).then(|| ("without", without.join(","))));
        said.extend((!self.despite.is_empty()).then(|| ("despite", self.despite.join(","))));
        said
    }

    /// Runs a seed in its own process. None if it does not end.
    fn process(&self, seed: u64) -> Result<Option<Summary>> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["sim-one", "--seed", &seed.to_string()]).arg("--out").arg(&self.out);
        for (name, value) in self.said() {
            command.arg(format!("--{name}")).args((!value.is_empty()).then_some(value));
        }
        let child = command.stdout(Stdio::piped()).spawn().context("cannot start a simulation")?;
        let Some(output) = within(child, SEED_TIME_MAX)? else { return Ok(None) };
        let summary =
            serde_json::from_slice(&output).with_context(|| format!("seed {seed} has no result"))?;
        Ok(Some(summary))
    }
}

fn safeguard_named(name: &str) -> Result<Safeguard, String> {
    let found = Safeguard::ALL.iter().find(|(known, _)| *known == name).map(|(_, safeguard)| *safeguard);
    let names: Vec<&str> = Safeguard::ALL.iter().map(|(name, _)| *name).collect();
    found.ok_or_else(|| format!("there are {}", names.join(", ")))
}

/// The output of a process until its end. None if it had to be killed.
pub(super) fn within(mut child: Child, limit: Duration) -> Result<Option<Vec<u8>>> {
    let mut stdout = child.stdout.take().context("a pipe was asked for")?;
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut output).map(|_| output)
    });
    let started = Instant::now();
    while !reader.is_finished() && started.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    let is_late = !reader.is_finished();
    if is_late {
        child.kill().context("cannot end a simulation")?;
    }
    child.wait().context("cannot wait for a simulation")?;
    let output =
        reader.join().unwrap_or_else(|_| Ok(Vec::new())).context("cannot read a simulation's result")?;
    Ok((!is_late).then_some(output))
}

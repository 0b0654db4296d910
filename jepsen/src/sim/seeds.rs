//! Runs many seeds, several at a time, each in a process of its own: what a process draws by chance (the keys of hash
//! tables, tokio's order of wake-ups) comes from the seed too (`entropy.rs`), and a world that does not end is ended.

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

/// The time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long a seed may take: if its time stands still, something does the same for ever.
const SEED_TIME_MAX: Duration = Duration::from_secs(300);

/// What all seeds have in common.
#[derive(Args, Clone, Debug)]
pub(crate) struct World {
    /// Simulated seconds of load with faults for each seed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) time: u64,
    /// What clients do [default: the seed's choice]
    #[arg(long, value_name = "NAME")]
    pub(super) workload: Option<String>,
    /// What goes wrong, and nothing else [default: all that can]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = PossibleValuesParser::new(KINDS))]
    pub(super) faults: Vec<String>,
    /// Directory for the histories of seeds that failed
    #[arg(long, value_name = "DIR", default_value = "sim-failures")]
    pub(super) out: PathBuf,
    /// Syncs of the log do nothing: the simulation must find it
    #[arg(long)]
    pub(super) disks_lie: bool,
    /// A safeguard of the server that is switched off: the simulation must find it
    #[arg(long, value_name = "SAFEGUARD", value_parser = safeguard_named)]
    pub(super) without: Option<Safeguard>,
}

#[derive(Args, Debug)]
pub(crate) struct Seeds {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 100)]
    seeds: u64,
    /// The first seed [default: a new one, printed]
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// Simulations at the same time [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Something is broken on purpose: go on until a seed finds it, and fail if none does
    #[arg(long)]
    find: bool,
    #[command(flatten)]
    world: World,
}

/// What all seeds add up to.
#[derive(Default)]
struct Sum {
    done: u64,
    failed: Vec<u64>,
    ok: usize,
    unknown: usize,
    simulated_ms: u64,
    faults: BTreeMap<String, usize>,
}

/// True if no seed failed.
pub(crate) fn run_seeds(options: &Seeds, is_asked_to_stop: fn() -> bool) -> Result<bool> {
    let from = options.from.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    println!("seeds {from} to {}, {jobs} at a time", from + options.seeds.saturating_sub(1));
    let (next, sum, started) = (AtomicU64::new(from), Mutex::new(Sum::default()), Instant::now());
    let told = Mutex::new(Instant::now());
    let work = || -> Result<()> {
        while !is_asked_to_stop() && (!options.find || locked(&sum).failed.is_empty()) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + options.seeds {
                return Ok(());
            }
            let summary = options.world.process(seed)?;
            add(&mut locked(&sum), seed, summary);
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
    Ok(if options.find { !sum.failed.is_empty() } else { sum.failed.is_empty() && sum.done == options.seeds })
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

fn add(sum: &mut Sum, seed: u64, summary: Option<Summary>) {
    sum.done += 1;
    let Some(summary) = summary else {
        println!("seed {seed} does not come to an end");
        sum.failed.push(seed);
        return;
    };
    if !summary.findings.is_empty() {
        println!("seed {seed}, {}, after {} ms:", summary.workload, summary.steps);
        summary.findings.iter().for_each(|finding| println!("  {}: {}", finding.anomaly, finding.detail));
        sum.failed.push(seed);
    }
    sum.ok += summary.ok;
    sum.unknown += summary.unknown;
    sum.simulated_ms += summary.steps;
    for (kind, count) in summary.faults {
        *sum.faults.entry(kind).or_default() += count;
    }
}

impl World {
    /// Runs a seed in a process of its own. None if it does not end.
    fn process(&self, seed: u64) -> Result<Option<Summary>> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["sim-one", "--seed", &seed.to_string(), "--time", &self.time.to_string()]);
        command.arg("--out").arg(&self.out).args(self.disks_lie.then_some("--disks-lie"));
        let without = Safeguard::ALL.iter().find(|(_, safeguard)| Some(*safeguard) == self.without);
        command.args(without.iter().flat_map(|(name, _)| ["--without", name]));
        if !self.faults.is_empty() {
            command.args(["--faults", &self.faults.join(",")]);
        }
        command.args(self.workload.iter().flat_map(|name| ["--workload", name]));
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

/// What a process writes until its end. None if it had to be ended.
fn within(mut child: Child, limit: Duration) -> Result<Option<Vec<u8>>> {
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

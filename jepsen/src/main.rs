//! The black-box harness: starts real Kvorum nodes, breaks things, records what clients see, and judges it.
//! It knows the server by its sockets, its signals and its documented exit codes alone.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

mod breaker;
mod check;
mod client;
mod clocks;
mod cluster;
mod contents;
mod digests;
mod disks;
mod edn;
mod history;
mod logs;
mod namespace;
mod nemesis;
mod network;
mod plot;
mod rollback;
mod run;
mod silence;
mod sim;
mod socket;
mod suite;
mod verdict;
mod workload;

use breaker::Break;
use run::Plan;

/// SIGINT or SIGTERM has come.
static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

/// Exit codes: 0 for a clean verdict, 1 for any other, 2 when the harness itself could not do its work.
#[derive(Debug, Parser)]
#[command(name = "kvorum-jepsen", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster, load it, break it, and judge what clients saw
    Run(Run),
    /// Judge the history of a run again
    Check {
        /// The directory of the run
        dir: PathBuf,
    },
    /// Run several pairs of workload and nemesis; those that have a verdict in the directory are not run again
    Suite(SuiteOptions),
    /// Simulate clusters in this process, a seed each: the same seed gives the same history
    Sim(sim::Seeds),
    /// One seed of it, or a script, in a process that does nothing else
    SimOne(sim::One),
    /// Leave lines out of the script of a seed that failed, while it finds the same
    SimShrink(sim::Shrink),
    /// Name the workloads and the nemeses
    List,
}

#[derive(Args, Debug)]
struct Common {
    /// Seconds of load with faults
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u64,
    /// Operations a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    rate: f64,
    /// Where chance begins: the schedule of faults, and the choices of clients [default: a new one, printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Nodes of the cluster
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// Clients, each with one operation under way at a time
    #[arg(long, value_name = "N", default_value_t = 10)]
    clients: usize,
    /// How many of them only read; then all clients are spread over the nodes, and never leave them
    #[arg(long, value_name = "N", default_value_t = 0)]
    readers: usize,
    /// Round trip between any two nodes, on top of what faults do
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=300))]
    distance_ms: u64,
    /// Directory for what the run leaves; missing or empty, but for a suite that goes on
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The server [default: the file kvorum beside this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Run {
    /// What clients do; see list
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// What is broken, at the same time; see list
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "none")]
    nemesis: Vec<String>,
    /// Break a promise on purpose, between the clients and the nodes: the verdict must not be clean
    #[arg(long, value_name = "WHAT")]
    r#break: Option<Break>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
struct SuiteOptions {
    /// Every workload with every fault, two faults at a time, instead of a short list; or, with --distance-ms,
    /// instead of every workload once
    #[arg(long)]
    full: bool,
    /// The server of one run in four, built with --profile checked: an assertion that fails ends it
    #[arg(long, value_name = "FILE")]
    checked_binary: Option<PathBuf>,
    /// Runs at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn plan(&self, workload: &str, nemeses: Vec<String>) -> Plan {
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        eprintln!("seed {seed}");
        Plan {
            workload: workload.to_owned(),
            nemeses,
            time_s: self.time,
            rate: self.rate.max(0.1),
            seed,
            nodes: self.nodes,
            clients: self.clients.max(1),
            readers: self.readers,
            distance_ms: self.distance_ms,
            broken: None,
        }
    }

    fn binary(&self) -> Result<PathBuf> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().context("cannot find this program")?.with_file_name("kvorum"),
        };
        anyhow::ensure!(
            binary.is_file(),
            "there is no server at {}: build it, or name it with --binary",
            binary.display()
        );
        binary.canonicalize().context("cannot find the server")
    }
}

fn is_asked_to_stop() -> bool {
    ASKED_TO_STOP.load(Ordering::Relaxed)
}

/// Has SIGINT and SIGTERM end a run in order. A second one ends this process, and with it the nodes.
fn listen_for_signals() -> Result<()> {
    extern "C" fn stop(_: i32) {
        if ASKED_TO_STOP.swap(true, Ordering::Relaxed) {
            // SAFETY: _exit is async-signal-safe.
            unsafe { libc::_exit(2) }
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler touches an atomic only, or ends the process.
        let installed = unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
        anyhow::ensure!(installed != libc::SIG_ERR, "cannot listen for signals");
    }
    Ok(())
}

fn execute(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Run(options) => {
            namespace::enter()?;
            let nemeses = options.nemesis.into_iter().filter(|name| name != "none").collect();
            let mut plan = options.common.plan(&options.workload, nemeses);
            plan.broken = options.r#break.map(|kind| format!("{kind:?}"));
            let dir = &options.common.out;
            run::run(&plan, options.r#break, &options.common.binary()?, dir, is_asked_to_stop)?;
            let verdict = verdict::judge(dir)?;
            print!("{}", verdict.text());
            if verdict.valid {
                std::fs::remove_dir_all(dir.join("data")).context("cannot remove the nodes' data")?;
            }
            Ok(verdict.valid)
        }
        Verb::Check { dir } => {
            let verdict = verdict::judge(&dir)?;
            print!("{}", verdict.text());
            Ok(verdict.valid)
        }
        Verb::Suite(options) => {
            let suite = suite::Suite {
                binary: options.common.binary()?,
                checked: options.checked_binary.clone(),
                dir: options.common.out.clone(),
                plan: options.common.plan("", Vec::new()),
                is_full: options.full,
                jobs: options.jobs.into(),
            };
            suite.run(is_asked_to_stop)
        }
        Verb::SimOne(options) => sim::run_one(&options),
        Verb::SimShrink(options) => sim::shrink(&options, is_asked_to_stop),
        Verb::Sim(options) => sim::run_seeds(&options, is_asked_to_stop),
        Verb::List => {
            println!("workloads:");
            workload::NAMES.iter().for_each(|(name, about)| println!("  {name}: {about}"));
            println!("nemeses (the first are groups of the others):");
            nemesis::names().iter().for_each(|name| println!("  {name}"));
            Ok(true)
        }
    }
}

fn main() -> ExitCode {
    let done = listen_for_signals().and_then(|()| execute(Cli::parse().verb));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kvorum-jepsen: {error:#}");
            ExitCode::from(2)
        }
    }
}

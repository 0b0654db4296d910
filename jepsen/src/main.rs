//! The black-box harness: starts real Kvorum nodes, breaks things, records what clients see, and judges it.
//! It knows the server only by its sockets, its signals and its documented exit codes.

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
mod cluster;
mod history;
mod nemesis;
mod options;
mod pace;
mod plot;
mod run;
mod sim;
mod suite;
mod verdict;
mod watch;
mod workload;

use breaker::Break;
use options::Common;

/// SIGINT or SIGTERM was received.
static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

/// Exit codes: 0 for a clean verdict, 1 for any other, 2 if the harness itself failed.
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
    /// Run several pairs of workload and nemesis; those with a verdict in the directory are skipped
    Suite(SuiteOptions),
    /// Simulate clusters in this process, one per seed: the same seed gives the same history
    Sim(sim::Seeds),
    /// Run one seed, or a script, in a process that does nothing else
    SimOne(sim::One),
    /// Remove lines from the script of a failed seed, as long as the findings stay the same
    SimShrink(sim::Shrink),
    /// List the workloads and the nemeses
    List,
}

#[derive(Args, Debug)]
struct Run {
    /// The workload of the clients; see list
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// The faults, which overlap; see list
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
    /// Every workload with every fault, two faults at a time, instead of a short list; or, with
    /// --distance-ms, instead of every workload once
    #[arg(long)]
    full: bool,
    /// The server for one run in four, built with --profile checked: a failed assertion ends it
    #[arg(long, value_name = "FILE")]
    checked_binary: Option<PathBuf>,
    /// Number of parallel runs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    #[command(flatten)]
    common: Common,
}

fn is_asked_to_stop() -> bool {
    ASKED_TO_STOP.load(Ordering::Relaxed)
}

/// Has SIGINT and SIGTERM end a run in order. The second signal ends this process, and with it the nodes.
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
            cluster::namespace::enter()?;
            let nemeses = options.nemesis.into_iter().filter(|name| name != "none").collect();
            let seed = options.common.seed();
            let plan = options.common.plan(&options.workload, nemeses, seed, options.r#break);
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
                seed: options.common.seed(),
                common: options.common,
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

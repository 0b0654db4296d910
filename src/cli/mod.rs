//! The command line: one file per verb. A verb returns; only main ends the process.

use clap::{Parser, Subcommand};

mod clock;
mod dev;
mod log;
mod recover;
mod serve;
mod status;
mod want;

/// The server did not start or a verb failed, for a reason without a code of its own.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const CONFIG: u8 = 2;
/// An address is in use, or does not belong to this machine.
pub const ADDRESS_TAKEN: u8 = 3;
/// Another process uses the data directory.
pub const DATA_LOCKED: u8 = 4;
/// The data directory belongs to another node or cluster.
pub const OTHER_DATA: u8 = 5;
/// The log or the pages are damaged, or older than what this node has promised.
pub const DATA_DAMAGED: u8 = 6;
/// The system refuses something that the node needs. The data directory is as it was.
pub const WANTING: u8 = 8;

const EXIT_CODES: &str = "Exit codes:
  0  stopped in good order
  1  failed for another reason, which is told
  2  the command line or the configuration is wrong (file, line and key are told)
  3  an address is taken by another process, or is none of this machine's
  4  the data directory is used by another process
  5  the data directory belongs to another node or cluster
  6  the log or the pages in the data directory are damaged or an older copy (how to rejoin is told)
  7  the other nodes contradict what this node has applied: keep its data directory, and look into it
  8  the system refuses what a node needs: file descriptors, memory, threads, space, permission, or an answer of
     the disk (which of them, and what to do, is told); nothing in the data directory was moved or lost";

/// A Raft-replicated, strongly consistent key-value server that speaks the Redis protocol.
#[derive(Debug, Parser)]
#[command(name = "kvorum", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one node
    #[command(after_help = EXIT_CODES)]
    Serve(Box<serve::Serve>),
    /// Run a whole cluster on this machine, one process a node, to try things out
    Dev(dev::Dev),
    /// Recover from the loss of a majority: make a surviving node a new cluster (offline)
    #[command(long_about = recover::HELP, after_help = EXIT_CODES)]
    Recover(recover::Recover),
    /// Look at a node's log, entry by entry (offline)
    Log(log::Log),
    /// Show the members of a cluster: role, term, progress
    Status(status::Status),
    /// Show how far the log's clock is from the wall clocks, and close the distance
    #[command(long_about = clock::HELP)]
    Clock(clock::Clock),
}

/// Why a verb failed, for a person and for a script.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened.
    pub error: anyhow::Error,
    /// What to do about it.
    pub advice: Option<String>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { code: FAILED, error, advice: None }
    }
}

/// Runs a verb.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        Verb::Serve(serve) => serve::run(*serve),
        Verb::Dev(dev) => dev::run(dev),
        Verb::Recover(recover) => recover::run(recover),
        Verb::Log(log) => log::run(log),
        Verb::Status(status) => Ok(status::run(status)?),
        Verb::Clock(clock) => Ok(clock::run(clock)?),
    }
}

/// Resolves when the process receives SIGINT or SIGTERM.
async fn asked_to_stop() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

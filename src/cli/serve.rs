//! `kvorum serve`: one node. If the node's state turns out to differ from the others', the process replaces
//! itself with a new one (exec), which takes its state from the others.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow};
use clap::Args;
use kvorum_raft::{StartError, Want, descriptors};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::{ADDRESS_TAKEN, CONFIG, DATA_DAMAGED, DATA_LOCKED, FAILED, Failure, OTHER_DATA, want};
use crate::{
    config::{Config, ConfigError, Options},
    connection::descriptors::Shares,
    server::{self, ServeError},
};

/// The default log filter: openraft's own messages are about its internals.
const LOG: &str = "info,openraft=error";

/// Options may be given as flags, as variables, or in a file under the same names; flags override variables,
/// variables override the file.
#[derive(Args, Debug)]
pub struct Serve {
    /// TOML file with any of the options below, such as: id = 1
    #[arg(long, env = "KVORUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(serve: Serve) -> Result<(), Failure> {
    let wrong = |error: anyhow::Error| Failure { code: CONFIG, error, advice: None };
    // These errors include their causes; chaining them would repeat them.
    let told = |error: ConfigError| wrong(anyhow!("{}", error.to_string().trim_end()));
    let given = serve.options.clone();
    let options = serve.options.with_file(serve.config.as_deref()).map_err(told)?;
    let filter = options.log.clone().unwrap_or_else(|| LOG.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| wrong(anyhow!("log: {filter:?}: {error}")))?;
    let config =
        options.validate().map_err(|error| match place(&error, &given, serve.config.as_deref()) {
            Some(place) => wrong(anyhow!("{place}: {error}")),
            None => told(error),
        })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    let mut config = config;
    fit_to_descriptors(&mut config)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(serve_until_asked(config))
}

/// Raises the limit of file descriptors as far as it goes, and fits the number of clients to it.
fn fit_to_descriptors(config: &mut Config) -> Result<(), Failure> {
    let limit = descriptors::raise();
    match Shares::of(limit, &config.node) {
        Some(shares) => {
            config.http_connections_max = shares.http as usize;
            config.settings.fit_clients(&shares);
        }
        None => {
            let needed = descriptors::NEEDED;
            let error =
                format!("this process may have {limit} open files, and a node needs at least {needed}");
            return Err(want::failure(Want::Descriptors, &config.node.dir, &error));
        }
    }
    Ok(())
}

/// File and line of an invalid value; None if it came from a flag or a variable.
fn place(error: &ConfigError, given: &Options, file: Option<&Path>) -> Option<String> {
    let ConfigError::Invalid { key, .. } = error else { return None };
    if given.clone().validate().is_err_and(|other| other.to_string() == error.to_string()) {
        return None;
    }
    let file = file?;
    let text = std::fs::read_to_string(file).ok()?;
    let is_it = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == *key);
    let line = text.lines().position(is_it)?;
    Some(format!("{}, line {}", file.display(), line + 1))
}

async fn serve_until_asked(config: Config) -> Result<(), Failure> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        if super::asked_to_stop().await.is_ok() {
            tracing::info!("stopping");
            // An error means that the server has ended already.
            let _ = stop.send(true);
        }
    });
    let dir = config.node.dir.clone();
    match server::serve(config, stopped.clone()).await {
        Err(ServeError::Start(StartError::StateDiffers(_))) if *stopped.borrow() => Ok(()),
        Err(ServeError::Start(error @ StartError::StateDiffers(_))) => Err(start_anew(&error)),
        served => served.map_err(|error| failure(error, &dir)),
    }
}

/// Replaces this process with the same program and arguments. Returns only on an error.
fn start_anew(why: &StartError) -> Failure {
    tracing::error!("{why}: starting anew");
    let mut arguments = std::env::args_os();
    let mut program = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    let error = program.args(arguments).exec();
    Failure {
        code: FAILED,
        error: anyhow!("{why}; and it cannot start itself: {error}"),
        advice: Some("Start it again.".to_owned()),
    }
}

/// The exit code and the advice for each error at a start.
fn failure(error: ServeError, dir: &Path) -> Failure {
    let taken = |kind: io::ErrorKind| {
        matches!(
            kind,
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable | io::ErrorKind::PermissionDenied
        )
    };
    if let Some(want) = want_of(&error) {
        return want::failure(want, dir, &error);
    }
    let (code, advice) = match &error {
        ServeError::Listen { source, .. } | ServeError::Start(StartError::Listen { source, .. }) => {
            (if taken(source.kind()) { ADDRESS_TAKEN } else { FAILED }, None)
        }
        ServeError::NotAdded(_) => (
            FAILED,
            Some(format!(
                "A node joins with an empty directory, and an id that was never used: kvorum serve --id NEW --join ...\n\
                 If {} is not this node's old one by mistake, it can be removed.",
                dir.display()
            )),
        ),
        ServeError::Start(StartError::Locked(_)) => (DATA_LOCKED, None),
        ServeError::Start(StartError::OtherCluster { .. }) => {
            (OTHER_DATA, Some("Start with that cluster's peers, or with another directory.".to_owned()))
        }
        ServeError::Start(StartError::Recovered { .. }) => (
            OTHER_DATA,
            Some(format!(
                "What this directory has and the recovered cluster has not is lost to it: keep it while you may need it.\n\
                 To go on with this machine:\n\
                 \u{20} 1. set {} aside, so that it is empty\n\
                 \u{20} 2. start under an id that was never used: kvorum serve --id NEW --join http://ANY-MEMBER ...",
                dir.display()
            )),
        ),
        ServeError::Start(StartError::Unfinished { backup, .. }) => (
            FAILED,
            Some(format!(
                "Finish it, with the same command as before: kvorum recover --data {} --as-new-cluster ...\n\
                 The state before it is in {}, which is a complete data directory.",
                dir.display(),
                backup.display()
            )),
        ),
        ServeError::Start(StartError::OtherNode { .. }) => (
            OTHER_DATA,
            Some("Start with the id that the directory belongs to, or with another directory.".to_owned()),
        ),
        ServeError::Start(StartError::LogCorrupted { .. } | StartError::WentBack { .. }) => {
            (DATA_DAMAGED, Some(rejoin(dir)))
        }
        ServeError::Start(StartError::PagesUnreadable { set_aside, .. }) => {
            (DATA_DAMAGED, Some(format!("{}\n{}", put_back(dir, set_aside), rejoin(dir))))
        }
        ServeError::Start(StartError::Config(_)) => (CONFIG, None),
        ServeError::Ended(..)
        | ServeError::Start(
            StartError::Io { .. } | StartError::Wanting { .. } | StartError::StateDiffers(_),
        ) => (FAILED, None),
    };
    Failure { code, error: anyhow!("{error}"), advice }
}

/// What the system refused, if that is why the server did not start. Permission to listen is a matter of the
/// address.
fn want_of(error: &ServeError) -> Option<Want> {
    match error {
        ServeError::Listen { source, .. } | ServeError::Start(StartError::Listen { source, .. }) => {
            Want::of(source).filter(|want| want.may_pass())
        }
        ServeError::Start(error) => error.want(),
        ServeError::NotAdded(_) | ServeError::Ended(..) => None,
    }
}

/// What can be done before a node whose pages are unreadable is given up.
fn put_back(dir: &Path, set_aside: &[PathBuf]) -> String {
    let kept: Vec<String> = set_aside.iter().map(|path| path.display().to_string()).collect();
    let kept = if kept.is_empty() { "nowhere: they are missing".to_owned() } else { kept.join(", ") };
    format!(
        "Before you give this node up, start it again while other members run: it asks all of them for their pages.\n\
         Unreadable pages are kept (here: {kept}). Each start tries the newest of them again, and puts back the first that\n\
         is whole and new enough. So if they were unreadable for a reason that is gone, start the node again. If you have\n\
         repaired them, or have them elsewhere, put them into {} as pages.unreadable-N with the highest N.",
        dir.display()
    )
}

/// How a node rejoins after losing its data. Its id must not be reused: the votes that it gave are lost.
fn rejoin(dir: &Path) -> String {
    format!(
        "This node cannot go on with its data. While a majority of the other members is there, nothing is lost:\n\
         \u{20} 1. remove this node: curl -X DELETE http://ANY-MEMBER/v1/cluster/members/ID\n\
         \u{20} 2. set {} aside\n\
         \u{20} 3. start it under an id that was never used: kvorum serve --id NEW --join http://ANY-MEMBER ...",
        dir.display()
    )
}

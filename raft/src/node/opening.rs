//! What a node opens before it takes part: its address, its log, its pages; and what it refuses to start
//! with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use openraft::storage::{RaftLogReader, RaftLogStorage};
use tokio::time::Instant;

use crate::{
    Machine, NodeConfig, StartError,
    identity::{Identity, witness::Held},
    log::{Log, LogConfig, LogError},
    net::transport::Listener,
    node::peer_table::PeerTable,
    pages::{Aside, PAGES, PageStore, PagesError},
    platform::Platform,
    safeguard::{self, Safeguard},
    snapshot::{
        checkpoint::{self, LoadError},
        recover,
        renewal::RENEWED,
    },
    state::progress::Progress,
    types::GROUP,
    want::Want,
};

/// Spare log segments that are kept zeroed.
const SPARE_SEGMENTS: usize = 2;

/// How many of the directories that were set aside are tried again at a start. On some damage sled takes
/// minutes.
const TRIED_AGAIN_MAX: usize = 3;

/// Where the pages of a received snapshot are collected.
pub(crate) const RECEIVED: &str = "pages.received";

/// The least time that peers have to say that they know a later state of this disk: connecting and greeting
/// take two round trips.
const ASKING_MIN: Duration = Duration::from_millis(750);

pub(crate) fn io_error(context: &str, error: impl std::fmt::Display) -> StartError {
    StartError::Io { context: context.into(), source: std::io::Error::other(error.to_string()) }
}

pub(crate) async fn listen(
    platform: &Platform,
    config: &NodeConfig,
) -> Result<Box<dyn Listener>, StartError> {
    let failed = |source| StartError::Listen { address: config.peer_listen.clone(), source };
    platform.transport.listen(&config.peer_listen).await.map_err(failed)
}

/// Opens the log and the last checkpoint, and waits until this node may take part.
pub(crate) async fn open_data<M: Machine>(
    config: &NodeConfig,
    table: &Arc<PeerTable>,
    machine: &M,
    started: Instant,
) -> Result<(Log, PageStore, Progress), StartError> {
    let log = open_log(&table.platform, config, &table.identity).await?;
    let (pages, progress) = open_pages(config, &log, table, machine).await?;
    table.identity.begin_with(held(&log, &progress));
    wait_for_promises(config, &log, table, started).await?;
    Ok((log, pages, progress))
}

async fn open_log(platform: &Platform, config: &NodeConfig, identity: &Identity) -> Result<Log, StartError> {
    let log_config = LogConfig {
        dir: config.dir.join("log"),
        segment_bytes: config.log_segment_bytes,
        cache_bytes: config.log_cache_bytes,
        spare_segments: SPARE_SEGMENTS,
        space: platform.space.clone(),
    };
    let opened =
        platform.open_log(log_config).await.map_err(|error| io_error("cannot open the log", error))?;
    let log = opened.map_err(|error| match error {
        LogError::Corrupted { file, offset, detail } => {
            StartError::LogCorrupted { file, detail: format!("at byte {offset}: {detail}") }
        }
        LogError::Config(text) => StartError::Config(text),
        LogError::Io { context, source } => StartError::Io { context, source },
    })?;
    check_not_lost(config, identity, &log).await?;
    Ok(log)
}

/// A member whose log is gone has forgotten what it voted for and acknowledged: it must not take part again.
async fn check_not_lost(config: &NodeConfig, identity: &Identity, log: &Log) -> Result<(), StartError> {
    let failed = |error| io_error("cannot read the log", error);
    let mut store = log.store(GROUP);
    let vote = store.read_vote().await.map_err(failed)?;
    let last = store.get_log_state().await.map_err(failed)?.last_log_id;
    if identity.has_log() && vote.is_none() && last.is_none() {
        let detail = "it is empty, but this node has been a member of a cluster".into();
        return Err(StartError::LogCorrupted { file: config.dir.join("log"), detail });
    }
    Ok(())
}

/// Loads the last checkpoint, and truncates a log that does not agree with it.
async fn open_pages<M: Machine>(
    config: &NodeConfig,
    log: &Log,
    table: &Arc<PeerTable>,
    machine: &M,
) -> Result<(PageStore, Progress), StartError> {
    table.identity.begin_with(held(log, &Progress::default()));
    // What is left of an earlier snapshot is useless, and may take up space that is needed here.
    for left in [RECEIVED, RENEWED] {
        let removed = table.platform.remove_pages(&config.dir.join(left)).await;
        removed.map_err(|error| io_error("cannot remove pages that were written in part", error))?;
    }
    let (pages, progress) = load_pages(config, log, table, machine).await?;
    if let Some(applied) = progress.last {
        let agreed = log.store(GROUP).agree_with(applied).await;
        agreed.map_err(|error| io_error("cannot cut the log", error))?;
    }
    Ok((pages, progress))
}

/// Loads the last checkpoint. Unusable pages are set aside and rebuilt, from the log alone if it still has
/// every entry and the state was not distrusted, otherwise from what was set aside before, or from a peer.
async fn load_pages<M: Machine>(
    config: &NodeConfig,
    log: &Log,
    table: &Arc<PeerTable>,
    machine: &M,
) -> Result<(PageStore, Progress), StartError> {
    let (platform, dir) = (&table.platform, config.dir.join(PAGES));
    let state =
        log.store(GROUP).get_log_state().await.map_err(|error| io_error("cannot read the log", error))?;
    let purged_index = state.last_purged_log_id.map_or(0, |purged| purged.index);
    let distrusted = table.identity.distrusted_state();
    let is_distrusted = distrusted.is_some();
    // Without what is set aside now.
    let earlier = platform.unreadable_pages(&dir);
    let earlier = earlier.map_err(|error| io_error("cannot list the data directory", error))?;
    let (why, aside) = match distrusted {
        Some(why) => (why, Aside::Distrusted),
        None => match open_trusted_pages(platform, config, machine, purged_index).await? {
            Ok(opened) => return Ok(opened),
            Err(why) => (why, Aside::Unreadable),
        },
    };
    if platform.has_pages(&dir).map_err(|error| io_error("cannot list the data directory", error))? {
        let aside = platform
            .set_pages_aside(&dir, aside)
            .map_err(|error| io_error("cannot set the unusable pages aside", error))?;
        tracing::error!(why, aside = %aside.display(), "the pages cannot be used and were set aside");
    }
    // A log that has led to a different state once may do so again.
    let is_put_back = !is_distrusted
        && purged_index > 0
        && put_pages_back(platform, config, machine, earlier, purged_index).await?;
    if (is_distrusted || purged_index > 0) && !is_put_back {
        fetch_pages(config, table, purged_index, &why).await?;
    }
    let opened = try_open_pages(platform, config, &dir, machine).await;
    let opened = opened.map_err(|error| unusable(error, platform, config))?;
    let trusted = table.identity.trust_state();
    trusted.map_err(|error| io_error("cannot write the identity file", error))?;
    Ok(opened)
}

/// Why the node does not start with its pages.
fn unusable(error: LoadError, platform: &Platform, config: &NodeConfig) -> StartError {
    match error {
        LoadError::Pages(error) => no_pages(error, "cannot use the pages", platform, config),
        error if error.is_of_a_later_version() => StartError::Config(error.to_string()),
        error => unreadable(error.to_string(), platform, config),
    }
}

/// The same, where only the page store has something against it.
fn no_pages(error: PagesError, context: &str, platform: &Platform, config: &NodeConfig) -> StartError {
    match error {
        PagesError::Failed(why) => io_error(context, why),
        PagesError::Full(why) => {
            StartError::Wanting { want: Want::Space, context: "cannot use the pages".into(), why }
        }
        PagesError::Refused { want, why } => StartError::Wanting { want, context: context.into(), why },
        PagesError::Unreadable(why) => unreadable(why, platform, config),
    }
}

fn unreadable(why: String, platform: &Platform, config: &NodeConfig) -> StartError {
    // Only said for help: without it the message is still right.
    let set_aside = platform.unreadable_pages(&config.dir.join(PAGES)).unwrap_or_default();
    StartError::PagesUnreadable { why, set_aside }
}

/// Fetches a checkpoint from a peer. It gets its name when it is whole.
async fn fetch_pages(
    config: &NodeConfig,
    table: &Arc<PeerTable>,
    purged_index: u64,
    why: &str,
) -> Result<(), StartError> {
    let (platform, staged) = (&table.platform, config.dir.join(RECEIVED));
    let fetched = recover::fetch(table, &staged, config.page_cache_bytes, purged_index).await;
    let store = fetched.map_err(|error| match error {
        PagesError::Unreadable(reasons) => unreadable(format!("{why}; {reasons}"), platform, config),
        error => no_pages(error, "cannot fetch the pages", platform, config),
    })?;
    store.close();
    drop(store);
    let replaced = platform.replace_pages(config.dir.join(PAGES), staged).await;
    replaced.map_err(|error| io_error("cannot use the pages that were fetched", error))
}

/// Looks at what was set aside as unreadable, the newest first: it may have been unreadable only for a while,
/// or have been repaired. Puts back what is whole and reaches as far as the log was purged. False if there is
/// nothing like that.
async fn put_pages_back<M: Machine>(
    platform: &Platform,
    config: &NodeConfig,
    machine: &M,
    set_aside: Vec<PathBuf>,
    purged_index: u64,
) -> Result<bool, StartError> {
    for aside in set_aside.into_iter().take(TRIED_AGAIN_MAX) {
        match try_open_pages(platform, config, &aside, machine).await {
            Ok((store, progress)) => {
                store.close();
                let index = progress.last.map_or(0, |last| last.index);
                if index >= purged_index {
                    let back = platform.put_pages_back(&aside, &config.dir.join(PAGES));
                    back.map_err(|error| io_error("cannot put the pages back", error))?;
                    tracing::warn!(index, aside = %aside.display(), "pages that were set aside are whole and were put back");
                    return Ok(true);
                }
                tracing::warn!(index, purged_index, aside = %aside.display(), "what was set aside is too old");
            }
            // It is not known yet whether it can be used.
            Err(LoadError::Pages(
                error @ (PagesError::Failed(_) | PagesError::Full(_) | PagesError::Refused { .. }),
            )) => {
                return Err(no_pages(error, "cannot read the pages that were set aside", platform, config));
            }
            Err(error) => {
                tracing::warn!(%error, aside = %aside.display(), "what was set aside is not whole");
            }
        }
    }
    Ok(false)
}

/// Opens the pages as they are, or tells why they cannot be used.
async fn open_trusted_pages<M: Machine>(
    platform: &Platform,
    config: &NodeConfig,
    machine: &M,
    purged_index: u64,
) -> Result<Result<(PageStore, Progress), String>, StartError> {
    let dir = config.dir.join(PAGES);
    let is_there =
        platform.has_pages(&dir).map_err(|error| io_error("cannot list the data directory", error))?;
    if purged_index > 0 && !is_there {
        // An empty directory in their place would only be set aside.
        return Ok(Err("the pages are missing".to_owned()));
    }
    match try_open_pages(platform, config, &dir, machine).await {
        Ok((store, progress)) => {
            let index = progress.last.map_or(0, |last| last.index);
            if index >= purged_index {
                return Ok(Ok((store, progress)));
            }
            // Damage can make sled open at an older commit, silently.
            store.close();
            Ok(Err(format!("the checkpoint is at {index}, but the log was purged up to {purged_index}")))
        }
        // The pages themselves are sound: setting them aside would lose them.
        Err(LoadError::Pages(
            error @ (PagesError::Failed(_) | PagesError::Full(_) | PagesError::Refused { .. }),
        )) => Err(no_pages(error, "cannot use the pages", platform, config)),
        Err(LoadError::Io(error)) => Err(io_error("cannot use the pages", error)),
        Err(error) if error.is_of_a_later_version() => Err(StartError::Config(error.to_string())),
        Err(why) => Ok(Err(why.to_string())),
    }
}

async fn try_open_pages<M: Machine>(
    platform: &Platform,
    config: &NodeConfig,
    dir: &Path,
    machine: &M,
) -> Result<(PageStore, Progress), LoadError> {
    let started = Instant::now();
    let store = platform.open_pages(dir.to_owned(), config.page_cache_bytes).await?;
    match checkpoint::load(&store, GROUP, machine).await {
        Ok(progress) => {
            let progress = progress.unwrap_or_default();
            let index = progress.last.map_or(0, |id| id.index);
            tracing::info!(index, ms = started.elapsed().as_millis() as u64, "checkpoint loaded");
            Ok((store, progress))
        }
        Err(error) => {
            store.close();
            Err(error)
        }
    }
}

/// What is on the disk at the start: a checkpoint that was received may be ahead of the log.
fn held(log: &Log, progress: &Progress) -> Held {
    let store = log.store(GROUP);
    let of_log = store.durable_entry();
    let ahead = progress.last.filter(|last| of_log.is_none_or(|of_log| of_log.index < last.index));
    Held::new(ahead.or(of_log), store.durable_vote().map_or(0, |vote| vote.leader_id.term))
}

/// A node that voted or followed before it stopped may have granted a leader a lease, which it has forgotten:
/// it answers no Raft message before that lease must have run out. Meanwhile it asks its peers whether its
/// disk is the one that they know: it must not vote before they could have told it that it is not.
async fn wait_for_promises(
    config: &NodeConfig,
    log: &Log,
    table: &PeerTable,
    started: Instant,
) -> Result<(), StartError> {
    let vote = log.store(GROUP).read_vote().await.map_err(|error| io_error("cannot read the vote", error))?;
    if vote.is_some() && !safeguard::is_off(Safeguard::StartupGuard) {
        let lease = Duration::from_millis(config.election_timeout_ms.1);
        let left = lease.saturating_sub(started.elapsed());
        // Peers that start at the same time do not answer yet.
        let peers = table.identity.peers();
        table.greet_all(&mut BTreeMap::new(), &peers, left.max(ASKING_MIN)).await;
        tokio::time::sleep(lease.saturating_sub(started.elapsed())).await;
    }
    match table.identity.went_back() {
        Some((peer, why)) => Err(StartError::WentBack { dir: config.dir.clone(), peer, why }),
        None => Ok(()),
    }
}

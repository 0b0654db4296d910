//! A process that appends, votes and purges is killed again and again. Whatever was acknowledged to it as
//! durable is there after the next start, with the right content.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesOrdered};
use openraft::{
    RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use tempfile::TempDir;

use super::{
    Log, LogConfig,
    tests::{all, entry},
};
use crate::{
    kill,
    types::{Entry, LogId, TypeConfig, Vote},
};

const ROUNDS: u32 = 60;

/// Entries kept when the child purges.
const KEPT: u64 = 100;

fn config(dir: std::path::PathBuf) -> LogConfig {
    LogConfig {
        dir,
        segment_bytes: 256 << 10,
        cache_bytes: 64 << 10,
        spare_segments: 2,
        space: crate::space::unknown(),
    }
}

fn expected(index: u64) -> Entry {
    entry(1, index, (index * 7919 % 5000) as usize)
}

async fn child(dir: std::path::PathBuf) {
    let log = Log::open(config(dir), Arc::new(|text| panic!("{text}"))).unwrap();
    let mut store = log.store(9);
    let mut next = store.get_log_state().await.unwrap().last_log_id.map_or(1, |last| last.index + 1);
    let mut term = store.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
    let mut pending = FuturesOrdered::new();
    loop {
        let count = 1 + next % 5;
        let (done, durable) = TypeConfig::oneshot();
        store.append((next..next + count).map(expected), IOFlushed::signal(done)).await.unwrap();
        next += count;
        let last = next - 1;
        pending.push_back(async move { durable.await.map(|result| result.map(|()| last)) });
        if pending.len() > 3 {
            let last = pending.next().await.unwrap().unwrap().unwrap();
            kill::say(&format!("appended {last}"));
            if last % 64 == 0 && last > KEPT {
                store.purge(LogId::new_term_index(1, last - KEPT)).await.unwrap();
            }
        }
        if next % 17 == 0 {
            term += 1;
            store.save_vote(&Vote::new(term, 1)).await.unwrap();
            kill::say(&format!("voted {term}"));
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if let Some(dir) = kill::child_dir() {
        return runtime.block_on(child(dir));
    }
    let mut rng = fastrand::Rng::with_seed(kill::seed());
    let dir = TempDir::new().unwrap();
    let (mut appended, mut voted) = (0, 0);
    for round in 0..ROUNDS {
        let after = Duration::from_micros(rng.u64(..60_000));
        let test = "log::kill_tests::a_killed_process_loses_nothing_acknowledged";
        for line in kill::run_and_kill(test, dir.path(), after) {
            match line.split_once(' ').unwrap() {
                ("appended", index) => appended = index.parse().unwrap(),
                ("voted", term) => voted = term.parse().unwrap(),
                other => panic!("{other:?}"),
            }
        }
        let log = Log::open(config(dir.path().to_owned()), Arc::new(|text| panic!("{text}"))).unwrap();
        let mut store = log.store(9);
        runtime.block_on(async {
            let state = store.get_log_state().await.unwrap();
            let last = state.last_log_id.unwrap().index;
            assert!(last >= appended, "round {round}: {appended} was acknowledged, {last} is the last");
            let purged = state.last_purged_log_id.map_or(0, |id| id.index);
            assert!(purged == 0 || purged + KEPT <= last);
            let found = all(&store).await;
            assert!(
                found.iter().eq((purged + 1..=last).map(expected).collect::<Vec<_>>().iter()),
                "round {round}"
            );
            let vote = store.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
            assert!(
                vote >= voted,
                "round {round}: the vote in term {voted} was acknowledged, {vote} is there"
            );
        });
    }
    println!("{ROUNDS} rounds, {appended} entries, {voted} votes");
    assert!(appended > u64::from(ROUNDS));
}

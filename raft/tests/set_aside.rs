//! Pages that were set aside because they could not be read are put back when that was wrong, before anybody is asked for
//! others; those that were distrusted never are.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use support::{Cluster, counter::propose_all, eventually};

/// Checkpoints all the time, and keeps nothing behind them.
fn small_checkpoints(config: &mut kvorum_raft::NodeConfig) {
    config.checkpoint_log_bytes = 32 << 10;
    config.log_segment_bytes = 64 << 10;
    config.log_entries_kept = 50;
    config.entry_proposals_max = 4;
}

/// Three nodes without any entry in their logs that is not in their checkpoints too, stopped.
async fn stopped_cluster() -> (Cluster, BTreeMap<u64, u64>) {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    cluster.know_each_other().await;
    let leader = cluster.leader().await;
    propose_all(cluster.node(leader), (0..4000).map(|number| number % 1000)).await;
    cluster.converge().await;
    for id in 1..=3 {
        cluster.node(id).checkpoint_now().await.unwrap();
        eventually("the log to be purged", async || {
            (cluster.node(id).status().purged_index > 0).then_some(())
        })
        .await;
    }
    let counts = cluster.machine(leader).counts();
    for id in 1..=3 {
        cluster.stop_node(id).await;
    }
    (cluster, counts)
}

fn pages(cluster: &Cluster, id: u64, suffix: &str) -> PathBuf {
    cluster.dir_of(id).join(format!("pages{suffix}"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn damage(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { damage(&path) } else { fs::write(&path, b"not what was there").unwrap() }
    }
}

fn set_aside(cluster: &Cluster, id: u64) -> Vec<PathBuf> {
    cluster.node(id).status().set_aside
}

/// What every node of a cluster did that had too few descriptors at one start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_pages_that_all_nodes_have_set_aside_are_put_back() {
    let (mut cluster, expected) = stopped_cluster().await;
    for id in 1..=3 {
        let live = pages(&cluster, id, "");
        fs::rename(&live, pages(&cluster, id, ".unreadable-1")).unwrap();
        // What is newer is really damaged; node 2 stopped while it had an empty directory in their place.
        copy(&pages(&cluster, id, ".unreadable-1"), &pages(&cluster, id, ".unreadable-2"));
        damage(&pages(&cluster, id, ".unreadable-2"));
        if id == 2 {
            fs::create_dir(&live).unwrap();
        }
    }
    for id in 1..=3 {
        cluster.start_node(id, None).await;
        assert!(!pages(&cluster, id, ".unreadable-1").exists(), "node {id} has not used it");
        assert!(pages(&cluster, id, ".unreadable-2").exists(), "damaged pages are kept");
        assert!(set_aside(&cluster, id).contains(&pages(&cluster, id, ".unreadable-2")));
    }
    cluster.converge().await;
    for id in 1..=3 {
        assert_eq!(cluster.machine(id).counts(), expected, "node {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_distrusted_or_too_old_are_not_put_back() {
    let (mut cluster, _) = stopped_cluster().await;
    copy(&pages(&cluster, 2, ""), &pages(&cluster, 2, ".unreadable-1"));
    for id in 1..=3 {
        cluster.start_node(id, None).await;
    }
    let leader = cluster.leader().await;
    propose_all(cluster.node(leader), (0..4000).map(|number| number % 1000)).await;
    cluster.converge().await;
    let purged = cluster.node(2).status().purged_index;
    cluster.node(2).checkpoint_now().await.unwrap();
    eventually("the log to be purged again", async || {
        (cluster.node(2).status().purged_index > purged).then_some(())
    })
    .await;
    for id in [1, 2] {
        cluster.stop_node(id).await;
    }
    // Nobody but a peer has pages for either.
    fs::rename(pages(&cluster, 1, ""), pages(&cluster, 1, ".distrusted-1")).unwrap();
    fs::remove_dir_all(pages(&cluster, 2, "")).unwrap();
    for (id, kept) in [(1, ".distrusted-1"), (2, ".unreadable-1")] {
        cluster.start_node(id, None).await;
        assert_eq!(set_aside(&cluster, id), [pages(&cluster, id, kept)]);
    }
    cluster.converge().await;
    let counts = cluster.machine(3).counts();
    assert!([1, 2].iter().all(|id| cluster.machine(*id).counts() == counts));
}

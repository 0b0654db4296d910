//! The log's clock and the wall clock: how near they are on a healthy cluster. And where the one is an hour, or a second, ahead
//! of the other: entries say so from the level on at which all members know it, it stands in checkpoints, and the clock can be
//! made to wait.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use kvorum_raft::{AdminError, DISTANCE_LEVEL, NodeId};
use support::{Cluster, counter::propose, eventually};

const HOUR_MS: u64 = 3_600_000;

fn plain(_: &mut kvorum_raft::NodeConfig) {}

/// The log's clock of a cluster goes on from there.
async fn set_ahead(cluster: &mut Cluster, id: NodeId, by_ms: u64) {
    propose(cluster.node(id), 1, 1).await.unwrap();
    let clock_ms = cluster.node(id).clock_ms() + by_ms;
    cluster.machine(id).set_clock_ms(clock_ms);
    propose(cluster.node(id), 1, 1).await.unwrap();
    let (node, _) = cluster.nodes.remove(&id).unwrap();
    node.shutdown().await;
    drop(node);
    cluster.start_node(id, None).await;
    cluster.leader().await;
    propose(cluster.node(id), 1, 1).await.unwrap();
}

fn ahead_ms(cluster: &Cluster, id: NodeId) -> i64 {
    cluster.node(id).status().clock_ahead_ms().unwrap()
}

/// All nodes of this process have the same wall clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_is_written_all_nodes_know_the_time_to_a_millisecond() {
    let cluster = Cluster::start_at(DISTANCE_LEVEL, 3, plain).await;
    let are_near = async || {
        let mut nodes = cluster.nodes.values().map(|(node, _)| node.status().clock_ahead_us);
        nodes.all(|ahead_us| ahead_us.is_some_and(|us| us.unsigned_abs() < 1_000)).then_some(())
    };
    eventually("the clocks to be near each other", &are_near).await;
    for id in [1, 2, 3] {
        let leader = cluster.leader().await;
        cluster.node(leader).transfer_leader(id).await.unwrap();
        propose(cluster.node(id), 1, 1).await.unwrap();
        eventually("the clocks to be near each other", &are_near).await;
    }
    cluster.converge().await;
    assert!((1..=3).all(|id| cluster.machine(id).ahead_ms() == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_say_how_far_the_clock_is_ahead_once_all_members_know_what_that_means() {
    let mut cluster = Cluster::start_at(DISTANCE_LEVEL - 1, 1, plain).await;
    set_ahead(&mut cluster, 1, HOUR_MS).await;
    assert!(ahead_ms(&cluster, 1).unsigned_abs().abs_diff(HOUR_MS) < 10_000);
    assert_eq!(cluster.machine(1).ahead_ms(), 0, "members of a version before do not know it");
    let refused = cluster.node(1).close_clock(true).await.unwrap_err();
    assert!(matches!(&refused, AdminError::Conflict(why) if why.contains("upgrade")), "{refused}");
    cluster.level_max = DISTANCE_LEVEL;
    cluster.stop_node(1).await;
    cluster.start_node(1, None).await;
    let is_said = |cluster: &Cluster| cluster.machine(1).ahead_ms().unsigned_abs().abs_diff(HOUR_MS) < 10_000;
    eventually("an entry that says it", async || {
        propose(cluster.node(1), 1, 1).await.unwrap();
        is_said(&cluster).then_some(())
    })
    .await;
    // It stands in the checkpoint too.
    cluster.node(1).close_clock(true).await.unwrap();
    cluster.node(1).checkpoint_now().await.unwrap();
    cluster.stop_node(1).await;
    cluster.start_node(1, None).await;
    assert!(is_said(&cluster) && cluster.node(1).status().clock_is_closing);
    cluster.leader().await;
    cluster.node(1).close_clock(false).await.unwrap();
    assert!(!cluster.node(1).status().clock_is_closing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_waits_goes_at_half_speed_and_ends_it_when_the_clocks_have_met() {
    let mut cluster = Cluster::start_at(DISTANCE_LEVEL, 1, plain).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    let refused = cluster.node(1).close_clock(true).await.unwrap_err();
    assert!(matches!(&refused, AdminError::Conflict(why) if why.contains("not ahead")), "{refused}");
    // Less by as long as the start takes.
    set_ahead(&mut cluster, 1, 3_000).await;
    let far_ms = ahead_ms(&cluster, 1);
    assert!(far_ms > 500, "{far_ms}");
    let (started, begun_ms) = (Instant::now(), cluster.node(1).clock_ms());
    cluster.node(1).close_clock(true).await.unwrap();
    // Asked again it goes on as it is.
    cluster.node(1).close_clock(true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    let (moved_ms, real_ms) = (cluster.node(1).clock_ms() - begun_ms, started.elapsed().as_millis() as u64);
    assert!(moved_ms.abs_diff(real_ms / 2) < 100, "{moved_ms} ms by the log's clock in {real_ms} ms");
    eventually("the clocks to meet", async || (!cluster.node(1).status().clock_is_closing).then_some(()))
        .await;
    let took_ms = started.elapsed().as_millis() as i64;
    assert!(took_ms > 2 * far_ms - 200, "{far_ms} ms took {took_ms} ms");
    assert!(ahead_ms(&cluster, 1).abs() < 100, "{}", ahead_ms(&cluster, 1));
    propose(cluster.node(1), 1, 1).await.unwrap();
    assert_eq!(cluster.machine(1).ahead_ms(), 0);
}

//! Nodes that are far from each other: many who read and write at once do not wait for each other, and the time-outs follow the
//! distance, back to what they are near by.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kvorum_raft::{NodeId, ReadLevel};
use support::{Cluster, counter::propose, eventually, name};
use tokio::time::Instant;

const NEAR: (u64, u64) = (350, 600);

/// Three nodes with this round trip between them.
async fn far(round_trip: Duration) -> Cluster {
    let mut cluster = Cluster::empty(|_| {});
    cluster.network.stretch(round_trip / 2);
    for id in 1..=3 {
        cluster.start_node(id, Some((1..=3).map(|id| (id, name(id))).collect())).await;
    }
    cluster.leader().await;
    cluster.know_each_other().await;
    cluster
}

async fn all_have(cluster: &Cluster, what: &str, are: fn((u64, u64)) -> bool) {
    let look = async || {
        let mut nodes = cluster.nodes.values();
        nodes.all(|(node, _)| are(node.status().election_timeout_ms)).then_some(())
    };
    eventually(what, look).await;
}

/// What half of them wait at most, where so many ask again and again, not in step.
async fn median(cluster: &Cluster, at: NodeId, writes: bool) -> Duration {
    const CLIENTS: u64 = 20;
    const EACH: usize = 3;
    let clients = (0..CLIENTS).map(|client| async move {
        let mut waits = Vec::new();
        tokio::time::sleep(Duration::from_millis(7 * client)).await;
        for _ in 0..EACH {
            let asked = Instant::now();
            if writes {
                propose(cluster.node(at), client, 1).await.unwrap();
            } else {
                cluster.node(at).barrier(ReadLevel::Linearizable).await.unwrap();
            }
            waits.push(asked.elapsed());
        }
        waits
    });
    let mut waits = futures::future::join_all(clients).await.concat();
    waits.sort_unstable();
    waits[waits.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_take_the_round_trips_of_one() {
    let round_trip = Duration::from_millis(100);
    let cluster = far(round_trip).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    for (at, writes, trips) in
        [(leader, false, 1), (follower, false, 2), (leader, true, 1), (follower, true, 2)]
    {
        let wait = median(&cluster, at, writes).await;
        assert!(wait >= trips * round_trip, "node {at}: {wait:?} is too short for {trips} round trips");
        assert!(wait < (trips + 1) * round_trip, "node {at}, writes: {writes}: {wait:?}");
    }
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_outs_follow_the_distance() {
    let cluster = far(Duration::from_millis(300)).await;
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().term;
    all_have(&cluster, "wider time-outs", |(low, high)| low >= 900 && high >= 2200).await;
    for (node, _) in cluster.nodes.values() {
        let status = node.status();
        assert_eq!(status.timeouts_misfit, None);
        let others = status.members.iter().filter(|member| member.id != status.node_id);
        let least: Vec<Duration> = others.map(|member| member.round_trip.unwrap().least).collect();
        assert!(least.iter().all(|least| *least >= Duration::from_millis(300)), "{least:?}");
    }
    cluster.network.stretch(Duration::ZERO);
    all_have(&cluster, "the usual time-outs", |bounds| bounds == NEAR).await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.node(leader).status().term, term, "nobody stood for election meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_far_leader_that_falls_silent_is_replaced() {
    let cluster = far(Duration::from_millis(200)).await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let (_, high) = cluster.node(others[0]).status().election_timeout_ms;
    let names = others.iter().map(|id| name(*id)).collect::<Vec<_>>();
    cluster.network.silence(&name(leader), &names.iter().map(String::as_str).collect::<Vec<_>>());
    let silent = Instant::now();
    eventually("a write without it", async || propose(cluster.node(others[0]), 1, 1).await.ok()).await;
    let failover = silent.elapsed();
    assert!(failover < 3 * Duration::from_millis(high), "{failover:?}, at time-outs of up to {high} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_stand_at_the_same_time_do_not_split_the_votes() {
    let mut cluster = Cluster::empty(|config| {
        config.election_timeout_ms = (900, 901);
        config.election_timeout_auto = false;
    });
    cluster.network.stretch(Duration::from_millis(100));
    for id in 1..=3 {
        cluster.start_node(id, Some((1..=3).map(|id| (id, name(id))).collect())).await;
    }
    let leader = cluster.leader().await;
    cluster.know_each_other().await;
    cluster.converge().await;
    let term = cluster.node(leader).status().term;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let names = others.iter().map(|id| name(*id)).collect::<Vec<_>>();
    cluster.network.silence(&name(leader), &names.iter().map(String::as_str).collect::<Vec<_>>());
    eventually("a write without it", async || propose(cluster.node(others[0]), 1, 1).await.ok()).await;
    assert_eq!(cluster.node(others[0]).status().term, term + 1);
}

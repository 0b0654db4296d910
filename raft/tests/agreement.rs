//! Nodes that have applied different logs do not go on: the one that a majority contradicts ends, and without a majority nobody
//! serves. So too where the same log has led to different states; but there the one that is wrong takes the state anew. In the
//! workspace's tests, where nodes can be misled.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kvorum_raft::{Cause, NodeId, ProposeError, ReadLevel, StartError, Unavailable};
use support::{
    Cluster, PATIENCE,
    counter::{propose, propose_all},
    eventually,
};

fn plain(_: &mut kvorum_raft::NodeConfig) {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_a_majority_contradicts_ends() {
    let cluster = Cluster::start(3, plain).await;
    propose_all(cluster.node(1), 0..10).await;
    cluster.converge().await;
    let (leader, wrong) = (cluster.leader().await, cluster.follower().await);
    cluster.node(wrong).mislead();
    let why = eventually("it to be contradicted", async || cluster.contradicted.lock().get(&wrong).cloned());
    assert!(why.await.contains("a majority has applied another log"));
    assert_eq!(cluster.contradicted.lock().len(), 1);
    // The others go on.
    propose(cluster.node(leader), 1, 1).await.unwrap();
    cluster.node(leader).barrier(ReadLevel::Linearizable).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_that_agrees_nobody_serves() {
    let mut cluster = Cluster::start(3, plain).await;
    propose_all(cluster.node(1), 0..10).await;
    cluster.converge().await;
    let (leader, away) = (cluster.leader().await, cluster.follower().await);
    cluster.stop_node(away).await;
    cluster.node(leader).mislead();
    for (node, _) in cluster.nodes.values() {
        let why = eventually("it to say why", async || {
            node.status().not_ready.filter(|not_ready| not_ready.cause == Cause::Diverged)
        });
        assert!(why.await.why.contains("no majority agrees"));
        let read = node.barrier(ReadLevel::Linearizable).await;
        assert!(matches!(read, Err(Unavailable::Apart(why)) if why.contains("different logs")), "{read:?}");
        node.barrier(ReadLevel::Stale).await.unwrap();
        let written = propose(node, 1, 1).await;
        assert!(matches!(written, Err(ProposeError::NotApplied(Unavailable::Apart(_)))), "{written:?}");
    }
    assert!(cluster.contradicted.lock().is_empty());
    // The third one decides who is right.
    cluster.start_node(away, None).await;
    let why = eventually("the one that is wrong to be contradicted", async || {
        cluster.contradicted.lock().get(&leader).cloned()
    });
    assert!(why.await.contains("a majority has applied another log"));
}

/// Checkpoints often, at a level at which all nodes do so at the same entries.
async fn that_compares_states() -> Cluster {
    let cluster = Cluster::start_at(3, 3, |config| config.checkpoint_log_bytes = 10_000).await;
    cluster.know_each_other().await;
    cluster
}

/// Writes until states were compared.
async fn work(cluster: &Cluster, leader: NodeId) {
    propose_all(cluster.node(leader), (0..1_000).map(|number| number % 100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_taken_at_the_same_entries() {
    let cluster = that_compares_states().await;
    let leader = cluster.leader().await;
    let states = |id| cluster.node(id).states();
    eventually("three checkpoints at the same entries", async || {
        work(&cluster, leader).await;
        let common =
            states(1).into_iter().filter(|state| states(2).contains(state) && states(3).contains(state));
        (common.count() >= 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_differs_is_taken_anew() {
    let mut cluster = that_compares_states().await;
    let (leader, wrong) = (cluster.leader().await, cluster.follower().await);
    work(&cluster, leader).await;
    cluster.converge().await;
    cluster.machine(wrong).corrupt(7);
    let ended = async {
        let why = cluster.node(wrong).among_strangers().await;
        assert!(matches!(why, StartError::StateDiffers(_)), "{why}");
        let refused = cluster.node(wrong).barrier(ReadLevel::Linearizable).await;
        assert!(matches!(refused, Err(Unavailable::Apart(_))), "{refused:?}");
        let not_ready = cluster.node(wrong).status().not_ready.unwrap();
        assert_eq!(not_ready.cause, Cause::Diverged);
    };
    let working = async {
        loop {
            work(&cluster, leader).await;
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(PATIENCE, ended) => ended.unwrap(),
        () = working => {}
    }
    // The log is the same, so nothing is contradicted and nothing is forgotten.
    assert!(cluster.contradicted.lock().is_empty());
    cluster.stop_node(wrong).await;
    assert_ne!(cluster.machine(leader).get(7), 0);
    cluster.start_node(wrong, None).await;
    cluster.converge().await;
    assert_eq!(cluster.machine(wrong).counts(), cluster.machine(leader).counts());
    work(&cluster, leader).await;
    eventually("it to be ready", async || cluster.node(wrong).status().not_ready.is_none().then_some(()))
        .await;
    // And it starts from what it took.
    cluster.stop_node(wrong).await;
    cluster.start_node(wrong, None).await;
    cluster.converge().await;
    assert_eq!(cluster.machine(wrong).counts(), cluster.machine(leader).counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_of_the_same_state_nobody_serves() {
    let mut cluster = that_compares_states().await;
    let (leader, away) = (cluster.leader().await, cluster.follower().await);
    work(&cluster, leader).await;
    cluster.converge().await;
    cluster.stop_node(away).await;
    let wrong = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.machine(wrong).corrupt(7);
    let refused = async || {
        // In time nothing is taken any more.
        futures::future::join_all((0..100).map(|key| propose(cluster.node(leader), key, 1))).await;
        let mut is_apart = cluster.nodes.values().map(|(node, _)| {
            node.status().not_ready.is_some_and(|not_ready| not_ready.cause == Cause::Diverged)
        });
        is_apart.all(|is_apart| is_apart).then_some(())
    };
    eventually("both to refuse", refused).await;
    let written = propose(cluster.node(leader), 1, 1).await;
    assert!(matches!(written, Err(ProposeError::NotApplied(Unavailable::Apart(_)))), "{written:?}");
    // The third one decides who is right.
    cluster.start_node(away, None).await;
    let ended = tokio::time::timeout(PATIENCE, cluster.node(wrong).among_strangers()).await.unwrap();
    assert!(matches!(ended, StartError::StateDiffers(_)), "{ended}");
    eventually("the others to go on", async || propose(cluster.node(leader), 1, 1).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_different_states_are_no_majority_against_any() {
    let cluster = that_compares_states().await;
    let leader = cluster.leader().await;
    work(&cluster, leader).await;
    cluster.converge().await;
    // With the same entry, whatever checkpoint is asked for meanwhile: else one node could differ alone at first.
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.machine(id).miscount(0, id);
    }
    eventually("all to refuse", async || {
        futures::future::join_all((0..100).map(|key| propose(cluster.node(leader), key, 1))).await;
        let mut is_apart = cluster.nodes.values().map(|(node, _)| {
            node.status().not_ready.is_some_and(|not_ready| not_ready.why.contains("no majority agrees"))
        });
        is_apart.all(|is_apart| is_apart).then_some(())
    })
    .await;
    for (node, _) in cluster.nodes.values() {
        let ended = tokio::time::timeout(Duration::from_millis(500), node.among_strangers()).await;
        assert!(ended.is_err(), "nobody throws a state away that may be right: {ended:?}");
    }
}

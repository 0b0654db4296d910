//! Nodes that have applied different logs do not go on: the one that a majority contradicts ends, and without a majority nobody
//! serves. In the workspace's tests, where nodes can be misled.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used)]

mod support;

use kvorum_raft::{Cause, ProposeError, ReadLevel, Unavailable};
use support::{
    Cluster,
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
        assert!(
            matches!(read, Err(Unavailable::NotServing(why)) if why.contains("different logs")),
            "{read:?}"
        );
        node.barrier(ReadLevel::Stale).await.unwrap();
        let written = propose(node, 1, 1).await;
        assert!(matches!(written, Err(ProposeError::NotApplied(Unavailable::NotServing(_)))), "{written:?}");
    }
    assert!(cluster.contradicted.lock().is_empty());
    // The third one decides who is right.
    cluster.start_node(away, None).await;
    let why = eventually("the one that is wrong to be contradicted", async || {
        cluster.contradicted.lock().get(&leader).cloned()
    });
    assert!(why.await.contains("a majority has applied another log"));
}

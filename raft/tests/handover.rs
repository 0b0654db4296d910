//! The leadership is handed to a node that does not take over: somebody leads again soon, and nothing is lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kvorum_raft::{AdminError, NodeId};
use support::{Cluster, counter::propose, eventually, name};
use tokio::time::Instant;

/// An election would come only after a timeout and the lease of the leader: 950 ms at least.
const SOON: Duration = Duration::from_millis(800);

fn refused(outcome: Result<(), AdminError>) -> String {
    match outcome {
        Err(AdminError::Conflict(why)) => why,
        other => panic!("it must be refused: {other:?}"),
    }
}

/// The leader, the one that is to take over, and the third.
async fn parts(cluster: &Cluster) -> (NodeId, NodeId, NodeId) {
    cluster.know_each_other().await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    (leader, others[0], others[1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_deposes_nobody() {
    let cluster = Cluster::start(3, |_| {}).await;
    let (leader, target, third) = parts(&cluster).await;
    let others = [name(leader), name(third)];
    cluster.network.silence(&name(target), &others.each_ref().map(String::as_str));
    let why = refused(cluster.node(third).transfer_leader(target).await);
    assert!(why.contains("cannot be reached"), "{why}");
    let asked = Instant::now();
    assert_eq!(propose(cluster.node(third), 1, 1).await, Ok(1));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert_eq!(cluster.leader().await, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_to_another_when_the_chosen_one_does_not_take_it() {
    let cluster = Cluster::start(3, |_| {}).await;
    let (leader, target, third) = parts(&cluster).await;
    // It hears all and answers, but nobody hears it ask for votes.
    for other in [leader, third] {
        cluster.network.hold(&name(target), &name(other), &name(target), true);
    }
    let asked = Instant::now();
    let handing = cluster.node(leader).clone();
    let handing = tokio::spawn(async move { handing.transfer_leader(target).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    // What was on its way to the old leader may be lost with it.
    eventually("a write", async || propose(cluster.node(third), 1, 1).await.ok()).await;
    assert!(asked.elapsed() < SOON, "written after {:?}", asked.elapsed());
    let why = refused(handing.await.unwrap());
    assert!(why.contains(&format!("node {third} leads")), "{why}");
    for other in [leader, third] {
        cluster.network.hold(&name(target), &name(other), &name(target), false);
    }
    cluster.converge().await;
    eventually("another write", async || propose(cluster.node(target), 1, 1).await.ok()).await;
}

//! A leader that was deposed must not take answers for a confirmation that are older than the read: not even when they come
//! one by one, in the order that makes it commit something first.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kvorum_raft::{NodeId, ReadLevel, Role};
use support::{Cluster, counter::propose, eventually, name};

/// Holds, or lets go, what `from` sends to `to` on connections that either of them made.
fn hold(cluster: &Cluster, from: NodeId, to: NodeId, is_held: bool) {
    for made_by in [from, to] {
        cluster.network.hold(&name(from), &name(to), &name(made_by), is_held);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_from_before_a_read_confirm_nothing() {
    let cluster = Cluster::start(3, |_| {}).await;
    cluster.know_each_other().await;
    let old = cluster.leader().await;
    let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| *id != old).collect();
    propose(cluster.node(old), 1, 1).await.unwrap();
    // The news of its commit has arrived everywhere: nothing is on its way.
    cluster.converge().await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    others.iter().for_each(|other| hold(&cluster, *other, old, true));
    let (sender, _unanswered) = tokio::sync::oneshot::channel();
    cluster.node(old).propose(support::counter::add(2, 1), support::counter::Waiter(sender));
    tokio::time::sleep(Duration::from_millis(30)).await;
    others.iter().for_each(|other| hold(&cluster, old, *other, true));

    let new = eventually("another leader", async || {
        others.iter().copied().find(|id| cluster.node(*id).status().role == Role::Leader)
    })
    .await;
    let third = others.iter().copied().find(|id| *id != new).unwrap();
    propose(cluster.node(new), 1, 1).await.unwrap();
    assert_eq!(cluster.machine(old).get(1), 1, "it has not heard of the second");

    let (reader, machine) = cluster.nodes[&old].clone();
    let read =
        tokio::spawn(async move { reader.barrier(ReadLevel::Linearizable).await.map(|()| machine.get(1)) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // What they had answered long before, on the connections that the old leader made.
    cluster.network.hold(&name(third), &name(old), &name(old), false);
    tokio::time::sleep(Duration::from_millis(20)).await;
    cluster.network.hold(&name(new), &name(old), &name(old), false);
    tokio::time::sleep(Duration::from_millis(300)).await;

    for (from, to) in others.iter().flat_map(|other| [(*other, old), (old, *other)]) {
        hold(&cluster, from, to, false);
    }
    let seen = read.await.unwrap();
    assert!(matches!(seen, Err(_) | Ok(2)), "the read saw {seen:?}, and 2 was acknowledged before it began");
    cluster.converge().await;
}

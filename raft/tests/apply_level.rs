//! All nodes apply an entry by the same rules: those of the highest level that all members knew when it was proposed, and what
//! was written before by those of its time.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum_raft::{Entropy, NodeId};
use support::{
    Cluster,
    counter::{propose, propose_all},
    eventually, name,
};

fn plain(_: &mut kvorum_raft::NodeConfig) {}

fn levels(cluster: &Cluster, id: NodeId) -> Vec<(u32, Option<Entropy>)> {
    cluster.machine(id).levels.lock().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_entry_of_a_new_cluster_has_its_level_and_the_same_entropy_everywhere() {
    let cluster = Cluster::start(3, plain).await;
    propose_all(cluster.node(cluster.follower().await), 0..10).await;
    cluster.converge().await;
    let of_first = levels(&cluster, 1)[0];
    assert_eq!(of_first.0, 2);
    assert!(of_first.1.is_some(), "it was raised by the first entry");
    for id in 1..=3 {
        let levels = levels(&cluster, id);
        assert_eq!(levels[0], of_first, "on node {id}");
        assert!(levels[1..].iter().all(|level| *level == (2, None)), "on node {id}: {levels:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_rises_when_the_last_member_knows_it_and_replay_keeps_to_the_old_one() {
    let mut cluster = Cluster::start_at(1, 3, plain).await;
    cluster.know_each_other().await;
    propose_all(cluster.node(1), 0..10).await;
    cluster.converge().await;
    let before = levels(&cluster, 1).len();
    assert!(levels(&cluster, 1).iter().all(|(level, _)| *level == 1));
    // One after the other gets a version that knows more.
    cluster.level_max = 3;
    for id in 1..=3 {
        let leader = cluster.leader().await;
        propose(cluster.node(leader), 1, 1).await.unwrap();
        assert!(levels(&cluster, leader).iter().all(|(level, _)| *level == 1), "node {id} knows no more yet");
        cluster.stop_node(id).await;
        cluster.start_node(id, None).await;
        eventually("the node to be there again", async || {
            cluster.node(id).status().not_ready.is_none().then_some(())
        })
        .await;
    }
    eventually("the level to be raised", async || {
        propose(cluster.node(1), 1, 1).await.unwrap();
        let raised =
            levels(&cluster, 1).iter().filter(|(level, raised)| *level == 3 && raised.is_some()).count();
        (raised == 1).then_some(())
    })
    .await;
    cluster.converge().await;
    for id in 1..=3 {
        // All of it was replayed at the start, and by the rules of its time.
        let levels = levels(&cluster, id);
        assert!(levels.len() > before && levels[..before].iter().all(|(level, _)| *level == 1), "node {id}");
        assert!(levels.is_sorted_by_key(|(level, _)| *level), "node {id}");
    }
    // It stands in checkpoints too.
    cluster.node(1).checkpoint_now().await.unwrap();
    cluster.stop_node(1).await;
    cluster.start_node(1, None).await;
    eventually("an entry on top of the checkpoint", async || {
        propose(cluster.node(1), 1, 1).await.ok()?;
        (levels(&cluster, 1).last()? == &(3, None)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_know_the_level_is_refused_and_does_not_start_on_pages_of_it() {
    let mut cluster = Cluster::start(3, plain).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    // A node that gets an entry of a level that it does not know ends by itself, and here the test with it. Who has applied one
    // greets with its level, and sends nothing to such a node.
    cluster.converge().await;
    cluster.level_max = 1;
    cluster.start_node(4, None).await;
    let leader = cluster.leader().await;
    cluster.node(leader).add_member(4, name(4)).await.unwrap();
    let ended = tokio::time::timeout(support::PATIENCE, cluster.node(4).among_strangers()).await;
    let why = ended.expect("it is of no use in this cluster").to_string();
    assert!(why.contains("apply level 2") && why.contains("start a later version"), "{why}");
    assert!(levels(&cluster, 4).is_empty(), "it has applied nothing");

    cluster.node(1).checkpoint_now().await.unwrap();
    cluster.stop_node(1).await;
    let refused = cluster.try_start_node(1, None).await.unwrap_err().to_string();
    assert!(refused.contains("apply level 2") && refused.contains("knows 1"), "{refused}");
    // Nothing was set aside: a version that knows the level goes on.
    cluster.level_max = 2;
    cluster.start_node(1, None).await;
    cluster.leader().await;
    cluster.node(1).remove_member(4).await.unwrap();
    cluster.stop_node(4).await;
    cluster.converge().await;
}

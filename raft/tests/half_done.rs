//! What is interrupted between two of its steps goes on, or is told for what it is: forming a cluster, changing its voters,
//! proposals whose clients were told that the outcome is unknown, and the log's clock.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, path::Path, time::Duration};

use kvorum_raft::{NodeConfig, NodeId};
use support::{
    Cluster,
    counter::{Waiter, add, propose},
    eventually, name,
};

fn plain(_: &mut NodeConfig) {}

fn impatient(config: &mut NodeConfig) {
    config.request_timeout_ms = 1000;
}

fn first(ids: impl IntoIterator<Item = NodeId>) -> Option<BTreeMap<NodeId, String>> {
    Some(ids.into_iter().map(|id| (id, name(id))).collect())
}

/// Gives a directory the id of a cluster, as a node leaves it that ends before its first entry is in a log.
fn name_cluster(dir: &Path, cluster: &str) {
    let path = dir.join("identity.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""cluster_id": """#), "{text}");
    let text = text.replace(r#""cluster_id": """#, &format!(r#""cluster_id": "{cluster}""#));
    std::fs::write(&path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_whoever_has_its_id_already() {
    // The first node ended with the id in its file; or was wiped after the others had learnt it.
    for named in [&[1][..], &[2, 3], &[1, 2, 3]] {
        let mut cluster = Cluster::empty(plain);
        for id in 1..=3 {
            cluster.start_node(id, first([id, 99])).await;
            cluster.stop_node(id).await;
        }
        let id = "0123456789abcdef0123456789abcdef";
        named.iter().for_each(|node| name_cluster(&cluster.dir_of(*node), id));
        for id in 1..=3 {
            cluster.start_node(id, first(1..=3)).await;
        }
        let leader = cluster.leader().await;
        propose(cluster.node(leader), 1, 1).await.unwrap();
        assert_eq!(cluster.node(leader).status().cluster_id.as_deref(), Some(id), "named: {named:?}");
        cluster.converge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_lists_form_no_cluster_and_one_list_does() {
    let mut cluster = Cluster::empty(plain);
    cluster.start_node(1, first([1, 2, 3])).await;
    for id in 2..=4 {
        cluster.start_node(id, first([2, 3, 4])).await;
    }
    // The nodes of the one list agree. The other one, of which two are in that cluster, never comes about.
    let leader = eventually("the second list's cluster", async || {
        [2, 3, 4].into_iter().find(|id| cluster.node(*id).status().leader_id == Some(*id))
    })
    .await;
    propose(cluster.node(leader), 1, 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = cluster.node(1).status();
    assert_eq!((alone.leader_id, alone.members.len()), (None, 0));
    cluster.stop_node(1).await;

    let mut cluster = Cluster::empty(plain);
    cluster.start_node(1, first([1, 2, 3])).await;
    cluster.start_node(2, first([2, 3, 4])).await;
    cluster.start_node(3, first([1, 2, 3])).await;
    cluster.start_node(4, first([2, 3, 4])).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (id, (node, _)) in &cluster.nodes {
        assert_eq!(node.status().cluster_id, None, "node {id}");
    }
    // The operator puts the list of node 2 right.
    cluster.stop_node(2).await;
    cluster.start_node(2, first([1, 2, 3])).await;
    let members = eventually("the cluster", async || {
        let members = cluster.node(1).status().members;
        (!members.is_empty()).then(|| members.iter().map(|member| member.id).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(members, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_voters_is_finished_when_whoever_asked_has_given_up() {
    let cluster = Cluster::start(4, impatient).await;
    cluster.know_each_other().await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=4).filter(|id| *id != leader).collect();
    let removed = *others.last().unwrap();
    for other in &others {
        cluster.network.hold(&name(*other), &name(leader), &name(leader), true);
    }
    let refused = cluster.node(leader).remove_member(removed).await.unwrap_err().to_string();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for other in &others {
        cluster.network.hold(&name(*other), &name(leader), &name(leader), false);
    }
    eventually("the change to be finished or forgotten, and addresses to be published", async || {
        let members = cluster.node(leader).status().members;
        let is_finished = !members.iter().any(|member| member.id == removed);
        // Refused before it began: then it can be asked for again.
        (is_finished || cluster.node(leader).remove_member(removed).await.is_ok()).then_some(())
    })
    .await;
    assert!(refused.contains("in time") || refused.contains("could be reached"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_voters_is_finished_by_the_next_leader() {
    let mut cluster = Cluster::start(4, impatient).await;
    cluster.know_each_other().await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=4).filter(|id| *id != leader).collect();
    let removed = *others.last().unwrap();
    // The others get the first entry of the change, and the leader hears of nothing any more.
    for other in &others {
        cluster.network.hold(&name(*other), &name(leader), &name(leader), true);
    }
    let node = cluster.node(leader).clone();
    let asked = tokio::spawn(async move { node.remove_member(removed).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.stop_node(leader).await;
    assert!(asked.await.unwrap().is_err());
    eventually("the change to be finished, though nobody asks for it", async || {
        let members = cluster.node(others[0]).status().members;
        (members.len() == 3 && members.iter().all(|member| member.id != removed)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_was_told_is_unknown_is_not_proposed_long_after() {
    let cluster = Cluster::start(3, impatient).await;
    cluster.know_each_other().await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let asking = others[0];
    // Nothing reaches the others, so that there is no majority and no other leader; what they send arrives.
    let ways = [(leader, others[0]), (leader, others[1]), (others[0], others[1]), (others[1], others[0])];
    let hold = |is_held: bool| {
        for (from, to) in ways {
            for made_by in [from, to] {
                cluster.network.hold(&name(from), &name(to), &name(made_by), is_held);
            }
        }
    };
    hold(true);
    // All entries that may be in flight are.
    for key in 10..14 {
        let (sender, _given_up) = tokio::sync::oneshot::channel();
        cluster.node(leader).propose(add(key, 1), Waiter(sender));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = propose(cluster.node(asking), 77, 1).await;
    assert!(asked.is_err(), "{asked:?}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    hold(false);
    let leader = cluster.leader().await;
    propose(cluster.node(leader), 1, 1).await.unwrap();
    cluster.converge().await;
    assert_eq!(cluster.machine(leader).get(77), 0, "its client was told {asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_stop_of_all_nodes_the_clock_goes_on_from_where_it_was() {
    let mut cluster = Cluster::start(1, plain).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    // The log's clock is an hour ahead of the wall clock, as after a wall clock was set back.
    let ahead_ms = cluster.node(1).clock_ms() + 3_600_000;
    cluster.machine(1).set_clock_ms(ahead_ms);
    propose(cluster.node(1), 1, 1).await.unwrap();
    let (node, _) = cluster.nodes.remove(&1).unwrap();
    node.shutdown().await;
    drop(node);
    cluster.start_node(1, None).await;
    cluster.leader().await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    let begun_ms = cluster.machine(1).clock_ms();
    assert!(begun_ms >= ahead_ms);
    tokio::time::sleep(Duration::from_millis(500)).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    let passed_ms = cluster.machine(1).clock_ms() - begun_ms;
    assert!((400..5000).contains(&passed_ms), "{passed_ms} ms in half a second");
}

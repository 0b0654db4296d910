//! Nodes are replaced with and without their disks: who has forgotten what it voted for and acknowledged has no say, and an
//! id that was removed is never given again.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use kvorum_raft::{AdminError, NodeConfig, NodeId, Role};
use support::{Cluster, counter::propose, eventually, name};

fn impatient(config: &mut NodeConfig) {
    config.request_timeout_ms = 1000;
}

/// Checkpoints all the time, and keeps nothing behind them.
fn small_checkpoints(config: &mut NodeConfig) {
    config.checkpoint_log_bytes = 32 << 10;
    config.log_segment_bytes = 64 << 10;
    config.log_entries_kept = 50;
    config.entry_proposals_max = 4;
}

/// Longer than any election takes.
const LONG: Duration = Duration::from_secs(4);

fn all(size: u64) -> Option<BTreeMap<NodeId, String>> {
    Some((1..=size).map(|id| (id, name(id))).collect())
}

/// Stops a node, and starts it with an empty directory, as it was started the first time.
async fn wipe(cluster: &mut Cluster, id: NodeId, size: u64) {
    cluster.stop_node(id).await;
    std::fs::remove_dir_all(cluster.dir_of(id)).unwrap();
    cluster.start_node(id, all(size)).await;
}

fn cut_off(cluster: &Cluster, id: NodeId) {
    let others: Vec<String> =
        cluster.nodes.keys().filter(|other| **other != id).map(|id| name(*id)).collect();
    cluster.network.isolate(&name(id), &others.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Writes until one write is acknowledged.
async fn written(cluster: &Cluster, by: NodeId) {
    eventually("a write", async || propose(cluster.node(by), 2, 1).await.ok()).await;
}

fn conflict(outcome: Result<(), AdminError>) -> String {
    match outcome {
        Err(AdminError::Conflict(why)) => why,
        other => panic!("it must be refused: {other:?}"),
    }
}

/// For as long as anybody could be elected, none of these nodes leads.
async fn nobody_leads(cluster: &Cluster, ids: &[NodeId]) {
    let until = tokio::time::Instant::now() + LONG;
    while tokio::time::Instant::now() < until {
        for id in ids {
            assert_ne!(cluster.node(*id).status().role, Role::Leader, "node {id} leads");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A voter that acknowledged something before the others know its disk could be wiped and be taken for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_are_known_from_the_first_membership_on() {
    let cluster = Cluster::start(3, impatient).await;
    for (node, _) in cluster.nodes.values() {
        eventually("the membership", async || (node.status().members.len() == 3).then_some(())).await;
        let members = node.status().members;
        assert!(members.iter().all(|member| member.endpoints.contains_key("disk")), "{members:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_not_formed_again_by_nodes_that_lost_their_disks() {
    let mut cluster = Cluster::start(3, impatient).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    cluster.converge().await;
    let old = cluster.node(3).status().cluster_id;
    wipe(&mut cluster, 1, 3).await;
    wipe(&mut cluster, 2, 3).await;
    // Node 3 may have come to lead before node 2 was gone.
    nobody_leads(&cluster, &[1, 2]).await;
    assert!(propose(cluster.node(3), 1, 10).await.is_err());
    // Not behind its back either.
    cluster.stop_node(3).await;
    nobody_leads(&cluster, &[1, 2]).await;
    assert_eq!([1, 2].map(|id| cluster.node(id).status().cluster_id), [None, None]);
    cluster.start_node(3, all(3)).await;
    nobody_leads(&cluster, &[1, 2, 3]).await;
    assert_eq!(cluster.node(3).status().cluster_id, old);
    let why = eventually("a reason", async || {
        cluster
            .node(1)
            .status()
            .not_ready
            .map(|not_ready| not_ready.why)
            .filter(|why| why.contains("another disk"))
    })
    .await;
    assert!(why.contains("node 3 refuses"), "{why}");
}

/// The newest entries were acknowledged by a node that is gone for now and one that forgot them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgot_the_newest_entries_does_not_vote_them_away() {
    let mut cluster = Cluster::start(3, impatient).await;
    let leader = cluster.leader().await;
    let behind = cluster.follower().await;
    let forgetful = (1..=3).find(|id| *id != leader && *id != behind).unwrap();
    written(&cluster, leader).await;
    cluster.converge().await;
    cut_off(&cluster, behind);
    assert_eq!(propose(cluster.node(leader), 1, 11).await, Ok(11));
    cluster.stop_node(leader).await;
    wipe(&mut cluster, forgetful, 3).await;
    cluster.network.heal();
    nobody_leads(&cluster, &[behind, forgetful]).await;
    assert!(propose(cluster.node(behind), 1, 100).await.is_err());
    cluster.start_node(leader, all(3)).await;
    let leads = cluster.leader().await;
    assert_eq!(leads, leader, "it alone has all");
    written(&cluster, leader).await;
    assert_eq!(cluster.machine(leader).get(1), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_that_were_wiped_are_no_majority_with_one() {
    let mut cluster = Cluster::start(5, impatient).await;
    propose(cluster.node(1), 1, 1).await.unwrap();
    cluster.converge().await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=5).filter(|id| *id != leader).collect();
    let (away, wiped) = (others[0], [others[2], others[3]]);
    cut_off(&cluster, away);
    for id in wiped {
        wipe(&mut cluster, id, 5).await;
    }
    // The network knows a new node's connections only as they come.
    cut_off(&cluster, away);
    let outcome = propose(cluster.node(others[1]), 1, 10).await;
    assert!(outcome.is_err(), "two of five have acknowledged it: {outcome:?}");
    for id in wiped {
        let status = cluster.node(id).status();
        assert_eq!((status.cluster_id, status.last_log_index), (None, 0), "node {id}");
    }
    cluster.network.heal();
    let leader = cluster.leader().await;
    written(&cluster, leader).await;
    let value = cluster.machine(leader).get(1);
    assert!(value == 1 || value == 11, "{value}");
    // They are replaced, one after the other.
    for (id, new) in wiped.into_iter().zip([6, 7]) {
        let node = cluster.node(leader);
        let why = conflict(node.admit(id, name(id), cluster.node(id).disk_id()).await);
        assert!(why.contains("another disk"), "{why}");
        node.remove_member(id).await.unwrap();
        cluster.stop_node(id).await;
        cluster.start_node(new, None).await;
        cluster.node(leader).admit(new, name(new), cluster.node(new).disk_id()).await.unwrap();
        eventually("the new node to vote", async || {
            let members = cluster.node(leader).status().members;
            members.iter().any(|member| member.id == new && member.voter).then_some(())
        })
        .await;
    }
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_was_removed_is_never_given_again() {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    let gone = cluster.follower().await;
    let leader = cluster.leader().await;
    cluster.node(leader).remove_member(gone).await.unwrap();
    let refused = |outcome| {
        let why = conflict(outcome);
        assert!(why.contains("never given again") && why.contains("is free"), "{why}");
    };
    refused(cluster.node(leader).add_member(gone, name(gone)).await);
    refused(cluster.node(leader).add_member(gone, "elsewhere:1".into()).await);
    // It has its disk, and runs: it is told, and has no say.
    cluster.stop_node(gone).await;
    cluster.start_node(gone, None).await;
    eventually("the node to be told", async || {
        cluster
            .node(gone)
            .status()
            .not_ready
            .map(|not_ready| not_ready.why)
            .filter(|why| why.contains("was removed"))
    })
    .await;
    nobody_leads(&cluster, &[gone]).await;
    cluster.stop_node(gone).await;
    // A node that knows of it by a snapshot only, and after a restart.
    eventually("the logs to be purged", async || {
        let writes = (0..200).map(|number| propose(cluster.node(leader), number % 100, 1));
        // Some may be lost with an election.
        let _ = futures::future::join_all(writes).await;
        cluster.nodes.values().all(|(node, _)| node.status().purged_index > 100).then_some(())
    })
    .await;
    cluster.start_node(4, None).await;
    cluster.node(leader).add_member(4, name(4)).await.unwrap();
    eventually("the new node to vote", async || {
        let members = cluster.node(leader).status().members;
        members.iter().any(|member| member.id == 4 && member.voter).then_some(())
    })
    .await;
    cluster.converge().await;
    assert!(cluster.node(4).counters().snapshots_installed >= 1);
    cluster.stop_node(4).await;
    cluster.start_node(4, None).await;
    cluster.converge().await;
    let leader = cluster.leader().await;
    cluster.node(leader).transfer_leader(4).await.unwrap();
    refused(cluster.node(4).add_member(gone, name(gone)).await);
    // One that nobody had is given.
    cluster.node(4).add_member(5, name(5)).await.unwrap();
}

/// Without having said which disk it has, a learner does not vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_nobody_has_heard_of_does_not_vote() {
    let cluster = Cluster::start(1, impatient).await;
    cluster.node(1).add_member(2, name(2)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let members = cluster.node(1).status().members;
    assert!(members.iter().any(|member| member.id == 2 && !member.voter), "{members:?}");
    propose(cluster.node(1), 1, 1).await.unwrap();
    // A learner can always go.
    cluster.node(1).remove_member(2).await.unwrap();
    assert!(conflict(cluster.node(1).remove_member(1).await).contains("last voter"));
    assert!(conflict(cluster.node(1).add_member(2, name(2)).await).contains("3 is free"));
}

/// The change could never be committed, and would stand in the way of every other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_voter_is_not_removed_while_a_dead_one_is_counted() {
    let mut cluster = Cluster::start(3, impatient).await;
    cluster.know_each_other().await;
    let dead = cluster.follower().await;
    cluster.stop_node(dead).await;
    let leader = cluster.leader().await;
    let living = (1..=3).find(|id| *id != leader && *id != dead).unwrap();
    eventually("the loss to be noticed", async || {
        let members = cluster.node(leader).status().members;
        let lost = members.iter().find(|member| member.id == dead).and_then(|lost| lost.last_contact_ms);
        lost.is_none_or(|age_ms| age_ms > 1500).then_some(())
    })
    .await;
    for id in [living, leader] {
        let why = conflict(cluster.node(leader).remove_member(id).await);
        assert!(why.contains("only 1 of 2 voters"), "{why}");
    }
    cluster.node(leader).remove_member(dead).await.unwrap();
    written(&cluster, leader).await;
    cluster.node(leader).remove_member(living).await.unwrap();
    written(&cluster, leader).await;
    assert!(conflict(cluster.node(leader).remove_member(leader).await).contains("last voter"));
}

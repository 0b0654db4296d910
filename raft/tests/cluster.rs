//! Whole nodes in one process: election, transfer, partition, lagging follower, snapshot under load, restart,
//! membership. What must hold stands in each test's name.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvorum_raft::{AdminError, Cause, ProposeError, ReadLevel, StartError, Unavailable};
use support::{
    Cluster,
    counter::{propose, propose_all},
    eventually, name,
};

fn plain(_: &mut kvorum_raft::NodeConfig) {}

/// Checkpoints all the time, and keeps nothing behind them.
fn small_checkpoints(config: &mut kvorum_raft::NodeConfig) {
    config.checkpoint_log_bytes = 32 << 10;
    config.log_segment_bytes = 64 << 10;
    config.log_entries_kept = 50;
    config.entry_proposals_max = 4;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_takes_writes_and_linearizable_reads() {
    let cluster = Cluster::start(3, plain).await;
    for (id, (node, _)) in &cluster.nodes {
        assert_eq!(propose(node, 7, 1).await, Ok(*id), "by node {id}");
        for (other, (reader, machine)) in &cluster.nodes {
            reader.barrier(ReadLevel::Linearizable).await.unwrap();
            assert!(machine.get(7) >= *id, "node {other} must see what node {id} has written");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_keeps_pace_under_load() {
    let cluster = Cluster::start(3, plain).await;
    let leader = cluster.node(cluster.leader().await);
    propose(leader, 1, 1).await.unwrap();
    let (started, clock_ms) = (std::time::Instant::now(), leader.clock_ms());
    while started.elapsed() < Duration::from_secs(2) {
        propose(leader, 1, 1).await.unwrap();
    }
    let (real_ms, moved_ms) = (started.elapsed().as_millis() as u64, leader.clock_ms() - clock_ms);
    assert!(moved_ms.abs_diff(real_ms) <= real_ms / 50, "{moved_ms} ms by the log's clock in {real_ms} ms");
}

/// Also one that connected to its peers before there was a leader: should it lead next, it must not begin with its own
/// wall clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_comes_to_know_the_clock() {
    let cluster = Cluster::start(3, plain).await;
    for (node, _) in cluster.nodes.values() {
        eventually("the clock to be known", async || node.status().not_ready.is_none().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_can_be_handed_to_each_node() {
    let cluster = Cluster::start(3, plain).await;
    for to in [1, 2, 3, 1] {
        let asked = cluster.follower().await;
        cluster.node(asked).transfer_leader(to).await.unwrap();
        assert_eq!(cluster.leader().await, to);
        propose(cluster.node(asked), 1, 1).await.unwrap();
    }
    assert!(matches!(cluster.node(1).transfer_leader(9).await, Err(AdminError::NotFound(_))));
}

/// Whoever looks at a node while its leader changes must not stop it: a guard that is held while another is asked for
/// has stood in the way of both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_at_a_node_while_the_leader_changes_stop_nothing() {
    let cluster = Arc::new(Cluster::start(3, plain).await);
    let stop = Arc::new(AtomicBool::new(false));
    let looks: Vec<_> = (1..=3)
        .map(|id| {
            let (cluster, stop) = (cluster.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    cluster.node(id).status();
                    std::thread::sleep(Duration::from_micros(20));
                }
            })
        })
        .collect();
    let watched = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(60));
        if !watched.load(Ordering::Relaxed) {
            eprintln!("a node has stopped");
            // What stands still would keep the test from failing.
            std::process::abort();
        }
    });
    for to in (1..=3).cycle().take(60) {
        // Refused or late now and then.
        let _ = cluster.node(to).transfer_leader(to).await;
    }
    stop.store(true, Ordering::Relaxed);
    looks.into_iter().for_each(|look| look.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_serves_nobody_and_loses_nothing_acknowledged() {
    let cluster = Cluster::start(3, |config| config.request_timeout_ms = 1500).await;
    let old = cluster.leader().await;
    propose(cluster.node(old), 1, 1).await.unwrap();
    let others: Vec<String> = (1..=3).filter(|id| *id != old).map(name).collect();
    cluster.network.isolate(&name(old), &others.iter().map(String::as_str).collect::<Vec<_>>());
    let (write, read) =
        tokio::join!(propose(cluster.node(old), 1, 10), cluster.node(old).barrier(ReadLevel::Linearizable),);
    assert_eq!(write, Err(ProposeError::Unknown), "it went into the old leader's log");
    assert!(read.is_err());
    let new = eventually("a new leader", async || {
        let found = cluster
            .nodes
            .iter()
            .find(|(id, (node, _))| **id != old && node.status().role == kvorum_raft::Role::Leader);
        found.map(|(id, _)| *id)
    })
    .await;
    assert_eq!(propose(cluster.node(new), 1, 100).await, Ok(101));
    cluster.network.heal();
    cluster.converge().await;
    assert_eq!(cluster.machine(old).get(1), 101, "the write of the cut-off leader was discarded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounded_reads_share_a_round_for_as_long_as_their_bound() {
    let cluster = Cluster::start(3, |config| config.request_timeout_ms = 1000).await;
    let follower = cluster.follower().await;
    let (node, minute) = (cluster.node(follower), ReadLevel::Bounded(Duration::from_secs(60)));
    node.barrier(ReadLevel::Linearizable).await.unwrap();
    eventually("the node to be ready", async || node.status().not_ready.is_none().then_some(())).await;
    let rounds = node.counters().read_rounds;
    for _ in 0..1000 {
        node.barrier(minute).await.unwrap();
    }
    assert_eq!(node.counters().read_rounds, rounds, "what it knows is not older than a minute");
    // Nothing is as young as that: each needs a round of its own.
    let now = ReadLevel::Bounded(Duration::ZERO);
    node.barrier(now).await.unwrap();
    node.barrier(now).await.unwrap();
    assert!(node.counters().read_rounds >= rounds + 2);
    let others: Vec<String> = (1..=3).filter(|id| *id != follower).map(name).collect();
    cluster.network.isolate(&name(follower), &others.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.barrier(minute).await.unwrap();
    node.barrier(ReadLevel::Stale).await.unwrap();
    for level in [ReadLevel::Bounded(Duration::from_millis(40)), ReadLevel::Lease, ReadLevel::Linearizable] {
        let refused = node.barrier(level).await;
        assert!(
            matches!(refused, Err(Unavailable::NoQuorum | Unavailable::NoLeader)),
            "{level:?}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_applied() {
    let mut cluster = Cluster::start(3, |config| config.request_timeout_ms = 1000).await;
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop_node(id).await;
    }
    assert_eq!(propose(cluster.node(leader), 1, 1).await, Err(ProposeError::Unknown));
    assert!(matches!(
        cluster.node(leader).barrier(ReadLevel::Linearizable).await,
        Err(Unavailable::NoQuorum | Unavailable::NoLeader)
    ));
    eventually("the leader to step back or a proposal to be refused", async || {
        propose(cluster.node(leader), 1, 1).await.is_err().then_some(())
    })
    .await;
    assert_eq!(cluster.machine(leader).get(1), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_purged_entries_gets_a_snapshot_under_load() {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    let lagging = cluster.follower().await;
    cluster.stop_node(lagging).await;
    let leader = cluster.leader().await;
    propose_all(cluster.node(leader), 0..6000).await;
    eventually("the log to be purged", async || {
        (cluster.node(leader).status().purged_index > 100).then_some(())
    })
    .await;
    cluster.start_node(lagging, None).await;
    propose_all(cluster.node(leader), 5000..7000).await;
    cluster.converge().await;
    assert!(cluster.node(lagging).counters().snapshots_installed >= 1, "it must have needed one");
    // And it stands on its own feet after a restart.
    cluster.stop_node(lagging).await;
    cluster.start_node(lagging, None).await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restart_and_find_everything() {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    for round in 1..=3 {
        let leader = cluster.leader().await;
        propose_all(cluster.node(leader), (0..300).map(|number| number % 40)).await;
        let expected = cluster.machine(leader).counts();
        assert_eq!(expected.values().sum::<u64>(), round * 300);
        for id in 1..=3 {
            cluster.stop_node(id).await;
        }
        for id in 1..=3 {
            cluster.start_node(id, None).await;
        }
        cluster.converge().await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.machine(leader).counts(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_pages_are_fetched_from_a_peer() {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    let leader = cluster.leader().await;
    propose_all(cluster.node(leader), (0..8000).map(|number| number % 1000)).await;
    let victim = cluster.follower().await;
    eventually("the victim's log to be purged", async || {
        (cluster.node(victim).status().purged_index > 0).then_some(())
    })
    .await;
    cluster.stop_node(victim).await;
    damage_pages(&cluster, victim);
    cluster.start_node(victim, None).await;
    cluster.converge().await;
    let aside = std::fs::read_dir(cluster.dir_of(victim)).unwrap();
    let aside =
        aside.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("unreadable"));
    assert_eq!(aside.count(), 1, "the damaged directory is kept");
}

/// What two nodes lost, the third has, though in its log and not in a checkpoint: where nobody is whole they are started again
/// from what is there together, in whatever order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_a_majority_lost_come_from_the_log_of_the_third() {
    let mut cluster = Cluster::start(3, small_checkpoints).await;
    cluster.know_each_other().await;
    let third = cluster.follower().await;
    cluster.stop_node(third).await;
    cluster.tune = |config| config.checkpoint_log_bytes = 1 << 30;
    cluster.start_node(third, None).await;
    cluster.tune = small_checkpoints;
    let leader = cluster.leader().await;
    propose_all(cluster.node(leader), (0..8000).map(|number| number % 1000)).await;
    let victims: Vec<u64> = (1..=3).filter(|id| *id != third).collect();
    eventually("the victims' logs to be purged", async || {
        victims.iter().all(|id| cluster.node(*id).status().purged_index > 0).then_some(())
    })
    .await;
    cluster.converge().await;
    let expected = cluster.machine(leader).counts();
    assert_eq!(cluster.node(third).status().purged_index, 0);
    for id in 1..=3 {
        cluster.stop_node(id).await;
    }
    victims.iter().for_each(|victim| damage_pages(&cluster, *victim));
    cluster.tune = |config| config.checkpoint_log_bytes = 1 << 30;
    cluster.start_node(third, None).await;
    cluster.tune = small_checkpoints;
    for victim in victims {
        cluster.start_node(victim, None).await;
    }
    cluster.converge().await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.machine(leader).counts(), expected);
}

fn damage_pages(cluster: &Cluster, node: u64) {
    for file in walk(&cluster.dir_of(node).join("pages")) {
        std::fs::write(&file, b"not what was there").unwrap();
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.append(&mut walk(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_vote_and_leave() {
    let mut cluster = Cluster::start(1, small_checkpoints).await;
    propose_all(cluster.node(1), (0..3000).map(|number| number % 100)).await;
    for id in [2, 3] {
        cluster.start_node(id, None).await;
        let asked = cluster.leader().await;
        // Members publish their addresses and are promoted meanwhile: an operator is not told to come again.
        cluster.node(asked).add_member(id, name(id)).await.unwrap();
        eventually("the learner to vote", async || {
            cluster
                .node(1)
                .status()
                .members
                .iter()
                .any(|member| member.id == id && member.voter)
                .then_some(())
        })
        .await;
    }
    cluster.converge().await;
    assert!(matches!(
        cluster.node(2).add_member(3, "elsewhere:1".into()).await,
        Err(AdminError::Conflict(_))
    ));
    cluster.node(3).remove_member(1).await.unwrap();
    cluster.stop_node(1).await;
    let leader = cluster.leader().await;
    assert_ne!(leader, 1);
    propose(cluster.node(leader), 1, 1).await.unwrap();
    let other = 5 - leader;
    cluster.stop_node(other).await;
    eventually("the loss to be noticed", async || {
        let members = cluster.node(leader).status().members;
        members.iter().any(|member| member.last_contact_ms.is_none_or(|age_ms| age_ms > 1500)).then_some(())
    })
    .await;
    let refused = cluster.node(leader).remove_member(leader).await;
    assert!(matches!(refused, Err(AdminError::Conflict(_))), "nobody would be left to lead: {refused:?}");
}

/// What was sent to it is unknown; what comes later goes to the next leader, long before anything times out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_falls_silent_keeps_nobody_waiting() {
    let cluster = Cluster::start(3, |config| config.request_timeout_ms = 25_000).await;
    let old = cluster.leader().await;
    let asked = cluster.follower().await;
    let others: Vec<String> = (1..=3).filter(|id| *id != old).map(name).collect();
    cluster.network.silence(&name(old), &others.iter().map(String::as_str).collect::<Vec<_>>());
    let reader = cluster.node(asked).clone();
    let read = tokio::spawn(async move { reader.barrier(ReadLevel::Linearizable).await });
    // As many batches as may be in flight, and more.
    let mut lost = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let node = cluster.node(asked).clone();
        lost.spawn(async move { propose(&node, 1, 1).await });
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let served = tokio::time::timeout(Duration::from_secs(15), propose(cluster.node(asked), 2, 1)).await;
    assert_eq!(served, Ok(Ok(1)));
    let read = tokio::time::timeout(Duration::from_secs(15), read).await;
    assert!(matches!(read, Ok(Ok(Ok(())))), "{read:?}");
    while let Some(outcome) = lost.join_next().await {
        let outcome = outcome.unwrap();
        assert!(matches!(outcome, Ok(_) | Err(ProposeError::Unknown)), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_connections_is_asked_with_pauses() {
    let mut cluster = Cluster::start(3, plain).await;
    let gone = cluster.follower().await;
    cluster.stop_node(gone).await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), 1, 1).await.unwrap();
    let before = cluster.network.attempts(&name(gone));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attempts = cluster.network.attempts(&name(gone)) - before;
    // Heartbeats, entries and the search for a vote, each a few times a second.
    assert!(attempts < 200, "{attempts} in a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_members_is_refused_while_one_is_under_way() {
    let cluster = Cluster::start(3, |config| config.request_timeout_ms = 1000).await;
    cluster.know_each_other().await;
    let old = cluster.leader().await;
    let others: Vec<String> = (1..=3).filter(|id| *id != old).map(name).collect();
    cluster.network.isolate(&name(old), &others.iter().map(String::as_str).collect::<Vec<_>>());
    // Cut off, the first one cannot end.
    let node = cluster.node(old);
    let (first, second) = tokio::join!(node.add_member(4, name(4)), node.add_member(5, name(5)));
    assert!(matches!(second, Err(AdminError::Busy)), "{second:?}");
    assert!(!matches!(first, Ok(()) | Err(AdminError::Conflict(_) | AdminError::Busy)), "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_log_is_gone_does_not_start() {
    let mut cluster = Cluster::start(3, plain).await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), 1, 1).await.unwrap();
    let victim = cluster.follower().await;
    let identity = cluster.dir_of(victim).join("identity.json");
    eventually("the member to know that it is one", async || {
        std::fs::read_to_string(&identity).unwrap().contains("\"has_log\": true").then_some(())
    })
    .await;
    cluster.stop_node(victim).await;
    std::fs::remove_dir_all(cluster.dir_of(victim).join("log")).unwrap();
    let started = cluster.try_start_node(victim, None).await;
    assert!(matches!(started, Err(StartError::LogCorrupted { .. })), "{started:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_cluster_notices_that_it_is_the_stranger() {
    let (mut cluster, mut other) = (Cluster::start(3, plain).await, Cluster::start(3, plain).await);
    // A majority that goes on.
    let stranger = cluster.follower().await;
    let friend = (1..=3).find(|id| *id != stranger).unwrap();
    eventually("the cluster's id to be known", async || other.node(stranger).status().cluster_id).await;
    cluster.stop_node(stranger).await;
    other.stop_node(stranger).await;
    std::fs::remove_dir_all(cluster.dir_of(stranger)).unwrap();
    std::fs::rename(other.dir_of(stranger), cluster.dir_of(stranger)).unwrap();
    cluster.start_node(stranger, Some((1..=3).map(|id| (id, name(id))).collect())).await;
    let noticed = tokio::time::timeout(support::PATIENCE, cluster.node(stranger).among_strangers()).await;
    assert!(matches!(noticed, Ok(StartError::OtherCluster { .. })), "{noticed:?}");
    let wronged = tokio::time::timeout(Duration::from_secs(1), cluster.node(friend).among_strangers()).await;
    assert!(wronged.is_err(), "{wronged:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_member_that_is_alone_knows_no_leader_and_applies_nothing() {
    let mut cluster = Cluster::start(3, |config| config.request_timeout_ms = 1000).await;
    propose(cluster.node(cluster.leader().await), 1, 1).await.unwrap();
    cluster.converge().await;
    let alone = cluster.follower().await;
    for id in 1..=3 {
        cluster.stop_node(id).await;
    }
    cluster.start_node(alone, None).await;
    let outcome = propose(cluster.node(alone), 1, 1).await;
    assert!(matches!(outcome, Err(ProposeError::NotApplied(_))), "{outcome:?}");
    let status = cluster.node(alone).status();
    assert_eq!(status.leader_id, None);
    assert!(status.committed_index >= status.applied_index);
    let why = status.not_ready.unwrap();
    assert_eq!((why.cause, why.why.as_str()), (Cause::NoLeader, "no leader is known"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_is_not_ready() {
    let mut cluster = Cluster::start(3, plain).await;
    let leader = cluster.leader().await;
    eventually("readiness", async || cluster.node(leader).status().not_ready.is_none().then_some(())).await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop_node(id).await;
    }
    eventually("the loss to be noticed", async || cluster.node(leader).status().not_ready).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_is_refused() {
    let mut cluster = Cluster::start(3, plain).await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), 1, 1).await.unwrap();
    let victim = cluster.follower().await;
    cluster.know_each_other().await;
    cluster.stop_node(victim).await;
    std::fs::remove_dir_all(cluster.dir_of(victim)).unwrap();
    cluster.start_node(victim, Some((1..=3).map(|id| (id, name(id))).collect())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = cluster.node(victim).status();
    assert_eq!(status.cluster_id, None, "it must not become part of the cluster again");
    assert_eq!(status.last_log_index, 0);
    assert!(status.not_ready.is_some());
}

/// Found by the simulation, where time stood still meanwhile: openraft refuses what is proposed to a leader that no
/// majority has answered for a while, and it was offered again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_does_not_offer_the_same_proposal_without_a_pause() {
    let cluster = Cluster::start(3, |config| config.request_timeout_ms = 10_000).await;
    let leader = cluster.leader().await;
    let others: Vec<String> = cluster.nodes.keys().filter(|id| **id != leader).map(|id| name(*id)).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    cluster.network.silence(&name(leader), &others);
    // Longer than its lease.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let node = cluster.node(leader).clone();
    let waiting = tokio::spawn(async move { propose(&node, 1, 1).await });
    let before = cluster.node(leader).counters().entries_proposed;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let offered = cluster.node(leader).counters().entries_proposed - before;
    assert!((1..=150).contains(&offered), "offered {offered} times in 500 ms");
    waiting.abort();
}

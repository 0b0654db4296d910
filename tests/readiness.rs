//! A node that cannot serve says so within two seconds, on every surface, with the reason; whoever asks it is refused at
//! once, but for as long as a failover takes; and when the others are back, all is well again.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::{Client, encode},
    slow_disk::SlowDisks,
};

/// Within this time a node must know.
const KNOWN: Duration = Duration::from_secs(2);
/// What "at once" is on a machine that does other things too.
const AT_ONCE: Duration = Duration::from_millis(500);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

fn readiness(cluster: &Cluster, node: usize) -> (u16, String) {
    get(&format!("http://{}/readyz", cluster.addresses[node].http)).unwrap()
}

/// Waits until the node says why it is not ready. Gives how long that took since `since`.
fn wait_not_ready(cluster: &Cluster, node: usize, why: &str, since: Instant) -> Duration {
    loop {
        let (status, text) = readiness(cluster, node);
        if status == 503 && text.contains(why) {
            return since.elapsed();
        }
        assert!(since.elapsed() < Duration::from_secs(20), "node {}: {status} {text}", node + 1);
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the node has logged this, once.
fn wait_logged(cluster: &Cluster, node: usize, words: &str) {
    let since = Instant::now();
    loop {
        let log = std::fs::read_to_string(cluster.log_of(node)).unwrap();
        match log.matches(words).count() {
            0 => assert!(since.elapsed() < Duration::from_secs(20), "{log}"),
            count => return assert_eq!(count, 1, "{log}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn ask(cluster: &Cluster, node: usize, command: &str) -> String {
    let mut client = client(cluster, node);
    let asked = Instant::now();
    let reply = client.run(command).unwrap();
    assert!(asked.elapsed() < AT_ONCE, "{command}: {:?}", asked.elapsed());
    reply
}

fn info(cluster: &Cluster, node: usize) -> String {
    ask(cluster, node, "INFO replication")
}

fn metrics(cluster: &Cluster, node: usize) -> String {
    get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap().1
}

/// What `kvorum status` shows, and whether all is well.
fn status(cluster: &Cluster, node: usize) -> (bool, String) {
    let address = &cluster.addresses[node].http;
    let output =
        Command::new(env!("CARGO_BIN_EXE_kvorum")).args(["status", "--http", address]).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Every surface of a node says that it is not ready, and for this reason, in words that contain `why`; ROLE, which has no
/// reasons, that a follower is not connected.
fn assert_not_ready_everywhere(cluster: &Cluster, node: usize, reason: &str, why: &str) {
    let (code, text) = readiness(cluster, node);
    assert!(code == 503 && text.contains(why), "{code} {text}");
    let view = cluster.status(node).unwrap();
    assert!(view["not_ready"].as_str().is_some_and(|text| text.contains(why)), "{view}");
    let metrics = metrics(cluster, node);
    assert!(metrics.contains("kvorum_raft_ready{group=\"0\"} 0\n"), "{metrics}");
    let reasons: Vec<&str> = metrics
        .lines()
        .filter_map(|line| {
            line.strip_prefix("kvorum_raft_not_ready{group=\"0\",reason=\"")?.strip_suffix("\"} 1")
        })
        .collect();
    assert_eq!(reasons, [reason], "{metrics}");
    let info = info(cluster, node);
    let said = info.split("\\r\\n").find_map(|line| line.strip_prefix("not_ready_reason:"));
    assert!(said.is_some_and(|text| text.contains(why)), "{info}");
    let (_, table) = status(cluster, node);
    let line = format!("node {} is not ready: ", node + 1);
    assert!(table.lines().any(|text| text.starts_with(&line) && text.contains(why)), "{table}");
    let role = ask(cluster, node, "ROLE");
    assert!(role.contains("\"master\"") || role.contains("\"connect\""), "{role}");
}

fn assert_refused_at_once(cluster: &Cluster, node: usize) {
    let mut client = client(cluster, node);
    for command in ["GET k", "SET k v", "INCR n", "LOCK.ACQUIRE l me PX 1000 WAIT 5000"] {
        let asked = Instant::now();
        let reply = client.run(command).unwrap();
        assert!(reply.starts_with("-CLUSTERDOWN"), "{command}: {reply}");
        assert!(asked.elapsed() < AT_ONCE, "{command}: {:?}", asked.elapsed());
    }
    assert_eq!(client.run("CONSISTENCY STALE GET k").unwrap(), "$\"v\"\n");
}

/// All nodes are ready, and clients are served everywhere.
fn assert_well(cluster: &mut Cluster) {
    for node in 0..cluster.addresses.len() {
        cluster.wait_ready(node);
    }
    for node in 0..cluster.addresses.len() {
        assert_eq!(ask(cluster, node, "SET k v"), "+OK\n");
        let info = info(cluster, node);
        assert!(info.contains("role:master") || info.contains("master_link_status:up"), "{info}");
        assert!(!info.contains("not_ready_reason") && !info.contains("master_link_down"), "{info}");
        let role = ask(cluster, node, "ROLE");
        assert!(role.contains("master") || role.contains("connected"), "{role}");
        let metrics = metrics(cluster, node);
        assert!(metrics.contains("kvorum_raft_ready{group=\"0\"} 1"), "{metrics}");
    }
    let (is_well, table) = status(cluster, 0);
    assert!(is_well && !table.contains("not ready"), "{table}");
}

#[test]
fn a_node_that_lost_all_others_says_so_and_refuses_at_once() {
    let mut cluster = Cluster::start(3, &[]);
    assert_well(&mut cluster);
    let leader = cluster.leader();
    let (follower, left) = ((leader + 1) % 3, (leader + 2) % 3);
    // It was asked before, and is asked when it cannot know yet: it waits for a leader, and is not told to wait for nothing.
    let mut early = client(&cluster, left);
    cluster.kill(leader);
    cluster.kill(follower);
    let lost = Instant::now();
    thread::scope(|scope| {
        let known = scope.spawn(|| wait_not_ready(&cluster, left, "no leader is known", lost));
        let reply = early.run("GET k").unwrap();
        assert!(reply.starts_with("-CLUSTERDOWN"), "{reply}");
        assert!(lost.elapsed() > Duration::from_millis(1_200), "it waits for as long as a failover takes");
        assert!(lost.elapsed() < Duration::from_millis(2_800), "after {:?}", lost.elapsed());
        let known = known.join().unwrap();
        assert!(known < KNOWN, "{known:?}");
    });
    assert_refused_at_once(&cluster, left);
    assert_not_ready_everywhere(&cluster, left, "no-leader", "no leader is known");
    let info = info(&cluster, left);
    assert!(info.contains("master_link_status:down"), "{info}");
    let seconds = |name: &str| {
        let value = info.split(name).nth(1).unwrap().split(['\r', '\\']).next().unwrap();
        value.parse::<i64>().unwrap_or_else(|error| panic!("{value}: {error}"))
    };
    for name in ["master_last_io_seconds_ago:", "master_link_down_since_seconds:"] {
        assert!((1..=30).contains(&seconds(name)), "{info}");
    }
    let metrics = metrics(&cluster, left);
    assert!(metrics.contains("kvorum_raft_leader_id{group=\"0\"} 0\n"), "{metrics}");
    assert!(cluster.status(left).unwrap()["leader_id"].is_null());
    let (is_well, table) = status(&cluster, left);
    assert!(!is_well, "{table}");
    wait_logged(&cluster, left, "this node is not ready");
    cluster.start_bare(leader);
    cluster.start_bare(follower);
    assert_well(&mut cluster);
    wait_logged(&cluster, left, "this node is ready again");
}

#[test]
fn whoever_asks_during_a_failover_waits_for_the_next_leader() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let mut others: Vec<Client> = [1, 2].map(|more| client(&cluster, (leader + more) % 3)).into();
    cluster.kill(leader);
    let lost = Instant::now();
    for other in &mut others {
        assert_eq!(other.run("SET k v").unwrap(), "+OK\n");
        assert_eq!(other.run("GET k").unwrap(), "$\"v\"\n");
    }
    assert!(lost.elapsed() > Duration::from_millis(500), "there was a failover to wait for");
}

#[test]
fn a_leader_that_lost_its_majority_says_so_and_so_does_who_follows_it() {
    let mut cluster = Cluster::start(5, &[]);
    assert_well(&mut cluster);
    let leader = cluster.leader();
    let follower = (leader + 1) % 5;
    let gone = [2, 3, 4].map(|more| (leader + more) % 5);
    gone.iter().for_each(|node| cluster.freeze(*node));
    let lost = Instant::now();
    let (of_leader, of_follower) = thread::scope(|scope| {
        let leads = scope
            .spawn(|| wait_not_ready(&cluster, leader, "a majority of the members cannot be reached", lost));
        let follows = scope.spawn(|| wait_not_ready(&cluster, follower, "cannot reach a majority", lost));
        (leads.join().unwrap(), follows.join().unwrap())
    });
    assert!(of_leader < KNOWN && of_follower < KNOWN, "{of_leader:?} {of_follower:?}");
    // A failover would be over.
    thread::sleep(Duration::from_millis(2_600).saturating_sub(lost.elapsed()));
    for (node, why) in [
        (leader, "a majority of the members cannot be reached"),
        (follower, "which leads, cannot reach a majority of the members"),
    ] {
        assert_refused_at_once(&cluster, node);
        assert_not_ready_everywhere(&cluster, node, "no-majority", why);
    }
    let info = info(&cluster, leader);
    assert!(info.contains("role:master") && info.contains("connected_slaves:1"), "{info}");
    gone.iter().for_each(|node| cluster.thaw(*node));
    assert_well(&mut cluster);
}

#[test]
fn a_node_that_is_removed_says_so_and_does_not_fill_the_logs_of_the_others() {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let removed = (leader + 1) % 3;
    let url = format!("http://{}/v1/cluster/members/{}", cluster.addresses[leader].http, removed + 1);
    ureq::delete(&url).call().unwrap();
    let gone = Instant::now();
    let known = wait_not_ready(&cluster, removed, "was removed from the cluster", gone);
    assert!(known < KNOWN, "{known:?}");
    assert_not_ready_everywhere(&cluster, removed, "refused", "was removed from the cluster");
    // It goes on to knock, many times.
    wait_logged(&cluster, removed, "this node is not ready");
    thread::sleep(Duration::from_secs(15).saturating_sub(gone.elapsed()));
    for node in 0..3 {
        let log = std::fs::read_to_string(cluster.log_of(node)).unwrap();
        let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        // A node that has not heard of the removal yet may refuse for another reason first.
        for reason in ["is not a member as far as", "was removed from the cluster"] {
            assert!(
                lines(&format!("refused a peer peer={} why=\"node {} {reason}", removed + 1, removed + 1))
                    <= 1,
                "{log}"
            );
            for peer in 1..=3 {
                let cannot = log.lines().filter(|line| {
                    line.contains(&format!("cannot reach the peer peer={peer} ")) && line.contains(reason)
                });
                assert!(cannot.count() <= 2, "{log}");
            }
        }
        assert!(lines("refused a peer") <= 2 && lines("cannot reach the peer") <= 6, "{log}");
        assert_eq!(lines("this node is not ready"), usize::from(node == removed), "{log}");
    }
}

#[test]
fn while_a_cluster_forms_every_node_names_who_is_missing() {
    let mut cluster = Cluster::off(3, &[]);
    cluster.start_node(0);
    cluster.start_node(1);
    let started = Instant::now();
    let missing = format!("node 3 ({})", cluster.addresses[2].peer);
    for node in 0..2 {
        while get(&format!("http://{}/healthz", cluster.addresses[node].http)).is_none() {
            assert!(started.elapsed() < Duration::from_secs(20), "node {} does not start", node + 1);
            thread::sleep(Duration::from_millis(10));
        }
        let known = wait_not_ready(&cluster, node, &missing, Instant::now());
        assert!(known < KNOWN, "{known:?}");
        let (_, text) = readiness(&cluster, node);
        assert!(
            text.contains("not formed yet") && text.contains("refused") && !text.contains("node 2 ("),
            "{text}"
        );
        assert_not_ready_everywhere(&cluster, node, "not-formed", &missing);
    }
    cluster.start_node(2);
    assert_well(&mut cluster);
}

#[test]
fn a_node_whose_disk_is_slow_says_so() {
    let mut cluster = Cluster::off(3, &[]);
    let disks = SlowDisks::hold(&mut cluster);
    cluster.start_all();
    assert_well(&mut cluster);
    let leader = cluster.leader();
    let asked = (leader + 2) % 3;
    for slow in [(leader + 1) % 3, leader] {
        disks.slow(slow, Duration::from_secs(8));
        // What it has to sync. The others have their answers without it, or after it has handed over.
        let mut client = client(&cluster, asked);
        client.send(&encode(&["SET", "k", "v"])).unwrap();
        let known = wait_not_ready(&cluster, slow, "the disk has not answered for", Instant::now());
        assert!(known < Duration::from_secs(3), "{known:?}");
        assert_not_ready_everywhere(&cluster, slow, "disk", "the disk has not answered for");
        assert_eq!(client.receive().unwrap().show(), "+OK\n");
        disks.slow(slow, Duration::ZERO);
        assert_well(&mut cluster);
    }
}

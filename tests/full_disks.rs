//! A full disk ends no node. What needs space is refused before nothing can be written, reads go on, and so does what makes
//! room; when there is room everything comes back by itself. Nothing that was acknowledged is lost.
//!
//! Needs the rights for a mount namespace of its own; says so and checks nothing without them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::{Client, Value},
    small_disk::SmallDisks,
};

const MB: u64 = 32;
const VALUE_BYTES: usize = 50_000;
const SMALL: [&str; 4] = ["--log-segment-bytes", "1mb", "--checkpoint-log-bytes", "1mb"];
const PATIENCE: Duration = Duration::from_secs(30);
/// A disk is full when it stays so: with every checkpoint space comes back.
const FULL: Duration = Duration::from_millis(1500);

/// A cluster of three on small disks; the disks last longer than it.
fn small_cluster(reserve: &str) -> Option<(Cluster, SmallDisks)> {
    let disks = SmallDisks::new(3, MB)?;
    let mut cluster = Cluster::off(3, &[&SMALL[..], &["--disk-reserve", reserve]].concat());
    disks.hold(&mut cluster);
    cluster.start_all();
    Some((cluster, disks))
}

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

/// A value that cannot be compressed, and can be told from others.
fn value_of(key: &str) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(key.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
    (0..VALUE_BYTES).map(|_| random.u8(..)).collect()
}

fn set(client: &mut Client, key: &str) -> String {
    client.call(&[b"SET", key.as_bytes(), &value_of(key)]).unwrap().show()
}

/// A leader hands over when its disk is fuller than the others', which leaves the outcome of a write unknown.
const UNKNOWN_MAX: usize = 5;

/// Writes new keys until that has been refused for a while; gives those that were acknowledged.
fn fill(client: &mut Client, prefix: &str) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let (since, mut refused_since, mut unknown) = (Instant::now(), None::<Instant>, 0);
    while since.elapsed() < 2 * PATIENCE {
        let key = format!("{prefix}{}", acknowledged.len());
        let reply = set(client, &key);
        if reply == "+OK\n" {
            acknowledged.push(key);
            refused_since = None;
            continue;
        }
        if reply.starts_with("-UNCERTAIN") && unknown < UNKNOWN_MAX {
            // The same write once more changes nothing.
            unknown += 1;
            continue;
        }
        assert!(reply.starts_with("-OOM command not allowed"), "{key}: {reply}");
        if reply.contains("have no room for") {
            // A smaller one may still fit.
            let small = client.call(&[&b"SET"[..], b"small", &[7; 1000]]).unwrap().show();
            assert!(small == "+OK\n" || small.starts_with("-OOM"), "{small}");
        } else if refused_since.get_or_insert_with(Instant::now).elapsed() > FULL {
            return acknowledged;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{MB} MB were not full");
}

fn assert_held(client: &mut Client, keys: &[String]) {
    for key in keys {
        assert_eq!(client.call(&["GET", key]).unwrap(), Value::Bulk(b'$', Some(value_of(key))), "{key}");
    }
}

fn readiness(cluster: &Cluster, node: usize) -> (u16, String) {
    get(&format!("http://{}/readyz", cluster.addresses[node].http)).unwrap()
}

fn metric(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.rsplit_once(' ')).unwrap().1.parse().unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until writes that need space are taken by all nodes.
fn wait_roomy(cluster: &Cluster) {
    for node in 0..3 {
        let mut client = client(cluster, node);
        wait_for("writes to be taken again", || client.run("SET small value").unwrap() == "+OK\n");
    }
}

fn assert_alive(cluster: &mut Cluster) {
    for node in 0..3 {
        assert!(cluster.is_running(node), "node {} has ended", node + 1);
    }
}

/// What is refused and what is not, on a node of a cluster that has no room.
fn assert_refuses_growth(cluster: &Cluster, node: usize) {
    let mut client = client(cluster, node);
    let mut run = |line: &str| client.run(line).unwrap();
    for line in [
        "SET k v",
        "INCR n",
        "LOCK.ACQUIRE l o PX 1000",
        "LOCK.ACQUIRE l o PX 1000 WAIT 10",
        "SESSION.OPEN s",
    ] {
        let refused = run(line);
        assert!(refused.starts_with("-OOM command not allowed when the disk is"), "{line}: {refused}");
    }
    assert_eq!(run("MULTI"), "+OK\n");
    assert!(run("SET k v").starts_with("-OOM"));
    assert_eq!(run("DEL k"), "+QUEUED\n");
    assert!(run("EXEC").starts_with("-EXECABORT"));
    assert_eq!(run("EXISTS k"), ":0\n", "what is refused is not applied");
    assert_eq!(run("EXPIRE k 1"), ":0\n");
    let url = format!("http://{}/v1/locks/l", cluster.addresses[node].http);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let answer = agent.post(&url).send_json(serde_json::json!({ "owner": "o", "ttl_ms": 1000 })).unwrap();
    assert_eq!(answer.status().as_u16(), 507);
    // A leader may have handed over a moment ago, to one that had some room.
    wait_for("it to be ready but for what needs space", || {
        let (status, text) = readiness(cluster, node);
        status == 200 && text.contains("but for what needs space")
    });
    // A checkpoint may have given a little back for a moment.
    wait_for("its metrics to say so", || {
        metric(cluster, node, "kvorum_raft_growth_refused") == 1
            && metric(cluster, node, "kvorum_disk_state") >= 2
    });
}

#[test]
fn three_full_disks_refuse_what_grows_and_come_back_when_there_is_room() {
    let Some((mut cluster, _disks)) = small_cluster("4mb") else { return };
    let leader = cluster.leader();
    let acknowledged = fill(&mut client(&cluster, leader), "k");
    assert!(acknowledged.len() > 150, "only {} keys fit", acknowledged.len());
    // What the clients of all nodes see a moment later.
    wait_for("all to know", || (0..3).all(|node| metric(&cluster, node, "kvorum_raft_growth_refused") == 1));
    (0..3).for_each(|node| assert_refuses_growth(&cluster, node));
    assert_alive(&mut cluster);
    for node in 0..3 {
        assert_held(&mut client(&cluster, node), &acknowledged[node * 40..][..40]);
    }
    // All are started again on their full disks.
    (0..3).for_each(|node| cluster.kill(node));
    cluster.start_all();
    assert_held(&mut client(&cluster, 0), &acknowledged);
    let (deleted, kept) = acknowledged.split_at(acknowledged.len() / 2);
    let mut any = client(&cluster, 1);
    for key in deleted {
        assert_eq!(any.call(&["DEL", key]).unwrap().show(), ":1\n", "{key}");
    }
    wait_roomy(&cluster);
    assert_held(&mut any, kept);
    let more = fill(&mut any, "m");
    assert!(more.len() > deleted.len() / 2, "{} keys made room for {}", deleted.len(), more.len());
    assert_eq!(any.run("FLUSHALL").unwrap(), "+OK\n");
    wait_roomy(&cluster);
    let last = fill(&mut any, "l");
    assert!(last.len() > acknowledged.len() / 2, "{} after {}", last.len(), acknowledged.len());
    assert_held(&mut any, &last);
    assert_alive(&mut cluster);
}

#[test]
fn where_growth_is_refused_the_membership_and_the_clock_can_be_changed() {
    let Some(disks) = SmallDisks::new(3, MB) else { return };
    let mut cluster = Cluster::off(3, &[&SMALL[..], &["--disk-reserve", "4mb"]].concat());
    disks.hold(&mut cluster);
    // The log's clock is ahead: there is something to close.
    cluster.give_own_clocks();
    (0..3).for_each(|node| cluster.shift_clock(node, 60));
    cluster.start_all();
    (0..3).for_each(|node| cluster.shift_clock(node, 0));
    fill(&mut client(&cluster, cluster.leader()), "k");
    wait_for("all to know", || (0..3).all(|node| metric(&cluster, node, "kvorum_raft_growth_refused") == 1));
    let leader = cluster.leader();
    let (removed, kept) = ((leader + 1) % 3, (leader + 2) % 3);
    let url = |path: &str| format!("http://{}/v1/cluster/{path}", cluster.addresses[kept].http);
    for closing in [true, false] {
        ureq::post(url("clock")).send_json(serde_json::json!({ "closing": closing })).unwrap();
        wait_for("it to be so everywhere", || {
            (0..3).all(|node| cluster.status(node).unwrap()["clock_closing"] == closing)
        });
    }
    ureq::delete(url(&format!("members/{}", removed + 1))).call().unwrap();
    for node in [leader, kept] {
        wait_for("two to be members", || {
            cluster.status(node).unwrap()["members"].as_array().unwrap().len() == 2
        });
        assert_refuses_growth(&cluster, node);
    }
    // One with more room takes its place.
    let fourth = cluster.join(kept);
    cluster.wait_ready(fourth);
    cluster.wait_voter(fourth);
    assert_alive(&mut cluster);
}

#[test]
fn what_others_put_on_the_disks_stops_growth_alone_and_a_restart_serves() {
    let Some((mut cluster, disks)) = small_cluster("4mb") else { return };
    let mut any = client(&cluster, 0);
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    keys.iter().for_each(|key| assert_eq!(set(&mut any, key), "+OK\n"));
    (0..3).for_each(|node| disks.fill(node));
    let more = fill(&mut any, "m");
    assert!(more.len() < 200, "{} MB were written on full disks", (more.len() * VALUE_BYTES) >> 20);
    assert_eq!(any.run("DEL k0").unwrap(), ":1\n");
    assert_alive(&mut cluster);
    (0..3).for_each(|node| cluster.kill(node));
    cluster.start_all();
    let mut any = client(&cluster, 2);
    assert_held(&mut any, &keys[1..]);
    assert_held(&mut any, &more);
    assert!(set(&mut any, "k0").starts_with("-OOM"));
    assert_eq!(any.run("DEL k1").unwrap(), ":1\n");
    (0..3).for_each(|node| disks.clear(node));
    wait_roomy(&cluster);
    wait_for("the reserve to be taken again", || {
        (0..3).all(|node| {
            let wanted = metric(&cluster, node, "kvorum_disk_reserve_wanted_bytes");
            wanted > 0 && metric(&cluster, node, "kvorum_disk_reserve_bytes") == wanted
        })
    });
    assert_held(&mut any, &keys[2..]);
}

#[test]
fn one_full_disk_of_three_is_harmless_and_says_so() {
    // Without a reserve, so that its log has to wait.
    let Some((mut cluster, disks)) = small_cluster("0") else { return };
    let full = cluster.leader();
    let other = (full + 1) % 3;
    disks.fill(full);
    wait_for("the full leader to hand over", || {
        cluster
            .status(other)
            .is_some_and(|status| status["leader_id"].as_u64().is_some_and(|id| id != full as u64 + 1))
    });
    let mut any = client(&cluster, other);
    let keys: Vec<String> = (0..120).map(|number| format!("k{number}")).collect();
    for key in &keys {
        assert_eq!(set(&mut any, key), "+OK\n", "{key}");
    }
    wait_for("the node to say that its log waits", || {
        let (status, text) = readiness(&cluster, full);
        status == 503 && text.contains("waits for space")
    });
    assert_eq!(readiness(&cluster, other).0, 200);
    assert_eq!(metric(&cluster, full, "kvorum_disk_state"), 3);
    assert_alive(&mut cluster);
    // It stops when it is asked to, and where nothing at all is left, it says what to do.
    assert!(cluster.stop(full) < PATIENCE);
    disks.fill(full);
    cluster.start_node(full);
    let (code, log) = cluster.wait_end(full);
    assert!(
        code == Some(8) && log.contains("nothing is left of what this node had set aside"),
        "{code:?}\n{log}"
    );
    disks.clear(full);
    cluster.start_node(full);
    cluster.wait_ready(full);
    let mut back = client(&cluster, full);
    assert_held(&mut back, &keys);
    assert_eq!(set(&mut back, "new"), "+OK\n");
    assert_alive(&mut cluster);
}

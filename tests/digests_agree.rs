//! Three real processes: at the same index of the log their digests are the same, also on one that was killed and
//! got a snapshot; another write makes another digest. And all have the hash key that the leader drew.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{
    hostile::colliding,
    process::Cluster,
    resp::{Client, Value},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// The index and the digest.
fn digest(cluster: &Cluster, node: usize) -> (i64, String) {
    match client(cluster, node).call(&["DEBUG", "DIGEST"]).unwrap() {
        Value::Aggregate(_, Some(parts)) => match &parts[..] {
            [Value::Line(b':', index), Value::Bulk(_, Some(digest))] => {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                (text(index).parse().unwrap(), text(digest))
            }
            other => panic!("no digest: {other:?}"),
        },
        other => panic!("no digest: {}", other.show()),
    }
}

/// What all nodes say when all are at one index.
fn agreed(cluster: &Cluster) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let digests: Vec<_> = (0..3).map(|node| digest(cluster, node)).collect();
        if digests.iter().all(|(index, _)| *index == digests[0].0) {
            assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
            return digests[0].1.clone();
        }
        assert!(Instant::now() < deadline, "the nodes never stood at one index: {digests:?}");
    }
}

/// How many snapshots a node has installed since it was started.
fn installed(cluster: &Cluster, node: usize) -> u64 {
    let info = client(cluster, node).run("INFO kvorum").unwrap();
    let field = info.split("snapshots_installed:").nth(1).expect("INFO tells of snapshots");
    field.split(|char: char| !char.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// A step of HSCAN shows few of names that would fall together without a key; and the same ones on every node.
fn scans_are_short_and_equal(cluster: &Cluster) {
    let step = |node| client(cluster, node).run("HSCAN colliding 0 COUNT 1").unwrap();
    let first = step(0);
    assert!(first.len() < 200, "{first}");
    assert!((1..3).all(|node| step(node) == first));
}

#[test]
fn digests_are_equal_at_equal_indexes() {
    let mut cluster = Cluster::start(3, &["--checkpoint-log-bytes", "64kb", "--log-entries-kept", "10"]);
    let leader = cluster.leader();
    let mut writer = client(&cluster, leader);
    writer.run("HSET h a 1 b 2").unwrap();
    writer.run("ZADD z 1 a 2 b").unwrap();
    for number in 0..200 {
        writer.call(&[&b"HSET"[..], b"colliding", &colliding(number), b"v"]).unwrap();
    }
    let before = agreed(&cluster);
    writer.run("HSET h a 2").unwrap();
    assert_ne!(agreed(&cluster), before);

    let victim = (leader + 1) % 3;
    cluster.kill(victim);
    let value = "x".repeat(2_000);
    for number in 0..200 {
        writer.call(&["SET", &format!("key:{number}"), &value]).unwrap();
    }
    cluster.purge(leader);
    cluster.start_node(victim);
    cluster.wait_ready(victim);
    agreed(&cluster);
    scans_are_short_and_equal(&cluster);
    assert!(installed(&cluster, victim) > 0);
}

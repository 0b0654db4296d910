//! A node comes back with its disk; without it, it is refused under its id, told why, and replaced under a new one.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use support::process::{Cluster, get};

/// Waits until the node says that it is not ready, and why.
fn wait_refused(cluster: &Cluster, node: usize, why: &str) {
    let url = format!("http://{}/readyz", cluster.addresses[node].http);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = get(&url);
        if answer.as_ref().is_some_and(|(status, body)| *status == 503 && body.contains(why)) {
            return;
        }
        assert!(Instant::now() < deadline, "node {}: {answer:?}", node + 1);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_is_replaced_with_and_without_its_disk() {
    let mut cluster = Cluster::start(3, &[]);
    let member = format!("http://{}/v1/cluster/members", cluster.addresses[0].http);
    cluster.kill(2);
    cluster.start_bare(2);
    cluster.wait_ready(2);

    cluster.kill(2);
    fs::remove_dir_all(cluster.data_of(2)).unwrap();
    cluster.start_node(2);
    wait_refused(&cluster, 2, "came back with another disk");
    cluster.kill(2);
    fs::remove_dir_all(cluster.data_of(2)).unwrap();
    cluster.start_joining(2, 0);
    let (code, log) = cluster.wait_end(2);
    assert!(
        code == Some(1) && log.contains("a member with another disk") && log.contains("such as 4"),
        "{log}"
    );

    ureq::delete(format!("{member}/3")).call().unwrap();
    cluster.start_joining(2, 1);
    let (code, log) = cluster.wait_end(2);
    assert!(code == Some(1) && log.contains("never given again") && log.contains("4 is free"), "{log}");
    let fourth = cluster.join(0);
    cluster.wait_ready(fourth);
    cluster.wait_voter(fourth);
}

#[test]
fn a_node_that_was_removed_does_not_come_back_with_its_disk() {
    let mut cluster = Cluster::start(3, &[]);
    let member = format!("http://{}/v1/cluster/members", cluster.addresses[0].http);
    cluster.kill(2);
    ureq::delete(format!("{member}/3")).call().unwrap();
    cluster.start_bare(2);
    wait_refused(&cluster, 2, "was removed from the cluster");
    cluster.wait_ready(0);
    cluster.wait_ready(1);
}

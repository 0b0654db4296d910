//! Three real processes with the same log, one of which comes to another state: it notices, says so, and takes the state
//! anew from the others, by itself. In the workspace's tests, whose servers can be led astray.
#![cfg(all(feature = "simulation", debug_assertions))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// Writes until `done`.
fn write_until(cluster: &Cluster, node: usize, what: &str, mut done: impl FnMut() -> bool) {
    let (deadline, mut client) = (Instant::now() + PATIENCE, client(cluster, node));
    let value = "x".repeat(1000);
    for number in 0.. {
        assert_eq!(client.run(&format!("SET k{} {value}", number % 100)).unwrap(), "+OK\n");
        if number % 10 == 0 && done() {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
    }
}

#[test]
fn a_node_that_has_come_to_another_state_takes_the_state_of_the_others() {
    let mut cluster = Cluster::start(3, &["--checkpoint-log-bytes", "64kb"]);
    let leader = cluster.leader();
    let wrong = (leader + 1) % 3;
    let (pid, log) = (cluster.pid(wrong), cluster.log_of(wrong));
    assert_eq!(client(&cluster, leader).run("SET truth 1").unwrap(), "+OK\n");
    assert_eq!(client(&cluster, wrong).run("GET truth").unwrap(), "$\"1\"\n");
    assert_eq!(client(&cluster, wrong).run("DEBUG DRIFT truth 2").unwrap(), "+OK\n");
    let aside = cluster.data_of(wrong).join("pages.distrusted-1");
    write_until(&cluster, leader, "the node to set its state aside", || aside.exists());
    cluster.wait_ready(wrong);
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("come to another state by the same log"), "{log}");
    assert_eq!(cluster.pid(wrong), pid, "it is the same process");
    assert_eq!(client(&cluster, wrong).run("GET truth").unwrap(), "$\"1\"\n");
    // It agrees again, and nobody has anything against it.
    let state = |node| client(&cluster, node).run("DEBUG DIGEST").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while state(wrong) != state(leader) {
        assert!(Instant::now() < deadline, "their states differ");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!cluster.data_of(wrong).join("pages.distrusted-2").exists());
}

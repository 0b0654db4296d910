//! Nodes that come back at other addresses are heard of, and no node tells the others an address that leads nowhere.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, free_address},
    resp::Client,
};

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

fn set(cluster: &Cluster, node: usize, value: &str) {
    assert_eq!(client(cluster, node).run(&format!("SET key {value}")).unwrap(), "+OK\n");
}

fn get_key(cluster: &Cluster, node: usize) -> String {
    client(cluster, node).run("GET key").unwrap()
}

/// Waits until a node knows all members where they are now.
fn wait_known(cluster: &Cluster, by: usize) {
    let expected: Vec<&str> = cluster.addresses.iter().map(|addresses| addresses.peer.as_str()).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = cluster.status(by).unwrap();
        let members = status["members"].as_array().unwrap();
        let known: Vec<&str> =
            members.iter().map(|member| member["addresses"]["peer"].as_str().unwrap()).collect();
        if known == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{known:?} is not {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_that_has_moved_is_heard_of_and_a_majority_of_such_nodes_finds_together() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    set(&cluster, leader, "1");
    // One after the other, without being told anything but where to listen.
    for node in &others {
        cluster.stop(*node);
        cluster.move_node(*node);
        cluster.start_bare(*node);
        cluster.wait_ready(*node);
        wait_known(&cluster, leader);
    }
    // And both at once, while nobody leads who could write their addresses down.
    for node in &others {
        cluster.stop(*node);
    }
    cluster.move_node(others[0]);
    cluster.start_bare(others[0]);
    cluster.start_bare(others[1]);
    cluster.kill(leader);
    for node in &others {
        cluster.wait_ready(*node);
    }
    assert_eq!(get_key(&cluster, others[0]), "$\"1\"\n");
    set(&cluster, others[1], "2");
    cluster.start_bare(leader);
    cluster.wait_ready(leader);
    wait_known(&cluster, leader);
}

#[test]
fn nodes_that_have_all_moved_find_together_by_the_list() {
    let mut cluster = Cluster::start(3, &[]);
    set(&cluster, 0, "1");
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.move_node(node));
    (0..3).for_each(|node| cluster.start_node(node));
    (0..3).for_each(|node| cluster.wait_ready(node));
    (0..3).for_each(|node| wait_known(&cluster, node));
    assert_eq!(get_key(&cluster, 2), "$\"1\"\n");
    // From now on without it.
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_bare(node));
    (0..3).for_each(|node| cluster.wait_ready(node));
}

#[test]
fn all_addresses_of_a_machine_are_no_address() {
    // As on three machines: each listens everywhere, and is listed where it can be reached.
    let mut cluster = Cluster::start_listening_everywhere(3);
    for node in 0..3 {
        wait_known(&cluster, node);
    }
    let leader = cluster.leader();
    set(&cluster, (leader + 1) % 3, "1");
    cluster.kill(leader);
    cluster.wait_ready((leader + 1) % 3);
    set(&cluster, (leader + 1) % 3, "2");
    let dir = tempfile::tempdir().unwrap();
    let (resp, http) = (free_address(), free_address());
    let refused = Command::new(env!("CARGO_BIN_EXE_kvorum"))
        .args(["serve", "--id", "1", "--peer", "0.0.0.0:0", "--resp", &resp, "--http", &http, "--data"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("set advertise-peer to HOST:PORT"), "{said}");
}

#[test]
fn a_name_is_resolved_at_each_dial_and_all_its_addresses_are_tried() {
    // SAFETY: it reads a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: only root may give processes names of their own");
        return;
    }
    // Each name stands for an IPv6 and an IPv4 address, and a node listens at one of them.
    let mut cluster =
        Cluster::start_named(3, &["::1", "127.0.0.1"], |node| if node == 1 { "[::1]" } else { "127.0.0.1" });
    (0..3).for_each(|node| wait_known(&cluster, node));
    let (leader, moved) = (cluster.leader(), 1);
    set(&cluster, leader, "1");
    // It moves to an address that its name did not stand for when the others began.
    cluster.stop(moved);
    cluster.name(|node| if node == moved { vec!["127.0.0.2"] } else { vec!["::1", "127.0.0.1"] });
    cluster.listen_at(moved, "127.0.0.2");
    cluster.start_bare(moved);
    cluster.wait_ready(moved);
    (0..3).for_each(|node| wait_known(&cluster, node));
    // The others reach it as well as it reaches them: it makes a majority with one of them.
    cluster.kill((0..3).find(|node| *node != moved).unwrap());
    cluster.wait_ready(moved);
    set(&cluster, moved, "2");
}

//! Calls that wait for keys, on real processes: first come, first served over all nodes, across a change of leader; and
//! who does not wait any more takes nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use support::{
    process::Cluster,
    resp::{Client, Value, encode, split},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// A client that waits, once that is in the log.
fn waiting(cluster: &Cluster, node: usize, line: &str) -> Client {
    let mut watcher = client(cluster, node);
    let blocked = |watcher: &mut Client| {
        let Value::Bulk(_, Some(info)) = watcher.call(&["INFO", "clients"]).unwrap() else {
            panic!("INFO is text")
        };
        let info = String::from_utf8(info).unwrap();
        let line =
            info.lines().find_map(|line| line.trim().strip_prefix("blocked_clients:").map(str::to_owned));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = blocked(&mut watcher);
    let mut waiter = client(cluster, node);
    waiter.send(&encode(&split(line))).unwrap();
    let started = Instant::now();
    while blocked(&mut watcher) == before {
        assert!(started.elapsed() < PATIENCE, "{line} does not wait");
        thread::sleep(Duration::from_millis(5));
    }
    waiter
}

fn popped(waiter: &mut Client) -> String {
    waiter.receive().unwrap().show().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a command until it is not refused for want of a leader.
fn insist(client: &mut Client, line: &str) -> String {
    let started = Instant::now();
    loop {
        let reply = client.run(line).unwrap();
        if !reply.starts_with("-CLUSTERDOWN") && !reply.starts_with("-UNCERTAIN") {
            return reply;
        }
        assert!(started.elapsed() < PATIENCE, "{line}: {reply}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn first_come_first_served_over_all_nodes() {
    let cluster = Cluster::start(3, &[]);
    let mut waiters: Vec<Client> = (0..6).map(|at| waiting(&cluster, at % 3, "BLPOP jobs more 20")).collect();
    let mut pusher = client(&cluster, 1);
    assert_eq!(pusher.run("RPUSH jobs 0 1 2 3").unwrap(), ":4\n");
    assert_eq!(pusher.run("RPUSH more 4 5 6").unwrap(), ":3\n");
    for (at, waiter) in waiters.iter_mut().enumerate() {
        let key = if at < 4 { "jobs" } else { "more" };
        assert_eq!(popped(waiter), format!("*2 $\"{key}\" $\"{at}\""));
    }
    assert_eq!(pusher.run("LRANGE more 0 -1").unwrap().split_whitespace().last(), Some("$\"6\""));
}

#[test]
fn a_wait_outlives_its_leader_and_ends_with_its_node() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let (here, there) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut waiter = waiting(&cluster, here, "BLPOP jobs 25");
    // This one is in front, on the node that goes.
    let _gone = waiting(&cluster, leader, "BLPOP others 25");
    cluster.kill(leader);
    let mut pusher = client(&cluster, there);
    insist(&mut pusher, "RPUSH jobs kept");
    assert_eq!(popped(&mut waiter), "*2 $\"jobs\" $\"kept\"");
    // Nobody is served any more on a node that was silent for long enough.
    thread::sleep(Duration::from_secs(5));
    insist(&mut pusher, "RPUSH others stays");
    assert_eq!(insist(&mut pusher, "LLEN others"), ":1\n");
}

#[test]
fn a_client_that_is_gone_takes_nothing() {
    let cluster = Cluster::start(1, &[]);
    let mut pusher = client(&cluster, 0);
    for line in ["BLPOP jobs 0", "BLMOVE jobs done LEFT RIGHT 0", "BZPOPMIN jobs 0"] {
        drop(waiting(&cluster, 0, line));
        thread::sleep(Duration::from_millis(300));
        pusher.run("RPUSH jobs stays").unwrap();
        assert_eq!(pusher.run("LLEN jobs").unwrap(), ":1\n", "{line}");
        pusher.run("DEL jobs").unwrap();
    }
}

/// An element that is pushed at the moment when the client is unblocked is either told to it or still there.
#[test]
fn an_unblocked_client_has_what_it_took() {
    let cluster = Cluster::start(1, &[]);
    let (mut pusher, mut unblocker) = (client(&cluster, 0), client(&cluster, 0));
    let mut waiter = client(&cluster, 0);
    let id = waiter.run("CLIENT ID").unwrap().trim().trim_start_matches(':').to_owned();
    let (mut told, mut left) = (0, 0);
    for round in 0..200 {
        waiter.send(&encode(&split("BLPOP jobs 0"))).unwrap();
        let unblock = format!("CLIENT UNBLOCK {id}");
        thread::sleep(Duration::from_millis(2));
        thread::scope(|scope| {
            let pushes = scope.spawn(|| pusher.run(&format!("RPUSH jobs {round}")).unwrap());
            // If it was served before, it does not wait.
            while unblocker.run(&unblock).unwrap() == ":0\n" && !pushes.is_finished() {}
        });
        let reply = popped(&mut waiter);
        let rest = pusher.run("LRANGE jobs 0 -1").unwrap();
        let is_told = reply == format!("*2 $\"jobs\" $\"{round}\"");
        assert!(is_told || reply == "*-1", "{reply}");
        assert_eq!(rest.contains(&format!("\"{round}\"")), !is_told, "round {round}: {reply}, {rest}");
        told += u64::from(is_told);
        left += u64::from(!is_told);
        pusher.run("DEL jobs").unwrap();
    }
    println!("{told} were told, {left} were left");
}

/// A wait of many long keys is more than a mebibyte of a table that is no key.
#[test]
fn a_large_table_of_waits_goes_with_a_snapshot_and_survives_restarts() {
    let mut cluster = Cluster::start(3, &["--log-entries-kept", "0", "--log-segment-bytes", "64kb"]);
    let leader = cluster.leader();
    let (here, there) = ((leader + 1) % 3, (leader + 2) % 3);
    let keys: Vec<String> = (0..1_500).map(|number| format!("{number:01000}")).collect();
    let mut waiter = waiting(&cluster, here, &format!("BLPOP {} 60", keys.join(" ")));
    let mut pusher = client(&cluster, there);
    for number in 0..50 {
        pusher.run(&format!("SET key:{number} {number}")).unwrap();
    }
    cluster.purge(leader);
    let joined = cluster.join(leader);
    cluster.wait_voter(joined);
    let digest = |cluster: &Cluster, node: usize| client(cluster, node).run("DEBUG DIGEST").unwrap();
    let info = client(&cluster, joined).run("INFO kvorum").unwrap();
    assert!(!info.contains("snapshots_installed:0"), "it has not come by a snapshot: {info}");
    // All but the node of the client start again, from their checkpoints.
    for node in [leader, there, joined] {
        cluster.purge(node);
        cluster.kill(node);
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    let mut pusher = client(&cluster, joined);
    insist(&mut pusher, &format!("RPUSH {} served", keys[1_234]));
    assert_eq!(popped(&mut waiter), format!("*2 $\"{}\" $\"served\"", keys[1_234]));
    let equal = |cluster: &Cluster| {
        let digests: Vec<String> = (0..4).map(|node| digest(cluster, node)).collect();
        digests.iter().all(|digest| *digest == digests[0])
    };
    let started = Instant::now();
    while !equal(&cluster) {
        assert!(started.elapsed() < PATIENCE, "the states differ");
        thread::sleep(Duration::from_millis(50));
    }
}

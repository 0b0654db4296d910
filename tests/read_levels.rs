//! Read levels on three real processes: a node that is cut off or was stopped refuses what it cannot promise, and a
//! token is honoured at every node.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use support::{
    process::Cluster,
    resp::{Client, Value},
};

const PATIENCE: Duration = Duration::from_secs(60);
const REFUSED: &str = "-CLUSTERDOWN";

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// The text of a bulk string.
fn text(reply: Value) -> String {
    match reply {
        Value::Bulk(_, Some(bytes)) => String::from_utf8(bytes).unwrap(),
        other => panic!("no text: {}", other.show()),
    }
}

fn token(client: &mut Client) -> String {
    text(client.call(&["CLIENT", "CONSISTENCY", "TOKEN"]).unwrap())
}

fn after(client: &mut Client, token: &str) {
    let reply = client.call(&["CLIENT", "CONSISTENCY", "AFTER", token]).unwrap();
    assert_eq!(reply.show(), "+OK\n");
}

fn set_level(client: &mut Client, level: &str) {
    assert_eq!(client.run(&format!("CLIENT CONSISTENCY {level}")).unwrap(), "+OK\n");
}

#[test]
fn stale_reads_before_a_write_are_answered_where_nothing_can_be_written() {
    let cluster = Cluster::start(3, &["--request-timeout-ms", "1000"]);
    let leader = cluster.leader();
    let follower = (leader + 1) % 3;
    let mut reader = client(&cluster, follower);
    assert_eq!(reader.run("SET k v").unwrap(), "+OK\n");
    set_level(&mut reader, "stale");
    for node in (0..3).filter(|node| *node != follower) {
        cluster.freeze(node);
    }
    let lines = [&["GET", "k"][..], &["PING"], &["GET", "k"], &["SET", "k", "w"], &["GET", "k"]];
    let asked = Instant::now();
    reader.send(&lines.map(support::resp::encode).concat()).unwrap();
    for expected in ["$\"v\"\n", "+PONG\n", "$\"v\"\n"] {
        assert_eq!(reader.receive().unwrap().show(), expected);
    }
    assert!(asked.elapsed() < Duration::from_millis(800), "after {:?}", asked.elapsed());
    // What stands behind the write went with it.
    assert!(reader.receive().unwrap().show().starts_with('-'));
    assert!(reader.receive().unwrap().is_unavailable());
}

#[test]
fn a_follower_that_is_cut_off_refuses_what_it_cannot_promise() {
    let cluster = Cluster::start(3, &["--request-timeout-ms", "1000"]);
    let leader = cluster.leader();
    let follower = (leader + 1) % 3;
    let mut reader = client(&cluster, follower);
    let mut writer = client(&cluster, leader);
    assert_eq!(writer.run("SET k v").unwrap(), "+OK\n");
    assert_eq!(reader.run("GET k").unwrap(), "$\"v\"\n");
    let seen = token(&mut writer);
    for node in (0..3).filter(|node| *node != follower) {
        cluster.freeze(node);
    }
    thread::sleep(Duration::from_millis(100));
    for level in ["linearizable", "lease", "bounded 50"] {
        let reply = reader.run(&format!("CONSISTENCY {level} GET k")).unwrap();
        assert!(reply.starts_with(REFUSED), "{level}: {reply}");
        set_level(&mut reader, level);
        for ask in ["GET k", "EXISTS k"] {
            let reply = reader.run(ask).unwrap();
            assert!(reply.starts_with(REFUSED), "{level}: {reply}");
        }
    }
    assert_eq!(reader.run("CONSISTENCY stale GET k").unwrap(), "$\"v\"\n");
    // What it knew a moment ago is good enough for whoever takes what is an hour old.
    assert_eq!(reader.run("CONSISTENCY bounded 3600000 GET k").unwrap(), "$\"v\"\n");
    assert_eq!(reader.run("READONLY").unwrap(), "+OK\n");
    after(&mut reader, &seen);
    assert_eq!(reader.run("GET k").unwrap(), "$\"v\"\n");
    // A position that this node has never heard of.
    let (id, index) = seen.split_once('-').unwrap();
    after(&mut reader, &format!("{id}-{}", index.parse::<u64>().unwrap() + 1_000_000));
    let asked = Instant::now();
    let reply = reader.run("GET k").unwrap();
    assert_eq!(reply, "-TRYAGAIN this node has not applied the position of the token yet\n");
    assert!(asked.elapsed() >= Duration::from_secs(1), "it waits as long as a request may");
    assert_eq!(reader.run("RESET").unwrap(), "+RESET\n");
    for node in (0..3).filter(|node| *node != follower) {
        cluster.thaw(node);
    }
    let healed = Instant::now();
    while reader.run("GET k").unwrap() != "$\"v\"\n" {
        assert!(healed.elapsed() < PATIENCE, "the cluster does not come back");
    }
}

#[test]
fn bounded_reads_keep_their_bound_while_the_node_is_stopped_again_and_again() {
    const BOUND: Duration = Duration::from_millis(150);
    let cluster = Cluster::start(3, &["--request-timeout-ms", "2000"]);
    let leader = cluster.leader();
    let follower = (leader + 1) % 3;
    let begun = Instant::now();
    let now_us = || begun.elapsed().as_micros() as u64;
    let stop = AtomicBool::new(false);
    // Number n was acknowledged before the moment at n.
    let acknowledged: Vec<AtomicU64> = (0..200_000).map(|_| AtomicU64::new(u64::MAX)).collect();
    let (served, refused) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = client(&cluster, leader);
            for (number, at) in acknowledged.iter().enumerate().take_while(|_| !stop.load(SeqCst)) {
                let reply = writer.call(&["SET", "k", &number.to_string()]).unwrap();
                assert_eq!(reply.show(), "+OK\n");
                at.store(now_us(), SeqCst);
            }
        });
        let reader = scope.spawn(|| {
            let mut reader = client(&cluster, follower);
            set_level(&mut reader, &format!("bounded {}", BOUND.as_millis()));
            let (mut served, mut refused, mut last) = (0, 0, 0);
            while !stop.load(SeqCst) {
                let due_us = now_us().saturating_sub(BOUND.as_micros() as u64);
                match reader.call(&["GET", "k"]).unwrap() {
                    Value::Bulk(_, None) => assert!(acknowledged[0].load(SeqCst) >= due_us),
                    reply @ Value::Bulk(..) => {
                        let number: usize = text(reply).parse().unwrap();
                        let next = acknowledged[number + 1].load(SeqCst);
                        assert!(next >= due_us, "{number} at {due_us} us; the next is of {next} us");
                        assert!(number >= last, "it went back from {last} to {number}");
                        (served, last) = (served + 1, number);
                    }
                    reply => {
                        assert!(reply.is_unavailable(), "{}", reply.show());
                        refused += 1;
                    }
                }
            }
            (served, refused)
        });
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(400));
            cluster.freeze(follower);
            thread::sleep(Duration::from_millis(700));
            cluster.thaw(follower);
        }
        thread::sleep(Duration::from_millis(400));
        stop.store(true, SeqCst);
        reader.join().unwrap()
    });
    assert!(served > 100, "{served} reads were served, {refused} refused");
}

#[test]
fn a_token_gives_read_your_writes_at_every_node_and_level() {
    let cluster = Cluster::start(3, &["--read-consistency", "stale"]);
    let leader = cluster.leader();
    let mut clients: Vec<Client> = (0..3).map(|node| client(&cluster, node)).collect();
    assert_eq!(clients[0].run("CLIENT CONSISTENCY").unwrap(), "$\"stale\"\n");
    for number in 0..200 {
        let writer = number % 3;
        let value = number.to_string();
        assert_eq!(clients[writer].call(&["SET", "k", &value]).unwrap().show(), "+OK\n");
        let mut seen = token(&mut clients[writer]);
        // And on from node to node: each hands over what it has seen.
        for reader in [(writer + 1) % 3, (writer + 2) % 3, leader] {
            let reading = &mut clients[reader];
            after(reading, &seen);
            let reply = if number % 2 == 0 {
                reading.run("GET k")
            } else {
                reading.run("CONSISTENCY bounded 60000 GET k")
            };
            assert_eq!(reply.unwrap(), format!("$\"{value}\"\n"), "number {number} at node {reader}");
            seen = token(reading);
        }
    }
}

/// A cluster of one whose leader does not look for what is due to die for a moment, and a client that made it so.
fn asleep(cluster: &Cluster, doing: &str) -> Client {
    let mut client = client(cluster, 0);
    // Where nothing is due, it looks only now and then.
    thread::sleep(Duration::from_millis(60));
    assert!(!client.run(doing).unwrap().starts_with('-'));
    thread::sleep(Duration::from_millis(10));
    client
}

#[test]
fn a_transaction_with_commands_of_the_session_shows_no_key_that_is_dead() {
    let cluster = Cluster::start(1, &[]);
    let lines = ["MULTI", "PING", "SELECT 1", "SELECT 0", "GET k", "EXEC"];
    let requests: Vec<u8> =
        lines.iter().flat_map(|line| support::resp::encode(&support::resp::split(line))).collect();
    for round in 0..20 {
        let mut client = asleep(&cluster, "SET k v PX 5");
        client.send(&requests).unwrap();
        let replies: Vec<String> = lines.iter().map(|_| client.receive().unwrap().show()).collect();
        assert!(replies[5].contains("PONG") && !replies[5].contains("\"v\""), "round {round}: {replies:?}");
    }
}

#[test]
fn an_observer_is_told_first_of_no_leader_whose_time_is_over() {
    let cluster = Cluster::start(1, &[]);
    for round in 0..20 {
        let mut client = asleep(&cluster, "ELECT.CAMPAIGN e late PX 5");
        assert_eq!(client.run("ELECT.OBSERVE e").unwrap(), "+OK\n");
        let first = client.receive().unwrap().show();
        assert!(first.contains("election") && !first.contains("late"), "round {round}: {first}");
    }
}

//! Three nodes with a constant delay between them, with default settings: they become ready and stay so, reads and writes take
//! the round trips that they must, and a leader that is killed is replaced within three times the election time-out.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{process::Cluster, resp::Client};

/// Of so many attempts the quickest counts: a busy machine makes none quicker than the way is long.
const ATTEMPTS: usize = 3;

/// For how long nothing may happen to the leader.
const REST: Duration = Duration::from_secs(1);

/// How long a command takes at best, which must give `expected`.
fn quickest(client: &mut Client, words: &[&str], expected: &str) -> Duration {
    let attempt = || {
        let asked = Instant::now();
        assert_eq!(client.call(words).unwrap().show(), expected, "{words:?}");
        asked.elapsed()
    };
    std::iter::repeat_with(attempt).take(ATTEMPTS).min().unwrap()
}

/// What a node says of the time-outs in force, in milliseconds.
fn election_timeout_ms(cluster: &Cluster, node: usize) -> (u64, u64) {
    let status = cluster.status(node).unwrap();
    let bound = |at: usize| status["election_timeout_ms"][at].as_u64().unwrap();
    (bound(0), bound(1))
}

fn term(cluster: &Cluster, node: usize) -> u64 {
    cluster.status(node).unwrap()["term"].as_u64().unwrap()
}

fn is_shown(cluster: &Cluster, round_trip: Duration) {
    let ms = round_trip.as_secs_f64() * 1000.0;
    for node in 0..3 {
        let status = cluster.status(node).unwrap();
        assert_eq!(status["timeouts_misfit"], serde_json::Value::Null);
        for member in status["members"].as_array().unwrap() {
            let least_ms = member["round_trip"]["least_ms"].as_f64();
            if member["id"] == node + 1 {
                assert_eq!(least_ms, None);
            } else {
                assert!(least_ms.is_some_and(|least_ms| least_ms >= ms && least_ms < 1.5 * ms), "{member}");
            }
        }
    }
}

/// Writes at one of the nodes until one is acknowledged.
fn written(cluster: &Cluster, nodes: &[usize]) {
    loop {
        for node in nodes {
            let client = Client::connect_for(&cluster.addresses[*node].resp, Duration::from_secs(20));
            let written = client.and_then(|mut client| client.call(&["SET", "k", "after"]));
            if written.is_ok_and(|reply| reply.show() == "+OK\n") {
                return;
            }
        }
    }
}

fn works_over(round_trip: Duration) {
    let mut cluster = Cluster::start_far(3, round_trip / 2, &[]);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let connect =
        |node: usize| Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(10)).unwrap();
    let mut clients = [connect(leader), connect(others[0])];
    let trips = |took: Duration| took.as_secs_f64() / round_trip.as_secs_f64();
    for (what, client, words, expected, most) in [
        ("a write at the leader", 0, &["SET", "k", "v"][..], "+OK\n", 2.0),
        ("a write at a follower", 1, &["SET", "k", "v"][..], "+OK\n", 3.0),
        ("a read at the leader", 0, &["GET", "k"][..], "$\"v\"\n", 2.0),
        ("a read at a follower", 1, &["GET", "k"][..], "$\"v\"\n", 3.0),
    ] {
        let took = trips(quickest(&mut clients[client], words, expected));
        assert!(took >= most - 1.0, "{what} takes {took} round trips: there is no such way");
        assert!(took < most, "{what} takes {took} round trips");
    }
    is_shown(&cluster, round_trip);
    let before = term(&cluster, leader);
    std::thread::sleep(REST);
    assert_eq!((cluster.leader(), term(&cluster, leader)), (leader, before), "the leader rests");
    let (low, high) = election_timeout_ms(&cluster, others[0]);
    assert!(low > 350 && high > 600, "the time-outs do not follow the distance: {low} to {high}");

    cluster.kill(leader);
    let killed = Instant::now();
    written(&cluster, &others);
    let failover = killed.elapsed();
    assert!(failover < 3 * Duration::from_millis(high), "{failover:?}, with time-outs of {low} to {high} ms");
}

#[test]
fn over_100_ms() {
    works_over(Duration::from_millis(100));
}

#[test]
fn over_300_ms() {
    works_over(Duration::from_millis(300));
}

/// What an operator has set is kept, and is warned of where it does not fit.
#[test]
fn fixed_time_outs_that_do_not_fit_are_warned_of() {
    let options = ["--election-timeout-min-ms", "500", "--election-timeout-max-ms", "600"];
    let cluster = Cluster::start_far(3, Duration::from_millis(75), &options);
    let deadline = Instant::now() + Duration::from_secs(20);
    let why = loop {
        let status = cluster.status(0).unwrap();
        if let Some(why) = status["timeouts_misfit"].as_str() {
            break why.to_owned();
        }
        assert!(Instant::now() < deadline, "nothing is said: {status}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(why.contains("500 to 600 ms") && why.contains("leave them out"), "{why}");
    assert_eq!(election_timeout_ms(&cluster, 0), (500, 600));
    let log = || std::fs::read_to_string(cluster.log_of(0)).unwrap();
    while !log().contains("the time-outs do not fit the distance") {
        assert!(Instant::now() < deadline, "nothing is logged:\n{}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, metrics) =
        support::process::get(&format!("http://{}/metrics", cluster.addresses[0].http)).unwrap();
    for line in [
        "kvorum_raft_timeouts_misfit{group=\"0\"} 1",
        "kvorum_raft_election_timeout_seconds{group=\"0\",bound=\"greatest\"} 0.6",
        "kvorum_raft_round_trip_least_seconds{group=\"0\",member=\"2\"} 0.1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let mut client = Client::connect_for(&cluster.addresses[0].resp, Duration::from_secs(5)).unwrap();
    let info = client.call(&["INFO", "kvorum"]).unwrap().show();
    for part in
        ["election_timeout_ms:500-600", "timeouts_misfit:election time-outs", "round_trip_node2:least_ms=1"]
    {
        assert!(info.contains(part), "{part} is not in\n{info}");
    }
}

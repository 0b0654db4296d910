//! Real nodes whose wall clocks are wrong, were wrong when they started, or are right: what clients mean by a time holds, and
//! operators see how far the log's clock is from the wall clocks, and have a way to close that. Wall clocks are moved by
//! Debian's package faketime.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use support::{
    process::{Cluster, get},
    resp::Client,
};

const DAY_MS: i64 = 86_400_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Three nodes whose wall clocks were so far ahead when all of them started, and have been set right since.
fn started_ahead(seconds: i64) -> Cluster {
    let mut cluster = Cluster::start_with_clocks(3, &[], true);
    for node in 0..3 {
        cluster.stop(node);
        cluster.shift_clock(node, seconds);
    }
    (0..3).for_each(|node| cluster.start_node(node));
    (0..3).for_each(|node| cluster.wait_ready(node));
    (0..3).for_each(|node| cluster.shift_clock(node, 0));
    cluster
}

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect(&cluster.addresses[node].resp).unwrap()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// An integer reply.
fn number(client: &mut Client, line: &str) -> i64 {
    let said = client.run(line).unwrap();
    said.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{line}: {said}"))
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn hand_over(cluster: &Cluster, to: usize) {
    let url = format!("http://{}/v1/cluster/leader", cluster.addresses[to].http);
    ureq::post(&url).send(format!("{{\"id\":{}}}", to + 1)).unwrap();
    eventually("it leads", || cluster.leader() == to);
}

fn kvorum(cluster: &Cluster, node: usize, words: &[&str]) -> (bool, String) {
    let address = &cluster.addresses[node].http;
    let output =
        Command::new(env!("CARGO_BIN_EXE_kvorum")).args(words).args(["--http", address]).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// How far the log's clock is ahead of a node's wall clock, by its metrics, in microseconds.
fn ahead_us(cluster: &Cluster, node: usize) -> i64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap();
    let name = "kvorum_raft_clock_ahead_seconds{group=\"0\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let seconds: f64 = line.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    (seconds * 1e6).round() as i64
}

fn lines_with(cluster: &Cluster, node: usize, words: &str) -> usize {
    let log = std::fs::read_to_string(cluster.log_of(node)).unwrap();
    log.lines().filter(|line| line.contains(words)).count()
}

/// Times that are set by way of a node are what they were meant to be, on all nodes: within the millisecond in a second by which
/// the log's clock nears the wall clock.
fn check_deadlines(cluster: &Cluster, asked: usize) {
    let (mut client, at_ms) = (client(cluster, asked), now_ms() + 3_600_000);
    let at_s = at_ms / 1000;
    assert_eq!(client.run(&format!("SET k v EXAT {at_s}")).unwrap(), "+OK\n");
    assert_eq!(client.run("GET k").unwrap(), "$\"v\"\n");
    client.run("SET s 1").unwrap();
    assert_eq!(number(&mut client, &format!("PEXPIREAT s {at_ms}")), 1);
    assert_eq!(number(&mut client, "EXISTS s"), 1);
    assert_eq!(client.run("SET x 1 EX 3600").unwrap(), "+OK\n");
    // In a transaction TIME is that of the node, as by itself.
    let seconds = |said: String| said.split('"').nth(1).and_then(|text| text.parse::<i64>().ok()).unwrap();
    let alone = seconds(client.run("TIME").unwrap());
    ["MULTI", "SET t v", "TIME"].iter().for_each(|line| _ = client.run(line).unwrap());
    let queued = seconds(client.run("EXEC").unwrap());
    assert!((alone..=alone + 5).contains(&queued), "{alone} and then {queued}");
    for node in 0..3 {
        let mut client = self::client(cluster, node);
        assert_eq!(number(&mut client, "EXPIRETIME k"), at_s);
        let off_ms = number(&mut client, "PEXPIRETIME s") - at_ms;
        assert!(off_ms.abs() <= 5, "{off_ms}");
        let off_s = number(&mut client, "EXPIRETIME x") - at_s;
        assert!((-1..=5).contains(&off_s), "{off_s}");
        let left_ms = number(&mut client, "PTTL s");
        assert!((3_590_000..=3_600_005).contains(&left_ms), "{left_ms}");
    }
    let (set, dies_ms) = (Instant::now(), now_ms() + 700);
    client.run(&format!("SET soon 1 PXAT {dies_ms}")).unwrap();
    assert_eq!(number(&mut client, "EXISTS soon"), 1);
    eventually("the key dies", || number(&mut client, "EXISTS soon") == 0);
    let (lived, late_ms) = (set.elapsed(), now_ms() - dies_ms);
    assert!(late_ms > -10 && lived < Duration::from_secs(5), "it lived {lived:?}, {late_ms} ms too long");
}

/// FAILING-INPUTS 8.
#[test]
fn after_a_start_with_wrong_clocks_times_are_what_clients_mean() {
    let mut cluster = started_ahead(86_400);
    for asked in 0..3 {
        check_deadlines(&cluster, asked);
    }
    for node in 0..3 {
        eventually("the distance is known", || (ahead_us(&cluster, node) / 1000 - DAY_MS).abs() < 60_000);
        let status = cluster.status(node).unwrap();
        assert!((status["clock_ahead_ms"].as_i64().unwrap() - DAY_MS).abs() < 60_000, "{status}");
        assert_eq!(status["clock_closing"], false);
        let info = client(&cluster, node).run("INFO kvorum").unwrap();
        assert!(info.contains("clock_ahead_ms:86") && info.contains("clock_closing:0"), "{info}");
        eventually("it is said", || {
            lines_with(&cluster, node, "more than a second from this node's wall clock") > 0
        });
    }
    let (is_well, table) = kvorum(&cluster, 0, &["status"]);
    assert!(is_well && table.contains("CLOCK") && table.matches(" +86").count() == 3, "{table}");
    // The next leaders go on with it: handed over, and after a kill.
    let (mut any, at_ms) = (client(&cluster, 0), now_ms() + 7_200_000);
    any.run(&format!("SET kept v PXAT {at_ms}")).unwrap();
    let leader = cluster.leader();
    hand_over(&cluster, (leader + 1) % 3);
    check_deadlines(&cluster, leader);
    cluster.kill((leader + 1) % 3);
    let mut left = client(&cluster, leader);
    eventually("there is another leader", || left.run("SET a b").unwrap() == "+OK\n");
    let shown_ms = number(&mut left, "PEXPIRETIME kept");
    assert!((shown_ms - at_ms).abs() <= 30, "{}", shown_ms - at_ms);
    cluster.start_node((leader + 1) % 3);
    cluster.wait_ready((leader + 1) % 3);
    check_deadlines(&cluster, (leader + 1) % 3);
}

/// How fast the log's clock goes against real time, over this time.
fn speed(cluster: &Cluster, node: usize, time: Duration) -> f64 {
    let (started, before_us) = (Instant::now(), ahead_us(cluster, node));
    std::thread::sleep(time);
    let gained_us = ahead_us(cluster, node) - before_us;
    1.0 + gained_us as f64 / started.elapsed().as_micros() as f64
}

#[test]
fn a_clock_that_is_ahead_waits_for_the_wall_clock_when_it_is_asked_to() {
    let cluster = started_ahead(2);
    let leader = cluster.leader();
    let other = (leader + 1) % 3;
    let at_full_speed = speed(&cluster, leader, Duration::from_millis(400));
    assert!((at_full_speed - 1.0).abs() < 0.1, "{at_full_speed}");
    for node in 0..3 {
        let far = "more than a second from this node's wall clock";
        eventually("it is said", || lines_with(&cluster, node, far) == 1);
    }
    let far_us = ahead_us(&cluster, leader);
    let (is_done, said) = kvorum(&cluster, other, &["clock", "--close"]);
    let asked = Instant::now();
    assert!(is_done && said.contains("ms ahead of its wall clock") && said.contains("half speed"), "{said}");
    // A lock lasts no shorter, and at most twice as long.
    let (mut a, mut b) = (client(&cluster, leader), client(&cluster, other));
    let locked = Instant::now();
    a.run("LOCK.ACQUIRE l a PX 600").unwrap();
    let granted = b.run("LOCK.ACQUIRE l b PX 1000 WAIT 10000").unwrap();
    assert!(granted.starts_with('*'), "{granted}");
    let lasted = locked.elapsed();
    assert!(lasted > Duration::from_millis(1_150) && lasted < Duration::from_millis(1_900), "{lasted:?}");
    let slowed = speed(&cluster, leader, Duration::from_millis(400));
    assert!((slowed - 0.5).abs() < 0.1, "{slowed}");
    // It can be stopped, goes on where it was, and the next leader goes on with it.
    let (is_done, said) = kvorum(&cluster, other, &["clock", "--stop"]);
    assert!(is_done && !said.contains("half speed"), "{said}");
    assert_eq!(cluster.status(leader).unwrap()["clock_closing"], false);
    assert!(kvorum(&cluster, other, &["clock", "--close"]).0);
    hand_over(&cluster, other);
    assert_eq!(cluster.status(other).unwrap()["clock_closing"], true);
    eventually("the clocks meet", || {
        (0..3).all(|node| cluster.status(node).unwrap()["clock_closing"] == false)
    });
    let took = asked.elapsed();
    assert!(took.as_micros() as i64 > 2 * far_us - 300_000, "{far_us} us in {took:?}");
    for node in 0..3 {
        eventually("they are together", || ahead_us(&cluster, node).abs() < 3_000);
        eventually("it is said", || lines_with(&cluster, node, "near this node's wall clock again") == 1);
        assert_eq!(lines_with(&cluster, node, "more than a second from this node's wall clock"), 1);
    }
    let (is_done, said) = kvorum(&cluster, other, &["clock", "--close"]);
    assert!(!is_done && said.contains("409") && said.contains("is not ahead"), "{said}");
}

/// On every node the log's clock comes to less than a millisecond from the wall clock, and while nobody writes it stays
/// near there, but for moments in which the machine was busy.
fn check_near(cluster: &Cluster) {
    for node in 0..3 {
        eventually("the distance is below a millisecond", || ahead_us(cluster, node).abs() < 1_000);
    }
    let mut distances_us = [const { Vec::new() }; 3];
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        for (node, distances_us) in distances_us.iter_mut().enumerate() {
            distances_us.push(ahead_us(cluster, node));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for (node, distances_us) in distances_us.iter().enumerate() {
        let near = distances_us.iter().filter(|distance_us| distance_us.abs() < 5_000).count();
        assert!(near * 10 >= distances_us.len() * 9, "node {}: {distances_us:?}", node + 1);
    }
}

#[test]
fn on_a_healthy_cluster_the_log_s_clock_is_the_wall_clock() {
    let mut cluster = Cluster::start(3, &[]);
    let mut at_ms = now_ms() + 100_000;
    let mut check = |cluster: &Cluster, nodes: &[usize]| {
        at_ms += 1;
        for node in nodes {
            let mut asked = client(cluster, *node);
            assert_eq!(asked.run(&format!("SET k{node} v PXAT {at_ms}")).unwrap(), "+OK\n");
        }
        for (set, shown) in nodes.iter().flat_map(|set| nodes.iter().map(move |shown| (set, shown))) {
            assert_eq!(number(&mut client(cluster, *shown), &format!("PEXPIRETIME k{set}")), at_ms);
        }
    };
    check(&cluster, &[0, 1, 2]);
    for turn in 0..3 {
        check_near(&cluster);
        for node in 0..3 {
            let mut asked = client(&cluster, node);
            // By how much it is more or less than it should be, in the best of some: the machine may be busy.
            let off_ms = (0..20).map(|_| {
                let before_ms = now_ms();
                asked.run(&format!("SET p v PXAT {}", before_ms + 10_000)).unwrap();
                let left_ms = number(&mut asked, "PTTL p");
                let took_ms = now_ms() - before_ms;
                (left_ms - 10_000).max(10_000 - took_ms - left_ms)
            });
            let off_ms = off_ms.min().unwrap();
            assert!(off_ms <= 2, "{off_ms} ms on node {node} in turn {turn}");
        }
        let leader = cluster.leader();
        hand_over(&cluster, (leader + 1) % 3);
        check(&cluster, &[0, 1, 2]);
    }
    let leader = cluster.leader();
    cluster.kill(leader);
    let left = [(leader + 1) % 3, (leader + 2) % 3];
    let mut any = client(&cluster, left[0]);
    eventually("there is another leader", || any.run("SET a b").unwrap() == "+OK\n");
    check(&cluster, &left);
}

#[test]
fn a_node_whose_own_wall_clock_is_wrong_shows_it_and_changes_no_time() {
    let cluster = Cluster::start_with_clocks(3, &[], true);
    let leader = cluster.leader();
    let (wrong, right) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.shift_clock(wrong, 3_600);
    check_deadlines(&cluster, wrong);
    check_deadlines(&cluster, right);
    eventually("it shows", || (ahead_us(&cluster, wrong) / 1000 + 3_600_000).abs() < 1_000);
    assert!(ahead_us(&cluster, right).abs() < 100_000 && ahead_us(&cluster, leader).abs() < 100_000);
    let far = "more than a second from this node's wall clock";
    eventually("it is said", || lines_with(&cluster, wrong, far) == 1);
    cluster.shift_clock(wrong, 0);
    eventually("it is said", || lines_with(&cluster, wrong, "near this node's wall clock again") == 1);
    assert_eq!((lines_with(&cluster, right, far), lines_with(&cluster, leader, far)), (0, 0));
    let (_, said) = kvorum(&cluster, right, &["clock"]);
    assert_eq!(said.lines().count(), 3, "{said}");
}

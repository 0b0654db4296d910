//! A disk that is put back to an older copy has forgotten what it acknowledged and voted, as an empty one has. It is refused
//! by whoever remembers more; where nobody does, no node forgets what it has applied.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::Client,
};

/// A log that is read soon, when nothing is optimized.
const SMALL: [&str; 2] = ["--log-segment-bytes", "1mb"];
/// Within this time of its start a node is refused by those who know better.
const REFUSED: Duration = Duration::from_secs(3);
/// Over this time it is measured what a leader spends on a node that is refused.
const WATCHED: Duration = Duration::from_secs(2);

/// A copy of a node's data directory.
struct Copy(PathBuf);

impl Copy {
    fn of(cluster: &Cluster, node: usize) -> Copy {
        let copy = cluster.data_of(node).with_extension("copy");
        copy_dir(&cluster.data_of(node), &copy);
        Copy(copy)
    }

    fn put_back(&self, cluster: &Cluster, node: usize) {
        fs::remove_dir_all(cluster.data_of(node)).unwrap();
        copy_dir(&self.0, &cluster.data_of(node));
    }
}

/// Copies a directory that a running node may be changing.
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            // It may be gone by now.
            let _ = fs::copy(entry.path(), to);
        }
    }
}

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

fn set(client: &mut Client, range: std::ops::Range<u32>) {
    for number in range {
        assert_eq!(client.run(&format!("SET w{number} {number}")).unwrap(), "+OK\n");
    }
}

/// Forgets all that a node knows of the others' disks, as if it had been away.
fn forget_disks(cluster: &Cluster, node: usize) {
    let _ = fs::remove_file(cluster.data_of(node).join("witness.json"));
    let file = cluster.data_of(node).join("identity.json");
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    content["met"] = serde_json::json!({});
    fs::write(file, content.to_string()).unwrap();
}

/// Waits until a node has ended because its disk is an older copy, soon after it was started.
fn wait_refused(cluster: &mut Cluster, node: usize, started: Instant) {
    let (code, log) = cluster.wait_end(node);
    let took = started.elapsed();
    assert!(took < REFUSED, "{took:?}\n{log}");
    assert!(code == Some(6) && log.contains("an older copy of this node's disk"), "{code:?}\n{log}");
    assert!(log.contains("never used: kvorum serve --id NEW --join"), "{log}");
}

/// The processor time that a node has used, in seconds.
fn cpu_seconds(cluster: &Cluster, node: usize) -> f64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

fn followers(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader();
    let mut others = (0..3).filter(|node| *node != leader);
    (leader, others.next().unwrap(), others.next().unwrap())
}

#[test]
fn with_everybody_up_it_is_refused_at_once_however_often_it_is_put_back() {
    let mut cluster = Cluster::start(3, &SMALL);
    let (leader, _, old) = followers(&cluster);
    set(&mut client(&cluster, leader), 0..50);
    let hot = Copy::of(&cluster, old);
    set(&mut client(&cluster, leader), 50..300);
    cluster.stop(old);
    hot.put_back(&cluster, old);
    let (started, used_before) = (Instant::now(), cpu_seconds(&cluster, leader));
    cluster.start_node(old);
    wait_refused(&mut cluster, old, started);
    // The leader goes on trying to reach it, and that costs little.
    thread::sleep(WATCHED.saturating_sub(started.elapsed()));
    let used = cpu_seconds(&cluster, leader) - used_before;
    assert!(used < started.elapsed().as_secs_f64() / 2.0, "{used} s in {:?}", started.elapsed());
    // Nobody takes what it had acknowledged for what it has.
    let status = cluster.status(leader).unwrap();
    let member = &status["members"][old];
    assert!(member["matched_index"].is_null(), "{member}");
    // Neither by starting again and again, nor from the same copy, nor before another leader.
    let started = Instant::now();
    cluster.start_bare(old);
    wait_refused(&mut cluster, old, started);
    cluster.stop(leader);
    cluster.start_node(leader);
    cluster.wait_ready(leader);
    hot.put_back(&cluster, old);
    let started = Instant::now();
    cluster.start_node(old);
    wait_refused(&mut cluster, old, started);
    let mut client = client(&cluster, leader);
    set(&mut client, 300..310);
    // It is replaced as one that lost its disk is.
    let member = format!("http://{}/v1/cluster/members/{}", cluster.addresses[leader].http, old + 1);
    ureq::delete(member).call().unwrap();
    let fourth = cluster.join(leader);
    cluster.wait_voter(fourth);
}

/// A, which leads, and C acknowledge without B, and C comes back with an older disk, so often, when A is gone.
fn acknowledged_is_not_lost(is_hot: bool, times: usize) {
    let mut cluster = Cluster::start(3, &SMALL);
    let (a, b, c) = followers(&cluster);
    set(&mut client(&cluster, a), 0..1);
    if !is_hot {
        cluster.stop(c);
    }
    let copy = Copy::of(&cluster, c);
    let copied = Instant::now();
    if !is_hot {
        cluster.start_node(c);
        cluster.wait_ready(c);
    }
    // B meets the life that comes after a cold copy, and hears of A what C acknowledges after a hot one.
    set(&mut client(&cluster, a), 1..100);
    thread::sleep(Duration::from_millis(1_500).saturating_sub(copied.elapsed()));
    cluster.kill(b);
    // What only A and C have.
    set(&mut client(&cluster, a), 100..200);
    let token = client(&cluster, a).run("LOCK.ACQUIRE L a PX 600000").unwrap();
    cluster.stop(c);
    cluster.kill(a);
    cluster.start_node(b);
    while cluster.status(b).is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..times {
        copy.put_back(&cluster, c);
        let started = Instant::now();
        cluster.start_node(c);
        wait_refused(&mut cluster, c, started);
    }
    cluster.start_node(a);
    cluster.wait_ready(a);
    cluster.wait_ready(b);
    let mut client = client(&cluster, b);
    for number in 0..200 {
        let read = client.run(&format!("GET w{number}")).unwrap();
        assert_eq!(read, format!("$\"{number}\"\n"));
    }
    assert!(token.contains("token"), "{token}");
    let other = client.run("LOCK.ACQUIRE L b PX 1000").unwrap();
    assert!(!other.contains("token"), "it is held: {other}");
}

#[test]
fn what_was_acknowledged_with_it_is_not_lost() {
    for is_hot in [false, true] {
        for times in [1, 2] {
            eprintln!("a {} copy, put back {times} times", if is_hot { "hot" } else { "cold" });
            acknowledged_is_not_lost(is_hot, times);
        }
    }
}

#[test]
fn a_node_that_is_contradicted_ends_with_all_that_it_has() {
    let mut cluster = Cluster::start(3, &SMALL);
    let (a, b, c) = followers(&cluster);
    set(&mut client(&cluster, a), 0..1);
    cluster.stop(c);
    let cold = Copy::of(&cluster, c);
    cluster.start_node(c);
    cluster.wait_ready(c);
    cluster.kill(b);
    set(&mut client(&cluster, a), 1..200);
    cluster.stop(c);
    cluster.kill(a);
    cold.put_back(&cluster, c);
    // Nobody remembers any more that there was more.
    for node in [a, b] {
        forget_disks(&cluster, node);
    }
    cluster.start_node(b);
    cluster.start_node(c);
    cluster.wait_ready(b);
    cluster.wait_ready(c);
    set(&mut client(&cluster, b), 200..210);
    // Their log has other entries where A has applied the lost ones.
    let data = cluster.data_of(a);
    cluster.start_node(a);
    let (code, log) = cluster.wait_end(a);
    assert!(code == Some(7) && log.contains("acknowledged writes are lost"), "{code:?}\n{log}");
    assert!(log.contains("keep this data directory"), "{log}");
    // It forgets nothing by starting again.
    cluster.start_node(a);
    assert_eq!(cluster.wait_end(a).0, Some(7));
    assert!(data.join("log").is_dir());
    assert!(
        get(&format!("http://{}/readyz", cluster.addresses[b].http)).is_some_and(|(code, _)| code == 200)
    );
    check_the_guide(&mut cluster, a, b);
}

/// What docs/recovery.md says of a node that has ended with exit code 7: what the others do not have shows in a cluster of its own
/// that is made of a copy; then the node is replaced.
fn check_the_guide(cluster: &mut Cluster, ended: usize, well: usize) {
    let recover = |copy: &Copy, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
        let output = command.args(["recover", "--data"]).arg(&copy.0).args(more).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{text}");
        text
    };
    let copy = Copy::of(cluster, ended);
    // It may be left out.
    fs::remove_file(copy.0.join("reserve")).unwrap();
    let text = recover(&copy, &[]);
    assert!(text.contains("--as-new-cluster --yes-i-may-lose-acknowledged-writes"), "{text}");
    recover(&copy, &["--as-new-cluster", "--yes-i-may-lose-acknowledged-writes"]);
    cluster.put_data(ended, copy.0);
    cluster.move_node(ended);
    cluster.start_bare(ended);
    cluster.wait_ready(ended);
    let (mut of_copy, mut of_others) = (client(cluster, ended), client(cluster, well));
    for number in 1..200 {
        let read = format!("GET w{number}");
        assert_eq!(of_copy.run(&read).unwrap(), format!("$\"{number}\"\n"));
        assert_eq!(of_others.run(&read).unwrap(), "$-1\n");
    }
    assert_eq!(of_copy.run("GET w200").unwrap(), "$-1\n");
    let cluster_of = |node: usize| cluster.status(node).unwrap()["cluster_id"].clone();
    assert_ne!(cluster_of(ended), cluster_of(well));
    let member = format!("http://{}/v1/cluster/members/{}", cluster.addresses[well].http, ended + 1);
    ureq::delete(member).call().unwrap();
    let fourth = cluster.join(well);
    cluster.wait_voter(fourth);
    assert_eq!(of_copy.run("SET w200 other").unwrap(), "+OK\n");
    assert_eq!(client(cluster, fourth).run("GET w200").unwrap(), "$\"200\"\n");
}

/// It knows no peer that it could ask: those who call it say so.
#[test]
fn a_disk_from_before_its_node_was_a_member_is_refused() {
    let mut cluster = Cluster::start(3, &SMALL);
    let leader = cluster.leader();
    let through = (leader + 1) % 3;
    cluster.freeze(through);
    let node = cluster.join(through);
    let begun = Instant::now();
    while get(&format!("http://{}/healthz", cluster.addresses[node].http)).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not start");
        thread::sleep(Duration::from_millis(50));
    }
    cluster.kill(node);
    let copy = Copy::of(&cluster, node);
    cluster.thaw(through);
    cluster.start_joining(node, through);
    cluster.wait_voter(node);
    set(&mut client(&cluster, leader), 0..50);
    thread::sleep(Duration::from_secs(1));
    cluster.kill(node);
    copy.put_back(&cluster, node);
    let started = Instant::now();
    cluster.start_joining(node, through);
    wait_refused(&mut cluster, node, started);
}

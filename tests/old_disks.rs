//! A disk that is put back to an older copy has forgotten what it acknowledged and voted, as an empty one has. It is refused
//! by whoever remembers more; where nobody does, no node forgets what it has applied.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use support::{
    process::{Cluster, get},
    resp::Client,
};

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

/// Waits until a node has ended because its disk is an older copy.
fn wait_refused(cluster: &mut Cluster, node: usize) {
    let (code, log) = cluster.wait_end(node);
    assert!(code == Some(6) && log.contains("an older copy of this node's disk"), "{code:?}\n{log}");
    assert!(log.contains("never used: kvorum serve --id NEW --join"), "{log}");
}

fn followers(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader();
    let mut others = (0..3).filter(|node| *node != leader);
    (leader, others.next().unwrap(), others.next().unwrap())
}

#[test]
fn with_everybody_up_it_is_refused_at_once_however_often_it_is_put_back() {
    let mut cluster = Cluster::start(3, &[]);
    let (leader, _, old) = followers(&cluster);
    set(&mut client(&cluster, leader), 0..50);
    let hot = Copy::of(&cluster, old);
    set(&mut client(&cluster, leader), 50..300);
    cluster.stop(old);
    hot.put_back(&cluster, old);
    cluster.start_node(old);
    wait_refused(&mut cluster, old);
    // Nobody takes what it had acknowledged for what it has.
    let status = cluster.status(leader).unwrap();
    let member = &status["members"][old];
    assert!(member["matched_index"].is_null(), "{member}");
    // Neither by starting again and again, nor from the same copy, nor before another leader.
    cluster.start_bare(old);
    wait_refused(&mut cluster, old);
    cluster.stop(leader);
    cluster.start_node(leader);
    cluster.wait_ready(leader);
    hot.put_back(&cluster, old);
    cluster.start_node(old);
    wait_refused(&mut cluster, old);
    let mut client = client(&cluster, leader);
    set(&mut client, 300..310);
    // It is replaced as one that lost its disk is.
    let member = format!("http://{}/v1/cluster/members/{}", cluster.addresses[leader].http, old + 1);
    ureq::delete(member).call().unwrap();
    let fourth = cluster.join(leader);
    cluster.wait_voter(fourth);
}

#[test]
fn what_was_acknowledged_with_it_is_not_lost() {
    let mut cluster = Cluster::start(3, &[]);
    let (a, b, c) = followers(&cluster);
    set(&mut client(&cluster, a), 0..1);
    cluster.stop(c);
    let cold = Copy::of(&cluster, c);
    cluster.start_node(c);
    cluster.wait_ready(c);
    // What only A and C have.
    cluster.kill(b);
    set(&mut client(&cluster, a), 1..200);
    let token = client(&cluster, a).run("LOCK.ACQUIRE L a PX 600000").unwrap();
    cluster.stop(c);
    cluster.kill(a);
    cold.put_back(&cluster, c);
    cluster.start_node(b);
    cluster.start_node(c);
    // B has met the life that came after the copy.
    wait_refused(&mut cluster, c);
    cluster.start_node(a);
    cluster.wait_ready(a);
    cluster.wait_ready(b);
    let mut client = client(&cluster, b);
    for number in [0, 1, 99, 199] {
        let read = client.run(&format!("GET w{number}")).unwrap();
        assert_eq!(read, format!("$\"{number}\"\n"));
    }
    assert!(token.contains("token"), "{token}");
    let other = client.run("LOCK.ACQUIRE L b PX 1000").unwrap();
    assert!(!other.contains("token"), "it is held: {other}");
}

#[test]
fn a_node_that_is_contradicted_ends_with_all_that_it_has() {
    let mut cluster = Cluster::start(3, &[]);
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
}

//! A network that drops every packet for a while tells nobody. When it is back, the cluster must be back within seconds, not
//! when TCP's doubling timers happen to send again. And where it drops the packets between two nodes alone, both ends notice
//! within seconds, the leader stays, and everything goes on that does not need this very link.
//!
//! Needs the rights for a network namespace of its own; says so and checks nothing without them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::Client,
};

/// The next retransmission of a connection without a limit is due 25 s after the cut began.
const CUT: Duration = Duration::from_secs(14);
/// Connections that are made anew, and an election.
const RECOVERY_MAX: Duration = Duration::from_secs(6);

/// How long two nodes are kept apart, and how soon both have ended their connections: four seconds after the last
/// acknowledgement.
const APART: Duration = Duration::from_secs(10);
const NOTICED_MAX: Duration = Duration::from_secs(7);
/// A node notices within two seconds that it no longer hears the leader (docs/admin-api.md).
const NOT_READY_MAX: Duration = Duration::from_secs(3);
/// No write of a cluster whose leader stays takes longer.
const WRITE_MAX: Duration = Duration::from_secs(1);
/// A free group for the first node.
const GROUP: usize = 7000;

/// Moves this thread, and what it starts, to a network of its own. False without the rights.
fn enter_namespace() -> bool {
    // SAFETY: it takes flags alone, and concerns this thread.
    let is_alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if is_alone {
        run("ip", "link set lo up");
    }
    is_alone
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{program} {arguments}");
}

fn sets(client: &mut Client, value: &str) -> bool {
    client.call(&["SET", "k", value]).is_ok_and(|reply| reply.show() == "+OK\n")
}

#[test]
fn a_cluster_is_back_within_seconds_of_its_network() {
    if !enter_namespace() {
        eprintln!("skipped: no rights for a network namespace");
        return;
    }
    let cluster = Cluster::start(3, &["--request-timeout-ms", "1000"]);
    let mut client = Client::connect_for(&cluster.addresses[0].resp, Duration::from_secs(5)).unwrap();
    assert!(sets(&mut client, "before"));
    let ports: Vec<&str> =
        cluster.addresses.iter().map(|node| node.peer.rsplit_once(':').unwrap().1).collect();
    let ports = ports.join(",");
    run("nft", "add table inet cut");
    run("nft", "add chain inet cut in { type filter hook input priority 0 ; }");
    run("nft", &format!("add rule inet cut in tcp dport {{{ports}}} drop"));
    run("nft", &format!("add rule inet cut in tcp sport {{{ports}}} drop"));
    let cut = Instant::now();
    // There was a majority, and there is none.
    while sets(&mut client, "amid") {
        assert!(cut.elapsed() < CUT, "the packets are not dropped");
    }
    thread::sleep(CUT.saturating_sub(cut.elapsed()));
    run("nft", "delete table inet cut");
    let healed = Instant::now();
    while !sets(&mut client, "after") {
        assert!(healed.elapsed() < RECOVERY_MAX, "no write was acknowledged for {:?}", healed.elapsed());
    }
    println!("the first write after {:?}", healed.elapsed());
}

/// Three nodes that a firewall can tell apart, and the leader's number before the others'. None without the rights.
fn three_nodes() -> Option<(Cluster, [usize; 3])> {
    if !enter_namespace() {
        eprintln!("skipped: no rights for a network namespace");
        return None;
    }
    let mut cluster = Cluster::off(3, &["--request-timeout-ms", "1000"]);
    cluster.give_groups(u32::try_from(GROUP).unwrap());
    cluster.start_all();
    let leader = cluster.leader();
    let mut nodes = [0, 1, 2];
    nodes.sort_by_key(|node| *node != leader);
    Some((cluster, nodes))
}

fn port(cluster: &Cluster, node: usize) -> u16 {
    cluster.addresses[node].peer.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Drops every packet of connections between two nodes, whoever has made them. The nodes are not told: what is dropped has
/// been sent.
fn keep_apart(cluster: &Cluster, one: usize, other: usize) {
    run("nft", "add table inet apart");
    run("nft", "add chain inet apart out { type filter hook output priority 0 ; }");
    run("nft", "add chain inet apart in { type filter hook input priority 0 ; }");
    for (from, to) in [(one, other), (other, one)] {
        let (group, port) = (GROUP + from, port(cluster, to));
        run("nft", &format!("add rule inet apart out meta skgid {group} tcp dport {port} ct mark set 1"));
    }
    run("nft", "add rule inet apart in ct mark 1 drop");
}

/// The ends of established connections in this network: local and remote port, and the socket's inode.
fn established() -> Vec<(u16, u16, String)> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let port_of = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|words| words.get(3) == Some(&"01"))
        .filter_map(|words| Some((port_of(words[1])?, port_of(words[2])?, words[9].to_owned())))
        .collect()
}

/// Both ends of the connections that a node has made to another one.
fn made(cluster: &Cluster, from: usize, to: usize) -> BTreeSet<(u16, u16)> {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", cluster.pid(from).unwrap())).unwrap();
    let targets = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let sockets: BTreeSet<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    let ours = established().into_iter().filter(|(_, remote, inode)| {
        *remote == port(cluster, to) && sockets.contains(&format!("socket:[{inode}]"))
    });
    ours.flat_map(|(local, remote, _)| [(local, remote), (remote, local)]).collect()
}

/// Which of these ends are established.
fn still(ends: &BTreeSet<(u16, u16)>) -> BTreeSet<(u16, u16)> {
    let now = established().into_iter().map(|(local, remote, _)| (local, remote));
    now.filter(|end| ends.contains(end)).collect()
}

fn term(cluster: &Cluster, node: usize) -> u64 {
    cluster.status(node).unwrap()["term"].as_u64().unwrap()
}

fn is_ready(cluster: &Cluster, node: usize) -> bool {
    get(&format!("http://{}/readyz", cluster.addresses[node].http)).is_some_and(|(status, _)| status == 200)
}

/// Keeps two nodes apart for a while. Meanwhile `serving` must write without a pause, and be ready; `watch` looks at the
/// rest. Both ends of all connections between the two must be gone in time, and come back when they can.
fn apart(
    cluster: &Cluster,
    (one, other): (usize, usize),
    serving: &[usize],
    mut watch: impl FnMut(Duration),
) {
    let mut clients: Vec<Client> = serving
        .iter()
        .map(|node| Client::connect_for(&cluster.addresses[*node].resp, Duration::from_secs(5)).unwrap())
        .collect();
    let leader = cluster.leader();
    let before = term(cluster, leader);
    // Each asks the other for a sign of life twice a second.
    let are_linked = || !made(cluster, one, other).is_empty() && !made(cluster, other, one).is_empty();
    let since = Instant::now();
    while !are_linked() {
        assert!(since.elapsed() < RECOVERY_MAX, "nodes {} and {} do not meet", one + 1, other + 1);
        thread::sleep(Duration::from_millis(50));
    }
    let ends: BTreeSet<(u16, u16)> =
        [made(cluster, one, other), made(cluster, other, one)].into_iter().flatten().collect();
    keep_apart(cluster, one, other);
    let cut = Instant::now();
    let mut noticed = None;
    while cut.elapsed() < APART {
        for (node, client) in serving.iter().zip(&mut clients) {
            let asked = Instant::now();
            assert!(sets(client, "amid"), "node {} does not write after {:?}", node + 1, cut.elapsed());
            assert!(asked.elapsed() < WRITE_MAX, "a write took {:?}", asked.elapsed());
            assert!(is_ready(cluster, *node), "node {} is not ready after {:?}", node + 1, cut.elapsed());
        }
        let left = still(&ends);
        if left.is_empty() {
            noticed.get_or_insert_with(|| cut.elapsed());
        }
        assert!(cut.elapsed() < NOTICED_MAX || left.is_empty(), "{left:?} of {ends:?} are still there");
        watch(cut.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    println!("{} ends of connections were gone after {:?}", ends.len(), noticed.unwrap());
    // The one that cannot hear the leader must not have taken its place, or made it stand for election again.
    assert_eq!((cluster.leader(), term(cluster, leader)), (leader, before));
    run("nft", "delete table inet apart");
    let healed = Instant::now();
    let is_whole = || are_linked() && is_ready(cluster, one) && is_ready(cluster, other);
    while !is_whole() {
        assert!(healed.elapsed() < RECOVERY_MAX, "not whole after {:?}", healed.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    println!("whole again after {:?}", healed.elapsed());
    assert_eq!((cluster.leader(), term(cluster, leader)), (leader, before));
}

#[test]
fn a_follower_that_cannot_reach_the_leader_says_so_and_disturbs_nobody() {
    let Some((cluster, [leader, cut_off, other])) = three_nodes() else { return };
    let contact_ms = || {
        let status = cluster.status(leader).unwrap();
        let member = status["members"].as_array().unwrap().iter().find(|it| it["id"] == cut_off + 1).cloned();
        member.unwrap()["last_contact_ms"].as_u64().unwrap()
    };
    apart(&cluster, (leader, cut_off), &[leader, other], |passed| {
        if passed > NOT_READY_MAX {
            assert!(!is_ready(&cluster, cut_off), "it says that it is ready after {passed:?}");
            assert!(contact_ms() > 1_000, "the leader still hears it after {passed:?}");
        }
    });
}

#[test]
fn two_followers_that_cannot_reach_each_other_change_nothing() {
    let Some((cluster, [_, one, other])) = three_nodes() else { return };
    apart(&cluster, (one, other), &[0, 1, 2], |_| {});
}

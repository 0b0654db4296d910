//! A network that drops every packet for a while tells nobody. When it is back, the cluster must be back within seconds, not
//! when TCP's doubling timers happen to send again.
//!
//! Needs the rights for a network namespace of its own; says so and checks nothing without them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

/// The next retransmission of a connection without a limit is due 25 s after the cut began.
const CUT: Duration = Duration::from_secs(14);
/// Connections that are made anew, and an election.
const RECOVERY_MAX: Duration = Duration::from_secs(6);

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
    std::thread::sleep(CUT.saturating_sub(cut.elapsed()));
    run("nft", "delete table inet cut");
    let healed = Instant::now();
    while !sets(&mut client, "after") {
        assert!(healed.elapsed() < RECOVERY_MAX, "no write was acknowledged for {:?}", healed.elapsed());
    }
    println!("the first write after {:?}", healed.elapsed());
}

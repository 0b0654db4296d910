//! Leases that are bound to a connection end with it: when somebody else has taken them over, when a stranger has made
//! another of the same name, and when the client's machine is gone without a word.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

fn run_all(client: &mut Client, lines: &[&str]) {
    for line in lines {
        let reply = client.run(line).unwrap();
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

/// Waits until a lease has ended, and gives how long that took.
fn wait_end(client: &mut Client, id: &str, limit: Duration) -> Duration {
    let started = Instant::now();
    while client.run(&format!("EXISTS {id}")).unwrap() != ":0\n" {
        assert!(started.elapsed() < limit, "{id} still lives after {:?}", started.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

#[test]
fn a_lease_that_was_taken_over_is_not_kept_by_its_former_connection() {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let (mut former, mut other) = (client(&cluster, leader), client(&cluster, (leader + 1) % 3));
    run_all(&mut former, &["LEASE.GRANT PX 1500 ID L", "LEASE.BIND L"]);
    run_all(&mut other, &["LEASE.BIND L"]);
    drop(other);
    wait_end(&mut client(&cluster, leader), "L", Duration::from_secs(4));
    // It goes on as a connection, and may bind another.
    run_all(&mut former, &["LEASE.GRANT PX 1500 ID L", "LEASE.BIND L"]);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(former.run("EXISTS L").unwrap(), ":1\n");
}

#[test]
fn another_lease_of_the_same_name_is_not_kept() {
    let cluster = Cluster::start(3, &[]);
    let mut former = client(&cluster, 0);
    for (revoke, end) in [("", "DEL L"), (" REVOKE", "LEASE.REVOKE L")] {
        run_all(&mut former, &["LEASE.GRANT PX 1500 ID L", &format!("LEASE.BIND L{revoke}")]);
        let mut other = client(&cluster, 1);
        run_all(&mut other, &[end, "LEASE.GRANT PX 1500 ID L"]);
        drop(other);
        wait_end(&mut client(&cluster, 2), "L", Duration::from_secs(4));
    }
    // Nor is one revoked by whoever had bound the first.
    let mut other = client(&cluster, 1);
    run_all(&mut other, &["LEASE.GRANT PX 60000 ID L"]);
    run_all(&mut former, &["RESET"]);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(other.run("EXISTS L").unwrap(), ":1\n");
}

/// Runs `ip` with these arguments.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether this thread has a network of its own from here on, with nothing in it but loopback.
fn enter_own_network() -> bool {
    // SAFETY: it takes no pointers, and changes the network of this thread and of what it starts only.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if entered {
        ip("link set lo up");
    }
    entered
}

/// A connection from an address of its own.
fn connect_from(from: &str, to: &str) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: std::net::SocketAddr = format!("{from}:0").parse().unwrap();
    let to: std::net::SocketAddr = to.parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// The machine of the client loses its power: nothing comes from there, and nothing says so.
#[test]
fn a_lease_ends_soon_after_its_client_s_machine_did() {
    let in_own_network = || {
        if !enter_own_network() {
            let error = std::io::Error::last_os_error();
            eprintln!("SKIPPED: this test needs the right to make a network namespace: {error}");
            return;
        }
        ip("address add 10.9.9.2/32 dev lo");
        let cluster = Cluster::start(1, &[]);
        let mut other = client(&cluster, 0);
        let client_from = |from: &str| {
            Client::from_stream(connect_from(from, &cluster.addresses[0].resp), PATIENCE).unwrap()
        };
        let mut leaders: Vec<Client> = (0..3).map(|_| client_from("10.9.9.2")).collect();
        run_all(&mut leaders[0], &["LEASE.GRANT PX 2000 ID revoked", "LEASE.BIND revoked REVOKE"]);
        run_all(&mut leaders[1], &["LEASE.GRANT PX 3000 ID left", "LEASE.BIND left"]);
        // Something is on its way to it all the time, and nothing is acknowledged.
        run_all(
            &mut leaders[2],
            &["LEASE.GRANT PX 2000 ID busy", "LEASE.BIND busy REVOKE", "FEED.SUBSCRIBE"],
        );
        // A waiter is granted nothing any more.
        let hold = other.run("LOCK.ACQUIRE lock me PX 60000").unwrap();
        let mut waiter = client_from("10.9.9.2");
        let wait = ["LOCK.ACQUIRE", "lock", "waiter", "PX", "60000", "WAIT", "600000"];
        waiter.send(&support::resp::encode(&wait)).unwrap();
        let mut web = connect_from("10.9.9.2", &cluster.addresses[0].http);
        let wish = r#"{"owner":"waiter:http","ttl_ms":60000,"wait_ms":600000}"#;
        write!(
            web,
            "POST /v1/locks/lock HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{wish}",
            wish.len()
        )
        .unwrap();
        thread::sleep(Duration::from_secs(5));
        for id in ["revoked", "left", "busy"] {
            assert_eq!(other.run(&format!("EXISTS {id}")).unwrap(), ":1\n", "{id} is kept alive");
        }
        ip("address delete 10.9.9.2/32 dev lo");
        ip("route add blackhole 10.9.9.2/32");
        let gone = Instant::now();
        other.run("SET something else").unwrap();
        for (id, limit_s) in [("revoked", 5), ("busy", 5), ("left", 8)] {
            let limit = Duration::from_secs(limit_s).saturating_sub(gone.elapsed());
            wait_end(&mut other, id, limit);
        }
        assert_eq!(other.run("LOCK.INFO lock").unwrap().matches("waiter").count(), 2, "they still wait");
        while other.run("LOCK.INFO lock").unwrap().contains("waiter") {
            assert!(gone.elapsed() < Duration::from_secs(30), "the waiter's place is kept");
            thread::sleep(Duration::from_millis(100));
        }
        assert!(hold.contains("token"));
        drop((leaders, web));
    };
    thread::scope(|scope| scope.spawn(in_own_network).join().unwrap());
}

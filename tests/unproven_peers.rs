//! Whoever reaches the port for peers and is none changes nothing: neither with what is no greeting, nor with
//! any number of connections, nor with a greeting in which everything is as high as it can be.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use support::{
    crowd::{has_ended, raise_file_limit, wait_end},
    peer::{self, Answer, Greeting, HELLO, PRE_VOTE, REPORT, VOTE, frame, greet, heartbeat, vote},
    process::{Cluster, get},
    resp::Client,
};

/// A greeting takes 5 s at most; the machine may be busy.
const SOON: Duration = Duration::from_secs(9);

fn peer_port(cluster: &Cluster, node: usize) -> TcpStream {
    TcpStream::connect(&cluster.addresses[node].peer).unwrap()
}

fn metric(cluster: &Cluster, node: usize, name: &str) -> f64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn writes(cluster: &Cluster, node: usize) {
    let mut client = Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(30)).unwrap();
    assert_eq!(client.run("INCR n").unwrap().chars().next(), Some(':'), "node {}", node + 1);
}

/// The most memory that a process has had, in bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn what_is_no_greeting_is_cut_off() {
    let mut cluster = Cluster::start(1, &[]);
    let pid = cluster.pid(0).unwrap();
    let before = peak_bytes(pid);
    let garbage: [&[u8]; 5] =
        [&[0xff; 64], b"GET / HTTP/1.1\r\n\r\n", &[0; 64], &frame(VOTE, &[0; 19]), &frame(99, &[0; 19])];
    for bytes in garbage {
        let mut stream = peer_port(&cluster, 0);
        let _ = stream.write_all(bytes);
        let (elapsed, answer) = wait_end(&mut stream, SOON);
        assert!(elapsed < Duration::from_secs(2) && answer.is_empty(), "{bytes:?}: {elapsed:?}");
    }
    // 100 MB that are announced as a greeting, and 100 MB that are not announced at all.
    for head in [(100_u32 << 20).to_le_bytes().to_vec(), Vec::new()] {
        let mut stream = peer_port(&cluster, 0);
        let piece = vec![HELLO; 1 << 20];
        let mut sent = 0;
        let _ = stream.write_all(&head);
        while sent < 100 && stream.write_all(&piece).is_ok() {
            sent += 1;
        }
        assert!(sent < 50, "{sent} MB were taken");
    }
    // One that never ends, a silent one, and one that stops half way.
    let whole = Greeting::new(2, 1, "").encode();
    let mut streams: Vec<TcpStream> = (0..3).map(|_| peer_port(&cluster, 0)).collect();
    streams[0].write_all(&whole[..20]).unwrap();
    let started = Instant::now();
    for byte in &whole[20..] {
        if streams[2].write_all(&[*byte]).is_err() || started.elapsed() > SOON {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    assert!(started.elapsed() < SOON, "a byte now and then keeps the connection");
    for stream in &mut streams {
        wait_end(stream, SOON);
    }
    let grown = peak_bytes(pid) - before;
    assert!(grown < 16 << 20, "{grown} bytes more");
    assert!(cluster.is_running(0));
    writes(&cluster, 0);
}

#[test]
fn a_thousand_that_never_greet_shut_out_nobody() {
    raise_file_limit(4096);
    let mut cluster = Cluster::start(3, &[]);
    let (leader, other) = (cluster.leader(), (cluster.leader() + 1) % 3);
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.extend([leader, other].map(|node| peer_port(&cluster, node)));
        if silent.len() % 500 == 0 {
            (0..3).for_each(|node| writes(&cluster, node));
        }
    }
    for node in [leader, other] {
        let present = metric(&cluster, node, "kvorum_raft_peer_connections");
        assert!(present <= 128.0, "node {} has {present}", node + 1);
    }
    let open = silent.iter_mut().map(has_ended).filter(|has_ended| !has_ended).count();
    assert!(open <= 2 * 64, "{open} are open");
    // A member that comes back gets in while others keep coming.
    cluster.kill(other);
    cluster.start_node(other);
    thread::scope(|scope| {
        let address = cluster.addresses[leader].peer.clone();
        let crowd = scope.spawn(move || {
            let mut more = Vec::new();
            for _ in 0..1000 {
                more.extend(TcpStream::connect(&address));
                thread::sleep(Duration::from_millis(2));
            }
            more.len()
        });
        cluster.wait_ready(other);
        (0..3).for_each(|node| writes(&cluster, node));
        assert_eq!(crowd.join().unwrap(), 1000);
    });
    // Those that are left are given up.
    let deadline = Instant::now() + SOON;
    while metric(&cluster, leader, "kvorum_raft_peer_connections") > 16.0 {
        assert!(Instant::now() < deadline, "silent ones stay");
        thread::sleep(Duration::from_millis(200));
    }
    (0..3).for_each(|node| writes(&cluster, node));
}

/// Sends frames after a greeting, whatever was answered, and waits until the node has closed the connection or has had time
/// to take them.
fn send(mut stream: TcpStream, frames: &[Vec<u8>]) {
    for bytes in frames {
        if stream.write_all(bytes).is_err() {
            break;
        }
    }
    thread::sleep(Duration::from_millis(20));
}

/// Greets, and is refused: at once where a leader is heard, and on a machine that is very busy, a little later.
fn refused(address: &str, greeting: &Greeting) -> (TcpStream, Answer) {
    for _ in 0..20 {
        let (stream, answer) = greet(address, greeting).unwrap();
        if !answer.refusal.is_empty() {
            return (stream, answer);
        }
        thread::sleep(Duration::from_millis(200));
    }
    panic!("not refused: {greeting:?}");
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The terms that the nodes are in.
fn terms(cluster: &Cluster) -> Vec<u64> {
    (0..3).filter_map(|node| cluster.status(node)?["term"].as_u64()).collect()
}

#[test]
fn a_stranger_is_told_and_believed_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    (0..3).for_each(|node| writes(&cluster, node));
    let secret = cluster.status(0).unwrap()["cluster_id"].as_str().unwrap().to_owned();
    for node in 0..3 {
        let (address, to) = (cluster.addresses[node].peer.clone(), node as u64 + 1);
        let others = (1..=3).filter(|id| *id != to);
        // Without a cluster, with a wrong one, and with the right one, which is no secret on the HTTP port.
        for (cluster_id, ids) in [("", vec![9]), ("elsewhere", vec![9]), (&secret, vec![9, 1 << 52])]
            .map(|(cluster_id, ids)| (cluster_id, ids.into_iter().chain(others.clone())))
        {
            for id in ids {
                for greeting in [
                    Greeting::new(id, to, cluster_id),
                    Greeting { apply_level: 900, ..Greeting::new(id, to, cluster_id) },
                    Greeting { former: vec![secret.clone()], ..Greeting::new(id, to, cluster_id) },
                ] {
                    let (stream, answer) = refused(&address, &greeting);
                    assert_eq!(answer.id, to);
                    assert_eq!(answer.disk, "");
                    if cluster_id != secret {
                        assert!(!contains(&answer.bytes, &secret), "{greeting:?}");
                        assert_ne!(answer.cluster, secret);
                    }
                    let away = Greeting { went_back: "an older disk".into(), ..greeting.clone() };
                    let report = br#"{"from":1,"clock_us":1000000000000000000,"disks":[]}"#;
                    let frames = [
                        vote(PRE_VOTE, 1 << 60, id),
                        vote(VOTE, 1 << 60, id),
                        heartbeat(1 << 60, id),
                        frame(REPORT, report),
                        away.encode(),
                    ];
                    send(stream, &frames);
                    let (stream, _) = greet(&address, &greeting).unwrap();
                    send(stream, &[away.encode()]);
                }
            }
        }
    }
    assert!(terms(&cluster).into_iter().max().unwrap() < 1000);
    for node in 0..3 {
        assert!(cluster.is_running(node));
        writes(&cluster, node);
        let ahead = cluster.status(node).unwrap()["clock_ahead_ms"].as_i64().unwrap();
        assert!(ahead.abs() < 1000, "{ahead} ms ahead");
    }
    // Nor after a start: nothing of it was kept.
    for node in 0..3 {
        cluster.kill(node);
    }
    cluster.start_all();
    (0..3).for_each(|node| writes(&cluster, node));
    assert!(terms(&cluster).into_iter().max().unwrap() < 1000);
}

#[test]
fn a_node_without_a_leader_takes_no_term_beyond_reason() {
    let mut cluster = Cluster::start(3, &[]);
    (0..3).for_each(|node| writes(&cluster, node));
    let secret = cluster.status(0).unwrap()["cluster_id"].as_str().unwrap().to_owned();
    cluster.kill(1);
    cluster.kill(2);
    let deadline = Instant::now() + Duration::from_secs(20);
    while cluster.status(0).unwrap()["not_ready"].is_null() {
        assert!(Instant::now() < deadline, "it still has a majority");
        thread::sleep(Duration::from_millis(50));
    }
    for frames in [vote(VOTE, 1 << 60, 9), vote(PRE_VOTE, 1 << 60, 9), heartbeat(1 << 60, 9), heartbeat(2, 1)]
    {
        // It may have been made a member while this node was away.
        let (mut stream, answer) = greet(&cluster.addresses[0].peer, &Greeting::new(9, 1, &secret)).unwrap();
        assert_eq!(answer.refusal, "");
        stream.write_all(&frames).unwrap();
        wait_end(&mut stream, SOON);
    }
    let (mut stream, _) = greet(&cluster.addresses[0].peer, &Greeting::new(9, 1, &secret)).unwrap();
    stream.write_all(&frame(REPORT, br#"{"from":9,"clock_us":1000000000000000000}"#)).unwrap();
    assert_eq!(
        peer::read(&mut stream).unwrap(),
        (REPORT, b"{}".to_vec()),
        "nothing is told, and nothing is taken"
    );
    assert!(cluster.status(0).unwrap()["term"].as_u64().unwrap() < 1000);
    cluster.start_node(1);
    cluster.start_node(2);
    (0..3).for_each(|node| cluster.wait_ready(node));
    (0..3).for_each(|node| writes(&cluster, node));
    let ahead = cluster.status(0).unwrap()["clock_ahead_ms"].as_i64().unwrap();
    assert!(ahead.abs() < 1000, "{ahead} ms ahead");
}

/// Also where there is no cluster yet, and so nothing to compare with.
#[test]
fn ids_addresses_and_terms_have_bounds_before_there_is_a_cluster() {
    let mut cluster = Cluster::off(3, &[]);
    cluster.start_node(0);
    let address = cluster.addresses[0].peer.clone();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let sane = || Greeting::new(2, 1, "");
    for (greeting, why) in [
        (Greeting { id: u64::MAX, ..sane() }, "no node id"),
        (Greeting { id: 0, ..sane() }, "no node id"),
        (Greeting { id: 1 << 53, ..sane() }, "no node id"),
        (Greeting { address: "a\nb:1".into(), ..sane() }, "on one line"),
        (Greeting { address: "x".repeat(6_000), ..sane() }, "on one line"),
        (Greeting { disk: "a b".into(), ..sane() }, "without spaces"),
        (Greeting { cluster: "c".repeat(65), ..sane() }, "without spaces"),
        (Greeting { went_back: "a\rb".into(), ..sane() }, "on one line"),
    ] {
        let (_, answer) = greet(&address, &greeting).unwrap();
        assert!(answer.refusal.contains(why), "{greeting:?}: {}", answer.refusal);
    }
    let huge = Greeting { address: "x".repeat(60_000), ..sane() };
    assert!(greet(&address, &huge).is_err(), "it is larger than any greeting");
    for (id, frames) in [
        (2, vote(VOTE, 1 << 60, 2)),
        (3, vote(VOTE, u64::MAX, 3)),
        (9, heartbeat(1 << 60, 9)),
        (9, heartbeat(u64::MAX, 9)),
    ] {
        let (mut stream, answer) = greet(&address, &Greeting::new(id, 1, "")).unwrap();
        assert_eq!(answer.refusal, "");
        stream.write_all(&frames).unwrap();
        wait_end(&mut stream, SOON);
    }
    assert!(cluster.is_running(0));
    // The clock of the first members is believed, but not that one, which would be the cluster's for ever.
    let (stream, _) = greet(&address, &Greeting::new(3, 1, "")).unwrap();
    send(stream, &[frame(REPORT, b"{}")]);
    assert_eq!(cluster.status(0).unwrap()["clock_ahead_ms"].as_i64(), None);
    assert_eq!(cluster.status(0).unwrap()["term"], 0);
}

//! Values up to the default limits go through the log while the cluster goes on; what is larger is refused at once and
//! is not applied. A string that grows in small steps may be longer than any that is sent.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::{Client, Value, encode},
};

const TOO_LARGE: &str = "(proposal-bytes-max), and is not applied\n";

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(60)).unwrap()
}

fn term(cluster: &Cluster) -> u64 {
    cluster.status(cluster.leader()).unwrap()["term"].as_u64().unwrap()
}

/// The value of an option that is a number of bytes.
fn bytes_of(client: &mut Client, option: &str) -> usize {
    match client.call(&["CONFIG", "GET", option]).unwrap() {
        Value::Aggregate(_, Some(pair)) => match &pair[1] {
            Value::Bulk(_, Some(digits)) => std::str::from_utf8(digits).unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Some bytes that do not repeat where pages or frames end.
fn value(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut value = Vec::with_capacity(len);
    value.resize_with(len.min(1_000_003), || random.u8(..));
    while value.len() < len {
        let more = value.len().min(len - value.len());
        value.extend_from_within(..more);
    }
    value
}

fn is(reply: &Value, expected: &[u8]) -> bool {
    matches!(reply, Value::Bulk(_, Some(bytes)) if bytes == expected)
}

#[test]
fn the_largest_value_goes_through_and_one_byte_more_is_refused_at_its_header() {
    let cluster = Cluster::start(3, &[]);
    let (leader, before) = (cluster.leader(), term(&cluster));
    let max = bytes_of(&mut client(&cluster, 0), "proto-max-bulk-len");
    assert!(max < bytes_of(&mut client(&cluster, 0), "proposal-bytes-max"));
    for (round, node) in [leader, (leader + 1) % 3].into_iter().enumerate() {
        let largest = value(max, round as u64);
        let mut client = client(&cluster, node);
        assert_eq!(client.call(&[&b"SET"[..], b"k", &largest]).unwrap().show(), "+OK\n");
        assert!(is(&client.call(&["GET", "k"]).unwrap(), &largest));
        // Nothing of the value has to be sent, nothing of it arrives.
        let header = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", max + 1);
        client.send(header.as_bytes()).unwrap();
        assert_eq!(client.receive().unwrap().show(), "-ERR Protocol error: invalid bulk length\n");
        assert!(client.receive().is_err());
        let mut again = self::client(&cluster, node);
        assert!(is(&again.call(&["GET", "k"]).unwrap(), &largest));
    }
    assert_eq!((cluster.leader(), term(&cluster)), (leader, before));
}

#[test]
fn what_is_too_large_for_the_log_is_refused_whole() {
    let cluster = Cluster::start(1, &["--proposal-bytes-max", "2mb", "--http-body-limit", "8mb"]);
    let mut client = client(&cluster, 0);
    let large = "x".repeat(1 << 20);
    let too_large = large.repeat(2);
    let refused = |reply: &Value| {
        let text = reply.show();
        assert!(
            text.starts_with("-ERR the request is larger than 2097152 bytes") && text.ends_with(TOO_LARGE),
            "{text}"
        );
    };
    refused(&client.call(&["SET", "k", &too_large]).unwrap());
    refused(&client.call(&["MSET", "k", &large, "l", &large]).unwrap());
    // Between others in a pipeline, of which all others run.
    let sets = [
        ["SET", "a", "1"],
        ["SET", "k", &too_large],
        ["SET", "b", &large],
        ["SET", "c", &large],
        ["GET", "k", ""],
    ];
    let sets: Vec<u8> = sets.iter().flat_map(|set| encode(set.strip_suffix(&[""]).unwrap_or(set))).collect();
    client.send(&sets).unwrap();
    assert_eq!(client.receive().unwrap().show(), "+OK\n");
    refused(&client.receive().unwrap());
    for _ in 0..2 {
        assert_eq!(client.receive().unwrap().show(), "+OK\n");
    }
    assert_eq!(client.receive().unwrap().show(), "$-1\n");
    // In wrappers; the number may be used again.
    assert_eq!(client.run("SESSION.OPEN s").unwrap(), "+OK\n");
    assert_eq!(client.run("CLIENT SESSION s").unwrap(), "+OK\n");
    refused(&client.call(&["ONCE", "1", "SET", "k", &too_large]).unwrap());
    assert_eq!(client.run("ONCE 1 APPEND once x").unwrap(), ":1\n");
    assert_eq!(client.run("ONCE 1 APPEND once x").unwrap(), ":1\n");
    let mut client = self::client(&cluster, 0);
    let token = client.run("LOCK.ACQUIRE lock me PX 60000").unwrap();
    let token = token.trim().trim_start_matches(':').to_owned();
    refused(&client.call(&["FENCE", "lock", &token, "SET", "k", &too_large]).unwrap());
    // A transaction: at the command with which it becomes too large.
    assert_eq!(client.run("MULTI").unwrap(), "+OK\n");
    assert_eq!(client.call(&["SET", "k", &large]).unwrap().show(), "+QUEUED\n");
    let reply = client.call(&["SET", "l", &large]).unwrap().show();
    assert_eq!(reply, "-ERR the transaction is larger than proposal-bytes-max, and is not applied\n");
    assert!(client.run("EXEC").unwrap().starts_with("-EXECABORT"));
    assert_eq!(client.run("EXISTS k l").unwrap(), ":0\n");
    // One that only reads does not go through the log.
    let reads: Vec<u8> = [["MULTI", ""], ["STRLEN", &too_large], ["STRLEN", &large], ["EXEC", ""]]
        .iter()
        .flat_map(|read| encode(read.strip_suffix(&[""]).unwrap_or(read)))
        .collect();
    client.send(&reads).unwrap();
    let replies: Vec<String> = (0..4).map(|_| client.receive().unwrap().show()).collect();
    assert_eq!(replies[3], "*2\n  :0\n  :0\n");
    // HTTP, too.
    let address = &cluster.addresses[0].http;
    let body = format!(r#"{{"candidate":"me","ttl_ms":60000,"value":"{too_large}"}}"#);
    let url = format!("http://{address}/v1/elections/e");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut response = agent.post(&url).content_type("application/json").send(&body).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    assert_eq!(response.status().as_u16(), 422, "{text}");
    assert!(text.contains("and is not applied"), "{text}");
    assert_eq!(get(&url).unwrap().0, 404);
}

#[test]
fn the_limits_can_be_raised() {
    let options = ["--proto-max-bulk-len", "80mb", "--proposal-bytes-max", "81mb"];
    let cluster = Cluster::start(1, &options);
    let mut client = client(&cluster, 0);
    let large = value(80 << 20, 1);
    assert_eq!(client.call(&[&b"SET"[..], b"k", &large]).unwrap().show(), "+OK\n");
    assert!(is(&client.call(&["GET", "k"]).unwrap(), &large));
    // What the log takes is fixed at the start, so a longer argument alone does not help.
    assert_eq!(client.run("CONFIG SET proto-max-bulk-len 90mb").unwrap(), "+OK\n");
    let larger = value(82 << 20, 2);
    let text = client.call(&[&b"SET"[..], b"k", &larger]).unwrap().show();
    assert!(text.ends_with(TOO_LARGE), "{text}");
    assert!(is(&client.call(&["GET", "k"]).unwrap(), &large));
}

#[test]
fn a_string_that_grows_in_small_steps_may_be_longer_and_goes_to_other_nodes_in_pieces() {
    const LEN: usize = 200 << 20;
    let mut cluster = Cluster::start(1, &["--log-entries-kept", "0"]);
    let mut writer = client(&cluster, 0);
    assert!(bytes_of(&mut writer, "proposal-bytes-max") < LEN);
    let end = format!("{}", LEN - 3);
    assert_eq!(writer.call(&["SETRANGE", "big", &end, "end"]).unwrap().show(), format!(":{LEN}\n"));
    // Whoever reads it holds up nobody for long.
    let is_read = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut other, mut longest) = (client(&cluster, 0), Duration::ZERO);
            while !is_read.load(Relaxed) {
                let asked = Instant::now();
                assert_eq!(other.run("SET small 1").unwrap(), "+OK\n");
                longest = longest.max(asked.elapsed());
            }
            longest
        });
        let mut reader = client(&cluster, 0);
        for _ in 0..3 {
            let reply = reader.call(&["GET", "big"]).unwrap();
            assert!(
                matches!(&reply, Value::Bulk(_, Some(bytes)) if bytes.len() == LEN && bytes.ends_with(b"\0end"))
            );
        }
        is_read.store(true, Relaxed);
        let longest = other.join().unwrap();
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    });
    // A node that joins gets it from the pages of a checkpoint.
    cluster.purge(0);
    let joined = cluster.join(0);
    cluster.wait_ready(joined);
    let mut second = client(&cluster, joined);
    let tail = second.call(&["GETRANGE", "big", &end, "-1"]).unwrap();
    assert!(is(&tail, b"end"));
    assert_eq!(second.run("STRLEN big").unwrap(), format!(":{LEN}\n"));
}

/// Whoever claims the largest value and sends little of it takes no memory for what has not arrived.
#[test]
fn a_value_that_is_only_announced_takes_no_memory() {
    let cluster = Cluster::start(1, &[]);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(0).unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<usize>().unwrap() << 10
    };
    let max = bytes_of(&mut client(&cluster, 0), "proto-max-bulk-len");
    let before = resident();
    let begun = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${max}\r\n{}", "x".repeat(4 << 10));
    let begin = |_| {
        let mut stream = TcpStream::connect(&cluster.addresses[0].resp).unwrap();
        stream.write_all(begun.as_bytes()).unwrap();
        stream
    };
    let announced: Vec<TcpStream> = (0..200).map(begin).collect();
    assert_eq!(client(&cluster, 0).run("PING").unwrap(), "+PONG\n");
    thread::sleep(Duration::from_millis(300));
    let grown = resident().saturating_sub(before);
    assert!(grown < announced.len() * (1 << 20), "{grown}");
}

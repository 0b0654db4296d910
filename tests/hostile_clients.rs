//! One client cannot take a node's memory: what waits to be sent to it has a limit, which holds while a reply grows.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{
    process::{Cluster, get},
    resp::{Client, Value, encode},
};

const VALUE_BYTES: usize = 8 << 20;
const LIMIT_BYTES: u64 = 64 << 20;

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

/// The most memory that a process has had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

#[test]
fn a_reply_that_would_be_too_large_costs_no_more_than_the_limit() {
    let mut cluster = Cluster::start(1, &["--client-output-buffer-limit", "64mb"]);
    let mut good = client(&cluster, 0);
    assert_eq!(good.call(&["SET", "k", &"x".repeat(VALUE_BYTES)]).unwrap().show(), "+OK\n");
    assert_eq!(good.call(&["RPUSH", "l", &"x".repeat(VALUE_BYTES)]).unwrap().show(), ":1\n");
    let before = peak(cluster.pid(0).unwrap());
    let get_k = encode(&["GET", "k"]);
    let many_keys: Vec<&str> = std::iter::once("MGET").chain(std::iter::repeat_n("k", 400)).collect();
    let transaction =
        |with: &[u8]| [&encode(&["MULTI"])[..], &get_k.repeat(400), with, &encode(&["EXEC"])].concat();
    let asked = [
        encode(&many_keys),
        // As one that only reads, as one that also writes, and as one with a command of the connection.
        transaction(b""),
        transaction(&encode(&["SET", "written", "1"])),
        transaction(&encode(&["PING"])),
        encode(&["CONSISTENCY", "STALE"].into_iter().chain(many_keys.iter().copied()).collect::<Vec<_>>()),
    ];
    for (number, bytes) in asked.iter().enumerate() {
        let mut greedy = client(&cluster, 0);
        greedy.send(bytes).unwrap();
        // Replies up to the large one may still come; then the connection ends.
        let ended = (0..500).any(|_| greedy.receive().is_err());
        assert!(ended, "request {number}");
        assert_eq!(good.run("PING").unwrap(), "+PONG\n");
    }
    assert!(cluster.is_running(0));
    // The buffer, and room for it to grow.
    let grown = peak(cluster.pid(0).unwrap()) - before;
    assert!(grown < 3 * LIMIT_BYTES, "{grown}");
    // What was written in such a transaction is written: its client does not know.
    assert_eq!(good.run("GET written").unwrap(), "$\"1\"\n");
    let (_, metrics) = get(&format!("http://{}/metrics", cluster.addresses[0].http)).unwrap();
    assert!(metrics.contains("kvorum_output_limit_disconnections_total 5"), "{metrics}");
    // Many replies that fit, one after the other, are sent.
    let mut patient = client(&cluster, 0);
    patient.send(&get_k.repeat(20)).unwrap();
    for _ in 0..20 {
        assert!(
            matches!(patient.receive().unwrap(), Value::Bulk(_, Some(value)) if value.len() == VALUE_BYTES)
        );
    }
}

#[test]
fn the_buffers_of_all_clients_together_have_a_limit() {
    let mut cluster = Cluster::start(1, &["--maxmemory-clients", "64mb"]);
    let mut good = client(&cluster, 0);
    assert_eq!(good.call(&["SET", "k", &"x".repeat(VALUE_BYTES)]).unwrap().show(), "+OK\n");
    let before = peak(cluster.pid(0).unwrap());
    // They ask for more than the sockets take, and read nothing.
    let mut greedy: Vec<Client> = (0..40).map(|_| client(&cluster, 0)).collect();
    greedy.iter_mut().for_each(|client| client.send(&encode(&["GET", "k"])).unwrap());
    std::thread::sleep(Duration::from_millis(500));
    // Others begin a command and do not go on.
    let mut slow: Vec<Client> = (0..40).map(|_| client(&cluster, 0)).collect();
    let begun = format!("*3\r\n$3\r\nSET\r\n$1\r\ns\r\n${VALUE_BYTES}\r\n{}", "x".repeat(VALUE_BYTES / 2));
    for client in &mut slow {
        // It may be closed while it sends.
        let _ = client.send(begun.as_bytes());
    }
    assert_eq!(good.run("PING").unwrap(), "+PONG\n");
    assert_eq!(good.run("GET none").unwrap(), "$-1\n");
    assert!(cluster.is_running(0));
    let grown = peak(cluster.pid(0).unwrap()) - before;
    assert!(grown < 3 * LIMIT_BYTES, "{grown}");
    let info = good.run("INFO stats").unwrap();
    let evicted = info.split("evicted_clients:").nth(1).unwrap();
    let evicted: u32 = evicted.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    assert!(evicted > 40, "{evicted}");
    drop((greedy, slow));
    assert_eq!(good.run("CONFIG SET maxmemory-clients 1gb").unwrap(), "+OK\n");
    assert_eq!(
        good.run("CONFIG GET maxmemory-clients").unwrap(),
        "*2\n  $\"maxmemory-clients\"\n  $\"1073741824\"\n"
    );
}

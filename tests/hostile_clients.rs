//! One client cannot take a node's memory: what waits to be sent to it has a limit, which holds while a reply grows.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

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

const LONG_BYTES: usize = 32 << 20;

/// Sends a command, and gives the length of the reply that consists of so many lines and values.
fn length_of_reply(cluster: &Cluster, command: &[u8], bulks: usize) -> usize {
    let mut stream = TcpStream::connect(&cluster.addresses[0].resp).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(command).unwrap();
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let (mut length, mut seen) = (0, 0);
    while seen < bulks {
        let mut line = String::new();
        length += reader.read_line(&mut line).unwrap();
        if let Some(len) = line.strip_prefix('$') {
            let len: u64 = len.trim().parse().unwrap();
            let copied = std::io::copy(&mut (&mut reader).take(len + 2), &mut std::io::sink()).unwrap();
            assert_eq!(copied, len + 2);
            length += copied as usize;
            seen += 1;
        }
    }
    length
}

#[test]
fn a_reply_does_not_copy_long_values() {
    let cluster = Cluster::start(1, &["--client-output-buffer-limit", "4gb", "--maxmemory-clients", "0"]);
    let mut good = client(&cluster, 0);
    assert_eq!(good.call(&["SET", "k", &"x".repeat(LONG_BYTES)]).unwrap().show(), "+OK\n");
    let before = peak(cluster.pid(0).unwrap());
    let many = |count| std::iter::once("MGET").chain(std::iter::repeat_n("k", count)).collect::<Vec<_>>();
    let one = "$33554432\r\n".len() + LONG_BYTES + 2;
    assert_eq!(length_of_reply(&cluster, &encode(&many(100)), 100), "*100\r\n".len() + 100 * one);
    // In transactions: one that only reads, one that writes, and one with a command of the connection.
    let get = encode(&["GET", "k"]);
    for (with, reply) in [("", ""), ("SET written 1", "+OK\r\n"), ("PING", "+PONG\r\n")] {
        let with = if with.is_empty() { Vec::new() } else { encode(&with.split(' ').collect::<Vec<_>>()) };
        let command = [&encode(&["MULTI"])[..], &get, &with, &get.repeat(19), &encode(&["EXEC"])].concat();
        let queued = 20 + usize::from(!with.is_empty());
        let expected = "+OK\r\n".len() + queued * "+QUEUED\r\n".len() + "*20\r\n".len() + 20 * one;
        assert_eq!(length_of_reply(&cluster, &command, 20), expected + reply.len());
    }
    // What is asked for in the default's way is given up, and costs as little.
    let strict = Cluster::start(1, &[]);
    let mut other = client(&strict, 0);
    assert_eq!(other.call(&["SET", "k", &"x".repeat(LONG_BYTES)]).unwrap().show(), "+OK\n");
    let before_strict = peak(strict.pid(0).unwrap());
    let mut greedy = client(&strict, 0);
    greedy.send(&encode(&many(400))).unwrap();
    assert!(greedy.receive().is_err());
    assert_eq!(other.run("PING").unwrap(), "+PONG\n");
    for (cluster, before) in [(&cluster, before), (&strict, before_strict)] {
        let grown = peak(cluster.pid(0).unwrap()) - before;
        assert!(grown < LONG_BYTES as u64, "{grown}");
    }
}

#[test]
fn a_value_that_changes_while_a_slow_client_reads_it_arrives_as_it_was() {
    let mut cluster = Cluster::start(1, &[]);
    let mut writer = client(&cluster, 0);
    let original = "0123456789abcdef".repeat(LONG_BYTES / 16);
    let is_original = |reply: &Value, part: &str| {
        assert!(matches!(reply, Value::Bulk(_, Some(value)) if value == part.as_bytes()));
    };
    let set = |writer: &mut Client| {
        assert_eq!(writer.call(&["SET", "k", &original]).unwrap().show(), "+OK\n");
    };
    for change in
        ["APPEND k more", "SETRANGE k 5 changed", "SET k short", "DEL k", "RENAME k other", "FLUSHALL"]
    {
        set(&mut writer);
        // More than the sockets take is asked for, and nothing is read yet.
        let mut slow: Vec<Client> = (0..2).map(|_| client(&cluster, 0)).collect();
        slow[0].send(&encode(&["GET", "k"]).repeat(2)).unwrap();
        slow[1].send(&encode(&["GETRANGE", "k", "3", "-5"])).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        writer.run(change).unwrap();
        writer.run(change).unwrap();
        is_original(&slow[0].receive().unwrap(), &original);
        is_original(&slow[1].receive().unwrap(), &original[3..original.len() - 4]);
    }
    // What a command takes away, it gives.
    set(&mut writer);
    is_original(&writer.call(&["SET", "k", &original, "GET"]).unwrap(), &original);
    is_original(&writer.call(&["GETSET", "k", &original]).unwrap(), &original);
    is_original(&writer.call(&["GETEX", "k", "PX", "100000"]).unwrap(), &original);
    is_original(&writer.call(&["GETDEL", "k"]).unwrap(), &original);
    assert_eq!(writer.run("EXISTS k").unwrap(), ":0\n");
    set(&mut writer);
    assert_eq!(writer.run("APPEND k more").unwrap(), format!(":{}\n", LONG_BYTES + 4));
    is_original(&writer.call(&["GET", "k"]).unwrap(), &(original.clone() + "more"));
    assert!(cluster.is_running(0));
}

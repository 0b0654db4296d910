//! A call that takes long holds up nothing but the log: connections, health checks, votes and heartbeats go on, and the
//! cluster keeps its leader.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::{Client, Value, encode},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// A call shorter than this shows nothing.
const LONG: Duration = Duration::from_secs(1);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

fn term(cluster: &Cluster) -> u64 {
    cluster.status(0).unwrap()["term"].as_u64().unwrap()
}

/// Fills a set with members of its own.
fn fill(client: &mut Client, set: &str, members: usize) {
    for from in (0..members).step_by(5_000) {
        let names = (from..members.min(from + 5_000)).map(|number| format!("{set}:{number}"));
        let words: Vec<String> = ["SADD".to_owned(), set.to_owned()].into_iter().chain(names).collect();
        client.call(&words).unwrap();
    }
}

/// How often each of these is done while `call` runs: a PING at the leader and at another node, and a health check.
fn done_meanwhile(cluster: &Cluster, leader: usize, call: impl FnOnce()) -> (Duration, [usize; 3]) {
    let (is_over, counts) = (AtomicBool::new(false), [(); 3].map(|()| AtomicUsize::new(0)));
    thread::scope(|scope| {
        for (index, count) in counts.iter().enumerate() {
            let node = if index == 1 { (leader + 1) % 3 } else { leader };
            let (is_over, url) = (&is_over, format!("http://{}/healthz", cluster.addresses[node].http));
            scope.spawn(move || {
                let mut client = client(cluster, node);
                while !is_over.load(Relaxed) {
                    match index {
                        2 => assert_eq!(get(&url).unwrap().0, 200),
                        _ => assert_eq!(client.run("PING").unwrap(), "+PONG\n"),
                    }
                    count.fetch_add(usize::from(!is_over.load(Relaxed)), Relaxed);
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        // Readers that have to wait take no threads from the others.
        for _ in 0..20 {
            scope.spawn(|| client(cluster, leader).run("CONSISTENCY STALE GET none").unwrap());
        }
        let since = Instant::now();
        call();
        is_over.store(true, Relaxed);
        (since.elapsed(), counts.each_ref().map(|count| count.load(Relaxed)))
    })
}

#[test]
fn long_calls_hold_up_nobody() {
    let cluster = Cluster::start(3, &["--threads", "1"]);
    let leader = cluster.leader();
    let mut client = client(&cluster, leader);
    fill(&mut client, "a", 150_000);
    fill(&mut client, "b", 150_000);
    let before = term(&cluster);
    let many: Vec<String> = (0..400_000).map(|number| format!("k{number}")).collect();
    let pairs = std::iter::once("MSET").chain(many.iter().map(String::as_str));
    let mset = encode(&pairs.collect::<Vec<_>>());
    let sets: Vec<u8> = many.iter().take(150_000).flat_map(|key| encode(&["SET", key, "1"])).collect();
    let transaction = [encode(&["MULTI"]), sets, encode(&["EXEC"])].concat();
    for (name, bytes, replies) in [
        ("SUNIONSTORE", encode(&["SUNIONSTORE", "c", "a", "b"]), 1),
        ("SUNION", encode(&["SUNION", "a", "b"]), 1),
        ("MSET", mset, 1),
        ("EXEC", transaction, 150_002),
    ] {
        let (took, done) = done_meanwhile(&cluster, leader, || {
            client.send(&bytes).unwrap();
            for _ in 0..replies {
                let reply = client.receive().unwrap();
                assert!(!matches!(reply, Value::Line(b'-', _)), "{name}: {}", reply.show());
            }
        });
        println!("{name}: {took:?}, {done:?}");
        // Others have 10 ms of every turn to themselves.
        assert!(took < LONG || done.iter().all(|count| *count >= 10), "{name}: {done:?} in {took:?}");
    }
    assert_eq!(term(&cluster), before, "the leader is still the same");
    assert_eq!(client.run("SCARD c").unwrap(), ":300000\n");
}

//! ONCE on three real processes: every command is repeated until its outcome is known, on one node after the other, while
//! the leader is killed again and again; each is applied once and answers the same.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

const CLIENTS: u64 = 4;
const COMMANDS: u64 = 150;
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection in the client's session, to a node that answers.
fn connect(cluster: &Mutex<Cluster>, node: usize, session: &str) -> Option<Client> {
    let address = {
        let cluster = cluster.lock().unwrap();
        cluster.pid(node).map(|_| cluster.addresses[node].resp.clone())
    };
    let mut client = Client::connect(&address?).ok()?;
    let answer = client.run(&format!("CLIENT SESSION {session}")).ok()?;
    (answer == "+OK\n").then_some(client)
}

#[test]
fn what_is_repeated_is_applied_once() {
    let cluster = Mutex::new(Cluster::start(3, &["--request-timeout-ms", "1000"]));
    let (repeated, finished) = (AtomicU64::new(0), AtomicU64::new(0));
    let replies: Mutex<Vec<String>> = Mutex::default();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (cluster, repeated, finished, replies) = (&cluster, &repeated, &finished, &replies);
            scope.spawn(move || {
                let session = format!("session:{number}");
                let mut node = number as usize % 3;
                let address = cluster.lock().unwrap().addresses[node].resp.clone();
                let opened = Client::connect(&address).unwrap().run(&format!("SESSION.OPEN {session}"));
                assert_eq!(opened.unwrap(), "+OK\n");
                let mut client = None;
                for command in 1..=COMMANDS {
                    let started = Instant::now();
                    let reply = loop {
                        assert!(started.elapsed() < PATIENCE, "command {command} finds nobody");
                        client = client.or_else(|| connect(cluster, node, &session));
                        let reply =
                            client.as_mut().map(|client| client.run(&format!("ONCE {command} INCR counter")));
                        match reply {
                            Some(Ok(reply)) if reply.starts_with(':') => break reply,
                            // Nobody knows, or it was not applied: the next node is asked the same.
                            _ => {
                                repeated.fetch_add(1, Relaxed);
                                client = None;
                                node = (node + 1) % 3;
                                thread::sleep(Duration::from_millis(20));
                            }
                        }
                    };
                    // And again, though it is known.
                    if command % 10 == 0 {
                        let again = client
                            .as_mut()
                            .and_then(|client| client.run(&format!("ONCE {command} INCR counter")).ok());
                        assert!(again.is_none_or(|again| !again.starts_with(':') || again == reply));
                    }
                    replies.lock().unwrap().push(reply);
                    thread::sleep(Duration::from_millis(10));
                }
                finished.fetch_add(1, Relaxed);
            });
        }
        while finished.load(Relaxed) < CLIENTS {
            thread::sleep(Duration::from_millis(600));
            let leader = cluster.lock().unwrap().leader();
            cluster.lock().unwrap().kill(leader);
            thread::sleep(Duration::from_millis(300));
            let mut cluster = cluster.lock().unwrap();
            cluster.start_node(leader);
            cluster.wait_ready(leader);
        }
    });
    let mut numbers: Vec<u64> =
        replies.into_inner().unwrap().iter().map(|reply| reply.trim()[1..].parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        (1..=CLIENTS * COMMANDS).collect::<Vec<_>>(),
        "each was applied once, and none twice"
    );
    assert!(repeated.into_inner() > 0, "nothing had to be repeated");
}

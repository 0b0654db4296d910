//! Whatever waits ends: with its client, with its time also where there is no majority, with an orderly stop of its node
//! and with CLIENT KILL; and nothing stays behind, no connection, no place in a queue and no lock.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use support::{
    process::Cluster,
    resp::{Client, Value, encode, split},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// Waits until something is so.
fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < limit, "after {:?} still not: {what}", started.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    started.elapsed()
}

/// The number after `token` in what a grant answers.
fn token(reply: &Value) -> u64 {
    let Value::Aggregate(_, Some(parts)) = reply else { panic!("not granted: {}", reply.show()) };
    parts[1].show().trim().trim_start_matches(':').parse().unwrap()
}

/// A field of INFO.
fn info(client: &mut Client, field: &str) -> String {
    let Value::Bulk(_, Some(text)) = client.call(&["INFO"]).unwrap() else { panic!("INFO is text") };
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("INFO has no {field}")).to_owned()
}

/// How many wait for a lock.
fn waiting(client: &mut Client, lock: &str) -> usize {
    match client.call(&["LOCK.INFO", lock]).unwrap() {
        Value::Aggregate(_, Some(parts)) => match &parts[5] {
            Value::Aggregate(_, Some(waiting)) => waiting.len(),
            other => panic!("{}", other.show()),
        },
        _ => 0,
    }
}

/// Whether somebody holds a lock.
fn is_held(client: &mut Client, lock: &str) -> bool {
    match client.call(&["LOCK.INFO", lock]).unwrap() {
        Value::Aggregate(_, Some(parts)) => match &parts[3] {
            Value::Aggregate(_, Some(holders)) => !holders.is_empty(),
            other => panic!("{}", other.show()),
        },
        _ => false,
    }
}

/// Sends a POST, and waits for its answer: its status and body, and how long that took.
fn post(cluster: &Cluster, node: usize, path: &str, body: &str) -> JoinHandle<(String, Duration)> {
    let (address, started) = (cluster.addresses[node].http.clone(), Instant::now());
    let request =
        format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    thread::spawn(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer, started.elapsed())
    })
}

/// A command that waits, and its reply.
fn ask(cluster: &Cluster, node: usize, line: &str) -> JoinHandle<(String, Duration)> {
    let mut client = client(cluster, node);
    client.send(&encode(&split(line))).unwrap();
    let started = Instant::now();
    thread::spawn(move || (client.receive().unwrap().show(), started.elapsed()))
}

#[test]
fn a_wait_ends_where_there_is_no_majority() {
    let mut cluster = Cluster::start(3, &["--request-timeout-ms", "2000"]);
    let leader = cluster.leader();
    let (gone, here) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut holder = client(&cluster, leader);
    let held = token(&holder.call(&split("LOCK.ACQUIRE l holder PX 60000")).unwrap());
    let waits = [
        ask(&cluster, here, "LOCK.ACQUIRE l short PX 60000 WAIT 1000"),
        post(&cluster, here, "/v1/locks/l", r#"{"owner":"short:http","ttl_ms":60000,"wait_ms":1000}"#),
        ask(&cluster, here, "LOCK.ACQUIRE l long PX 60000 WAIT 600000"),
        post(&cluster, here, "/v1/locks/l", r#"{"owner":"long:http","ttl_ms":60000,"wait_ms":600000}"#),
    ];
    wait_until("all wait", PATIENCE, || waiting(&mut holder, "l") == 4);
    cluster.kill(leader);
    cluster.kill(gone);
    let mut answers = waits.map(|wait| wait.join().unwrap());
    for (answer, elapsed) in &answers {
        assert!(*elapsed < Duration::from_secs(12), "after {elapsed:?}: {answer}");
    }
    // Before its time, within a second of it, or with an error that is not: never a grant.
    for (answer, _) in answers.iter_mut().step_by(2) {
        assert!(answer.starts_with("-UNCERTAIN"), "{answer}");
    }
    for (answer, _) in &answers[1..] {
        assert!(!answer.contains("token"), "{answer}");
    }
    for (answer, _) in [&answers[1], &answers[3]] {
        assert!(answer.starts_with("HTTP/1.0 504"), "{answer}");
    }
    // What they left behind goes when there is a majority again.
    cluster.start_node(leader);
    cluster.start_node(gone);
    cluster.wait_ready(leader);
    let mut other = client(&cluster, leader);
    wait_until("nobody waits", PATIENCE, || waiting(&mut other, "l") == 0);
    assert_eq!(other.run(&format!("LOCK.RELEASE l holder {held}")).unwrap(), ":0\n");
    assert!(!is_held(&mut other, "l"));
    // And who waits then is granted as ever.
    let mut again = client(&cluster, here);
    assert!(token(&again.call(&split("LOCK.ACQUIRE l again PX 60000 WAIT 5000")).unwrap()) > held);
}

#[test]
fn a_stopping_node_leaves_no_wait_and_no_grant_behind() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let stopping = (leader + 1) % 3;
    let mut holder = client(&cluster, leader);
    let held = token(&holder.call(&split("LOCK.ACQUIRE l holder PX 60000")).unwrap());
    let web = post(&cluster, stopping, "/v1/locks/l", r#"{"owner":"web","ttl_ms":60000,"wait_ms":60000}"#);
    let resp = ask(&cluster, stopping, "LOCK.ACQUIRE l resp PX 60000 WAIT 60000");
    wait_until("both wait", PATIENCE, || waiting(&mut holder, "l") == 2);
    // Streams and connections that do nothing hold nothing up.
    let mut stream = TcpStream::connect(&cluster.addresses[stopping].http).unwrap();
    write!(stream, "GET /v1/feed HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let idle = TcpStream::connect(&cluster.addresses[stopping].http).unwrap();
    thread::sleep(Duration::from_millis(200));
    let elapsed = cluster.stop(stopping);
    assert!(elapsed < Duration::from_secs(3), "it took {elapsed:?} to stop");
    assert_eq!(waiting(&mut holder, "l"), 0);
    assert_eq!(holder.run(&format!("LOCK.RELEASE l holder {held}")).unwrap(), ":0\n");
    for _ in 0..5 {
        assert!(!is_held(&mut holder, "l"), "who is gone got it");
        thread::sleep(Duration::from_millis(100));
    }
    let (answer, _) = web.join().unwrap();
    assert!(answer.starts_with("HTTP/1.0 504"), "{answer}");
    let (answer, _) = resp.join().unwrap();
    assert!(answer.starts_with("-UNCERTAIN"), "{answer}");
    drop(idle);
}

#[test]
fn a_command_that_waits_ends_with_its_client() {
    let mut cluster = Cluster::start(1, &[]);
    let mut watcher = client(&cluster, 0);
    let lines = ["WAIT 10 0", "WAITAOF 1 10 0", "DEBUG SLEEP 3600"];
    let waiting: Vec<Client> = (0..30)
        .map(|number| {
            let mut waiter = client(&cluster, 0);
            waiter.send(&encode(&split(lines[number % lines.len()]))).unwrap();
            waiter
        })
        .collect();
    wait_until("all wait", PATIENCE, || info(&mut watcher, "blocked_clients") == "30");
    drop(waiting);
    wait_until("the connections are gone", Duration::from_secs(1), || {
        info(&mut watcher, "connected_clients") == "1"
    });
    // Others end it too.
    for (line, command, expected) in [
        ("WAIT 10 0", "CLIENT UNBLOCK {} ERROR", Some("-UNBLOCKED client unblocked via CLIENT UNBLOCK\n")),
        ("WAIT 10 0", "CLIENT UNBLOCK {}", Some(":0\n")),
        ("WAITAOF 1 10 0", "CLIENT UNBLOCK {}", Some("*2\n  :1\n  :0\n")),
        ("DEBUG SLEEP 3600", "CLIENT KILL ID {}", None),
        ("WAIT 10 0", "CLIENT KILL ID {}", None),
    ] {
        let mut waiter = client(&cluster, 0);
        let id = waiter.run("CLIENT ID").unwrap().trim().trim_start_matches(':').to_owned();
        waiter.send(&encode(&split(line))).unwrap();
        wait_until("it waits", PATIENCE, || info(&mut watcher, "blocked_clients") == "1");
        assert!(watcher.run(&format!("CLIENT LIST ID {id}")).unwrap().contains(" flags=b "));
        assert_eq!(watcher.run(&command.replace("{}", &id)).unwrap(), ":1\n", "{command}");
        let reply = waiter.receive().ok().map(|reply| reply.show());
        assert_eq!(reply.as_deref(), expected, "{line}, {command}");
    }
    // WAIT still waits for its time.
    let started = Instant::now();
    assert_eq!(watcher.run("WAIT 1 300").unwrap(), ":0\n");
    assert!(started.elapsed() >= Duration::from_millis(300));
    let mut waiters: Vec<Client> = (0..3).map(|_| client(&cluster, 0)).collect();
    for (waiter, line) in waiters.iter_mut().zip(lines) {
        waiter.send(&encode(&split(line))).unwrap();
    }
    wait_until("all wait", PATIENCE, || info(&mut watcher, "blocked_clients") == "3");
    drop(watcher);
    let elapsed = cluster.stop(0);
    assert!(elapsed < Duration::from_secs(2), "it took {elapsed:?} to stop");
    assert_eq!(waiters[0].receive().unwrap().show(), ":0\n");
}

/// A client that was told 1 by CLIENT UNBLOCK can rely on it, also when the grant is under way.
#[test]
fn who_was_unblocked_holds_nothing() {
    let cluster = Cluster::start(1, &[]);
    let (mut holder, mut waiter, mut third) = (client(&cluster, 0), client(&cluster, 0), client(&cluster, 0));
    let id = waiter.run("CLIENT ID").unwrap().trim().trim_start_matches(':').to_owned();
    let unblock = encode(&split(&format!("CLIENT UNBLOCK {id} ERROR")));
    for round in 0..200u64 {
        let lock = format!("l{round}");
        let held = token(&holder.call(&["LOCK.ACQUIRE", &lock, "h", "PX", "60000"]).unwrap());
        waiter.send(&encode(&["LOCK.ACQUIRE", &lock, "w", "PX", "60000", "WAIT", "60000"])).unwrap();
        wait_until("it waits", PATIENCE, || waiting(&mut third, &lock) == 1);
        holder.send(&encode(&["LOCK.RELEASE", &lock, "h", &held.to_string()])).unwrap();
        thread::sleep(Duration::from_micros(round * 10 % 1_500));
        third.send(&unblock).unwrap();
        assert_eq!(holder.receive().unwrap().show(), ":0\n");
        let is_unblocked = third.receive().unwrap().show() == ":1\n";
        let reply = waiter.receive().unwrap().show();
        assert_eq!(is_unblocked, reply.starts_with("-UNBLOCKED"), "round {round}: {reply}");
        if is_unblocked {
            wait_until("it is free", Duration::from_secs(5), || !is_held(&mut third, &lock));
        }
    }
}

#[test]
fn a_reply_that_is_skipped_is_skipped_however_late_it_comes() {
    let cluster = Cluster::start(1, &[]);
    let (mut client, mut holder) = (client(&cluster, 0), client(&cluster, 0));
    let skip = |client: &mut Client, line: &str| {
        client.send(&encode(&["CLIENT", "REPLY", "SKIP"])).unwrap();
        client.send(&encode(&split(line))).unwrap();
        client.send(&encode(&["PING"])).unwrap();
    };
    // A grant at once, nil, and a grant that is waited for.
    skip(&mut client, "LOCK.ACQUIRE a o PX 60000 WAIT 1000");
    assert_eq!(client.receive().unwrap().show(), "+PONG\n");
    let held = token(&holder.call(&split("LOCK.ACQUIRE b h PX 60000")).unwrap());
    skip(&mut client, "LOCK.ACQUIRE b o PX 60000 WAIT 100");
    assert_eq!(client.receive().unwrap().show(), "+PONG\n");
    skip(&mut client, "LOCK.ACQUIRE b o PX 60000 WAIT 60000");
    wait_until("it waits", PATIENCE, || waiting(&mut holder, "b") == 1);
    assert_eq!(holder.run(&format!("LOCK.RELEASE b h {held}")).unwrap(), ":0\n");
    assert_eq!(client.receive().unwrap().show(), "+PONG\n");
    assert!(holder.run("LOCK.INFO b").unwrap().contains("\"o\""));
    // All other commands that wait.
    for line in ["WAIT 0 0", "WATCH k", "LEASE.BIND none", "CONSISTENCY stale GET k", "EXEC", "HELLO 2"] {
        skip(&mut client, line);
        assert_eq!(client.receive().unwrap().show(), "+PONG\n", "{line}");
    }
}

#[test]
fn the_idle_timeout_is_for_those_who_do_nothing() {
    let cluster = Cluster::start(1, &["--timeout", "2"]);
    let mut holder = client(&cluster, 0);
    let held = token(&holder.call(&split("LOCK.ACQUIRE l h PX 60000")).unwrap());
    let mut granted = client(&cluster, 0);
    granted.send(&encode(&split("LOCK.ACQUIRE l g PX 60000 WAIT 60000"))).unwrap();
    let mut waits = client(&cluster, 0);
    waits.send(&encode(&split("WAIT 10 5000"))).unwrap();
    let mut sleeps = client(&cluster, 0);
    sleeps.send(&encode(&split("DEBUG SLEEP 5"))).unwrap();
    let mut leads = client(&cluster, 0);
    for line in ["LEASE.GRANT PX 1000 ID lease", "LEASE.BIND lease REVOKE"] {
        assert!(!leads.run(line).unwrap().starts_with('-'));
    }
    let mut idle = client(&cluster, 0);
    assert_eq!(idle.run("PING").unwrap(), "+PONG\n");
    for _ in 0..8 {
        thread::sleep(Duration::from_millis(500));
        assert_eq!(holder.run("PING").unwrap(), "+PONG\n");
    }
    assert_eq!(holder.run(&format!("LOCK.RELEASE l h {held}")).unwrap(), ":0\n");
    assert!(token(&granted.receive().unwrap()) > held);
    thread::sleep(Duration::from_millis(1_300));
    assert_eq!(granted.run("PING").unwrap(), "+PONG\n");
    assert_eq!(waits.receive().unwrap().show(), ":0\n");
    assert_eq!(sleeps.receive().unwrap().show(), "+OK\n");
    assert_eq!(leads.run("EXISTS lease").unwrap(), ":1\n");
    assert!(idle.receive().is_err(), "an idle client is hung up on");
    // One without a lease is idle again.
    assert_eq!(leads.run("RESET").unwrap(), "+RESET\n");
    assert!(leads.receive().is_err(), "an idle client is hung up on");
}

#[test]
fn a_client_that_was_killed_does_nothing_more() {
    const COMMANDS: usize = 100_000;
    let cluster = Cluster::start(1, &[]);
    let (mut runaway, mut operator) = (client(&cluster, 0), client(&cluster, 0));
    let id = runaway.run("CLIENT ID").unwrap().trim().trim_start_matches(':').to_owned();
    let mut commands = encode(&["CLIENT", "REPLY", "OFF"]);
    commands.extend((0..COMMANDS).flat_map(|_| encode(&["INCR", "count"])));
    let sending = thread::spawn(move || {
        // It fails where the connection breaks.
        let _ = runaway.send(&commands);
        runaway
    });
    let count = |client: &mut Client| match client.call(&["GET", "count"]).unwrap() {
        Value::Bulk(_, Some(text)) => String::from_utf8(text).unwrap().parse::<usize>().unwrap(),
        _ => 0,
    };
    wait_until("it runs", PATIENCE, || count(&mut operator) > 0);
    assert_eq!(operator.run(&format!("CLIENT KILL ID {id}")).unwrap(), ":1\n");
    let killed = count(&mut operator);
    thread::sleep(Duration::from_secs(1));
    let later = count(&mut operator);
    // What was in the log already may come: one unit.
    assert!(later - killed <= 1_024 && later < COMMANDS, "{killed} when it was killed, then {later}");
    sending.join().unwrap();
}

#[test]
fn a_pipeline_may_be_larger_than_a_proposal() {
    let cluster = Cluster::start(1, &["--proposal-bytes-max", "64kb"]);
    let mut client = client(&cluster, 0);
    let value = "x".repeat(4 << 10);
    let mut batch = Vec::new();
    for number in 0..100 {
        batch.extend(encode(&["SET", &format!("k{number}"), &value]));
        if number % 10 == 0 {
            batch.extend(encode(&["GET", &format!("k{number}")]));
        }
    }
    // One is too large by itself, and only that is refused; so is a transaction.
    let large = "x".repeat(70 << 10);
    batch.extend(encode(&["SET", "large", &large]));
    batch.extend(encode(&["MULTI"]));
    batch.extend((0..20).flat_map(|_| encode(&["APPEND", "in:multi", &value])));
    batch.extend(encode(&["EXEC"]));
    batch.extend(encode(&["SET", "small", "1"]));
    client.send(&batch).unwrap();
    for number in 0..100 {
        assert_eq!(client.receive().unwrap().show(), "+OK\n", "SET k{number}");
        if number % 10 == 0 {
            assert!(matches!(client.receive().unwrap(), Value::Bulk(_, Some(text)) if text.len() == 4 << 10));
        }
    }
    let refused = "-ERR the request is larger than 65536 bytes (proposal-bytes-max), and is not applied\n";
    assert_eq!(client.receive().unwrap().show(), refused);
    assert_eq!(client.receive().unwrap().show(), "+OK\n");
    let queued: Vec<String> = (0..20).map(|_| client.receive().unwrap().show()).collect();
    // At the one with which it becomes too large, not at its end.
    assert_eq!(queued.iter().filter(|reply| *reply == "+QUEUED\n").count(), 19);
    assert_eq!(queued[15], "-ERR the transaction is larger than proposal-bytes-max, and is not applied\n");
    let discarded = "-EXECABORT Transaction discarded because of previous errors.\n";
    assert_eq!(client.receive().unwrap().show(), discarded);
    assert_eq!(client.receive().unwrap().show(), "+OK\n");
    assert_eq!(client.run("EXISTS large in:multi small").unwrap(), ":1\n");
}

/// They all have something to say at once, and their names are long.
#[test]
fn many_waits_that_end_at_once_all_end() {
    const WAITERS: usize = 200;
    let cluster = Cluster::start(1, &["--proposal-bytes-max", "64kb"]);
    let mut holder = client(&cluster, 0);
    let lock = |number: usize| format!("{number:03}{}", "x".repeat(1_000));
    let waiters: Vec<Client> = (0..WAITERS)
        .map(|number| {
            let held = holder.call(&["LOCK.ACQUIRE", &lock(number), "h", "PX", "600000"]).unwrap();
            assert!(token(&held) > 0);
            let mut waiter = client(&cluster, 0);
            let wait = ["LOCK.ACQUIRE", &lock(number), "w", "PX", "600000", "WAIT", "600000"];
            waiter.send(&encode(&wait)).unwrap();
            waiter
        })
        .collect();
    wait_until("all wait", PATIENCE, || (0..WAITERS).all(|number| waiting(&mut holder, &lock(number)) == 1));
    drop(waiters);
    wait_until("nobody waits", Duration::from_secs(10), || {
        (0..WAITERS).all(|number| waiting(&mut holder, &lock(number)) == 0)
    });
}

#[test]
fn a_request_that_waits_ends_with_its_client_whatever_that_has_sent_behind_it() {
    let cluster = Cluster::start(1, &[]);
    let mut watcher = client(&cluster, 0);
    token(&watcher.call(&split("LOCK.ACQUIRE l holder PX 60000")).unwrap());
    let address = &cluster.addresses[0].http;
    let body = r#"{"owner":"web","ttl_ms":60000,"wait_ms":600000}"#;
    let request = format!(
        "POST /v1/locks/l HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for behind in ["", "\r\n", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all((request.clone() + behind).as_bytes()).unwrap();
        wait_until("it waits", PATIENCE, || waiting(&mut watcher, "l") == 1);
        drop(stream);
        wait_until("nobody waits", Duration::from_secs(5), || waiting(&mut watcher, "l") == 0);
    }
}

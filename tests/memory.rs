//! The limit for memory: a write that would pass it is refused, before it has taken any, by all nodes alike; and what was
//! refused is refused again at every start.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use kvorum::{
    proposal::{Setting, put_setting, put_waiting_call},
    store::{Ticket, level},
};
use support::{
    alone::Alone,
    process::{Cluster, get},
    resp::{Client, encode},
};

const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";

/// A server with a limit.
fn limited(bytes: u64) -> Alone {
    let mut alone = Alone::default();
    set(&mut alone, bytes, false);
    alone
}

fn set(alone: &mut Alone, bytes: u64, is_default: bool) {
    let (mut proposal, digits) = (Vec::new(), bytes.to_string());
    put_setting(&mut proposal, &Setting { name: b"maxmemory", digits: digits.as_bytes(), is_default });
    alone.apply(&[proposal]);
}

/// What costs memory and how it is refused: the commands that make something large of a few bytes, and those whose
/// arguments are large.
#[test]
fn what_would_pass_the_limit_is_refused_and_changes_nothing() {
    let mut alone = limited(1 << 20);
    let large = "x".repeat(500_000);
    let members: Vec<String> =
        (0..3_000).map(|number| format!("member:{number}:{}", "y".repeat(50))).collect();
    assert_eq!(alone.text(&format!("SET large {large}")), "+OK\r\n");
    assert_eq!(alone.text(&format!("SADD set {}", members.join(" "))), ":3000\r\n");
    let digest = alone.machine.digest();
    for line in [
        "SETRANGE k 536870911 x".to_owned(),
        "SETRANGE large 1000000 x".to_owned(),
        "COPY set copy".to_owned(),
        "SUNIONSTORE union set set".to_owned(),
        "SINTERSTORE common set".to_owned(),
        "SDIFFSTORE rest set none".to_owned(),
        format!("SET more {large}{large}"),
        format!("APPEND large {large}{large}"),
        format!("MSET a {large} b {large} c {large}"),
        format!("HSET h f {large}{large}"),
        format!("RPUSH l {large}{large}"),
        format!("ZADD z 1 {large}"),
        format!("FENCE lock 1 SET more {large}{large}"),
    ] {
        let name = line.split(' ').next().unwrap().to_owned();
        assert_eq!(alone.text(&line), OOM, "{name}");
        assert_eq!(alone.machine.digest(), digest, "{name}");
    }
    // What frees memory, and what reads, goes on.
    assert_eq!(alone.text("STRLEN large"), ":500000\r\n");
    assert_eq!(alone.text("SREM set none"), ":0\r\n");
    assert_eq!(alone.text("DEL set"), ":1\r\n");
    assert_eq!(alone.text(&format!("APPEND large {large}")), ":1000000\r\n");
    assert_eq!(alone.text("FLUSHALL"), "+OK\r\n");
    assert_eq!(alone.machine.used_bytes(), limited(1 << 20).machine.used_bytes(), "nothing is left");
}

#[test]
fn a_transaction_that_does_not_fit_does_not_run() {
    let mut alone = limited(1 << 20);
    let half = "x".repeat(600_000);
    for line in
        ["MULTI".to_owned(), "SET small 1".to_owned(), format!("SET a {half}"), format!("SET b {half}")]
    {
        alone.text(&line);
    }
    assert_eq!(alone.text("EXEC"), OOM);
    assert_eq!(alone.text("EXISTS small a b"), ":0\r\n");
    // One whose calls turn out to be larger than they look is refused in part, as any call is that fails.
    for line in ["MULTI", "SET small 1", "SETRANGE a 2000000 x"] {
        alone.text(line);
    }
    assert_eq!(alone.text("EXEC"), format!("*2\r\n+OK\r\n{OOM}"));
}

#[test]
fn a_default_is_taken_once() {
    let mut alone = Alone::default();
    assert_eq!(alone.machine.maxmemory(), None);
    set(&mut alone, 1000, true);
    set(&mut alone, 2000, true);
    assert_eq!(alone.machine.maxmemory(), Some(1000));
    set(&mut alone, 3000, false);
    assert_eq!(alone.machine.maxmemory(), Some(3000));
    set(&mut alone, 0, false);
    assert_eq!(alone.text("SETRANGE k 1000000 x"), ":1000001\r\n", "0 is no limit");
}

#[test]
fn the_cost_of_a_value_is_that_of_its_content() {
    let mut alone = Alone::default();
    let empty = alone.machine.used_bytes();
    let names: Vec<String> = (0..1_000).map(|number| format!("name:{number}")).collect();
    let pairs: Vec<String> = names.iter().map(|name| format!("{name} {name}")).collect();
    let scores: Vec<String> = names.iter().map(|name| format!("1 {name}")).collect();
    for (fill, drain) in [
        (format!("MSET {}", pairs.join(" ")), format!("DEL {}", names.join(" "))),
        (format!("HSET h {}", pairs.join(" ")), format!("HDEL h {}", names.join(" "))),
        (format!("SADD s {}", names.join(" ")), "SPOP s 1000".to_owned()),
        (format!("ZADD z {}", scores.join(" ")), "ZPOPMIN z 1000".to_owned()),
        (format!("RPUSH l {}", names.join(" ")), "LPOP l 1000".to_owned()),
        ("SETRANGE k 100000 x".to_owned(), "GETDEL k".to_owned()),
    ] {
        let name = fill.split(' ').next().unwrap().to_owned();
        alone.text(&fill);
        let used = alone.machine.used_bytes() - empty;
        assert!((9_000..400_000).contains(&used), "{name}: {used}");
        alone.text(&fill);
        alone.text(&drain);
        alone.text("DEL l");
        assert_eq!(alone.machine.used_bytes(), empty, "{name}");
    }
}

/// Entries of level 4 are applied by nodes of that level, too: they do not know the request.
#[test]
fn below_its_level_the_setting_is_not_taken() {
    let mut alone = Alone::default();
    alone.level = level::WAITS;
    set(&mut alone, 1000, false);
    assert_eq!(alone.machine.maxmemory(), None);
}

#[test]
fn names_do_not_get_longer_than_fits() {
    let mut alone = limited(1 << 20);
    let long = "x".repeat(1_100_000);
    alone.text("SET k v");
    assert_eq!(alone.text(&format!("RENAME k {long}")), OOM);
    assert_eq!(alone.text(&format!("RENAMENX k {long}")), OOM);
    assert_eq!(alone.text(&format!("RENAME none {long}")), "-ERR no such key\r\n");
    assert_eq!(alone.text("RENAME k longer"), "+OK\r\n");
}

/// A wait that cannot be served for want of memory goes on, and is served when there is room.
#[test]
fn a_wait_that_does_not_fit_goes_on() {
    let mut alone = limited(1 << 20);
    let ticket = Ticket { node: 1, boot: 1, number: 1 };
    let mut waiting = Vec::new();
    put_waiting_call(&mut waiting, ticket, 0, &[b"BLMOVE", b"from", b"to", b"LEFT", b"LEFT", b"0"]);
    alone.apply(&[waiting]);
    let used = alone.machine.used_bytes();
    let filler = (1 << 20) - used - 1_000;
    alone.text(&format!("SET filler {}", "x".repeat(usize::try_from(filler).unwrap())));
    let left = (1 << 20) - alone.machine.used_bytes();
    // It leaves less than BLMOVE asks for.
    let element = usize::try_from(left).unwrap() - 400;
    assert_eq!(alone.text(&format!("RPUSH from {}", "x".repeat(element))), ":1\r\n");
    assert_eq!(alone.text("LLEN from"), ":1\r\n", "it goes on waiting");
    alone.text("DEL filler");
    alone.text("RPUSH from more");
    assert_eq!(alone.text("LLEN to"), ":1\r\n");
}

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

/// The resident memory of a node, in bytes.
fn resident(cluster: &Cluster, node: usize) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", cluster.pid(node).unwrap())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn few_bytes_that_would_take_much_memory_end_no_node() {
    let mut cluster = Cluster::start(3, &["--maxmemory", "64mb"]);
    let mut client = client(&cluster, 0);
    let hostile: Vec<u8> =
        (0..4).flat_map(|number| encode(&["SETRANGE", &format!("k{number}"), "536870911", "x"])).collect();
    // The limit is proposed by the first leader, a moment after it leads.
    let since = Instant::now();
    while client.run("CONFIG GET maxmemory").unwrap() != "*2\n  $\"maxmemory\"\n  $\"67108864\"\n" {
        assert!(since.elapsed() < Duration::from_secs(20), "{}", client.run("CONFIG GET maxmemory").unwrap());
    }
    client.send(&hostile).unwrap();
    for _ in 0..4 {
        assert!(client.receive().unwrap().show().starts_with("-OOM"));
    }
    (0..3).for_each(|node| assert!(resident(&cluster, node) < 400 << 20));
    // Fill it.
    let value = "x".repeat(1 << 20);
    let mut written = 0;
    let refusal = loop {
        let reply = client.call(&["SET", &format!("v{written}"), &value]).unwrap().show();
        if reply != "+OK\n" {
            break reply;
        }
        written += 1;
        assert!(written < 100);
    };
    assert!(refusal.starts_with("-OOM"), "{refusal}");
    assert!((55..64).contains(&written), "{written}");
    let (_, metrics) = get(&format!("http://{}/metrics", cluster.addresses[0].http)).unwrap();
    assert!(metrics.contains("kvorum_memory_limit_bytes 67108864"), "{metrics}");
    assert!(metrics.contains("kvorum_memory_refused_total 5"), "{metrics}");
    // So for locks over HTTP.
    let owner = "o".repeat(60_000);
    let url = format!("http://{}/v1/locks/l", cluster.addresses[0].http);
    let filler = "x".repeat(900_000);
    while client.call(&["RPUSH", "filler", &filler[..20_000]]).unwrap().show().starts_with(':') {}
    let asked = ureq::post(&url).config().http_status_as_error(false).build();
    let mut answer = asked.send_json(serde_json::json!({ "owner": owner, "ttl_ms": 60_000 })).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert_eq!(answer.status(), 507, "{text}");
    assert!(text.contains("urn:kvorum:problem:memory-full"), "{text}");
    // All of them replay that.
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    (0..3).for_each(|node| cluster.wait_ready(node));
    let mut client = self::client(&cluster, 1);
    assert_eq!(client.run("DBSIZE").unwrap(), format!(":{}\n", written + 1));
    assert!(client.call(&["SET", "more", &value]).unwrap().show().starts_with("-OOM"));
    // With another limit it fits.
    assert_eq!(client.run("CONFIG SET maxmemory 80mb timeout 0").unwrap(), "+OK\n");
    assert_eq!(client.call(&["SET", "more", &value]).unwrap().show(), "+OK\n");
    for node in 0..3 {
        let mut client = self::client(&cluster, node);
        client.run("PING").unwrap();
        assert!(client.run("INFO memory").unwrap().contains("maxmemory:83886080"));
    }
    let error = client.run("CONFIG SET timeout 1 maxmemory some").unwrap();
    assert!(error.contains("argument must be a memory value"), "{error}");
    assert_eq!(client.run("CONFIG GET timeout").unwrap(), "*2\n  $\"timeout\"\n  $\"0\"\n");
}

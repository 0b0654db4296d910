//! The change feed of real processes: no gap, no duplicate and the order of the log, over the death of nodes and a
//! change of the node; who is too slow, or comes back too late, is told so and can go on.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use support::{
    process::Cluster,
    resp::{Client, Value, encode},
    transcript::is_empty_message,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// One cluster at a time: the ports of a node that was killed must not be taken by another's connections.
static TURN: Mutex<()> = Mutex::new(());

fn cluster(size: usize, options: &[&str]) -> (MutexGuard<'static, ()>, Cluster) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (turn, Cluster::start(size, options))
}

/// A message: its index, and its events as the texts of their parts; or the error that ends the subscription.
#[derive(Clone, Debug, PartialEq)]
enum Message {
    Events(u64, Vec<Vec<String>>),
    CutOff(u64, String),
}

fn text(value: &Value) -> String {
    match value {
        Value::Bulk(_, Some(bytes)) | Value::Line(_, bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}

fn integer(value: &Value) -> u64 {
    text(value).parse().unwrap_or_else(|_| panic!("{value:?} is no integer"))
}

fn message(value: &Value) -> Message {
    let Value::Aggregate(_, Some(parts)) = value else { panic!("{value:?} is no message") };
    assert_eq!((parts.len(), text(&parts[0]).as_str()), (3, "feed"));
    let index = integer(&parts[1]);
    match &parts[2] {
        Value::Aggregate(_, Some(events)) => {
            let parts = |event: &Value| match event {
                Value::Aggregate(_, Some(parts)) => parts.iter().map(text).collect(),
                other => panic!("{other:?} is no event"),
            };
            Message::Events(index, events.iter().map(parts).collect())
        }
        error => Message::CutOff(index, text(error)),
    }
}

/// The next message; None when the connection is gone.
fn next(client: &mut Client) -> Option<Message> {
    client.receive().ok().map(|value| message(&value))
}

/// Subscribes, and gives the index that is confirmed.
fn subscribe(client: &mut Client, arguments: &str) -> u64 {
    let reply = client.run(&format!("FEED.SUBSCRIBE {arguments}")).unwrap();
    reply.strip_prefix(':').and_then(|index| index.trim().parse().ok()).expect(&reply)
}

/// What is known of a value that a writer has sent: acknowledged, or not known.
type Written = Vec<(String, bool)>;

/// Writes numbered values to a key of its own, to one node after the other, until it is stopped.
fn writer(
    id: usize,
    addresses: Vec<String>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> JoinHandle<Written> {
    std::thread::spawn(move || {
        let (mut written, mut node, mut client) = (Vec::new(), id, None);
        while !stop.load(Relaxed) {
            node = (node + 1) % addresses.len();
            let Ok(connected) = Client::connect(&addresses[node]) else { continue };
            let client = client.insert(connected);
            for _ in 0..20 {
                let value = format!("{id}.{}", written.len());
                let reply = client.call(&["SET", &format!("writer:{id}"), &value]);
                let is_acknowledged = matches!(&reply, Ok(Value::Line(b'+', _)));
                if reply.as_ref().is_ok_and(Value::is_unavailable) {
                    continue;
                }
                written.push((value, is_acknowledged));
                count.fetch_add(1, Relaxed);
                if !is_acknowledged {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        written
    })
}

/// The values of each writer in the order of the events, after a check of the order of the messages.
fn values_of(messages: &[(u64, Vec<Vec<String>>)]) -> BTreeMap<String, Vec<String>> {
    assert!(messages.is_sorted_by(|a, b| a.0 < b.0), "indexes rise, and none comes twice");
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in messages.iter().flat_map(|(_, events)| events) {
        let [key, what, kind, value] = &event[..] else { panic!("{event:?} has other parts") };
        assert_eq!((what.as_str(), kind.as_str()), ("set", "string"));
        values.entry(key.clone()).or_default().push(value.clone());
    }
    values
}

/// Each acknowledged value is told exactly once, in the writer's order; one that is not known at most once, and
/// perhaps late.
fn check(written: &Written, told: &[String]) {
    let unknown: Vec<&String> =
        written.iter().filter(|(_, is_acknowledged)| !is_acknowledged).map(|(value, _)| value).collect();
    let acknowledged: Vec<&String> =
        written.iter().filter(|(_, is_acknowledged)| *is_acknowledged).map(|(value, _)| value).collect();
    let (late, told): (Vec<&String>, Vec<&String>) = told.iter().partition(|value| unknown.contains(value));
    assert!(told == acknowledged, "told {told:?}\nacknowledged {acknowledged:?}");
    let once: BTreeSet<&String> = late.iter().copied().collect();
    assert_eq!(once.len(), late.len(), "told twice: {late:?}");
}

/// Reads until the last message of `until`, which every node will have sooner or later.
fn read_on(client: &mut Client, messages: &mut Vec<(u64, Vec<Vec<String>>)>, until: &str) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while let Some(message) = next(client) {
        assert!(Instant::now() < deadline, "{until} is never told");
        let Message::Events(index, events) = message else { panic!("{message:?}") };
        let is_last = events.iter().any(|event| event[0] == until);
        if is_last {
            return true;
        }
        if !events.is_empty() {
            messages.push((index, events));
        }
    }
    false
}

#[test]
fn a_reader_misses_nothing_when_nodes_die_and_it_goes_elsewhere() {
    let (_turn, mut cluster) = cluster(3, &[]);
    let addresses: Vec<String> = cluster.addresses.iter().map(|address| address.resp.clone()).collect();
    let leader = cluster.leader();
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    let connect = |node: usize| Client::connect(&addresses[node]).unwrap();
    let mut client = connect(first);
    let begin = subscribe(&mut client, "PREFIX writer: KEY end VALUES");
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> =
        (0..3).map(|id| writer(id, addresses.clone(), stop.clone(), count.clone())).collect();
    let wait_for = |more: usize| {
        let (wanted, deadline) = (count.load(Relaxed) + more, Instant::now() + PATIENCE);
        while count.load(Relaxed) < wanted {
            assert!(Instant::now() < deadline, "writing has stopped");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // The reader reads while the leader dies, and until its own node dies too.
    let reader = std::thread::spawn(move || {
        let mut messages = Vec::new();
        assert!(!read_on(&mut client, &mut messages, "end"), "the node lives");
        messages
    });
    wait_for(200);
    cluster.kill(leader);
    wait_for(200);
    cluster.start_node(leader);
    cluster.wait_ready(leader);
    wait_for(100);
    cluster.kill(first);
    let mut messages = reader.join().unwrap();
    assert!(!messages.is_empty());
    wait_for(200);
    let mut client = connect(second);
    let last = messages.last().unwrap().0;
    assert_eq!(subscribe(&mut client, &format!("PREFIX writer: KEY end VALUES FROM {last}")), last);
    wait_for(100);
    stop.store(true, Relaxed);
    let written: Vec<Written> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert_eq!(connect(second).run("SET end 1").unwrap(), "+OK\n");
    assert!(read_on(&mut client, &mut messages, "end"));
    let told = values_of(&messages);
    for (id, written) in written.iter().enumerate() {
        check(written, &told[&format!("writer:{id}")]);
    }
    // Nodes that were killed and replayed their logs tell the same under the same indexes.
    cluster.start_node(first);
    for node in [leader, first] {
        cluster.wait_ready(node);
        let mut again = Vec::new();
        let mut client = connect(node);
        subscribe(&mut client, &format!("PREFIX writer: KEY end VALUES FROM {begin}"));
        assert!(read_on(&mut client, &mut again, "end"));
        assert!(again == messages, "node {} tells something else", node + 1);
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let written = |values: &[(&str, bool)]| -> Written {
        values.iter().map(|(value, is_acknowledged)| ((*value).to_owned(), *is_acknowledged)).collect()
    };
    let written = written(&[("1", true), ("2", false), ("3", true)]);
    let is_found = |told: &str| {
        let told: Vec<String> = told.split(' ').map(str::to_owned).collect();
        let written = written.clone();
        std::panic::catch_unwind(move || check(&written, &told)).is_err()
    };
    assert!(!is_found("1 2 3") && !is_found("1 3"));
    assert!(!is_found("1 3 2"));
    for told in ["1", "3 1", "1 1 3", "1 2 2 3", "1 3 4"] {
        assert!(is_found(told), "{told}");
    }
}

/// Reads messages until the subscription is cut off; gives the last index before, and the lowest to go on from.
fn read_until_cut_off(client: &mut Client, mut last: u64) -> (u64, u64) {
    loop {
        match next(client).expect("the connection lives") {
            Message::Events(index, events) => {
                assert!(index > last, "indexes rise");
                assert!(events.len() < 2, "one SET an entry");
                last = index;
            }
            Message::CutOff(index, error) => {
                assert_eq!(index, last, "the last index that was given");
                let oldest = error.strip_prefix("COMPACTED the history begins after index ").expect(&error);
                let (oldest, rest) = oldest.split_once(',').unwrap();
                assert_eq!(rest, format!(" and what comes after index {last} was asked for"));
                return (last, oldest.parse().unwrap());
            }
        }
    }
}

#[test]
fn a_reader_that_is_too_slow_is_cut_off_and_can_go_on() {
    let (_turn, cluster) = cluster(1, &["--feed-history-bytes", "64kb", "--feed-value-bytes", "32kb"]);
    let address = &cluster.addresses[0];
    let mut reader = Client::connect(&address.resp).unwrap();
    let begin = subscribe(&mut reader, "VALUES");
    // Reads its events, but none was for it: so it is not slow.
    let mut quiet = Client::connect(&address.resp).unwrap();
    subscribe(&mut quiet, "KEY end VALUES");
    let http = events_of(&address.http, "/v1/feed?values=true", None);
    // More than sockets hold.
    let mut writer = Client::connect(&address.resp).unwrap();
    let set = encode(&["SET", "a", &"x".repeat(16 << 10)]);
    for _ in 0..1_500 {
        writer.send(&set).unwrap();
        assert_eq!(writer.receive().unwrap().show(), "+OK\n");
    }
    let (last, oldest) = read_until_cut_off(&mut reader, begin);
    assert!(last < oldest);
    // The connection is as any other again.
    assert_eq!(reader.run("EXISTS a").unwrap(), ":1\n");
    let refused = reader.run(&format!("FEED.SUBSCRIBE FROM {last}")).unwrap();
    assert!(
        refused.starts_with(&format!("-COMPACTED the history begins after index {oldest}, ")),
        "{refused}"
    );
    assert_eq!(subscribe(&mut reader, &format!("FROM {oldest}")), oldest);
    let Some(Message::Events(index, events)) = next(&mut reader) else { panic!("nothing is told") };
    assert!(index > oldest && events[0][..3] == ["a", "set", "string"]);

    assert_eq!(writer.run("SET end 1").unwrap(), "+OK\n");
    let end = loop {
        match next(&mut quiet).unwrap() {
            Message::Events(_, events) if events.is_empty() => {}
            Message::Events(index, events) => {
                assert_eq!(events, [["end", "set", "string", "1"]]);
                break index;
            }
            cut_off => panic!("{cut_off:?}"),
        }
    };
    // The same over HTTP: what is told ends with an error event, and coming back with a refusal.
    let (mut last, mut error) = (0, None);
    for event in http {
        match event.name.as_str() {
            "error" => error = Some(event.data),
            _ => last = event.id.unwrap(),
        }
    }
    let error = error.expect("the stream was cut off");
    assert_eq!((&error["error"], &error["last_index"]), (&"compacted".into(), &last.into()));
    let oldest = error["oldest_index"].as_u64().unwrap();
    assert!(last < oldest && oldest < end);
    let refused = request(&address.http, "/v1/feed", Some(last));
    assert!(refused.starts_with("HTTP/1.1 410") || refused.starts_with("HTTP/1.0 410"), "{refused}");
    let problem: serde_json::Value = serde_json::from_str(refused.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert!(
        problem["oldest_index"].as_u64() >= Some(oldest) && problem["type"] == "urn:kvorum:problem:compacted"
    );
}

#[test]
fn the_history_reaches_back_to_the_checkpoint_or_the_snapshot() {
    let (_turn, mut cluster) = cluster(1, &["--log-entries-kept", "0"]);
    let connect = |cluster: &Cluster| Client::connect(&cluster.addresses[0].resp).unwrap();
    let mut client = connect(&cluster);
    let begin = subscribe(&mut client, "");
    let mut writer = connect(&cluster);
    writer.run("SET a 1").unwrap();
    writer.run("SET b 2").unwrap();
    let indexes: Vec<u64> = (0..2)
        .map(|_| match next(&mut client).unwrap() {
            Message::Events(index, _) => index,
            cut_off => panic!("{cut_off:?}"),
        })
        .collect();
    // Nothing is in a checkpoint yet: all is there again.
    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0);
    let mut client = connect(&cluster);
    assert_eq!(subscribe(&mut client, &format!("FROM {begin}")), begin);
    for (index, key) in indexes.iter().zip(["a", "b"]) {
        let events = vec![vec![key.to_owned(), "set".into(), "string".into()]];
        assert_eq!(next(&mut client).unwrap(), Message::Events(*index, events));
    }
    // What lies before a checkpoint is not; who had all of it goes on.
    cluster.purge(0);
    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0);
    let mut client = connect(&cluster);
    let refused = client.run(&format!("FEED.SUBSCRIBE FROM {}", indexes[0])).unwrap();
    let expected = format!("-COMPACTED the history begins after index {}, ", indexes[1]);
    assert!(refused.starts_with(&expected), "{refused}");
    assert_eq!(subscribe(&mut client, &format!("FROM {}", indexes[1])), indexes[1]);
    connect(&cluster).run("SET c 3").unwrap();
    let told_next = |client: &mut Client| loop {
        match next(client).unwrap() {
            Message::Events(_, events) if events.is_empty() => {}
            Message::Events(index, events) => return (index, events),
            cut_off => panic!("{cut_off:?}"),
        }
    };
    let (index, events) = told_next(&mut client);
    assert_eq!(events, [["c", "set", "string"]]);
    // A node that got a snapshot: the history begins after it.
    cluster.purge(0);
    let joined = cluster.join(0);
    cluster.wait_ready(joined);
    cluster.wait_voter(joined);
    let log = std::fs::read_to_string(cluster.log_of(0)).unwrap();
    assert!(log.contains("sending a snapshot"), "the new node got the whole log");
    let mut client = Client::connect(&cluster.addresses[joined].resp).unwrap();
    let refused = client.run(&format!("FEED.SUBSCRIBE FROM {}", index - 1)).unwrap();
    assert!(
        refused.starts_with(&format!("-COMPACTED the history begins after index {index}, ")),
        "{refused}"
    );
    assert_eq!(subscribe(&mut client, &format!("FROM {index}")), index);
    connect(&cluster).run("SET d 4").unwrap();
    assert_eq!(told_next(&mut client).1, [["d", "set", "string"]]);
}

#[test]
fn a_quiet_reader_is_told_how_far_the_log_is() {
    let (_turn, cluster) = cluster(1, &[]);
    let mut client = Client::connect(&cluster.addresses[0].resp).unwrap();
    let begin = subscribe(&mut client, "KEY none");
    Client::connect(&cluster.addresses[0].resp).unwrap().run("SET a 1").unwrap();
    let value = client.receive().unwrap();
    assert!(is_empty_message(&value), "{value:?}");
    assert!(matches!(message(&value), Message::Events(index, _) if index > begin));
    // Tools tell those who listen from the others.
    let mut other = Client::connect(&cluster.addresses[0].resp).unwrap();
    let listed = |client: &mut Client, kind: &str| {
        let Value::Bulk(_, Some(text)) = client.call(&["CLIENT", "LIST", "TYPE", kind]).unwrap() else {
            panic!("a list is text")
        };
        String::from_utf8(text).unwrap().lines().filter(|line| line.contains(" flags=P ")).count()
    };
    assert_eq!((listed(&mut other, "pubsub"), listed(&mut other, "normal")), (1, 0));
    assert_eq!(other.run("CLIENT KILL TYPE normal").unwrap(), ":0\n");
    assert_eq!(other.run("CLIENT KILL TYPE pubsub").unwrap(), ":1\n");
}

/// One server-sent event.
#[derive(Debug, Default)]
struct SentEvent {
    id: Option<u64>,
    name: String,
    data: serde_json::Value,
}

/// A stream of them.
struct SentEvents(BufReader<TcpStream>);

fn send(address: &str, path: &str, last_event_id: Option<u64>) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let header = last_event_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
    // HTTP/1.0, so that the body comes as it is, without chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{header}\r\n").unwrap();
    stream
}

fn request(address: &str, path: &str, last_event_id: Option<u64>) -> String {
    let mut answer = String::new();
    send(address, path, last_event_id).read_to_string(&mut answer).unwrap();
    answer
}

fn events_of(address: &str, path: &str, last_event_id: Option<u64>) -> SentEvents {
    let mut stream = BufReader::new(send(address, path, last_event_id));
    let mut header = String::new();
    while !header.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut header).unwrap() > 0, "{header}");
    }
    assert!(header.contains(" 200 ") && header.contains("content-type: text/event-stream"), "{header}");
    SentEvents(stream)
}

impl Iterator for SentEvents {
    type Item = SentEvent;

    /// The next that has data; None at the end of the stream.
    fn next(&mut self) -> Option<SentEvent> {
        let mut event = SentEvent::default();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", id)) => event.id = Some(id.parse().unwrap()),
                Some(("event", name)) => event.name = name.into(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                _ if line == "\n" && !event.data.is_null() => return Some(event),
                _ => {}
            }
        }
    }
}

#[test]
fn the_feed_comes_over_http_too() {
    let (_turn, cluster) = cluster(1, &[]);
    let address = &cluster.addresses[0];
    let mut writer = Client::connect(&address.resp).unwrap();
    writer.run("SET before 1").unwrap();
    let mut events = events_of(&address.http, "/v1/feed?prefix=a&key=z&prefix=%C3%A4&values=true", None);
    writer.run("SET b 1").unwrap();
    for line in [
        "SET a \"\\xff\\x00\"",
        "RPUSH a:list x \"\\xfe\"",
        "HSET a:hash f v",
        "SADD a:set m",
        "ZADD z 1.5 m +inf n",
        "SETRANGE a 5000 x",
        "SET \"\\xc3\\xa4\" 1",
        "DEL z b",
        "FLUSHALL",
    ] {
        writer.run(line).unwrap();
    }
    let mut told = Vec::new();
    while told.len() < 9 {
        let event = events.next().unwrap();
        assert_eq!(event.data["index"].as_u64(), event.id);
        if event.data["events"] != serde_json::json!([]) {
            told.push((event.id.unwrap(), event.data["events"].clone()));
        }
    }
    let shown: Vec<String> = told.iter().map(|(_, events)| events.to_string()).collect();
    assert_eq!(
        shown,
        [
            r#"[{"key":"a","type":"string","value":{"base64":"/wA="},"what":"set"}]"#,
            r#"[{"key":"a:list","type":"list","value":["x",{"base64":"/g=="}],"what":"rpush"}]"#,
            r#"[{"key":"a:hash","type":"hash","value":[["f","v"]],"what":"hset"}]"#,
            r#"[{"key":"a:set","type":"set","value":["m"],"what":"sadd"}]"#,
            r#"[{"key":"z","type":"zset","value":[["m",1.5],["n","inf"]],"what":"zadd"}]"#,
            r#"[{"key":"a","omitted":true,"type":"string","what":"setrange"}]"#,
            r#"[{"key":"ä","type":"string","value":"1","what":"set"}]"#,
            r#"[{"key":"z","type":null,"what":"del"}]"#,
            r#"[{"key":null,"type":null,"what":"flushall"}]"#,
        ]
    );
    // The id wins over the address, which a browser asks for again as it was.
    let path = format!("/v1/feed?prefix=a&from={}", told[0].0);
    let mut again = events_of(&address.http, &path, Some(told[2].0));
    assert_eq!(again.next().unwrap().id, Some(told[2].0));
    let event = again.next().unwrap();
    assert_eq!((event.id, event.data["events"].to_string()), {
        (Some(told[3].0), r#"[{"key":"a:set","type":"set","what":"sadd"}]"#.to_owned())
    });
    for (path, status) in
        [("/v1/feed?from=x", " 422 "), ("/v1/feed?db=16", " 422 "), ("/v1/feed?like=a", " 422 ")]
    {
        let answer = request(&address.http, path, None);
        assert!(answer.contains(status) && answer.contains("application/problem+json"), "{answer}");
    }
}

/// A browser knows no more than the ids that it was given, and comes back without one that it was not.
#[test]
fn a_stream_that_breaks_before_its_first_event_has_no_gap() {
    let (_turn, cluster) = cluster(1, &[]);
    let address = &cluster.addresses[0];
    let mut writer = Client::connect(&address.resp).unwrap();
    let begin = subscribe(&mut Client::connect(&address.resp).unwrap(), "");
    let asked = Instant::now();
    let mut events = events_of(&address.http, "/v1/feed?prefix=cfg:", None);
    let first = events.next().unwrap();
    assert!(asked.elapsed() < Duration::from_millis(500), "after {:?}", asked.elapsed());
    assert!(first.id >= Some(begin), "{first:?}");
    assert_eq!(first.data["events"], serde_json::json!([]));
    drop(events);
    writer.run("SET cfg:a 1").unwrap();
    let mut events = events_of(&address.http, "/v1/feed?prefix=cfg:", first.id);
    assert_eq!(events.next().unwrap().id, first.id);
    let event = events.find(|event| event.data["events"] != serde_json::json!([])).unwrap();
    assert_eq!(event.data["events"][0]["key"], "cfg:a");
}

#[test]
fn the_feed_can_be_turned_off() {
    let (_turn, cluster) = cluster(1, &["--feed-history-bytes", "0"]);
    let address = &cluster.addresses[0];
    let mut client = Client::connect(&address.resp).unwrap();
    let reply = client.run("FEED.SUBSCRIBE").unwrap();
    assert_eq!(reply, "-ERR the change feed is off on this node: feed-history-bytes is 0\n");
    assert_eq!(client.run("SET a 1").unwrap(), "+OK\n");
    assert!(request(&address.http, "/v1/feed", None).contains(" 404 "));
}

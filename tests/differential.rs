//! The same random commands go to a real redis-server and to Kvorum, and the replies are compared byte by byte.
//! Skipped, with a word, where redis-server is not installed.
//!
//! Some commands are made by one who knows how things are kept. A pipeline that costs Kvorum more time on a processor than
//! any should is a difference too.
//!
//! `KVORUM_SEED=n` replays a run, `COMMANDS=n` sets its length. After a difference both are emptied and the run
//! goes on, so that one run shows several; each is shown with the commands before it.
//!
//! What is not compared byte by byte:
//! - replies without a promised order (SMEMBERS, HGETALL, KEYS ...): compared sorted;
//! - remaining times and deadlines: may differ by five seconds, as the two clocks do;
//! - HELLO: its reply names the connection and the server.
//!
//! - a score of -0, which Redis keeps in large sets and not in small ones: the same as 0;
//! - scores in ZSCAN: compared as numbers, as Redis writes them in the way it stores them;
//! - errors that repeat an argument: compared up to the first byte that is not ASCII;
//! - what chance decides, and cursors: only the kind and length of the reply and the text of errors.
//!
//! Not sent: SPOP that would choose, hexadecimal fractions as numbers (`0x1p3`, which only Redis reads), what
//! Kvorum has from later versions than 7.0, and OBJECT ENCODING, as the encodings are Kvorum's own.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::VecDeque;

use support::{
    grammar::Grammar,
    process::Cluster,
    redis_server::RedisServer,
    resp::{Client, Value, encode, escape},
    seed,
    watchdog::CALL_MS_MAX,
};

const COMMANDS: usize = 20_000;
/// Commands shown before a difference.
const SHOWN: usize = 20;
/// Differences after which a run ends.
const DIFFERENCES_MAX: usize = 10;
/// How far two clocks may be apart.
const CLOCKS_MS_MAX: i64 = 5_000;
const CONNECTIONS: usize = 3;
/// What a command of a pipeline may take beside one call's limit.
const COMMAND_MS: u64 = 10;

const UNORDERED: &[&str] = &[
    "KEYS", "SCAN", "SMEMBERS", "SINTER", "SUNION", "SDIFF", "SSCAN", "HGETALL", "HKEYS", "HVALS", "HSCAN",
    "SPOP",
];
/// Only the kind of these replies is compared, and the text of their errors.
const BY_CHANCE: &[&str] = &["HELLO", "SRANDMEMBER", "HRANDFIELD", "ZRANDMEMBER", "RANDOMKEY"];
const TIMES: &[&str] = &["TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"];

/// How two replies are compared.
#[derive(Clone, Copy, Debug, Default)]
struct How {
    unordered: bool,
    times: bool,
    numbers: bool,
    zeros: bool,
    only_kind: bool,
    is_step: bool,
}

impl How {
    fn of(argv: &[Vec<u8>]) -> How {
        let name = String::from_utf8_lossy(&argv[0]).to_ascii_uppercase();
        let is_whole = || {
            argv.iter().any(|argument| argument == b"0") && argv.iter().any(|argument| argument == b"100000")
        };
        let by_chance = match &name[..] {
            "SCAN" | "HSCAN" | "SSCAN" | "ZSCAN" => !is_whole(),
            _ => BY_CHANCE.contains(&&name[..]),
        };
        How {
            unordered: UNORDERED.contains(&&name[..]),
            times: TIMES.contains(&&name[..]),
            numbers: name == "ZSCAN",
            zeros: name.starts_with('Z'),
            only_kind: by_chance,
            is_step: name.ends_with("SCAN") || name == "HELLO",
        }
    }

    fn same(self, theirs: &Value, ours: &Value) -> bool {
        if self.only_kind && !matches!(theirs, Value::Line(b'-', _)) {
            let len = |value: &Value| match value {
                // A cursor and what was found.
                Value::Aggregate(_, Some(elements)) if !self.is_step => elements.len(),
                _ => 0,
            };
            let kind = std::mem::discriminant::<Value>;
            return (kind(theirs), len(theirs)) == (kind(ours), len(ours));
        }
        if self.unordered {
            let how = How { unordered: false, ..self };
            return how.same(&theirs.clone().sorted(), &ours.clone().sorted());
        }
        match (theirs, ours) {
            (Value::Aggregate(kind, Some(theirs)), Value::Aggregate(other, Some(ours))) => {
                kind == other
                    && theirs.len() == ours.len()
                    && theirs.iter().zip(ours).all(|(theirs, ours)| self.same(theirs, ours))
            }
            (Value::Line(b':', theirs), Value::Line(b':', ours)) if self.times => {
                let number = |text: &[u8]| String::from_utf8_lossy(text).parse::<i64>().unwrap();
                let (theirs, ours) = (number(theirs), number(ours));
                theirs == ours || theirs.min(ours) > 1_000 && theirs.abs_diff(ours) <= CLOCKS_MS_MAX as u64
            }
            (Value::Line(b'-', theirs), Value::Line(b'-', ours)) => {
                theirs == ours || plain(ours) != ours && theirs.starts_with(plain(ours))
            }
            (Value::Bulk(_, Some(theirs)), Value::Bulk(_, Some(ours))) if self.numbers => {
                let number = |text: &[u8]| String::from_utf8_lossy(text).parse::<f64>().ok();
                theirs == ours || number(theirs).is_some_and(|theirs| Some(theirs) == number(ours))
            }
            (Value::Bulk(_, Some(theirs)) | Value::Line(b',', theirs), _)
                if self.zeros && theirs == b"-0" =>
            {
                matches!(ours, Value::Bulk(_, Some(ours)) | Value::Line(b',', ours) if ours == b"0" || ours == b"-0")
            }
            _ => theirs == ours,
        }
    }
}

/// The text of an error up to what is no text.
fn plain(error: &[u8]) -> &[u8] {
    error.split(|byte| *byte == 0 || *byte >= 0x80).next().unwrap_or_default()
}

/// Whether the replies of EXEC are the same, each as its command's.
fn same_transaction(queued: &[How], theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Aggregate(b'*', Some(theirs)), Value::Aggregate(b'*', Some(ours))) => {
            theirs.len() == queued.len()
                && ours.len() == queued.len()
                && queued
                    .iter()
                    .zip(theirs.iter().zip(ours))
                    .all(|(how, (theirs, ours))| how.same(theirs, ours))
        }
        _ => theirs == ours,
    }
}

/// One connection to each of the two.
struct Pair {
    theirs: Client,
    ours: Client,
    /// How the replies of EXEC are compared: as those of what was queued.
    queued: Vec<How>,
    /// MULTI was sent.
    in_transaction: bool,
}

impl Pair {
    /// Takes HELLO out of transactions: in them, Kvorum answers in the version that they began with.
    fn leave_out(&mut self, commands: &mut Vec<Vec<Vec<u8>>>) {
        commands.retain(|argv| {
            match argv[0].to_ascii_uppercase().as_slice() {
                b"MULTI" => self.in_transaction = true,
                b"EXEC" => self.in_transaction = false,
                b"DISCARD" | b"RESET" if argv.len() == 1 => self.in_transaction = false,
                b"HELLO" => return !self.in_transaction,
                _ => {}
            }
            true
        });
    }
}

/// How long a process has been on processors.
fn processor_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which may have blanks in it: user and system time are the 12th and 13th field, in ticks of 10 ms.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// A run: both servers, and what was sent.
struct Run<'a> {
    addresses: [&'a str; 2],
    /// Kvorum's process.
    pid: u32,
    pairs: Vec<Pair>,
    sent: VecDeque<String>,
    count: usize,
    differences: Vec<String>,
}

fn line(connection: usize, argv: &[Vec<u8>]) -> String {
    let words: Vec<String> = argv
        .iter()
        .map(|argument| {
            let text = escape(argument);
            let is_plain = !text.is_empty() && !text.contains([' ', '\\']);
            if is_plain { text } else { format!("\"{text}\"") }
        })
        .collect();
    format!("{connection}> {}", words.join(" "))
}

impl<'a> Run<'a> {
    fn new(addresses: [&'a str; 2], pid: u32) -> Run<'a> {
        let (pairs, sent, differences) = Default::default();
        let mut run = Run { addresses, pid, pairs, sent, count: 0, differences };
        run.begin_again();
        run
    }

    /// New connections to two empty servers.
    fn begin_again(&mut self) {
        self.sent.clear();
        self.pairs = (0..CONNECTIONS)
            .map(|_| {
                let [theirs, ours] = self.addresses.map(|address| Client::connect(address).unwrap());
                Pair { theirs, ours, queued: Vec::new(), in_transaction: false }
            })
            .collect();
        for pair in &mut self.pairs {
            pair.theirs.call(&["FLUSHALL"]).unwrap();
            pair.ours.call(&["FLUSHALL"]).unwrap();
        }
    }

    /// Sends a pipeline to both and compares. False when they differ.
    fn pipeline(&mut self, connection: usize, commands: &[Vec<Vec<u8>>]) -> bool {
        let bytes: Vec<u8> = commands.iter().flat_map(|argv| encode(argv)).collect();
        let on_processor = processor_ms(self.pid);
        let pair = &mut self.pairs[connection];
        pair.theirs.send(&bytes).unwrap();
        pair.ours.send(&bytes).unwrap();
        let mut fits = true;
        for argv in commands {
            self.count += 1;
            let name = String::from_utf8_lossy(&argv[0]).to_ascii_uppercase();
            self.sent.push_back(line(connection, argv));
            if self.sent.len() > SHOWN {
                self.sent.pop_front();
            }
            let theirs = pair.theirs.receive();
            let ours = pair.ours.receive();
            let how = How::of(argv);
            let is_same = match (&theirs, &ours) {
                (Ok(theirs), Ok(ours)) if name == "EXEC" => same_transaction(&pair.queued, theirs, ours),
                (Ok(theirs), Ok(ours)) => how.same(theirs, ours),
                _ => false,
            };
            match &theirs {
                Ok(Value::Line(b'+', text)) if text == b"QUEUED" => pair.queued.push(how),
                Ok(Value::Line(b'-', _)) if name != "EXEC" => {}
                _ if matches!(&name[..], "MULTI" | "EXEC" | "DISCARD" | "RESET") => pair.queued.clear(),
                _ => {}
            }
            if !is_same {
                let show = |reply: &std::io::Result<Value>| match reply {
                    Ok(reply) => reply.show(),
                    Err(error) => format!("{error}\n"),
                };
                self.differences.push(format!(
                    "after {} commands:\n{}\nRedis:\n{}Kvorum:\n{}",
                    self.count,
                    Vec::from(self.sent.clone()).join("\n"),
                    show(&theirs),
                    show(&ours)
                ));
                fits = false;
                break;
            }
        }
        let taken_ms = processor_ms(self.pid) - on_processor;
        if taken_ms > *CALL_MS_MAX + COMMAND_MS * commands.len() as u64 {
            let sent = Vec::from(self.sent.clone()).join("\n");
            self.differences
                .push(format!("{taken_ms} ms on a processor, after {} commands:\n{sent}", self.count));
            fits = false;
        }
        fits
    }

    /// Compares all that both hold.
    fn sweep(&mut self) -> bool {
        let words = |line: &str| line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        let mut commands = vec![words("RESET")];
        for db in ["0", "1", "2", "3", "15"] {
            commands.extend([vec![b"SELECT".to_vec(), db.into()], words("DBSIZE"), words("KEYS *")]);
            for family in ["s", "l", "h", "t", "z"] {
                for number in 0..4 {
                    // Of the four, the one that fits the type shows the content; the others show the error.
                    for all in
                        ["GET K", "LRANGE K 0 -1", "HGETALL K", "SMEMBERS K", "ZRANGE K 0 -1 WITHSCORES"]
                    {
                        commands.push(words(&all.replace('K', &format!("{family}{number}"))));
                    }
                    commands.push(words(&format!("PEXPIRETIME {family}{number}")));
                }
            }
        }
        commands.push(words("RESET"));
        self.pipeline(0, &commands)
    }
}

#[test]
fn kvorum_answers_as_redis_does() {
    let Some(redis) = RedisServer::start() else { return };
    let cluster = Cluster::start(1, &[]);
    let seed = seed("differential");
    let length =
        std::env::var("COMMANDS").map_or(COMMANDS, |text| text.parse().expect("COMMANDS is a number"));
    let mut grammar = Grammar::new(seed);
    let mut run = Run::new([&redis.address, &cluster.addresses[0].resp], cluster.pid(0).unwrap());
    let mut swept = 0;
    while run.count < length && run.differences.len() < DIFFERENCES_MAX {
        let connection = grammar.random.usize(..CONNECTIONS);
        let size = if grammar.random.bool() { 1 } else { grammar.random.usize(1..=30) };
        let mut commands: Vec<_> = (0..size).map(|_| grammar.command()).collect();
        run.pairs[connection].leave_out(&mut commands);
        let mut fits = run.pipeline(connection, &commands);
        if fits && run.count > swept + 3_000 {
            fits = run.sweep();
            swept = run.count;
            run.begin_again();
        }
        if !fits {
            run.begin_again();
        }
    }
    assert!(
        run.differences.is_empty(),
        "KVORUM_SEED={seed}: {} differences\n\n{}",
        run.differences.len(),
        run.differences.join("\n----\n")
    );
}

#[test]
fn the_comparison_bites() {
    let value = |text: &str| Value::read(&mut text.as_bytes()).unwrap();
    let cases = [
        ("GET", "$1\r\na\r\n", "$1\r\na\r\n", true),
        ("GET", "$1\r\na\r\n", "$1\r\nb\r\n", false),
        ("GET", "$-1\r\n", "_\r\n", false),
        ("LRANGE", "*2\r\n:1\r\n:2\r\n", "*2\r\n:2\r\n:1\r\n", false),
        ("SMEMBERS", "*2\r\n:1\r\n:2\r\n", "*2\r\n:2\r\n:1\r\n", true),
        ("SMEMBERS", "*2\r\n:1\r\n:2\r\n", "*2\r\n:2\r\n:2\r\n", false),
        ("TTL", ":10000\r\n", ":9999\r\n", true),
        ("TTL", ":-1\r\n", ":-2\r\n", false),
        ("PTTL", ":100000\r\n", ":9000\r\n", false),
        ("HELLO", "-ERR a\r\n", "-ERR b\r\n", false),
    ];
    for (name, theirs, ours, is_same) in cases {
        assert_eq!(
            How::of(&[name.into()]).same(&value(theirs), &value(ours)),
            is_same,
            "{name} {theirs:?} {ours:?}"
        );
    }
}

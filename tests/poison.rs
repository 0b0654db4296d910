//! No call takes long, on whatever it is called: in apply it would take as long on every node, and again at every start.
//! One test for each way that was found, on a machine whose cluster has no hash key, as one that had data before there was
//! such a thing. Entries are watched as a whole.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum::{
    machine::Machine,
    proposal::{Call, put_call, put_transaction, put_waiting_call},
    store::{Set, Ticket, hash_of, level, slot_of},
};
use support::{
    alone::{Alone, apply_at},
    hostile::{colliding, lopsided},
    watchdog::watched,
};

/// A server without a hash key, with a watch over each call.
struct Old(Alone);

impl Old {
    fn new() -> Old {
        Old(Alone::without_hash_key())
    }

    fn run(&mut self, argv: &[&[u8]]) -> Vec<u8> {
        let text = || argv.iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>().join(" ");
        watched(text(), || self.0.run(argv))
    }

    fn line(&mut self, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        String::from_utf8_lossy(&self.run(&words)).into_owned()
    }

    fn words(&mut self, first: &[&str], names: &[Vec<u8>]) -> Vec<u8> {
        let first = first.iter().map(|word| word.as_bytes());
        self.run(&first.chain(names.iter().map(Vec::as_slice)).collect::<Vec<_>>())
    }

    /// One entry of these calls, whose replies nobody waits for.
    fn entry(&mut self, what: &str, calls: impl Iterator<Item = String>) {
        let mut bytes = Vec::new();
        for line in calls {
            put_call(&mut bytes, 0, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        }
        watched(what, || self.0.apply(&[bytes]));
    }

    /// A set and a hash of 120 names with one beginning of their hashes, in the forms of large ones.
    fn fill(&mut self) {
        let names: Vec<_> = (0..129).map(lopsided).collect();
        self.words(&["DEL", "s", "h"], &[]);
        self.words(&["SADD", "s"], &names);
        self.words(&["SREM", "s"], &names[120..]);
        let pairs: Vec<_> = names.iter().flat_map(|name| [name.clone(), b"v".to_vec()]).collect();
        self.words(&["HSET", "h"], &pairs);
        self.words(&["HDEL", "h"], &names[120..]);
    }
}

/// Elements of an array in a reply, by its first line.
fn count(reply: &str) -> usize {
    reply[1..].split('\r').next().unwrap().parse().unwrap()
}

#[test]
fn choices_end() {
    let mut old = Old::new();
    for wanted in (0..=41).chain([60, 119, 120, 121]) {
        old.fill();
        let expected = wanted.min(120);
        assert_eq!(count(&old.line(&format!("SRANDMEMBER s {wanted}"))), expected);
        assert_eq!(count(&old.line(&format!("HRANDFIELD h {wanted}"))), expected);
        assert_eq!(count(&old.line(&format!("SPOP s {wanted}"))), expected);
        assert_eq!(old.line("SCARD s"), format!(":{}\r\n", 120 - expected));
    }
    old.line("SRANDMEMBER h -131072");
    old.line("HRANDFIELD h -131072");
}

/// Each member of such a set comes about as often as another, by whatever command.
#[test]
fn choices_are_even() {
    let mut old = Old::new();
    for command in ["SRANDMEMBER s", "SRANDMEMBER s 1", "SRANDMEMBER s 30", "HRANDFIELD h 30", "SPOP s 30"] {
        let mut counts = vec![0; 120];
        for _ in 0..400 {
            if command == "SPOP s 30" || counts.iter().sum::<usize>() == 0 {
                old.fill();
            }
            let reply = old.line(command);
            for (number, seen) in counts.iter_mut().enumerate() {
                let name = String::from_utf8(lopsided(number)).unwrap();
                *seen += usize::from(reply.contains(&format!("\r\n{name}\r\n")));
            }
        }
        let mean = counts.iter().sum::<usize>() as f64 / 120.0;
        let most = (mean + 6.0 * mean.sqrt()) as usize;
        assert!(counts.iter().all(|count| *count < most), "{command}: {counts:?}");
        assert!(mean < 20.0 || counts.iter().all(|count| *count > 0), "{command}: {counts:?}");
    }
}

/// An entry that stood in a log when nobody could apply it ends too, by the rule of its level.
#[test]
fn a_poisoned_log_is_applied() {
    let machine = Machine::new(16);
    let (names, mut bytes) = ((0..129).map(lopsided).collect::<Vec<_>>(), Vec::new());
    let call = |out: &mut Vec<u8>, first: &[&[u8]], names: &[Vec<u8>]| {
        let argv: Vec<_> = first.iter().copied().chain(names.iter().map(Vec::as_slice)).collect();
        put_call(out, 0, &argv);
    };
    call(&mut bytes, &[b"SADD", b"s"], &names);
    call(&mut bytes, &[b"SREM", b"s"], &names[120..]);
    call(&mut bytes, &[b"SPOP", b"s", b"40"], &[]);
    apply_at(&machine, 1, 1, 1, (level::FIRST, None), &[bytes]);
    let sizes = machine.read(0, 0, 0, |view| view.value::<Set>(b"s").unwrap().unwrap().len());
    assert_eq!(sizes, 80);
}

#[test]
fn names_with_one_hash_are_found_and_die() {
    let place = |number| (hash_of(&colliding(number)), slot_of(&colliding(number)));
    assert!((0..100).all(|number| colliding(number).len() == 32 && place(number) == place(0)));
    let mut old = Old::new();
    let deadline = (old.0.now_ms + 1_000).to_string();
    for part in (0..12_000).collect::<Vec<_>>().chunks(500) {
        let mut bytes = Vec::new();
        for number in part {
            put_call(&mut bytes, 0, &[b"SET", &colliding(*number), b"v", b"PXAT", deadline.as_bytes()]);
        }
        watched("500 times SET of names with one hash", || old.0.apply(&[bytes]));
    }
    old.words(&["SADD", "s"], &(0..2_000).map(colliding).collect::<Vec<_>>());
    old.run(&[b"PERSIST", &colliding(7)]);
    assert_eq!(old.run(&[b"GET", &colliding(11_999)]), b"$1\r\nv\r\n");
    assert_eq!(old.line("DBSIZE"), ":12001\r\n");
    old.0.now_ms += 1_001;
    for _ in 0..12 {
        watched("1,000 keys with one hash die", || old.0.apply(&[]));
    }
    assert_eq!(old.line("DBSIZE"), ":2\r\n");
}

/// With a key, the same names are spread like any others.
#[test]
fn with_a_hash_key_names_do_not_fall_together() {
    let mut alone = Alone::default();
    for number in 0..300 {
        alone.run(&[b"HSET", b"h", &colliding(number), b"v"]);
        alone.run(&[b"SET", &colliding(number), b"v"]);
    }
    for scan in ["HSCAN h 0 COUNT 1", "SCAN 0 COUNT 1"] {
        let reply = alone.text(scan);
        assert!(reply.starts_with("*2\r\n$") && reply.lines().nth(3).is_some(), "{reply}");
        assert!(count(&reply[reply[1..].find('*').unwrap() + 1..]) <= 2, "{reply}");
    }
}

#[test]
fn leases_that_run_out_together_end_together() {
    let mut old = Old::new();
    const HOLDERS: usize = 1_500;
    old.entry("leases", (0..HOLDERS).map(|number| format!("LEASE.GRANT PX 60000 ID lease:{number}")));
    for part in (0..HOLDERS).collect::<Vec<_>>().chunks(100) {
        let acquire = |number: &usize| format!("LOCK.ACQUIRE lk owner:{number} LEASE lease:{number} SHARED");
        old.entry("a hundred holders with leases more", part.iter().map(acquire));
    }
    assert!(old.line("LOCK.ACQUIRE lk other PX 60000 SHARED").starts_with('*'));
    old.0.now_ms += 60_001;
    watched("1,000 leases run out", || old.0.apply(&[]));
    watched("the others run out", || old.0.apply(&[]));
    assert_eq!(old.line("EXISTS lk lease:0 lease:1499"), ":0\r\n");
}

#[test]
fn what_a_freed_semaphore_grants_is_not_searched_for_each_time() {
    let mut old = Old::new();
    old.line("SEM.ACQUIRE sem first PERMITS 5000 OF 5000 PX 1000");
    for part in (0..5_000).collect::<Vec<u64>>().chunks(100) {
        let mut bytes = Vec::new();
        for &number in part {
            let ticket = Ticket { node: 1, boot: 1, number };
            let owner = format!("owner:{number}");
            let words =
                ["SEM.ACQUIRE", "sem", &owner, "PERMITS", "1", "OF", "5000", "PX", "9000", "WAIT", "9000"];
            let argv: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
            put_waiting_call(&mut bytes, ticket, 0, &argv);
        }
        watched("a hundred more wait", || old.0.apply(&[bytes]));
    }
    old.0.now_ms += 1_001;
    watched("all 5,000 are granted", || old.0.apply(&[]));
    assert!(old.line("SEM.INFO sem").contains("owner:4999"));
}

#[test]
fn reads_that_nobody_waits_for_are_not_run() {
    let mut old = Old::new();
    for key in ["a", "b"] {
        old.line(&format!("SET {key} {}", "xy".repeat(900)));
    }
    let lcs: Vec<&[u8]> = vec![b"LCS", b"a", b"b", b"LEN"];
    let calls: Vec<_> = (0..2_000).map(|_| Call { db: 0, argv: lcs.iter().copied().collect() }).collect();
    let mut bytes = Vec::new();
    put_transaction(&mut bytes, &[], &calls);
    watched("2,000 times LCS in MULTI", || old.0.apply(&[bytes]));
    let token = old
        .line("LOCK.ACQUIRE lk me PX 60000")
        .split(':')
        .nth(1)
        .unwrap()
        .split('\r')
        .next()
        .unwrap()
        .to_string();
    old.entry("2,000 times LCS behind FENCE", (0..2_000).map(|_| format!("FENCE lk {token} LCS a b LEN")));
}

#[test]
fn patterns_and_long_comparisons_are_refused() {
    let mut old = Old::new();
    let field = "a".repeat(100_000);
    old.line(&format!("HSET h {field} v"));
    let reply = old.line(&format!("HSCAN h 0 MATCH *{}b", &field[..50_000]));
    assert_eq!(reply, "-ERR the pattern takes too long to match\r\n");
    old.line(&format!("SET a {}", &field[..4_000]));
    assert!(old.line("LCS a a LEN").starts_with("-ERR Insufficient memory"));
    assert_eq!(old.line("SRANDMEMBER h -131073"), "-ERR value is out of range\r\n");
}

#[test]
fn flushing_takes_time_for_what_is_there() {
    let mut old = Old::new();
    old.entry("keys with deadlines", (0..20_000).map(|number| format!("SET key:{number} v PX 100000")));
    let mut bytes = Vec::new();
    for number in 0..3_000 {
        put_call(&mut bytes, 1, &[b"FLUSHDB"]);
        put_call(&mut bytes, 2, &[b"SET", b"a", b"b", b"PX", b"1000"]);
        put_call(&mut bytes, 2, &[b"FLUSHDB"]);
        if number == 0 {
            put_call(&mut bytes, 0, &[b"COPY", b"key:1", b"key:1", b"DB", b"16383"]);
        }
    }
    watched("3,000 times FLUSHDB beside 20,000 deadlines", || old.0.apply(&[bytes]));
    old.entry("FLUSHALL, and again", (0..1_000).map(|_| "FLUSHALL".into()));
    let both = (0..600).map(|number| ["SET a b PX 1000", "FLUSHALL"][number % 2].into());
    old.entry("FLUSHALL of one key", both);
    assert_eq!(old.line("DBSIZE"), ":0\r\n");
}

#[test]
fn floats_take_no_time() {
    let mut old = Old::new();
    old.entry("tiny", (0..2_000).map(|_| "INCRBYFLOAT k 1e-4900".into()));
    old.entry("tiny, in a hash", (0..2_000).map(|_| "HINCRBYFLOAT h f 1e-4900".into()));
    old.entry("huge", (0..100).map(|_| "INCRBYFLOAT l 1e4900".into()));
    let digits = "7".repeat(5_000);
    old.entry("long", (0..200).map(|_| format!("INCRBYFLOAT m {digits}e-9900")));
    // A tie, whose last digit decides.
    let tie = format!("18446744073709551617.{}1", "0".repeat(5_000));
    old.entry("long, near a tie", (0..200).map(|_| format!("INCREX n BYFLOAT {tie}")));
}

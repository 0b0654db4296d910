//! A random log: batches of proposals with commands of every family, waits, transactions and clocks that go back.
//! The same seed gives the same log; a test has recorded what an older rule made of one, so what is drawn here may not
//! change. Another mixture is another function.

use kvorum::{
    machine::Machine,
    proposal::{
        Call, Setting, Waited, put_call, put_cancel, put_confirm, put_forget_node, put_in_session,
        put_setting, put_transaction, put_waiting_call,
    },
    resp::Protocol,
    store::{Ticket, level},
};
use kvorum_raft::{Machine as _, Proposal};

use super::{
    alone::HASH_KEY,
    grammar::Grammar,
    hostile::{hostile_argv, hostile_reads},
    watchdog::watched,
};

/// When the first batch is stamped.
pub const STAMP_MS: u64 = 1_700_000_000_000;

/// One log entry.
pub struct Batch {
    pub index: u64,
    pub stamp_ms: u64,
    /// How far the log's clock is ahead of the wall clock.
    pub ahead_ms: i64,
    pub term: u64,
    /// The rule by which it is applied; and what the entry says that raised it.
    pub level: u32,
    pub raised: Option<[u8; 16]>,
    pub proposals: Vec<Vec<u8>>,
}

impl Batch {
    /// Applies it, as long as it may take; nobody on this node waits for it.
    pub fn apply(&self, machine: &Machine) {
        let Batch { index, stamp_ms, ahead_ms, term, level, raised, ref proposals } = *self;
        let proposals = proposals.iter().map(|bytes| Proposal { bytes, local: None }).collect();
        watched(format_args!("entry {index}"), || {
            machine.apply(kvorum_raft::Batch { index, stamp_ms, ahead_ms, term, level, raised, proposals });
        });
    }
}

fn random_key(chance: &mut fastrand::Rng) -> Vec<u8> {
    // Many small keys, and some in one slot so that its segments split.
    match chance.u8(..4) {
        0 => format!("{{tag}}{}", chance.u32(..2_000)).into_bytes(),
        _ => format!("key:{}", chance.u32(..300)).into_bytes(),
    }
}

fn random_value(chance: &mut fastrand::Rng) -> Vec<u8> {
    let len = match chance.u8(..40) {
        0 => chance.usize(..80_000),
        1..8 => chance.usize(..2_000),
        8..20 => return chance.i32(..).to_string().into_bytes(),
        _ => chance.usize(..30),
    };
    vec![chance.alphanumeric() as u8; len]
}

/// A command of sets or sorted sets. Most are of few keys, so that some get pages of their own.
fn random_set_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let mut key = |kind: &str| match chance.u8(..20) {
        0 => random_key(chance),
        _ => format!("{kind}:{}", chance.u8(..6)).into_bytes(),
    };
    let (set, other, sorted, other_sorted) = (key("set"), key("set"), key("zset"), key("zset"));
    let is_number = chance.u8(..3) == 0;
    let mut members = |count: usize, scored: bool| -> Vec<Vec<u8>> {
        let mut words = Vec::new();
        for _ in 0..count {
            if scored {
                words.push((f64::from(chance.i8(..)) / 4.0).to_string().into_bytes());
            }
            let number = chance.u16(..2_000);
            words.push(if is_number { number.to_string() } else { format!("member:{number}") }.into_bytes());
        }
        words
    };
    let (member, some, many) = (members(1, false).remove(0), members(10, false), members(50, false));
    let (scored, many_scored) = (members(2, true), members(50, true));
    let count = chance.u16(1..60).to_string().into_bytes();
    let with = |words: Vec<Vec<u8>>, rest: Vec<Vec<u8>>| [words, rest].concat();
    match chance.u8(..100) {
        0..15 => with(vec!["SADD".into(), set], many),
        15..25 => with(vec!["SREM".into(), set], many),
        25..30 => vec!["SPOP".into(), set],
        30..36 => vec!["SPOP".into(), set, count],
        36..40 => vec!["SMOVE".into(), set, other, member],
        40..44 => vec!["SUNIONSTORE".into(), set.clone(), set, other],
        44..46 => vec!["SINTERSTORE".into(), set.clone(), set, other],
        46..48 => vec!["SDIFFSTORE".into(), set.clone(), set, other],
        48..64 => with(vec!["ZADD".into(), sorted], many_scored),
        64..68 => with(vec!["ZADD".into(), sorted, "XX".into(), "GT".into()], scored),
        68..72 => vec!["ZINCRBY".into(), sorted, "0.1".into(), member],
        72..80 => with(vec!["ZREM".into(), sorted], some),
        80..84 => vec!["ZPOPMIN".into(), sorted, count],
        84..87 => vec!["ZREMRANGEBYRANK".into(), sorted, "5".into(), count],
        87..90 => vec!["ZREMRANGEBYSCORE".into(), sorted, "0".into(), "1".into()],
        90..92 => vec!["ZREMRANGEBYLEX".into(), sorted, "[member:1".into(), "[member:2".into()],
        92..95 => vec!["ZRANGESTORE".into(), other_sorted, sorted, "0".into(), "-1".into()],
        95 => vec!["COPY".into(), set, other, "REPLACE".into()],
        96 => vec!["COPY".into(), sorted, other_sorted, "REPLACE".into()],
        97 => vec!["RENAME".into(), sorted, other_sorted],
        98 => vec!["PEXPIRE".into(), set, "500".into()],
        _ => vec!["DEL".into(), set, sorted],
    }
}

/// INCREX or CL.THROTTLE, most of few keys, so that bounds and limits are reached; the others are of another type
/// or no numbers.
fn random_limit_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let key = match chance.u8(..10) {
        0 => random_key(chance),
        _ => format!("limit:{}", chance.u8(..8)).into_bytes(),
    };
    if chance.bool() {
        let mut words = vec!["CL.THROTTLE".into(), key];
        words.extend(
            [chance.u8(..5), chance.u8(1..9), chance.u8(1..4), chance.u8(..4)].map(|n| n.to_string().into()),
        );
        return words;
    }
    let mut words = vec!["INCREX".into(), key];
    let by = ["BYINT", "BYINT", "BYFLOAT"][chance.usize(..3)];
    let amount = if by == "BYFLOAT" { "-0.1".into() } else { chance.i8(..).to_string() };
    let deadline = ["PERSIST", "EXAT 1 ENX", "PX 500", "PX 2000 ENX"][chance.usize(..4)];
    let options: [(u8, Vec<Vec<u8>>); 5] = [
        (2, vec![by.into(), amount.into()]),
        (2, vec!["UBOUND".into(), chance.u16(..300).to_string().into()]),
        (4, vec!["LBOUND".into(), "-100".into()]),
        (3, vec!["SATURATE".into()]),
        (2, deadline.split(' ').map(Into::into).collect()),
    ];
    for (one_in, option) in options {
        if chance.u8(..one_in) == 0 {
            words.extend(option);
        }
    }
    words
}

/// A command of few locks and few owners. Tokens are guessed, and some are right.
fn random_lock_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let lock = format!("lock:{}", chance.u8(..3)).into_bytes();
    let owner = format!("owner:{}", chance.u8(..4)).into_bytes();
    let token = chance.u8(1..60).to_string().into_bytes();
    let ttl_ms = chance.u32(1..20_000).to_string().into_bytes();
    match chance.u8(..12) {
        0..3 => vec!["LOCK.ACQUIRE".into(), lock, owner, "PX".into(), ttl_ms],
        3..6 => vec!["LOCK.ACQUIRE".into(), lock, owner, "PX".into(), ttl_ms, "SHARED".into()],
        6 => vec!["LOCK.RENEW".into(), lock, owner, token, "PX".into(), ttl_ms],
        7 | 8 => vec!["LOCK.RELEASE".into(), lock, owner, token],
        9 => vec!["LOCK.BREAK".into(), lock],
        10 => vec!["FENCE".into(), lock, token, "INCR".into(), "fenced".into()],
        _ => vec!["RENAME".into(), lock, "lock:1".into()],
    }
}

/// A command of leases, elections, semaphores and guards.
fn random_coordination_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let key = |chance: &mut fastrand::Rng, kind: &str| format!("{kind}:{}", chance.u8(..3)).into_bytes();
    let lease = key(chance, "lease");
    let (owner, token) = (key(chance, "owner"), chance.u8(1..60).to_string().into_bytes());
    let ms = chance.u32(1..20_000).to_string().into_bytes();
    match chance.u8(..15) {
        0 | 1 => vec!["LEASE.GRANT".into(), "PX".into(), ms, "ID".into(), lease],
        2 => vec!["LEASE.KEEPALIVE".into(), lease],
        3 => vec!["LEASE.REVOKE".into(), lease],
        4 => vec!["LEASE.ATTACH".into(), lease, random_key(chance), random_key(chance)],
        5 => vec!["RENAME".into(), lease, key(chance, "lease")],
        6 => vec!["RENAME".into(), key(chance, "lock"), key(chance, "lease")],
        7 => vec!["LOCK.ACQUIRE".into(), key(chance, "lock"), owner, "LEASE".into(), lease],
        8 => vec![
            "ELECT.CAMPAIGN".into(),
            key(chance, "elect"),
            owner,
            "PX".into(),
            ms,
            "DELAY".into(),
            "99".into(),
        ],
        9 => vec!["ELECT.RESIGN".into(), key(chance, "elect"), owner, token],
        10 | 11 => {
            let permits = chance.u8(1..4).to_string().into_bytes();
            let mut words = vec!["SEM.ACQUIRE".into(), key(chance, "sem"), owner, "PERMITS".into(), permits];
            words.extend(["OF".into(), "4".into(), "PX".into(), ms]);
            words
        }
        12 => vec!["SEM.RELEASE".into(), key(chance, "sem"), owner, token],
        13 => vec!["FENCE.GUARD".into(), random_key(chance), key(chance, "lock")],
        _ => vec!["FENCE.UNGUARD".into(), random_key(chance)],
    }
}

/// What is said in the log of those who wait.
fn random_wait(chance: &mut fastrand::Rng, out: &mut Vec<u8>) {
    let kind = if chance.bool() { "lock" } else { "sem" };
    let key = format!("{kind}:{}", chance.u8(..3)).into_bytes();
    let ticket = Ticket { node: chance.u64(1..4), boot: chance.u64(1..3), number: chance.u64(..200) };
    let waited = Waited { db: 0, key: &key, ticket };
    if chance.u8(..3) == 0 {
        let id = format!("session:{}", chance.u8(..2)).into_bytes();
        let number = chance.u8(1..100).to_string();
        put_in_session(out, 0, &id, if chance.bool() { Protocol::Resp2 } else { Protocol::Resp3 });
        put_call(out, 0, &[b"SESSION.OPEN", &id, b"PX", b"9000"]);
        return put_call(out, 0, &[b"ONCE", number.as_bytes(), b"LPUSH", b"once", number.as_bytes()]);
    }
    match chance.u8(..8) {
        0 => put_cancel(out, &waited),
        1 => put_confirm(out, &waited),
        2 => put_forget_node(out, ticket.node, ticket.boot, u64::from(chance.u8(..4))),
        _ => {
            let owner = format!("owner:{}", chance.u8(..9)).into_bytes();
            let (ttl_ms, wait_ms) = (chance.u32(1..9_000).to_string(), chance.u32(1..9_000).to_string());
            let mut argv: Vec<&[u8]> = vec![b"LOCK.ACQUIRE", &key, &owner];
            if kind == "sem" {
                argv = vec![b"SEM.ACQUIRE", &key, &owner, b"PERMITS", b"2", b"OF", b"4"];
            }
            argv.extend([b"PX", ttl_ms.as_bytes(), b"WAIT", wait_ms.as_bytes()]);
            put_waiting_call(out, ticket, 0, &argv);
        }
    }
}

fn random_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    if chance.u8(..20) == 0 {
        return random_limit_argv(chance);
    }
    match chance.u8(..16) {
        0 => return random_lock_argv(chance),
        1 => return random_coordination_argv(chance),
        _ => {}
    }
    if chance.u8(..4) == 0 {
        return random_set_argv(chance);
    }
    let (key, other, value) = (random_key(chance), random_key(chance), random_value(chance));
    let number = |chance: &mut fastrand::Rng, max: u32| chance.u32(1..max).to_string().into_bytes();
    if chance.u8(..3) == 0 {
        return random_collection_argv(chance);
    }
    let words: Vec<Vec<u8>> = match chance.u16(..1_000) {
        0..350 => vec!["SET".into(), key, value],
        350..450 => vec!["SET".into(), key, value, "PX".into(), number(chance, 3_000)],
        450..500 => vec!["APPEND".into(), key, value],
        500..540 => vec!["SETRANGE".into(), key, number(chance, 40_000), value],
        540..600 => vec!["INCR".into(), key],
        600..620 => vec!["INCRBYFLOAT".into(), key, "0.1".into()],
        620..720 => vec!["DEL".into(), key, other],
        720..760 => vec!["RENAME".into(), key, other],
        760..820 => vec!["PEXPIRE".into(), key, number(chance, 5_000)],
        820..840 => vec!["PERSIST".into(), key],
        840..860 => vec!["MSETNX".into(), key, value.clone(), other, value],
        860..880 => vec!["GETDEL".into(), key],
        880..900 => vec!["GETEX".into(), key, "PX".into(), number(chance, 1_000)],
        900..920 => vec!["SET".into(), key, value, "XX".into(), "KEEPTTL".into()],
        920..922 => vec!["FLUSHDB".into()],
        922 => vec!["FLUSHALL".into()],
        923..930 => vec!["NONSENSE".into(), key],
        930..940 => vec!["GET".into()],
        _ => vec!["SETNX".into(), key, value],
    };
    words
}

/// Commands on lists and hashes: on few keys, so that some grow large, and now and then on a key of another type.
fn random_collection_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let is_list = chance.bool();
    let name = if is_list { "list" } else { "hash" };
    let mut key = || match chance.u8(..40) {
        0 => random_key(chance),
        _ => format!("{name}:{}", chance.u8(..6)).into_bytes(),
    };
    let (key, other) = (key(), key());
    let number = |chance: &mut fastrand::Rng, max: i32| chance.i32(-max..max).to_string().into_bytes();
    let word = |words: &[&str], chance: &mut fastrand::Rng| words[chance.usize(..words.len())].into();
    let end = |chance: &mut fastrand::Rng| word(&["LEFT", "RIGHT"], chance);
    let verb: Vec<u8> = if is_list {
        let verbs =
            ["LPUSH", "RPUSH", "LPUSH", "RPUSH", "LINSERT", "LSET", "LREM", "LTRIM", "LPOP", "RPOP", "LMOVE"];
        word(&verbs, chance)
    } else {
        word(&["HSET", "HSET", "HSET", "HSETNX", "HDEL", "HINCRBY", "HINCRBYFLOAT"], chance)
    };
    let mut words = vec![verb.clone(), key];
    let field = |chance: &mut fastrand::Rng| format!("f{}", chance.u16(..500)).into_bytes();
    match &verb[..] {
        b"LPUSH" | b"RPUSH" => {
            // Small numbers are what LINSERT and LREM find.
            let element = |chance: &mut fastrand::Rng| match chance.bool() {
                true => number(chance, 9),
                false => random_value(chance),
            };
            words.extend((0..chance.usize(1..30)).map(|_| element(chance)));
        }
        b"LINSERT" => {
            words.extend([word(&["BEFORE", "AFTER"], chance), number(chance, 9), random_value(chance)]);
        }
        b"LSET" => words.extend([number(chance, 300), random_value(chance)]),
        b"LREM" => words.extend([number(chance, 5), number(chance, 9)]),
        b"LTRIM" if chance.u8(..10) == 0 => words.extend([number(chance, 300), number(chance, 300)]),
        b"LTRIM" => words.extend(["1".into(), "-2".into()]),
        b"LPOP" | b"RPOP" => words.push(chance.u8(1..20).to_string().into_bytes()),
        b"LMOVE" => words.extend([other, end(chance), end(chance)]),
        b"HSET" => {
            for _ in 0..chance.usize(1..20) {
                words.extend([field(chance), random_value(chance)]);
            }
        }
        b"HSETNX" => words.extend([field(chance), random_value(chance)]),
        b"HDEL" => words.extend((0..chance.usize(1..10)).map(|_| field(chance))),
        b"HINCRBY" => words.extend([field(chance), number(chance, 1_000)]),
        _ => words.extend([field(chance), "0.1".into()]),
    }
    words
}

fn random_request(chance: &mut fastrand::Rng, out: &mut Vec<u8>) {
    if chance.u8(..16) == 0 {
        return random_wait(chance, out);
    }
    let argvs: Vec<_> = (0..chance.usize(1..4)).map(|_| random_argv(chance)).collect();
    let db = u32::from(chance.u8(..10) == 0) * 3;
    let slices = argvs.iter().map(|argv| argv.iter().map(Vec::as_slice).collect::<Vec<_>>());
    if chance.u8(..10) == 0 {
        let calls: Vec<_> = slices.map(|argv| Call { db, argv: argv.into_iter().collect() }).collect();
        put_transaction(out, &[], &calls);
    } else {
        slices.for_each(|argv| put_call(out, db, &argv));
    }
}

/// A log of so many entries.
pub fn random_log(chance: &mut fastrand::Rng, batches: u64) -> Vec<Batch> {
    let mut stamp_ms = STAMP_MS;
    let batch = |index| {
        // Stamps may also go back.
        stamp_ms = stamp_ms + chance.u64(..200) - chance.u64(..50);
        let proposals = (0..chance.usize(..5)).map(|_| {
            let mut bytes = Vec::new();
            (0..chance.usize(1..20)).for_each(|_| random_request(chance, &mut bytes));
            bytes
        });
        let (term, proposals) = (1 + index / 100, proposals.collect());
        Batch { index, stamp_ms, ahead_ms: 0, term, level: level::FIRST, raised: None, proposals }
    };
    (1..=batches).map(batch).collect()
}

/// A lease of many locks, which lie together, comes to a name that makes each of them larger.
fn put_renamed_lease(bytes: &mut Vec<u8>) {
    let long = [&b"{t}lease:"[..], &[b'x'; 500]].concat();
    put_call(bytes, 0, &[b"LEASE.GRANT", b"PX", b"3600000", b"ID", b"{t}lease"]);
    for number in 0..40 {
        let lock = format!("{{t}}lock:{number}");
        put_call(bytes, 0, &[b"LOCK.ACQUIRE", lock.as_bytes(), b"o", b"LEASE", b"{t}lease"]);
    }
    put_call(bytes, 0, &[b"RENAME", b"{t}lease", &long]);
    put_call(bytes, 0, &[b"SET", b"{t}x", b"1"]);
}

/// Adds requests of one who knows how things are kept, from an index on.
pub fn add_hostile(chance: &mut fastrand::Rng, log: &mut [Batch], from: u64) {
    for batch in log.iter_mut().filter(|batch| batch.index >= from) {
        let mut bytes = Vec::new();
        for _ in 0..chance.usize(..6) {
            if chance.u8(..8) > 0 {
                let argv = hostile_argv(chance);
                put_call(&mut bytes, 0, &argv.iter().map(Vec::as_slice).collect::<Vec<_>>());
                continue;
            }
            let argvs = hostile_reads(chance);
            let calls =
                argvs.iter().map(|argv| Call { db: 0, argv: argv.iter().map(Vec::as_slice).collect() });
            put_transaction(&mut bytes, &[], &calls.collect::<Vec<_>>());
        }
        if chance.u8(..20) == 0 {
            (0..50).for_each(|_| put_call(&mut bytes, 3, &[b"FLUSHDB"]));
        }
        // Before that level the size of what a renamed lease holds was not counted anew.
        if batch.level >= level::WALL_TIMES && chance.u8(..30) == 0 {
            put_renamed_lease(&mut bytes);
        }
        batch.proposals.push(bytes);
    }
}

/// Adds calls that wait for keys, and what is said of their clients, from an index on.
pub fn add_waits(chance: &mut fastrand::Rng, log: &mut [Batch], from: u64) {
    for batch in log.iter_mut().filter(|batch| batch.index >= from) {
        let mut bytes = Vec::new();
        for _ in 0..chance.usize(..4) {
            let ticket = Ticket { node: chance.u64(1..4), boot: chance.u64(1..3), number: chance.u64(..400) };
            let [key, other] = [(); 2].map(|()| format!("wait:{}", chance.u8(..4)).into_bytes());
            let seconds = [&b"0"[..], b"0.001", b"0.5", b"5"][chance.usize(..4)];
            match chance.u8(..12) {
                0 => put_cancel(&mut bytes, &Waited { db: 0, key: b"", ticket }),
                1 if chance.u8(..9) == 0 => put_forget_node(&mut bytes, ticket.node, ticket.boot, 0),
                1..3 => put_call(&mut bytes, 0, &[b"RPUSH", &key, b"a", b"b"]),
                3 => put_call(&mut bytes, 0, &[b"ZADD", &key, b"1", b"m"]),
                4 if chance.bool() => put_call(&mut bytes, 0, &[b"RENAME", &key, &other]),
                4 => put_call(&mut bytes, 0, &[b"DEL", &key, &other]),
                5 => put_waiting_call(&mut bytes, ticket, 0, &[b"BZPOPMIN", &key, &other, seconds]),
                6 => put_waiting_call(
                    &mut bytes,
                    ticket,
                    0,
                    &[b"BLMOVE", &key, &other, b"LEFT", b"LEFT", seconds],
                ),
                7 => put_waiting_call(&mut bytes, ticket, 3, &[b"BRPOP", &key, seconds]),
                8 => put_waiting_call(
                    &mut bytes,
                    ticket,
                    0,
                    &[b"BLMPOP", seconds, b"2", &key, &other, b"LEFT"],
                ),
                _ => put_waiting_call(&mut bytes, ticket, 0, &[b"BLPOP", &key, &other, &key, seconds]),
            }
        }
        batch.proposals.push(bytes);
    }
}

/// Adds commands of every family, drawn as for a comparison with Redis, from an index on.
pub fn add_drawn(chance: &mut fastrand::Rng, log: &mut [Batch], from: u64) {
    let mut grammar = Grammar::new(chance.u64(..));
    for batch in log.iter_mut().filter(|batch| batch.index >= from) {
        let mut bytes = Vec::new();
        for _ in 0..chance.usize(..12) {
            let argv = grammar.command();
            let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
            // Emptied too often, the databases would stay small.
            if !argv[0].to_ascii_uppercase().starts_with(b"FLUSH") {
                put_call(&mut bytes, 0, &argv);
            }
        }
        batch.proposals.push(bytes);
    }
}

/// Adds limits for memory and for the elements of a call, some of which are below what there is, from an index on.
pub fn set_limits(chance: &mut fastrand::Rng, log: &mut [Batch], from: u64) {
    for batch in log.iter_mut().filter(|batch| batch.index >= from) {
        if chance.u8(..16) == 0 {
            let digits = [0, chance.u64(..100_000), chance.u64(..2_000_000)][chance.usize(..3)].to_string();
            let elements = [0, chance.u64(1..20), chance.u64(1..500)][chance.usize(..3)].to_string();
            for (name, digits) in [(&b"maxmemory"[..], digits), (&b"call-elements-max"[..], elements)] {
                let (mut bytes, is_default) = (Vec::new(), chance.bool());
                put_setting(&mut bytes, &Setting { name, digits: digits.as_bytes(), is_default });
                batch.proposals.insert(chance.usize(..=batch.proposals.len()), bytes);
            }
        }
    }
}

/// The same log with its level raised to `level` by the entry at an index, as a leader does it.
pub fn raise(log: &mut [Batch], index: u64, level: u32) {
    for batch in log.iter_mut().filter(|batch| batch.index >= index) {
        batch.level = level;
        batch.raised = (batch.index == index).then_some(HASH_KEY);
    }
}

/// The same log by wall clocks that are wrong and jump, from an index on, with times of theirs for some keys. Below level 3
/// there are none.
pub fn set_wall_clocks(chance: &mut fastrand::Rng, log: &mut [Batch], from: u64) {
    let mut ahead_ms = 0;
    for batch in log.iter_mut().filter(|batch| batch.index >= from) {
        ahead_ms = match chance.u8(..20) {
            0 => chance.i64(-100_000_000..100_000_000),
            1 => chance.i64(..),
            2 => 0,
            _ => ahead_ms,
        };
        batch.ahead_ms = ahead_ms;
        let mut bytes = Vec::new();
        for _ in 0..chance.usize(..3) {
            let wall_ms =
                i128::from(batch.stamp_ms) - i128::from(ahead_ms) + i128::from(chance.i32(-500..3_000));
            let (key, at) = (random_key(chance), wall_ms.to_string().into_bytes());
            match chance.u8(..3) {
                0 => put_call(&mut bytes, 0, &[b"PEXPIREAT", &key, &at]),
                1 => put_call(&mut bytes, 0, &[b"SET", &key, b"v", b"PXAT", &at]),
                _ => put_call(&mut bytes, 0, &[b"GETEX", &key, b"PXAT", &at]),
            }
        }
        batch.proposals.push(bytes);
    }
}

//! What clients send, what proposals hold and what pages hold, with hostile bytes: no panic, no memory for lengths that
//! are only claimed, and what is understood means the same when it is written and read again.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum::{
    machine::Machine,
    proposal::{self, Call, Request, Requests, Setting, Waited, Watched},
    resp::{
        Protocol,
        request::{Decoder, Limits},
    },
    store::{PageId, StateLoader, Ticket},
};
use kvorum_fuzz::{bounded, fuzz};
use kvorum_raft::Machine as _;
use support::{
    alone::Alone,
    random_log::{add_hostile, random_log, set_wall_clocks},
};

/// The requests of a stream that arrives in pieces of so many bytes, and whether it was refused.
fn decode(stream: &[u8], piece: usize) -> (Vec<Vec<Vec<u8>>>, bool) {
    let limits = Limits { bulk_bytes_max: 512 << 20, arguments_max: 1 << 20, inline_bytes_max: 64 << 10 };
    let (mut decoder, mut buffer, mut requests) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        let verdict = decoder.decode(&mut buffer, &limits);
        for request in decoder.requests().iter().filter(|request| !request.is_empty()) {
            let argv = decoder.argv(&buffer, *request);
            assert_eq!(decoder.bytes_of(*request), argv.iter().map(|argument| argument.len()).sum::<usize>());
            requests.push(argv.iter().map(|argument| argument.to_vec()).collect());
        }
        if verdict.is_err() {
            return (requests, true);
        }
        buffer.drain(..decoder.forget());
    }
    (requests, false)
}

#[test]
fn requests_of_clients() {
    let seeds = [
        &b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n*1\r\n$4\r\nPING\r\n"[..],
        b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n*0\r\n*-1\r\nPING\r\n\r\n*1\r\n$4\r\nEXEC\r\n",
        b"SET \"a\\x41\\n\" 'it\\'s'\nget a\r\n*1048576\r\n$536870912\r\n",
    ];
    fuzz("requests", seeds.map(<[u8]>::to_vec).to_vec(), |stream| {
        // An argument of one byte takes a vector here.
        let whole = bounded(stream.len(), 128, 64 << 10, || decode(stream, stream.len().max(1)));
        assert_eq!(decode(stream, 7), whole);
        for argv in &whole.0 {
            let mut again = format!("*{}\r\n", argv.len()).into_bytes();
            for argument in argv {
                again.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                again.extend_from_slice(argument);
                again.extend_from_slice(b"\r\n");
            }
            assert_eq!(decode(&again, again.len()), (vec![argv.clone()], false));
        }
    });
}

fn put(out: &mut Vec<u8>, request: &Request<'_>) {
    match request {
        Request::Call(call) => proposal::put_call(out, call.db, &call.argv),
        Request::Transaction { watched, calls } => proposal::put_transaction(out, watched, calls),
        Request::WaitingCall { ticket, call } => {
            proposal::put_waiting_call(out, *ticket, call.db, &call.argv);
        }
        Request::Cancel(waited) => proposal::put_cancel(out, waited),
        Request::Confirm(waited) => proposal::put_confirm(out, waited),
        Request::ForgetNode { node, but_boot, term } => {
            proposal::put_forget_node(out, *node, *but_boot, *term);
        }
        Request::InSession(caller) => {
            let protocol = if caller.is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
            proposal::put_in_session(out, caller.db, &caller.id, protocol);
        }
        Request::Setting(setting) => proposal::put_setting(out, setting),
    }
}

#[test]
fn proposals() {
    let call = || Call { db: 3, argv: [&b"SET"[..], b"key", b"value"].into_iter().collect() };
    let ticket = Ticket { node: 1, boot: u64::MAX, number: 300 };
    let waited = || Waited { db: 0, key: b"lock", ticket };
    let requests = [
        Request::Call(call()),
        Request::Transaction {
            watched: vec![Watched { db: 1, key: b"w", version: 1 << 40 }],
            calls: vec![call(), call()],
        },
        Request::WaitingCall { ticket, call: call() },
        Request::Cancel(waited()),
        Request::Confirm(waited()),
        Request::ForgetNode { node: 2, but_boot: 0, term: 7 },
        Request::Setting(Setting { name: b"maxmemory", digits: b"104857600", is_default: true }),
    ];
    let mut seeds = vec![Vec::new()];
    proposal::put_in_session(&mut seeds[0], 0, b"session", Protocol::Resp3);
    for request in &requests {
        put(&mut seeds[0], request);
        let mut alone = Vec::new();
        put(&mut alone, request);
        seeds.push(alone);
    }
    fuzz("proposals", seeds, |bytes| {
        let mut read = Requests::new(bytes);
        // A watched key of one byte takes 40 bytes, a call without arguments 150, and vectors grow by doubling.
        let requests: Vec<_> = bounded(bytes.len(), 512, 64 << 10, || read.by_ref().collect());
        assert!(read.is_malformed() || read.is_at_end());
        let mut again = Vec::new();
        requests.iter().for_each(|request| put(&mut again, request));
        let requests: Vec<_> = requests.iter().map(|request| format!("{request:?}")).collect();
        assert_eq!(Requests::new(&again).map(|request| format!("{request:?}")).collect::<Vec<_>>(), requests);
    });
}

/// The pages of a state: each as the length of its id, the id, the length of its content, the content; then the head.
type Pages = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

fn flat((pages, head): &Pages) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, content) in pages {
        out.push(u8::try_from(id.len()).unwrap());
        out.extend_from_slice(id);
        out.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
        out.extend_from_slice(content);
    }
    out.push(0);
    out.extend_from_slice(head);
    out
}

/// Reverses `flat`; the last page may be cut.
fn pages(mut bytes: &[u8]) -> Pages {
    let mut pages = Vec::new();
    let mut take = |len: usize| {
        let (taken, rest) = bytes.split_at(len.min(bytes.len()));
        bytes = rest;
        taken.to_vec()
    };
    loop {
        let id = match take(1)[..] {
            [] | [0] => return (pages, take(usize::MAX)),
            [len, ..] => take(usize::from(len)),
        };
        let len = take(4);
        let len = <[u8; 4]>::try_from(&len[..]).map_or(0, |len| u32::from_le_bytes(len) as usize);
        pages.push((id, take(len)));
    }
}

/// Loads a state as a node does, and looks at all of it.
fn load((pages, head): &Pages) -> Result<(), String> {
    let mut loader = StateLoader::default();
    for (id, content) in pages {
        let known = PageId::decode(id).ok_or("an unknown page")?;
        loader.page(known, content)?;
    }
    let state = loader.finish(head)?;
    let _ = state.digest();
    Ok(())
}

fn checkpoint(machine: &Machine) -> Pages {
    let (head, mut written) = (machine.checkpoint_begin(), Vec::new());
    while machine.checkpoint_step(usize::MAX, &mut written) {}
    let mut pages: Vec<_> = written.into_iter().filter_map(|page| Some((page.id, page.content?))).collect();
    pages.sort();
    (pages, head)
}

/// A value of each kind and form, those with pages of their own as small as such a one can be.
fn of_each_kind() -> Pages {
    let mut alone = Alone::default();
    let members = |count: usize| (0..count).map(|n| format!(" m{n}")).collect::<String>();
    let pairs = |count: usize| (0..count).map(|n| format!(" {n} m{n}")).collect::<String>();
    let lines = [
        "SET s text PX 60000".to_owned(),
        "INCRBY n -12".to_owned(),
        "SETRANGE long 20000 x".to_owned(),
        "RPUSH list a b c".to_owned(),
        format!("RPUSH list:long{}", members(1200)),
        "HSET hash f v g w".to_owned(),
        format!("HSET hash:long{}", pairs(140)),
        "SADD integers 1 2 -3".to_owned(),
        "SADD set a b".to_owned(),
        format!("SADD set:long{}", members(140)),
        "ZADD sorted 1 a -2.5 b".to_owned(),
        format!("ZADD sorted:long{}", pairs(140)),
        "LOCK.ACQUIRE l a PX 60000".to_owned(),
        "LOCK.ACQUIRE shared r1 PX 60000 SHARED".to_owned(),
        "SEM.ACQUIRE sem a PERMITS 2 OF 3 PX 60000".to_owned(),
        "LEASE.GRANT PX 60000 ID L".to_owned(),
        "LEASE.ATTACH L s".to_owned(),
        "ELECT.CAMPAIGN e a PX 60000 VALUE one".to_owned(),
    ];
    for line in lines {
        let reply = alone.line(&line);
        assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
    }
    checkpoint(&alone.machine)
}

/// The pages of a random state.
fn random(seed: u64, batches: u64) -> Pages {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut log = random_log(&mut chance, batches);
    add_hostile(&mut chance, &mut log, batches / 2);
    set_wall_clocks(&mut chance, &mut log, batches / 2);
    let machine = Machine::new(16);
    log.iter().for_each(|batch| batch.apply(&machine));
    checkpoint(&machine)
}

#[test]
fn pages_of_checkpoints() {
    let mut seeds = vec![of_each_kind(), random(1, 40)];
    for seed in &seeds {
        assert_eq!(&pages(&flat(seed)), seed);
        load(seed).unwrap();
    }
    // Small ones on their own too: more of them can be tried.
    let small = seeds.iter().flat_map(|(pages, _)| pages).filter(|(_, content)| content.len() < 4 << 10);
    let small: Vec<Pages> = small.map(|page| (vec![page.clone()], Vec::new())).collect();
    seeds.extend(small);
    fuzz("pages", seeds.iter().map(flat).collect(), |bytes| {
        let read = pages(bytes);
        let _ = bounded(bytes.len(), 64, 16 << 20, || load(&read));
    });
}

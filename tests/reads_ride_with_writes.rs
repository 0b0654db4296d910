//! The reads of a pipeline see the writes before them and none after, and every reply stands in its place; a
//! transaction runs only if the watched keys are what they were.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum::{
    proposal::{Pipeline, Step, put_call},
    resp::Protocol,
};
use kvorum_raft::{Batch, Machine as _, Proposal};
use support::alone::Alone;
use tokio::sync::oneshot;

fn call(argv: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    put_call(&mut out, 0, argv);
    out
}

#[test]
fn replies_stand_in_their_places() {
    let alone = Alone::default();
    let bytes = [call(&[b"SET", b"k", b"1"]), call(&[b"INCR", b"k"]), call(&[b"INCR"])].concat();
    let get = || Step::Read(call(&[b"GET", b"k"]));
    let steps = vec![
        get(),
        Step::Write,
        get(),
        Step::Ready(b"+PONG\r\n".to_vec()),
        Step::Write,
        get(),
        Step::Write,
        Step::Read(call(&[b"SET", b"k", b"9"])),
    ];
    let (done, mut replies) = oneshot::channel();
    let pipeline =
        Pipeline { steps, protocol: Protocol::Resp3, chance: 0, replies: b"before;".to_vec().into(), done };
    let proposals = vec![Proposal { bytes: &bytes, local: Some(pipeline) }];
    alone.machine.apply(Batch {
        index: 1,
        stamp_ms: 1,
        ahead_ms: 0,
        term: 1,
        level: 1,
        raised: None,
        proposals,
    });
    let expected = "before;_\r\n+OK\r\n$1\r\n1\r\n+PONG\r\n:2\r\n$1\r\n2\r\n\
        -ERR wrong number of arguments for 'incr' command\r\n-ERR a write came where only reads may be\r\n";
    assert_eq!(String::from_utf8_lossy(&replies.try_recv().unwrap().replies.into_bytes()), expected);
}

#[test]
fn a_watched_key_that_changed_stops_the_transaction() {
    let mut alone = Alone::default();
    let stopped = "*-1\r\n";
    for (before, change, is_stopped) in [
        ("SET k 1", "SET k 1", true),
        ("SET k 1", "GET k", false),
        ("SET k 1", "DEL nope", false),
        ("SET k 1", "DEL k", true),
        ("DEL k", "SET k 1", true),
        ("SET k 1", "EXPIRE k 100", true),
        ("SET k 1 PX 100", "PERSIST k", true),
        ("SET k 1", "FLUSHALL", true),
        ("SET k 1", "SELECT 0", false),
    ] {
        for line in [before, "WATCH k", change, "MULTI", "GET k"] {
            alone.line(line);
        }
        assert_eq!(alone.text("EXEC") == stopped, is_stopped, "{before}, {change}");
    }
    // Dying is a change, too.
    for line in ["SET k 1 PX 100", "WATCH k", "MULTI", "GET k"] {
        alone.line(line);
    }
    alone.now_ms += 101;
    assert_eq!(alone.text("EXEC"), stopped);
}

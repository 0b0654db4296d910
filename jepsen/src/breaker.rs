//! A deliberately wrong server: a proxy between clients and a node that breaks one promise now and then. A
//! harness that does not notice is worth nothing.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use redis_protocol::resp2::types::OwnedFrame;

use crate::client::{Frames, TIMEOUT, encode};

/// One request in this many is answered wrongly.
const ODDS: u32 = 25;
/// The minimum age of a stale answer.
const STALE: Duration = Duration::from_millis(300);
/// How often both sides are polled while messages are pushed.
const POLL: Duration = Duration::from_millis(2);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(60);

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Break {
    /// GET, SMEMBERS, LRANGE and CONSISTENCY are answered from a cache.
    StaleReads,
    /// SET and SADD are acknowledged but not executed.
    LostWrites,
    /// INCR, RPUSH and ONCE are executed twice, as by a retry after a lost confirmation.
    DuplicateWrites,
    /// SET and RPUSH are executed but answered as not applied.
    FalseErrors,
    /// Below the nodes: disk syncs report success and do nothing, so that a power cut (`disk-lost-unsynced`)
    /// loses acknowledged writes.
    LyingDisks,
    /// Messages of the change feed are dropped.
    LostEvents,
    /// FENCE runs its command whoever holds the lock. Always, because clients that lost their lock are rare.
    UnfencedWrites,
    /// After a few seconds everything is refused with CLUSTERDOWN, while the nodes report that they are ready.
    Refusals,
}

/// When refusals begin.
const REFUSALS_AFTER: Duration = Duration::from_secs(2);

/// Replies to reads, by request: when and what.
type Cache = HashMap<Vec<String>, (Instant, OwnedFrame)>;

/// Proxies in front of the nodes that break promises.
pub(crate) struct Breaker {
    wrong: Arc<Wrong>,
    /// The proxy's address for each address.
    before: Mutex<HashMap<SocketAddr, SocketAddr>>,
}

/// What all proxies share.
struct Wrong {
    kind: Break,
    began: Instant,
    cache: Mutex<Cache>,
}

impl Breaker {
    pub(crate) fn new(kind: Break) -> Breaker {
        let wrong = Wrong { kind, began: Instant::now(), cache: Mutex::default() };
        Breaker { wrong: Arc::new(wrong), before: Mutex::default() }
    }

    /// Where to connect instead of `address`. The proxy's thread lives as long as the process.
    pub(crate) fn before(&self, address: SocketAddr) -> Result<SocketAddr> {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = before.get(&address) {
            return Ok(*here);
        }
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot open a port for a breaker")?;
        let here = listener.local_addr().context("a breaker's address")?;
        let wrong = self.wrong.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let wrong = wrong.clone();
                // An error closes both sides: that is all there is to report.
                std::thread::spawn(move || serve(client, address, &wrong));
            }
        });
        before.insert(address, here);
        Ok(here)
    }
}

fn words(frame: OwnedFrame) -> Vec<String> {
    let OwnedFrame::Array(parts) = frame else { return Vec::new() };
    let word = |part| match part {
        OwnedFrame::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    };
    parts.into_iter().map(word).collect()
}

fn put(out: &mut Vec<u8>, frame: &OwnedFrame) {
    match frame {
        OwnedFrame::SimpleString(text) => {
            out.push(b'+');
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
        OwnedFrame::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
        OwnedFrame::Integer(integer) => out.extend_from_slice(format!(":{integer}\r\n").as_bytes()),
        OwnedFrame::BulkString(bytes) => {
            out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        OwnedFrame::Array(frames) => {
            out.extend_from_slice(format!("*{}\r\n", frames.len()).as_bytes());
            frames.iter().for_each(|frame| put(out, frame));
        }
        OwnedFrame::Null => out.extend_from_slice(b"$-1\r\n"),
    }
}

fn refusal() -> OwnedFrame {
    OwnedFrame::Error("CLUSTERDOWN no leader is known".into())
}

fn serve(client: TcpStream, address: SocketAddr, wrong: &Wrong) -> Result<(), String> {
    let kind = wrong.kind;
    let text = |error: std::io::Error| error.to_string();
    let server = TcpStream::connect(address).map_err(text)?;
    client.set_nodelay(true).map_err(text)?;
    server.set_nodelay(true).map_err(text)?;
    let (mut client, mut server) = (Frames::new(client), Frames::new(server));
    let mut in_transaction = false;
    while let Some(request) = client.next(IDLE)? {
        let request = words(request);
        let name = request.first().map_or("", String::as_str);
        let is_alone = !in_transaction && fastrand::u32(..ODDS) == 0;
        in_transaction = (in_transaction || name == "MULTI") && name != "EXEC";
        let mut ask = |request: &[String]| {
            let mut bytes = Vec::new();
            encode(&mut bytes, request);
            server.wire().write_all(&bytes).map_err(text)?;
            server.next(IDLE)?.ok_or_else(|| "closed".to_owned())
        };
        let is_plain_set = name == "SET" && request.len() == 3;
        let answer = match (kind, name) {
            (Break::StaleReads, "GET" | "SMEMBERS" | "LRANGE" | "CONSISTENCY") if !in_transaction => {
                let mut cache = wrong.cache.lock().unwrap_or_else(PoisonError::into_inner);
                let old = cache.get(&request).filter(|(since, _)| is_alone && since.elapsed() > STALE);
                match old.map(|(_, answer)| answer.clone()) {
                    Some(answer) => answer,
                    None => {
                        let answer = ask(&request)?;
                        let is_old = |since: &Instant| since.elapsed() > 10 * STALE;
                        if cache.get(&request).is_none_or(|(since, _)| is_old(since)) {
                            cache.insert(request.clone(), (Instant::now(), answer.clone()));
                        }
                        answer
                    }
                }
            }
            (Break::LostWrites, "SET") if is_alone && is_plain_set => {
                OwnedFrame::SimpleString(b"OK".to_vec())
            }
            (Break::LostWrites, "SADD") if is_alone => OwnedFrame::Integer(1),
            (Break::DuplicateWrites, "INCR" | "RPUSH") if is_alone => {
                let first = ask(&request)?;
                ask(&request)?;
                first
            }
            (Break::DuplicateWrites, "ONCE") if is_alone && request.len() > 2 => {
                let first = ask(&request)?;
                ask(&request[2..])?;
                first
            }
            (Break::UnfencedWrites, "FENCE") if request.len() > 3 => ask(&request[3..])?,
            (Break::FalseErrors, "SET" | "RPUSH") if is_alone => {
                ask(&request)?;
                refusal()
            }
            (Break::Refusals, _) if name != "PING" && wrong.began.elapsed() > REFUSALS_AFTER => refusal(),
            _ => ask(&request)?,
        };
        let is_feed = kind == Break::LostEvents && name == "FEED.SUBSCRIBE";
        let mut bytes = Vec::new();
        put(&mut bytes, &answer);
        client.wire().write_all(&bytes).map_err(text)?;
        if is_feed && matches!(answer, OwnedFrame::Integer(_)) {
            lose_messages(&mut client, &mut server)?;
        }
    }
    Ok(())
}

/// Forwards messages, except for some with events, until there is a reply again.
fn lose_messages(client: &mut Frames, server: &mut Frames) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let next = |side: &mut Frames| match side.next(POLL) {
        Ok(Some(frame)) => Ok(Some(frame)),
        Err(why) if why == TIMEOUT => Ok(None),
        other => Err(other.err().unwrap_or_else(|| "closed".into())),
    };
    loop {
        if let Some(request) = next(client)? {
            let mut bytes = Vec::new();
            put(&mut bytes, &request);
            server.wire().write_all(&bytes).map_err(text)?;
        }
        let Some(frame) = next(server)? else { continue };
        let has_events = matches!(&frame, OwnedFrame::Array(parts)
            if matches!(parts.last(), Some(OwnedFrame::Array(events)) if !events.is_empty()));
        if has_events && fastrand::u32(..ODDS) == 0 {
            continue;
        }
        let mut bytes = Vec::new();
        put(&mut bytes, &frame);
        client.wire().write_all(&bytes).map_err(text)?;
        if !matches!(frame, OwnedFrame::Array(_)) {
            return Ok(());
        }
    }
}

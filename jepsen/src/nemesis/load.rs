//! Load as a fault: many clients on one key, and a value of 100 MB, in addition to the workload. Both use
//! their own keys, and their results are checked too.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::Env;
use crate::client::{Connection, Failure, Reply};

/// The clients of a hot key, each with one operation in flight, and how many operations count as a burst.
const HOT_CLIENTS: usize = 50;
const HOT_DONE_MIN: i64 = 200;
const TIMEOUT: Duration = Duration::from_secs(3);
/// The size of a huge value, and of the pieces in which it is sent and compared.
const HUGE_BYTES: usize = 100 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// How long the transfer of a huge value may take.
const HUGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a step may take, on any node.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(500);
/// How long a write with an unknown outcome may still take effect: longer than the server keeps one.
const LATE: Duration = Duration::from_secs(3);

fn anybody(env: &Env, random: &mut fastrand::Rng) -> Result<(u64, SocketAddr)> {
    random.choice(env.cluster.client_addresses()).context("there is no node")
}

/// Asks nodes, one after the other, until one answers for certain. Only for idempotent commands.
fn persist(env: &Env, random: &mut fastrand::Rng, words: &[&str]) -> Result<(u64, Reply)> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        let (node, address) = anybody(env, random)?;
        let opened = Connection::open(node, address, TIMEOUT).map_err(Failure::Info);
        match opened.and_then(|mut connection| connection.call(words)) {
            Ok(reply) => return Ok((node, reply)),
            Err(failure) => last = Some(failure),
        }
        std::thread::sleep(PAUSE);
    }
    bail!("nobody answers {words:?}: {last:?}")
}

fn finding(env: &Env, detail: String) {
    env.record("finding", json!({"anomaly": "wrong answer under load", "detail": detail}));
}

/// Many clients increment one key, as fast as they can. No acknowledged increment may be missing or applied
/// twice.
pub(super) fn hot_key(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let key = format!("load:hot:{}", random.u32(..));
    let (done, unknown) = (AtomicI64::new(0), AtomicI64::new(0));
    let until = Instant::now() + hold;
    std::thread::scope(|scope| {
        for _ in 0..HOT_CLIENTS {
            let address = anybody(env, random);
            let (key, done, unknown) = (&key, &done, &unknown);
            scope.spawn(move || {
                let Ok((node, address)) = address else { return };
                let mut connection = None;
                while Instant::now() < until && !env.is_stopped() {
                    let Some(open) = &mut connection else {
                        connection = Connection::open(node, address, TIMEOUT).ok();
                        std::thread::sleep(PAUSE / 10);
                        continue;
                    };
                    match open.call(&["INCR", key]) {
                        Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(Failure::Fail(_)) => std::thread::sleep(PAUSE / 10),
                        Err(Failure::Info(_)) => {
                            unknown.fetch_add(1, Ordering::Relaxed);
                            connection = None;
                        }
                    }
                }
            });
        }
    });
    let (done, unknown) = (done.into_inner(), unknown.into_inner());
    let (node, reply) = persist(env, random, &["GET", &key])?;
    let counted = reply.number().ok().flatten().unwrap_or(0);
    if !(done..=done + unknown).contains(&counted) {
        finding(
            env,
            format!("{done} INCR of {key} were done and {unknown} may be, node {node} says {counted}"),
        );
    }
    if done < HOT_DONE_MIN {
        bail!("only {done} operations were done on the hot key");
    }
    Ok(json!({"key": key, "done": done, "unknown": unknown, "counted": counted, "read_on": node}))
}

/// The bytes of a huge value from `number * PIECE_BYTES` on: all pieces differ.
fn piece(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut bytes = vec![0; PIECE_BYTES];
    random.fill(&mut bytes);
    bytes
}

/// Sends a huge value; returns the reply.
fn set_huge(address: SocketAddr, key: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(HUGE_TIMEOUT))?;
    stream.set_read_timeout(Some(HUGE_TIMEOUT))?;
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${HUGE_BYTES}\r\n", key.len());
    stream.write_all(head.as_bytes())?;
    (0..HUGE_BYTES / PIECE_BYTES).try_for_each(|number| stream.write_all(&piece(number)))?;
    stream.write_all(b"\r\n")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    ensure!(!reply.is_empty(), "the connection was closed");
    Ok(reply.trim_end().to_owned())
}

/// Reads a huge value; returns whether it equals the one that was sent.
fn is_huge(address: SocketAddr, key: &str) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(HUGE_TIMEOUT))?;
    stream.write_all(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes())?;
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    stream.read_line(&mut head)?;
    ensure!(head.starts_with('$'), "no value: {}", head.trim_end());
    if head.trim_end() != format!("${HUGE_BYTES}") {
        return Ok(false);
    }
    let mut bytes = vec![0; PIECE_BYTES];
    for number in 0..HUGE_BYTES / PIECE_BYTES {
        stream.read_exact(&mut bytes)?;
        if bytes != piece(number) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn length(env: &Env, random: &mut fastrand::Rng, key: &str) -> Result<(u64, i64)> {
    let (node, reply) = persist(env, random, &["STRLEN", key])?;
    Ok((node, reply.number().ok().flatten().unwrap_or(-1)))
}

/// Sets the value, or finds that an attempt with an unknown outcome has set it. Returns the answers, and the
/// node.
fn insist_on_huge(env: &Env, random: &mut fastrand::Rng, key: &str) -> Result<(u64, Vec<String>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut answers = Vec::new();
    while Instant::now() < deadline && !env.is_stopped() {
        let (node, address) = anybody(env, random)?;
        let answer = set_huge(address, key).unwrap_or_else(|error| format!("{error:#}"));
        let is_done = answer == "+OK" || length(env, random, key)?.1 == HUGE_BYTES as i64;
        answers.push(answer);
        if is_done {
            return Ok((node, answers));
        }
        std::thread::sleep(PAUSE);
    }
    bail!("a value of {HUGE_BYTES} bytes could not be set: {answers:?}")
}

/// A value of 100 MB is set, read and copied on other nodes, and deleted.
pub(super) fn huge_value(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    let (key, copy) = ("load:huge", "load:huge:copy");
    let started = Instant::now();
    let used = use_huge(env, random, key, copy);
    // It must be gone at the end, whatever has happened, including late effects.
    let removed = persist(env, random, &["DEL", key, copy]).and_then(|_| {
        std::thread::sleep(LATE);
        persist(env, random, &["DEL", key, copy])
    });
    let mut used = used?;
    removed?;
    used["ms"] = json!(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    Ok(used)
}

fn use_huge(env: &Env, random: &mut fastrand::Rng, key: &str, copy: &str) -> Result<Value> {
    let (set_on, answers) = insist_on_huge(env, random, key)?;
    let others: Vec<_> =
        env.cluster.client_addresses().into_iter().filter(|(node, _)| *node != set_on).collect();
    let (node, address) = random.choice(others).context("there is no other node")?;
    let read = is_huge(address, key);
    if matches!(read, Ok(false)) {
        finding(env, format!("node {node} has another value at {key} than was set on node {set_on}"));
    }
    let copied = persist(env, random, &["COPY", key, copy, "REPLACE"])?.1;
    let (copy_on, copy_bytes) = length(env, random, copy)?;
    if copied == Reply::Integer(1) && copy_bytes != HUGE_BYTES as i64 {
        finding(env, format!("the copy of {key} has {copy_bytes} bytes on node {copy_on}"));
    }
    if !matches!(read, Ok(true)) && copy_bytes != HUGE_BYTES as i64 {
        bail!("no other node gave the value back: {read:?}");
    }
    let read = read.map_or_else(|error| format!("{error:#}"), |is_same| is_same.to_string());
    Ok(json!({"answers": answers, "set_on": set_on, "read_on": node, "same": read, "copy_bytes": copy_bytes,
        "copy_seen_on": copy_on}))
}

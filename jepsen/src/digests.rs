//! Digests while a run goes on: nodes that differ may be made equal by a later snapshot, or removed, before the end, where all
//! are compared. At one index of the log all nodes have one digest, so whoever is asked often enough tells one that another
//! told too.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use serde_json::json;

use crate::{
    client::Connection,
    contents,
    history::{Kind, Recorder},
    run::LAST_PROCESS,
};

/// The time between two looks.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// How long a node may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often the nodes are asked until two of them stand at one index.
const ROUNDS: usize = 6;
/// Each look is of a process of its own, beyond those of the last look.
static PROCESS: AtomicI64 = AtomicI64::new(2 * LAST_PROCESS);

/// Asks nodes at their own addresses, again and again, until two of them have told a digest of one index.
pub(crate) fn ask(nodes: &[(u64, SocketAddr)], recorder: &Recorder) {
    let mut told: BTreeMap<u64, u64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (node, address) in nodes {
            let Some(index) = ask_one(*node, *address, recorder) else { continue };
            if told.insert(index, *node).is_some_and(|other| other != *node) {
                return;
            }
        }
    }
}

/// The index of the digest that a node has told. What it does not tell in time is not recorded: it may be down.
fn ask_one(node: u64, address: SocketAddr, recorder: &Recorder) -> Option<u64> {
    let digest = contents::digest(&mut Connection::open(node, address, PATIENCE).ok()?).ok()?;
    let process = PROCESS.fetch_add(1, Ordering::Relaxed);
    recorder.record(process, Kind::Invoke, "digest", json!({"amid": true}), Some(node), None);
    let index = digest["index"].as_u64();
    recorder.record(process, Kind::Ok, "digest", digest, Some(node), None);
    index
}

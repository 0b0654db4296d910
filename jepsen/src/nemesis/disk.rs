//! A damaged log on one node: it is killed, a byte of its log is flipped or a file of it truncated, and it is
//! started again. Either it refuses to start with the documented exit code and is then replaced as its
//! message says, or it repairs a torn tail and continues.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Env, membership, network::between, process::READY_PATIENCE};

/// The documented exit code for damaged data.
pub(super) const DATA_DAMAGED: i32 = 6;
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy)]
pub(super) enum Damage {
    /// One byte of a file is changed.
    Flip,
    /// A file is truncated anywhere.
    Truncate,
    /// The newest file is truncated near its end.
    Tail,
}

/// The log's nonempty files, and the length of their content: they are preallocated with zeroes.
fn files(log: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(log).context("cannot list the log")? {
        let path = entry.context("cannot list the log")?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let bytes = fs::read(&path).context("cannot read the log")?;
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            files.extend((used > 0).then_some((path, used)));
        }
    }
    Ok(files)
}

fn break_file(data: &Path, random: &mut fastrand::Rng, damage: Damage) -> Result<Value> {
    let mut files = files(&data.join("log"))?;
    files.sort_unstable();
    let newest = files.last().cloned();
    let chosen = if matches!(damage, Damage::Tail) { newest } else { random.choice(files) };
    let (path, used) = chosen.context("the log is empty")?;
    let file = File::options().read(true).write(true).open(&path).context("cannot open the log")?;
    let at = if matches!(damage, Damage::Tail) { used - used / 8 } else { random.u64(..used) };
    match damage {
        Damage::Flip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).context("cannot read the log")?;
            file.write_all_at(&[byte[0] ^ (1 << random.u8(..8))], at).context("cannot write the log")?;
        }
        Damage::Truncate | Damage::Tail => file.set_len(at).context("cannot cut the log")?,
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(json!({"file": name, "at": at, "used": used}))
}

/// Damages a log while no other fault is active on the node.
pub(super) fn damage(env: &Env, random: &mut fastrand::Rng, damage: Damage) -> Result<Value> {
    let claim = env.claim(|mut free| {
        random.shuffle(&mut free);
        free.truncate(1);
        free
    })?;
    let id = claim.nodes[0];
    env.cluster.kill(id)?;
    let mut what = break_file(&env.cluster.data_of(id), random, damage)?;
    env.is_damaged(id, true);
    what["node"] = json!(id);
    env.cluster.start_node(id)?;
    if !is_repaired(env, id, &mut what)? {
        replace(env, random, id, &mut what)?;
    }
    Ok(what)
}

/// The same at the worst moment. Only a bare majority has the latest writes; one of its nodes loses the end
/// of its log, and the others are cut off. If that node took part again as if nothing had happened, it would
/// form a majority with the nodes that never had those writes, and acknowledged writes would be lost
/// although only one disk was damaged.
pub(super) fn lost_tail(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let network = &env.cluster.network;
    let leader = env.cluster.leader().context("there was no leader")?;
    let mut nodes = env.cluster.running();
    random.shuffle(&mut nodes);
    nodes.sort_by_key(|node| *node != leader);
    if nodes.len() < 5 || nodes.len() < env.cluster.ids().len() {
        bail!("it takes five nodes, and all of them");
    }
    let (majority, rest) = nodes.split_at(nodes.len() / 2 + 1);
    let (others, victim) = majority.split_at(majority.len() - 1);
    let claim = env.claim(|free| free.into_iter().filter(|node| victim.contains(node)).collect())?;
    let id = claim.nodes[0];
    let block = |links: &[(u64, u64)]| network.change(links, |weather| weather.blocked += 1);
    let unblock = |links: &[(u64, u64)]| {
        network.change(links, |weather| weather.blocked = weather.blocked.saturating_sub(1));
    };
    let (first, second) = (between(majority, rest), between(others, victim));
    block(&first);
    env.sleep(hold);
    block(&second);
    let killed = env.cluster.kill(id);
    unblock(&between(victim, rest));
    let run = || -> Result<Value> {
        killed?;
        let mut what = break_file(&env.cluster.data_of(id), random, Damage::Tail)?;
        env.is_damaged(id, true);
        what["node"] = json!(id);
        env.cluster.start_node(id)?;
        is_repaired(env, id, &mut what)?;
        env.sleep(hold);
        Ok(what)
    };
    let what = run();
    unblock(&second);
    unblock(&between(others, rest));
    let mut what = what?;
    if what["repaired"].is_null() {
        replace(env, random, id, &mut what)?;
    }
    Ok(what)
}

/// Waits for a started node's reaction to its damage: true if it continues, false if it refuses. If it does
/// neither in time, `Env::look_for_refusals` continues to wait.
pub(super) fn is_repaired(env: &Env, id: u64, what: &mut Value) -> Result<bool> {
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        if let Some(status) = env.cluster.ended(id)? {
            if status.code() == Some(DATA_DAMAGED) {
                env.has_refused(id, true);
            } else {
                let detail = format!("node {id} with damage {what}: {status}");
                env.record("finding", json!({"anomaly": "unexpected exit", "detail": detail}));
            }
            env.is_damaged(id, false);
            what["refused"] = json!(status.code());
            return Ok(false);
        }
        if env.cluster.is_ready(id) {
            env.is_damaged(id, false);
            what["repaired"] = json!(true);
            return Ok(true);
        }
        if Instant::now() > deadline || env.is_stopped() {
            bail!("node {id} neither refused its damaged log nor was it ready in time: {what}");
        }
        std::thread::sleep(POLL);
    }
}

pub(super) fn replace(env: &Env, random: &mut fastrand::Rng, id: u64, what: &mut Value) -> Result<()> {
    membership::remove(env, random, id)?;
    env.has_refused(id, false);
    what["joined"] = membership::grow(env, random, Duration::ZERO)?["joined"].clone();
    Ok(())
}

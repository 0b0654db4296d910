//! A node comes back with an older copy of its disk, like a restored virtual machine. It has forgotten what
//! it acknowledged and voted for. The others have met it since, so it must be refused.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Env, disk, process::READY_PATIENCE};

const POLL: Duration = Duration::from_millis(50);

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context("cannot create a directory for the copy")?;
    for entry in fs::read_dir(from).context("cannot list what is copied")? {
        let entry = entry.context("cannot list what is copied")?;
        let there = to.join(entry.file_name());
        if entry.file_type().context("cannot look at what is copied")?.is_dir() {
            copy(&entry.path(), &there)?;
        } else {
            fs::copy(entry.path(), there).context("cannot copy a file")?;
        }
    }
    Ok(())
}

/// Copies the disk of a node, half of the time while it runs, starts it again, lets it run for a while, and
/// puts the copy back.
pub(super) fn rolled_back(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let claim = env.claim(|mut free| {
        random.shuffle(&mut free);
        free.truncate(1);
        free
    })?;
    let id = claim.nodes[0];
    let data = env.cluster.data_of(id);
    let kept = data.with_extension("older");
    let is_hot = random.bool();
    if is_hot {
        // A snapshot of one moment, as of a virtual machine.
        env.cluster.pause(id)?;
        let copied = copy(&data, &kept);
        env.cluster.resume(id)?;
        copied?;
    }
    env.cluster.kill(id)?;
    if !is_hot {
        copy(&data, &kept)?;
    }
    env.cluster.start_node(id)?;
    let deadline = Instant::now() + READY_PATIENCE;
    while !env.cluster.is_ready(id) {
        if Instant::now() > deadline || env.is_stopped() {
            bail!("node {id} was not ready in time with the disk that it had");
        }
        std::thread::sleep(POLL);
    }
    env.sleep(hold);
    env.cluster.kill(id)?;
    fs::remove_dir_all(&data).context("cannot remove a node's data")?;
    fs::rename(&kept, &data).context("cannot put the copy back")?;
    env.is_damaged(id, true);
    env.cluster.start_node(id)?;
    let mut what = json!({"node": id, "hot": is_hot, "older_by_ms": hold.as_millis() as u64});
    if disk::is_repaired(env, id, &mut what)? {
        let detail = format!("nobody has noticed the older disk of node {id}: {what}");
        env.record("finding", json!({"anomaly": "older disk accepted", "detail": detail}));
        return Ok(what);
    }
    disk::replace(env, random, id, &mut what)?;
    if what["joined"].is_null() {
        bail!("nobody has taken its place: {what}");
    }
    Ok(what)
}

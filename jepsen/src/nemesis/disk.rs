//! A damaged log on one node. It is killed, a byte of its log is flipped or a file of it cut short, and it is
//! started again. Either it refuses to start with the documented exit code and is then replaced as its message
//! says, or it repairs a torn tail and goes on.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Env, membership, process::READY_PATIENCE};

/// The documented exit code for damaged data.
const DATA_DAMAGED: i32 = 6;
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy)]
pub(super) enum Damage {
    /// One byte of a file is another.
    Flip,
    /// The end of a file is missing.
    Truncate,
}

/// The log's files with content, and how long that is: they are filled with zeroes ahead.
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
    let (path, used) = random.choice(files(&data.join("log"))?).context("the log is empty")?;
    let file = File::options().read(true).write(true).open(&path).context("cannot open the log")?;
    let at = random.u64(..used);
    match damage {
        Damage::Flip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).context("cannot read the log")?;
            file.write_all_at(&[byte[0] ^ (1 << random.u8(..8))], at).context("cannot write the log")?;
        }
        Damage::Truncate => file.set_len(at).context("cannot cut the log")?,
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(json!({"file": name, "at": at, "used": used}))
}

pub(super) fn damage(env: &Env, random: &mut fastrand::Rng, damage: Damage) -> Result<Value> {
    let cluster = &env.cluster;
    let claim = env.claim(|mut free| {
        random.shuffle(&mut free);
        free.truncate(1);
        free
    })?;
    let id = claim.nodes[0];
    cluster.kill(id)?;
    let mut what = break_file(&cluster.data_of(id), random, damage)?;
    what["node"] = json!(id);
    cluster.start_node(id)?;
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        if let Some(status) = cluster.ended(id)? {
            if status.code() != Some(DATA_DAMAGED) {
                env.record(
                    "finding",
                    json!({"anomaly": "unexpected exit", "detail": format!("node {id} with damage {what}: {status}")}),
                );
            }
            what["refused"] = json!(status.code());
            break;
        }
        if cluster.is_ready(id) {
            what["repaired"] = json!(true);
            return Ok(what);
        }
        if Instant::now() > deadline || env.is_stopped() {
            bail!("node {id} neither refused its damaged log nor was it ready in time: {what}");
        }
        std::thread::sleep(POLL);
    }
    membership::remove(env, random, id)?;
    what["joined"] = membership::grow(env, random, Duration::ZERO)?["joined"].clone();
    Ok(what)
}

//! Shrinks a script: removes lines as long as the same anomaly is still found.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::sim::{
    one::Summary,
    seeds::{SEED_TIME_MAX, within},
};

#[derive(Args, Debug)]
pub(crate) struct Shrink {
    /// The script of a failed seed; the smaller one is written next to it
    #[arg(value_name = "FILE")]
    script: PathBuf,
    /// The anomaly that must still be found [default: the first one of the script]
    #[arg(long, value_name = "ANOMALY")]
    anomaly: Option<String>,
}

/// Shrinks a script. True if any line could be removed.
pub(crate) fn shrink(options: &Shrink, is_asked_to_stop: fn() -> bool) -> Result<bool> {
    let text = std::fs::read_to_string(&options.script).context("cannot read the script")?;
    let small = options.script.with_extension("small");
    let is_moment = |line: &&str| line.starts_with(|first: char| first.is_ascii_digit() || first == '+');
    let head: Vec<&str> = text.lines().take_while(|line| !is_moment(line)).collect();
    let mut lines: Vec<&str> = text.lines().skip(head.len()).collect();
    let whole = lines.len();
    let found = |lines: &[&str]| -> Result<Vec<String>> {
        let text = [&head[..], lines].concat().join("\n") + "\n";
        std::fs::write(&small, text).context("cannot write the smaller script")?;
        anomalies(&small)
    };
    let first = found(&lines)?;
    let Some(anomaly) = options.anomaly.as_ref().or(first.first()) else { bail!("the script finds nothing") };
    println!("{whole} lines find: {anomaly}");
    let mut size = lines.len().div_ceil(2);
    while size > 0 && !is_asked_to_stop() {
        let mut at = 0;
        while at < lines.len() && !is_asked_to_stop() {
            let mut fewer = lines.clone();
            fewer.drain(at..(at + size).min(lines.len()));
            if found(&fewer)?.contains(anomaly) {
                lines = fewer;
                println!("{} lines", lines.len());
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    found(&lines)?;
    println!("{} of {whole} lines are left in {}", lines.len(), small.display());
    Ok(lines.len() < whole)
}

/// The anomalies found by a script, run in its own process; none if it does not end.
fn anomalies(script: &Path) -> Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    let out = tempfile::tempdir().context("cannot create a directory")?;
    command.arg("sim-one").arg("--script").arg(script).arg("--out").arg(out.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot simulate")?;
    let Some(output) = within(child, SEED_TIME_MAX)? else { return Ok(Vec::new()) };
    // A run that panicked has no summary, and is another matter.
    let Ok(summary) = serde_json::from_slice::<Summary>(&output) else { return Ok(Vec::new()) };
    Ok(summary.findings.into_iter().map(|finding| finding.anomaly).collect())
}

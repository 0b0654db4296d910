//! Pairs of workload and nemesis, run one after the other: a few for CI, or all of them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    nemesis,
    run::{Plan, run},
    verdict::{Verdict, judge},
    workload,
};

/// The control: it is expected to be found wrong.
const CONTROL: &str = "lock-unfenced";

/// A short list that touches every workload and every group of nemeses.
const SHORT: &[(&str, &str)] = &[
    ("register", "kill"),
    ("append", "partition"),
    ("set", "pause"),
    ("counter", "loss,delay"),
    ("ids", "transfer"),
    ("bank", "membership"),
    ("expiry", "rolling-restart"),
    ("lock", "pause,checkpoint"),
    ("register", "disk"),
    ("append", "disk-lost-unsynced-all"),
    ("expiry", "clock"),
    ("set", "load-hot-key,kill-leader"),
    ("read-levels", "kill,partition"),
    ("once", "kill,partition"),
    ("mutex", "pause"),
    ("election", "kill,partition"),
    ("feed", "kill,partition"),
    ("snapshot", "kill,partition"),
    (CONTROL, "pause"),
];

/// What a suite is.
pub(crate) struct Suite {
    pub(crate) binary: PathBuf,
    pub(crate) dir: PathBuf,
    /// Of each run; everything but workload, nemeses and seed.
    pub(crate) plan: Plan,
    /// Every workload with every group of nemeses and every other fault.
    pub(crate) is_full: bool,
}

impl Suite {
    fn pairs(&self) -> Vec<(String, String)> {
        if !self.is_full {
            return SHORT.iter().map(|(workload, nemesis)| ((*workload).into(), (*nemesis).into())).collect();
        }
        // Groups stand for their members; what is not done would only fail.
        let nemeses = nemesis::leaders().into_iter().filter(|name| *name != "packet");
        let nemeses: Vec<&str> = nemeses.chain(["kill,partition", "pause,loss,checkpoint"]).collect();
        let workloads = workload::NAMES.iter().map(|(name, _)| *name);
        workloads
            .flat_map(|workload| {
                nemeses.iter().map(move |nemesis| (workload.to_owned(), (*nemesis).to_owned()))
            })
            .collect()
    }

    /// Runs all pairs; gives whether each ended as it should, with a table in `suite.md`.
    pub(crate) fn run(&self, is_asked_to_stop: fn() -> bool) -> Result<bool> {
        let pairs = self.pairs();
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        let mut table = String::from(
            "| workload | nemesis | seed | ok | failed | unknown | faults (effective) | longest silence | verdict |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        let mut is_good = true;
        for (number, (workload, nemesis)) in pairs.iter().enumerate() {
            let seed = self.plan.seed + number as u64;
            let nemeses: Vec<String> = nemesis.split(',').map(str::to_owned).collect();
            let plan = Plan { workload: workload.clone(), nemeses, seed, ..self.plan.clone() };
            eprintln!("[{}/{}] {workload} with {nemesis}, seed {seed}", number + 1, pairs.len());
            let dir = self.dir.join(format!("{:03}-{workload}-{}", number + 1, nemesis.replace(',', "+")));
            let verdict = one(&plan, &self.binary, &dir, is_asked_to_stop);
            let is_expected = match &verdict {
                Ok(verdict) => is_expected(verdict),
                Err(error) => {
                    eprintln!("  {error:#}");
                    false
                }
            };
            is_good &= is_expected;
            table.push_str(&row(&plan, verdict.as_ref().ok(), is_expected));
            std::fs::write(self.dir.join("suite.md"), &table).context("cannot write the table")?;
            if is_asked_to_stop() {
                bail!("stopped early, after {} of {} runs", number + 1, pairs.len());
            }
        }
        print!("{table}");
        Ok(is_good)
    }
}

fn one(plan: &Plan, binary: &Path, dir: &Path, is_asked_to_stop: fn() -> bool) -> Result<Verdict> {
    run(plan, None, binary, dir, is_asked_to_stop)?;
    let verdict = judge(dir)?;
    eprint!("{}", verdict.text().lines().take(6).fold(String::new(), |out, line| out + "  " + line + "\n"));
    if verdict.valid {
        std::fs::remove_dir_all(dir.join("data")).context("cannot remove the nodes' data")?;
    }
    Ok(verdict)
}

/// Clean; or, for the control, caught, with nothing else amiss.
fn is_expected(verdict: &Verdict) -> bool {
    if verdict.plan.workload != CONTROL {
        return verdict.valid;
    }
    let is_caught = verdict.findings.iter().any(|finding| finding.anomaly == "lost update");
    is_caught && verdict.undecided.is_empty() && verdict.missing.is_empty()
}

fn row(plan: &Plan, verdict: Option<&Verdict>, is_expected: bool) -> String {
    let mut row = String::new();
    let _ = write!(row, "| {} | {} | {} ", plan.workload, plan.nemeses.join(", "), plan.seed);
    let Some(verdict) = verdict else { return row + "| | | | | | did not run |\n" };
    let (total, (begun, effective)) = (verdict.total(), verdict.faults());
    let word = match (is_expected, plan.workload == CONTROL) {
        (true, true) => "caught, as it should be".to_owned(),
        (true, false) => "clean".to_owned(),
        (false, _) => {
            let names: Vec<&str> = verdict.findings.iter().map(|finding| finding.anomaly.as_str()).collect();
            let mut names = [names, verdict.missing.iter().map(String::as_str).collect()].concat();
            names.dedup();
            format!("NOT AS EXPECTED: {}", names.join("; "))
        }
    };
    let _ = writeln!(
        row,
        "| {} | {} | {} | {begun} ({effective}) | {} ms | {word} |",
        total.ok, total.fail, total.info, verdict.silence_ms
    );
    row
}

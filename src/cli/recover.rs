//! `kvorum recover`: for a cluster that has lost a majority of the voters for good. Inspects the directories
//! of the surviving nodes; when told so explicitly, makes one of them a new cluster.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use clap::Args;
use kvorum_raft::{
    NodeId, StartError, descriptors,
    offline::{
        Checkpoint, INDEXES_SKIPPED, NewCluster, RecoverError, Survivor, check, found_cluster, longest,
        surviving_majority,
    },
};

use super::{DATA_DAMAGED, DATA_LOCKED, FAILED, Failure, OTHER_DATA, want};

/// The introduction of `--help`.
pub(super) const HELP: &str = "\
Looks at the data directories of stopped nodes, and makes one of them a new cluster of one node.

For one case only: a majority of the voters is lost for good, with its disks. While a majority can be started again, start
it: nothing is lost. A lost minority is replaced while the cluster runs. Both are in docs/recovery.md.

All nodes must be stopped. Without --as-new-cluster the directories are looked at, nothing is changed, and the command to
go on with is printed. Give all directories that survived: the one with the longest log loses least.";

/// Looks at the data directories of stopped nodes, and makes one of them a new cluster of one node
#[derive(Args, Debug)]
pub struct Recover {
    /// Data directory of a surviving node; once for each
    #[arg(long = "data", value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Rewrite one directory: its node becomes the only member of a new cluster
    #[arg(long, requires = "may_lose")]
    as_new_cluster: bool,
    /// The node to choose, when several directories are given
    #[arg(long, value_name = "ID", requires = "as_new_cluster")]
    choose: Option<NodeId>,
    /// Choose it although another survivor has a longer log: what only that one has is lost
    #[arg(long, requires = "as_new_cluster")]
    although_shorter: bool,
    /// Confirm that acknowledged writes are lost if they are only in the lost logs
    #[arg(long = "yes-i-may-lose-acknowledged-writes", requires = "as_new_cluster")]
    may_lose: bool,
}

pub(super) fn run(recover: Recover) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    // The pages have many files.
    descriptors::raise();
    runtime.block_on(recover.run())
}

impl Recover {
    async fn run(self) -> Result<(), Failure> {
        let mut survivors = Vec::new();
        let mut damaged = None;
        for dir in &self.dirs {
            match Survivor::open(dir).await {
                Ok(survivor) => {
                    print!("{}", describe(&survivor));
                    survivors.push(survivor);
                }
                // The other directories may still be usable.
                Err(error @ RecoverError::Damaged { .. }) => {
                    println!("{}\n  DAMAGED      {error}\n", dir.display());
                    damaged = Some(error);
                }
                Err(error) => return Err(failure(error)),
            }
        }
        let Some(longest) = longest(&survivors) else {
            let unusable = || {
                let why = survivors.iter().filter_map(Survivor::unusable);
                RecoverError::Refused(format!(
                    "nothing can be recovered: {}",
                    why.collect::<Vec<_>>().join("; ")
                ))
            };
            return Err(failure(damaged.unwrap_or_else(unusable)));
        };
        if !self.as_new_cluster {
            print!("{}", advise(&survivors, longest));
            return Ok(());
        }
        let chosen = self.chosen(&survivors).map_err(failure)?;
        check(&survivors, chosen, self.although_shorter).map_err(failure)?;
        let term_max = survivors.iter().map(|survivor| survivor.term).max().unwrap_or(0);
        let lost: BTreeSet<NodeId> = survivors.iter().flat_map(|one| one.members.keys().copied()).collect();
        let dir = survivors[chosen].dir.clone();
        println!("Rewriting {}. If this is interrupted, run the same command again.", dir.display());
        let founded = found_cluster(survivors.swap_remove(chosen), term_max).await.map_err(failure)?;
        print!("{}", report(&founded, &dir, &lost));
        Ok(())
    }

    fn chosen(&self, survivors: &[Survivor]) -> Result<usize, RecoverError> {
        let refused = |text: String| Err(RecoverError::Refused(text));
        match self.choose {
            None if survivors.len() == 1 && self.dirs.len() == 1 => Ok(0),
            None => refused(
                "several directories are given: say with --choose ID which node becomes the cluster".into(),
            ),
            Some(id) => match survivors.iter().position(|survivor| survivor.node_id == id) {
                Some(place) => Ok(place),
                None => refused(format!("none of the directories that can be used is node {id}'s")),
            },
        }
    }
}

/// The exit code and the advice for each error.
fn failure(error: RecoverError) -> Failure {
    if let Some(refused) = error.want() {
        return want::failure(refused, Path::new("the data directory"), &error);
    }
    let (code, advice) = match &error {
        RecoverError::Directory(StartError::Locked(_)) => (
            DATA_LOCKED,
            Some("Stop the node first. If it cannot be stopped because it serves, nothing is lost."),
        ),
        RecoverError::NotData(_) => (OTHER_DATA, None),
        RecoverError::Damaged { .. } => {
            (DATA_DAMAGED, Some("Use another survivor's directory. Nothing was changed in this one."))
        }
        RecoverError::NoRoom { .. } => {
            (FAILED, Some("Make room, or move the whole directory to a larger disk."))
        }
        _ => (FAILED, None),
    };
    Failure { code, error: anyhow!("{error}"), advice: advice.map(str::to_owned) }
}

fn list(ids: impl IntoIterator<Item = NodeId>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

/// Describes the content of one directory.
fn describe(survivor: &Survivor) -> String {
    let mut out = format!("{}\n", survivor.dir.display());
    let mut line = |name: &str, text: String| out.push_str(&format!("  {name:<12} {text}\n"));
    line("node", survivor.node_id.to_string());
    line("cluster", survivor.cluster_id.clone().unwrap_or_else(|| "none".into()));
    let voted = survivor.voted_for.map_or_else(String::new, |id| format!(", for node {id}"));
    line("voted", format!("in term {}{voted}", survivor.term));
    line("last entry", format!("{} of term {}", survivor.last.index, survivor.last.term));
    line("committed", format!("at least up to {}", survivor.committed_index));
    line(
        "checkpoint",
        match &survivor.checkpoint {
            Checkpoint::None => "none, the log has everything".into(),
            Checkpoint::At { index, pages } => format!("at {index}, all {pages} pages are good"),
            Checkpoint::Unreadable(why) => format!("NOT READABLE: {why}"),
        },
    );
    let voters: Vec<String> = survivor.voters.iter().map(|voters| list(voters.iter().copied())).collect();
    line("voters", voters.join(" and at once "));
    for (id, peer) in &survivor.members {
        let role =
            if survivor.voters.iter().any(|voters| voters.contains(id)) { "" } else { ", does not vote" };
        line("", format!("node {id} at {peer}{role}"));
    }
    for path in &survivor.set_aside {
        line("set aside", format!("{}: pages that could not be read", path.display()));
    }
    if survivor.is_unfinished {
        line("UNFINISHED", "a recovery of this directory was begun; run the same command again".into());
    }
    if let Some(why) = survivor.unusable() {
        line("NOT USABLE", why);
    }
    out.push('\n');
    out
}

/// What to do next.
fn advise(survivors: &[Survivor], longest: usize) -> String {
    if surviving_majority(survivors) {
        return "A majority of the voters is here: nothing is lost. Start these nodes as they are, and replace the others\n\
                while the cluster runs. Nothing was changed.\n"
            .into();
    }
    let best = &survivors[longest];
    let mut out = format!(
        "Node {} has the longest log: up to {} of term {}.\n\n",
        best.node_id, best.last.index, best.last.term
    );
    out.push_str(&format!(
        "What a recovery does to the data:\n\
         \u{20} - Kept: everything up to {}. It was committed.\n",
        best.committed_index
    ));
    if best.last.index > best.committed_index {
        out.push_str(&format!(
            "\u{20} - Kept, but nobody may have been told so: {} to {}. Clients may have had UNCERTAIN or no answer for these.\n",
            best.committed_index + 1,
            best.last.index
        ));
    }
    out.push_str(&format!(
        "\u{20} - LOST: what was acknowledged and is only in the logs of nodes that are gone, that is, entries after {}.\n\
         \u{20}   How many there are nobody can tell from here: the newest that clients or other systems remember.\n\
         \u{20} - Tokens of locks, versions and positions of the change feed that were given for up to {INDEXES_SKIPPED} lost entries\n\
         \u{20}   are not given again.\n\n\
         Look once more for the other nodes' disks: while a majority of the voters ({}) can be started, nothing is lost.\n\
         If it cannot, run this. It copies the old state first, inside the directory:\n\n\
         \u{20} kvorum recover",
        best.last.index,
        list(best.voters.iter().flatten().copied().collect::<BTreeSet<_>>())
    ));
    for survivor in survivors {
        out.push_str(&format!(" --data {}", shell(&survivor.dir.display().to_string())));
    }
    if survivors.len() > 1 {
        out.push_str(&format!(" --choose {}", best.node_id));
    }
    out.push_str(
        " \\\n      --as-new-cluster --yes-i-may-lose-acknowledged-writes\n\nNothing was changed.\n",
    );
    out
}

/// Quotes a word for a shell.
fn shell(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "/._-+=:,@%".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What was done, and what to do next.
fn report(founded: &NewCluster, dir: &std::path::Path, members: &BTreeSet<NodeId>) -> String {
    let NewCluster { cluster_id, node_id, kept_index, backup } = founded;
    let former: Vec<NodeId> = members.iter().copied().filter(|id| id != node_id).collect();
    let next = members.last().copied().unwrap_or(*node_id) + 1;
    format!(
        "Done. Node {node_id} is the only member of the new cluster {cluster_id}, with all entries up to {kept_index}.\n\n\
         The state before is in {}, a complete data directory of the old cluster. To undo\n\
         this, use it in the place of {} before the new cluster serves anybody.\n\n\
         Next:\n\
         \u{20} 1. Start it, with the options that it had and no --peers:\n\
         \u{20}      kvorum serve --id {node_id} --data {} ...\n\
         \u{20} 2. Look at the data: kvorum status, and what clients and other systems remember of the last writes.\n\
         \u{20} 3. Add nodes with EMPTY directories, one after the other. The ids {} are not given again:\n\
         \u{20}      kvorum serve --id {next} --join http://THIS-NODE ...\n\
         \u{20} 4. Until two more nodes vote, the loss of this one disk loses everything.\n\
         Never start the other directories of the old cluster again: they are refused by the new one, but two of them can\n\
         still find a majority of the old one and serve clients.\n",
        backup.display(),
        dir.display(),
        shell(&dir.display().to_string()),
        list(former),
    )
}

//! A script: what is done to a world, line by line, instead of random faults. Every failed seed writes one,
//! and handwritten ones show one scenario whatever the seed is: they refer to nodes by their role.
//!
//! ```text
//! # comments, and before the first timed line what would be an option
//! members 3
//! clients 0
//! 1200 kill 2                      at a time of the world, in milliseconds
//! +30 block F>L                    this long after the previous line
//! +0 let L leader                  a name for a node: the leader, another leader (waits for one),
//! +0 let G leader-besides L        or the first node that is none of these
//! +0 let F besides L G
//! +0 await whole                   until all nodes serve; calls: all are answered; stopped: no node runs
//! +0 do L write [0, 1]             an operation of the workload, at this node; it is judged with all others
//! +0 call L GET a => nil           a command, retried if refused; the reply is nil, !nil or contains this
//! ```

pub(in crate::sim) mod action;
pub(in crate::sim) mod shrink;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, FromArgMatches as _};
use serde_json::Value;

use crate::client::{Failure, Outcome, Reply};
use crate::sim::{
    clients::Load,
    knobs::Knobs,
    node::Node,
    script::action::{Action, Names},
    seeds,
    turns::Turns,
    world::World,
};

/// How long a line may wait for its condition, and a call for its answer, in milliseconds.
const PATIENCE_MS: u64 = 20_000;
/// Processes from this number on are those of scripts.
const PROCESS: i64 = 100_000;
/// The pause of a client before it retries.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// When a line is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(u64),
    After(u64),
}

pub(in crate::sim) struct Script {
    lines: Vec<(When, String)>,
    /// The next line, and since when it is the next.
    next: usize,
    since: Option<u64>,
    names: Names,
    /// Operations and calls without an answer.
    pending: Arc<AtomicUsize>,
    processes: i64,
}

/// The head of a script, before the first timed line: a seed, and options as lines.
pub(in crate::sim) struct Head {
    pub(in crate::sim) seed: Option<u64>,
    pub(in crate::sim) world: Vec<(String, String)>,
}

#[derive(clap::Parser)]
struct HeadOptions {
    #[command(flatten)]
    world: seeds::World,
}

impl Head {
    /// The options of a world, except for those of the command line.
    pub(in crate::sim) fn options(&self, out: &Path) -> Result<seeds::World> {
        let words = self.world.iter().flat_map(|(name, value)| {
            [Some(format!("--{name}")), Some(value.clone()).filter(|value| !value.is_empty())]
        });
        let words = std::iter::once("script".to_owned()).chain(words.flatten());
        let matches = HeadOptions::command().try_get_matches_from(words).context("the head of the script")?;
        let options = HeadOptions::from_arg_matches(&matches).context("the head of the script")?;
        Ok(seeds::World { out: out.to_owned(), ..options.world })
    }
}

/// Parses a script.
pub(in crate::sim) fn read(text: &str) -> Result<(Head, Script)> {
    let mut head = Head { seed: None, world: Vec::new() };
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim().to_owned();
        let after = first.strip_prefix('+').and_then(|ms| ms.parse().ok().map(When::After));
        match after.or_else(|| first.parse().ok().map(When::At)) {
            Some(when) => lines.push((when, rest)),
            None if !lines.is_empty() => bail!("{line}: a moment comes first"),
            None if first == "seed" => head.seed = Some(rest.parse().context("the seed")?),
            None => head.world.push((first.to_owned(), rest)),
        }
    }
    let (names, pending) = (Names::new(), Arc::default());
    Ok((head, Script { lines, next: 0, since: None, names, pending, processes: PROCESS }))
}

/// The script that repeats what was done.
pub(in crate::sim) fn write(
    seed: u64,
    world: &seeds::World,
    knobs: &Knobs,
    done: &[(u64, Action)],
) -> String {
    let said = world.said().into_iter().filter(|(name, _)| !["faults", "knobs"].contains(name));
    let said = said.chain([("knobs", knobs.to_string())]);
    let head = said.map(|(name, value)| format!("{name} {value}").trim_end().to_owned() + "\n");
    let lines = done.iter().map(|(at, action)| format!("{at} {action}\n"));
    format!("seed {seed}\n") + &head.chain(lines).collect::<String>()
}

impl Script {
    pub(in crate::sim) fn is_done(&self) -> bool {
        self.next == self.lines.len() && self.pending.load(Ordering::Relaxed) == 0
    }

    /// Performs all lines that are due.
    pub(in crate::sim) fn step(&mut self, world: &mut World) -> Result<()> {
        while let Some((when, line)) = self.lines.get(self.next).cloned() {
            let since = *self.since.get_or_insert(world.now);
            let due = match when {
                When::At(at) => at,
                When::After(ms) => since + ms,
            };
            if world.now < due {
                return Ok(());
            }
            let is_done = self.perform(world, &line).with_context(|| line.clone())?;
            if !is_done && world.now > due + PATIENCE_MS {
                world.found("script", format!("{line}: in vain"));
            }
            if !is_done {
                return Ok(());
            }
            tracing::info!(line, "script");
            self.next += 1;
            self.since = Some(world.now);
        }
        Ok(())
    }

    /// Performs a line. False if it has to wait.
    fn perform(&mut self, world: &mut World, line: &str) -> Result<bool> {
        let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match verb {
            "let" => self.name(world, rest),
            "await" => self.is_so(world, rest),
            "do" => self.operate(world, rest).map(|()| true),
            "call" => self.call(world, rest).map(|()| true),
            // An impossible action is not an error: the script may have been shrunk.
            _ => action::parse(line, &self.names).and_then(|action| world.perform(&action)).map(|_| true),
        }
    }

    fn name(&mut self, world: &World, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let leader = world.leader().map(|leader| leader.node_id);
        let (name, node) = match words[..] {
            [name, "leader"] => (name, leader),
            [name, "leader-besides", other] => {
                let other = action::node(other, &self.names)?;
                (name, leader.filter(|leader| *leader != other))
            }
            [name, "besides", ref others @ ..] => {
                let others = others.iter().map(|other| action::node(other, &self.names));
                let others = others.collect::<Result<Vec<u64>>>()?;
                (name, world.nodes.keys().copied().find(|id| !others.contains(id)))
            }
            _ => bail!("a node is the leader, leader-besides A, or besides A B"),
        };
        self.names.extend(node.map(|node| (name.to_owned(), node)));
        Ok(node.is_some())
    }

    fn is_so(&self, world: &World, what: &str) -> Result<bool> {
        match what.trim() {
            "whole" => Ok(world.is_whole() && world.leader().is_some()),
            "calls" => Ok(self.pending.load(Ordering::Relaxed) == 0),
            "stopped" => Ok(!world.nodes.values().any(Node::is_running)),
            _ => bail!("whole, calls and stopped can be awaited"),
        }
    }

    fn operate(&mut self, world: &mut World, line: &str) -> Result<()> {
        let mut words = line.splitn(3, char::is_whitespace);
        let node = action::node(words.next().unwrap_or_default(), &self.names)?;
        let f = words.next().context("an operation has a name")?.to_owned();
        let value: Value = serde_json::from_str(words.next().unwrap_or("null")).context("its value")?;
        self.processes += 1;
        let process = self.processes;
        self.asks(world, move |turns, load| match connected(turns, load, node) {
            Some(mut open) => drop(load.workload.carry_out(&load.recorder, process, &mut open, &f, &value)),
            None => load.found("script", format!("node {node} takes no client for {f} {value}")),
        });
        Ok(())
    }

    fn call(&mut self, world: &mut World, line: &str) -> Result<()> {
        let (command, wanted) = line.split_once("=>").context("a call says what it must give")?;
        let mut words = command.split_whitespace().map(str::to_owned);
        let node = action::node(&words.next().unwrap_or_default(), &self.names)?;
        let (words, wanted): (Vec<String>, String) = (words.collect(), wanted.trim().to_owned());
        self.asks(world, move |turns, load| {
            let said = answer(turns, load, node, &words);
            let fits = match (&said, wanted.as_str()) {
                (Ok(Reply::Nil), "nil") => true,
                (Ok(reply), "!nil") => *reply != Reply::Nil,
                (Ok(Reply::Nil) | Err(_), _) => false,
                (Ok(reply), wanted) => format!("{reply:?}").contains(wanted),
            };
            if !fits {
                load.found("script", format!("{words:?} gave {said:?} on node {node}, and not {wanted}"));
            }
        });
        Ok(())
    }

    fn asks(&self, world: &mut World, ask: impl FnOnce(&Turns, &Load) + Send + 'static) {
        let (pending, load) = (self.pending.clone(), world.load.clone());
        pending.fetch_add(1, Ordering::Relaxed);
        world.actor(move |turns| {
            ask(&turns, &load);
            pending.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn connected(turns: &Turns, load: &Load, node: u64) -> Option<crate::client::Connection> {
    let until = turns.now_us() + PATIENCE_MS * 1000;
    while turns.now_us() < until {
        let open = load.connect(turns, usize::MAX, node);
        if open.is_some() {
            return open;
        }
        turns.sleep(CONNECT_PAUSE);
    }
    None
}

/// Retries a command until it is not refused.
fn answer(turns: &Turns, load: &Load, node: u64, words: &[String]) -> Outcome<Reply> {
    let until = turns.now_us() + PATIENCE_MS * 1000;
    loop {
        let mut open =
            connected(turns, load, node).ok_or_else(|| Failure::Fail("it takes no client".into()))?;
        open.timeout = Duration::from_millis(PATIENCE_MS);
        let said = open.call(words);
        let is_refused = |failure: &Failure| match failure {
            Failure::Fail(why) | Failure::Info(why) => {
                ["CLUSTERDOWN", "LOADING", "UNCERTAIN", "TRYAGAIN"].iter().any(|word| why.starts_with(word))
                    || open.is_broken
            }
        };
        if said.is_ok() || turns.now_us() > until || !said.as_ref().err().is_some_and(is_refused) {
            return said;
        }
        turns.sleep(CONNECT_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_a_head_and_lines_with_moments() {
        let text =
            "# why\nseed 7\nmembers 3\nclients 0\nknobs log-entries-kept=1\n\n100 kill 1\n+5 let L leader\n";
        let (head, script) = read(text).unwrap();
        let options = head.options(Path::new("out")).unwrap();
        assert_eq!((head.seed, options.members, options.clients), (Some(7), Some(3), Some(0)));
        assert_eq!(options.knobs, ["log-entries-kept=1"]);
        let lines = [(When::At(100), "kill 1".to_owned()), (When::After(5), "let L leader".to_owned())];
        assert_eq!(script.lines, lines);
        assert!(read("5 kill 1\nmembers 3").is_err());
        assert!(read("member 3").unwrap().0.options(Path::new("out")).is_err());
    }

    #[test]
    fn what_was_done_is_written_as_a_script() {
        let (head, _) = read("workload register\nfaults kill").unwrap();
        let options = head.options(Path::new("out")).unwrap();
        let knobs = Knobs::default();
        let text = write(9, &options, &knobs, &[(70, Action::Kill(2)), (90, Action::Start(2))]);
        let head = format!("seed 9\ntime 10\nworkload register\nknobs {knobs}\n");
        assert_eq!(text, head + "70 kill 2\n90 start 2\n");
        assert!(read(&text).unwrap().0.options(Path::new("out")).is_ok());
    }
}

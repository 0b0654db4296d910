//! What can be done to a simulated world, each as a line of text: the components of faults and scripts.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result, bail};
use kvorum_raft::simulation::SYNC_MS_MAX;

use crate::sim::{
    network::{Delay, Place, Side, Way},
    world::World,
};

/// How long to wait for a leadership transfer.
const TRANSFER_TIME: Duration = Duration::from_secs(2);

/// An action at one moment. Nodes are referred to by their ids.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sim) enum Action {
    /// The process is killed.
    Kill(u64),
    /// The machine loses power, and what it has not synced.
    PowerCut(u64),
    /// A process is started, if there is none.
    Start(u64),
    /// A process is asked to stop, as by SIGTERM, and restarted this many milliseconds after its end.
    Stop(u64, u64),
    /// All processes are asked to stop, the leader last, at intervals of the second number; and all are
    /// restarted the first number of milliseconds after the end of the last.
    StopAll(u64, u64),
    Pause(u64),
    Resume(u64),
    Block(Ways),
    Release(Ways),
    /// The fault with this number delays pieces.
    Delay(u64, Delay),
    /// The fault with this number duplicates a message in this many of a thousand pieces.
    Double(u64, u64),
    /// The fault with this number ends.
    Calm(u64),
    BreakStream,
    /// Syncs take up to this many milliseconds.
    SlowDisk(u64, u64),
    WellDisk(u64),
    FailSync(u64),
    FullDisk(u64),
    FlipBit(u64),
    /// A copy of a disk is stored, replacing an earlier one ...
    CopyDisk(u64),
    /// ... and put back, while the node does not run.
    PutBackDisk(u64),
    /// The wall clock jumps by this many seconds.
    WallClock(u64, i64),
    /// A node is asked to run the log clock at half speed until the wall clock catches up, or at normal speed
    /// again.
    CloseClock(u64, bool),
    /// The monotonic clock runs at this rate.
    Rate(u64, f64),
    /// A node without data is started, and the given node is asked to add it.
    Grow(u64),
    Add(u64, u64),
    Remove(u64, u64),
    Transfer(u64, u64),
    Checkpoint(u64),
    /// A node takes its applied state for that of another log.
    Mislead(u64),
}

/// Everything from one place to another, or only on connections made by one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::sim) struct Ways {
    pub(in crate::sim) from: Place,
    pub(in crate::sim) to: Place,
    pub(in crate::sim) side: Option<Side>,
}

impl Ways {
    pub(in crate::sim) fn of(from: Place, to: Place) -> Ways {
        Ways { from, to, side: None }
    }

    fn each(self) -> impl Iterator<Item = Way> {
        let is_meant = move |side: &Side| self.side.is_none_or(|only| only == *side);
        Side::BOTH.into_iter().filter(is_meant).map(move |side| Way { from: self.from, to: self.to, side })
    }
}

impl From<Way> for Ways {
    fn from(way: Way) -> Ways {
        Ways { from: way.from, to: way.to, side: Some(way.side) }
    }
}

impl Action {
    /// Performs it. False if that was impossible.
    pub(in crate::sim) fn perform(&self, world: &mut World) -> Result<bool> {
        match *self {
            Action::Kill(id) => world.end(id, false),
            Action::PowerCut(id) => world.end(id, true),
            Action::Start(id) => world.start(id)?,
            Action::Stop(id, back_ms) => return Ok(world.stop(id, back_ms)),
            Action::StopAll(back_ms, apart_ms) => return Ok(world.stop_all(back_ms, apart_ms)),
            Action::Pause(_) | Action::Resume(_) | Action::Rate(..) | Action::WallClock(..) => {
                return Ok(self.to_process(world));
            }
            Action::Block(ways) => ways.each().for_each(|way| world.network.block(way)),
            Action::Release(ways) => ways.each().for_each(|way| world.network.release(way)),
            Action::Delay(number, delay) => world.network.delay(number, delay),
            Action::Double(number, permille) => world.network.double(number, permille),
            Action::Calm(number) => world.network.calm(number),
            Action::BreakStream => return Ok(world.network.break_one()),
            Action::SlowDisk(..)
            | Action::WellDisk(_)
            | Action::FailSync(_)
            | Action::FullDisk(_)
            | Action::FlipBit(_) => return Ok(self.to_disk(world)),
            Action::CopyDisk(id) => return world.copy_disk(id),
            Action::PutBackDisk(id) => return world.put_back_disk(id),
            Action::Grow(asked) => {
                let id = world.create()?;
                world.ask_to_add(asked, id);
            }
            Action::Add(asked, id) => world.ask_to_add(asked, id),
            Action::Remove(asked, id) => world.ask_to_remove(asked, id),
            Action::Transfer(..) | Action::Checkpoint(_) | Action::CloseClock(..) | Action::Mislead(_) => {
                return Ok(self.to_server(world));
            }
        }
        Ok(true)
    }

    fn to_process(&self, world: &mut World) -> bool {
        let (Action::Pause(id) | Action::Resume(id) | Action::Rate(id, _) | Action::WallClock(id, _)) = *self
        else {
            return false;
        };
        let Some(node) = world.nodes.get_mut(&id) else { return false };
        match *self {
            Action::Pause(_) if node.is_running() => node.is_paused = true,
            Action::Resume(_) if node.is_paused => node.resume(),
            Action::Rate(_, rate) => node.rate = rate,
            Action::WallClock(_, seconds) => node.move_wall_clock(seconds * 1_000_000),
            _ => return false,
        }
        true
    }

    fn to_disk(&self, world: &mut World) -> bool {
        let (Action::SlowDisk(id, _)
        | Action::WellDisk(id)
        | Action::FailSync(id)
        | Action::FullDisk(id)
        | Action::FlipBit(id)) = *self
        else {
            return false;
        };
        let Some(node) = world.nodes.get_mut(&id) else { return false };
        match *self {
            Action::SlowDisk(_, sync_ms_max) => node.slow_disk(Some(sync_ms_max)),
            Action::WellDisk(_) => node.slow_disk(None),
            Action::FlipBit(_) => {
                let is_flipped = !node.is_running() && node.storage.flip_bit();
                world.may_end.extend(is_flipped.then_some(id));
                return is_flipped;
            }
            // It ends itself at its next write.
            Action::FailSync(_) => {
                node.storage.fail_syncs();
                world.may_end.push(id);
            }
            _ => {
                node.storage.fail_writes();
                world.may_end.push(id);
            }
        }
        true
    }

    fn to_server(&self, world: &World) -> bool {
        match *self {
            Action::Transfer(asked, to) => world.ask(asked, move |server| async move {
                let _ = tokio::time::timeout(TRANSFER_TIME, server.node().transfer_leader(to)).await;
            }),
            Action::CloseClock(asked, close) => world.ask(asked, move |server| async move {
                let _ = server.node().close_clock(close).await;
            }),
            Action::Checkpoint(asked) => world.ask(asked, |server| async move {
                let _ = server.node().checkpoint_now().await;
            }),
            Action::Mislead(asked) => world.ask(asked, |server| async move { server.node().mislead() }),
            _ => false,
        }
    }
}

fn place(place: Place) -> String {
    match place {
        Place::Node(id) => id.to_string(),
        Place::Client(number) => format!("c{number}"),
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", place(self.from), place(self.to))?;
        f.write_str(match self.side {
            Some(Side::Calls) => " calls",
            Some(Side::Answers) => " answers",
            None => "",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Kill(id) => write!(f, "kill {id}"),
            Action::PowerCut(id) => write!(f, "power-cut {id}"),
            Action::Start(id) => write!(f, "start {id}"),
            Action::Stop(id, back_ms) => write!(f, "stop {id} {back_ms}"),
            Action::StopAll(back_ms, apart_ms) => write!(f, "stop-all {back_ms} {apart_ms}"),
            Action::Pause(id) => write!(f, "pause {id}"),
            Action::Resume(id) => write!(f, "resume {id}"),
            Action::Block(ways) => write!(f, "block {ways}"),
            Action::Release(ways) => write!(f, "release {ways}"),
            Action::Delay(number, Delay { on, max_ms, late_permille }) => {
                write!(f, "delay {number} {max_ms} {late_permille}")?;
                on.map_or(Ok(()), |(from, to)| write!(f, " {}", Ways::of(from, to)))
            }
            Action::Double(number, permille) => write!(f, "double {number} {permille}"),
            Action::Calm(number) => write!(f, "calm {number}"),
            Action::BreakStream => f.write_str("break-stream"),
            Action::SlowDisk(id, ms) => write!(f, "slow-disk {id} {ms}"),
            Action::WellDisk(id) => write!(f, "well-disk {id}"),
            Action::FailSync(id) => write!(f, "fail-sync {id}"),
            Action::FullDisk(id) => write!(f, "full-disk {id}"),
            Action::FlipBit(id) => write!(f, "flip-bit {id}"),
            Action::CopyDisk(id) => write!(f, "copy-disk {id}"),
            Action::PutBackDisk(id) => write!(f, "put-back-disk {id}"),
            Action::WallClock(id, seconds) => write!(f, "wall-clock {id} {seconds}"),
            Action::CloseClock(id, true) => write!(f, "close-clock {id}"),
            Action::CloseClock(id, false) => write!(f, "run-clock {id}"),
            Action::Rate(id, rate) => write!(f, "rate {id} {rate}"),
            Action::Grow(asked) => write!(f, "grow {asked}"),
            Action::Add(asked, id) => write!(f, "add {asked} {id}"),
            Action::Remove(asked, id) => write!(f, "remove {asked} {id}"),
            Action::Transfer(asked, id) => write!(f, "transfer {asked} {id}"),
            Action::Checkpoint(id) => write!(f, "checkpoint {id}"),
            Action::Mislead(id) => write!(f, "mislead {id}"),
        }
    }
}

/// Names that a script gave to nodes.
pub(in crate::sim) type Names = BTreeMap<String, u64>;

/// The words of a line.
struct Words<'a> {
    words: std::str::SplitWhitespace<'a>,
    names: &'a Names,
}

impl Words<'_> {
    fn word(&mut self) -> Result<&str> {
        self.words.next().context("something is left out")
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N> {
        let word = self.word()?;
        word.parse().ok().with_context(|| format!("{word} is no such number"))
    }

    fn node(&mut self) -> Result<u64> {
        let names = self.names;
        let word = self.word()?;
        node(word, names)
    }

    fn place(word: &str, names: &Names) -> Result<Place> {
        let client = word.strip_prefix('c').and_then(|number| number.parse().ok());
        client.map_or_else(|| node(word, names).map(Place::Node), |number| Ok(Place::Client(number)))
    }

    fn ways(&mut self) -> Result<Ways> {
        let names = self.names;
        let word = self.word()?;
        let (from, to) = word.split_once('>').with_context(|| format!("{word} is no A>B"))?;
        let (from, to) = (Words::place(from, names)?, Words::place(to, names)?);
        let side = match self.words.next() {
            None => None,
            Some("calls") => Some(Side::Calls),
            Some("answers") => Some(Side::Answers),
            Some(word) => bail!("{word} is neither calls nor answers"),
        };
        Ok(Ways { from, to, side })
    }

    fn delay(&mut self) -> Result<Delay> {
        let (max_ms, late_permille) = (self.number()?, self.number()?);
        let on = if self.words.clone().next().is_some() { Some(self.ways()?) } else { None };
        Ok(Delay { on: on.map(|ways| (ways.from, ways.to)), max_ms, late_permille })
    }
}

/// A node by its id, or by a name given in the script.
pub(in crate::sim) fn node(word: &str, names: &Names) -> Result<u64> {
    let known = names.get(word).copied().or_else(|| word.parse().ok());
    known.with_context(|| format!("{word} is no node"))
}

/// Parses the output of `Display`, in which names may replace ids.
pub(in crate::sim) fn parse(text: &str, names: &Names) -> Result<Action> {
    let mut rest = Words { words: text.split_whitespace(), names };
    let action = match rest.word()? {
        "kill" => Action::Kill(rest.node()?),
        "power-cut" => Action::PowerCut(rest.node()?),
        "start" => Action::Start(rest.node()?),
        "stop" => Action::Stop(rest.node()?, rest.number()?),
        "stop-all" => Action::StopAll(rest.number()?, rest.number()?),
        "pause" => Action::Pause(rest.node()?),
        "resume" => Action::Resume(rest.node()?),
        "block" => Action::Block(rest.ways()?),
        "release" => Action::Release(rest.ways()?),
        "delay" => Action::Delay(rest.number()?, rest.delay()?),
        "double" => Action::Double(rest.number()?, rest.number()?),
        "calm" => Action::Calm(rest.number()?),
        "break-stream" => Action::BreakStream,
        "slow-disk" => Action::SlowDisk(rest.node()?, rest.number()?),
        "well-disk" => Action::WellDisk(rest.node()?),
        "fail-sync" => Action::FailSync(rest.node()?),
        "full-disk" => Action::FullDisk(rest.node()?),
        "flip-bit" => Action::FlipBit(rest.node()?),
        "copy-disk" => Action::CopyDisk(rest.node()?),
        "put-back-disk" => Action::PutBackDisk(rest.node()?),
        "wall-clock" => Action::WallClock(rest.node()?, rest.number()?),
        "close-clock" => Action::CloseClock(rest.node()?, true),
        "run-clock" => Action::CloseClock(rest.node()?, false),
        "rate" => Action::Rate(rest.node()?, rest.number()?),
        "grow" => Action::Grow(rest.node()?),
        "add" => Action::Add(rest.node()?, rest.node()?),
        "remove" => Action::Remove(rest.node()?, rest.node()?),
        "transfer" => Action::Transfer(rest.node()?, rest.node()?),
        "checkpoint" => Action::Checkpoint(rest.node()?),
        "mislead" => Action::Mislead(rest.node()?),
        word => bail!("{word} is nothing that can be done"),
    };
    match rest.words.next() {
        None => Ok(action),
        Some(word) => bail!("{word} is one word too many"),
    }
}

/// The longest sync of a node's disk.
pub(in crate::sim) fn sync_ms_max(slow: Option<u64>) -> u64 {
    slow.unwrap_or(SYNC_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (one, two) = (Place::Node(1), Place::Client(2));
        let on = Some((one, two));
        let all = [
            Action::Stop(1, 300),
            Action::StopAll(20, 500),
            Action::Block(Ways::of(one, two)),
            Action::Release(Ways { from: two, to: one, side: Some(Side::Answers) }),
            Action::Delay(7, Delay { on, max_ms: 30, late_permille: 5 }),
            Action::Delay(7, Delay { on: None, max_ms: 30, late_permille: 5 }),
            Action::WallClock(3, -3600),
            Action::CloseClock(3, true),
            Action::CloseClock(3, false),
            Action::Rate(3, 0.875),
            Action::Remove(1, 2),
            Action::BreakStream,
        ];
        for action in all {
            assert_eq!(parse(&action.to_string(), &Names::new()).unwrap(), action);
        }
        let names = Names::from([("L".to_owned(), 3)]);
        assert_eq!(parse("kill L", &names).unwrap(), Action::Kill(3));
        assert_eq!(
            parse("block 1>L calls", &names).unwrap(),
            Action::Block(Ways { from: one, to: Place::Node(3), side: Some(Side::Calls) })
        );
        for wrong in
            ["", "kill", "kill X", "kill 1 2", "block 1-2", "block 1>2 both", "wall-clock 1 far", "do 1"]
        {
            assert!(parse(wrong, &names).is_err(), "{wrong}");
        }
    }
}

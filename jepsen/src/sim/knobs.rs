//! Sizes that a seed determines: most are so small that few entries exercise what takes many in a server.
//! Below the limits of configuration: checkpoints, purges, segments and snapshots happen every few entries.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use kvorum_raft::{NODE_ID_MAX, NodeConfig, simulation::knobs};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knobs(Vec<(&'static str, usize)>);

/// A knob, its usual value, and its other values.
type Row = (&'static str, usize, &'static [usize]);

/// A value may be repeated, to be drawn more often.
const ROWS: &[Row] = &[
    ("checkpoint-log-bytes", 4 << 10, &[1 << 10, 4 << 10, 4 << 10, 32 << 10]),
    ("log-entries-kept", 20, &[1, 5, 20, 20, 200]),
    ("log-segment-bytes", 16 << 10, &[8 << 10, 16 << 10, 16 << 10, 64 << 10]),
    ("log-cache-bytes", 2 << 10, &[1, 2 << 10, 2 << 10, 64 << 10]),
    ("entry-proposals-max", 1000, &[1, 2, 4, 1000, 1000]),
    ("entries-in-flight-max", 4, &[1, 2, 4, 4]),
    ("snapshot-chunk-bytes", 1 << 20, &[512, 512, 4 << 10, 1 << 20]),
    // 0 means the server's value.
    ("hash-bits", 0, &[4, 8]),
    ("packed-max", 0, &[4]),
    // The latency between nodes, in milliseconds, on top of random delays and faults.
    (DISTANCE, 0, &[0, 0, 10, 50, 150]),
    ("page-items-max", 0, &[2, 8]),
    (LIST_PAGE_BYTES, 0, &[64]),
    (FIRST_ID, 1, &[1, 1, 200, NODE_ID_MAX as usize - 60]),
    (MAXMEMORY, 1 << 30, &[]),
];

const DISTANCE: &str = "distance-ms";
/// The id of the first member; the others follow it.
const FIRST_ID: &str = "first-id";
/// The limit for the memory of the content.
const MAXMEMORY: &str = "maxmemory";
/// One seed in so many has a limit that its workload may reach, of this many bytes.
const LIMITED: u64 = 8;
const LIMITS: [usize; 2] = [12 << 10, 48 << 10];
const LIST_PAGE_BYTES: &str = "list-page-bytes-max";

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs(ROWS.iter().map(|(name, usual, _)| (*name, *usual)).collect())
    }
}

impl Knobs {
    /// Two thirds of the knobs have their usual values.
    pub(super) fn drawn(chance: &mut fastrand::Rng) -> Knobs {
        let mut draw = |(name, usual, values): &Row| {
            let is_drawn = !values.is_empty() && chance.u8(..3) == 0;
            let value = if is_drawn { chance.choice(*values).copied() } else { None };
            (*name, value.unwrap_or(*usual))
        };
        Knobs(ROWS.iter().map(&mut draw).collect())
    }

    /// Sets knobs given as `NAME=VALUE`.
    pub(super) fn set(&mut self, settings: &[String]) -> Result<()> {
        for setting in settings {
            let (name, value) = setting.split_once('=').with_context(|| format!("{setting} is no NAME=N"))?;
            let value = value.parse().with_context(|| format!("{setting} is no NAME=N"))?;
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some(knob) => knob.1 = value,
                None => bail!("there is no knob {name}"),
            }
        }
        Ok(())
    }

    /// Limits the memory in some seeds. Not drawn like the others, so that all else of a seed stays as it is.
    pub(super) fn limit_memory(&mut self, seed: u64) {
        if seed % LIMITED == LIMITED - 1 {
            self.set_one(MAXMEMORY, LIMITS[(seed / LIMITED % 2) as usize]);
        }
    }

    /// Gives the members the ids that scripts use.
    pub(super) fn count_from_one(&mut self) {
        self.set_one(FIRST_ID, 1);
    }

    /// Keeps lists in their keys' pages unless they are large: the feed does not show the content of large
    /// ones.
    pub(super) fn keep_lists_whole(&mut self) {
        self.set_one(LIST_PAGE_BYTES, 0);
    }

    fn set_one(&mut self, name: &str, value: usize) {
        self.0.iter_mut().filter(|(known, _)| *known == name).for_each(|(_, present)| *present = value);
    }

    fn value(&self, name: &str) -> usize {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.expect("every row has a value").1
    }

    /// The latency between nodes.
    pub(super) fn distance_ms(&self) -> u64 {
        self.value(DISTANCE) as u64
    }

    /// The limit for the memory of the content.
    pub(super) fn maxmemory(&self) -> u64 {
        self.value(MAXMEMORY) as u64
    }

    /// The id of the first member.
    pub(super) fn first_id(&self) -> u64 {
        self.value(FIRST_ID) as u64
    }

    /// Sets the knobs of this process.
    pub(super) fn turn_here(&self) {
        knobs::SNAPSHOT_CHUNK_BYTES.turn(self.value("snapshot-chunk-bytes"));
        knobs::HASH_BITS.turn(self.value("hash-bits"));
        knobs::PACKED_MAX.turn(self.value("packed-max"));
        knobs::PAGE_ITEMS_MAX.turn(self.value("page-items-max"));
        knobs::LIST_PAGE_BYTES_MAX.turn(self.value(LIST_PAGE_BYTES));
    }

    /// Sets the knobs of a node.
    pub(super) fn turn(&self, config: &mut NodeConfig) {
        config.checkpoint_log_bytes = self.value("checkpoint-log-bytes") as u64;
        config.log_entries_kept = self.value("log-entries-kept") as u64;
        config.log_segment_bytes = self.value("log-segment-bytes") as u64;
        config.log_cache_bytes = self.value("log-cache-bytes");
        config.entry_proposals_max = self.value("entry-proposals-max");
        config.entries_in_flight_max = self.value("entries-in-flight-max");
    }
}

impl fmt::Display for Knobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&settings.join(","))
    }
}

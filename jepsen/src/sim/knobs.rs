//! Sizes that a seed decides: most are so small that few entries meet what in a server many have to come together for.
//! Below what an operator may say: checkpoints, purges, segments and snapshots come every few entries.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use kvorum_raft::{NodeConfig, simulation::knobs};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knobs(Vec<(&'static str, usize)>);

/// A knob, what it is at first, and what it may be.
type Row = (&'static str, usize, &'static [usize]);

/// The same number may stand several times, to be drawn more often.
const ROWS: &[Row] = &[
    ("checkpoint-log-bytes", 4 << 10, &[1 << 10, 4 << 10, 4 << 10, 32 << 10]),
    ("log-entries-kept", 20, &[1, 5, 20, 20, 200]),
    ("log-segment-bytes", 16 << 10, &[8 << 10, 16 << 10, 16 << 10, 64 << 10]),
    ("log-cache-bytes", 2 << 10, &[1, 2 << 10, 2 << 10, 64 << 10]),
    ("entry-proposals-max", 1000, &[1, 2, 4, 1000, 1000]),
    ("entries-in-flight-max", 4, &[1, 2, 4, 4]),
    ("snapshot-chunk-bytes", 1 << 20, &[512, 512, 4 << 10, 1 << 20]),
    // Zero stands for what a server has.
    ("hash-bits", 0, &[4, 8]),
    ("packed-max", 0, &[4]),
    // How long everything takes from one node to another, in milliseconds, beside what chance and faults do.
    (DISTANCE, 0, &[0, 0, 10, 50, 150]),
];

const DISTANCE: &str = "distance-ms";

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs(ROWS.iter().map(|(name, usual, _)| (*name, *usual)).collect())
    }
}

impl Knobs {
    /// Two thirds of them have their usual places.
    pub(super) fn drawn(chance: &mut fastrand::Rng) -> Knobs {
        let mut draw = |(name, usual, values): &Row| {
            let value = if chance.u8(..3) == 0 { chance.choice(*values).copied() } else { None };
            (*name, value.unwrap_or(*usual))
        };
        Knobs(ROWS.iter().map(&mut draw).collect())
    }

    /// Sets some of them, as `NAME=VALUE`.
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

    fn value(&self, name: &str) -> usize {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.expect("every row has a value").1
    }

    /// How long everything takes from one node to another.
    pub(super) fn distance_ms(&self) -> u64 {
        self.value(DISTANCE) as u64
    }

    /// Turns those of this process.
    pub(super) fn turn_here(&self) {
        knobs::SNAPSHOT_CHUNK_BYTES.turn(self.value("snapshot-chunk-bytes"));
        knobs::HASH_BITS.turn(self.value("hash-bits"));
        knobs::PACKED_MAX.turn(self.value("packed-max"));
    }

    /// Turns those of a node.
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

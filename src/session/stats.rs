//! What this node counted since its start: for INFO and for metrics. Counters only; no lock, no allocation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the latency buckets in microseconds; one more bucket takes the rest.
pub const BUCKETS_US: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// One command's counters. A command's time is that of the unit it was executed in: from the moment its
/// request was decoded until its reply was ready to be sent, the wait for the log or the barrier included.
#[derive(Debug, Default)]
pub struct Counters {
    calls: AtomicU64,
    us_total: AtomicU64,
    /// Refused before execution: unknown, wrong arity.
    rejected: AtomicU64,
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
}

/// The counters at one moment.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Counted {
    pub calls: u64,
    pub us_total: u64,
    pub rejected: u64,
    pub buckets: [u64; BUCKETS_US.len() + 1],
}

impl Counters {
    /// Counts `calls` that took `elapsed` each.
    pub fn record(&self, calls: u64, elapsed: Duration) {
        let us = elapsed.as_micros() as u64;
        let bucket = BUCKETS_US.iter().position(|&bound| us <= bound).unwrap_or(BUCKETS_US.len());
        self.calls.fetch_add(calls, Relaxed);
        self.us_total.fetch_add(us * calls, Relaxed);
        self.buckets[bucket].fetch_add(calls, Relaxed);
    }

    /// Counts a refusal.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// What was counted.
    pub fn read(&self) -> Counted {
        Counted {
            calls: self.calls.load(Relaxed),
            us_total: self.us_total.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            buckets: std::array::from_fn(|index| self.buckets[index].load(Relaxed)),
        }
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.calls.store(0, Relaxed);
        self.us_total.store(0, Relaxed);
        self.rejected.store(0, Relaxed);
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

/// Counters of the front end as a whole.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Stats {
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    pub commands: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub protocol_errors: AtomicU64,
    pub output_limit_disconnections: AtomicU64,
    pub query_limit_disconnections: AtomicU64,
}

impl Stats {
    /// Begins anew.
    pub fn reset(&self) {
        for counter in [
            &self.connections,
            &self.connections_refused,
            &self.commands,
            &self.bytes_in,
            &self.bytes_out,
            &self.protocol_errors,
            &self.output_limit_disconnections,
            &self.query_limit_disconnections,
        ] {
            counter.store(0, Relaxed);
        }
    }
}

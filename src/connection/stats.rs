//! This node's counters since its start, for INFO and for metrics. No locks, no allocation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::table::{self, Row};

/// Upper bounds of the latency buckets in microseconds; one more bucket takes the rest.
pub const BUCKETS_US: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// One command's counters. A command's time is that of its unit: from the decoding of the request until its
/// reply is ready to be sent, including the wait for the log or the barrier.
#[derive(Debug, Default)]
pub struct Counters {
    calls: AtomicU64,
    us_total: AtomicU64,
    /// Refused before execution: unknown, wrong arity.
    rejected: AtomicU64,
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
}

/// A snapshot of the counters.
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

    /// Reads the counters.
    pub fn read(&self) -> Counted {
        Counted {
            calls: self.calls.load(Relaxed),
            us_total: self.us_total.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            buckets: std::array::from_fn(|index| self.buckets[index].load(Relaxed)),
        }
    }

    /// Resets the counters.
    pub fn reset(&self) {
        self.calls.store(0, Relaxed);
        self.us_total.store(0, Relaxed);
        self.rejected.store(0, Relaxed);
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

/// Counters of the front end.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Stats {
    /// One for each row of the command table.
    by_row: Vec<Counters>,
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    pub commands: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub protocol_errors: AtomicU64,
    pub output_limit_disconnections: AtomicU64,
    /// Connections closed because the buffers of all clients were too large together.
    pub evicted_clients: AtomicU64,
    pub query_limit_disconnections: AtomicU64,
    /// Open at present.
    pub http_connections: AtomicU64,
    /// Closed to make room for others.
    pub http_connections_put_out: AtomicU64,
    pub http_connections_refused: AtomicU64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            by_row: table::rows().iter().map(|_| Counters::default()).collect(),
            connections: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            commands: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            protocol_errors: AtomicU64::default(),
            output_limit_disconnections: AtomicU64::default(),
            evicted_clients: AtomicU64::default(),
            query_limit_disconnections: AtomicU64::default(),
            http_connections: AtomicU64::default(),
            http_connections_put_out: AtomicU64::default(),
            http_connections_refused: AtomicU64::default(),
        }
    }
}

impl Stats {
    /// Those of a command.
    pub fn of(&self, row: &Row) -> &Counters {
        &self.by_row[row.index]
    }

    /// Resets the counters.
    pub fn reset(&self) {
        self.by_row.iter().for_each(Counters::reset);
        for counter in [
            &self.connections,
            &self.connections_refused,
            &self.commands,
            &self.bytes_in,
            &self.bytes_out,
            &self.protocol_errors,
            &self.output_limit_disconnections,
            &self.evicted_clients,
            &self.query_limit_disconnections,
            &self.http_connections_put_out,
            &self.http_connections_refused,
        ] {
            counter.store(0, Relaxed);
        }
    }
}

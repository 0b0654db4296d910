//! The parameters that CONFIG GET shows under Redis's names, and the few that may change at run time. Initial
//! values come from the configuration; what cannot change is reported as Redis would report it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use kvorum_raft::ReadLevel;

use super::descriptors::Shares;
use crate::resp::request::Limits;

/// The values from the configuration.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Initial {
    /// The options that CONFIG GET shows, by name.
    pub shown: BTreeMap<&'static str, String>,
    pub databases: u32,
    pub clients_max: usize,
    /// The most clients for which there are file descriptors.
    pub clients_bound: usize,
    pub idle_timeout_s: u64,
    pub bulk_bytes_max: usize,
    pub arguments_max: usize,
    pub inline_bytes_max: usize,
    pub query_buffer_bytes_max: usize,
    pub output_buffer_bytes_max: usize,
    pub clients_bytes_max: u64,
    pub lock_delay_ms: u64,
    pub read_level: ReadLevel,
    pub dir: String,
    pub port: u16,
    pub bind: String,
}

impl Initial {
    /// Fits the number of clients to the file descriptors that there are for them.
    pub fn fit_clients(&mut self, shares: &Shares) {
        self.clients_bound = usize::try_from(shares.clients).unwrap_or(usize::MAX);
        let wanted = self.clients_max;
        self.clients_max = wanted.min(self.clients_bound);
        if wanted > self.clients_max {
            tracing::warn!(
                "You requested maxclients of {wanted}. Current maximum open files is {}. maxclients has been reduced to \
                 {} to compensate for low ulimit. If you need higher maxclients increase 'ulimit -n'.",
                shares.limit,
                self.clients_max
            );
        }
    }
}

/// The parameters of a running server.
#[derive(Debug)]
pub struct Settings {
    initial: Initial,
    lock_delay_ms: String,
    clients_max: AtomicUsize,
    idle_timeout_s: AtomicU64,
    bulk_bytes_max: AtomicUsize,
    query_buffer_bytes_max: AtomicUsize,
    clients_bytes_max: AtomicU64,
}

/// Parameters with fixed values, for clients and tools that ask for them.
const FIXED: &[(&str, &str)] = &[
    ("activerehashing", "yes"),
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("cluster-enabled", "no"),
    ("daemonize", "no"),
    ("io-threads", "1"),
    ("latency-monitor-threshold", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("repl-diskless-sync", "yes"),
    // A follower forwards writes: clients that see "yes" would refuse to write through it.
    ("replica-read-only", "no"),
    ("requirepass", ""),
    ("save", ""),
    ("slave-read-only", "no"),
    ("slowlog-log-slower-than", "10000"),
    ("slowlog-max-len", "128"),
    ("tcp-backlog", "511"),
    ("tcp-keepalive", "300"),
];

/// The decoder addresses query buffers with 32 bits.
const QUERY_BUFFER_BYTES_MAX: usize = (4 << 30) - 1;

impl Settings {
    /// Takes the initial values from the configuration.
    pub fn new(initial: Initial) -> Settings {
        Settings {
            clients_max: initial.clients_max.into(),
            idle_timeout_s: initial.idle_timeout_s.into(),
            bulk_bytes_max: initial.bulk_bytes_max.into(),
            query_buffer_bytes_max: initial.query_buffer_bytes_max.into(),
            clients_bytes_max: initial.clients_bytes_max.into(),
            lock_delay_ms: initial.lock_delay_ms.to_string(),
            initial,
        }
    }

    /// The limits for a request.
    pub fn limits(&self) -> Limits {
        Limits {
            bulk_bytes_max: self.bulk_bytes_max.load(Relaxed),
            arguments_max: self.initial.arguments_max,
            inline_bytes_max: self.initial.inline_bytes_max,
        }
    }

    /// The number of databases.
    pub fn databases(&self) -> u32 {
        self.initial.databases
    }

    /// The maximum number of connections.
    pub fn clients_max(&self) -> usize {
        self.clients_max.load(Relaxed)
    }

    /// After how many idle seconds a connection is closed; 0 for never.
    pub fn idle_timeout_s(&self) -> u64 {
        self.idle_timeout_s.load(Relaxed)
    }

    /// The maximum number of bytes of one connection that wait to be executed.
    pub fn query_buffer_bytes_max(&self) -> usize {
        self.query_buffer_bytes_max.load(Relaxed).min(QUERY_BUFFER_BYTES_MAX)
    }

    /// The maximum number of bytes of replies that wait for one connection to read them.
    pub fn output_buffer_bytes_max(&self) -> usize {
        self.initial.output_buffer_bytes_max
    }

    /// The maximum number of bytes that the buffers of all connections take together; None for any number.
    pub fn clients_bytes_max(&self) -> Option<usize> {
        let bytes = self.clients_bytes_max.load(Relaxed);
        (bytes > 0).then(|| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// The default lock delay: for how many milliseconds nothing is granted after a hold expires.
    pub fn lock_delay_ms(&self) -> &str {
        &self.lock_delay_ms
    }

    /// The initial consistency of a connection's reads.
    pub fn read_level(&self) -> ReadLevel {
        self.initial.read_level
    }

    /// All parameters by name.
    pub fn all(&self) -> BTreeMap<&'static str, String> {
        let mut all: BTreeMap<&'static str, String> =
            FIXED.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        all.extend(self.initial.shown.clone());
        let output = self.output_buffer_bytes_max();
        all.extend([
            ("bind", self.initial.bind.clone()),
            (
                "client-output-buffer-limit",
                format!("normal {output} 0 0 slave {output} 0 0 pubsub {output} 0 0"),
            ),
            ("client-query-buffer-limit", self.query_buffer_bytes_max().to_string()),
            ("dir", self.initial.dir.clone()),
            ("maxclients", self.clients_max().to_string()),
            ("maxmemory-clients", self.clients_bytes_max.load(Relaxed).to_string()),
            ("port", self.initial.port.to_string()),
            ("proto-max-bulk-len", self.bulk_bytes_max.load(Relaxed).to_string()),
            ("timeout", self.idle_timeout_s().to_string()),
        ]);
        all
    }

    /// Checks a change, and makes it if `apply` is set.
    pub fn set(&self, name: &str, value: &str, apply: bool) -> Result<(), SetError> {
        let invalid = |why: &str| SetError::Invalid(why.to_owned());
        let within = |number: i128, range: std::ops::RangeInclusive<u64>| {
            let number = u64::try_from(number).ok().filter(|number| range.contains(number));
            number.ok_or_else(|| {
                let (start, end) = range.into_inner();
                SetError::Invalid(format!("argument must be between {start} and {end} inclusive"))
            })
        };
        let integer = |range| {
            let number = crate::args::parse_integer(value.as_bytes());
            let number = number.ok_or_else(|| invalid("argument couldn't be parsed into an integer"))?;
            within(number.into(), range)
        };
        let size = || {
            let size = bytes(value).ok_or_else(|| invalid("argument must be a memory value"))?;
            within(size.into(), 1 << 20..=QUERY_BUFFER_BYTES_MAX as u64)
        };
        let store = |parameter: &AtomicUsize, number: u64| {
            if apply {
                parameter.store(number as usize, Relaxed);
            }
            Ok(())
        };
        match name {
            "maxclients" => {
                let number = integer(1..=u64::from(u32::MAX))?;
                let bound = self.initial.clients_bound;
                if number > bound as u64 {
                    return Err(SetError::Invalid(format!(
                        "The operating system is not able to handle the specified number of clients, try with {bound}"
                    )));
                }
                store(&self.clients_max, number)
            }
            "proto-max-bulk-len" => store(&self.bulk_bytes_max, size()?),
            "client-query-buffer-limit" => store(&self.query_buffer_bytes_max, size()?),
            "maxmemory-clients" => {
                let size = bytes(value).ok_or_else(|| invalid("argument must be a memory value"))?;
                if apply {
                    self.clients_bytes_max.store(size, Relaxed);
                }
                Ok(())
            }
            "timeout" => {
                let seconds = integer(0..=i32::MAX as u64)?;
                if apply {
                    self.idle_timeout_s.store(seconds, Relaxed);
                }
                Ok(())
            }
            _ => match self.all().get(name) {
                // Setting the present value is allowed: tools do it to be sure.
                Some(present) if present == value => Ok(()),
                Some(_) => Err(SetError::Immutable),
                None => Err(SetError::Unknown),
            },
        }
    }
}

/// Why a parameter was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SetError {
    Unknown,
    Immutable,
    Invalid(String),
}

/// A size as Redis reads it: `1024`, `1k` (1000), `1kb` (1024), `1mb`, `1gb`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_redis_reads_them() {
        for (text, size) in [
            ("0", Some(0)),
            ("1k", Some(1000)),
            ("1KB", Some(1024)),
            ("2gb", Some(2 << 30)),
            ("x", None),
            ("1tb", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }
}

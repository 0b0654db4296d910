//! Metrics in OpenMetrics text. Everything is counted elsewhere, as plain numbers; names are attached here,
//! on request. Everything about a Raft group carries its label.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use kvorum_raft::{Cause, Counters, Disk, Member, Role, Status, descriptors};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::connection::{
    Shared, cpu_seconds, resident_bytes,
    stats::{BUCKETS_US, Counted},
    table,
};

/// There is only one group.
const GROUP: [(&str, &str); 1] = [("group", "0")];

/// All metrics at this moment.
pub(super) fn text(shared: Arc<Shared>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(shared)));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut out, &registry);
    out
}

struct Collected(Arc<Shared>);

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collected")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.group(&mut encoder)?;
        self.front(&mut encoder)?;
        self.commands(&mut encoder)
    }
}

impl Collected {
    fn group(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.router.status();
        let role = match status.role {
            Role::None => 0,
            Role::Learner => 1,
            Role::Follower => 2,
            Role::Candidate => 3,
            Role::Leader => 4,
        };
        let gauges = [
            ("role", "0 none, 1 learner, 2 follower, 3 candidate, 4 leader", role),
            (
                "ready",
                "Whether this node serves linearizable requests",
                u64::from(status.not_ready.is_none()),
            ),
            ("term", "Raft term", status.term),
            ("leader_id", "The leader this node knows, 0 if none", status.leader_id.unwrap_or(0)),
            ("last_log_index", "The last entry in the log", status.last_log_index),
            ("committed_index", "The last entry known to be on a majority", status.committed_index),
            ("applied_index", "The last entry applied", status.applied_index),
            ("checkpoint_index", "The last entry in the last durable checkpoint", status.checkpoint_index),
            ("purged_index", "The last entry removed from the log", status.purged_index),
            ("members", "Members of the group", status.members.len() as u64),
            ("members_differing", "Members with another log or state", status.differing.len() as u64),
            (
                "timeouts_misfit",
                "Whether the time-outs do not fit the round trips",
                u64::from(status.timeouts_misfit.is_some()),
            ),
        ];
        for (name, help, value) in gauges {
            in_group(encoder, &format!("kvorum_raft_{name}"), help, &ConstGauge::new(value as i64))?;
        }
        clock(encoder, &status)?;
        times(encoder, &status)?;
        not_ready(encoder, status.not_ready.map(|not_ready| not_ready.cause))?;
        disk(encoder, &status.disk, status.no_room.is_some())?;
        let counters = self.0.router.node().counters();
        peer_connections(encoder, &counters)?;
        let totals = [
            ("log_fsyncs", "Syncs of the log", counters.log_fsyncs),
            ("log_fsync_microseconds", "Time in syncs of the log", counters.log_fsync_us_total),
            ("log_written_bytes", "Bytes written to the log", counters.log_bytes_written),
            ("entries_proposed", "Entries that this node proposed", counters.entries_proposed),
            ("proposals", "Pipelines that this node proposed", counters.proposals),
            ("read_rounds", "Rounds that confirmed the leader for reads", counters.read_rounds),
            ("entries_applied", "Entries applied", counters.entries_applied),
            ("checkpoints", "Checkpoints written", counters.checkpoints),
            ("checkpoint_pages_written", "Pages written by checkpoints", counters.checkpoint_pages_written),
            ("snapshots_sent", "Snapshots sent to other members", counters.snapshots_sent),
            ("snapshots_installed", "Snapshots installed here", counters.snapshots_installed),
            ("leader_changes", "Changes of the leader seen", counters.leader_changes),
        ];
        for (name, help, value) in totals {
            in_group(encoder, &format!("kvorum_raft_{name}"), help, &ConstCounter::new(value))?;
        }
        for (name, help, value) in [
            (
                "log_since_checkpoint_bytes",
                "Log since the last checkpoint",
                counters.log_bytes_since_checkpoint,
            ),
            ("log_segments", "Segments of the log", counters.log_segments),
        ] {
            in_group(encoder, &format!("kvorum_raft_{name}"), help, &ConstGauge::new(value as i64))?;
        }
        Ok(())
    }

    fn front(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shared = &self.0;
        let stats = &shared.stats;
        let feed = shared.router.feed().status();
        let gauges = [
            ("kvorum_clients", "Connected clients", shared.clients.len() as u64),
            ("kvorum_clients_max", "The most clients allowed", shared.settings.clients_max() as u64),
            ("kvorum_http_connections", "Open HTTP connections", stats.http_connections.load(Relaxed)),
            ("process_resident_memory_bytes", "Resident memory", resident_bytes()),
            ("process_open_fds", "Open file descriptors", descriptors::open().unwrap_or(0)),
            ("process_max_fds", "The most file descriptors allowed", descriptors::limit_in_force()),
            ("kvorum_uptime_seconds", "Time since the start", shared.started.elapsed().as_secs()),
            ("kvorum_feed_subscribers", "Readers of the change feed", feed.readers as u64),
            ("kvorum_feed_history_bytes", "Size of the feed's history", feed.history_bytes as u64),
            ("kvorum_feed_oldest_index", "The lowest index to resume the feed from", feed.oldest_index),
            ("kvorum_feed_last_index", "The last entry in the feed", feed.last_index),
        ];
        for (name, help, value) in gauges {
            plain(encoder, name, help, &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))?;
        }
        let counters = [
            ("kvorum_connections", "Connections accepted", &stats.connections),
            ("kvorum_connections_refused", "Connections refused", &stats.connections_refused),
            (
                "kvorum_http_connections_put_out",
                "HTTP connections closed, without a request, to make room for others",
                &stats.http_connections_put_out,
            ),
            (
                "kvorum_http_connections_refused",
                "HTTP connections refused, as all were being answered",
                &stats.http_connections_refused,
            ),
            ("kvorum_received_bytes", "Bytes received from clients", &stats.bytes_in),
            ("kvorum_sent_bytes", "Bytes sent to clients", &stats.bytes_out),
            ("kvorum_protocol_errors", "Clients that broke the protocol", &stats.protocol_errors),
            (
                "kvorum_query_limit_disconnections",
                "Clients closed at client-query-buffer-limit",
                &stats.query_limit_disconnections,
            ),
            ("kvorum_evicted_clients", "Clients closed at maxmemory-clients", &stats.evicted_clients),
            (
                "kvorum_output_limit_disconnections",
                "Clients closed at client-output-buffer-limit",
                &stats.output_limit_disconnections,
            ),
        ];
        for (name, help, value) in counters {
            plain(encoder, name, help, &ConstCounter::new(value.load(Relaxed)))?;
        }
        let (user, system) = cpu_seconds();
        plain(encoder, "process_cpu_seconds", "Processor time", &ConstCounter::new(user + system))?;
        self.content(encoder)
    }

    /// What the machine holds.
    fn content(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let router = &self.0.router;
        let machine = router.machine();
        let help = "Memory of keys and values, counted alike on all nodes";
        plain(encoder, "kvorum_memory_used_bytes", help, &ConstGauge::new(machine.used_bytes() as i64))?;
        let limit = machine.maxmemory().unwrap_or(0);
        let help = "The cluster's maxmemory, 0 if there is none";
        plain(encoder, "kvorum_memory_limit_bytes", help, &ConstGauge::new(limit as i64))?;
        let help = "Calls in entries that were refused because they would have passed maxmemory";
        plain(encoder, "kvorum_memory_refused", help, &ConstCounter::new(machine.refused()))?;
        let mut keyspace =
            encoder.encode_descriptor("kvorum_keys", "Keys by database", None, MetricType::Gauge)?;
        for (db, keys, _) in router.database_sizes() {
            let labels = [("group", "0".to_owned()), ("db", db.to_string())];
            ConstGauge::new(keys as i64).encode(keyspace.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn commands(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counted: Vec<_> = table::rows()
            .iter()
            .map(|row| (row, self.0.stats.of(row).read()))
            .filter(|(_, counted)| counted.calls > 0)
            .collect();
        let help = "Time from a command's arrival to its reply; the commands of a pipeline share it";
        let mut seconds =
            encoder.encode_descriptor("kvorum_command", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (row, counted) in &counted {
            let labels = [("group", "0"), ("command", row.name.as_str())];
            Latency(counted).encode(seconds.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// A command's latency buckets.
struct Latency<'a>(&'a Counted);

impl EncodeMetric for Latency<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BUCKETS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        let total = self.0.buckets.iter().sum();
        encoder.encode_histogram::<[(&str, &str); 0]>(self.0.us_total as f64 / 1e6, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The connections that peers have made.
fn peer_connections(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> Result<(), std::fmt::Error> {
    let (name, help) = ("kvorum_raft_peer_connections", "Open connections that peers have made");
    in_group(encoder, name, help, &ConstGauge::new(counters.peer_connections as i64))?;
    let help = "Connections of peers that had to make room for others, first those whose peer is not known";
    let put_out = ConstCounter::new(counters.peer_connections_put_out);
    in_group(encoder, "kvorum_raft_peer_connections_put_out", help, &put_out)
}

fn clock(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), std::fmt::Error> {
    let help = "Whether the log's clock goes at half speed until it meets the wall clock";
    let is_closing = ConstGauge::new(i64::from(status.clock_is_closing));
    in_group(encoder, "kvorum_raft_clock_closing", help, &is_closing)?;
    // There is no offset until the node has learned the time.
    let Some(ahead_us) = status.clock_ahead_us else { return Ok(()) };
    let help = "How far the log's clock is ahead of this node's wall clock, negative where it is behind";
    let mut ahead = encoder.encode_descriptor(
        "kvorum_raft_clock_ahead",
        help,
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    ConstGauge::new(ahead_us as f64 / 1e6).encode(ahead.encode_family(&GROUP)?)
}

fn not_ready(encoder: &mut DescriptorEncoder<'_>, present: Option<Cause>) -> Result<(), std::fmt::Error> {
    let help = "Why this node does not serve linearizable requests: 1 at the reason, if there is one";
    let mut reasons = encoder.encode_descriptor("kvorum_raft_not_ready", help, None, MetricType::Gauge)?;
    for cause in Cause::ALL {
        let labels = [("group", "0"), ("reason", cause.name())];
        let value = i64::from(present == Some(cause));
        ConstGauge::new(value).encode(reasons.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The round trips to the other members, and the election timeouts derived from them.
fn times(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), std::fmt::Error> {
    let peers: Vec<_> =
        status.members.iter().filter_map(|member: &Member| Some((member.id, member.round_trip?))).collect();
    for (name, help, of) in [
        ("round_trip_least", "The least of the last ten round trips to a member", 0),
        ("round_trip_smoothed", "The round trip to a member, smoothed", 1),
        ("round_trip_greatest", "The greatest round trip to a member of the last minute", 2),
    ] {
        let (name, unit) = (format!("kvorum_raft_{name}"), Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(&name, help, unit, MetricType::Gauge)?;
        for (id, round_trip) in &peers {
            let time = [round_trip.least, round_trip.smoothed, round_trip.greatest][of];
            let labels = [("group", "0".to_owned()), ("member", id.to_string())];
            ConstGauge::new(time.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
    }
    let help = "The election time-outs in force";
    let (name, unit) = ("kvorum_raft_election_timeout", Some(&Unit::Seconds));
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    let (least, greatest) = status.election_timeout_ms;
    for (bound, ms) in [("least", least), ("greatest", greatest)] {
        let seconds = ms as f64 / 1000.0;
        ConstGauge::new(seconds).encode(family.encode_family(&[("group", "0"), ("bound", bound)])?)?;
    }
    Ok(())
}

fn disk(
    encoder: &mut DescriptorEncoder<'_>,
    disk: &Disk,
    refuses_growth: bool,
) -> Result<(), std::fmt::Error> {
    for (name, help, value) in [
        ("kvorum_disk_size_bytes", "The file system of the data directory", disk.total_bytes),
        ("kvorum_disk_free_bytes", "What is free there", disk.free_bytes),
        ("kvorum_disk_reserve_bytes", "What this node has set aside there", disk.reserve_bytes),
        ("kvorum_disk_reserve_wanted_bytes", "What it wants to set aside", disk.reserve_wanted_bytes),
        ("kvorum_disk_state", "0 ample, 1 low, 2 short: no room for more data, 3 full", disk.state as u64),
    ] {
        plain(encoder, name, help, &ConstGauge::new(value as i64))?;
    }
    let help = "Whether writes that need space are refused, because no majority has room for them";
    in_group(encoder, "kvorum_raft_growth_refused", help, &ConstGauge::new(i64::from(refuses_growth)))
}

fn in_group(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &dyn Encode,
) -> Result<(), std::fmt::Error> {
    let mut descriptor = encoder.encode_descriptor(name, help, None, metric.kind())?;
    metric.put(descriptor.encode_family(&GROUP)?)
}

fn plain(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &dyn Encode,
) -> Result<(), std::fmt::Error> {
    metric.put(encoder.encode_descriptor(name, help, None, metric.kind())?)
}

/// [`EncodeMetric`] as an object-safe trait.
trait Encode {
    fn put(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error>;
    fn kind(&self) -> MetricType;
}

impl<M: EncodeMetric> Encode for M {
    fn put(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode(encoder)
    }

    fn kind(&self) -> MetricType {
        self.metric_type()
    }
}

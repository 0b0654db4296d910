//! INFO: its sections, under the field names that Redis's tools parse. Used, peak and RSS memory are all the
//! resident memory of the process.

use std::{fmt::Write, sync::atomic::Ordering::Relaxed, time::SystemTime};

use kvorum_raft::{NotReady, Role, Status, descriptors};

use crate::connection::{
    Connection, REDIS_VERSION, Shared, table,
    verb::{Verb, flags, groups},
    verbs::server,
};
use crate::{args::Args, commands::Spec, error::Result, maxmemory, resp::Reply};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::alone(
    Spec::connection("INFO", -1)
        .about(flags::LOADING, groups::SERVER, "1.0.0", "Get information and statistics about the server")
        .syntax("[section...]")
        .complexity("O(1)")
        .acl(&["dangerous"])
        .tips(&["nondeterministic_output", "request_policy:all_shards", "response_policy:special"]),
    info,
)];

/// A section's fields, as lines.
type Section = fn(&Shared, &Status, &mut String);

/// Name, whether INFO without arguments shows it, fields.
const SECTIONS: &[(&str, bool, Section)] = &[
    ("Server", true, server_fields),
    ("Clients", true, clients),
    ("Memory", true, memory),
    ("Persistence", true, persistence),
    ("Stats", true, stats),
    ("Replication", true, replication),
    ("CPU", true, cpu),
    ("Modules", true, |_, _, _| {}),
    ("Commandstats", false, commandstats),
    ("Errorstats", true, |_, _, _| {}),
    ("Cluster", true, |_, _, out| field(out, "cluster_enabled", 0)),
    ("Keyspace", true, keyspace),
    ("Kvorum", true, kvorum),
];

pub(in crate::connection) fn info(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let wanted = args.from(1);
    let wants = |name: &str| wanted.iter().any(|word| word.eq_ignore_ascii_case(name.as_bytes()));
    let all = wants("all") || wants("everything");
    let default = wanted.is_empty() || wants("default");
    let shared = &connection.shared;
    let status = shared.router.status();
    let mut out = String::with_capacity(4096);
    for (name, in_default, section) in SECTIONS {
        if all || (default && *in_default) || wants(name) {
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            out.push_str("# ");
            out.push_str(name);
            out.push_str("\r\n");
            section(shared, &status, &mut out);
        }
    }
    reply.verbatim("txt", &out);
    Ok(())
}

fn field(out: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{name}:{value}\r\n");
}

fn server_fields(shared: &Shared, status: &Status, out: &mut String) {
    let uptime = shared.started.elapsed().as_secs();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    field(out, "redis_version", REDIS_VERSION);
    field(out, "kvorum_version", env!("CARGO_PKG_VERSION"));
    field(out, "redis_mode", "standalone");
    field(out, "os", format_args!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
    field(out, "arch_bits", usize::BITS);
    field(out, "multiplexing_api", "epoll");
    field(out, "process_id", std::process::id());
    field(out, "run_id", &shared.run_id);
    field(out, "tcp_port", shared.resp_port);
    field(out, "server_time_usec", now.as_micros());
    field(out, "uptime_in_seconds", uptime);
    field(out, "uptime_in_days", uptime / 86_400);
    field(out, "hz", 10);
    field(out, "configured_hz", 10);
    field(out, "node_id", status.node_id);
}

fn clients(shared: &Shared, _: &Status, out: &mut String) {
    let all = shared.clients.all();
    let longest = |size: fn(&crate::connection::clients::Client) -> usize| {
        all.iter().map(|c| size(c)).max().unwrap_or(0)
    };
    field(out, "connected_clients", all.len());
    field(out, "cluster_connections", 0);
    field(out, "maxclients", shared.settings.clients_max());
    field(out, "open_file_descriptors", descriptors::open().unwrap_or(0));
    field(out, "max_file_descriptors", descriptors::limit_in_force());
    field(out, "client_recent_max_input_buffer", longest(|client| client.query_bytes.load(Relaxed)));
    field(out, "client_recent_max_output_buffer", longest(|client| client.reply_bytes.load(Relaxed)));
    field(out, "blocked_clients", shared.clients.waiting());
    field(out, "tracking_clients", 0);
    field(out, "clients_in_timeout_table", 0);
}

/// The process's resident memory in bytes; 0 if the system does not report it.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    // SAFETY: sysconf only reads a constant of the system.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page_bytes).unwrap_or(4096)
}

/// A human-readable size, as Redis writes it.
fn human(bytes: u64) -> String {
    let units = [(1u64 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.2}{unit}", bytes as f64 / *size as f64),
        None => format!("{bytes}B"),
    }
}

fn memory(shared: &Shared, _: &Status, out: &mut String) {
    // The memory of the process is the cost of its data: without eviction, nobody needs more detail.
    let used = resident_bytes();
    field(out, "used_memory", used);
    field(out, "used_memory_human", human(used));
    field(out, "used_memory_rss", used);
    field(out, "used_memory_rss_human", human(used));
    field(out, "used_memory_peak", used);
    field(out, "used_memory_peak_human", human(used));
    let machine = shared.router.machine();
    let (content, limit) = (machine.used_bytes(), machine.maxmemory().unwrap_or(0));
    // What the limit is about: it is the same on all nodes.
    field(out, "used_memory_dataset", content);
    if let Some(total) = maxmemory::of_machine() {
        field(out, "total_system_memory", total);
        field(out, "total_system_memory_human", human(total));
    }
    field(out, "maxmemory", limit);
    field(out, "maxmemory_human", human(limit));
    field(out, "maxmemory_policy", "noeviction");
    field(out, "mem_fragmentation_ratio", "1.00");
    field(out, "mem_allocator", "jemalloc-5.3.0");
    field(out, "lazyfree_pending_objects", 0);
}

fn persistence(shared: &Shared, _: &Status, out: &mut String) {
    let counters = shared.router.node().counters();
    field(out, "loading", 0);
    field(out, "async_loading", 0);
    field(out, "rdb_changes_since_last_save", 0);
    field(out, "rdb_bgsave_in_progress", 0);
    field(out, "rdb_last_bgsave_status", "ok");
    field(out, "aof_enabled", 1);
    field(out, "aof_rewrite_in_progress", 0);
    field(out, "aof_last_bgrewrite_status", "ok");
    field(out, "aof_last_write_status", "ok");
    field(out, "aof_current_size", counters.log_bytes_since_checkpoint);
}

fn stats(shared: &Shared, _: &Status, out: &mut String) {
    let stats = &shared.stats;
    field(out, "total_connections_received", stats.connections.load(Relaxed));
    field(out, "total_commands_processed", stats.commands.load(Relaxed));
    field(out, "total_net_input_bytes", stats.bytes_in.load(Relaxed));
    field(out, "total_net_output_bytes", stats.bytes_out.load(Relaxed));
    field(out, "rejected_connections", stats.connections_refused.load(Relaxed));
    field(out, "evicted_keys", 0);
    field(out, "pubsub_channels", 0);
    field(out, "pubsub_patterns", 0);
    field(out, "client_query_buffer_limit_disconnections", stats.query_limit_disconnections.load(Relaxed));
    field(out, "evicted_clients", stats.evicted_clients.load(Relaxed));
    field(out, "client_output_buffer_limit_disconnections", stats.output_limit_disconnections.load(Relaxed));
}

fn replication(_: &Shared, status: &Status, out: &mut String) {
    if status.role == Role::Leader {
        let replicas: Vec<_> = server::online(status).collect();
        field(out, "role", "master");
        field(out, "connected_slaves", replicas.len());
        for (index, member) in replicas.iter().enumerate() {
            let (host, port) = server::resp_address(member);
            let offset = member.matched_index.unwrap_or(0);
            let lag = member.last_contact_ms.unwrap_or(0) / 1000;
            field(
                out,
                &format!("slave{index}"),
                format_args!("ip={host},port={port},state=online,offset={offset},lag={lag}"),
            );
        }
    } else {
        let ((host, port), is_up) = server::master_of(status);
        field(out, "role", "slave");
        field(out, "master_host", host);
        field(out, "master_port", port);
        let silent_s = status.leader_heard_ms.map_or(-1, |ms| (ms / 1000) as i64);
        field(out, "master_link_status", if is_up { "up" } else { "down" });
        field(out, "master_last_io_seconds_ago", silent_s);
        field(out, "master_sync_in_progress", 0);
        field(out, "slave_read_repl_offset", status.applied_index);
        field(out, "slave_repl_offset", status.applied_index);
        if !is_up {
            field(out, "master_link_down_since_seconds", silent_s);
        }
        field(out, "slave_priority", 100);
        // Every node accepts writes: it forwards them.
        field(out, "slave_read_only", 0);
        field(out, "connected_slaves", 0);
    }
    if let Some(NotReady { why, .. }) = &status.not_ready {
        // The text may come from a peer.
        field(out, "not_ready_reason", why.replace(['\r', '\n'], " "));
    }
    field(out, "master_failover_state", "no-failover");
    let replid: String =
        status.cluster_id.iter().flat_map(|id| id.chars()).chain("0".repeat(40).chars()).take(40).collect();
    field(out, "master_replid", replid);
    field(out, "master_repl_offset", status.applied_index);
}

fn cpu(_: &Shared, _: &Status, out: &mut String) {
    let usage = cpu_seconds();
    field(out, "used_cpu_sys", format_args!("{:.6}", usage.1));
    field(out, "used_cpu_user", format_args!("{:.6}", usage.0));
}

/// User and system CPU time of this process, in seconds.
pub fn cpu_seconds() -> (f64, f64) {
    // SAFETY: all zero bytes are a valid rusage; getrusage fills in the one it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}

fn commandstats(shared: &Shared, _: &Status, out: &mut String) {
    for row in table::rows() {
        let counted = shared.stats.of(row).read();
        if counted.calls > 0 || counted.rejected > 0 {
            let each = counted.us_total as f64 / counted.calls.max(1) as f64;
            field(
                out,
                &format!("cmdstat_{}", row.name),
                format_args!(
                    "calls={},usec={},usec_per_call={each:.2},rejected_calls={},failed_calls=0",
                    counted.calls, counted.us_total, counted.rejected
                ),
            );
        }
    }
}

fn keyspace(shared: &Shared, _: &Status, out: &mut String) {
    for (db, keys, expires) in shared.router.database_sizes() {
        field(out, &format!("db{db}"), format_args!("keys={keys},expires={expires},avg_ttl=0"));
    }
}

fn kvorum(shared: &Shared, status: &Status, out: &mut String) {
    let unknown = || "-".to_owned();
    field(out, "node_id", status.node_id);
    field(out, "cluster_id", status.cluster_id.clone().unwrap_or_else(unknown));
    field(out, "node_role", role_name(status.role));
    field(out, "term", status.term);
    field(out, "leader_id", status.leader_id.map_or_else(unknown, |id| id.to_string()));
    field(out, "members", status.members.len());
    field(out, "last_log_index", status.last_log_index);
    field(out, "committed_index", status.committed_index);
    field(out, "applied_index", status.applied_index);
    field(out, "checkpoint_index", status.checkpoint_index);
    field(out, "purged_index", status.purged_index);
    field(out, "ready", u8::from(status.not_ready.is_none()));
    field(out, "clock_ahead_ms", status.clock_ahead_ms().map_or_else(unknown, |ms| ms.to_string()));
    field(out, "clock_closing", u8::from(status.clock_is_closing));
    let (least, greatest) = status.election_timeout_ms;
    field(out, "election_timeout_ms", format_args!("{least}-{greatest}"));
    field(out, "timeouts_misfit", status.timeouts_misfit.as_deref().unwrap_or("-"));
    for member in &status.members {
        let Some(round_trip) = member.round_trip else { continue };
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        let (least, smoothed, greatest) =
            (ms(round_trip.least), ms(round_trip.smoothed), ms(round_trip.greatest));
        field(
            out,
            &format!("round_trip_node{}", member.id),
            format_args!("least_ms={least:.3},smoothed_ms={smoothed:.3},greatest_ms={greatest:.3}"),
        );
    }
    field(out, "disk_state", status.disk.state.name());
    field(out, "disk_free_bytes", status.disk.free_bytes);
    field(out, "disk_reserve_bytes", status.disk.reserve_bytes);
    field(out, "growth_refused", u8::from(status.no_room.is_some()));
    let counters = shared.router.node().counters();
    field(out, "leader_changes", counters.leader_changes);
    field(out, "log_fsyncs", counters.log_fsyncs);
    field(out, "checkpoints", counters.checkpoints);
    field(out, "snapshots_sent", counters.snapshots_sent);
    field(out, "snapshots_installed", counters.snapshots_installed);
    let feed = shared.router.feed().status();
    field(out, "feed_subscribers", feed.readers);
    field(out, "feed_history_bytes", feed.history_bytes);
    field(out, "feed_oldest_index", feed.oldest_index);
    field(out, "feed_last_index", feed.last_index);
}

/// A role's name for display and for the HTTP API.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::None => "none",
    }
}

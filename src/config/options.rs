//! The options: each is one row with its name, its variable, its default and what CONFIG says of it.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::connection::settings::bytes;

/// What values an option has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number,
    /// A number of bytes, which may have a unit.
    Size,
    /// Anything else.
    Text,
}

/// Whether CONFIG GET shows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It does not, or in a form of Redis's.
    No,
    /// It does.
    Fixed,
    /// It does, and CONFIG SET changes it.
    AtRunTime,
}

/// What there is to know of an option.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name of its flag, of its key in the file, and of the parameter of CONFIG.
    pub name: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// What values it has.
    pub kind: Value,
    /// Its default, or a description of it; empty if it has none.
    pub default: &'static str,
    /// Whether CONFIG GET shows it.
    pub shown: Shown,
}

/// Makes [`Options`] of its rows: field, type, name, variable, value, kind, default, CONFIG, help.
macro_rules! options {
    ($($(#[$more:meta])* $field:ident: $type:ty, $name:literal, $variable:literal, $value:literal, $kind:ident,
       $default:literal, $shown:ident, $help:literal;)*) => {
        /// The options; every field may be absent. A size takes a unit: `64mb`, `1gb`.
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        #[allow(missing_docs)]
        pub struct Options {
            $(
                #[arg(long = $name, env = $variable, value_name = $value, help = help($help, $default))]
                $(#[$more])*
                pub $field: Option<$type>,
            )*
        }

        /// A row for each option.
        pub const ROWS: &[Row] = &[$(Row {
            name: $name,
            variable: $variable,
            kind: Value::$kind,
            default: $default,
            shown: Shown::$shown,
        }),*];

        impl Options {
            /// What is given here, else what is given in `below`.
            pub(super) fn over(self, below: Options) -> Options {
                Options { $($field: self.$field.or(below.$field)),* }
            }

            /// What was given, by name.
            fn given(&self) -> BTreeMap<&'static str, String> {
                let mut given = BTreeMap::new();
                $(given.extend(self.$field.as_ref().map(|value| ($name, value.text())));)*
                given
            }
        }
    };
}

options! {
    id: u64, "id", "KVORUM_ID", "N", Number, "", No,
        "This node's number, from 1 to 9007199254740991; never that of another node, past or present";
    data: PathBuf, "data", "KVORUM_DATA", "DIR", Text, "", No,
        "Directory of the log, the pages and the node's identity; created when missing";
    resp: String, "resp", "KVORUM_RESP", "ADDR", Text, "127.0.0.1:6379", No,
        "Address for Redis clients";
    http: String, "http", "KVORUM_HTTP", "ADDR", Text, "127.0.0.1:8379", No,
        "Address of the admin API, health and metrics";
    peer: String, "peer", "KVORUM_PEER", "ADDR", Text, "127.0.0.1:7379", No,
        "Address for the other nodes";
    peers: String, "peers", "KVORUM_PEERS", "ID=ADDR,...", Text, "", No,
        "The first members' peer addresses, the same list on each, this node included: \
         1=HOST:PORT,2=HOST:PORT. They form the cluster by themselves, once; a node that has data ignores \
         it";
    #[arg(conflicts_with = "peers")]
    join: String, "join", "KVORUM_JOIN", "URL", Text, "", No,
        "HTTP address of any member: a node without data asks it to be added, as a learner that is \
         promoted to voter once it has caught up";
    advertise_resp: String, "advertise-resp", "KVORUM_ADVERTISE_RESP", "ADDR", Text, "", No,
        "Address under which clients reach this node, if it is not the one it listens on; if it listens \
         on all interfaces (0.0.0.0), the default is the host name that its peers use";
    advertise_http: String, "advertise-http", "KVORUM_ADVERTISE_HTTP", "ADDR", Text, "", No,
        "Address under which the admin API is reached, if it is not the one it listens on; as for \
         --advertise-resp";
    advertise_peer: String, "advertise-peer", "KVORUM_ADVERTISE_PEER", "ADDR", Text, "", No,
        "Address under which the other nodes reach this one, if it is not the one it listens on; if it \
         listens on all interfaces (0.0.0.0), the default is its address in --peers, which must then be \
         given";
    log: String, "log", "KVORUM_LOG", "FILTER", Text, "info,openraft=error", Fixed,
        "What is logged: a level, or a filter such as info,kvorum_raft=debug";
    threads: usize, "threads", "KVORUM_THREADS", "N", Number, "the number of cores", No,
        "Worker threads";
    databases: u32, "databases", "KVORUM_DATABASES", "N", Number, "16", Fixed,
        "Number of databases for SELECT; the same on all nodes";
    maxclients: usize, "maxclients", "KVORUM_MAXCLIENTS", "N", Number, "10000", AtRunTime,
        "Maximum number of client connections";
    maxmemory: String, "maxmemory", "KVORUM_MAXMEMORY", "SIZE", Size, "half of the memory of the first leader's machine", No,
        "The most memory that keys and values take, counted alike on all nodes: a write that would pass it is \
         refused. One for the whole cluster: this one is taken if the cluster has none yet, and CONFIG SET \
         changes it; 0 for none";
    maxmemory_clients: String, "maxmemory-clients", "KVORUM_MAXMEMORY_CLIENTS", "SIZE", Size, "a quarter of the machine's memory", AtRunTime,
        "The most memory that commands and replies of all clients take while they wait: above it, the client \
         with the most is disconnected; 0 for no limit";
    timeout: u64, "timeout", "KVORUM_TIMEOUT", "SECONDS", Number, "0", AtRunTime,
        "Close a client after this many idle seconds; 0 for never";
    proto_max_bulk_len: String, "proto-max-bulk-len", "KVORUM_PROTO_MAX_BULK_LEN", "SIZE", Size, "32mb", AtRunTime,
        "The longest argument of a command; one that is written has to fit into proposal-bytes-max, too";
    proto_max_arguments: usize, "proto-max-arguments", "KVORUM_PROTO_MAX_ARGUMENTS", "N", Number, "1048576", Fixed,
        "The most arguments of a command";
    proto_inline_max_len: String, "proto-inline-max-len", "KVORUM_PROTO_INLINE_MAX_LEN", "SIZE", Size, "64kb", Fixed,
        "The longest inline command and header line";
    client_query_buffer_limit: String, "client-query-buffer-limit", "KVORUM_CLIENT_QUERY_BUFFER_LIMIT", "SIZE", Size, "1gb", AtRunTime,
        "Maximum size of the commands of one client that wait to be executed";
    client_output_buffer_limit: String, "client-output-buffer-limit", "KVORUM_CLIENT_OUTPUT_BUFFER_LIMIT", "SIZE", Size, "2gb", No,
        "Maximum size of the replies that wait for one client; a client above it is disconnected";
    lock_delay_ms: u64, "lock-delay-ms", "KVORUM_LOCK_DELAY_MS", "MS", Number, "0", Fixed,
        "Lock delay: after a hold of a lock, semaphore or election has expired, nothing is granted for \
         this long, unless the holder asked for another DELAY";
    read_consistency: String, "read-consistency", "KVORUM_READ_CONSISTENCY", "LEVEL", Text, "linearizable", Fixed,
        "Consistency of reads on a connection that does not ask for another: linearizable, lease, \
         \"bounded MS\" or stale";
    http_body_limit: String, "http-body-limit", "KVORUM_HTTP_BODY_LIMIT", "SIZE", Size, "64kb", Fixed,
        "The largest HTTP request body";
    http_hosts: String, "http-hosts", "KVORUM_HTTP_HOSTS", "NAME,...", Text, "", Fixed,
        "Further names under which the HTTP API is reached, as through a proxy; besides these, the node's \
         own names and all addresses are accepted. * for any name";
    drain_ms: u64, "drain-ms", "KVORUM_DRAIN_MS", "MS", Number, "5000", Fixed,
        "How long a stopping node lets clients finish their requests";
    heartbeat_ms: u64, "heartbeat-ms", "KVORUM_HEARTBEAT_MS", "MS", Number, "100", Fixed,
        "Interval between heartbeats of the leader, whatever the distance";
    election_timeout_min_ms: u64, "election-timeout-min-ms", "KVORUM_ELECTION_TIMEOUT_MIN_MS", "MS", Number, "350", Fixed,
        "A node that has not heard from a leader for election-timeout-max-ms waits for a random time \
         between the two and then starts an election. If neither is given, this random wait grows with \
         the round trip";
    election_timeout_max_ms: u64, "election-timeout-max-ms", "KVORUM_ELECTION_TIMEOUT_MAX_MS", "MS", Number, "600", Fixed,
        "As for --election-timeout-min-ms; the same on all nodes";
    request_timeout_ms: u64, "request-timeout-ms", "KVORUM_REQUEST_TIMEOUT_MS", "MS", Number, "5000", Fixed,
        "How long a request waits for a leader or for its confirmation";
    disk_stall_ms: u64, "disk-stall-ms", "KVORUM_DISK_STALL_MS", "MS", Number, "2000", Fixed,
        "A leader whose disk takes longer than this for one sync gives up its leadership";
    checkpoint_log_bytes: String, "checkpoint-log-bytes", "KVORUM_CHECKPOINT_LOG_BYTES", "SIZE", Size, "64mb", Fixed,
        "Size of the log since the last checkpoint at which the next one starts";
    log_entries_kept: u64, "log-entries-kept", "KVORUM_LOG_ENTRIES_KEPT", "N", Number, "2000", Fixed,
        "Log entries kept behind a checkpoint, for followers that lag a little";
    log_segment_bytes: String, "log-segment-bytes", "KVORUM_LOG_SEGMENT_BYTES", "SIZE", Size, "64mb", Fixed,
        "Size of a log segment";
    disk_reserve: String, "disk-reserve", "KVORUM_DISK_RESERVE", "SIZE", Size, "two log segments plus checkpoint-log-bytes, or an eighth of a small file system", No,
        "Disk space reserved for what must still be written when the disk is full; 0 for none";
    log_cache_bytes: String, "log-cache-bytes", "KVORUM_LOG_CACHE_BYTES", "SIZE", Size, "2mb", Fixed,
        "Memory for the newest log entries";
    page_cache_bytes: String, "page-cache-bytes", "KVORUM_PAGE_CACHE_BYTES", "SIZE", Size, "8mb", Fixed,
        "Memory for the cache of the page store";
    feed_history_bytes: String, "feed-history-bytes", "KVORUM_FEED_HISTORY_BYTES", "SIZE", Size, "16mb", Fixed,
        "Memory for the history of the change feed; 0 turns the feed off";
    feed_value_bytes: String, "feed-value-bytes", "KVORUM_FEED_VALUE_BYTES", "SIZE", Size, "4kb", Fixed,
        "The longest value that is kept with its event in the change feed";
    entry_bytes_max: String, "entry-bytes-max", "KVORUM_ENTRY_BYTES_MAX", "SIZE", Size, "1mb", Fixed,
        "Commands are batched into log entries of about this size";
    proposal_bytes_max: String, "proposal-bytes-max", "KVORUM_PROPOSAL_BYTES_MAX", "SIZE", Size, "40mb", Fixed,
        "The largest single write or transaction: all others wait while it goes through the log";
    entry_proposals_max: usize, "entry-proposals-max", "KVORUM_ENTRY_PROPOSALS_MAX", "N", Number, "1024", Fixed,
        "The most pipelines batched into one log entry";
    entries_in_flight_max: usize, "entries-in-flight-max", "KVORUM_ENTRIES_IN_FLIGHT_MAX", "N", Number, "4", Fixed,
        "The most log entries of this node in flight at once";
}

/// A value as it was given.
trait Text {
    fn text(&self) -> String;
}

macro_rules! text {
    ($($type:ty),*) => {
        $(impl Text for $type {
            fn text(&self) -> String {
                self.to_string()
            }
        })*
    };
}

text!(u32, u64, usize, String);

impl Text for PathBuf {
    fn text(&self) -> String {
        self.display().to_string()
    }
}

fn help(text: &str, default: &str) -> String {
    if default.is_empty() { text.to_owned() } else { format!("{text} [default: {default}]") }
}

/// The default of an option, as text.
pub(super) fn default_of(name: &str) -> &'static str {
    ROWS.iter().find(|row| row.name == name).expect("every option has a row").default
}

impl Options {
    /// The values that CONFIG GET shows, by name, as they are in force: sizes in bytes.
    pub(super) fn shown(&self) -> BTreeMap<&'static str, String> {
        let given = self.given();
        let rows = ROWS.iter().filter(|row| row.shown != Shown::No);
        let value = |row: &Row| {
            let text = given.get(row.name).map_or(row.default, String::as_str);
            match (row.kind, bytes(text)) {
                (Value::Size, Some(size)) => size.to_string(),
                _ => text.to_owned(),
            }
        };
        rows.map(|row| (row.name, value(row))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory as _, Parser};

    use super::{Options, ROWS, Shown, Value};
    use crate::connection::settings::{SetError, Settings};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    /// All places that know the options: flags, variables, the file, CONFIG GET and SET.
    #[test]
    fn an_option_is_the_same_everywhere() {
        let command = Command::command();
        let flags: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        let mut least = Options { id: Some(1), data: Some("data".into()), ..Options::default() };
        let settings = Settings::new(least.clone().validate().unwrap().settings);
        for row in ROWS {
            assert!(flags.contains(row.name), "{}", row.name);
            let variable = format!("KVORUM_{}", row.name.to_ascii_uppercase().replace('-', "_"));
            assert_eq!(row.variable, variable);
            let help =
                command.get_arguments().find(|arg| arg.get_long() == Some(row.name)).unwrap().get_help();
            assert_eq!(
                help.unwrap().to_string().contains(&format!("[default: {}]", row.default)),
                !row.default.is_empty()
            );
            // The file's key is the name.
            let value = if row.kind == Value::Number { "1" } else { "\"1\"" };
            let in_file: Options = toml::from_str(&format!("{} = {value}", row.name)).unwrap();
            assert_eq!(in_file.given().into_iter().collect::<Vec<_>>(), [(row.name, "1".to_owned())]);
            least = in_file.over(least);
            let present = settings.all().get(row.name).cloned();
            let set = |value: &str| settings.set(row.name, value, false);
            match row.shown {
                Shown::No if present.is_none() => assert_eq!(set("1"), Err(SetError::Unknown)),
                Shown::No => {
                    assert!(row.name == "client-output-buffer-limit", "{} has its own form", row.name)
                }
                Shown::Fixed => assert_eq!(set("something else"), Err(SetError::Immutable), "{}", row.name),
                Shown::AtRunTime => {
                    assert_eq!(set("4000000"), Ok(()), "{}", row.name);
                    assert!(matches!(set("something else"), Err(SetError::Invalid(_))), "{}", row.name);
                }
            }
            if row.shown != Shown::No {
                let size = crate::connection::settings::bytes;
                let default = match (row.kind, size(row.default)) {
                    (Value::Size, Some(bytes)) => bytes.to_string(),
                    // It depends on the machine.
                    (Value::Size, None) => size(present.as_ref().unwrap()).unwrap().to_string(),
                    (Value::Number | Value::Text, _) => row.default.to_owned(),
                };
                assert_eq!(present, Some(default), "{}", row.name);
            }
        }
        assert_eq!(least.given().len(), ROWS.len());
    }
}

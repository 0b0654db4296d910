//! Every knob and limit, in one place: from flags, then `KVORUM_*` variables, then the file given with
//! `--config`, then defaults; validated once, then immutable.
//!
//! [`Options`] is the one definition of all names: flags, variables and the file's keys are the same words.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use clap::Args;
use kvorum_raft::{NODE_ID_MAX, NodeConfig, NodeId, ReadLevel, check_address, check_id};
use serde::Deserialize;
use thiserror::Error;

use crate::{
    feed,
    session::{
        consistency,
        settings::{self, Initial},
    },
    store::DATABASES_MAX,
};

/// The longest delay after a hold that ran out: a day.
const LOCK_DELAY_MS_MAX: u64 = 24 * 3600 * 1000;

/// What can be configured; all may be left out. A size takes a unit: `64mb`, `1gb`.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// This node's number, from 1 to 9007199254740991; never that of another node, past or present
    #[arg(long, env = "KVORUM_ID", value_name = "N")]
    pub id: Option<u64>,
    /// Directory of the log, the pages and the node's identity; created when missing
    #[arg(long, env = "KVORUM_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address for Redis clients [default: 127.0.0.1:6379]
    #[arg(long, env = "KVORUM_RESP", value_name = "ADDR")]
    pub resp: Option<String>,
    /// Address of the admin API, health and metrics [default: 127.0.0.1:8379]
    #[arg(long, env = "KVORUM_HTTP", value_name = "ADDR")]
    pub http: Option<String>,
    /// Address for the other nodes [default: 127.0.0.1:7379]
    #[arg(long, env = "KVORUM_PEER", value_name = "ADDR")]
    pub peer: Option<String>,
    /// The first members' peer addresses, the same list on each, this node included: 1=HOST:PORT,2=HOST:PORT.
    /// They form the cluster by themselves, once; a node that has data ignores it
    #[arg(long, env = "KVORUM_PEERS", value_name = "ID=ADDR,...")]
    pub peers: Option<String>,
    /// HTTP address of any member: a node without data asks it to be added, as a learner that becomes a voter
    /// when it has caught up
    #[arg(long, env = "KVORUM_JOIN", value_name = "URL", conflicts_with = "peers")]
    pub join: Option<String>,
    /// Address under which clients reach this node, when it is not the one it listens on; where it listens on all
    /// (0.0.0.0), the host that its peers use stands for it
    #[arg(long, env = "KVORUM_ADVERTISE_RESP", value_name = "ADDR")]
    pub advertise_resp: Option<String>,
    /// Address under which the admin API is reached, when it is not the one it listens on; as for --advertise-resp
    #[arg(long, env = "KVORUM_ADVERTISE_HTTP", value_name = "ADDR")]
    pub advertise_http: Option<String>,
    /// Address under which the other nodes reach this one, when it is not the one it listens on; where it listens on
    /// all (0.0.0.0), the one in --peers stands for it, and is needed
    #[arg(long, env = "KVORUM_ADVERTISE_PEER", value_name = "ADDR")]
    pub advertise_peer: Option<String>,
    /// What is logged: a level, or a filter such as info,kvorum_raft=debug [default: info,openraft=error]
    #[arg(long, env = "KVORUM_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Worker threads [default: the number of cores]
    #[arg(long, env = "KVORUM_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Databases for SELECT; the same on all nodes [default: 16]
    #[arg(long, env = "KVORUM_DATABASES", value_name = "N")]
    pub databases: Option<u32>,
    /// The most client connections [default: 10000]
    #[arg(long, env = "KVORUM_MAXCLIENTS", value_name = "N")]
    pub maxclients: Option<usize>,
    /// Close a client after this many idle seconds; 0 for never [default: 0]
    #[arg(long, env = "KVORUM_TIMEOUT", value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// The longest argument of a command [default: 512mb]
    #[arg(long, env = "KVORUM_PROTO_MAX_BULK_LEN", value_name = "SIZE")]
    pub proto_max_bulk_len: Option<String>,
    /// The most arguments of a command [default: 1048576]
    #[arg(long, env = "KVORUM_PROTO_MAX_ARGUMENTS", value_name = "N")]
    pub proto_max_arguments: Option<usize>,
    /// The longest inline command and header line [default: 64kb]
    #[arg(long, env = "KVORUM_PROTO_INLINE_MAX_LEN", value_name = "SIZE")]
    pub proto_inline_max_len: Option<String>,
    /// The most bytes of one client that wait to be executed [default: 1gb]
    #[arg(long, env = "KVORUM_CLIENT_QUERY_BUFFER_LIMIT", value_name = "SIZE")]
    pub client_query_buffer_limit: Option<String>,
    /// The most bytes of replies that wait for one client; a client above it is disconnected [default: 2gb]
    #[arg(long, env = "KVORUM_CLIENT_OUTPUT_BUFFER_LIMIT", value_name = "SIZE")]
    pub client_output_buffer_limit: Option<String>,
    /// After a hold of a lock, semaphore or election ran out, nothing is granted for so long, unless the holder asked
    /// with DELAY for another time [default: 0]
    #[arg(long, env = "KVORUM_LOCK_DELAY_MS", value_name = "MS")]
    pub lock_delay_ms: Option<u64>,
    /// What reads promise on a connection that asks for nothing else: linearizable, lease, "bounded MS" or stale
    /// [default: linearizable]
    #[arg(long, env = "KVORUM_READ_CONSISTENCY", value_name = "LEVEL")]
    pub read_consistency: Option<String>,
    /// The largest HTTP request body [default: 64kb]
    #[arg(long, env = "KVORUM_HTTP_BODY_LIMIT", value_name = "SIZE")]
    pub http_body_limit: Option<String>,
    /// How long a stopping node lets clients finish what is under way [default: 5000]
    #[arg(long, env = "KVORUM_DRAIN_MS", value_name = "MS")]
    pub drain_ms: Option<u64>,
    /// Time between two heartbeats of the leader, over any distance [default: 100]
    #[arg(long, env = "KVORUM_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// A node that has heard no leader for election-timeout-max-ms waits for another time between the two, and stands
    /// for election. Where neither is given, this second wait grows with the round trip [default: 350]
    #[arg(long, env = "KVORUM_ELECTION_TIMEOUT_MIN_MS", value_name = "MS")]
    pub election_timeout_min_ms: Option<u64>,
    /// As for --election-timeout-min-ms; the same on all nodes [default: 600]
    #[arg(long, env = "KVORUM_ELECTION_TIMEOUT_MAX_MS", value_name = "MS")]
    pub election_timeout_max_ms: Option<u64>,
    /// How long a request waits for a leader or for its confirmation [default: 5000]
    #[arg(long, env = "KVORUM_REQUEST_TIMEOUT_MS", value_name = "MS")]
    pub request_timeout_ms: Option<u64>,
    /// A leader whose disk takes longer for one sync gives up its leadership [default: 2000]
    #[arg(long, env = "KVORUM_DISK_STALL_MS", value_name = "MS")]
    pub disk_stall_ms: Option<u64>,
    /// Size of the log since the last checkpoint that starts the next [default: 64mb]
    #[arg(long, env = "KVORUM_CHECKPOINT_LOG_BYTES", value_name = "SIZE")]
    pub checkpoint_log_bytes: Option<String>,
    /// Log entries that stay behind a checkpoint, for followers that lag a little [default: 2000]
    #[arg(long, env = "KVORUM_LOG_ENTRIES_KEPT", value_name = "N")]
    pub log_entries_kept: Option<u64>,
    /// Size of a log segment [default: 64mb]
    #[arg(long, env = "KVORUM_LOG_SEGMENT_BYTES", value_name = "SIZE")]
    pub log_segment_bytes: Option<String>,
    /// Space set aside on the disk for what must still be written when it is full; 0 for none [default: two log
    /// segments and checkpoint-log-bytes, or an eighth of a small file system]
    #[arg(long, env = "KVORUM_DISK_RESERVE", value_name = "SIZE")]
    pub disk_reserve: Option<String>,
    /// Memory for the newest log entries [default: 2mb]
    #[arg(long, env = "KVORUM_LOG_CACHE_BYTES", value_name = "SIZE")]
    pub log_cache_bytes: Option<String>,
    /// Memory for the cache of the page store [default: 8mb]
    #[arg(long, env = "KVORUM_PAGE_CACHE_BYTES", value_name = "SIZE")]
    pub page_cache_bytes: Option<String>,
    /// Memory for the history of the change feed; 0 turns the feed off [default: 16mb]
    #[arg(long, env = "KVORUM_FEED_HISTORY_BYTES", value_name = "SIZE")]
    pub feed_history_bytes: Option<String>,
    /// The longest value that is kept with its event in the change feed [default: 4kb]
    #[arg(long, env = "KVORUM_FEED_VALUE_BYTES", value_name = "SIZE")]
    pub feed_value_bytes: Option<String>,
    /// Commands are gathered into log entries of about this size [default: 1mb]
    #[arg(long, env = "KVORUM_ENTRY_BYTES_MAX", value_name = "SIZE")]
    pub entry_bytes_max: Option<String>,
    /// The largest single write or transaction [default: 1gb]
    #[arg(long, env = "KVORUM_PROPOSAL_BYTES_MAX", value_name = "SIZE")]
    pub proposal_bytes_max: Option<String>,
    /// The most pipelines gathered into one log entry [default: 1024]
    #[arg(long, env = "KVORUM_ENTRY_PROPOSALS_MAX", value_name = "N")]
    pub entry_proposals_max: Option<usize>,
    /// The most log entries of this node under way at once [default: 4]
    #[arg(long, env = "KVORUM_ENTRIES_IN_FLIGHT_MAX", value_name = "N")]
    pub entries_in_flight_max: Option<usize>,
}

/// What is wrong with the configuration. Its text says where.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key or a value of another type.
    #[error("{}: {source}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Line, column, key and reason.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Invalid {
        /// The option's name.
        key: &'static str,
        /// What it should be.
        reason: String,
    },
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Consensus, durability, peers.
    pub node: NodeConfig,
    /// Limits of the sessions.
    pub settings: Initial,
    /// Limits of the change feed.
    pub feed: feed::Limits,
    /// Where Redis clients connect.
    pub resp: SocketAddr,
    /// Where the admin API listens.
    pub http: SocketAddr,
    /// The member to ask for being added.
    pub join: Option<String>,
    /// The largest HTTP request body.
    pub http_body_bytes_max: usize,
    /// How long a stop lets clients finish.
    pub drain_ms: u64,
    /// Worker threads; None for the number of cores.
    pub threads: Option<usize>,
}

impl Options {
    /// Reads the file, if there is one, for what is not given here.
    pub fn with_file(self, file: Option<&Path>) -> Result<Options, ConfigError> {
        let Some(file) = file else { return Ok(self) };
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        let below = toml::from_str(&text)
            .map_err(|source| ConfigError::Malformed { file: file.to_owned(), source: Box::new(source) })?;
        Ok(self.over(below))
    }

    /// What is given here, else what is given below.
    fn over(self, below: Options) -> Options {
        // A way into a cluster that is given here overrides the other way that is given below.
        let (peers, join) = match (self.peers, self.join) {
            (None, None) => (below.peers, below.join),
            here => here,
        };
        Options {
            id: self.id.or(below.id),
            data: self.data.or(below.data),
            resp: self.resp.or(below.resp),
            http: self.http.or(below.http),
            peer: self.peer.or(below.peer),
            peers,
            join,
            advertise_resp: self.advertise_resp.or(below.advertise_resp),
            advertise_http: self.advertise_http.or(below.advertise_http),
            advertise_peer: self.advertise_peer.or(below.advertise_peer),
            log: self.log.or(below.log),
            threads: self.threads.or(below.threads),
            databases: self.databases.or(below.databases),
            maxclients: self.maxclients.or(below.maxclients),
            timeout: self.timeout.or(below.timeout),
            proto_max_bulk_len: self.proto_max_bulk_len.or(below.proto_max_bulk_len),
            proto_max_arguments: self.proto_max_arguments.or(below.proto_max_arguments),
            proto_inline_max_len: self.proto_inline_max_len.or(below.proto_inline_max_len),
            client_query_buffer_limit: self.client_query_buffer_limit.or(below.client_query_buffer_limit),
            client_output_buffer_limit: self.client_output_buffer_limit.or(below.client_output_buffer_limit),
            lock_delay_ms: self.lock_delay_ms.or(below.lock_delay_ms),
            read_consistency: self.read_consistency.or(below.read_consistency),
            http_body_limit: self.http_body_limit.or(below.http_body_limit),
            drain_ms: self.drain_ms.or(below.drain_ms),
            heartbeat_ms: self.heartbeat_ms.or(below.heartbeat_ms),
            election_timeout_min_ms: self.election_timeout_min_ms.or(below.election_timeout_min_ms),
            election_timeout_max_ms: self.election_timeout_max_ms.or(below.election_timeout_max_ms),
            request_timeout_ms: self.request_timeout_ms.or(below.request_timeout_ms),
            disk_stall_ms: self.disk_stall_ms.or(below.disk_stall_ms),
            checkpoint_log_bytes: self.checkpoint_log_bytes.or(below.checkpoint_log_bytes),
            log_entries_kept: self.log_entries_kept.or(below.log_entries_kept),
            log_segment_bytes: self.log_segment_bytes.or(below.log_segment_bytes),
            disk_reserve: self.disk_reserve.or(below.disk_reserve),
            log_cache_bytes: self.log_cache_bytes.or(below.log_cache_bytes),
            page_cache_bytes: self.page_cache_bytes.or(below.page_cache_bytes),
            feed_history_bytes: self.feed_history_bytes.or(below.feed_history_bytes),
            feed_value_bytes: self.feed_value_bytes.or(below.feed_value_bytes),
            entry_bytes_max: self.entry_bytes_max.or(below.entry_bytes_max),
            proposal_bytes_max: self.proposal_bytes_max.or(below.proposal_bytes_max),
            entry_proposals_max: self.entry_proposals_max.or(below.entry_proposals_max),
            entries_in_flight_max: self.entries_in_flight_max.or(below.entries_in_flight_max),
        }
    }

    /// Fills in the defaults and checks all.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let id =
            self.id.ok_or_else(|| invalid("id", format!("a number from 1 to {NODE_ID_MAX} is needed")))?;
        check_id(id).map_err(|why| invalid("id", why))?;
        let dir = self.data.clone().ok_or_else(|| invalid("data", "a directory is needed"))?;
        let resp = address("resp", self.resp.as_deref().unwrap_or("127.0.0.1:6379"))?;
        let http = address("http", self.http.as_deref().unwrap_or("127.0.0.1:8379"))?;
        let peer_listen = self.peer.clone().unwrap_or_else(|| "127.0.0.1:7379".to_owned());
        address("peer", &peer_listen)?;
        for (key, advertised) in [
            ("advertise-resp", &self.advertise_resp),
            ("advertise-http", &self.advertise_http),
            ("advertise-peer", &self.advertise_peer),
        ] {
            advertised
                .iter()
                .try_for_each(|address| check_address(address))
                .map_err(|why| invalid(key, why))?;
        }
        let bootstrap = self.peers.as_deref().map(|list| peers(list, id)).transpose()?;
        if let Some(join) = &self.join
            && !join.starts_with("http://")
        {
            return Err(invalid("join", "it is the HTTP address of a member, as http://HOST:PORT"));
        }
        let settings = self.settings(&dir, resp)?;
        let feed = feed::Limits {
            history_bytes_max: size("feed-history-bytes", &self.feed_history_bytes, 16 << 20, 0)? as usize,
            value_bytes_max: size("feed-value-bytes", &self.feed_value_bytes, 4 << 10, 0)? as usize,
        };
        let node = self.node(id, dir, peer_listen, bootstrap)?;
        Ok(Config {
            node,
            settings,
            feed,
            resp,
            http,
            join: self.join,
            http_body_bytes_max: size("http-body-limit", &self.http_body_limit, 64 << 10, 1 << 10)? as usize,
            drain_ms: self.drain_ms.unwrap_or(5_000),
            threads: at_least("threads", self.threads, 1)?,
        })
    }

    fn settings(&self, dir: &Path, resp: SocketAddr) -> Result<Initial, ConfigError> {
        let databases = self.databases.unwrap_or(16);
        if databases == 0 || databases > DATABASES_MAX {
            return Err(invalid("databases", format!("it is between 1 and {DATABASES_MAX}")));
        }
        let query = size("client-query-buffer-limit", &self.client_query_buffer_limit, 1 << 30, 1 << 20)?;
        if query >= 4 << 30 {
            return Err(invalid("client-query-buffer-limit", "it must be below 4gb"));
        }
        let lock_delay_ms = self.lock_delay_ms.unwrap_or(0);
        if lock_delay_ms > LOCK_DELAY_MS_MAX {
            return Err(invalid("lock-delay-ms", format!("it is at most {LOCK_DELAY_MS_MAX}, a day")));
        }
        let bulk = size("proto-max-bulk-len", &self.proto_max_bulk_len, 512 << 20, 1 << 20)?;
        if bulk > query {
            return Err(invalid("proto-max-bulk-len", "it must not exceed client-query-buffer-limit"));
        }
        Ok(Initial {
            databases,
            clients_max: at_least("maxclients", self.maxclients, 1)?.unwrap_or(10_000),
            idle_timeout_s: self.timeout.unwrap_or(0),
            bulk_bytes_max: bulk as usize,
            arguments_max: at_least("proto-max-arguments", self.proto_max_arguments, 16)?.unwrap_or(1 << 20),
            inline_bytes_max: size("proto-inline-max-len", &self.proto_inline_max_len, 64 << 10, 1 << 10)?
                as usize,
            query_buffer_bytes_max: query as usize,
            output_buffer_bytes_max: size(
                "client-output-buffer-limit",
                &self.client_output_buffer_limit,
                2 << 30,
                1 << 20,
            )? as usize,
            lock_delay_ms,
            read_level: self.read_level()?,
            dir: dir.display().to_string(),
            port: resp.port(),
            bind: resp.ip().to_string(),
        })
    }

    fn read_level(&self) -> Result<ReadLevel, ConfigError> {
        let text = self.read_consistency.as_deref().unwrap_or("linearizable");
        let words: Vec<&[u8]> = text.split_whitespace().map(str::as_bytes).collect();
        match consistency::parse(&words) {
            Ok(Some((level, count))) if count == words.len() => Ok(level),
            _ => Err(invalid(
                "read-consistency",
                format!(
                    "it is linearizable, lease, stale, or bounded with a number between 1 and {}",
                    consistency::BOUND_MS_MAX
                ),
            )),
        }
    }

    fn node(
        &self,
        id: NodeId,
        dir: PathBuf,
        peer_listen: String,
        bootstrap: Option<BTreeMap<NodeId, String>>,
    ) -> Result<NodeConfig, ConfigError> {
        let heartbeat_ms = self.heartbeat_ms.unwrap_or(100);
        let (min, max) =
            (self.election_timeout_min_ms.unwrap_or(350), self.election_timeout_max_ms.unwrap_or(600));
        if heartbeat_ms == 0 || min < 2 * heartbeat_ms {
            return Err(invalid(
                "election-timeout-min-ms",
                "it must be at least twice heartbeat-ms, which is at least 1",
            ));
        }
        if max <= min {
            return Err(invalid("election-timeout-max-ms", "it must be above election-timeout-min-ms"));
        }
        Ok(NodeConfig {
            id,
            dir,
            peer_listen,
            peer_advertise: self.advertise_peer.clone(),
            // Those that are not given are those that the listeners are bound to.
            endpoints: [("resp", &self.advertise_resp), ("http", &self.advertise_http)]
                .into_iter()
                .filter_map(|(name, address)| Some((name.to_owned(), address.clone()?)))
                .collect(),
            bootstrap,
            heartbeat_ms,
            election_timeout_ms: (min, max),
            election_timeout_auto: self.election_timeout_min_ms.or(self.election_timeout_max_ms).is_none(),
            checkpoint_log_bytes: size(
                "checkpoint-log-bytes",
                &self.checkpoint_log_bytes,
                64 << 20,
                1 << 12,
            )?,
            log_entries_kept: self.log_entries_kept.unwrap_or(2000),
            log_segment_bytes: size("log-segment-bytes", &self.log_segment_bytes, 64 << 20, 1 << 16)?,
            log_cache_bytes: size("log-cache-bytes", &self.log_cache_bytes, 2 << 20, 0)? as usize,
            page_cache_bytes: size("page-cache-bytes", &self.page_cache_bytes, 8 << 20, 1 << 20)? as usize,
            entry_bytes_max: size("entry-bytes-max", &self.entry_bytes_max, 1 << 20, 1 << 12)? as usize,
            proposal_bytes_max: size("proposal-bytes-max", &self.proposal_bytes_max, 1 << 30, 1 << 16)?
                as usize,
            entry_proposals_max: at_least("entry-proposals-max", self.entry_proposals_max, 1)?
                .unwrap_or(1024),
            entries_in_flight_max: at_least("entries-in-flight-max", self.entries_in_flight_max, 1)?
                .unwrap_or(4),
            request_timeout_ms: self.request_timeout_ms.unwrap_or(5_000),
            disk_stall_ms: self.disk_stall_ms.unwrap_or(2_000),
            disk_reserve_bytes: match &self.disk_reserve {
                None => None,
                text => Some(size("disk-reserve", text, 0, 0)?),
            },
        })
    }
}

fn invalid(key: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key, reason: reason.into() }
}

fn at_least(key: &'static str, value: Option<usize>, min: usize) -> Result<Option<usize>, ConfigError> {
    match value {
        Some(value) if value < min => Err(invalid(key, format!("it must be at least {min}"))),
        value => Ok(value),
    }
}

fn size(key: &'static str, text: &Option<String>, default: u64, min: u64) -> Result<u64, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    let size =
        settings::bytes(text).ok_or_else(|| invalid(key, format!("{text:?} is no size such as 64mb")))?;
    if size < min {
        return Err(invalid(key, format!("it must be at least {min} bytes")));
    }
    Ok(size)
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let found = text.to_socket_addrs().map_err(|error| invalid(key, format!("{text:?}: {error}")))?.next();
    found.ok_or_else(|| invalid(key, format!("{text:?} has no address")))
}

fn peers(list: &str, id: NodeId) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let mut peers = BTreeMap::new();
    for peer in list.split(',').map(str::trim).filter(|peer| !peer.is_empty()) {
        let wrong = |reason: &str| invalid("peers", format!("{peer:?}: {reason}"));
        let (id, address) = peer.split_once('=').ok_or_else(|| wrong("it should be ID=HOST:PORT"))?;
        let id: NodeId = id.parse().map_err(|_| wrong("the id is a number"))?;
        check_id(id).and_then(|()| check_address(address)).map_err(|why| wrong(&why))?;
        if peers.values().any(|other| other == address) {
            return Err(wrong("another node has this address"));
        }
        if peers.insert(id, address.to_owned()).is_some() {
            return Err(wrong("the id stands there twice"));
        }
    }
    if !peers.contains_key(&id) {
        return Err(invalid("peers", format!("this node, {id}, is missing in the list")));
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn least() -> Options {
        Options { id: Some(1), data: Some("data".into()), ..Options::default() }
    }

    #[test]
    fn defaults_are_valid() {
        let config = least().validate().unwrap();
        assert_eq!(config.resp.port(), 6379);
        assert_eq!(config.settings.bulk_bytes_max, 512 << 20);
    }

    #[test]
    fn time_outs_that_an_operator_gives_do_not_grow() {
        let config = |options: Options| options.validate().unwrap().node;
        assert!(config(least()).election_timeout_auto);
        assert!(config(Options { heartbeat_ms: Some(50), ..least() }).election_timeout_auto);
        for (min, max) in [(Some(300), None), (None, Some(700)), (Some(350), Some(600))] {
            let given = Options { election_timeout_min_ms: min, election_timeout_max_ms: max, ..least() };
            let config = config(given);
            assert!(!config.election_timeout_auto);
            assert_eq!(config.election_timeout_ms, (min.unwrap_or(350), max.unwrap_or(600)));
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvorum.toml");
        std::fs::write(&file, "id = 7\nresp = \"127.0.0.1:7000\"\npeers = \"1=a:1,7=b:2\"\n").unwrap();
        let config = least().with_file(Some(&file)).unwrap().validate().unwrap();
        assert_eq!((config.node.id, config.resp.port()), (1, 7000));
        assert_eq!(config.node.bootstrap.unwrap()[&7], "b:2");
    }

    #[test]
    fn an_unknown_key_is_told_with_file_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvorum.toml");
        std::fs::write(&file, "id = 7\n\nrepsp = \"x\"\n").unwrap();
        let error = least().with_file(Some(&file)).unwrap_err().to_string();
        for part in ["kvorum.toml", "line 3", "repsp"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn contradictions_name_their_key() {
        let cases: [(&str, Options); 17] = [
            ("id", Options { id: None, ..least() }),
            ("id", Options { id: Some(0), ..least() }),
            ("id", Options { id: Some(u64::MAX), ..least() }),
            ("peers", Options { peers: Some("1=a:1,9007199254740992=b:1".into()), ..least() }),
            ("peers", Options { peers: Some("1=a:1,2=b c:1".into()), ..least() }),
            ("advertise-peer", Options { advertise_peer: Some("nowhere".into()), ..least() }),
            ("advertise-resp", Options { advertise_resp: Some("a:0".into()), ..least() }),
            ("advertise-http", Options { advertise_http: Some("a:1\n".into()), ..least() }),
            ("peers", Options { peers: Some("2=a:1".into()), ..least() }),
            ("peers", Options { peers: Some("1=a:1,1=b:1".into()), ..least() }),
            ("peers", Options { peers: Some("1=a:1,2=a:1".into()), ..least() }),
            ("resp", Options { resp: Some("nonsense".into()), ..least() }),
            ("log-segment-bytes", Options { log_segment_bytes: Some("lots".into()), ..least() }),
            ("disk-reserve", Options { disk_reserve: Some("some".into()), ..least() }),
            ("read-consistency", Options { read_consistency: Some("bounded".into()), ..least() }),
            ("read-consistency", Options { read_consistency: Some("stale 5".into()), ..least() }),
            ("election-timeout-max-ms", Options { election_timeout_max_ms: Some(10), ..least() }),
        ];
        for (key, options) in cases {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}:")), "{error}");
        }
    }
}

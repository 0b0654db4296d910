//! All options and limits: taken from flags, then `KVORUM_*` variables, then the file given with `--config`,
//! then defaults; validated once, then immutable.
//!
//! [`options`] has a row for each option: a flag, its variable, its key in the file and its parameter of CONFIG
//! share one name.

pub mod options;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    str::FromStr,
};

use kvorum_raft::{NODE_ID_MAX, NodeConfig, NodeId, ReadLevel, check_address, check_id};
pub use options::Options;
use options::default_of;
use thiserror::Error;

use crate::{
    connection::{
        descriptors::HTTP_MAX,
        settings::{self, Initial},
        verbs::consistency,
    },
    feed, maxmemory,
    store::DATABASES_MAX,
};

/// The longest lock delay: a day.
const LOCK_DELAY_MS_MAX: u64 = 24 * 3600 * 1000;

/// What is wrong with the configuration. The text says where.
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
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{}: {source}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Line, column, key and reason.
        source: Box<toml::de::Error>,
    },
    /// A value is not allowed.
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
    /// Limits of the connections.
    pub settings: Initial,
    /// Limits of the change feed.
    pub feed: feed::Limits,
    /// Where Redis clients connect.
    pub resp: SocketAddr,
    /// Where the admin API listens.
    pub http: SocketAddr,
    /// The member to ask for admission to the cluster.
    pub join: Option<String>,
    /// The largest HTTP request body.
    pub http_body_bytes_max: usize,
    /// The most HTTP connections.
    pub http_connections_max: usize,
    /// The hosts of the addresses that are configured.
    pub own_hosts: Vec<String>,
    /// Further names of the HTTP API.
    pub http_hosts: Vec<String>,
    /// How long a stopping node lets clients finish.
    pub drain_ms: u64,
    /// Worker threads; None for the number of cores.
    pub threads: Option<usize>,
    /// The limit for the memory of the content, for a cluster that has none yet; None to choose one.
    pub maxmemory: Option<u64>,
}

impl Options {
    /// Fills in what is absent here from the file, if there is one.
    pub fn with_file(self, file: Option<&Path>) -> Result<Options, ConfigError> {
        let Some(file) = file else { return Ok(self) };
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        let below = toml::from_str(&text)
            .map_err(|source| ConfigError::Malformed { file: file.to_owned(), source: Box::new(source) })?;
        let mut below: Options = below;
        // They exclude each other, so either one given here overrides both below.
        if self.peers.is_some() || self.join.is_some() {
            (below.peers, below.join) = (None, None);
        }
        Ok(self.over(below))
    }

    /// Fills in the defaults and checks everything.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let id =
            self.id.ok_or_else(|| invalid("id", format!("a number from 1 to {NODE_ID_MAX} is needed")))?;
        check_id(id).map_err(|why| invalid("id", why))?;
        let dir = self.data.clone().ok_or_else(|| invalid("data", "a directory is needed"))?;
        let resp = address("resp", self.resp.as_deref().unwrap_or(default_of("resp")))?;
        let http = address("http", self.http.as_deref().unwrap_or(default_of("http")))?;
        let peer_listen = self.peer.clone().unwrap_or_else(|| default_of("peer").to_owned());
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
        let listed = bootstrap.as_ref().and_then(|peers| peers.get(&id));
        let (own_hosts, http_hosts) = (self.own_hosts(listed), http_hosts(self.http_hosts.as_deref())?);
        let settings = self.settings(&dir, resp)?;
        let feed = feed::Limits {
            history_bytes_max: size("feed-history-bytes", &self.feed_history_bytes, 0)? as usize,
            value_bytes_max: size("feed-value-bytes", &self.feed_value_bytes, 0)? as usize,
        };
        let node = self.node(id, dir, peer_listen, bootstrap)?;
        Ok(Config {
            node,
            settings,
            feed,
            resp,
            http,
            join: self.join,
            http_body_bytes_max: size("http-body-limit", &self.http_body_limit, 1 << 10)? as usize,
            own_hosts,
            http_hosts,
            http_connections_max: HTTP_MAX as usize,
            drain_ms: number("drain-ms", self.drain_ms),
            threads: at_least("threads", self.threads, 1)?,
            maxmemory: match &self.maxmemory {
                None => None,
                text => Some(size("maxmemory", text, 0)?),
            },
        })
    }

    /// The hosts of this node's addresses, of which `listed` is the one in the list of peers.
    fn own_hosts(&self, listed: Option<&String>) -> Vec<String> {
        let given = [
            &self.resp,
            &self.http,
            &self.peer,
            &self.advertise_resp,
            &self.advertise_http,
            &self.advertise_peer,
        ];
        let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_owned());
        given.into_iter().flatten().chain(listed).filter_map(host).collect()
    }

    fn settings(&self, dir: &Path, resp: SocketAddr) -> Result<Initial, ConfigError> {
        let databases = number("databases", self.databases);
        if databases == 0 || databases > DATABASES_MAX {
            return Err(invalid("databases", format!("it is between 1 and {DATABASES_MAX}")));
        }
        let query = size("client-query-buffer-limit", &self.client_query_buffer_limit, 1 << 20)?;
        if query >= 4 << 30 {
            return Err(invalid("client-query-buffer-limit", "it must be below 4gb"));
        }
        let lock_delay_ms = number("lock-delay-ms", self.lock_delay_ms);
        if lock_delay_ms > LOCK_DELAY_MS_MAX {
            return Err(invalid("lock-delay-ms", format!("it is at most {LOCK_DELAY_MS_MAX}, a day")));
        }
        let bulk = size("proto-max-bulk-len", &self.proto_max_bulk_len, 1 << 20)?;
        if bulk > query {
            return Err(invalid("proto-max-bulk-len", "it must not exceed client-query-buffer-limit"));
        }
        Ok(Initial {
            shown: self.shown(),
            databases,
            clients_max: number("maxclients", at_least("maxclients", self.maxclients, 1)?),
            clients_bound: usize::MAX,
            idle_timeout_s: number("timeout", self.timeout),
            bulk_bytes_max: bulk as usize,
            arguments_max: number(
                "proto-max-arguments",
                at_least("proto-max-arguments", self.proto_max_arguments, 16)?,
            ),
            inline_bytes_max: size("proto-inline-max-len", &self.proto_inline_max_len, 1 << 10)? as usize,
            query_buffer_bytes_max: query as usize,
            output_buffer_bytes_max: size(
                "client-output-buffer-limit",
                &self.client_output_buffer_limit,
                1 << 20,
            )? as usize,
            clients_bytes_max: match &self.maxmemory_clients {
                None => maxmemory::of_machine().map_or(0, |memory| memory / 4),
                text => size("maxmemory-clients", text, 0)?,
            },
            lock_delay_ms,
            read_level: self.read_level()?,
            dir: dir.display().to_string(),
            port: resp.port(),
            bind: resp.ip().to_string(),
        })
    }

    fn read_level(&self) -> Result<ReadLevel, ConfigError> {
        let text = self.read_consistency.as_deref().unwrap_or(default_of("read-consistency"));
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
        let heartbeat_ms = number("heartbeat-ms", self.heartbeat_ms);
        let min = number("election-timeout-min-ms", self.election_timeout_min_ms);
        let max = number("election-timeout-max-ms", self.election_timeout_max_ms);
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
            // The node fills in the others with the addresses that its listeners are bound to.
            endpoints: [("resp", &self.advertise_resp), ("http", &self.advertise_http)]
                .into_iter()
                .filter_map(|(name, address)| Some((name.to_owned(), address.clone()?)))
                .collect(),
            bootstrap,
            heartbeat_ms,
            election_timeout_ms: (min, max),
            election_timeout_auto: self.election_timeout_min_ms.or(self.election_timeout_max_ms).is_none(),
            checkpoint_log_bytes: size("checkpoint-log-bytes", &self.checkpoint_log_bytes, 1 << 12)?,
            log_entries_kept: number("log-entries-kept", self.log_entries_kept),
            log_segment_bytes: size("log-segment-bytes", &self.log_segment_bytes, 1 << 16)?,
            log_cache_bytes: size("log-cache-bytes", &self.log_cache_bytes, 0)? as usize,
            page_cache_bytes: size("page-cache-bytes", &self.page_cache_bytes, 1 << 20)? as usize,
            entry_bytes_max: size("entry-bytes-max", &self.entry_bytes_max, 1 << 12)? as usize,
            proposal_bytes_max: size("proposal-bytes-max", &self.proposal_bytes_max, 1 << 16)? as usize,
            entry_proposals_max: number(
                "entry-proposals-max",
                at_least("entry-proposals-max", self.entry_proposals_max, 1)?,
            ),
            entries_in_flight_max: number(
                "entries-in-flight-max",
                at_least("entries-in-flight-max", self.entries_in_flight_max, 1)?,
            ),
            request_timeout_ms: number("request-timeout-ms", self.request_timeout_ms),
            disk_stall_ms: number("disk-stall-ms", self.disk_stall_ms),
            disk_reserve_bytes: match &self.disk_reserve {
                None => None,
                text => Some(size("disk-reserve", text, 0)?),
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

/// A number, or the default of its option.
fn number<T: FromStr>(key: &str, value: Option<T>) -> T {
    let default = || default_of(key).parse().ok().expect("the default of a number is one");
    value.unwrap_or_else(default)
}

/// A size, or the default of its option.
fn size(key: &'static str, text: &Option<String>, min: u64) -> Result<u64, ConfigError> {
    let text = text.as_deref().unwrap_or_else(|| default_of(key));
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

/// The names in `http-hosts`.
fn http_hosts(list: Option<&str>) -> Result<Vec<String>, ConfigError> {
    let hosts = list.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty());
    let checked = hosts.map(|host| match host {
        "*" => Ok(host.to_owned()),
        // As the host of an address, so with any port.
        _ => match check_address(&format!("{host}:1")) {
            Ok(()) => Ok(host.to_owned()),
            Err(_) => Err(invalid(
                "http-hosts",
                format!("{host:?} is no name of a host, without a port, and not *"),
            )),
        },
    });
    checked.collect()
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
        assert_eq!(config.settings.bulk_bytes_max, 32 << 20);
        // A value of the largest size goes through the log.
        assert!(config.node.proposal_bytes_max > config.settings.bulk_bytes_max + (1 << 20));
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
    fn the_names_of_the_api_are_those_of_the_addresses_and_those_that_are_listed() {
        let options = Options {
            http: Some("localhost:8379".into()),
            advertise_resp: Some("node1:6379".into()),
            peers: Some("1=kv-0:7379,2=kv-1:7379".into()),
            http_hosts: Some(" kv.example.com, * ,".into()),
            ..least()
        };
        let config = options.validate().unwrap();
        assert_eq!(config.own_hosts, ["localhost", "node1", "kv-0"]);
        assert_eq!(config.http_hosts, ["kv.example.com", "*"]);
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
        let cases: [(&str, Options); 19] = [
            ("id", Options { id: None, ..least() }),
            ("id", Options { id: Some(0), ..least() }),
            ("id", Options { id: Some(u64::MAX), ..least() }),
            ("peers", Options { peers: Some("1=a:1,9007199254740992=b:1".into()), ..least() }),
            ("peers", Options { peers: Some("1=a:1,2=b c:1".into()), ..least() }),
            ("advertise-peer", Options { advertise_peer: Some("nowhere".into()), ..least() }),
            ("advertise-resp", Options { advertise_resp: Some("a:0".into()), ..least() }),
            ("advertise-http", Options { advertise_http: Some("a:1\n".into()), ..least() }),
            ("http-hosts", Options { http_hosts: Some("a,b:8379".into()), ..least() }),
            ("http-hosts", Options { http_hosts: Some("http://a".into()), ..least() }),
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

//! Which ids and addresses are allowed. Those of members are stored in the log, and are replayed for ever:
//! what makes no sense is refused before it gets there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddrV6},
};

use crate::{NodeConfig, NodeId};

/// The highest id of a node: up to here every reader of JSON keeps integers exact.
pub const NODE_ID_MAX: NodeId = (1 << 53) - 1;

/// The longest name of a host, as DNS has it.
const HOST_BYTES_MAX: usize = 255;

/// What else a member publishes: at most this many values, of at most this many bytes.
const ENDPOINTS_MAX: usize = 32;
const ENDPOINT_BYTES_MAX: usize = 300;

/// How much of a wrong text is shown.
const SHOWN_CHARS_MAX: usize = 60;

/// Why this cannot be a node's id.
pub fn check_id(id: NodeId) -> Result<(), String> {
    match id {
        1..=NODE_ID_MAX => Ok(()),
        _ => Err(format!("{id} is no node id: ids are from 1 on, up to {NODE_ID_MAX}")),
    }
}

/// Why others cannot reach a node at this address.
pub fn check_address(address: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{} is no address HOST:PORT: {why}", shown(address)));
    let Some((host, port)) = address.rsplit_once(':') else { return wrong("the port is missing") };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || port.parse::<u16>().unwrap_or(0) == 0 {
        return wrong("the port is a number between 1 and 65535");
    }
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return wrong(&format!("the host has between 1 and {HOST_BYTES_MAX} characters"));
    }
    if host.contains([':', '[', ']']) {
        return match address.parse::<SocketAddrV6>() {
            Ok(_) => Ok(()),
            Err(_) => wrong("an IPv6 address stands in brackets"),
        };
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return wrong("a host has letters, digits, dots, dashes and underscores");
    }
    Ok(())
}

/// Whether it names no host, but all addresses of the machine that reads it.
pub(crate) fn is_unspecified(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

/// The address at which peers reach a node: the one configured; otherwise the one that it listens on, by name
/// if it has one; otherwise, if it listens on all of its addresses, the one in its list of peers, or the one
/// known before. `bound` is where it listens.
pub(crate) fn published(config: &NodeConfig, bound: &str, known: Option<&String>) -> Result<String, String> {
    let refused = |address: &str| {
        format!(
            "{address} is no address at which other nodes reach this one: set advertise-peer to HOST:PORT, or give this \
             node's own in peers"
        )
    };
    if let Some(told) = &config.peer_advertise {
        return if is_unspecified(told) { Err(refused(told)) } else { Ok(told.clone()) };
    }
    if !is_unspecified(bound) {
        let named = config.peer_listen.rsplit_once(':').filter(|(host, _)| is_name(host));
        let port = bound.rsplit_once(':').map_or("", |(_, port)| port);
        return Ok(named.map_or_else(|| bound.to_owned(), |(host, _)| format!("{host}:{port}")));
    }
    let listed = config.bootstrap.as_ref().and_then(|peers| peers.get(&config.id));
    listed.or(known).filter(|address| !is_unspecified(address)).cloned().ok_or_else(|| refused(bound))
}

/// Completes endpoints that listen on all of this node's addresses with the host at which its peers reach it.
pub(crate) fn complete(endpoints: &mut BTreeMap<String, String>, peer: &str) {
    let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
    for address in endpoints.values_mut().filter(|address| is_unspecified(address)) {
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        *address = format!("{host}:{port}");
    }
}

/// Whether a host is a name, which may stand for another address tomorrow.
fn is_name(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
}

/// Why a member cannot publish these. Their meaning is not known here, and a later version may publish
/// others.
pub(crate) fn check_endpoints(endpoints: &BTreeMap<String, String>) -> Result<(), String> {
    if endpoints.len() > ENDPOINTS_MAX {
        return Err(format!("a member publishes at most {ENDPOINTS_MAX} endpoints"));
    }
    let is_sound =
        |text: &str| text.len() <= ENDPOINT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    match endpoints.iter().flat_map(|(name, value)| [name, value]).find(|text| !is_sound(text)) {
        Some(text) => Err(format!(
            "{} is no endpoint: at most {ENDPOINT_BYTES_MAX} characters, without spaces",
            shown(text)
        )),
        None => Ok(()),
    }
}

/// The beginning of a text of any length and content, on one line.
fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let rest = if beginning.len() < text.len() { "..." } else { "" };
    format!("{beginning:?}{rest}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{NODE_ID_MAX, check_address, check_endpoints, check_id, published};
    use crate::NodeConfig;

    #[test]
    fn ids_are_whole_numbers_that_json_keeps() {
        for id in [1, 4, NODE_ID_MAX] {
            assert_eq!(check_id(id), Ok(()));
        }
        for id in [0, NODE_ID_MAX + 1, u64::MAX] {
            assert!(check_id(id).unwrap_err().contains("up to 9007199254740991"), "{id}");
        }
    }

    #[test]
    fn addresses_are_hosts_and_ports() {
        let longest = format!("{}:1", "h".repeat(255));
        for address in
            ["node1:1", "10.0.0.1:7379", "kv-0.kv_headless.default.svc:65535", "[::1]:7379", &longest]
        {
            assert_eq!(check_address(address), Ok(()));
        }
        let too_long = format!("{}:1", "h".repeat(256));
        let huge = format!("{}:7379", "x".repeat(60_000));
        for address in [
            "",
            "nowhere",
            ":7379",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:-1",
            "a:1 ",
            " a:1",
            "a b:1",
            "a\n:1",
            "a:1\n",
            "a\0:1",
            "::1:7379",
            "[::1:7379",
            "::1]:7379",
            "[nowhere]:1",
            "a:b:1",
            "http://a:1",
            "a/b:1",
            "ä:1",
            "a,b:1",
            "a=b:1",
            &too_long,
            &huge,
        ] {
            let why = check_address(address).unwrap_err();
            assert!(why.contains("HOST:PORT") && why.len() < 300 && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn endpoints_are_short_and_on_one_line() {
        let endpoints = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        for (name, value) in [("disk", "0123abcd"), ("apply-level", "2"), ("later", "{\"any\":1}")] {
            assert_eq!(check_endpoints(&endpoints(name, value)), Ok(()));
        }
        for (name, value) in
            [("disk", "a b"), ("re\nsp", "a:1"), ("resp", "a:1\n"), ("resp", &"x".repeat(301))]
        {
            assert!(check_endpoints(&endpoints(name, value)).is_err(), "{name:?} {value:?}");
        }
        let many = (0..33).map(|number| (format!("e{number}"), String::new())).collect();
        assert!(check_endpoints(&many).is_err());
    }

    #[test]
    fn what_is_published_leads_to_this_node() {
        let config = |listen: &str, advertise: Option<&str>, listed: Option<&str>| NodeConfig {
            peer_listen: listen.into(),
            peer_advertise: advertise.map(str::to_owned),
            bootstrap: listed.map(|address| [(1, address.to_owned())].into()),
            ..NodeConfig::new(1, "unused")
        };
        let known = "10.0.0.9:7".to_owned();
        for (config, bound, expected) in [
            (config("127.0.0.1:0", None, None), "127.0.0.1:5", Some("127.0.0.1:5")),
            (config("127.0.0.1:5", None, Some("10.0.0.1:7")), "127.0.0.1:5", Some("127.0.0.1:5")),
            (config("node1:0", None, None), "10.0.0.1:5", Some("node1:5")),
            (config("0.0.0.0:5", None, Some("10.0.0.1:7")), "0.0.0.0:5", Some("10.0.0.1:7")),
            (config("[::]:5", None, Some("node1:7")), "[::]:5", Some("node1:7")),
            (config("0.0.0.0:5", Some("node1:9"), Some("10.0.0.1:7")), "0.0.0.0:5", Some("node1:9")),
            (config("0.0.0.0:5", None, Some("0.0.0.0:5")), "0.0.0.0:5", None),
            (config("127.0.0.1:5", Some("0.0.0.0:5"), None), "127.0.0.1:5", None),
            (config("[::]:5", None, None), "[::]:5", None),
        ] {
            let published = published(&config, bound, None);
            assert_eq!(published.as_deref().ok(), expected, "{config:?}: {published:?}");
            assert!(published.is_ok() || published.unwrap_err().contains("set advertise-peer to HOST:PORT"));
        }
        let mut endpoints = [("resp", "0.0.0.0:6"), ("http", "[::]:8"), ("other", "node2:9")]
            .map(|(name, address)| (name.to_owned(), address.to_owned()))
            .into();
        super::complete(&mut endpoints, "[fd00::1]:7");
        assert_eq!(endpoints.into_values().collect::<Vec<_>>(), ["[fd00::1]:8", "node2:9", "[fd00::1]:6"]);
        let moved = config("0.0.0.0:5", None, None);
        assert_eq!(published(&moved, "0.0.0.0:5", Some(&known)), Ok(known), "as it was known before");
    }
}

//! The first frame in each direction of a connection: who is there, of which cluster, with which disk, and
//! what time the log has. Refuses what would be unsafe to talk to.

use crate::{
    NodeId,
    codec::{CodecError, Reader, put_bool, put_str, put_u32, put_u64},
};

/// The only version of the peer protocol.
pub(crate) const PROTOCOL_VERSION: u32 = 2;

const MAGIC: u32 = u32::from_le_bytes(*b"KVPN");

/// What each side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub protocol_version: u32,
    /// Empty while the node is not part of a cluster.
    pub cluster_id: String,
    pub node_id: NodeId,
    /// Whom the caller wants to reach; the callee repeats its own.
    pub to: NodeId,
    /// The data directory's own id: another one under the same node id means that a disk was lost.
    pub disk_id: String,
    /// The log clock, estimated, if this node has seen it move since it started.
    pub clock_ms: Option<u64>,
    /// From the callee: why it refuses the connection; empty when it does not.
    pub refusal: String,
    /// The clusters that this one was recovered from.
    pub former_clusters: Vec<String>,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u32(&mut out, MAGIC);
        put_u32(&mut out, self.protocol_version);
        put_str(&mut out, &self.cluster_id);
        put_u64(&mut out, self.node_id);
        put_u64(&mut out, self.to);
        put_str(&mut out, &self.disk_id);
        put_bool(&mut out, self.clock_ms.is_some());
        put_u64(&mut out, self.clock_ms.unwrap_or(0));
        put_str(&mut out, &self.refusal);
        put_u32(&mut out, self.former_clusters.len() as u32);
        for cluster in &self.former_clusters {
            put_str(&mut out, cluster);
        }
        out
    }

    /// Trailing bytes are of a later version and ignored; an earlier one ends before the former clusters.
    pub(crate) fn decode(body: &[u8]) -> Result<Hello, CodecError> {
        let mut reader = Reader::new(body);
        if reader.u32()? != MAGIC {
            return Err(CodecError::Invalid("peer handshake"));
        }
        let protocol_version = reader.u32()?;
        let cluster_id = reader.str()?.to_owned();
        let (node_id, to) = (reader.u64()?, reader.u64()?);
        let disk_id = reader.str()?.to_owned();
        let (has_clock, clock_ms) = (reader.bool()?, reader.u64()?);
        let refusal = reader.str()?.to_owned();
        let mut former_clusters = Vec::new();
        if reader.remaining() > 0 {
            for _ in 0..reader.u32()? {
                former_clusters.push(reader.str()?.to_owned());
            }
        }
        Ok(Hello {
            protocol_version,
            cluster_id,
            node_id,
            to,
            disk_id,
            clock_ms: has_clock.then_some(clock_ms),
            refusal,
            former_clusters,
        })
    }
}

/// Why `ours` must not talk to `theirs`; None when it may. `known_disk` is the disk id that the membership
/// has for their node id.
pub(crate) fn objection(ours: &Hello, theirs: &Hello, known_disk: Option<&str>) -> Option<String> {
    if theirs.protocol_version != PROTOCOL_VERSION {
        return Some(format!(
            "node {} speaks peer protocol {}, node {} speaks {PROTOCOL_VERSION}",
            theirs.node_id, theirs.protocol_version, ours.node_id
        ));
    }
    let (our_cluster, their_cluster) = (&ours.cluster_id, &theirs.cluster_id);
    if !our_cluster.is_empty() && !their_cluster.is_empty() && our_cluster != their_cluster {
        return Some(format!(
            "node {} belongs to cluster {their_cluster}, node {} to cluster {our_cluster}",
            theirs.node_id, ours.node_id
        ));
    }
    match known_disk {
        Some(known) if !known.is_empty() && known != theirs.disk_id => Some(format!(
            "node {} came back with another disk: its log and vote are lost, so its id must not be used again; \
             remove it (DELETE /v1/cluster/members/{}) and join with a new id",
            theirs.node_id, theirs.node_id
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Hello, PROTOCOL_VERSION, objection};

    fn hello(node_id: u64, cluster: &str, disk: &str) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: cluster.into(),
            node_id,
            to: 1,
            disk_id: disk.into(),
            clock_ms: Some(5),
            refusal: String::new(),
            former_clusters: vec!["old".into(), "older".into()],
        }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let one = hello(3, "c", "d");
        let bytes = one.encode();
        assert_eq!(Hello::decode(&bytes).unwrap(), one);
        let earlier = bytes.len() - 4 - (4 + 3) - (4 + 5);
        for len in (0..bytes.len()).filter(|len| *len != earlier) {
            assert!(Hello::decode(&bytes[..len]).is_err());
        }
        assert_eq!(Hello::decode(&bytes[..earlier]).unwrap(), Hello { former_clusters: Vec::new(), ..one });
    }

    #[test]
    fn strangers_are_refused() {
        let ours = hello(1, "a", "x");
        assert_eq!(objection(&ours, &hello(2, "a", "y"), Some("y")), None);
        assert_eq!(objection(&ours, &hello(2, "", "y"), None), None);
        assert!(objection(&ours, &hello(2, "b", "y"), None).unwrap().contains("cluster b"));
        assert!(objection(&ours, &hello(2, "a", "z"), Some("y")).unwrap().contains("another disk"));
        let future = Hello { protocol_version: 9, ..hello(2, "a", "y") };
        assert!(objection(&ours, &future, None).unwrap().contains("protocol 9"));
    }
}

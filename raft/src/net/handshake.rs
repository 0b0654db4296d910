//! The first frame in each direction of a connection: who is there, of which cluster, with which disk, and at
//! what log time. Refuses what would be unsafe to talk to. Nothing proves what a greeting says, but the ids of
//! clusters and disks are random, and only members are told them: a refusal does not tell them.

use crate::{
    NodeId,
    codec::{CodecError, Reader, put_bool, put_str, put_u32, put_u64},
    identity::{
        address::check_id,
        lives::Lives,
        witness::{Begun, Held},
    },
};

/// The peer protocol of this version. A later version that can still speak this one says so
/// (`protocol_oldest`).
pub(crate) const PROTOCOL_VERSION: u32 = 4;

/// The oldest that this version can speak. A peer of protocol 3 gets no reports (`report.rs`).
pub(crate) const PROTOCOL_OLDEST: u32 = 3;

/// The first protocol with reports.
pub(crate) const PROTOCOL_REPORTS: u32 = 4;

const MAGIC: u32 = u32::from_le_bytes(*b"KVPN");

/// In a refusal: the cluster of this node, which the caller has not named.
pub(crate) const UNTOLD: &str = "another";

/// The longest id of a cluster or a disk; those that are given have 32 bytes.
const ID_BYTES_MAX: usize = 64;

/// The longest address, refusal and evidence.
const TEXT_BYTES_MAX: usize = 2048;

/// How many clusters that came before are named: a node of an older one asks its operator.
const FORMER_CLUSTERS_TOLD: usize = 64;

/// What each side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub protocol_version: u32,
    /// Empty while the node is not part of a cluster.
    pub cluster_id: String,
    pub node_id: NodeId,
    /// The node that the greeting is for.
    pub to: NodeId,
    /// The data directory's own id: a different one under the same node id means that a disk was lost.
    pub disk_id: String,
    /// The log clock, estimated, if this node has seen it move since it started.
    pub clock_ms: Option<u64>,
    /// From the callee: why it refuses the connection; empty if it does not.
    pub refusal: String,
    /// The clusters that this one was recovered from.
    pub former_clusters: Vec<String>,
    /// The oldest protocol that this node can speak.
    pub protocol_oldest: u32,
    /// Whether this node has a log: if so, it is, or was, part of a cluster.
    pub has_log: bool,
    /// The ids of the members of the cluster that this node was told to form; empty if it was told none.
    pub first_members: Vec<NodeId>,
    /// The level at which this node applies entries, 0 before the first, and the highest that it knows.
    pub apply_level: u32,
    pub apply_level_max: u32,
    /// The life of the disk, and what it began with.
    pub begun: Begun,
    /// Where peers reach this node; empty if it does not say.
    pub address: String,
    /// From the callee that refuses: its evidence that the caller's disk went back to an older copy; empty if
    /// it did not.
    pub went_back: String,
    /// The wall clock, in milliseconds since the Unix epoch; 0 from versions that do not say it.
    pub wall_ms: u64,
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
        let skipped = self.former_clusters.len().saturating_sub(FORMER_CLUSTERS_TOLD);
        let former_clusters = &self.former_clusters[skipped..];
        put_u32(&mut out, former_clusters.len() as u32);
        for cluster in former_clusters {
            put_str(&mut out, cluster);
        }
        put_u32(&mut out, self.protocol_oldest);
        put_bool(&mut out, self.has_log);
        put_u32(&mut out, self.first_members.len() as u32);
        for id in &self.first_members {
            put_u64(&mut out, *id);
        }
        put_u32(&mut out, self.apply_level);
        put_u32(&mut out, self.apply_level_max);
        put_begun(&mut out, &self.begun);
        put_str(&mut out, &self.address);
        put_str(&mut out, &self.went_back);
        put_u64(&mut out, self.wall_ms);
        out
    }

    /// Why no node says this. What it says to people is on one line, and not long.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_id(self.node_id)?;
        let is_id =
            |text: &String| text.len() <= ID_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        if ![&self.cluster_id, &self.disk_id].into_iter().chain(&self.former_clusters).all(is_id) {
            return Err(format!(
                "ids of clusters and disks have up to {ID_BYTES_MAX} characters, without spaces"
            ));
        }
        let is_text = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
        if ![&self.address, &self.refusal, &self.went_back].into_iter().all(is_text) {
            return Err(format!(
                "an address and a reason have up to {TEXT_BYTES_MAX} characters, on one line"
            ));
        }
        self.first_members.iter().try_for_each(|id| check_id(*id))
    }

    /// Makes it a refusal of `caller`. It tells only what the caller needs in order to know what is wrong, and
    /// names the cluster, and those that came before, only to who knows one of them.
    pub(crate) fn refuse(self, caller: &Hello, refusal: String, went_back: Option<String>) -> Hello {
        let named = &caller.cluster_id;
        let is_known = self.cluster_id == *named || self.former_clusters.contains(named);
        let is_none = self.cluster_id.is_empty() || named.is_empty();
        let (cluster_id, former_clusters) = match () {
            () if is_none => (String::new(), Vec::new()),
            () if is_known => (self.cluster_id, self.former_clusters),
            () => (UNTOLD.to_owned(), Vec::new()),
        };
        Hello {
            cluster_id,
            former_clusters,
            disk_id: String::new(),
            clock_ms: None,
            refusal,
            first_members: Vec::new(),
            begun: Begun::default(),
            address: String::new(),
            went_back: went_back.unwrap_or_default(),
            wall_ms: 0,
            ..self
        }
    }

    /// Trailing bytes are from a later version and ignored; earlier versions end before the former clusters,
    /// after them, before the life of the disk, or before the wall clock.
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
        let mut hello = Hello {
            protocol_version,
            cluster_id,
            node_id,
            to,
            disk_id,
            clock_ms: has_clock.then_some(clock_ms),
            refusal,
            former_clusters,
            protocol_oldest: protocol_version,
            has_log: false,
            first_members: Vec::new(),
            apply_level: 0,
            apply_level_max: 1,
            begun: Begun::default(),
            address: String::new(),
            went_back: String::new(),
            wall_ms: 0,
        };
        if reader.remaining() > 0 {
            hello.protocol_oldest = reader.u32()?;
            hello.has_log = reader.bool()?;
            for _ in 0..reader.u32()? {
                hello.first_members.push(reader.u64()?);
            }
            (hello.apply_level, hello.apply_level_max) = (reader.u32()?, reader.u32()?);
        }
        if reader.remaining() > 0 {
            hello.begun = begun(&mut reader)?;
            hello.address = reader.str()?.to_owned();
            hello.went_back = reader.str()?.to_owned();
        }
        if reader.remaining() > 0 {
            hello.wall_ms = reader.u64()?;
        }
        Ok(hello)
    }
}

fn put_begun(out: &mut Vec<u8>, begun: &Begun) {
    put_u64(out, begun.lives.number);
    put_u32(out, begun.lives.names.len() as u32);
    for name in &begun.lives.names {
        put_u64(out, *name);
    }
    put_u64(out, begun.boot);
    put_bool(out, begun.with.last.is_some());
    let (term, index) = begun.with.last.unwrap_or_default();
    put_u64(out, term);
    put_u64(out, index);
    put_u64(out, begun.with.voted);
}

fn begun(reader: &mut Reader<'_>) -> Result<Begun, CodecError> {
    let mut lives = Lives { number: reader.u64()?, ..Lives::default() };
    for _ in 0..reader.u32()? {
        lives.names.push(reader.u64()?);
    }
    let boot = reader.u64()?;
    let (has_last, term, index) = (reader.bool()?, reader.u64()?, reader.u64()?);
    let with = Held { last: has_last.then_some((term, index)), voted: reader.u64()? };
    Ok(Begun { lives, boot, with })
}

/// Why `ours` must not talk to `theirs`; None if it may. `known_disk` is the disk id that the membership has
/// for their node id.
pub(crate) fn objection(ours: &Hello, theirs: &Hello, known_disk: Option<&str>) -> Option<String> {
    if theirs.protocol_version < ours.protocol_oldest || ours.protocol_version < theirs.protocol_oldest {
        return Some(format!(
            "node {} speaks peer protocol {}, node {} speaks {PROTOCOL_VERSION}",
            theirs.node_id, theirs.protocol_version, ours.node_id
        ));
    }
    let (our_cluster, their_cluster) = (&ours.cluster_id, &theirs.cluster_id);
    if !our_cluster.is_empty() && !their_cluster.is_empty() && our_cluster != their_cluster {
        return Some(format!(
            "node {} belongs to another cluster than node {}",
            theirs.node_id, ours.node_id
        ));
    }
    if let Some(known) = known_disk
        && !known.is_empty()
        && known != theirs.disk_id
    {
        return Some(format!(
            "node {} came back with another disk: its log and vote are lost, so its id must not be used again; \
             remove it (DELETE /v1/cluster/members/{}) and join with a new id",
            theirs.node_id, theirs.node_id
        ));
    }
    outgrown(ours, theirs).or_else(|| outgrown(theirs, ours))
}

/// Why `node` cannot follow the other: its version does not know the level at which that one applies entries.
pub(crate) fn outgrown(node: &Hello, by: &Hello) -> Option<String> {
    (node.apply_level_max < by.apply_level).then(|| {
        format!(
            "node {} has apply level {}, and the version of node {} knows {}: start a later version there",
            by.node_id, by.apply_level, node.node_id, node.apply_level_max
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Begun, Held, Hello, Lives, PROTOCOL_VERSION, TEXT_BYTES_MAX, UNTOLD, objection};

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
            protocol_oldest: PROTOCOL_VERSION,
            has_log: true,
            first_members: vec![1, 2, 3],
            apply_level: 2,
            apply_level_max: 4,
            begun: Begun {
                lives: Lives { number: 7, names: vec![5, 6, 7], is_met: false },
                boot: 8,
                with: Held { last: Some((3, 9)), voted: 4 },
            },
            address: "host:7379".into(),
            went_back: "why".into(),
            wall_ms: 6,
        }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let one = hello(3, "c", "d");
        let bytes = one.encode();
        assert_eq!(Hello::decode(&bytes).unwrap(), one);
        let without_wall = bytes.len() - 8;
        let version_3 = without_wall - (8 + 4 + 3 * 8) - 8 - (1 + 3 * 8) - (4 + 9) - (4 + 3);
        let version_2 = version_3 - 4 - 1 - (4 + 3 * 8) - 8;
        let version_1 = version_2 - 4 - (4 + 3) - (4 + 5);
        for len in
            (0..bytes.len()).filter(|len| ![version_1, version_2, version_3, without_wall].contains(len))
        {
            assert!(Hello::decode(&bytes[..len]).is_err());
        }
        let earlier = Hello { wall_ms: 0, ..one };
        assert_eq!(Hello::decode(&bytes[..without_wall]).unwrap(), earlier);
        let earlier =
            Hello { begun: Begun::default(), address: String::new(), went_back: String::new(), ..earlier };
        assert_eq!(Hello::decode(&bytes[..version_3]).unwrap(), earlier);
        let earlier = Hello {
            has_log: false,
            first_members: Vec::new(),
            apply_level: 0,
            apply_level_max: 1,
            ..earlier
        };
        assert_eq!(Hello::decode(&bytes[..version_2]).unwrap(), earlier);
        let earlier = Hello { former_clusters: Vec::new(), ..earlier };
        assert_eq!(Hello::decode(&bytes[..version_1]).unwrap(), earlier);
    }

    #[test]
    fn strangers_are_refused() {
        let ours = hello(1, "a", "x");
        assert_eq!(objection(&ours, &hello(2, "a", "y"), Some("y")), None);
        assert_eq!(objection(&ours, &hello(2, "", "y"), None), None);
        assert!(objection(&ours, &hello(2, "b", "y"), None).unwrap().contains("another cluster"));
        assert!(objection(&ours, &hello(2, "a", "z"), Some("y")).unwrap().contains("another disk"));
        let future = Hello { protocol_version: 9, ..hello(2, "a", "y") };
        assert_eq!(objection(&ours, &future, None), None, "it says that it can speak ours");
        let future = Hello { protocol_oldest: 9, ..future };
        assert!(objection(&ours, &future, None).unwrap().contains("protocol 9"));
        let past = Hello { protocol_version: 2, protocol_oldest: 2, ..hello(2, "a", "y") };
        assert!(objection(&ours, &past, None).unwrap().contains("protocol 2"));
    }

    #[test]
    fn a_refusal_names_no_cluster_to_a_stranger() {
        let ours = Hello { cluster_id: "secret".into(), ..hello(1, "", "mine") };
        let told = |cluster: &str| {
            let refusal = ours.clone().refuse(&hello(2, cluster, "d"), "no".into(), None);
            assert_eq!((&refusal.disk_id[..], refusal.clock_ms, refusal.wall_ms), ("", None, 0));
            assert_eq!((&refusal.begun, &refusal.address[..]), (&Begun::default(), ""));
            assert!(refusal.has_log && refusal.apply_level == 2, "what it needs to know why");
            (refusal.cluster_id, refusal.former_clusters.len())
        };
        assert_eq!(told(""), (String::new(), 0));
        assert_eq!(told("guessed"), (UNTOLD.to_owned(), 0));
        assert_eq!(told("secret"), ("secret".to_owned(), 2));
        assert_eq!(told("old"), ("secret".to_owned(), 2), "a node that its cluster has left behind");
    }

    #[test]
    fn what_a_greeting_says_has_bounds() {
        let sane = hello(3, "c", "d");
        assert_eq!(sane.check(), Ok(()));
        let largest = Hello {
            former_clusters: (0..1000).map(|number| format!("{number:032}")).collect(),
            begun: Begun {
                lives: Lives { number: 300, names: (0..256).collect(), is_met: true },
                ..Begun::default()
            },
            first_members: (1..100).collect(),
            refusal: "r".repeat(TEXT_BYTES_MAX),
            ..sane.clone()
        };
        assert_eq!(largest.check(), Ok(()));
        assert!(largest.encode().len() < crate::net::frame::GREETING_BYTES_MAX - 64);
        for wrong in [
            Hello { node_id: 0, ..sane.clone() },
            Hello { node_id: u64::MAX, ..sane.clone() },
            Hello { first_members: vec![1, 1 << 53], ..sane.clone() },
            Hello { cluster_id: "a\nb".into(), ..sane.clone() },
            Hello { cluster_id: "x".repeat(60_000), ..sane.clone() },
            Hello { disk_id: "a b".into(), ..sane.clone() },
            Hello { former_clusters: vec!["x".repeat(65)], ..sane.clone() },
            Hello { address: "a\n:1".into(), ..sane.clone() },
            Hello { address: "x".repeat(60_000), ..sane.clone() },
            Hello { refusal: "a\u{1b}[2J".into(), ..sane.clone() },
            Hello { went_back: "x".repeat(2049), ..sane.clone() },
        ] {
            let why = wrong.check().unwrap_err();
            assert!(why.len() < 200 && !why.contains(char::is_control), "{why}");
        }
    }

    #[test]
    fn whoever_cannot_apply_what_the_other_has_applied_is_refused_by_both() {
        let ours = hello(1, "a", "x");
        let old = Hello { apply_level: 1, apply_level_max: 1, ..hello(2, "a", "y") };
        let why = objection(&ours, &old, None).unwrap();
        assert!(why.contains("node 1 has apply level 2") && why.contains("node 2 knows 1"), "{why}");
        assert_eq!(objection(&old, &ours, None), Some(why));
        let new = Hello { apply_level: 2, apply_level_max: 9, ..hello(2, "a", "y") };
        assert_eq!(objection(&ours, &new, None), None);
    }
}

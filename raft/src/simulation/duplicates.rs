//! Which messages between peers may arrive twice. Within a stream TCP duplicates nothing, and replication,
//! snapshots and forwarded proposals rely on that; single Raft calls do not have to.

use crate::net::frame::{self, Kind};

/// The messages in a piece of a stream to a peer, which must be whole ones, that a peer has to tolerate
/// twice.
pub fn duplicable(piece: &[u8]) -> Vec<&[u8]> {
    frame::split(piece)
        .filter(|(kind, _)| {
            matches!(
                kind,
                Kind::Append
                    | Kind::Vote
                    | Kind::PreVote
                    | Kind::TransferLeader
                    | Kind::ReadIndex
                    | Kind::Confirm
                    | Kind::Report
            )
        })
        .map(|(_, whole)| whole)
        .collect()
}

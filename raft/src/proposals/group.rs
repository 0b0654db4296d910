//! What the proposer needs of the group, so that it depends neither on the network nor on an openraft handle.

use std::{future::Future, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId,
    net::peer::CallError,
    proposals::batch::Forwarded,
    types::{Payload, TypeConfig},
};

/// The group, as one of its nodes sees it.
pub(crate) trait Group: Send + Sync + 'static {
    /// The leader as this node knows it.
    fn leader(&self) -> Option<NodeId>;
    /// Returns when the leader, as this node knows it, is no longer this one.
    fn leader_is_not(&self, leader: Option<NodeId>) -> impl Future<Output = ()> + Send;
    /// The present term, and the term of the last applied entry.
    fn terms(&self) -> (u64, u64);
    /// Starts the payload of the next entry.
    fn begin_entry(&self, out: &mut Vec<u8>);
    /// Appends an entry as the leader. Err if the group has stopped: nothing was appended.
    fn append(&self, payload: Payload, responder: Responder) -> impl Future<Output = Result<(), ()>> + Send;
    /// Sends a batch to the leader; once connected, `begin` decides whether to send it at all.
    fn forward(
        &self,
        to: NodeId,
        batch: Bytes,
        timeout: Duration,
        begin: impl FnOnce() -> bool + Send,
    ) -> impl Future<Output = Result<Forwarded, CallError>> + Send;
}

pub(crate) type Responder = openraft::type_config::alias::WriteResponderOf<TypeConfig>;

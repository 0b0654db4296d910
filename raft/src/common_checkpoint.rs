//! Checkpoints at the same entry on all nodes, so that their states can be compared.
//!
//! When a checkpoint is due on the leader it does not begin one, but proposes an entry that asks for it, and every node begins
//! one when it applies that entry. A page is a function of the log, and so the sums of all pages must be equal then. They are
//! kept up with each page that is written anyway: comparing costs a few numbers in a report. Which nodes differ, and what follows,
//! is in `agreement.rs`.

use std::{sync::Arc, time::Duration};

use crate::{Machine, core::Core, packet, types::Payload};

/// The pause after an entry could not be proposed.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a checkpoint is asked for while no majority is known to have the same state, and nothing is written that would make
/// one due: a node that comes back has to be compared, and remembers others than those at which the rest has.
const AGAIN: Duration = Duration::from_secs(2);

/// As the leader: asks for a checkpoint whenever one is due.
pub(crate) async fn ask<M: Machine>(core: Arc<Core<M>>) {
    loop {
        let is_wished = tokio::time::timeout(AGAIN, core.checkpointer.wished()).await.is_ok();
        if !core.is_leader() || !is_wished && !core.agreements.states.is_split() {
            continue;
        }
        let mut payload = Vec::new();
        packet::Head { is_checkpoint: true, ..core.head(None) }.put(&mut payload);
        // It waits until the entry is applied here, and does harm nowhere if it is lost.
        let asked = tokio::time::timeout(core.timeout(), core.raft.client_write(Payload(payload.into())));
        if !matches!(asked.await, Ok(Ok(_))) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

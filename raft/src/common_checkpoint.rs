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

/// As the leader: asks for a checkpoint whenever one is due.
pub(crate) async fn ask<M: Machine>(core: Arc<Core<M>>) {
    loop {
        core.checkpointer.wished().await;
        if !core.is_leader() {
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

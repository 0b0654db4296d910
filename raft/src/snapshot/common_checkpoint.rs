//! Checkpoints at the same entry on all nodes, so that their states can be compared.
//!
//! When a checkpoint is due on the leader it does not begin one, but proposes an entry that asks for it, and
//! every node begins one when it applies that entry. Pages are a function of the log, so the digests of all
//! pages must then be equal. They are kept up to date with each page that is written anyway: comparing costs
//! a few numbers in a report. `agreement/` decides which nodes differ, and what follows.

use std::{sync::Arc, time::Duration};

use crate::{Machine, node::core::Core, proposals::entry, types::Payload};

/// The pause after an entry that could not be proposed.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a checkpoint is asked for while no majority is known to have the same state, and no writes make
/// one due: a node that comes back has to be compared, and remembers other checkpoints than the rest.
const AGAIN: Duration = Duration::from_secs(2);

/// Leader only: asks for a checkpoint whenever one is due.
pub(crate) async fn ask<M: Machine>(core: Arc<Core<M>>) {
    loop {
        let is_wished = tokio::time::timeout(AGAIN, core.checkpointer.wished()).await.is_ok();
        if !core.is_leader() || !is_wished && !core.agreements.states.is_split() {
            continue;
        }
        let mut payload = Vec::new();
        entry::Head { is_checkpoint: true, ..core.head(None) }.put(&mut payload);
        // This waits until the entry is applied here. Losing the entry does no harm.
        let asked = tokio::time::timeout(core.timeout(), core.raft.client_write(Payload(payload.into())));
        if !matches!(asked.await, Ok(Ok(_))) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

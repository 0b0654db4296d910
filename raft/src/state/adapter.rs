//! openraft's state machine: hands to the applier what is committed, and answers its requests for
//! snapshots with the last durable checkpoint.

use std::{io, sync::Arc};

use futures::{Stream, StreamExt};
use openraft::{
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
    type_config::alias::SnapshotOf,
};

use crate::{
    Machine,
    snapshot::{checkpoint::Checkpointer, content::SnapshotData},
    state::applier::Applier,
    types::{Applied, LogId, SnapshotMeta, StoredMembership, TypeConfig},
};

/// The adapter that openraft owns.
pub(crate) struct StateMachine<M: Machine> {
    pub applier: Arc<Applier<M>>,
    pub checkpointer: Arc<Checkpointer<M>>,
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = LastCheckpoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.applier.paused(|_, progress| (progress.last, progress.membership.clone())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            self.applier.apply(entry);
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        self.checkpointer.consider();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> LastCheckpoint {
        LastCheckpoint(self.checkpointer.last())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        match snapshot {
            SnapshotData::Received(received) => {
                self.checkpointer.install(received).await.map_err(io::Error::other)
            }
            SnapshotData::LastCheckpoint => {
                Err(io::Error::other("a snapshot without content cannot be installed"))
            }
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let meta = self.checkpointer.last();
        Ok(meta
            .last_log_id
            .is_some()
            .then(|| SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot: SnapshotData::LastCheckpoint }))
    }
}

/// "Builds" a snapshot by naming the last durable checkpoint; its bytes are produced when a peer needs them.
pub(crate) struct LastCheckpoint(SnapshotMeta);

impl RaftSnapshotBuilder<TypeConfig> for LastCheckpoint {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        Ok(SnapshotOf::<TypeConfig, SnapshotData> {
            meta: self.0.clone(),
            snapshot: SnapshotData::LastCheckpoint,
        })
    }
}

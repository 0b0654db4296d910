//! What a node does when members have applied different logs, or have come to different states by the same
//! log (`agreement/mod.rs` has the comparison): it reports them, serves nothing, ends, or takes the state
//! anew.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use crate::{
    Machine, NodeId,
    agreement::{Agreement, Standing, Subject},
    node::core::Core,
    safeguard::{self, Safeguard},
};

impl<M: Machine> Core<M> {
    /// Acts on how this node compares with the others.
    pub(crate) fn take_stand(&self) {
        if safeguard::is_off(Safeguard::Agreement) {
            return;
        }
        let voters: Vec<NodeId> = self.metrics().membership_config.membership().voter_ids().collect();
        for agreement in self.agreements.all() {
            if let Some(standing) = agreement.news(self.config.id, &voters) {
                self.proposer.refuse(self.is_apart());
                // A state that may be wrong must not spread by a transfer.
                self.checkpointer.is_disputed.store(self.is_apart().is_some(), Ordering::Release);
                self.take(agreement.subject, standing);
            }
        }
    }

    fn take(&self, subject: Subject, standing: Standing) {
        let what = match subject {
            Subject::Logs => "applied another log",
            Subject::States => "come to another state by the same log",
        };
        match standing {
            Standing::Agreed => tracing::warn!("no member is known to have {what} any more"),
            Standing::Others(others) => tracing::error!(
                "these members have {what} than a majority with this node, at these indexes: {others:?}"
            ),
            Standing::Split(others) => tracing::error!(
                "these members have {what} than this node, at these indexes, and no majority agrees: {others:?}. Nothing is \
                 written before that is settled: see \"Nodes that differ\" in docs/recovery.md"
            ),
            Standing::Apart(others) => {
                let why = format!("a majority has {what} than this node, at these indexes: {others:?}");
                match subject {
                    Subject::Logs => (self.table.platform.contradiction)(why),
                    Subject::States => self.identity.distrust_state(why),
                }
            }
        }
    }

    /// The members that are known to have another log or state than this node.
    pub(crate) fn differing(&self) -> Vec<NodeId> {
        let differing: BTreeSet<NodeId> =
            self.agreements.all().into_iter().flat_map(Agreement::differing).collect();
        differing.into_iter().collect()
    }

    /// Why nothing may be served; None if it may.
    pub(crate) fn is_apart(&self) -> Option<&'static str> {
        self.agreements.all().into_iter().find_map(Agreement::objection)
    }
}

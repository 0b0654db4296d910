//! Keys of leases that have run out and were not ended yet: the work of one entry is limited, and when many leases run
//! out together, their ends take several. Until then nobody sees the keys, and a write ends what it meets.

use std::collections::BTreeSet;

use crate::store::{Ctx, level, owner::LeaseId, record::Record, state::State, touched::Touch};

impl State {
    /// Whether anything is due to be removed.
    pub(in crate::store) fn is_behind(&self) -> bool {
        self.level >= level::LIMITS
            && self.deadlines.first().is_some_and(|first| first.deadline < self.now_ms)
    }

    fn has_run_out(&self, db: u32, id: &[u8]) -> bool {
        let lease = self.record(db, id).filter(|record| record.lease().is_some());
        lease.is_some_and(|lease| {
            lease.deadline().is_some_and(|deadline| deadline < self.now_ms)
                && self.extended_deadline(lease).is_none()
        })
    }

    /// The leases on which a key depends and that have run out.
    pub(in crate::store) fn overdue(&self, db: u32, key: &[u8]) -> impl Iterator<Item = &LeaseId> {
        let is_looked_up = !self.attached.is_empty() && self.is_behind();
        let ids = if is_looked_up { self.attached.get(db, key) } else { None };
        ids.into_iter().flatten().filter(move |id| self.has_run_out(db, id))
    }

    /// Whether a plain key's lease has run out. Claims outlive those of their holders.
    pub(in crate::store) fn is_orphan(&self, db: u32, record: &Record) -> bool {
        self.overdue(db, record.key()).next().is_some() && record.claims().is_none()
    }

    /// Ends at a key what depends on leases that have run out.
    pub(in crate::store) fn end_overdue(&mut self, db: u32, key: &[u8]) {
        let ids: BTreeSet<LeaseId> = self.overdue(db, key).cloned().collect();
        if ids.is_empty() {
            return;
        }
        if self.end_leases(db, key, &ids, true).is_none()
            && let Some((place, at)) = self.place(db, key)
        {
            self.next_version();
            self.erase(db, &place, at);
            self.note(db, key, Touch::Expired);
        }
    }
}

impl Ctx<'_> {
    /// Ends at the keys of a call what is over by now: what it checks before it changes anything is true then.
    pub fn settle<'a, K: Iterator<Item = &'a [u8]>>(&mut self, keys: impl FnOnce() -> K) {
        if self.state.is_behind() {
            keys().for_each(|key| _ = self.locate(key));
        }
    }
}

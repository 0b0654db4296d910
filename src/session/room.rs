//! Writes that the disks have no room for are refused before they are proposed, so that they are surely not applied.

use kvorum_raft::Need;

use super::{
    Session,
    table::{Row, Run},
    transaction::Queue,
};
use crate::{
    error::{Error, Result},
    proposal::Argv,
};

impl Session {
    /// Why the disks have no room for a command, if they have none. A transaction that it was to be part of is not executed.
    pub(super) fn no_room<'a>(
        &mut self,
        row: &Row,
        run: Run,
        bytes: usize,
        argv: impl FnOnce() -> Argv<'a>,
    ) -> Option<Error> {
        if !matches!(run, Run::Write) {
            return None;
        }
        let router = &self.shared.router;
        // Most of the time there is room for anything.
        router.check_room(Need::Growth, bytes).err()?;
        let error = router.check_room(row.spec.need(&argv()), bytes).err()?;
        row.counters.reject();
        if let Some(queue) = &mut self.queue {
            queue.broken = true;
        }
        Some(error)
    }

    /// Refuses a transaction that the disks have no room for, as a whole.
    pub(super) fn admit(&self, queue: Queue) -> Result<Queue> {
        match self.shared.router.check_room(queue.need, queue.bytes) {
            Ok(()) => Ok(queue),
            Err(error) => {
                Err(Error::Other(format!("EXECABORT Transaction discarded because of: {error}").into()))
            }
        }
    }
}

//! Writes for which the disks have no room are refused before they are proposed, so they are certainly not
//! applied.

use kvorum_raft::Need;

use super::{
    Connection,
    table::{Dispatch, Row},
    transaction::Queue,
};
use crate::{
    commands::Call,
    error::{Error, Result},
    proposal::Argv,
};

impl Connection {
    /// Why the disks have no room for a command, if so. A transaction that it was to be part of will then
    /// fail.
    pub(super) fn no_room<'a>(
        &mut self,
        row: &Row,
        run: Dispatch,
        bytes: usize,
        argv: impl FnOnce() -> Argv<'a>,
    ) -> Option<Error> {
        if !matches!(run, Dispatch::Write) {
            return None;
        }
        let router = &self.shared.router;
        // In most cases there is room for anything.
        router.check_room(Need::Growth, bytes).err()?;
        let error = router.check_room(Call::of(row.spec, &argv()).need(), bytes).err()?;
        self.shared.stats.of(row).reject();
        if let Some(queue) = &mut self.queue {
            queue.broken = true;
        }
        Some(error)
    }

    /// Refuses a transaction as a whole, if the disks have no room for it.
    pub(super) fn admit(&self, queue: Queue) -> Result<Queue> {
        match self.shared.router.check_room(queue.need, queue.bytes) {
            Ok(()) => Ok(queue),
            Err(error) => {
                Err(Error::Other(format!("EXECABORT Transaction discarded because of: {error}").into()))
            }
        }
    }
}

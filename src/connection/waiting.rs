//! Commands that block until the replicated state has something for them: an element, a lock. The connection
//! proposes the command under a ticket and blocks until the machine reports how the wait ended, the client
//! disconnects or is unblocked, or the node gives the wait up.

use std::{io, sync::Arc, time::Duration};

use super::{
    Connection,
    clients::Unblock,
    presence::{Interrupted, gone, is_known_gone},
    table::Row,
};
use crate::{
    args::Args,
    commands::{
        Call, Patience,
        blocking::{Until, Waits},
    },
    error::Error,
    proposal::{self, Argv, Step},
    resp::Protocol,
    store::Fate,
    wake::{Wait, Wakes, is_unavailable},
};

/// The size of the session in a proposal besides its id, at most.
const PREFIX_BYTES: usize = 32;

impl Connection {
    /// Whether a call asks to wait: then it runs alone, under a ticket.
    pub(super) fn asks_to_wait<'a>(row: &Row, argv: impl FnOnce() -> Argv<'a>) -> bool {
        row.spec.waits.is_some() && row.spec.timeout.patience(&Args::new(&argv())).is_some()
    }

    /// The arguments of a call that takes a lock delay, with the configured default added.
    pub(super) fn with_delay<'a>(row: &Row, argv: &[&'a [u8]], delay_ms: &'a str) -> Argv<'a> {
        let says_it = row.spec.timeout.option(&Args::new(argv), "DELAY").is_some();
        let delay = [b"DELAY".as_slice(), delay_ms.as_bytes()];
        let is_added = row.spec.takes_delay() && !says_it && delay_ms != "0";
        let added = if is_added { &delay[..] } else { &[][..] };
        argv.iter().chain(added).copied().collect()
    }

    /// The size, at most, of what precedes a proposal's requests: confirmations and the session.
    pub(super) fn prefix_bytes(&self) -> usize {
        let session = self.in_session.as_ref().map_or(0, |(_, id)| id.len() + PREFIX_BYTES);
        self.unconfirmed.iter().map(|confirmation| confirmation.bytes_max()).sum::<usize>() + session
    }

    /// Executes a call that asks to wait. An error ends the connection.
    pub(super) async fn wait_for(&mut self, call: &Call<'_>) -> io::Result<()> {
        let mut wait = register(&self.shared.wakes, self.db, call);
        let mut bytes = Vec::new();
        proposal::put_waiting_call(&mut bytes, wait.ticket(), self.db, call.args.from(0));
        match self.through_log(bytes.into(), vec![Step::Write]).await? {
            Fate::Replied | Fate::Refused => wait.over(),
            Fate::Granted => self.deliver(wait).await?,
            // The wait may be in the log: dropping it cancels it.
            Fate::Unknown => {}
            Fate::Queued => {
                wait.queued(&self.shared.router);
                self.wait_for_outcome(call, wait).await?;
            }
        }
        Ok(())
    }

    async fn wait_for_outcome(&mut self, call: &Call<'_>, mut wait: Wait) -> io::Result<()> {
        match self.while_present(wait.ended()).await {
            Ok(Ok(())) => self.tell(wait).await.map(drop),
            // The wait is dropped, and whatever it is granted is released.
            Ok(Err(given_up)) => {
                self.reply(|reply| reply.error(&Error::Other(given_up.to_string().into())));
                Ok(())
            }
            Err(Interrupted::Unblocked(how)) => self.unblock(call, wait, how).await,
            Err(Interrupted::HungUp) => Err(gone()),
        }
    }

    /// Tells the client how its wait ended; the wait, if it has not.
    async fn tell(&mut self, mut wait: Wait) -> io::Result<Option<Wait>> {
        let Some(outcome) = wait.told() else { return Ok(Some(wait)) };
        let protocol = self.protocol;
        self.reply(|reply| reply.raw(outcome.reply.as_bytes(protocol)));
        match outcome.fate {
            Fate::Granted => self.deliver(wait).await?,
            _ => wait.over(),
        }
        Ok(None)
    }

    /// Ends a wait because of CLIENT UNBLOCK.
    async fn unblock(&mut self, call: &Call<'_>, wait: Wait, how: Unblock) -> io::Result<()> {
        let Some(Waits { until, at_timeout }) = call.spec.waits else { return Ok(()) };
        if until == Until::Granted {
            // The wait is dropped, and what it is granted goes back.
            self.reply_unblocked(how, at_timeout);
            return Ok(());
        }
        // What is taken for a client that does not wait any more would be lost. So first the wait ends in the log,
        // and if it had ended before, the client gets what it waited for.
        let mut bytes = Vec::new();
        wait.put_cancel(&mut bytes);
        let fate = self.through_log(bytes.into(), vec![Step::Silent]).await?;
        let Some(wait) = self.tell(wait).await? else { return Ok(()) };
        if fate == Fate::Replied {
            wait.over();
            self.reply_unblocked(how, at_timeout);
        } else {
            self.reply(|reply| reply.error(&Error::Uncertain));
        }
        Ok(())
    }

    /// Sends the client the reply of its grant, which is in `out`. If the client is gone this fails, and the
    /// grant is released.
    async fn deliver(&mut self, wait: Wait) -> io::Result<()> {
        if is_known_gone(&self.client).await {
            return Err(gone());
        }
        if !self.is_hidden {
            self.flush().await?;
        }
        self.unconfirmed.push(wait.confirm());
        Ok(())
    }

    /// Proposes, preceded in the same proposal by what the log must know of the client: confirmations of
    /// delivered grants, on which its next commands may depend, and its exactly-once session.
    pub(super) async fn through_log_with_prefix(
        &mut self,
        bytes: &[u8],
        steps: Vec<Step>,
    ) -> io::Result<Fate> {
        let mut all = Vec::new();
        let confirmations = std::mem::take(&mut self.unconfirmed);
        let said: Vec<_> =
            confirmations.into_iter().filter(|confirmation| confirmation.say(&mut all)).collect();
        let mut prefix = said.len();
        let mut session = Vec::new();
        if let Some((db, id)) = &self.in_session {
            proposal::put_in_session(&mut session, *db, id, self.protocol);
        }
        let whole = all.len() + session.len() + bytes.len();
        if !said.is_empty() && whole > self.shared.proposal_bytes_max {
            // If they do not fit into one proposal, the confirmations go first.
            let answer = self.shared.router.call(&all, prefix, Protocol::Resp2).await;
            if is_unavailable(&answer) {
                said.iter().for_each(|confirmation| self.shared.wakes.confirm_again(confirmation));
            }
            all.clear();
            prefix = 0;
        }
        prefix += usize::from(!session.is_empty());
        all.reserve_exact(session.len() + bytes.len() + 128);
        all.extend_from_slice(&session);
        all.extend_from_slice(bytes);
        let steps = (0..prefix).map(|_| Step::Silent).chain(steps).collect();
        let mark = self.out.len();
        let result = self.through_log_alone(all.into(), steps).await;
        // Without an answer the buffer is lost.
        let mut replies = self.out.parts(mark).flat_map(|part| part.split(|byte| *byte == b'\n'));
        if result.is_err() || replies.any(is_unavailable) {
            said.iter().for_each(|confirmation| self.shared.wakes.confirm_again(confirmation));
        }
        result
    }
}

/// Registers a call that asks to wait.
pub fn register(wakes: &Arc<Wakes>, db: u32, call: &Call<'_>) -> Wait {
    let time = match call.spec.timeout.patience(&call.args) {
        Some(Patience::Forever) => Duration::MAX,
        Some(Patience::Ms(ms)) => Duration::from_millis(ms),
        None => Duration::ZERO,
    };
    let key = call.keys().first().map_or(&b""[..], |(key, _)| key);
    wakes.register(db, key, time)
}

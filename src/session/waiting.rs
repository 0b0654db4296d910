//! Commands that wait in the replicated state for a grant: LOCK.ACQUIRE, SEM.ACQUIRE and ELECT.CAMPAIGN with WAIT. The
//! session proposes the command under a ticket and stands still until the machine says how the wait ended, the client
//! hangs up, somebody unblocks it, or the node gives it up.

use std::{io, time::Duration};

use super::{
    Session,
    presence::{Interrupted, gone, is_known_gone},
    table::Row,
};
use crate::{
    args::parse_integer,
    commands::claim,
    error::Error,
    proposal::{self, Argv, Step},
    resp::{Protocol, Reply},
    store::Outcome,
    wake::{GivenUp, Wait, is_unavailable},
};

/// What saying a session takes beside its id, at most.
const PREFIX_BYTES: usize = 32;

impl Session {
    /// Whether a call asks to wait: then it is executed alone, under a ticket.
    pub(super) fn asks_to_wait(row: &Row, argv: &[&[u8]]) -> bool {
        row.may_wait && option(argv, b"WAIT").is_some_and(|ms| ms != b"0")
    }

    /// The arguments of a call that may wait, with what the configuration adds to them.
    pub(super) fn with_delay<'a>(argv: &[&'a [u8]], delay_ms: &'a str) -> Argv<'a> {
        let says_it = option(argv, b"DELAY").is_some();
        let delay = [b"DELAY".as_slice(), delay_ms.as_bytes()];
        let added = if says_it || delay_ms == "0" { &[][..] } else { &delay[..] };
        argv.iter().chain(added).copied().collect()
    }

    /// How much of a proposal is taken by what the log has to know of the client, at most.
    pub(super) fn prefix_bytes(&self) -> usize {
        let session = self.in_session.as_ref().map_or(0, |(_, id)| id.len() + PREFIX_BYTES);
        self.unconfirmed.iter().map(|confirmation| confirmation.bytes_max()).sum::<usize>() + session
    }

    /// Executes a command that may wait. An error ends the connection.
    pub(super) async fn wait_for_grant(&mut self, argv: &[&[u8]]) -> io::Result<()> {
        let mut wait = self.shared.wakes.register(self.db, argv[1], wait_time(argv));
        let mut bytes = Vec::new();
        proposal::put_waiting_call(&mut bytes, wait.ticket(), self.db, argv);
        let mark = self.out.len();
        self.through_log(&bytes, vec![Step::Write]).await?;
        if let Some(answer) = self.out.get(mark..).filter(|answer| !answer.is_empty()) {
            match answer[0] {
                // An unknown outcome may be a wait that nobody knows of: dropping it ends it.
                b'-' if answer.starts_with(b"-UNCERTAIN") => {}
                b'*' | b'%' => self.deliver(wait).await?,
                _ => wait.over(),
            }
            return Ok(());
        }
        wait.queued(&self.shared.router);
        match self.while_present(wait.outcome()).await {
            Ok(Ok(granted @ Outcome::Granted { .. })) => {
                self.reply(|reply| reply_outcome(&granted, reply));
                self.deliver(wait).await?;
            }
            Ok(Ok(outcome)) => {
                wait.over();
                self.reply(|reply| reply_outcome(&outcome, reply));
            }
            // In what follows the wait is dropped, and whatever it is granted goes back.
            Ok(Err(given_up)) => self.reply(|reply| reply_given_up(given_up, reply)),
            Err(Interrupted::Unblocked(how)) => self.reply_unblocked(how, Reply::null),
            Err(Interrupted::HungUp) => return Err(gone()),
        }
        Ok(())
    }

    /// Tells the client of the grant that is written down already. An error, and the grant goes back, if it is gone.
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

    /// Proposes, and before it in the same proposal what the log has to know of the client: that it was told of its
    /// grants, on which what it does next may depend, and the session that it is in.
    pub(super) async fn through_log_with_prefix(&mut self, bytes: &[u8], steps: Vec<Step>) -> io::Result<()> {
        let mut all = Vec::new();
        let confirmations = std::mem::take(&mut self.unconfirmed);
        let said: Vec<_> =
            confirmations.into_iter().filter(|confirmation| confirmation.say(&mut all)).collect();
        let mut prefix = said.len();
        if !said.is_empty() && all.len() + bytes.len() > self.shared.proposal_bytes_max {
            // What does not fit beside them follows them.
            let answer = self.shared.router.call(&all, prefix, Protocol::Resp2).await;
            if is_unavailable(&answer) {
                said.iter().for_each(|confirmation| self.shared.wakes.confirm_again(confirmation));
            }
            all.clear();
            prefix = 0;
        }
        if let Some((db, id)) = &self.in_session {
            proposal::put_in_session(&mut all, *db, id, self.protocol);
            prefix += 1;
        }
        all.extend_from_slice(bytes);
        let steps = (0..prefix).map(|_| Step::Silent).chain(steps).collect();
        let mark = self.out.len();
        let result = self.through_log_alone(&all, steps).await;
        // Without an answer the buffer is gone.
        let mut replies = self.out.get(mark..).unwrap_or_default().split(|byte| *byte == b'\n');
        if result.is_err() || replies.any(is_unavailable) {
            said.iter().for_each(|confirmation| self.shared.wakes.confirm_again(confirmation));
        }
        result
    }
}

/// The argument of an option of a call that may wait, after its name, key and owner. PERMITS and OF are like options.
fn option<'a>(argv: &[&'a [u8]], word: &[u8]) -> Option<&'a [u8]> {
    let mut at = 3;
    while at < argv.len() {
        if argv[at].eq_ignore_ascii_case(word) {
            return argv.get(at + 1).copied().or(Some(b""));
        }
        at += if argv[at].eq_ignore_ascii_case(b"SHARED") { 1 } else { 2 };
    }
    None
}

/// How long a call asks to wait. What makes no sense is refused before anybody waits.
pub fn wait_time(argv: &[&[u8]]) -> Duration {
    let ms = option(argv, b"WAIT").and_then(parse_integer).and_then(|ms| u64::try_from(ms).ok());
    Duration::from_millis(ms.unwrap_or(0))
}

fn unblocked(why: impl std::fmt::Display) -> Error {
    Error::Other(format!("UNBLOCKED {why}").into())
}

/// That this node has given up a wait, as whoever waited is told.
fn reply_given_up(why: GivenUp, reply: &mut Reply) {
    reply.error(&Error::Other(why.to_string().into()));
}

/// How a wait ended, as whoever waited is told.
pub fn reply_outcome(outcome: &Outcome, reply: &mut Reply) {
    match outcome {
        Outcome::Granted { kind, token, remaining_ms } => {
            claim::reply_hold(*kind, *token, *remaining_ms, reply);
        }
        Outcome::TimedOut => reply.null(),
        Outcome::Superseded => reply.error(&unblocked("the owner asks again on another connection")),
        Outcome::Gone => {
            let why = "what was waited for is gone, the lease ended, or this node was out of contact";
            reply.error(&unblocked(why));
        }
    }
}

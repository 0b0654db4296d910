//! Commands that wait in the replicated state for a grant: LOCK.ACQUIRE, SEM.ACQUIRE and ELECT.CAMPAIGN with WAIT. The
//! session proposes the command under a ticket and stands still until the machine says how the wait ended, the client
//! hangs up, or somebody unblocks it.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::sync::oneshot;

use super::{
    Replies, Session,
    clients::{Client, Unblock},
    table::Row,
};
use crate::{
    commands::claim,
    error::Error,
    proposal::{self, Argv, Step},
    resp::Reply,
    store::Outcome,
    wake::{Wait, is_unavailable},
};

/// How often a client is looked at that has sent more while it waits: its hanging up shows behind that.
const LOOK: Duration = Duration::from_millis(50);

/// How a wait ended for the session.
enum End {
    Outcome(Outcome),
    Unblocked(Unblock),
    HungUp,
}

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

    /// Executes a command that may wait. An error ends the connection.
    pub(super) async fn wait_for_grant(&mut self, argv: &[&[u8]]) -> io::Result<()> {
        let mut wait = self.shared.wakes.register(self.db, argv[1]);
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
        match self.end_of(&mut wait).await {
            End::Outcome(granted @ Outcome::Granted { .. }) => {
                self.reply(|reply| reply_outcome(&granted, reply));
                self.deliver(wait).await?;
            }
            End::Outcome(outcome) => {
                wait.over();
                self.reply(|reply| reply_outcome(&outcome, reply));
            }
            End::Unblocked(Unblock::Timeout) => self.reply(Reply::null),
            End::Unblocked(Unblock::Error) => {
                let text = "UNBLOCKED client unblocked via CLIENT UNBLOCK";
                self.reply(|reply| reply.error(&Error::Other(text.into())));
            }
            End::HungUp => return Err(io::ErrorKind::ConnectionReset.into()),
        }
        Ok(())
    }

    /// Tells the client of the grant that is written down already. An error, and the grant goes back, if it is gone.
    async fn deliver(&mut self, wait: Wait) -> io::Result<()> {
        if is_known_gone(&self.client).await {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.replies == Replies::On {
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

    async fn end_of(&mut self, wait: &mut Wait) -> End {
        let (unblock, unblocked) = oneshot::channel();
        *self.client.unblock.lock() = Some(unblock);
        let (client, mut unblocked) = (self.client.clone(), unblocked);
        let end = loop {
            tokio::select! {
                biased;
                outcome = wait.outcome() => break End::Outcome(outcome),
                Ok(how) = &mut unblocked => break End::Unblocked(how),
                () = hung_up(&client) => break End::HungUp,
                () = self.pushes.ready() => {}
            }
            if self.push().await.is_err() {
                break End::HungUp;
            }
        };
        client.unblock.lock().take();
        end
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

/// How a wait ended, as whoever waited is told.
pub fn reply_outcome(outcome: &Outcome, reply: &mut Reply) {
    let unblocked = |why: &str| Error::Other(format!("UNBLOCKED {why}").into());
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

/// Returns when the client has hung up.
async fn hung_up(client: &Client) {
    while !has_hung_up(client).await {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the client has hung up; waits until there is something to see, which may be bytes that it has sent.
async fn has_hung_up(client: &Client) -> bool {
    if client.killed.load(Relaxed) {
        return true;
    }
    // An error of the socket: nobody will read what is written there.
    client.stream().has_ended().await
}

/// Whether it is known already that the client has hung up.
async fn is_known_gone(client: &Client) -> bool {
    // No timer: the shortest is a millisecond, and a grant must not wait.
    tokio::select! {
        biased;
        gone = has_hung_up(client) => gone,
        () = std::future::ready(()) => false,
    }
}

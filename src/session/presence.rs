//! Waiting only while the client is there. Whatever a session waits for on behalf of its client, a grant, confirmations or
//! just time, ends when the client hangs up, is killed or unblocked; and meanwhile the client is told what is to be pushed.

use std::{io, pin::pin, time::Duration};

use tokio::sync::oneshot;

use super::{
    Session,
    clients::{Client, Unblock},
    stream::WAITING_SILENCE,
};
use crate::{error::Error, resp::Reply};

/// How often a client is looked at that has sent more while it waits: its hanging up shows behind that.
const LOOK: Duration = Duration::from_millis(50);

/// Why something was not waited for until its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    Unblocked(Unblock),
    HungUp,
}

impl Session {
    /// Waits for something that does not end by itself soon. Others see that the client waits, and may unblock it; who
    /// did so is not deceived: what ends at the same moment does not count.
    pub(super) async fn while_present<T>(&mut self, end: impl Future<Output = T>) -> Result<T, Interrupted> {
        let (unblock, mut unblocked) = oneshot::channel();
        let client = self.client.clone();
        *client.unblock.lock() = Some(unblock);
        self.expect_signs(Some(WAITING_SILENCE));
        let mut end = pin!(end);
        let result = loop {
            tokio::select! {
                biased;
                Ok(how) = &mut unblocked => break Err(Interrupted::Unblocked(how)),
                result = &mut end => break Ok(result),
                () = hung_up(&client) => break Err(Interrupted::HungUp),
                () = self.pushes.ready() => {}
            }
            if self.push().await.is_err() {
                break Err(Interrupted::HungUp);
            }
        };
        self.expect_signs(None);
        let is_taken = client.unblock.lock().take().is_none();
        match result {
            Err(Interrupted::Unblocked(_)) => result,
            // Whoever took it is about to say how.
            _ if is_taken => match unblocked.await {
                Ok(how) => Err(Interrupted::Unblocked(how)),
                Err(_) => result,
            },
            _ => result,
        }
    }

    /// How long the client's machine may be silent: as long as is said here, or as the shortest of its leases.
    pub(super) fn expect_signs(&self, silence: Option<Duration>) {
        self.client.expect_signs(silence.into_iter().chain(self.bound.silence()).min());
    }

    /// Answers a client that was unblocked.
    pub(super) fn reply_unblocked(&mut self, how: Unblock, at_timeout: impl FnOnce(&mut Reply)) {
        match how {
            Unblock::Timeout => self.reply(at_timeout),
            Unblock::Error => {
                let text = "UNBLOCKED client unblocked via CLIENT UNBLOCK";
                self.reply(|reply| reply.error(&Error::Other(text.into())));
            }
        }
    }
}

/// What a session says to itself when its client is gone: it ends the connection.
pub(super) fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Returns when the client has hung up.
async fn hung_up(client: &Client) {
    while !has_hung_up(client).await {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the client has hung up; waits until there is something to see, which may be bytes that it has sent.
async fn has_hung_up(client: &Client) -> bool {
    if client.is_killed() {
        return true;
    }
    // An error of the socket: nobody will read what is written there.
    client.stream().has_ended().await
}

/// Whether it is known already that the client has hung up.
pub(super) async fn is_known_gone(client: &Client) -> bool {
    // No timer: the shortest is a millisecond, and a grant must not wait.
    tokio::select! {
        biased;
        gone = has_hung_up(client) => gone,
        () = std::future::ready(()) => false,
    }
}

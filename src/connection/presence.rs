//! Blocking only while the client is connected. Whatever a connection waits for on behalf of its client (a
//! grant, confirmations or just time), the wait ends when the client disconnects, is killed or unblocked; in
//! the meantime the client receives pushed messages.

use std::{io, pin::pin, time::Duration};

use tokio::sync::oneshot;

use super::{
    Connection,
    clients::{Client, Unblock},
    stream::WAITING_SILENCE,
};
use crate::{error::Error, resp::Reply};

/// How often to check a blocked client that has sent more: its disconnect is hidden behind those bytes.
const LOOK: Duration = Duration::from_millis(50);

/// Why a wait was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    Unblocked(Unblock),
    HungUp,
}

impl Connection {
    /// Waits for something that may take long. CLIENT LIST shows the client as blocked, and CLIENT UNBLOCK
    /// may end the wait; its success is final: a result that arrives at the same moment is discarded.
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
            // CLIENT UNBLOCK has taken the sender and is about to use it.
            _ if is_taken => match unblocked.await {
                Ok(how) => Err(Interrupted::Unblocked(how)),
                Err(_) => result,
            },
            _ => result,
        }
    }

    /// How long the client's host may be silent: `silence`, or the shortest of the client's leases if that is
    /// less.
    pub(super) fn expect_signs(&self, silence: Option<Duration>) {
        self.client.expect_signs(silence.into_iter().chain(self.bound.silence()).min());
    }

    /// Replies to a client that was unblocked.
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

/// A connection's error when its client is gone: it ends the connection.
pub(super) fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Returns once the client has disconnected.
async fn hung_up(client: &Client) {
    while !has_hung_up(client).await {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the client has disconnected; waits until the socket is readable, perhaps with bytes that the
/// client sent.
async fn has_hung_up(client: &Client) -> bool {
    if client.is_killed() {
        return true;
    }
    // After a socket error, nobody reads what is written there.
    client.stream().has_ended().await
}

/// Whether the client is already known to have disconnected.
pub(super) async fn is_known_gone(client: &Client) -> bool {
    // No timer: the shortest is a millisecond, and a grant must not be delayed.
    tokio::select! {
        biased;
        gone = has_hung_up(client) => gone,
        () = std::future::ready(()) => false,
    }
}

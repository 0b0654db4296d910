//! Ends the wait of proposals: when their time is up, when a later leader has settled them, when the group is
//! out of reach, and when the node stops.

use std::{sync::Arc, time::Duration};

use super::{Proposer, SWEEP, fail_all};
use crate::{
    Local, ProposeError, Unavailable,
    proposals::{
        batch::{self, Forwarded},
        group::Group,
    },
};

impl<L: Local> Proposer<L> {
    /// Gives up what has waited too long, and what a new leader has settled. Runs for ever.
    pub(crate) async fn sweep(self: Arc<Self>, group: Arc<impl Group>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let (_, applied_term) = group.terms();
            self.give_up(self.limits.timeout, applied_term);
            if let Some(why) = self.refusal() {
                self.refuse_waiting(&why);
            }
        }
    }

    fn give_up(&self, timeout: Duration, applied_term: u64) {
        let (mut unknown, mut not_applied) = (Vec::new(), Vec::new());
        self.pending.lock().retain(|_, pending| {
            let settled = pending.in_doubt && applied_term > pending.term;
            let keep = !settled && pending.since.elapsed() < timeout;
            if !keep {
                let given_up = if pending.sent { &mut unknown } else { &mut not_applied };
                given_up.append(&mut pending.locals);
            }
            keep
        });
        // Those in `pending` are not counted as waiting.
        let mut waited = 0;
        let mut refused = Vec::new();
        {
            let mut queue = self.queue.lock();
            queue.retries.retain_mut(|encoded| {
                let keep = encoded.since.elapsed() < timeout;
                if !keep {
                    waited += encoded.locals.len();
                    not_applied.append(&mut encoded.locals);
                }
                keep
            });
            while queue.drafts.front().is_some_and(|draft| draft.since.elapsed() >= timeout) {
                let draft = queue.drafts.pop_front().expect("there is a front");
                waited += draft.locals.len();
                not_applied.extend(draft.locals);
            }
            if queue.drafts.is_empty() {
                queue.waiting_bytes = 0;
            }
            // Their clients were told that the outcome is unknown: it must not be decided long after.
            while queue.incoming.front().is_some_and(|incoming| incoming.since.elapsed() >= timeout) {
                let incoming = queue.incoming.pop_front().expect("there is a front");
                waited += batch::proposals_of(&incoming.batch);
                refused.push(incoming);
            }
            queue.waiting = queue.waiting.saturating_sub(waited);
        }
        for incoming in refused {
            let _ = incoming.answer.send(Forwarded::NotAppended);
        }
        fail_all(unknown, &ProposeError::Unknown);
        fail_all(not_applied, &ProposeError::NotApplied(Unavailable::NoLeader));
    }

    /// Gives up what is in no log. What may be in one keeps waiting for its outcome.
    fn refuse_waiting(&self, why: &Unavailable) {
        let mut refused = Vec::new();
        {
            let mut queue = self.queue.lock();
            refused.extend(std::mem::take(&mut queue.retries).into_iter().flat_map(|encoded| encoded.locals));
            refused.extend(std::mem::take(&mut queue.drafts).into_iter().flat_map(|draft| draft.locals));
            queue.waiting_bytes = 0;
            queue.waiting = queue.waiting.saturating_sub(refused.len());
        }
        fail_all(refused, &ProposeError::NotApplied(why.clone()));
    }

    /// A snapshot has replaced entries that would have been applied. Nobody can tell which proposals were in
    /// them, so none may wait any longer.
    pub(crate) fn skipped(&self) {
        self.give_up(Duration::ZERO, 0);
    }

    /// Refuses new proposals from here on and fails those that wait; what is in flight becomes unknown.
    pub(crate) fn stop(&self) {
        self.queue.lock().stopped = true;
        self.in_flight.close();
        self.refuse_incoming();
        self.give_up(Duration::ZERO, 0);
    }
}

//! Calls that wait, in the entries that begin, serve and end their waits.

use super::applying::Applying;
use crate::{
    commands::{Call, Patience, blocking::Until, coordination::hold::reply_outcome},
    effects::{Ended, Outcome},
    error::Error,
    resp::{Recorded, Reply},
    store::{Ctx, Fate, Ticket, View, Wait, Wake, owner},
};

impl Applying<'_> {
    /// Ends up to `max` waits whose time is over.
    pub(super) fn end_due_waits(&mut self, max: usize) {
        for _ in 0..max {
            let Some(number) = self.state.first_due_wait() else { break };
            let Some(wait) = self.state.end_wait(number) else { break };
            let argv = wait.args();
            let waits = Call::resolve_at(&argv, self.state.level()).ok().and_then(|call| call.spec.waits);
            let at_timeout = waits.map_or(Reply::null as fn(&mut Reply), |waits| waits.at_timeout);
            self.end(&wait, Recorded::of(at_timeout));
        }
    }

    /// Runs the calls again that wait for keys that were fed: for each key in the order of their arrival, as long as it
    /// holds what they wait for.
    pub(super) fn serve_waits(&mut self) {
        while let Some((db, key)) = self.state.take_fed() {
            let mut last = 0;
            while let Some(held) = View::new(self.state, db, 0, 0).type_of(&key)
                && let Some(number) = self.state.next_wait(db, &key, held, last)
            {
                last = number;
                self.run_again(number);
            }
        }
    }

    /// Runs a waiting call again. It may go on waiting.
    fn run_again(&mut self, number: u64) {
        let Some(wait) = self.state.wait(number) else { return };
        let argv = wait.args();
        let Ok(call) = Call::resolve_at(&argv, self.state.level()) else { return };
        self.seed = self.seed.wrapping_add(1);
        // It does not count with what fed it.
        self.state.begin_request();
        let mut ctx = Ctx::new(self.state, wait.db, self.seed);
        ctx.ticket = Some(wait.ticket);
        let mut has_room = true;
        let reply = Recorded::of(|reply| {
            if let Err(error) = call.run(&mut ctx, None, reply) {
                has_room = error != Error::OutOfMemory;
                reply.error(&error);
            }
        });
        // Where it does not fit into memory, it may fit when its key is fed again.
        if ctx.fate == Fate::Queued || !has_room {
            return;
        }
        self.state.end_wait(number);
        self.note(call.spec.name, call.spec.group);
        self.end(&wait, reply);
    }

    fn end(&mut self, wait: &Wait, reply: Recorded) {
        let outcome = Outcome { reply, fate: Fate::Replied };
        self.ended.push(Ended { ticket: wait.ticket, place: (wait.db, Box::default()), outcome });
    }
}

/// What is to be kept of a call that waits, if it waits for keys.
pub(super) fn wait_for_keys(call: &Call<'_>, ticket: Ticket, ctx: &Ctx<'_>) -> Option<Wait> {
    let Until::Holds(holds) = call.spec.waits?.until else { return None };
    let deadline = match call.spec.timeout.patience(&call.args) {
        Some(Patience::Ms(ms)) => Some(ctx.now_ms.saturating_add(ms)),
        _ => None,
    };
    // What a command only writes cannot be what it waits for.
    let keys = call.keys().into_iter().filter(|(_, spec)| spec.is_read());
    Some(Wait {
        ticket,
        deadline,
        db: ctx.db(),
        keys: keys.map(|(key, _)| key.into()).collect(),
        holds: holds.into(),
        argv: call.args.from(0).iter().map(|argument| Box::from(*argument)).collect(),
    })
}

/// What the client of a claim's queue is told.
pub(super) fn ended_of_claim(wake: Wake) -> Ended {
    let outcome = outcome_of_claim(&wake.outcome);
    Ended { ticket: wake.ticket, place: (wake.db, wake.key), outcome }
}

pub(super) fn outcome_of_claim(outcome: &owner::Outcome) -> Outcome {
    let is_grant = matches!(outcome, owner::Outcome::Granted { .. });
    let fate = if is_grant { Fate::Granted } else { Fate::Replied };
    Outcome { reply: Recorded::of(|reply| reply_outcome(outcome, reply)), fate }
}

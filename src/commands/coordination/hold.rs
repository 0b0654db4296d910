//! What the commands of locks, semaphores and elections share: parsing a request, showing a hold, and checking
//! who may change it.
//!
//! Times are by the log clock and tokens are part of the replicated state, so neither a clock jump nor a
//! failover ends a hold early or issues a token twice.

use crate::commands::{Timeout, generic::scan::ScanOptions};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Acquire, Answer, ClaimKind, Claims, Ctx, Fate, Holder, Outcome, Share, Span, Until, View},
};

/// Where a command that acquires is told for how long to wait. PERMITS and OF come first, like options.
pub(in crate::commands) const WAIT: Timeout =
    Timeout::OptionMs { word: "WAIT", from: 3, single: &["SHARED"] };

/// The longest TTL of a hold, the longest wait and the longest lock delay, in milliseconds: a year.
pub(in crate::commands) const MS_MAX: i64 = 365 * 24 * 3600 * 1000;

/// A number of milliseconds at `index`, from `min` to a year.
pub(in crate::commands) fn milliseconds(
    args: &Args<'_>,
    index: usize,
    min: i64,
    command: &'static str,
) -> Result<u64> {
    match args.get(index).map(|_| args.integer(index)).transpose()? {
        Some(ms) if (min..=MS_MAX).contains(&ms) => Ok(ms.unsigned_abs()),
        Some(_) => Err(Error::InvalidExpire(command.into())),
        None => Err(Error::Syntax),
    }
}

/// The options of a command that acquires something.
#[derive(Default)]
pub(in crate::commands) struct Options<'a> {
    span: Option<Span>,
    wait_ms: u64,
    delay_ms: u64,
    pub is_shared: bool,
    pub data: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// Reads the options from `index` on. `data` is the name of the option for data, `takes_shared` whether
    /// SHARED is allowed.
    pub fn parse(
        args: &Args<'a>,
        mut index: usize,
        data: &str,
        takes_shared: bool,
        command: &'static str,
    ) -> Result<Options<'a>> {
        let mut options = Options::default();
        while index < args.len() {
            let value = || args.get(index + 1).ok_or(Error::Syntax);
            match () {
                () if args.is(index, "SHARED") && takes_shared => {
                    options.is_shared = true;
                    index += 1;
                    continue;
                }
                () if args.is(index, "PX") && options.span.is_none() => {
                    options.span = Some(Span::Ms(milliseconds(args, index + 1, 1, command)?));
                }
                () if args.is(index, "LEASE") && options.span.is_none() => {
                    options.span = Some(Span::Lease(value()?.into()));
                }
                () if args.is(index, "WAIT") => options.wait_ms = milliseconds(args, index + 1, 0, command)?,
                () if args.is(index, "DELAY") => {
                    options.delay_ms = milliseconds(args, index + 1, 0, command)?;
                }
                () if args.is(index, data) => options.data = Some(value()?),
                () => return Err(Error::Syntax),
            }
            index += 2;
        }
        Ok(options)
    }

    /// The request with these options. It waits only with a ticket: not inside a transaction.
    pub fn acquire(
        self,
        ctx: &mut Ctx<'_>,
        key: &[u8],
        owner: &'a [u8],
        share: Share,
    ) -> Result<Acquire<'a>> {
        let span = self.span.ok_or(Error::Syntax)?;
        if let Span::Lease(id) = &span {
            let level = ctx.level();
            let lease = ctx.lease(id)?.ok_or_else(no_lease)?;
            if !lease.has_room(&[key], level) {
                return Err(Error::err("the lease has no room for another key"));
            }
        }
        let wait = ctx.ticket.filter(|_| self.wait_ms > 0).map(|ticket| (ticket, ctx.now_ms + self.wait_ms));
        let Options { data, delay_ms, .. } = self;
        Ok(Acquire { owner, share, span, data, delay_ms, wait, is_counted: true })
    }
}

/// The error for a lease that does not exist.
pub(in crate::commands) fn no_lease() -> Error {
    Error::Other("NOLEASE there is no such lease".into())
}

/// Replies to a request, unless it waits: then its client is told how that has ended.
pub(in crate::commands) fn reply_answer(
    ctx: &mut Ctx<'_>,
    answer: Answer,
    kind: ClaimKind,
    reply: &mut Reply,
) {
    match answer {
        Answer::Held { token, until } => {
            if ctx.ticket.is_some() {
                ctx.fate = Fate::Granted;
            }
            reply_hold(kind, token, remaining_ms(&until, ctx.now_ms), reply);
        }
        Answer::Taken => reply.null(),
        Answer::Queued => ctx.fate = Fate::Queued,
    }
}

/// The reply for a wait that has ended.
pub fn reply_outcome(outcome: &Outcome, reply: &mut Reply) {
    let unblocked = |why: &str| Error::Other(format!("UNBLOCKED {why}").into());
    match outcome {
        Outcome::Granted { kind, token, remaining_ms } => reply_hold(*kind, *token, *remaining_ms, reply),
        Outcome::TimedOut => reply.null(),
        Outcome::Superseded => reply.error(&unblocked("the owner asks again on another connection")),
        Outcome::Gone => {
            let why = "what was waited for is gone, the lease ended, or this node was out of contact";
            reply.error(&unblocked(why));
        }
        Outcome::OutOfContact => reply.error(&unblocked("this node was out of contact")),
        Outcome::Unknown => {
            let why = "UNCERTAIN how the wait ended is not known: this node has taken in a snapshot";
            reply.error(&Error::Other(why.into()));
        }
    }
}

fn remaining_ms(until: &Until, now_ms: u64) -> Option<u64> {
    match until {
        Until::At(deadline) => Some(deadline.saturating_sub(now_ms)),
        Until::Lease(_) => None,
    }
}

/// The reply for a hold to its owner.
fn reply_hold(kind: ClaimKind, token: u64, remaining_ms: Option<u64>, reply: &mut Reply) {
    reply.map(2);
    reply.bulk(if kind == ClaimKind::Election { b"epoch" } else { b"token" });
    reply.integer(token as i64);
    reply_remaining(remaining_ms, reply);
}

/// Null for a hold under a lease.
pub(in crate::commands) fn reply_remaining(remaining_ms: Option<u64>, reply: &mut Reply) {
    reply.bulk(b"remaining_ms");
    match remaining_ms {
        Some(ms) => reply.integer(ms as i64),
        None => reply.null(),
    }
}

/// A holder as a map, as shown to everybody; `shows_permits` adds the number of permits.
pub(in crate::commands) fn reply_holder(
    holder: &Holder,
    view: &View<'_>,
    shows_permits: bool,
    reply: &mut Reply,
) {
    reply.map(6 + usize::from(shows_permits));
    reply.bulk(b"owner");
    reply.bulk(&holder.owner);
    reply.bulk(b"token");
    reply.integer(holder.token as i64);
    if shows_permits {
        reply.bulk(b"permits");
        reply.integer(match holder.share {
            Share::Permits(count) => count as i64,
            Share::All => 0,
        });
    }
    reply.bulk(b"count");
    reply.integer(holder.count as i64);
    reply_remaining(remaining_ms(&holder.until, view.estimate_ms), reply);
    reply.bulk(b"lease");
    reply.bulk_or_null(match &holder.until {
        Until::Lease(id) => Some(id),
        Until::At(_) => None,
    });
    reply.bulk(b"data");
    reply.bulk(&holder.data);
}

/// The waiting owners, in queue order.
pub(in crate::commands) fn reply_waiting(claims: &Claims, reply: &mut Reply) {
    reply.bulk(b"waiting");
    reply.array(claims.waiting_count());
    claims.waiting().for_each(|owner| reply.bulk(owner));
}

/// The name of a kind in error texts.
pub(in crate::commands) fn noun(kind: ClaimKind) -> &'static str {
    match kind {
        ClaimKind::Lock => "lock",
        ClaimKind::Semaphore => "semaphore",
        ClaimKind::Election => "election",
    }
}

/// Checks that an owner holds the key under this token; the error tells what is wrong.
pub(in crate::commands) fn check_hold(
    view: &View<'_>,
    kind: ClaimKind,
    key: &[u8],
    owner: &[u8],
    token: i64,
) -> Result<()> {
    let noun = noun(kind);
    let not_held = || Error::Other(format!("NOTHELD the {noun} is not held").into());
    let claims = view.claims(key, kind)?.ok_or_else(not_held)?;
    let Some(holder) = claims.of_owner(owner, view.now_ms) else {
        let is_held = claims.holders(view.now_ms).next().is_some();
        let (by, others) = ("another owner", format!("the {noun} is held by"));
        return Err(if is_held {
            Error::Other(format!("NOTOWNER {others} {by}").into())
        } else {
            not_held()
        });
    };
    if holder.token as i64 == token {
        return Ok(());
    }
    Err(Error::Other(format!("OLDTOKEN the owner holds the {noun} under token {}", holder.token).into()))
}

/// `<command> key owner token PX ms`: extends a hold until a new deadline.
pub(in crate::commands) fn renew(
    ctx: &mut Ctx<'_>,
    args: &Args<'_>,
    kind: ClaimKind,
    command: &'static str,
    reply: &mut Reply,
) -> Result<()> {
    let (key, owner, token) = (args.at(1), args.at(2), args.integer(3)?);
    if !args.is(4, "PX") {
        return Err(Error::Syntax);
    }
    let deadline = ctx.now_ms + milliseconds(args, 5, 1, command)?;
    check_hold(&ctx.view(), kind, key, owner, token)?;
    ctx.claims(key, kind, |claims, _| claims.renew(owner, deadline))?;
    reply_hold(kind, token.unsigned_abs(), Some(deadline - ctx.now_ms), reply);
    Ok(())
}

/// `<command> key owner token`: undoes one acquisition. Returns how many are left.
pub(in crate::commands) fn release(ctx: &mut Ctx<'_>, args: &Args<'_>, kind: ClaimKind) -> Result<u64> {
    let (key, owner, token) = (args.at(1), args.at(2), args.integer(3)?);
    check_hold(&ctx.view(), kind, key, owner, token)?;
    Ok(ctx.claims(key, kind, |claims, _| Ok(claims.release(owner)))?.unwrap_or(0))
}

/// `<command> [MATCH pattern] [CURSOR cursor]`: scans the keys of a type.
pub(in crate::commands) fn list(
    view: &View<'_>,
    args: &Args<'_>,
    type_name: &str,
    reply: &mut Reply,
) -> Result<()> {
    let (mut pattern, mut cursor) = (&b"*"[..], &b"0"[..]);
    for index in (1..args.len()).step_by(2) {
        let value = args.get(index + 1).ok_or(Error::Syntax)?;
        match () {
            () if args.is(index, "MATCH") => pattern = value,
            () if args.is(index, "CURSOR") => cursor = value,
            () => return Err(Error::Syntax),
        }
    }
    let scan: [&[u8]; 6] = [b"SCAN", cursor, b"MATCH", pattern, b"TYPE", type_name.as_bytes()];
    ScanOptions::parse(view, &Args::new(&scan), 1, true)?.reply_keys(view, reply)
}

//! Exactly once: ONCE runs a command unless it was applied already, and replies as it did the first time.
//! SESSION.OPEN creates the session that stores the replies; CLIENT SESSION, which puts a connection into
//! one, is a verb of the connection (`connection/verbs/session.rs`).

use crate::commands::{Call, Origin, Spec, coordination::fence, coordination::hold, keys};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::{Protocol, Replies, Reply, replies::SHARED_BYTES_MIN, reply::RECORDED_BYTES_MAX},
    store::{ClientSession, Ctx, REMEMBERED_BYTES_MAX, Recall, View},
};

// What is not in one buffer is too long to be remembered.
const _: () = assert!(SHARED_BYTES_MIN >= REMEMBERED_BYTES_MAX);

const NAME: &str = "ONCE";
/// Where the command begins that it runs.
const COMMAND_AT: usize = 2;
const GROUP: &str = "session";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write(NAME, -3, &[keys::WRAPPED], once)
        .about(
            &["write", "denyoom"],
            GROUP,
            SINCE,
            "Runs a command unless it was applied already, and answers what it answered then",
        )
        .syntax("number:integer command [argument...]")
        .complexity("Depends on the command")
        .of(Origin::Kvorum)
        .wraps(|_| Some(COMMAND_AT)),
    Spec::write("SESSION.OPEN", -2, keys::CHANGE, open)
        .about(
            &["write", "denyoom", "fast"],
            GROUP,
            SINCE,
            "Makes a session, in which commands are applied once",
        )
        .syntax("session-id:key [PX milliseconds:integer]")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("SESSION.RENEW", 2, keys::CHANGE, renew)
        .about(&["write", "fast"], GROUP, SINCE, "Gives a session its whole time again")
        .syntax("session-id:key")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::read("SESSION.INFO", 2, keys::READ, info)
        .about(
            &["readonly", "fast"],
            GROUP,
            SINCE,
            "Says how long a session lasts, and up to which number commands were applied",
        )
        .syntax("session-id:key")
        .complexity("O(1)")
        .of(Origin::Kvorum),
];

/// The default TTL of a session after its last use: an hour.
const TTL_MS: u64 = 3_600_000;

fn no_session() -> Error {
    Error::Other("NOSESSION there is no such session, or it has expired".into())
}

fn once(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let number =
        u64::try_from(args.integer(1)?).ok().filter(|&number| number > 0).ok_or(Error::NotPositive)?;
    let Some(caller) = ctx.caller.clone() else {
        return Err(Error::err("ONCE needs a session: CLIENT SESSION takes the connection into one"));
    };
    let call = Call::resolve_at(args.from(COMMAND_AT), ctx.level())?;
    if !call.spec.writes() {
        return Err(Error::err("ONCE runs only commands that write"));
    }
    if call.spec.name == NAME {
        return Err(Error::err("ONCE calls can not be nested"));
    }
    let session = ctx.view().in_db(caller.db).value::<ClientSession>(&caller.id)?.ok_or_else(no_session)?;
    match session.recall(number) {
        Recall::New => {}
        Recall::Forgotten => {
            return Err(Error::Other(
                format!("FORGOTTEN whether command {number} was applied is not known any more").into(),
            ));
        }
        Recall::Applied(given) => {
            let text = match given.bytes {
                Some(bytes) if given.is_resp3 == caller.is_resp3 => {
                    reply.raw(&bytes);
                    return Ok(());
                }
                Some(_) => "its reply was made for another version of RESP",
                None => "its reply was too large to be kept",
            };
            return Err(Error::Other(format!("APPLIED command {number} was applied; {text}").into()));
        }
    }
    // A command that a guard refuses may be tried again under the same number.
    fence::admit(&ctx.view(), &call, None)?;
    // Nobody could be told later how a wait ends, so the command would be applied but never answered.
    ctx.ticket = None;
    let protocol = if caller.is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
    // Every node makes the reply, whoever waits for it.
    let mut own = Reply::new(Replies::within(RECORDED_BYTES_MAX), protocol);
    match call.run(ctx, None, &mut own) {
        // It may be tried again under the same number, too.
        Err(error @ (Error::OutOfMemory | Error::TooManyElements { .. })) => return Err(error),
        Err(error) => own.error(&error),
        Ok(()) => {}
    }
    let own = own.into_buffer();
    if own.is_over() {
        ctx.remember(&caller, number, None);
        reply.error(&Error::Uncertain);
        return Ok(());
    }
    ctx.remember(&caller, number, own.as_slice());
    reply.append(own);
    Ok(())
}

fn open(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let ttl_ms = match (args.len(), args.is(2, "PX")) {
        (2, _) => TTL_MS,
        (4, true) => hold::milliseconds(args, 3, 1, "session.open")?,
        _ => return Err(Error::Syntax),
    };
    if ctx.exists(args.at(1)) {
        return Err(Error::err("a key of this name exists already"));
    }
    ctx.put_session(args.at(1), ClientSession::new(ttl_ms));
    reply.ok();
    Ok(())
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let id = args.at(1);
    let ttl_ms = ctx.session(id)?.ok_or_else(no_session)?.ttl_ms;
    let deadline = ctx.now_ms + ttl_ms;
    ctx.set_deadline(id, Some(deadline));
    reply.ok();
    Ok(())
}

fn info(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let id = args.at(1);
    let Some(session) = view.value::<ClientSession>(id)? else {
        reply.null();
        return Ok(());
    };
    let deadline = view.deadline(id).flatten();
    reply.map(4);
    reply.bulk(b"ttl_ms");
    reply.integer(session.ttl_ms as i64);
    hold::reply_remaining(deadline.map(|deadline| deadline.saturating_sub(view.estimate_ms)), reply);
    reply.bulk(b"last");
    reply.integer(session.last() as i64);
    reply.bulk(b"replies");
    reply.size(session.len());
    Ok(())
}

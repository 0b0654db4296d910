//! Exactly once: ONCE runs a command unless it was applied already, and answers what it answered the first time.
//! SESSION.OPEN makes the session that remembers; CLIENT SESSION, which takes a connection into one, is the session's
//! (`session/once.rs`).

use super::{Keys, Run, Spec, claim, fence, key};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::{Protocol, Reply},
    store::{ClientSession, Ctx, Recall, View},
};

/// The command whose keys are those of another.
pub(super) const NAME: &str = "ONCE";
const GROUP: &str = "session";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write(NAME, -3, Keys::Range { first: 3, last: 3, step: 1 }, once).about(
        &["write", "denyoom"],
        GROUP,
        SINCE,
        "Runs a command unless it was applied already, and answers what it answered then",
    ),
    Spec::write("SESSION.OPEN", -2, key(), open).about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Makes a session, in which commands are applied once",
    ),
    Spec::write("SESSION.RENEW", 2, key(), renew).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Gives a session its whole time again",
    ),
    Spec::read("SESSION.INFO", 2, key(), info).about(
        &["readonly", "fast"],
        GROUP,
        SINCE,
        "Says how long a session lasts, and up to which number commands were applied",
    ),
];

/// How long a session lives without being used, unless it is said: an hour.
const TTL_MS: u64 = 3_600_000;

fn no_session() -> Error {
    Error::Other("NOSESSION there is no such session, or it has expired".into())
}

/// The keys of the command that is to be applied once.
pub(super) fn keys<'a>(args: &Args<'a>) -> Vec<&'a [u8]> {
    let inner = args.get(2).and_then(|_| super::resolve(args.from(2)).ok()).filter(|spec| spec.name != NAME);
    inner.map(|spec| spec.keys_of(&Args::new(args.from(2)))).unwrap_or_default()
}

fn once(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let number =
        u64::try_from(args.integer(1)?).ok().filter(|&number| number > 0).ok_or(Error::NotPositive)?;
    let Some(caller) = ctx.caller.clone() else {
        return Err(Error::err("ONCE needs a session: CLIENT SESSION takes the connection into one"));
    };
    let spec = super::resolve(args.from(2))?;
    let Run::Write(write) = spec.run else {
        return Err(Error::err("ONCE runs only commands that write"));
    };
    if spec.name == NAME {
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
    let call = Args::new(args.from(2));
    fence::admit(&ctx.view(), spec, &call, None)?;
    // Nobody could be told later how a wait ends, so that it would be applied once and not answered.
    ctx.ticket = None;
    let protocol = if caller.is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
    let mut own = Reply::new(Vec::new(), protocol);
    if let Err(error) = write(ctx, &call, &mut own) {
        own.error(&error);
    }
    let bytes = own.into_buffer();
    ctx.remember(&caller, number, &bytes);
    reply.raw(&bytes);
    Ok(())
}

fn open(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let ttl_ms = match (args.len(), args.is(2, "PX")) {
        (2, _) => TTL_MS,
        (4, true) => claim::milliseconds(args, 3, 1, "session.open")?,
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
    claim::reply_remaining(deadline.map(|deadline| deadline.saturating_sub(view.estimate_ms)), reply);
    reply.bulk(b"last");
    reply.integer(session.last() as i64);
    reply.bulk(b"replies");
    reply.size(session.len());
    Ok(())
}

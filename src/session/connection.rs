//! PING ECHO HELLO AUTH SELECT QUIT RESET READONLY READWRITE.

use kvorum_raft::{ReadLevel, Role};

use super::{REDIS_VERSION, Replies, Session};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::{Protocol, Reply},
};

pub(super) fn ping(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    match args.len() {
        1 | 2 if session.is_listening_only() => {
            // As a message, which is all that such a client expects.
            reply.array(2);
            reply.bulk(b"pong");
            reply.bulk(args.get(1).unwrap_or_default());
        }
        1 => reply.simple("PONG"),
        2 => reply.bulk(args.at(1)),
        _ => return Err(Error::Arity("ping".into())),
    }
    Ok(())
}

pub(super) fn echo(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.bulk(args.at(1));
    Ok(())
}

pub(super) fn select(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let db = i32::try_from(args.integer(1)?)
        .map_err(|_| Error::err("value is out of range, value must between -2147483648 and 2147483647"))?;
    let databases = session.shared.settings.databases();
    let db = u32::try_from(db)
        .ok()
        .filter(|&db| db < databases)
        .ok_or_else(|| Error::err("DB index is out of range"))?;
    if db != session.db {
        session.db = db;
        session.identify(|identity| identity.db = db);
    }
    reply.ok();
    Ok(())
}

pub(super) fn quit(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.closing = true;
    reply.ok();
    Ok(())
}

pub(super) fn reset(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.drop_transaction();
    session.pushes.clear();
    session.db = 0;
    session.replies = Replies::On;
    session.unbind();
    session.in_session = None;
    session.protocol = Protocol::Resp2;
    session.identify(|identity| {
        let (lib_name, lib_ver) =
            (std::mem::take(&mut identity.lib_name), std::mem::take(&mut identity.lib_ver));
        *identity = super::Identity { lib_name, lib_ver, ..Default::default() };
    });
    session.read_after = 0;
    session.read_at(session.shared.settings.read_level());
    reply.set_protocol(Protocol::Resp2);
    reply.simple("RESET");
    Ok(())
}

pub(super) fn readonly(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.read_at(ReadLevel::Stale);
    reply.ok();
    Ok(())
}

pub(super) fn readwrite(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.read_at(session.shared.settings.read_level());
    reply.ok();
    Ok(())
}

pub(super) fn auth(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    match args.len() {
        2 => {
            return Err(Error::err(
                "AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            ));
        }
        3 => authenticate(args.at(1))?,
        _ => return Err(Error::Syntax),
    }
    reply.ok();
    Ok(())
}

/// The default user needs no password and takes any; there is no other.
fn authenticate(user: &[u8]) -> Result<()> {
    if user == b"default" {
        return Ok(());
    }
    Err(Error::Other("WRONGPASS invalid username-password pair or user is disabled.".into()))
}

pub(super) fn hello(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let mut protocol = None;
    if let Some(version) = args.get(1) {
        protocol = Some(match parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err(Error::Other("NOPROTO unsupported protocol version".into())),
            None => return Err(Error::err("Protocol version is not an integer or out of range")),
        });
    }
    let mut name = None;
    let mut at = 2;
    while at < args.len() {
        let left = args.len() - 1 - at;
        if args.is(at, "AUTH") && left >= 2 {
            authenticate(args.at(at + 1))?;
            at += 3;
        } else if args.is(at, "SETNAME") && left >= 1 {
            name = Some(super::client::checked_name(args.at(at + 1))?);
            at += 2;
        } else {
            // Redis shows it up to the first NUL.
            let option = args.at(at).split(|byte| *byte == 0).next().unwrap_or_default();
            let option = String::from_utf8_lossy(option);
            return Err(Error::err(format!("Syntax error in HELLO option '{option}'")));
        }
    }
    if let Some(name) = name {
        session.identify(|identity| identity.name = name.to_vec());
    }
    if let Some(protocol) = protocol {
        session.protocol = protocol;
        session.identify(|identity| identity.resp3 = protocol == Protocol::Resp3);
        reply.set_protocol(protocol);
    }
    let role = if session.shared.router.status().role == Role::Leader { "master" } else { "replica" };
    reply.map(7);
    for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if session.protocol == Protocol::Resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(session.client.id as i64);
    for (key, value) in [("mode", "standalone"), ("role", role)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

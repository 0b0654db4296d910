//! PING ECHO HELLO AUTH SELECT QUIT RESET READONLY READWRITE. As in Redis Cluster, READONLY allows
//! stale reads on this connection; READWRITE returns to the configured read level.

use kvorum_raft::{ReadLevel, Role};

use crate::connection::{
    Connection, REDIS_VERSION, ReplyMode,
    verb::{Verb, flags, groups},
};
use crate::{
    args::{Args, parse_integer},
    commands::{InMulti, Spec},
    error::{Error, Result},
    resp::{Protocol, Reply},
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[
    Verb::now(
        Spec::connection("AUTH", -2)
            .about(flags::BEFORE_AUTH, groups::CONNECTION, "1.0.0", "Authenticate to the server")
            .syntax("[username@6.0.0] password")
            .complexity("O(N) where N is the number of passwords defined for the user"),
        auth,
    ),
    Verb::now(
        Spec::connection("ECHO", 2)
            .about(flags::FAST, groups::CONNECTION, "1.0.0", "Echo the given string")
            .syntax("message")
            .complexity("O(1)"),
        echo,
    ),
    Verb::alone(
        Spec::connection("HELLO", -1)
            .about(flags::BEFORE_AUTH, groups::CONNECTION, "6.0.0", "Handshake with Redis")
            .syntax(
                "[arguments=(protover:integer [AUTH username_password=(username password)] [SETNAME \
             clientname])]",
            )
            .complexity("O(1)"),
        hello,
    ),
    Verb::now(
        Spec::connection("PING", -1)
            .about(&["fast"], groups::CONNECTION, "1.0.0", "Ping the server")
            .syntax("[message]")
            .complexity("O(1)")
            .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
            .while_subscribed(),
        ping,
    ),
    Verb::alone(
        Spec::connection("QUIT", -1)
            .about(flags::BEFORE_AUTH, groups::CONNECTION, "1.0.0", "Close the connection")
            .complexity("O(1)")
            .in_multi(InMulti::AtOnce)
            .while_subscribed(),
        quit,
    ),
    Verb::alone(
        Spec::connection("READONLY", 1)
            .about(
                flags::FAST,
                "cluster",
                "3.0.0",
                "Enables read queries for a connection to a cluster replica node",
            )
            .complexity("O(1)")
            .acl(&["connection"]),
        readonly,
    ),
    Verb::alone(
        Spec::connection("READWRITE", 1)
            .about(
                flags::FAST,
                "cluster",
                "3.0.0",
                "Disables read queries for a connection to a cluster replica node",
            )
            .complexity("O(1)")
            .acl(&["connection"]),
        readwrite,
    ),
    Verb::alone(
        Spec::connection("RESET", 1)
            .about(flags::BEFORE_AUTH, groups::CONNECTION, "6.2.0", "Reset the connection")
            .complexity("O(1)")
            .in_multi(InMulti::AtOnce)
            .while_subscribed(),
        reset,
    ),
    Verb::now(
        Spec::connection("SELECT", 2)
            .about(
                flags::FAST,
                groups::CONNECTION,
                "1.0.0",
                "Change the selected database for the current connection",
            )
            .syntax("index:integer")
            .complexity("O(1)")
            .selects_db(),
        select,
    ),
];

pub(in crate::connection) fn ping(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    match args.len() {
        1 | 2 if connection.is_listening_only() => {
            // As a pushed message, which is all that such a client expects.
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

pub(in crate::connection) fn echo(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.bulk(args.at(1));
    Ok(())
}

pub(in crate::connection) fn select(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let db = i32::try_from(args.integer(1)?)
        .map_err(|_| Error::err("value is out of range, value must between -2147483648 and 2147483647"))?;
    let databases = connection.shared.settings.databases();
    let db = u32::try_from(db)
        .ok()
        .filter(|&db| db < databases)
        .ok_or_else(|| Error::err("DB index is out of range"))?;
    if db != connection.db {
        connection.db = db;
        connection.identify(|identity| identity.db = db);
    }
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn quit(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    connection.closing = true;
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn reset(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    connection.drop_transaction();
    connection.pushes.clear();
    connection.db = 0;
    connection.replies = ReplyMode::On;
    connection.unbind();
    connection.in_session = None;
    connection.protocol = Protocol::Resp2;
    connection.identify(|identity| {
        let (lib_name, lib_ver) =
            (std::mem::take(&mut identity.lib_name), std::mem::take(&mut identity.lib_ver));
        *identity = crate::connection::Identity { lib_name, lib_ver, ..Default::default() };
    });
    connection.read_after = 0;
    connection.read_at(connection.shared.settings.read_level());
    reply.set_protocol(Protocol::Resp2);
    reply.simple("RESET");
    Ok(())
}

pub(in crate::connection) fn readonly(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    connection.read_at(ReadLevel::Stale);
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn readwrite(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    connection.read_at(connection.shared.settings.read_level());
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn auth(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
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

/// The default user needs no password and accepts any; there are no other users.
fn authenticate(user: &[u8]) -> Result<()> {
    if user == b"default" {
        return Ok(());
    }
    Err(Error::Other("WRONGPASS invalid username-password pair or user is disabled.".into()))
}

pub(in crate::connection) fn hello(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
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
            // Redis shows it only up to the first NUL.
            let option = args.at(at).split(|byte| *byte == 0).next().unwrap_or_default();
            let option = String::from_utf8_lossy(option);
            return Err(Error::err(format!("Syntax error in HELLO option '{option}'")));
        }
    }
    if let Some(name) = name {
        connection.identify(|identity| identity.name = name.to_vec());
    }
    if let Some(protocol) = protocol {
        connection.protocol = protocol;
        connection.identify(|identity| identity.resp3 = protocol == Protocol::Resp3);
        reply.set_protocol(protocol);
    }
    let role = if connection.shared.router.status().role == Role::Leader { "master" } else { "replica" };
    reply.map(7);
    for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if connection.protocol == Protocol::Resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(connection.client.id as i64);
    for (key, value) in [("mode", "standalone"), ("role", role)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

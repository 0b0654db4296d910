//! CLIENT: the list of connections, names, and disconnecting clients. All of it is about this node's
//! connections only.

use std::{collections::HashSet, sync::Arc};

use crate::connection::{
    Connection, ReplyMode,
    clients::{Client, Unblock},
    verb::{Verb, flags, groups},
};
use crate::{
    args::{Args, parse_integer},
    commands::{InMulti, Origin, Spec},
    error::{Error, Result},
    resp::Reply,
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::container(
    Spec::connection("CLIENT", -2)
        .about(&[], groups::CONNECTION, "2.4.0", "A container for client connection commands")
        .complexity("Depends on subcommand")
        .acl(&[]),
    &[
        Verb::alone(
            Spec::connection("CLIENT|CONSISTENCY", -2)
                .about(
                    flags::NOT_QUEUED,
                    groups::CONNECTION,
                    "1.0.0",
                    "Show or set what the reads of the connection promise",
                )
                .syntax(
                    "[form=<level=<LINEARIZABLE|LEASE|STALE|BOUNDED milliseconds:integer>|TOKEN|AFTER \
             token>]",
                )
                .of(Origin::Kvorum)
                .in_multi(InMulti::Refused),
            crate::connection::verbs::consistency::client,
        ),
        Verb::now(
            Spec::connection("CLIENT|GETNAME", 2)
                .about(flags::QUIET, groups::CONNECTION, "2.6.9", "Get the current connection name")
                .complexity("O(1)"),
            getname,
        ),
        Verb::now(
            Spec::connection("CLIENT|GETREDIR", 2)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "6.0.0",
                    "Get tracking notifications redirection client ID if any",
                )
                .complexity("O(1)"),
            getredir,
        ),
        Verb::now(
            Spec::connection("CLIENT|HELP", 2)
                .about(
                    flags::LOADING,
                    groups::CONNECTION,
                    "5.0.0",
                    "Show helpful text about the different subcommands",
                )
                .complexity("O(1)"),
            crate::connection::help,
        ),
        Verb::now(
            Spec::connection("CLIENT|ID", 2)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "5.0.0",
                    "Returns the client ID for the current connection",
                )
                .complexity("O(1)"),
            id,
        ),
        Verb::alone(
            Spec::connection("CLIENT|INFO", 2)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "6.2.0",
                    "Returns information about the current client connection.",
                )
                .complexity("O(1)")
                .tips(&["nondeterministic_output"]),
            info,
        ),
        Verb::alone(
            Spec::connection("CLIENT|KILL", -3)
                .about(flags::ADMIN, groups::CONNECTION, "2.4.0", "Kill the connection of a client")
                .syntax(
                    "filter=<ip:port~2.8.12|new-format=<[ID client-id:integer@2.8.12]|[TYPE \
             normal_master_slave_pubsub=<NORMAL|MASTER@3.2.0|SLAVE|REPLICA@5.0.0|PUBSUB>@2.8.12]|[USER \
             username]|[ADDR ip:port]|[LADDR ip:port@6.2.0]|[SKIPME yes/no]|[MAXAGE maxage:integer@7.4.0]>...>",
                )
                .complexity("O(N) where N is the number of client connections"),
            kill,
        ),
        Verb::alone(
            Spec::connection("CLIENT|LIST", -2)
                .about(flags::ADMIN, groups::CONNECTION, "2.4.0", "Get the list of client connections")
                .syntax(
                    "[TYPE normal_master_replica_pubsub=<NORMAL|MASTER|REPLICA|PUBSUB>@5.0.0] [ID \
             id=(client-id:integer...)@6.2.0]",
                )
                .complexity("O(N) where N is the number of client connections")
                .tips(&["nondeterministic_output"]),
            list,
        ),
        Verb::now(
            Spec::connection("CLIENT|NO-EVICT", 3)
                .about(
                    flags::ADMIN,
                    groups::CONNECTION,
                    "7.0.0",
                    "Set client eviction mode for the current connection",
                )
                .syntax("enabled=<ON|OFF>")
                .complexity("O(1)"),
            no_evict,
        ),
        Verb::now(
            Spec::connection("CLIENT|NO-TOUCH", 3)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "7.2.0",
                    "Controls whether commands sent by the client affect the LRU/LFU of accessed keys",
                )
                .syntax("enabled=<ON|OFF>"),
            no_touch,
        ),
        Verb::alone(
            Spec::connection("CLIENT|REPLY", 3)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "3.2.0",
                    "Instruct the server whether to reply to commands",
                )
                .syntax("on_off_skip=<ON|OFF|SKIP>")
                .complexity("O(1)")
                .in_multi(InMulti::Refused),
            reply,
        ),
        Verb::wait_outside(
            Spec::connection("CLIENT|SESSION", -2)
                .about(
                    &["noscript", "no_multi"],
                    groups::CONNECTION,
                    "1.0.0",
                    "Takes the connection into a connection, in which ONCE applies commands once",
                )
                .syntax("[connection-id] [NEW] [PX milliseconds:integer]")
                .of(Origin::Kvorum)
                .in_multi(InMulti::Refused),
            |connection, argv| Box::pin(connection.client_session(argv)),
        ),
        Verb::now(
            Spec::connection("CLIENT|SETINFO", 4)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "7.2.0",
                    "Sets information specific to the client or connection",
                )
                .syntax("attr=<LIB-NAME libname|LIB-VER libver>"),
            setinfo,
        ),
        Verb::now(
            Spec::connection("CLIENT|SETNAME", 3)
                .about(flags::QUIET, groups::CONNECTION, "2.6.9", "Set the current connection name")
                .syntax("connection-name")
                .complexity("O(1)"),
            setname,
        ),
        Verb::now(
            Spec::connection("CLIENT|TRACKINGINFO", 2)
                .about(
                    flags::QUIET,
                    groups::CONNECTION,
                    "6.2.0",
                    "Return information about server assisted client side caching for the current connection",
                )
                .complexity("O(1)"),
            trackinginfo,
        ),
        Verb::now(
            Spec::connection("CLIENT|UNBLOCK", -3)
                .about(
                    flags::ADMIN,
                    groups::CONNECTION,
                    "5.0.0",
                    "Unblock a client blocked in a blocking command from a different connection",
                )
                .syntax("client-id:integer [timeout_error=<TIMEOUT|ERROR>]")
                .complexity("O(log N) where N is the number of client connections"),
            unblock,
        ),
    ],
)];

pub(in crate::connection) fn id(connection: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.integer(connection.client.id as i64);
    Ok(())
}

pub(in crate::connection) fn getname(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let name = connection.client.identity.lock().name.clone();
    reply.bulk_or_null(Some(name.as_slice()).filter(|name| !name.is_empty()));
    Ok(())
}

/// A client's name is printable and without spaces, because CLIENT LIST shows it unquoted.
pub(in crate::connection) fn checked_name(name: &[u8]) -> Result<&[u8]> {
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Ok(name);
    }
    Err(Error::err("Client names cannot contain spaces, newlines or special characters."))
}

pub(in crate::connection) fn setname(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let name = checked_name(args.at(2))?.to_vec();
    connection.identify(|identity| identity.name = name);
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn setinfo(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let (is_name, attribute) = match () {
        () if args.is(2, "LIB-NAME") => (true, "lib-name"),
        () if args.is(2, "LIB-VER") => (false, "lib-ver"),
        () => {
            let option = String::from_utf8_lossy(args.at(2));
            return Err(Error::err(format!("Unrecognized option '{option}'")));
        }
    };
    let value = args.at(3).to_vec();
    checked_name(&value).map_err(|_| {
        Error::err(format!("{attribute} cannot contain spaces, newlines or special characters."))
    })?;
    connection
        .identify(|identity| if is_name { identity.lib_name = value } else { identity.lib_ver = value });
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn info(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let mut line = Vec::new();
    connection.client.describe(&mut line);
    reply.verbatim("txt", &String::from_utf8_lossy(&line));
    Ok(())
}

pub(in crate::connection) fn list(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let mut all = connection.shared.clients.all();
    if args.len() == 4 && args.is(2, "TYPE") {
        let kind = Kind::parse(args.at(3))?;
        all.retain(|client| kind.fits(client));
    } else if args.len() > 3 && args.is(2, "ID") {
        let mut ids = HashSet::new();
        for id in args.from(3) {
            ids.insert(parse_integer(id).ok_or_else(|| Error::err("Invalid client ID"))?);
        }
        all.retain(|client| ids.contains(&(client.id as i64)));
    } else if args.len() != 2 {
        return Err(Error::Syntax);
    }
    let mut lines = Vec::new();
    all.iter().for_each(|client| client.describe(&mut lines));
    reply.verbatim("txt", &String::from_utf8_lossy(&lines));
    Ok(())
}

/// A client type.
#[derive(Clone, Copy)]
enum Kind {
    Normal,
    /// Subscribers.
    Listening,
    /// Cluster nodes, which never connect as clients.
    Node,
}

impl Kind {
    fn parse(kind: &[u8]) -> Result<Kind> {
        match kind.to_ascii_lowercase().as_slice() {
            b"normal" => Ok(Kind::Normal),
            b"pubsub" => Ok(Kind::Listening),
            b"master" | b"slave" | b"replica" => Ok(Kind::Node),
            _ => Err(Error::err(format!("Unknown client type '{}'", String::from_utf8_lossy(kind)))),
        }
    }

    fn fits(self, client: &Client) -> bool {
        match self {
            Kind::Normal => !client.identity.lock().is_subscribed,
            Kind::Listening => client.identity.lock().is_subscribed,
            Kind::Node => false,
        }
    }
}

pub(in crate::connection) fn kill(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let all = connection.shared.clients.all();
    if args.len() == 3 {
        let addr = args.at(2);
        let victim = all
            .iter()
            .find(|client| client.addr.to_string().as_bytes() == addr)
            .ok_or_else(|| Error::err("No such client"))?;
        hang_up(connection, victim);
        reply.ok();
        return Ok(());
    }
    let filter = Filter::parse(args)?;
    let victims: Vec<_> = all
        .into_iter()
        .filter(|client| filter.fits(client) && !(filter.skip_me && client.id == connection.client.id))
        .collect();
    victims.iter().for_each(|client| hang_up(connection, client));
    reply.size(victims.len());
    Ok(())
}

/// A client that kills itself still gets the reply.
fn hang_up(connection: &mut Connection, victim: &Arc<Client>) {
    if victim.id == connection.client.id {
        connection.closing = true;
        victim.kill();
    } else {
        victim.hang_up();
    }
}

/// The filters of CLIENT KILL: a client must match all that are given.
struct Filter {
    id: Option<i64>,
    addr: Option<Vec<u8>>,
    local_addr: Option<Vec<u8>>,
    kind: Option<Kind>,
    age_s_min: u64,
    skip_me: bool,
}

impl Filter {
    fn parse(args: &Args<'_>) -> Result<Filter> {
        let mut filter =
            Filter { id: None, addr: None, local_addr: None, kind: None, age_s_min: 0, skip_me: true };
        for at in (2..args.len()).step_by(2) {
            let value = args.get(at + 1).ok_or(Error::Syntax)?;
            if args.is(at, "ID") {
                let id = parse_integer(value).filter(|&id| id > 0);
                filter.id = Some(id.ok_or_else(|| Error::err("client-id should be greater than 0"))?);
            } else if args.is(at, "ADDR") {
                filter.addr = Some(value.to_vec());
            } else if args.is(at, "LADDR") {
                filter.local_addr = Some(value.to_vec());
            } else if args.is(at, "TYPE") {
                filter.kind = Some(Kind::parse(value)?);
            } else if args.is(at, "USER") {
                if value != b"default" {
                    let user = String::from_utf8_lossy(value);
                    return Err(Error::err(format!("No such user '{user}'")));
                }
            } else if args.is(at, "MAXAGE") {
                let age = parse_integer(value).and_then(|age| u64::try_from(age).ok()).filter(|&age| age > 0);
                filter.age_s_min = age.ok_or_else(|| Error::err("maxage should be greater than 0"))?;
            } else if args.is(at, "SKIPME") {
                filter.skip_me = match value.to_ascii_lowercase().as_slice() {
                    b"yes" => true,
                    b"no" => false,
                    _ => return Err(Error::Syntax),
                };
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(filter)
    }

    fn fits(&self, client: &Client) -> bool {
        let same = |wanted: &Option<Vec<u8>>, addr: std::net::SocketAddr| {
            wanted.as_ref().is_none_or(|wanted| addr.to_string().as_bytes() == wanted)
        };
        self.kind.is_none_or(|kind| kind.fits(client))
            && self.id.is_none_or(|id| client.id as i64 == id)
            && same(&self.addr, client.addr)
            && same(&self.local_addr, client.local_addr)
            && client.since.elapsed().as_secs() >= self.age_s_min
    }
}

/// `on` or `off`.
fn switch(args: &Args<'_>) -> Result<bool> {
    match () {
        () if args.is(2, "ON") => Ok(true),
        () if args.is(2, "OFF") => Ok(false),
        () => Err(Error::Syntax),
    }
}

pub(in crate::connection) fn no_evict(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let on = switch(args)?;
    connection.identify(|identity| identity.no_evict = on);
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn no_touch(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let on = switch(args)?;
    connection.identify(|identity| identity.no_touch = on);
    reply.ok();
    Ok(())
}

/// Only ON is answered; `pipeline.rs` discards hidden replies.
pub(in crate::connection) fn reply(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    if args.is(2, "ON") {
        connection.replies = ReplyMode::On;
        reply.ok();
    } else if args.is(2, "OFF") {
        connection.replies = ReplyMode::Off;
    } else if args.is(2, "SKIP") {
        if connection.replies == ReplyMode::On {
            connection.replies = ReplyMode::SkipNext;
        }
    } else {
        return Err(Error::Syntax);
    }
    Ok(())
}

pub(in crate::connection) fn getredir(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.integer(-1);
    Ok(())
}

pub(in crate::connection) fn trackinginfo(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.map(3);
    reply.bulk(b"flags");
    reply.set(1);
    reply.bulk(b"off");
    reply.bulk(b"redirect");
    reply.integer(-1);
    reply.bulk(b"prefixes");
    reply.array(0);
    Ok(())
}

pub(in crate::connection) fn unblock(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let id = args.integer(2)?;
    if args.len() > 4 {
        return Err(Error::Syntax);
    }
    if args.len() == 4 && !args.is(3, "TIMEOUT") && !args.is(3, "ERROR") {
        return Err(Error::err("CLIENT UNBLOCK reason should be TIMEOUT or ERROR"));
    }
    let how = if args.is(3, "ERROR") { Unblock::Error } else { Unblock::Timeout };
    let client = u64::try_from(id).ok().and_then(|id| connection.shared.clients.get(id));
    let unblock = client.and_then(|client| client.unblock.lock().take());
    reply.flag(unblock.is_some_and(|unblock| unblock.send(how).is_ok()));
    Ok(())
}

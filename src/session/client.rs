//! CLIENT: who is connected, names, and hanging up.

use std::sync::Arc;

use super::{
    Replies, Session,
    clients::{Client, Unblock},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
};

pub(super) fn id(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.integer(session.client.id as i64);
    Ok(())
}

pub(super) fn getname(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let name = session.client.identity.lock().name.clone();
    reply.bulk_or_null(Some(name.as_slice()).filter(|name| !name.is_empty()));
    Ok(())
}

/// A client's name is printable and has no spaces: CLIENT LIST shows it as it is.
pub(super) fn checked_name(name: &[u8]) -> Result<&[u8]> {
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Ok(name);
    }
    Err(Error::err("Client names cannot contain spaces, newlines or special characters."))
}

pub(super) fn setname(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let name = checked_name(args.at(2))?.to_vec();
    session.identify(|identity| identity.name = name);
    reply.ok();
    Ok(())
}

pub(super) fn setinfo(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
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
    session.identify(|identity| if is_name { identity.lib_name = value } else { identity.lib_ver = value });
    reply.ok();
    Ok(())
}

pub(super) fn info(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let mut line = Vec::new();
    session.client.describe(&mut line);
    reply.verbatim("txt", &String::from_utf8_lossy(&line));
    Ok(())
}

pub(super) fn list(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let mut all = session.shared.clients.all();
    if args.len() == 4 && args.is(2, "TYPE") {
        let kind = Kind::parse(args.at(3))?;
        all.retain(|client| kind.fits(client));
    } else if args.len() > 3 && args.is(2, "ID") {
        let mut ids = Vec::new();
        for id in args.from(3) {
            ids.push(parse_integer(id).ok_or_else(|| Error::err("Invalid client ID"))?);
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
    /// Those that listen for messages.
    Listening,
    /// Nodes do not come as clients.
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

pub(super) fn kill(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let all = session.shared.clients.all();
    if args.len() == 3 {
        let addr = args.at(2);
        let victim = all
            .iter()
            .find(|client| client.addr.to_string().as_bytes() == addr)
            .ok_or_else(|| Error::err("No such client"))?;
        hang_up(session, victim);
        reply.ok();
        return Ok(());
    }
    let filter = Filter::parse(args)?;
    let victims: Vec<_> = all
        .into_iter()
        .filter(|client| filter.fits(client) && !(filter.skip_me && client.id == session.client.id))
        .collect();
    victims.iter().for_each(|client| hang_up(session, client));
    reply.size(victims.len());
    Ok(())
}

/// Who kills itself still gets the reply.
fn hang_up(session: &mut Session, victim: &Arc<Client>) {
    if victim.id == session.client.id {
        session.closing = true;
        victim.kill();
    } else {
        victim.hang_up();
    }
}

/// What CLIENT KILL looks for: all that is given must fit.
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

pub(super) fn no_evict(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let on = switch(args)?;
    session.identify(|identity| identity.no_evict = on);
    reply.ok();
    Ok(())
}

pub(super) fn no_touch(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let on = switch(args)?;
    session.identify(|identity| identity.no_touch = on);
    reply.ok();
    Ok(())
}

/// Only ON is answered; `pipeline.rs` keeps back what must not be seen.
pub(super) fn reply(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if args.is(2, "ON") {
        session.replies = Replies::On;
        reply.ok();
    } else if args.is(2, "OFF") {
        session.replies = Replies::Off;
    } else if args.is(2, "SKIP") {
        if session.replies == Replies::On {
            session.replies = Replies::SkipNext;
        }
    } else {
        return Err(Error::Syntax);
    }
    Ok(())
}

pub(super) fn getredir(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.integer(-1);
    Ok(())
}

pub(super) fn trackinginfo(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
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

pub(super) fn unblock(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let id = args.integer(2)?;
    if args.len() > 4 {
        return Err(Error::Syntax);
    }
    if args.len() == 4 && !args.is(3, "TIMEOUT") && !args.is(3, "ERROR") {
        return Err(Error::err("CLIENT UNBLOCK reason should be TIMEOUT or ERROR"));
    }
    let how = if args.is(3, "ERROR") { Unblock::Error } else { Unblock::Timeout };
    let client = session.shared.clients.all().into_iter().find(|client| client.id as i64 == id);
    let unblock = client.and_then(|client| client.unblock.lock().take());
    reply.flag(unblock.is_some_and(|unblock| unblock.send(how).is_ok()));
    Ok(())
}

pub(super) fn help(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    super::help(
        reply,
        "CLIENT",
        &[
            "CONSISTENCY [LINEARIZABLE|LEASE|BOUNDED <ms>|STALE]",
            "    Show or set what reads promise.",
            "CONSISTENCY TOKEN",
            "    Return a position in the log: at or after all that this connection has seen.",
            "CONSISTENCY AFTER <token>",
            "    Have reads wait until this node is at the position.",
            "GETREDIR",
            "    Return the client ID we are redirecting to when tracking is enabled.",
            "GETNAME",
            "    Return the name of the current connection.",
            "ID",
            "    Return the ID of the current connection.",
            "INFO",
            "    Return information about the current client connection.",
            "KILL <ip:port>",
            "    Kill connection made from <ip:port>.",
            "KILL <option> <value> [<option> <value> [...]]",
            "    Kill connections by ID, TYPE, ADDR, LADDR, USER, MAXAGE; SKIPME (YES|NO).",
            "LIST [options ...]",
            "    Return information about client connections: TYPE, ID.",
            "NO-EVICT (ON|OFF)",
            "    Protect current client connection from eviction.",
            "NO-TOUCH (ON|OFF)",
            "    Do not change the access time of keys.",
            "REPLY (ON|OFF|SKIP)",
            "    Control the replies sent to the current connection.",
            "SETINFO (LIB-NAME|LIB-VER) <value>",
            "    Tell the client library's name or version.",
            "SETNAME <name>",
            "    Assign the name <name> to the current connection.",
            "TRACKINGINFO",
            "    Report tracking status for the current connection.",
        ],
    );
    Ok(())
}

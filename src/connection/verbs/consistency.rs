//! The consistency of reads: CLIENT CONSISTENCY for a connection, CONSISTENCY for one command; and tokens, by
//! which one connection sees, on any node, all that another has seen.
//!
//! A token is a position in the log of one cluster: 16 hex digits of the cluster's id, a dash, and a log
//! index. It does not depend on time or on any clock.

use std::time::Duration;

use kvorum_raft::{ReadLevel, Status};

use crate::connection::{
    Connection,
    verb::{Verb, flags, groups},
};
use crate::{
    args::{Args, parse_integer},
    commands::{Call, InMulti, Origin, Run, Spec, keys},
    error::{Error, Result},
    resp::{Replies, Reply},
    router::is_linearizable,
    store::View,
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::wait_outside(
    Spec { keys: &[keys::WRAPPED], ..Spec::connection("CONSISTENCY", -3) }
        .about(
            flags::NOT_QUEUED,
            groups::CONNECTION,
            "1.0.0",
            "Read with another promise than the connection's",
        )
        .syntax("level=<LINEARIZABLE|LEASE|STALE|BOUNDED milliseconds:integer> command [argument...]")
        .of(Origin::Kvorum)
        .wraps(command_at)
        .in_multi(InMulti::Refused),
    |connection, argv| Box::pin(connection.read_as_asked(argv)),
)];

/// Where the command begins that is run.
fn command_at(args: &Args<'_>) -> Option<usize> {
    parse(args.from(1)).ok().flatten().map(|(_, count)| 1 + count)
}

/// The largest staleness bound, in milliseconds: a day.
pub const BOUND_MS_MAX: u64 = 24 * 3600 * 1000;

/// The number of digits of the cluster's id in a token.
const TOKEN_ID_DIGITS: usize = 16;

/// The level at the beginning of `words`, and how many words name it. None if they do not name one.
pub fn parse(words: &[&[u8]]) -> Result<Option<(ReadLevel, usize)>> {
    let Some(word) = words.first() else { return Ok(None) };
    Ok(match word.to_ascii_lowercase().as_slice() {
        b"linearizable" => Some((ReadLevel::Linearizable, 1)),
        b"lease" => Some((ReadLevel::Lease, 1)),
        b"stale" => Some((ReadLevel::Stale, 1)),
        b"bounded" => {
            let ms = words.get(1).and_then(|ms| parse_integer(ms)).and_then(|ms| u64::try_from(ms).ok());
            let ms = ms.filter(|ms| (1..=BOUND_MS_MAX).contains(ms)).ok_or_else(|| {
                Error::err(format!("BOUNDED needs a number of milliseconds between 1 and {BOUND_MS_MAX}"))
            })?;
            Some((ReadLevel::Bounded(Duration::from_millis(ms)), 2))
        }
        _ => None,
    })
}

/// A level in the form that `parse` reads.
pub fn show(level: ReadLevel) -> String {
    match level {
        ReadLevel::Linearizable => "linearizable".into(),
        ReadLevel::Lease => "lease".into(),
        ReadLevel::Bounded(age) => format!("bounded {}", age.as_millis()),
        ReadLevel::Stale => "stale".into(),
    }
}

/// CLIENT CONSISTENCY [level | TOKEN | AFTER token].
pub(in crate::connection) fn client(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    match args.len() {
        2 => reply.bulk(show(connection.read_level).as_bytes()),
        3 if args.is(2, "TOKEN") => reply.bulk(connection.token()?.as_bytes()),
        4 if args.is(2, "AFTER") => {
            let index = connection.position(args.at(3))?;
            connection.read_after = connection.read_after.max(index);
            reply.ok();
        }
        len => match parse(args.from(2))? {
            Some((level, count)) if len == 2 + count => {
                connection.read_at(level);
                reply.ok();
            }
            _ => return Err(Error::Syntax),
        },
    }
    Ok(())
}

/// The level, and the read command to execute at it.
fn asked<'a>(argv: &'a [&'a [u8]]) -> Result<(ReadLevel, Call<'a>)> {
    let (level, count) = parse(&argv[1..])?.ok_or(Error::Syntax)?;
    let call = &argv[1 + count..];
    if call.is_empty() {
        return Err(Error::Arity("consistency".into()));
    }
    let call = Call::resolve(call)?;
    if matches!(call.spec.run, Run::Read(_)) {
        return Ok((level, call));
    }
    let name = call.spec.name.to_ascii_lowercase();
    Err(Error::err(format!("CONSISTENCY is for commands that read: '{name}' does not")))
}

impl Connection {
    /// Sets the consistency of this connection's reads.
    pub(in crate::connection) fn read_at(&mut self, level: ReadLevel) {
        self.read_level = level;
        self.identify(|identity| identity.readonly = level == ReadLevel::Stale);
    }

    /// Whether reads may be answered while the rest of the cluster is unreachable.
    pub(in crate::connection) fn reads_are_local(&self) -> bool {
        !is_linearizable(self.read_level)
    }

    /// Waits until a read of the local state satisfies this connection's level.
    pub(in crate::connection) async fn barrier(&mut self) -> Result<()> {
        self.catch_up().await?;
        self.shared.router.barrier(self.read_level).await
    }

    /// Waits until this node has reached the connection's token.
    pub(in crate::connection) async fn catch_up(&mut self) -> Result<()> {
        if self.read_after > 0 {
            self.shared.router.applied(self.read_after).await?;
            // An entry once applied on a node stays applied.
            self.read_after = 0;
        }
        Ok(())
    }

    /// CONSISTENCY level command [argument ...].
    pub(in crate::connection) async fn read_as_asked(&mut self, argv: &[&[u8]]) {
        let mark = self.out.len();
        if let Err(error) = self.try_read_as_asked(argv).await {
            self.out.truncate(mark);
            self.reply(|reply| reply.error(&error));
        }
    }

    async fn try_read_as_asked(&mut self, argv: &[&[u8]]) -> Result<()> {
        let (level, call) = asked(argv)?;
        self.catch_up().await?;
        let (protocol, bytes_max) = (self.protocol, self.reply_bytes_max());
        let read = |view: &View<'_>| {
            let mut reply = Reply::new(Replies::within(bytes_max), protocol);
            call.read_or_error(view, &mut reply);
            reply.into_buffer()
        };
        let answer = self.shared.router.read_at(level, self.db, read).await?;
        self.out.append(answer);
        Ok(())
    }

    /// The token of this node's position: at or after all that this connection has seen.
    fn token(&self) -> Result<String> {
        let status = self.shared.router.status();
        // The machine may be slightly ahead of the applied index in the status, and a reply may show its
        // state already.
        let machine = self.shared.router.machine().applied();
        let index = machine.max(status.applied_index).max(self.read_after);
        Ok(format!("{}-{index}", token_id(status)?))
    }

    /// The log index of a token.
    fn position(&self, token: &[u8]) -> Result<u64> {
        let malformed = || Error::err("the token is malformed");
        let text = std::str::from_utf8(token).map_err(|_| malformed())?;
        let (id, index) = text.split_once('-').ok_or_else(malformed)?;
        let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
        let index = index.parse().ok().filter(|_| is_number).ok_or_else(malformed)?;
        if id.len() != TOKEN_ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        if id != token_id(self.shared.router.status())? {
            return Err(Error::err("the token is of another cluster"));
        }
        Ok(index)
    }
}

/// The prefix of this cluster's tokens.
fn token_id(status: Status) -> Result<String> {
    let id = status.cluster_id;
    let id = id.ok_or_else(|| Error::Other("CLUSTERDOWN this node is not part of a cluster yet".into()))?;
    Ok(id.chars().take(TOKEN_ID_DIGITS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_shown_as_it_is_read() {
        for text in ["linearizable", "lease", "bounded 250", "stale"] {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            let (level, count) = parse(&words).unwrap().unwrap();
            assert_eq!((show(level).as_str(), count), (text, words.len()));
        }
    }
}

//! What reads promise: CLIENT CONSISTENCY for a connection, CONSISTENCY for one command; and tokens, by which what one
//! connection has seen is not missed by another, on any node.
//!
//! A token is a position in the log of one cluster: 16 hex digits of the cluster's id, a dash, and a log index. It says
//! nothing about time, and no clock is asked.

use std::time::Duration;

use kvorum_raft::{ReadLevel, Status};

use super::{Session, pipeline::read_one};
use crate::{
    args::{Args, parse_integer},
    commands::{self, ReadFn, Run},
    error::{Error, Result},
    resp::Reply,
    store::View,
};

/// The greatest age that may be asked for, in milliseconds: a day.
pub const BOUND_MS_MAX: u64 = 24 * 3600 * 1000;

/// How many digits of the cluster's id a token begins with.
const TOKEN_ID_DIGITS: usize = 16;

/// The level that `words` begin with, and how many of them name it. None when they name none.
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

/// A level as `parse` reads it.
pub fn show(level: ReadLevel) -> String {
    match level {
        ReadLevel::Linearizable => "linearizable".into(),
        ReadLevel::Lease => "lease".into(),
        ReadLevel::Bounded(age) => format!("bounded {}", age.as_millis()),
        ReadLevel::Stale => "stale".into(),
    }
}

/// Whether reads see all that was acknowledged before. Then a key that is late must die before it is read; the others
/// may show it as the state has it.
pub(super) fn is_linearizable(level: ReadLevel) -> bool {
    matches!(level, ReadLevel::Linearizable | ReadLevel::Lease)
}

/// CLIENT CONSISTENCY [level | TOKEN | AFTER token].
pub(super) fn client(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    match args.len() {
        2 => reply.bulk(show(session.read_level).as_bytes()),
        3 if args.is(2, "TOKEN") => reply.bulk(session.token()?.as_bytes()),
        4 if args.is(2, "AFTER") => {
            let index = session.position(args.at(3))?;
            session.read_after = session.read_after.max(index);
            reply.ok();
        }
        len => match parse(args.from(2))? {
            Some((level, count)) if len == 2 + count => {
                session.read_at(level);
                reply.ok();
            }
            _ => return Err(Error::Syntax),
        },
    }
    Ok(())
}

/// A command that reads, and at which level.
fn asked<'a>(argv: &'a [&'a [u8]]) -> Result<(ReadLevel, ReadFn, &'a [&'a [u8]])> {
    let (level, count) = parse(&argv[1..])?.ok_or(Error::Syntax)?;
    let call = &argv[1 + count..];
    if call.is_empty() {
        return Err(Error::Arity("consistency".into()));
    }
    let spec = commands::resolve(call)?;
    match spec.run {
        Run::Read(run) => Ok((level, run, call)),
        Run::Write(_) | Run::Session => {
            let name = spec.name.to_ascii_lowercase();
            Err(Error::err(format!("CONSISTENCY is for commands that read: '{name}' does not")))
        }
    }
}

impl Session {
    /// Sets what reads promise from here on.
    pub(super) fn read_at(&mut self, level: ReadLevel) {
        self.read_level = level;
        self.identify(|identity| identity.readonly = level == ReadLevel::Stale);
    }

    /// Whether reads may be answered where nobody else can be reached.
    pub(super) fn reads_are_local(&self) -> bool {
        !is_linearizable(self.read_level)
    }

    /// Waits until a read of the local state gives what this connection was promised.
    pub(super) async fn barrier(&mut self) -> Result<()> {
        self.barrier_at(self.read_level).await
    }

    async fn barrier_at(&mut self, level: ReadLevel) -> Result<()> {
        if self.read_after > 0 {
            self.shared.router.applied(self.read_after).await?;
            // What is applied on a node stays applied.
            self.read_after = 0;
        }
        self.shared.router.barrier(level).await
    }

    /// CONSISTENCY level command [argument ...].
    pub(super) async fn read_as_asked(&mut self, argv: &[&[u8]]) {
        let mark = self.out.len();
        if let Err(error) = self.try_read_as_asked(argv).await {
            self.out.truncate(mark);
            self.reply(|reply| reply.error(&error));
        }
    }

    async fn try_read_as_asked(&mut self, argv: &[&[u8]]) -> Result<()> {
        let (level, run, call) = asked(argv)?;
        self.barrier_at(level).await?;
        let (argv, protocol) = (call.iter().copied().collect(), self.protocol);
        let answer = self.read_behind_barrier(level, |view| {
            let mut reply = Reply::new(Vec::new(), protocol);
            read_one(view, run, &argv, &mut reply);
            reply.into_buffer()
        });
        let answer = answer.await?;
        self.out.extend_from_slice(&answer);
        Ok(())
    }

    /// Reads behind the barrier of a level, as that promises.
    pub(super) async fn read_behind_barrier<R>(
        &self,
        level: ReadLevel,
        read: impl FnMut(&View<'_>) -> R,
    ) -> Result<R> {
        if is_linearizable(level) {
            self.shared.router.read_in_time(self.db, read).await
        } else {
            Ok(self.shared.router.read(self.db, read))
        }
    }

    /// Where this node's state is: at or after all that this connection has seen.
    fn token(&self) -> Result<String> {
        let status = self.shared.router.status();
        // The machine is a moment ahead of what the log says is applied, and a reply may come from it already.
        let machine = self.shared.router.read(self.db, |view| view.applied());
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

/// What a token of this cluster begins with.
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

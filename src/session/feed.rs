//! FEED.SUBSCRIBE and FEED.UNSUBSCRIBE, and the messages of the change feed. The feed is in `crate::feed`.

use super::{
    Session,
    push::{Pushed, Source},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    feed::{Compacted, Event, Filter, Subscription},
    resp::{Protocol, Reply},
    store::{Content, Value},
};

/// A client's subscription.
pub(super) struct FeedSource {
    subscription: Subscription,
    with_values: bool,
}

/// What FEED.SUBSCRIBE asks for.
struct Wish {
    filter: Filter,
    from: Option<u64>,
    with_values: bool,
}

impl Wish {
    fn parse(args: &Args<'_>, db: u32) -> Result<Wish> {
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        let (mut from, mut with_values, mut at) = (None, false, 1);
        while at < args.len() {
            let value = || args.get(at + 1).ok_or(Error::Syntax);
            match () {
                () if args.is(at, "VALUES") => {
                    with_values = true;
                    at += 1;
                    continue;
                }
                () if args.is(at, "PREFIX") => prefixes.push(value()?.into()),
                () if args.is(at, "KEY") => keys.push(value()?.into()),
                () if args.is(at, "FROM") => {
                    let index = parse_integer(value()?).and_then(|index| u64::try_from(index).ok());
                    from = Some(index.ok_or(Error::NotInteger)?);
                }
                () => return Err(Error::Syntax),
            }
            at += 2;
        }
        Ok(Wish { filter: Filter::new(db, keys, prefixes), from, with_values })
    }
}

pub(super) fn subscribe(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Wish { filter, from, with_values } = Wish::parse(args, session.db)?;
    let feed = session.shared.router.feed();
    if !feed.is_on() {
        return Err(Error::err("the change feed is off on this node: feed-history-bytes is 0"));
    }
    let subscription = feed.subscribe(filter, from, session.pushes.wake()).map_err(compacted)?;
    reply.integer(subscription.told() as i64);
    // A connection has one; who subscribes again wants another instead.
    session.pushes.remove(is_feed);
    session.pushes.add(Source::Feed(FeedSource { subscription, with_values }));
    session.show_subscribed();
    Ok(())
}

pub(super) fn unsubscribe(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    match session.pushes.remove(is_feed) {
        Some(Source::Feed(feed)) => reply.integer(feed.subscription.told() as i64),
        _ => reply.null(),
    }
    session.show_subscribed();
    Ok(())
}

fn is_feed(source: &Source) -> bool {
    matches!(source, Source::Feed(_))
}

fn compacted(why: Compacted) -> Error {
    Error::Other(format!("COMPACTED {why}").into())
}

impl FeedSource {
    /// Writes the events of the next entry that has some.
    pub fn push(&mut self, reply: &mut Reply) -> Pushed {
        match self.subscription.next_entry() {
            Ok(None) => Pushed::Nothing,
            Ok(Some(entry)) => {
                let is_shown = |event: &Event<'_>| self.subscription.filter().matches(event);
                message(entry.index, reply);
                reply.array(entry.events().filter(is_shown).count());
                entry.events().filter(is_shown).for_each(|event| show(&event, self.with_values, reply));
                Pushed::Some
            }
            Err(why) => {
                message(why.last, reply);
                reply.error(&compacted(why));
                Pushed::Ended
            }
        }
    }

    /// Writes how far the log is, if it went on.
    pub fn push_quiet(&mut self, reply: &mut Reply) {
        if let Some(index) = self.subscription.progress() {
            message(index, reply);
            reply.array(0);
        }
    }
}

/// The beginning of a message; its third part follows.
fn message(index: u64, reply: &mut Reply) {
    reply.push(3);
    reply.bulk(b"feed");
    reply.integer(index as i64);
}

fn show(event: &Event<'_>, with_value: bool, reply: &mut Reply) {
    let type_name = event.held.as_ref().and_then(|held| held.type_name);
    reply.array(if with_value { 4 } else { 3 });
    reply.bulk_or_null(event.key);
    reply.bulk(event.what.as_bytes());
    reply.bulk_or_null(type_name.map(str::as_bytes));
    if with_value {
        match event.content() {
            None => reply.null(),
            Some(Content::String(bytes)) => reply.bulk(bytes),
            Some(Content::Object(value)) => show_value(&value, reply),
            Some(Content::Leader(leader)) => {
                reply.map(3);
                reply.bulk(b"candidate");
                reply.bulk(leader.candidate);
                reply.bulk(b"epoch");
                reply.integer(leader.epoch as i64);
                reply.bulk(b"value");
                reply.bulk_or_null(leader.value);
            }
        }
    }
}

/// As LRANGE, HGETALL, SMEMBERS and ZRANGE WITHSCORES do.
fn show_value(value: &Value, reply: &mut Reply) {
    match value {
        Value::List(list) => {
            reply.array(list.len());
            list.iter().for_each(|element| reply.bulk(element));
        }
        Value::Hash(hash) => {
            reply.map(hash.len());
            hash.iter().for_each(|(field, value)| {
                reply.bulk(field);
                reply.bulk(value);
            });
        }
        Value::Set(set) => {
            reply.set(set.len());
            set.iter().for_each(|member| reply.bulk(member.as_ref()));
        }
        Value::SortedSet(set) => {
            let is_nested = reply.protocol() == Protocol::Resp3;
            reply.array(if is_nested { set.len() } else { 2 * set.len() });
            for (member, score) in set.iter() {
                if is_nested {
                    reply.array(2);
                }
                reply.bulk(member);
                reply.double(score);
            }
        }
        _ => reply.null(),
    }
}

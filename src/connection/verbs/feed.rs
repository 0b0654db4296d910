//! FEED.SUBSCRIBE and FEED.UNSUBSCRIBE, and the messages of the change feed. The feed itself is in
//! `crate::feed`.

use crate::connection::{
    Connection,
    push::{Pushed, Source},
    verb::{Verb, flags},
};
use crate::{
    args::{Args, parse_integer},
    commands::{InMulti, Origin, Spec},
    effects::Event,
    error::{Error, Result},
    feed::{Compacted, Filter, Subscription},
    resp::Reply,
    store::{Content, Value},
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[
    Verb::alone(
        Spec::connection("FEED.SUBSCRIBE", -1)
            .about(
                flags::LISTENING,
                "feed",
                "1.0.0",
                "Listens for what happens to keys, in the order of the log",
            )
            .syntax("[PREFIX prefix...*] [KEY keyname...*] [FROM index:integer] [VALUES]")
            .of(Origin::Kvorum)
            .in_multi(InMulti::Refused)
            .while_subscribed(),
        subscribe,
    ),
    Verb::alone(
        Spec::connection("FEED.UNSUBSCRIBE", 1)
            .about(flags::LISTENING, "feed", "1.0.0", "Stops listening to the change feed")
            .of(Origin::Kvorum)
            .in_multi(InMulti::Refused)
            .while_subscribed(),
        unsubscribe,
    ),
];

/// A client's subscription.
pub(in crate::connection) struct FeedSource {
    subscription: Subscription,
    with_values: bool,
}

/// The arguments of FEED.SUBSCRIBE.
struct Parameters {
    filter: Filter,
    from: Option<u64>,
    with_values: bool,
}

impl Parameters {
    fn parse(args: &Args<'_>, db: u32) -> Result<Parameters> {
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
        Ok(Parameters { filter: Filter::new(db, keys, prefixes), from, with_values })
    }
}

pub(in crate::connection) fn subscribe(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let Parameters { filter, from, with_values } = Parameters::parse(args, connection.db)?;
    let feed = connection.shared.router.feed();
    if !feed.is_on() {
        return Err(Error::err("the change feed is off on this node: feed-history-bytes is 0"));
    }
    let subscription = feed.subscribe(filter, from, connection.pushes.wake()).map_err(compacted)?;
    reply.integer(subscription.told() as i64);
    // A connection has at most one subscription; a new one replaces it.
    connection.pushes.remove(is_feed);
    connection.pushes.add(Source::Feed(FeedSource { subscription, with_values }));
    connection.show_subscribed();
    Ok(())
}

pub(in crate::connection) fn unsubscribe(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    match connection.pushes.remove(is_feed) {
        Some(Source::Feed(feed)) => reply.integer(feed.subscription.told() as i64),
        _ => reply.null(),
    }
    connection.show_subscribed();
    Ok(())
}

fn is_feed(source: &Source) -> bool {
    matches!(source, Source::Feed(_))
}

fn compacted(why: Compacted) -> Error {
    Error::Other(format!("COMPACTED {why}").into())
}

impl FeedSource {
    /// Writes the events of the next entry that has matching ones.
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

    /// Writes the log position, if it has advanced.
    pub fn push_quiet(&mut self, reply: &mut Reply) {
        if let Some(index) = self.subscription.progress() {
            message(index, reply);
            reply.array(0);
        }
    }
}

/// The beginning of a message; the caller writes its third element.
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

/// Shows a value in the form of LRANGE, HGETALL, SMEMBERS and ZRANGE WITHSCORES.
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
            reply.pairs(set.len());
            for (member, score) in set.iter() {
                reply.pair();
                reply.bulk(member);
                reply.double(score);
            }
        }
        _ => reply.null(),
    }
}

//! ELECT.OBSERVE and ELECT.UNOBSERVE: reports the leader of an election at once and whenever it changes.
//! Changes are taken from the change feed, so they come in log order, on any node.

use std::collections::HashSet;

use crate::connection::{
    Connection,
    push::{Pushed, Source},
    verb::Verb,
};
use crate::{
    args::{Args, parse_integer},
    commands::{InMulti, Origin, Spec},
    error::{Error, Result},
    feed::{Entry, Filter, Found, Subscription},
    resp::Reply,
    store::{ClaimKind, Content, Leader, View},
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[
    Verb::wait_outside(
        Spec::connection("ELECT.OBSERVE", -2)
            .about(
                &["pubsub", "noscript", "no_multi"],
                "election",
                "1.0.0",
                "Tells who leads, at once and whenever that changes",
            )
            .syntax("name [FROM epoch:integer]")
            .of(Origin::Kvorum)
            .in_multi(InMulti::Refused)
            .while_subscribed(),
        |connection, argv| Box::pin(connection.observe(argv)),
    ),
    Verb::alone(
        Spec::connection("ELECT.UNOBSERVE", -1)
            .about(&["pubsub", "noscript", "no_multi"], "election", "1.0.0", "Stops observing elections")
            .syntax("[name...]")
            .of(Origin::Kvorum)
            .in_multi(InMulti::Refused)
            .while_subscribed(),
        unobserve,
    ),
];

/// An election that a client observes.
pub(in crate::connection) struct ElectionSource {
    name: Vec<u8>,
    /// To this key's events.
    subscription: Subscription,
    /// The observer knows the effects of entries up to this index.
    from: u64,
    /// The observer knows this epoch and everything before it.
    known_epoch: Option<u64>,
    /// The leader to report first.
    first: Option<Option<OwnLeader>>,
    /// The leader last reported.
    told: Option<Option<OwnLeader>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnLeader {
    candidate: Vec<u8>,
    epoch: u64,
    /// None if the value was too large for the history.
    value: Option<Vec<u8>>,
}

impl ElectionSource {
    fn db(&self) -> u32 {
        self.subscription.filter().db()
    }
}

impl From<Leader<'_>> for OwnLeader {
    fn from(leader: Leader<'_>) -> OwnLeader {
        let Leader { candidate, epoch, value } = leader;
        OwnLeader { candidate: candidate.to_vec(), epoch, value: value.map(<[u8]>::to_vec) }
    }
}

impl Connection {
    /// ELECT.OBSERVE name [FROM epoch].
    pub(in crate::connection) async fn observe(&mut self, argv: &[&[u8]]) {
        let source = match self.barrier().await {
            Ok(()) => self.observer(&Args::new(argv)).await,
            Err(error) => Err(error),
        };
        match source {
            Ok(source) => {
                self.pushes.remove(|other| is_same(other, &source));
                self.pushes.add(Source::Election(source));
                self.pushes.wake().notify_one();
                self.show_subscribed();
                self.reply(Reply::ok);
            }
            Err(error) => self.reply(|reply| reply.error(&error)),
        }
    }

    async fn observer(&mut self, args: &Args<'_>) -> Result<ElectionSource> {
        let known_epoch = match args.len() {
            2 => None,
            4 if args.is(2, "FROM") => {
                let epoch = parse_integer(args.at(3)).and_then(|epoch| u64::try_from(epoch).ok());
                Some(epoch.ok_or(Error::NotInteger)?)
            }
            _ => return Err(Error::Syntax),
        };
        let name = args.at(1).to_vec();
        if let Some(epoch) = known_epoch
            && let Some((from, subscription)) = self.past_of(&name, epoch).await
        {
            return Ok(ElectionSource { name, subscription, from, known_epoch, first: None, told: None });
        }
        let subscription = self.subscribe_to(&name, None).ok_or_else(|| compacted(0))?;
        // The state may be slightly ahead of the feed: what it contains already is not reported again.
        let look = |view: &View<'_>| Ok((view.applied(), leader(view, &name)?));
        let (from, present) =
            self.shared.router.read_behind_barrier(self.read_level, self.db, look).await??;
        let (first, told) = match (known_epoch, &present) {
            (None, _) => (Some(present), None),
            // The leader may have proclaimed another value since.
            (Some(epoch), Some(leader)) if leader.epoch == epoch => (Some(present), None),
            (Some(epoch), _) => return Err(compacted(epoch)),
        };
        Ok(ElectionSource { name, subscription, from, known_epoch: None, first, told })
    }

    fn subscribe_to(&self, name: &[u8], from: Option<u64>) -> Option<Subscription> {
        let filter = Filter::new(self.db, vec![name.into()], Vec::new());
        self.shared.router.feed().subscribe(filter, from, self.pushes.wake()).ok()
    }

    /// The history of an election, if it covers everything after an epoch; and the index after which it
    /// begins.
    async fn past_of(&self, name: &[u8], epoch: u64) -> Option<(u64, Subscription)> {
        let oldest = self.shared.router.feed().status().oldest_index;
        let mut look = self.subscribe_to(name, Some(oldest))?;
        loop {
            match look.find().ok()? {
                Found::Entry(entry) => {
                    if let Some(leader) = leader_after(&entry, look.filter()) {
                        let before = entry.index - 1;
                        let past = self.subscribe_to(name, Some(before))?;
                        return (leader.epoch <= epoch).then_some((before, past));
                    }
                }
                // The history may be long: let other tasks run.
                Found::NotYet => tokio::task::yield_now().await,
                Found::Nothing => return None,
            }
        }
    }

    /// ELECT.UNOBSERVE [name ...]: returns how many observations ended.
    pub(in crate::connection) fn unobserve(&mut self, names: &[&[u8]]) -> usize {
        let (db, names) = (self.db, names.iter().copied().collect::<HashSet<&[u8]>>());
        let count = self.pushes.remove_all(|source| match source {
            Source::Election(election) => {
                names.is_empty() || election.db() == db && names.contains(election.name.as_slice())
            }
            Source::Feed(_) => false,
        });
        self.show_subscribed();
        count
    }
}

pub(in crate::connection) fn unobserve(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    reply.size(connection.unobserve(args.from(1)));
    Ok(())
}

/// Whether both observe the same election: the same name in another database is a different one.
fn is_same(source: &Source, other: &ElectionSource) -> bool {
    matches!(source, Source::Election(election) if election.name == other.name && election.db() == other.db())
}

fn compacted(epoch: u64) -> Error {
    let text = format!("COMPACTED the history does not reach back to epoch {epoch}: observe without FROM");
    Error::Other(text.into())
}

fn leader(view: &View<'_>, name: &[u8]) -> Result<Option<OwnLeader>> {
    let election = view.claims(name, ClaimKind::Election)?;
    Ok(election.and_then(|election| Some(election.leader(view.now_ms)?.into())))
}

/// The leader after an entry with an event that matches the filter, which is that of one election. An entry
/// holds the writes of many clients, also to other databases.
fn leader_after(entry: &Entry, filter: &Filter) -> Option<OwnLeader> {
    let own = entry.events().filter(|event| filter.matches(event)).last()?;
    match own.content()? {
        Content::Leader(leader) => Some(leader.into()),
        Content::String(_) | Content::Object(_) => None,
    }
}

impl ElectionSource {
    /// Writes the next change.
    pub fn push(&mut self, reply: &mut Reply) -> Pushed {
        if let Some(first) = self.first.take() {
            self.tell(first, reply);
            return Pushed::Some;
        }
        loop {
            match self.subscription.next_entry() {
                Ok(None) => return Pushed::Nothing,
                Ok(Some(entry)) if entry.index <= self.from => {}
                Ok(Some(entry)) => {
                    let leader = leader_after(&entry, self.subscription.filter());
                    if self.is_known(&leader) {
                        continue;
                    }
                    self.tell(leader, reply);
                    return Pushed::Some;
                }
                Err(_) => {
                    begin(&self.name, reply);
                    reply.error(&Error::Other("COMPACTED the observer was too slow: observe again".into()));
                    return Pushed::Ended;
                }
            }
        }
    }

    fn is_known(&mut self, leader: &Option<OwnLeader>) -> bool {
        if let Some(known) = self.known_epoch {
            match leader {
                // Of the known epoch, the observer may have missed a proclaimed value.
                Some(leader) if leader.epoch >= known => self.known_epoch = None,
                _ => return true,
            }
        }
        self.told.as_ref() == Some(leader)
    }

    fn tell(&mut self, leader: Option<OwnLeader>, reply: &mut Reply) {
        begin(&self.name, reply);
        match &leader {
            Some(leader) => {
                reply.array(3);
                reply.bulk(&leader.candidate);
                reply.integer(leader.epoch as i64);
                reply.bulk_or_null(leader.value.as_deref());
            }
            None => reply.null_array(),
        }
        self.told = Some(leader);
    }

    /// Nothing is written, but the subscription keeps up with the history.
    pub fn push_quiet(&mut self, _: &mut Reply) {
        self.subscription.progress();
    }
}

/// The beginning of a message; the caller writes its third element.
fn begin(name: &[u8], reply: &mut Reply) {
    reply.push(3);
    reply.bulk(b"election");
    reply.bulk(name);
}

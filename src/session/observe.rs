//! ELECT.OBSERVE and ELECT.UNOBSERVE: who leads, at once and whenever that changes. Changes are read off the change
//! feed, so they come in the order of the log, on any node.

use super::{
    Session,
    push::{Pushed, Source},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    feed::{Entry, Filter, Found, Subscription},
    resp::Reply,
    store::{ClaimKind, Content, Leader, View},
};

/// An election that a client observes.
pub(super) struct ElectionSource {
    name: Vec<u8>,
    /// Of this key's events.
    subscription: Subscription,
    /// What entries up to this index did is known to the observer.
    from: u64,
    /// The observer knows of this epoch, and of what came before.
    known_epoch: Option<u64>,
    /// Who leads, to be told first.
    first: Option<Option<OwnLeader>>,
    /// Who leads, as the observer knows.
    told: Option<Option<OwnLeader>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnLeader {
    candidate: Vec<u8>,
    epoch: u64,
    /// None if the history has no room for it.
    value: Option<Vec<u8>>,
}

impl From<Leader<'_>> for OwnLeader {
    fn from(leader: Leader<'_>) -> OwnLeader {
        let Leader { candidate, epoch, value } = leader;
        OwnLeader { candidate: candidate.to_vec(), epoch, value: value.map(<[u8]>::to_vec) }
    }
}

impl Session {
    /// ELECT.OBSERVE name [FROM epoch].
    pub(super) async fn observe(&mut self, argv: &[&[u8]]) {
        let source = match self.barrier().await {
            Ok(()) => self.observer(&Args::new(argv)).await,
            Err(error) => Err(error),
        };
        match source {
            Ok(source) => {
                self.pushes.remove(|other| is_of(other, &source.name));
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
        if !self.shared.router.feed().is_on() {
            return Err(Error::err("the change feed is off on this node: feed-history-bytes is 0"));
        }
        if let Some(epoch) = known_epoch
            && let Some((from, subscription)) = self.past_of(&name, epoch).await
        {
            return Ok(ElectionSource { name, subscription, from, known_epoch, first: None, told: None });
        }
        let subscription = self.subscribe_to(&name, None).ok_or_else(|| compacted(0))?;
        // The state may be a moment ahead of the feed: what it has already is not told again.
        let look = |view: &View<'_>| Ok((view.applied(), leader(view, &name)?));
        let (from, present) = self.read_behind_barrier(self.read_level, look).await??;
        let (first, told) = match (known_epoch, &present) {
            (None, _) => (Some(present), None),
            // What is proclaimed may have changed.
            (Some(epoch), Some(leader)) if leader.epoch == epoch => (Some(present), None),
            (Some(epoch), _) => return Err(compacted(epoch)),
        };
        Ok(ElectionSource { name, subscription, from, known_epoch: None, first, told })
    }

    fn subscribe_to(&self, name: &[u8], from: Option<u64>) -> Option<Subscription> {
        let filter = Filter::new(self.db, vec![name.into()], Vec::new());
        self.shared.router.feed().subscribe(filter, from, self.pushes.wake()).ok()
    }

    /// The history of an election, if that shows all that came after an epoch; and the index after which it begins.
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
                // The history may be long: others get their turn.
                Found::NotYet => tokio::task::yield_now().await,
                Found::Nothing => return None,
            }
        }
    }

    /// ELECT.UNOBSERVE [name ...]: how many observations ended.
    pub(super) fn unobserve(&mut self, names: &[&[u8]]) -> usize {
        let is_meant = |source: &Source| match source {
            Source::Election(election) => names.is_empty() || names.contains(&election.name.as_slice()),
            Source::Feed(_) => false,
        };
        let mut count = 0;
        while self.pushes.remove(is_meant).is_some() {
            count += 1;
        }
        self.show_subscribed();
        count
    }
}

pub(super) fn unobserve(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(session.unobserve(args.from(1)));
    Ok(())
}

fn is_of(source: &Source, name: &[u8]) -> bool {
    matches!(source, Source::Election(election) if election.name == name)
}

fn compacted(epoch: u64) -> Error {
    let text = format!("COMPACTED the history does not reach back to epoch {epoch}: observe without FROM");
    Error::Other(text.into())
}

fn leader(view: &View<'_>, name: &[u8]) -> Result<Option<OwnLeader>> {
    let election = view.claims(name, ClaimKind::Election)?;
    Ok(election.and_then(|election| Some(election.leader(view.now_ms)?.into())))
}

/// Who leads after an entry that has an event of the election that a filter lets through. An entry holds the writes of
/// many clients, to other databases too.
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
                // Of its own epoch the observer may not know all that was proclaimed.
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

    /// An observer is not told that nothing changed, but stays within the history.
    pub fn push_quiet(&mut self, _: &mut Reply) {
        self.subscription.progress();
    }
}

/// The beginning of a message; its third part follows.
fn begin(name: &[u8], reply: &mut Reply) {
    reply.push(3);
    reply.bulk(b"election");
    reply.bulk(name);
}

//! Whoever replays the change feed with its values onto a map has the state, at every index: after random
//! commands, transactions, deadlines and flushes, also when the reader comes back again and again from the last
//! index that it was given.
//!
//! KVORUM_SEED replays one seed.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kvorum::{
    effects::Event,
    feed::{Feed, Filter, Limits, Subscription},
    machine::Machine,
    store::{Content, Hash, List, Set, SortedSet, Value, View},
};
use support::{alone::Alone, grammar::Grammar, seed};
use tokio::sync::Notify;

const COMMANDS: usize = 5_000;
const DATABASES: u32 = 16;
/// More than is ever unread here.
const LIMITS: Limits = Limits { history_bytes_max: 8 << 20, value_bytes_max: 16 << 10 };

/// A value as a reader of the feed would keep it.
#[derive(Debug, PartialEq)]
enum Kept {
    String(Vec<u8>),
    List(Vec<Vec<u8>>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
    SortedSet(Vec<(Vec<u8>, u64)>),
}

impl Kept {
    fn of_list(list: &List) -> Kept {
        Kept::List(list.iter().map(<[u8]>::to_vec).collect())
    }

    fn of_hash(hash: &Hash) -> Kept {
        Kept::Hash(hash.iter().map(|(field, value)| (field.to_vec(), value.to_vec())).collect())
    }

    fn of_set(set: &Set) -> Kept {
        Kept::Set(set.iter().map(|member| member.as_ref().to_vec()).collect())
    }

    fn of_sorted_set(set: &SortedSet) -> Kept {
        Kept::SortedSet(set.iter().map(|(member, score)| (member.to_vec(), score.to_bits())).collect())
    }

    /// What is read when the event has no value.
    fn read(view: &View<'_>, key: &[u8]) -> Option<Kept> {
        Some(match view.type_of(key)? {
            "string" => Kept::String(view.string(key).unwrap()?.to_vec()),
            "list" => Kept::of_list(view.value(key).unwrap()?),
            "hash" => Kept::of_hash(view.value(key).unwrap()?),
            "set" => Kept::of_set(view.value(key).unwrap()?),
            "zset" => Kept::of_sorted_set(view.value(key).unwrap()?),
            other => panic!("no command makes a {other}"),
        })
    }

    fn of(content: &Content<'_>) -> Kept {
        match content {
            Content::String(bytes) => Kept::String(bytes.to_vec()),
            Content::Object(Value::List(list)) => Kept::of_list(list),
            Content::Object(Value::Hash(hash)) => Kept::of_hash(hash),
            Content::Object(Value::Set(set)) => Kept::of_set(set),
            Content::Object(Value::SortedSet(set)) => Kept::of_sorted_set(set),
            Content::Object(_) | Content::Leader(_) => panic!("no command makes {content:?}"),
        }
    }
}

/// A reader of one database, with what it knows.
struct Reader {
    db: u32,
    subscription: Subscription,
    known: BTreeMap<Vec<u8>, Kept>,
}

impl Reader {
    fn new(feed: &Arc<Feed>, db: u32, from: u64) -> Reader {
        Reader { db, subscription: subscribe(feed, db, from), known: BTreeMap::new() }
    }

    /// Takes all that there is. Gives how many values it had to read itself.
    fn read(&mut self, view: &View<'_>) -> usize {
        let (mut last, mut omitted) = (self.subscription.told(), 0);
        while let Some(entry) = self.subscription.next_entry().unwrap() {
            assert!(entry.index > last, "indexes rise");
            last = entry.index;
            let db = self.db;
            for event in entry.events().filter(|event| event.db == db) {
                omitted += usize::from(self.learn(&event, view));
            }
        }
        self.subscription.progress();
        omitted
    }

    fn learn(&mut self, event: &Event<'_>, view: &View<'_>) -> bool {
        let Some(key) = event.key else {
            self.known.clear();
            return false;
        };
        let is_there = event.held.as_ref().unwrap().type_name.is_some();
        let content = event.content();
        // When several calls of an entry touch a key, a later event corrects what is read here.
        let value = match &content {
            Some(content) => Some(Kept::of(content)),
            None if is_there => Kept::read(view, key),
            None => None,
        };
        match value {
            Some(value) => self.known.insert(key.to_vec(), value),
            None => self.known.remove(key),
        };
        is_there && content.is_none()
    }

    fn check(&self, view: &View<'_>, command: &str) {
        let keys: BTreeSet<&[u8]> = view.keys().map(|record| record.key()).collect();
        let known: BTreeSet<&[u8]> = self.known.keys().map(Vec::as_slice).collect();
        assert_eq!(known, keys, "database {} after {command}", self.db);
        for (key, value) in &self.known {
            assert_eq!(Some(value), Kept::read(view, key).as_ref(), "{} after {command}", key.escape_ascii());
        }
    }
}

fn subscribe(feed: &Arc<Feed>, db: u32, from: u64) -> Subscription {
    let filter = Filter::new(db, Vec::new(), Vec::new());
    feed.subscribe(filter, Some(from), Arc::new(Notify::new())).unwrap()
}

/// What the grammar leaves out: deadlines that come, and flushes.
fn short_lived(chance: &mut fastrand::Rng, argv: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let words = |line: &str| line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    let ms = chance.u8(1..200);
    match chance.u16(..1_000) {
        0..150 => match argv.get(1) {
            Some(key) => vec!["PEXPIRE".into(), key.clone(), ms.to_string().into()],
            None => argv,
        },
        150..200 => words(&format!("SET k{} v PX {ms}", chance.u8(..9))),
        200..210 => words("SET past v PXAT 1"),
        210..220 => words(&format!("FENCE none 1 SET k{} v", chance.u8(..9))),
        220..223 => words("FLUSHDB"),
        223 => words("FLUSHALL"),
        _ => argv,
    }
}

/// Whether it is a SELECT that succeeds; `Alone` knows no other.
fn selects(argv: &[Vec<u8>]) -> bool {
    let db = argv.get(1).and_then(|db| std::str::from_utf8(db).ok()?.parse::<u32>().ok());
    db.is_some_and(|db| db < DATABASES)
}

#[test]
fn a_replayed_feed_is_the_state() {
    let seed = seed("feed_is_the_state");
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut grammar = Grammar::new(seed);
    let mut alone = Alone::default();
    let feed = Arc::new(Feed::new(LIMITS));
    alone.machine = Machine::new(DATABASES).with_listener(feed.clone());
    let mut readers: Vec<Reader> = (0..DATABASES).map(|db| Reader::new(&feed, db, 0)).collect();
    let (mut omitted, mut index, mut known_max) = (0, 0, 0);
    for number in 0..COMMANDS {
        let argv = short_lived(&mut chance, grammar.command());
        if argv[0].eq_ignore_ascii_case(b"SELECT") && !selects(&argv) {
            continue;
        }
        alone.now_ms += u64::from(chance.u8(..20));
        let slices: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
        alone.run(&slices);
        let last = feed.status().last_index;
        if last == index {
            continue;
        }
        index = last;
        let command = format!("command {number}, {}", slices.join(&b' ').escape_ascii());
        for reader in &mut readers {
            if chance.u8(..50) == 0 {
                reader.subscription = subscribe(&feed, reader.db, reader.subscription.told());
            }
            alone.machine.read(reader.db, alone.now_ms, 0, |view| {
                omitted += reader.read(view);
                reader.check(view, &command);
            });
            known_max = known_max.max(reader.known.len());
        }
    }
    let is_enough = index > COMMANDS as u64 / 4 && known_max > 10;
    assert!(is_enough, "{index} entries, at most {known_max} keys: too little happened");
    eprintln!("{index} entries; {omitted} values were too large for the history");
}

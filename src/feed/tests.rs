//! Tests of the history and its readers: what falls out, who is woken, what a reader receives and when it is
//! cut off.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Compacted, Entry, Feed, Filter, Limits, Status, Subscription};
use crate::{
    effects::{Changes, Class, Effects, Event, Listener, Replaced},
    store::{Ctx, Deadline, State},
};

const LIMITS: Limits = Limits { history_bytes_max: 4 << 10, value_bytes_max: 64 };

/// A feed, and the state whose changes it records.
struct Node {
    feed: Arc<Feed>,
    state: State,
    index: u64,
}

impl Node {
    fn new() -> Node {
        let mut state = State::new();
        state.note_touched(Some(LIMITS.value_bytes_max));
        Node { feed: Arc::new(Feed::new(LIMITS)), state, index: 0 }
    }

    /// An entry that sets each of `keys` to `value` by a separate call.
    fn set(&mut self, keys: &[&str], value: &[u8]) {
        let mut changes = self.begin();
        for key in keys {
            Ctx::new(&mut self.state, 0, 0).set(key.as_bytes(), value, Deadline::None);
            changes.take(&mut self.state, "SET", Class::GENERIC);
        }
        self.publish(changes);
    }

    fn begin(&mut self) -> Changes {
        self.index += 1;
        let mut changes = Changes::default();
        changes.begin(self.feed.wants_changes().unwrap());
        changes
    }

    fn publish(&self, changes: Changes) {
        self.feed.applied(&Effects { index: self.index, changes: Some(changes), ended: Vec::new() });
    }

    fn restart(&self, applied: u64) {
        self.feed.replaced(&Replaced { applied, outcome_of: &|_| None });
    }

    fn subscribe(&self, filter: Filter, from: Option<u64>) -> Result<Subscription, Compacted> {
        self.feed.subscribe(filter, from, Arc::new(Notify::new()))
    }
}

fn filter(keys: &[&str], prefixes: &[&str]) -> Filter {
    let boxed = |words: &[&str]| words.iter().map(|word| word.as_bytes().into()).collect();
    Filter::new(0, boxed(keys), boxed(prefixes))
}

/// The indexes and keys that a reader receives now.
fn read(subscription: &mut Subscription) -> Vec<(u64, Vec<String>)> {
    let mut found = Vec::new();
    while let Some(entry) = subscription.next_entry().unwrap() {
        let events = entry.events().filter(|event| subscription.filter().matches(event));
        let keys = events.map(|event| String::from_utf8_lossy(event.key.unwrap_or(b"*")).into_owned());
        found.push((entry.index, keys.collect()));
    }
    found
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Whether a reader was woken since the last call.
fn is_woken(subscription: &Subscription) -> bool {
    use std::{future::Future, pin::pin, task};
    let mut context = task::Context::from_waker(task::Waker::noop());
    pin!(subscription.wake.notified()).poll(&mut context).is_ready()
}

#[test]
fn a_reader_is_given_what_it_asked_for_and_woken_for_nothing_else() {
    let mut node = Node::new();
    let mut all = node.subscribe(filter(&[], &[]), None).unwrap();
    let mut some = node.subscribe(filter(&["b", "x"], &["key:", "k"]), None).unwrap();
    node.set(&["a"], b"1");
    assert!(is_woken(&all) && !is_woken(&some));
    assert_eq!(read(&mut all), [(1, words(&["a"]))]);
    node.set(&["b", "c", "key:1", "kex", "xx"], b"2");
    assert!(is_woken(&all) && is_woken(&some));
    assert_eq!(read(&mut all), [(2, words(&["b", "c", "key:1", "kex", "xx"]))]);
    assert_eq!(read(&mut some), [(2, words(&["b", "key:1", "kex"]))]);
    assert_eq!((all.progress(), some.progress()), (None, None));
    node.set(&["a"], b"3");
    assert_eq!((read(&mut some), some.told()), (Vec::new(), 2));
    assert_eq!((some.progress(), some.told(), some.progress()), (Some(3), 3, None));
    drop((all, some));
    assert_eq!(node.feed.status().readers, 0);
    node.set(&["b"], b"4");
}

#[test]
fn who_comes_back_goes_on_where_it_was() {
    let mut node = Node::new();
    for number in 0..6 {
        node.set(&["a", &format!("b{number}")], b"");
    }
    for from in 0..=6 {
        let mut reader = node.subscribe(filter(&[], &["b"]), Some(from)).unwrap();
        let expected: Vec<_> = (from..6).map(|n| (n + 1, words(&[&format!("b{n}")]))).collect();
        assert_eq!(read(&mut reader), expected);
    }
    // Subscribe after an index that is not reached yet.
    let mut early = node.subscribe(filter(&[], &[]), Some(8)).unwrap();
    for _ in 0..2 {
        node.set(&["a"], b"");
        assert_eq!((read(&mut early), early.progress()), (Vec::new(), None));
    }
    node.set(&["a"], b"");
    assert_eq!(read(&mut early), [(9, words(&["a"]))]);
}

#[test]
fn what_falls_out_of_the_history_is_never_skipped_in_silence() {
    let mut node = Node::new();
    let mut slow = node.subscribe(filter(&["a"], &[]), None).unwrap();
    let mut quiet = node.subscribe(filter(&["none"], &[]), None).unwrap();
    node.set(&["a"], b"");
    assert_eq!(read(&mut slow).len(), 1);
    for _ in 0..200 {
        node.set(&["a"], b"something");
        let status = node.feed.status();
        assert!(status.history_bytes <= LIMITS.history_bytes_max && status.last_index == node.index);
    }
    let Status { oldest_index: oldest, .. } = node.feed.status();
    assert!(oldest > 100 && oldest < node.index);
    assert_eq!(slow.next_entry().unwrap_err(), Compacted { oldest, last: 1 });
    assert_eq!(node.subscribe(filter(&[], &[]), Some(oldest - 1)).unwrap_err().oldest, oldest);
    let mut resumed = node.subscribe(filter(&[], &[]), Some(oldest)).unwrap();
    assert_eq!(read(&mut resumed).first().unwrap().0, oldest + 1);
    // Nothing happened to its key, so it missed nothing.
    assert_eq!((read(&mut quiet), quiet.progress()), (Vec::new(), Some(node.index)));
}

#[test]
fn a_quiet_reader_is_woken_before_what_it_was_told_falls_out() {
    // Include the smallest events, which cost more than their bytes.
    for value in [&b"something"[..], b""] {
        let mut node = Node::new();
        let mut quiet = node.subscribe(filter(&["none"], &[]), None).unwrap();
        for _ in 0..500 {
            node.set(&["a"], value);
            if is_woken(&quiet) {
                assert_eq!(read(&mut quiet), []);
                quiet.progress();
            }
            assert!(quiet.told() >= node.feed.status().oldest_index);
        }
    }
}

#[test]
fn an_entry_larger_than_the_history_is_told_as_missing() {
    let mut node = Node::new();
    let mut reader = node.subscribe(filter(&[], &[]), None).unwrap();
    let keys: Vec<String> = (0..200).map(|number| format!("key:{number}")).collect();
    node.set(&keys.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    assert_eq!(reader.next_entry().unwrap_err(), Compacted { oldest: 1, last: 0 });
}

#[test]
fn another_state_begins_another_history() {
    let mut node = Node::new();
    node.set(&["a"], b"");
    let mut reader = node.subscribe(filter(&[], &[]), None).unwrap();
    let mut ahead = node.subscribe(filter(&[], &[]), Some(60)).unwrap();
    node.restart(50);
    assert_eq!(reader.next_entry().unwrap_err(), Compacted { oldest: 50, last: 1 });
    assert_eq!(node.subscribe(filter(&[], &[]), None).unwrap().told(), 50);
    assert_eq!(read(&mut ahead), []);
}

#[test]
fn a_call_mentions_each_key_once_and_as_it_is_in_the_end() {
    let mut node = Node::new();
    let mut reader = node.subscribe(filter(&[], &[]), None).unwrap();
    let mut changes = node.begin();
    node.state.advance(100, 1);
    let mut ctx = Ctx::new(&mut node.state, 0, 0);
    ctx.set(b"a", b"1", Deadline::None);
    ctx.set(b"b", b"2", Deadline::At(150));
    ctx.set(b"a", &[7; 65], Deadline::None);
    changes.take(&mut node.state, "MSET", Class::GENERIC);
    node.publish(changes);
    let entry = reader.next_entry().unwrap().unwrap();
    let shown = |entry: &Entry| -> Vec<String> {
        let show = |event: Event<'_>| {
            let key = String::from_utf8_lossy(event.key.unwrap_or(b"*")).into_owned();
            let held = event.held.as_ref().and_then(|held| held.type_name);
            let value = match event.content() {
                Some(crate::store::Content::String(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                other => format!("{other:?}"),
            };
            format!("{key} {} {} {value}", event.what, held.unwrap_or("-"))
        };
        entry.events().map(show).collect()
    };
    assert_eq!(shown(&entry), ["a mset string None", "b mset string 2"]);
    // A write meets an expired key: either it is reported as expired, or it exists again.
    for (write, expected) in [(false, "b expired - None"), (true, "b set string 3")] {
        let mut changes = node.begin();
        node.state.advance(151, 1);
        let mut ctx = Ctx::new(&mut node.state, 0, 0);
        match write {
            true => ctx.set(b"b", b"3", Deadline::None),
            false => assert!(!ctx.delete(b"b")),
        }
        changes.take(&mut node.state, if write { "SET" } else { "DEL" }, Class::GENERIC);
        node.publish(changes);
        assert_eq!(shown(&reader.next_entry().unwrap().unwrap()), [expected]);
    }
    let mut changes = node.begin();
    Ctx::new(&mut node.state, 0, 0).flush_all();
    changes.take(&mut node.state, "FLUSHALL", Class::GENERIC);
    Ctx::new(&mut node.state, 0, 0).flush_all();
    changes.take(&mut node.state, "FLUSHALL", Class::GENERIC);
    node.publish(changes);
    assert_eq!(shown(&reader.next_entry().unwrap().unwrap()), ["* flushall - None"]);
}

#[test]
fn a_feed_that_is_off_records_for_who_observes_and_nothing_else() {
    let feed = Arc::new(Feed::off());
    let publish = |index: u64, changes: Option<Changes>| {
        feed.applied(&Effects { index, changes, ended: Vec::new() });
    };
    let mut state = State::new();
    state.note_touched(Some(0));
    let mut entry = |key: &[u8]| {
        Ctx::new(&mut state, 0, 0).set(key, b"v", Deadline::None);
        let mut changes = Changes::default();
        changes.take(&mut state, "SET", Class::GENERIC);
        Some(changes)
    };
    assert_eq!(feed.wants_changes(), None);
    publish(1, None);
    let mut reader = feed.subscribe(filter(&["a"], &[]), None, Arc::new(Notify::new())).unwrap();
    assert_eq!((feed.wants_changes(), reader.told()), (Some(0), 1));
    // An entry that was being applied meanwhile is not in the history.
    publish(2, None);
    publish(3, entry(b"a"));
    assert_eq!(read(&mut reader), [(3, vec!["a".to_owned()])]);
    drop(reader);
    assert_eq!(feed.wants_changes(), None);
    publish(4, None);
    let late = feed.subscribe(filter(&["a"], &[]), Some(3), Arc::new(Notify::new()));
    assert_eq!(late.unwrap_err(), Compacted { oldest: 4, last: 3 });
}

//! The change feed, from what readers received on any node, in the form of `workload/feed.rs`. Together the
//! readings make one history, by log index; what none of them covers is unknown, and writes there are not
//! judged.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::Judgement;
use crate::history::Operation;

/// The prefix of readers that see everything.
const ALL: &str = "feed:";
const READINGS: &[&str] = &["watch", "replay"];
const WRITES: &[&str] = &["set", "push", "txn", "del"];

/// An event is `[key, what, type, value]`.
type Events<'a> = Vec<&'a Value>;

/// What one reader received in one session.
struct Reading<'a> {
    operation: &'a Operation,
    prefix: &'a str,
    /// It received everything after this index ...
    begin: u64,
    /// ... up to this one.
    until: u64,
    messages: Vec<(u64, Events<'a>)>,
}

impl<'a> Reading<'a> {
    fn of(operation: &'a Operation) -> Option<Reading<'a>> {
        let output = &operation.output;
        let messages = output["messages"].as_array().into_iter().flatten();
        let messages = messages.filter_map(|message| {
            let events = message[1].as_array().into_iter().flatten().collect();
            Some((message[0].as_u64()?, events))
        });
        Some(Reading {
            operation,
            prefix: output["prefix"].as_str()?,
            begin: output["begin"].as_u64()?,
            until: output["until"].as_u64()?,
            messages: messages.collect(),
        })
    }

    fn sees_all(&self) -> bool {
        self.prefix == ALL
    }

    fn matches(&self, event: &Value) -> bool {
        event[0].as_str().is_some_and(|key| key.starts_with(self.prefix))
    }
}

struct Feed<'a> {
    readings: Vec<Reading<'a>>,
    /// All events by index, and the operation that saw them first.
    all: BTreeMap<u64, (Events<'a>, &'a Operation)>,
    /// The ranges of the log that readers of everything received, `(begin, until]`, disjoint and in order.
    covered: Vec<(u64, u64)>,
    operations: &'a [Operation],
}

/// Judges all readings and what they show of the writes.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let readings = operations.iter().filter(|it| READINGS.contains(&it.f.as_str()) && it.is_ok());
    let readings: Vec<Reading<'_>> = readings.filter_map(Reading::of).collect();
    let mut all: BTreeMap<u64, (Events<'_>, &Operation)> = BTreeMap::new();
    for reading in readings.iter().filter(|reading| reading.sees_all()) {
        for (index, events) in reading.messages.iter().filter(|(_, events)| !events.is_empty()) {
            all.entry(*index).or_insert_with(|| (events.clone(), reading.operation));
        }
    }
    let covered = union(readings.iter().filter(|it| it.sees_all()).map(|it| (it.begin, it.until)).collect());
    let feed = Feed { readings, all, covered, operations };
    let mut judgement = Judgement::default();
    for reading in &feed.readings {
        feed.look_at_the_order(reading, &mut judgement);
        feed.compare(reading, &mut judgement);
    }
    feed.look_at_writes(&mut judgement);
    feed.look_at_transactions(&mut judgement);
    feed.look_at_the_end(&mut judgement);
    judgement
}

fn union(mut stretches: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    stretches.sort_unstable();
    let mut union: Vec<(u64, u64)> = Vec::new();
    for (begin, until) in stretches {
        match union.last_mut().filter(|last| begin <= last.1) {
            Some(last) => last.1 = last.1.max(until),
            None => union.push((begin, until)),
        }
    }
    union
}

/// The value that an event wrote: that of SET, or the last element after RPUSH.
fn written(event: &Value) -> Option<i64> {
    let value = match event[1].as_str()? {
        "set" => &event[3],
        "rpush" => event[3].as_array()?.last()?,
        _ => return None,
    };
    value.as_str()?.parse().ok()
}

fn keys(write: &Operation) -> impl Iterator<Item = &str> {
    write.input["keys"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

impl<'a> Feed<'a> {
    fn is_covered(&self, begin: u64, until: u64) -> bool {
        self.covered.iter().any(|covered| covered.0 <= begin && until <= covered.1)
    }

    fn writes(&self) -> impl Iterator<Item = &'a Operation> {
        self.operations.iter().filter(|it| WRITES.contains(&it.f.as_str()))
    }

    /// It resumes where it was asked to, and indexes ascend.
    fn look_at_the_order(&self, reading: &Reading<'_>, judgement: &mut Judgement) {
        let start = reading.operation.start;
        if let Some(from) = reading.operation.output["from"].as_u64().filter(|from| *from != reading.begin) {
            let anomaly = if from < reading.begin { "feed gap" } else { "feed duplicate" };
            let detail = format!(
                "a reader asked for what comes after {from}, and was given what comes after {}",
                reading.begin
            );
            judgement.found(anomaly, detail, &[start]);
        }
        let mut last = reading.begin;
        for (position, (index, _)) in reading.messages.iter().enumerate() {
            if *index <= last {
                let was_given = reading.messages[..position].iter().any(|(other, _)| other == index);
                let is_repeated = was_given || *index <= reading.begin;
                let anomaly = if is_repeated { "feed duplicate" } else { "feed reordered" };
                judgement.found(anomaly, format!("index {index} was told after {last}"), &[start]);
            }
            last = last.max(*index);
        }
    }

    /// It received the same as all others, completely.
    fn compare(&self, reading: &Reading<'_>, judgement: &mut Judgement) {
        let start = reading.operation.start;
        let own: BTreeMap<u64, &Events<'_>> =
            reading.messages.iter().map(|(index, events)| (*index, events)).collect();
        if reading.until > reading.begin {
            for (index, (events, by)) in self.all.range(reading.begin + 1..=reading.until) {
                let wanted: Events<'_> = events.iter().filter(|it| reading.matches(it)).copied().collect();
                if wanted.is_empty() {
                    continue;
                }
                match own.get(index) {
                    None => {
                        let node = reading.operation.node.unwrap_or_default();
                        let detail = format!("index {index}, {wanted:?}, was not told by node {node}");
                        judgement.found("feed gap", detail, &[start, by.start]);
                    }
                    Some(events) if **events != wanted => {
                        let detail = format!("index {index} is {wanted:?} and {events:?}");
                        judgement.found("feed divergence", detail, &[start, by.start]);
                    }
                    Some(_) => {}
                }
            }
        }
        for (index, events) in own.iter().filter(|(_, events)| !events.is_empty()) {
            let is_known = self.all.contains_key(index) || !self.is_covered(index - 1, *index);
            let is_alien = events.iter().any(|event| !reading.matches(event));
            if !is_known || is_alien {
                let detail = format!("index {index} is {events:?} for a reader of {} only", reading.prefix);
                judgement.found("feed divergence", detail, &[start]);
            }
        }
    }

    /// Each acknowledged write is there once, within its tokens; no failed write is there.
    fn look_at_writes(&self, judgement: &mut Judgement) {
        let mut places: BTreeMap<(&str, i64), Vec<(u64, usize)>> = BTreeMap::new();
        for (index, (events, by)) in &self.all {
            for event in events {
                let written = event[0].as_str().zip(written(event));
                written.into_iter().for_each(|key| places.entry(key).or_default().push((*index, by.start)));
            }
        }
        let mut writers: HashMap<(&str, i64), &Operation> = HashMap::new();
        let (mut judged, mut acknowledged) = (0, 0);
        for write in self.writes().filter(|write| write.f != "del") {
            let Some(element) = write.input["element"].as_i64() else { continue };
            let span = write.output["span"][0].as_u64().zip(write.output["span"][1].as_u64());
            for key in keys(write) {
                writers.insert((key, element), write);
                acknowledged += usize::from(write.is_ok());
                let Some(place) = places.get(&(key, element)) else {
                    if let Some((before, after)) =
                        span.filter(|(before, after)| write.is_ok() && self.is_covered(*before, *after))
                    {
                        judged += 1;
                        let detail =
                            format!("{key} {element} is not in the feed between {before} and {after}");
                        judgement.found("lost write", detail, &[write.start]);
                    }
                    continue;
                };
                judged += usize::from(write.is_ok());
                let (index, seen) = place[0];
                if let Some((before, after)) =
                    span.filter(|(before, after)| index <= *before || index > *after)
                {
                    let detail = format!("{key} {element} is at {index}, not between {before} and {after}");
                    judgement.found("feed reordered", detail, &[write.start, seen]);
                }
            }
        }
        for ((key, element), places) in &places {
            let seen = places[0].1;
            match writers.get(&(*key, *element)) {
                None => judgement.found("phantom event", format!("nobody wrote {key} {element}"), &[seen]),
                Some(write) if !write.may_have_happened() => {
                    let detail = format!("{key} {element} is in the feed, but writing it failed");
                    judgement.found("G1a (aborted read)", detail, &[seen, write.start]);
                }
                Some(write) if places.len() > 1 => {
                    let indexes: Vec<u64> = places.iter().map(|place| place.0).collect();
                    let detail = format!("{key} {element} is in the feed at {indexes:?}");
                    judgement.found("feed duplicate", detail, &[seen, write.start]);
                }
                Some(_) => {}
            }
        }
        if judged * 2 < acknowledged || judged == 0 {
            let missing =
                format!("of {acknowledged} acknowledged writes {judged} fall into what readers were given");
            judgement.missing.push(missing);
        }
    }

    fn look_at_transactions(&self, judgement: &mut Judgement) {
        let transactions = self.writes().filter(|write| write.f == "txn");
        let transactions: HashMap<i64, &Operation> =
            transactions.filter_map(|write| Some((write.input["element"].as_i64()?, write))).collect();
        for (index, (events, by)) in &self.all {
            for event in events {
                let Some(write) = written(event).and_then(|element| transactions.get(&element)) else {
                    continue;
                };
                let is_there = |key: &str| {
                    events.iter().any(|other| other[0] == key && written(other) == written(event))
                };
                if let Some(key) = keys(write).find(|key| !is_there(key)) {
                    let detail = format!("the transaction at {index} has no event of {key}");
                    judgement.found("torn transaction", detail, &[by.start, write.start]);
                }
            }
        }
    }

    /// The last event of a key matches what is read at the end.
    fn look_at_the_end(&self, judgement: &mut Judgement) {
        let ends = self.writes().map(|write| if write.end == usize::MAX { write.start } else { write.end });
        let Some(over) = ends.max() else { return };
        let Some((begin, until)) = self.covered.last().copied() else { return };
        let mut last: HashMap<&str, (u64, &Value)> = HashMap::new();
        for (index, (events, _)) in self.all.range(begin + 1..=until.max(begin + 1)) {
            let events = events.iter().filter_map(|event| Some((event[0].as_str()?, (*index, *event))));
            last.extend(events);
        }
        let reads = self.operations.iter().filter(|it| it.f == "read" && it.is_ok() && it.start > over);
        for read in reads {
            let Some((index, event)) = keys(read).next().and_then(|key| last.get(key)) else { continue };
            let is_gone = event[2].is_null();
            let found = &read.output["value"];
            let is_same = match found {
                Value::Array(elements) if elements.is_empty() => is_gone,
                // A value that was not kept cannot be compared.
                _ => *found == event[3] || event[3].is_null() && !is_gone,
            };
            if !is_same {
                let detail = format!("{event} at {index} is the last event, and {found} is read");
                judgement.found("replay differs", detail, &[read.start]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::{
        Kind::{self, Fail, Info, Invoke, Ok},
        operations,
        tests::history,
    };

    type Lines = Vec<(i64, Kind, &'static str, Value)>;

    fn write(kind: Kind, f: &'static str, keys: &[&str], element: i64, span: [u64; 2]) -> Lines {
        let input = json!({"keys": keys, "element": element});
        let mut output = input.clone();
        output["span"] = json!(span);
        vec![(1, Invoke, f, input), (1, kind, f, output)]
    }

    fn set(kind: Kind, element: i64, span: [u64; 2]) -> Lines {
        write(kind, "set", &["feed:string:1"], element, span)
    }

    fn event(element: i64) -> Value {
        json!(["feed:string:1", "set", "string", element.to_string()])
    }

    fn watch_of(prefix: &str, from: u64, begin: u64, until: u64, messages: Value) -> Lines {
        let input = json!({"prefix": prefix, "from": from});
        let mut output = input.clone();
        output["begin"] = json!(begin);
        output["until"] = json!(until);
        output["messages"] = messages;
        vec![(2, Invoke, "watch", input), (2, Ok, "watch", output)]
    }

    fn watch(from: u64, until: u64, messages: Value) -> Lines {
        watch_of(ALL, from, from, until, messages)
    }

    fn read(value: Value) -> Lines {
        let input = json!({"keys": ["feed:string:1"]});
        let output = json!({"keys": ["feed:string:1"], "value": value});
        vec![(3, Invoke, "read", input), (3, Ok, "read", output)]
    }

    fn judge(parts: &[Lines]) -> Judgement {
        check(&operations(&history(&parts.concat())))
    }

    #[test]
    fn readers_go_on_where_they_were() {
        let both = ["feed:string:1", "feed:string:2"];
        let other = json!(["feed:string:2", "set", "string", "2"]);
        let push = json!(["feed:list:1", "rpush", "list", ["3"]]);
        let good = [
            set(Ok, 1, [4, 6]),
            write(Ok, "txn", &both, 2, [5, 9]),
            write(Ok, "push", &["feed:list:1"], 3, [9, 10]),
            set(Fail, 4, [10, 10]),
            set(Info, 5, [10, 11]),
            set(Ok, 6, [20, 30]),
            write(Ok, "del", &["feed:string:1"], 7, [40, 40]),
            watch(3, 7, json!([[5, [event(1)]], [7, []]])),
            watch(5, 10, json!([[8, [event(2), other.clone()]], [10, [push.clone()]]])),
            watch_of("feed:string:", 3, 3, 10, json!([[5, [event(1)]], [8, [event(2), other]]])),
            // A part of the history that no reader covers.
            watch(35, 50, json!([[41, [["feed:string:1", "del", null, null]]]])),
            read(json!(null)),
        ];
        let judgement = judge(&good);
        assert_eq!((judgement.findings, judgement.missing), (vec![], vec![]));
        assert_eq!(judge(&[set(Ok, 1, [4, 6])]).missing.len(), 1);
    }

    #[test]
    fn each_anomaly_is_found_and_named() {
        let one = || set(Ok, 1, [4, 6]);
        let two = || set(Ok, 2, [6, 8]);
        let first = || watch(4, 6, json!([[5, [event(1)]]]));
        let both = || watch(4, 8, json!([[5, [event(1)]], [7, [event(2)]]]));
        let strings = |messages: Value| watch_of("feed:string:", 4, 4, 8, messages);
        let txn = || write(Ok, "txn", &["feed:string:1", "feed:string:2"], 1, [4, 6]);
        for (name, parts) in [
            ("feed gap", vec![one(), two(), both(), watch(4, 8, json!([[7, [event(2)]]]))]),
            ("feed gap", vec![one(), two(), both(), strings(json!([[7, [event(2)]]]))]),
            ("feed gap", vec![one(), first(), watch_of(ALL, 4, 6, 6, json!([]))]),
            ("feed duplicate", vec![one(), first(), watch(5, 6, json!([[5, [event(1)]]]))]),
            ("feed duplicate", vec![one(), watch(4, 6, json!([[5, [event(1)]], [5, [event(1)]]]))]),
            ("feed duplicate", vec![one(), watch(4, 6, json!([[5, [event(1)]], [6, [event(1)]]]))]),
            ("feed duplicate", vec![one(), first(), watch_of(ALL, 5, 4, 6, json!([[5, [event(1)]]]))]),
            ("feed reordered", vec![one(), two(), watch(4, 8, json!([[7, [event(2)]], [5, [event(1)]]]))]),
            ("feed reordered", vec![one(), watch(4, 8, json!([[7, [event(1)]]]))]),
            (
                "feed divergence",
                vec![one(), set(Info, 2, [0, 0]), first(), watch(4, 6, json!([[5, [event(2)]]]))],
            ),
            (
                "feed divergence",
                vec![
                    one(),
                    two(),
                    watch(4, 8, json!([[5, [event(1)]]])),
                    strings(json!([[5, [event(1)]], [7, [event(2)]]])),
                ],
            ),
            ("lost write", vec![one(), watch(4, 6, json!([]))]),
            ("G1a (aborted read)", vec![set(Fail, 1, [4, 6]), first()]),
            ("phantom event", vec![first()]),
            ("torn transaction", vec![txn(), first()]),
            ("replay differs", vec![one(), first(), read(json!("9"))]),
            ("replay differs", vec![one(), first(), read(json!(null))]),
        ] {
            let judgement = judge(&parts);
            assert!(judgement.names().contains(name), "{name}: {:?} in {parts:?}", judgement.names());
        }
    }
}

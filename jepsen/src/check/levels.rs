//! Reads of growing lists, each at its own level. All reads of a list are prefixes of one order, so what a
//! read must not miss is a length: that of the longest prefix promised to it.
//!
//! - `read-linearizable`, `read-lease`: everything known to any client when it began.
//! - `read-bounded`: everything acknowledged more than `ms` before it began.
//! - `read-after`: everything known where its token, or one with a lower index, was taken.
//! - every read: everything that its own connection has read or written.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{Judgement, by_key};
use crate::history::Operation;

/// All kinds of reads.
const READS: &[&str] = &["read-linearizable", "read-lease", "read-bounded", "read-stale", "read-after"];

/// Judges every key.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    for read in READS.iter().filter(|read| !operations.iter().any(|operation| operation.f == **read)) {
        judgement.missing.push(format!("no {read} was asked for"));
    }
    for (key, operations) in &by_key(operations, "key") {
        List::new(key, operations).check(&mut judgement);
    }
    judgement
}

fn is_append(operation: &Operation) -> bool {
    operation.f == "append"
}

fn elements(read: &Operation) -> Vec<i64> {
    read.output["list"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

/// The log index of a token; tokens of one cluster differ in nothing else.
fn index(token: &Value) -> Option<u64> {
    token.as_str()?.rsplit_once('-')?.1.parse().ok()
}

/// A proof that the list had at least this length.
struct Fact<'a> {
    operation: &'a Operation,
    length: usize,
}

struct List<'a> {
    key: &'a str,
    appends: HashMap<i64, &'a Operation>,
    reads: Vec<(&'a Operation, Vec<i64>)>,
    order: Vec<i64>,
}

impl<'a> List<'a> {
    fn new(key: &'a str, operations: &[&'a Operation]) -> List<'a> {
        let appends = operations.iter().filter(|operation| is_append(operation));
        let appends = appends.filter_map(|append| Some((append.input["element"].as_i64()?, *append)));
        let reads = operations.iter().filter(|operation| !is_append(operation) && operation.is_ok());
        let reads: Vec<_> = reads.map(|read| (*read, elements(read))).collect();
        let order = reads.iter().map(|(_, list)| list).max_by_key(|list| list.len()).cloned();
        List { key, appends: appends.collect(), reads, order: order.unwrap_or_default() }
    }

    fn check(&self, judgement: &mut Judgement) {
        let before = judgement.findings.len();
        self.look_inside(judgement);
        self.look_for_lost(judgement);
        // Lengths are meaningful only if all reads agree on one order without duplicates.
        if judgement.findings.len() == before {
            self.look_at_the_order(judgement);
        }
        if judgement.findings.len() == before {
            self.look_for_old_reads(judgement);
        }
    }

    fn look_inside(&self, judgement: &mut Judgement) {
        let key = self.key;
        for (read, list) in &self.reads {
            let mut seen = HashSet::new();
            for element in list {
                if !seen.insert(element) {
                    let detail = format!("key {key}: {element} is there twice");
                    judgement.found("duplicate append", detail, &[read.start]);
                }
                match self.appends.get(element) {
                    None => {
                        let detail = format!("key {key}: nobody appended {element}");
                        judgement.found("phantom value", detail, &[read.start]);
                    }
                    Some(append) if append.start > read.end => {
                        let detail = format!("key {key}: {element} was read before it was appended");
                        judgement.found("phantom value", detail, &[read.start, append.start]);
                    }
                    Some(append) if !append.may_have_happened() => {
                        let detail = format!("key {key}: {element} is there, but appending it failed");
                        judgement.found("G1a (aborted read)", detail, &[read.start, append.start]);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn look_at_the_order(&self, judgement: &mut Judgement) {
        let key = self.key;
        for (read, list) in self.reads.iter().filter(|(_, list)| !self.order.starts_with(list)) {
            let detail = format!("key {key} is {list:?} and {:?}", self.order);
            judgement.found("incompatible order", detail, &[read.start]);
        }
        let appends: Vec<&Operation> =
            self.order.iter().filter_map(|element| self.appends.get(element).copied()).collect();
        let mut latest: Option<&Operation> = None;
        for (place, append) in appends.into_iter().enumerate() {
            if let Some(other) = latest.filter(|other| append.end < other.start) {
                let (first, second) = (&append.input["element"], &other.input["element"]);
                let detail = format!("key {key}: {first} was appended before {second}, and comes after it");
                judgement.found("reordered write", detail, &[append.start, other.start]);
            }
            if append.is_ok() && append.output["length"] != place + 1 {
                let (element, length) = (&append.input["element"], &append.output["length"]);
                let detail =
                    format!("key {key}: appending {element} gave {length}, and it is number {}", place + 1);
                judgement.found("incompatible order", detail, &[append.start]);
            }
            latest = latest.filter(|other| other.start > append.start).or(Some(append));
        }
    }

    fn look_for_lost(&self, judgement: &mut Judgement) {
        let seen: HashSet<&i64> = self.order.iter().collect();
        for (element, append) in
            self.appends.iter().filter(|(element, append)| append.is_ok() && !seen.contains(element))
        {
            let mut reads = self.reads.iter().map(|(read, _)| read);
            let missed = reads.find(|read| is_strict(read) && append.end < read.start);
            if let Some(read) = missed {
                let detail = format!("key {}: {element} was acknowledged and is nowhere", self.key);
                judgement.found("lost write", detail, &[append.start, read.start]);
            }
        }
    }

    fn facts(&self) -> Vec<Fact<'a>> {
        let place = |element: i64| self.order.iter().position(|other| *other == element);
        let appends = self.appends.iter().filter(|(_, append)| append.is_ok());
        let appends = appends
            .filter_map(|(element, append)| Some(Fact { operation: append, length: place(*element)? + 1 }));
        let reads = self.reads.iter().map(|(read, list)| Fact { operation: read, length: list.len() });
        appends.chain(reads).collect()
    }

    fn look_for_old_reads(&self, judgement: &mut Judgement) {
        let facts = self.facts();
        for (read, list) in &self.reads {
            let missed = facts.iter().filter(|fact| fact.length > list.len());
            let broken = missed.filter_map(|fact| Some((broken(read, fact.operation)?, fact)));
            // One for each promise: the one with the greatest length.
            let mut worst: BTreeMap<&str, &Fact<'_>> = BTreeMap::new();
            for (anomaly, fact) in broken {
                let known = worst.entry(anomaly).or_insert(fact);
                if fact.length > known.length {
                    *known = fact;
                }
            }
            for (anomaly, fact) in worst {
                let detail = format!(
                    "key {}: {} on node {} gave {} elements, where {} had at least {}",
                    self.key,
                    read.f,
                    read.node.unwrap_or_default(),
                    list.len(),
                    fact.operation.f,
                    fact.length
                );
                judgement.found(anomaly, detail, &[read.start, fact.operation.start]);
            }
        }
    }
}

fn is_strict(read: &Operation) -> bool {
    matches!(read.f.as_str(), "read-linearizable" | "read-lease")
}

/// The promise that a read breaks by missing what `other` knew.
fn broken(read: &Operation, other: &Operation) -> Option<&'static str> {
    let is_before = other.end < read.start;
    let is_own = read.output["connection"] == other.output["connection"];
    if is_before && is_strict(read) {
        return Some("stale read");
    }
    if is_before && is_own {
        return Some(if is_append(other) { "own write missed" } else { "non-monotonic read" });
    }
    if let Some(ms) = read.input["ms"].as_u64()
        && is_append(other)
        && other.end_ns + ms * 1_000_000 < read.start_ns
    {
        return Some("bound broken");
    }
    let (after, taken) = (index(&read.input["after"])?, index(&other.output["token"])?);
    match taken <= after {
        true if is_append(other) => Some("token not honoured"),
        true => Some("non-monotonic read"),
        false => None,
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

    fn append(kind: Kind, element: i64, length: i64, connection: i64, index: i64) -> Lines {
        let input = json!({"key": 1, "element": element});
        let mut output = input.clone();
        output["length"] = json!(length);
        output["connection"] = json!(connection);
        output["token"] = json!(format!("abc-{index}"));
        vec![(1, Invoke, "append", input), (1, kind, "append", output)]
    }

    fn read(f: &'static str, extra: Value, list: &[i64], connection: i64, index: i64) -> Lines {
        let mut input = extra;
        input["key"] = json!(1);
        let mut output = input.clone();
        output["list"] = json!(list);
        output["connection"] = json!(connection);
        output["token"] = json!(format!("abc-{index}"));
        vec![(2, Invoke, f, input), (2, Ok, f, output)]
    }

    fn strict(list: &[i64]) -> Lines {
        read("read-linearizable", json!({}), list, 99, 1_000)
    }

    fn stale(list: &[i64], connection: i64, index: i64) -> Lines {
        read("read-stale", json!({}), list, connection, index)
    }

    fn after(token: &str, list: &[i64], connection: i64) -> Lines {
        read("read-after", json!({"after": token}), list, connection, 0)
    }

    fn names(parts: &[Lines]) -> Vec<String> {
        let judgement = check(&operations(&history(&parts.concat())));
        judgement.names().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn old_reads_are_allowed_where_nothing_else_was_promised() {
        let (one, two) = (append(Ok, 1, 1, 10, 5), append(Ok, 2, 2, 10, 6));
        let good = [
            one,
            two,
            stale(&[], 11, 0),
            stale(&[1], 11, 5),
            stale(&[1, 2], 11, 6),
            read("read-bounded", json!({"ms": 200}), &[], 12, 0),
            after("abc-5", &[1], 13),
            append(Info, 3, 3, 14, 7),
            append(Fail, 4, 3, 14, 7),
            read("read-lease", json!({}), &[1, 2], 15, 7),
            strict(&[1, 2, 3]),
        ];
        assert_eq!(names(&good), [""; 0]);
    }

    #[test]
    fn each_anomaly_is_found_and_named() {
        let (one, two) = (append(Ok, 1, 1, 10, 5), append(Ok, 2, 2, 10, 6));
        let both = [one.clone(), two.clone()].concat();
        let bounded = |list: &[i64]| read("read-bounded", json!({"ms": 1}), list, 12, 0);
        let pause = || strict(&[1, 2]);
        let lease = |list: &[i64]| read("read-lease", json!({}), list, 12, 0);
        let unknown = append(Info, 3, 3, 14, 7);
        for (name, parts) in [
            ("stale read", vec![both.clone(), strict(&[1]), strict(&[1, 2])]),
            ("stale read", vec![both.clone(), lease(&[1]), strict(&[1, 2])]),
            ("stale read", vec![unknown.clone(), stale(&[3], 11, 0), strict(&[]), strict(&[3])]),
            ("lost write", vec![both.clone(), strict(&[1])]),
            ("bound broken", vec![both.clone(), pause(), bounded(&[1])]),
            ("own write missed", vec![both.clone(), stale(&[1], 10, 0), strict(&[1, 2])]),
            ("non-monotonic read", vec![both.clone(), stale(&[1, 2], 11, 0), stale(&[1], 11, 0)]),
            ("token not honoured", vec![both.clone(), after("abc-6", &[1], 11), strict(&[1, 2])]),
            ("non-monotonic read", vec![unknown.clone(), stale(&[3], 11, 8), after("abc-8", &[], 12)]),
            ("G1a (aborted read)", vec![append(Fail, 1, 1, 10, 5), stale(&[1], 11, 0)]),
            ("phantom value", vec![one.clone(), stale(&[1, 7], 11, 0)]),
            ("phantom value", vec![stale(&[1], 11, 0), one.clone()]),
            ("duplicate append", vec![one.clone(), stale(&[1, 1], 11, 0)]),
            ("incompatible order", vec![one.clone(), unknown, stale(&[1, 3], 11, 0), stale(&[3], 12, 0)]),
            ("reordered write", vec![append(Ok, 1, 2, 10, 5), append(Ok, 2, 1, 10, 6), strict(&[2, 1])]),
        ] {
            assert_eq!(names(&parts), [name], "{parts:?}");
        }
    }

    #[test]
    fn a_level_that_nobody_asked_for_is_missing() {
        let judgement = check(&operations(&history(&strict(&[]))));
        assert_eq!(judgement.missing.len(), READS.len() - 1, "{:?}", judgement.missing);
    }
}

//! Who holds what, from grants, renewals and releases (`acquire`, `renew`, `release`), and who writes with
//! FENCE (`write`, `read`). The form is that of `workload/holds.rs`.
//!
//! A grant certainly holds from when its reply was received until its TTL, counted from the request, has
//! passed, or until a release begins. The server may let it hold longer, never shorter.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Judgement, by_key, rising};
use crate::history::Operation;

/// How much shorter a hold may be: the slew of the log clock, and its steps of a millisecond.
const EARLY_MS: u64 = 20;
/// Errors for clients that do not hold.
const REFUSALS: &[&str] = &["FENCED", "NOTHELD", "NOTOWNER", "OLDTOKEN"];

/// An acknowledged grant, with the later operations on it.
pub(super) struct Grant<'a> {
    pub(super) operation: &'a Operation,
    renewals: Vec<&'a Operation>,
    releases: Vec<&'a Operation>,
}

impl Grant<'_> {
    fn token(&self) -> i64 {
        self.operation.output["token"].as_i64().unwrap_or_default()
    }

    /// The earliest end of the hold, as known at `operation`: its time may have been set last by any
    /// operation that is not certainly followed by another.
    fn until_ns(&self, operation: &Operation) -> u64 {
        let spans = [self.operation].into_iter().chain(self.renewals.iter().copied());
        let spans: Vec<&Operation> = spans.filter(|span| span.start < operation.end).collect();
        let is_followed = |span: &&&Operation| {
            let mut others = spans.iter().filter(|other| other.is_ok() && other.end < operation.start);
            others.any(|other| span.end < other.start)
        };
        let last = spans.iter().filter(|span| !is_followed(span));
        let ends = last.map(|span| span.start_ns + span.input["ttl_ms"].as_u64().unwrap_or(0) * 1_000_000);
        ends.min().unwrap_or(0)
    }

    /// Whether it was certainly held during all of the other operation.
    pub(super) fn holds_during(&self, other: &Operation) -> bool {
        self.operation.end < other.start
            && other.end_ns + EARLY_MS * 1_000_000 < self.until_ns(other)
            && self.releases.iter().all(|release| other.end < release.start)
    }
}

/// All acknowledged grants of one key.
pub(super) fn grants<'a>(operations: &[&'a Operation]) -> Vec<Grant<'a>> {
    let acquired = operations.iter().filter(|operation| operation.f == "acquire" && operation.is_ok());
    let grants = acquired.map(|operation| {
        let token = &operation.output["token"];
        let about = |f: &'static str| {
            let may_have_happened = |it: &&&Operation| it.f == f && it.may_have_happened();
            let all = operations.iter().filter(may_have_happened);
            all.filter(|it| it.input["token"] == *token).copied().collect::<Vec<_>>()
        };
        Grant { operation, renewals: about("renew"), releases: about("release") }
    });
    grants.collect()
}

/// Judges every key, and all tokens together.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    let acquired = operations.iter().filter(|operation| operation.f == "acquire" && operation.is_ok());
    let tokens = acquired.filter_map(|grant| Some((grant.output["token"].as_i64()?, grant)));
    rising::check("acquire", "duplicate token", tokens, &mut judgement);
    for (key, operations) in by_key(operations, "key") {
        let grants = grants(&operations);
        look_for_two_holders(&key, &operations, &grants, &mut judgement);
        look_at_writes(&key, &operations, &grants, &mut judgement);
        look_at_the_list(&key, &operations, &mut judgement);
    }
    judgement
}

fn look_for_two_holders(
    key: &str,
    operations: &[&Operation],
    grants: &[Grant<'_>],
    judgement: &mut Judgement,
) {
    for grant in grants {
        let (token, start) = (grant.token(), grant.operation.start);
        for other in grants.iter().filter(|other| other.token() != token) {
            if grant.holds_during(other.operation) {
                let detail = format!("key {key}: {token} holds, and {} was granted", other.token());
                judgement.found("two holders at once", detail, &[start, other.operation.start]);
            }
        }
        for own in operations.iter().filter(|own| own.input["token"] == token) {
            let error = own.error.as_deref().unwrap_or_default();
            let is_refused = REFUSALS.iter().any(|refusal| error.starts_with(refusal));
            if is_refused && grant.holds_during(own) {
                let detail = format!("key {key}: {token} holds, and its {} was refused: {error}", own.f);
                judgement.found("hold ended early", detail, &[start, own.start]);
            }
        }
    }
}

/// No operation reserved to the holder succeeds after a newer token was known.
fn look_at_writes(key: &str, operations: &[&Operation], grants: &[Grant<'_>], judgement: &mut Judgement) {
    let is_done =
        |it: &&&Operation| matches!(it.f.as_str(), "write" | "renew" | "release" | "proclaim") && it.is_ok();
    for done in operations.iter().filter(is_done) {
        let token = done.input["token"].as_i64().unwrap_or_default();
        let newer = grants.iter().find(|grant| grant.token() > token && grant.operation.end < done.start);
        if let Some(newer) = newer {
            let anomaly = if done.f == "write" { "former holder wrote" } else { "two holders at once" };
            let detail = format!("key {key}: {} by {token} after {} was granted", done.f, newer.token());
            judgement.found(anomaly, detail, &[done.start, newer.operation.start]);
        }
    }
}

fn look_at_the_list(key: &str, operations: &[&Operation], judgement: &mut Judgement) {
    let writes = operations.iter().filter(|operation| operation.f == "write");
    let writes: HashMap<i64, &Operation> =
        writes.filter_map(|write| Some((write.input["element"].as_i64()?, *write))).collect();
    let token = |element: &i64| writes.get(element).and_then(|write| write.input["token"].as_i64());
    for read in operations.iter().filter(|operation| operation.f == "read" && operation.is_ok()) {
        let list = read.output["list"].as_array().into_iter().flatten();
        let list: Vec<i64> = list.filter_map(Value::as_i64).collect();
        let mut seen = HashSet::new();
        for element in &list {
            if !seen.insert(*element) {
                let detail = format!("key {key}: {element} is there twice");
                judgement.found("duplicate append", detail, &[read.start]);
            }
            match writes.get(element) {
                None => judgement.found(
                    "phantom value",
                    format!("key {key}: nobody wrote {element}"),
                    &[read.start],
                ),
                Some(write) if !write.may_have_happened() => {
                    let detail = format!("key {key}: {element} is there, but writing it failed");
                    judgement.found("G1a (aborted read)", detail, &[read.start, write.start]);
                }
                Some(_) => {}
            }
        }
        if let Some(pair) = list.windows(2).find(|pair| token(&pair[0]) > token(&pair[1])) {
            let detail = format!("key {key}: {} was written after {}, by an older token", pair[1], pair[0]);
            judgement.found("former holder wrote", detail, &[read.start]);
        }
        let is_missing = |(element, write): &(&i64, &&Operation)| {
            write.is_ok() && write.end < read.start && !seen.contains(element)
        };
        if let Some((element, write)) = writes.iter().find(is_missing) {
            let detail = format!("key {key}: {element} was acknowledged and is not there");
            judgement.found("lost write", detail, &[write.start, read.start]);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::{
        Kind::{self, Fail, Invoke, Ok},
        operations,
        tests::history,
    };

    pub(crate) type Lines = Vec<(i64, Kind, &'static str, Value)>;

    /// An operation that takes a millisecond.
    pub(crate) fn done(kind: Kind, f: &'static str, input: Value, name: &str, result: Value) -> Lines {
        let mut output = input.clone();
        output[name] = result;
        vec![(1, Invoke, f, input), (1, kind, f, output)]
    }

    pub(crate) fn acquire(kind: Kind, owner: i64, token: i64, ttl_ms: u64) -> Lines {
        let input = json!({"key": 1, "owner": owner, "ttl_ms": ttl_ms});
        done(kind, "acquire", input, "token", json!(token))
    }

    /// An operation by the owner whose number equals its token.
    pub(crate) fn act(kind: Kind, f: &'static str, token: i64, element: i64) -> Lines {
        let input = json!({"key": 1, "owner": token, "token": token, "element": element, "ttl_ms": 50});
        done(kind, f, input, "done", json!(true))
    }

    fn read(list: &[i64]) -> Lines {
        done(Ok, "read", json!({"key": 1}), "list", json!(list))
    }

    /// The anomalies found if every failure has this error.
    fn names(parts: &[Lines], error: &str) -> Vec<String> {
        let mut events = history(&parts.concat());
        let failures = events.iter_mut().filter(|event| event.kind == Fail);
        failures.for_each(|event| event.error = Some(error.to_owned()));
        let judgement = check(&operations(&events));
        judgement.names().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn holds_that_ended_make_room_for_others() {
        let late = || (0..15).flat_map(|_| read(&[1])).collect::<Lines>();
        let good = [
            acquire(Ok, 1, 1, 100),
            act(Ok, "write", 1, 1),
            act(Ok, "release", 1, 0),
            acquire(Ok, 2, 2, 22),
            late(),
            act(Fail, "renew", 2, 0),
            acquire(Ok, 3, 3, 500),
            act(Ok, "renew", 3, 0),
            late(),
            late(),
            // The renewal made it shorter.
            acquire(Ok, 4, 4, 100),
            act(Fail, "write", 3, 2),
            act(Kind::Info, "release", 4, 0),
            acquire(Ok, 5, 5, 100),
            act(Ok, "write", 5, 3),
            read(&[1, 3]),
        ];
        assert_eq!(names(&good, "FENCED"), [""; 0]);
    }

    #[test]
    fn each_anomaly_is_found_and_named() {
        let (first, second) = (acquire(Ok, 1, 1, 100), acquire(Ok, 2, 2, 100));
        let write = |kind, token, element| act(kind, "write", token, element);
        for (name, parts) in [
            ("two holders at once", vec![first.clone(), second.clone()]),
            ("two holders at once", vec![acquire(Ok, 1, 1, 5), act(Ok, "renew", 1, 0), second.clone()]),
            ("two holders at once", vec![acquire(Ok, 1, 1, 1), second.clone(), act(Ok, "renew", 1, 0)]),
            ("hold ended early", vec![first.clone(), write(Fail, 1, 1)]),
            ("hold ended early", vec![first.clone(), act(Fail, "release", 1, 0)]),
            ("former holder wrote", vec![acquire(Ok, 1, 1, 1), second.clone(), write(Ok, 1, 1)]),
            (
                "former holder wrote",
                vec![acquire(Ok, 1, 1, 1), write(Ok, 1, 1), second.clone(), write(Ok, 2, 2), read(&[2, 1])],
            ),
            ("duplicate token", vec![acquire(Ok, 1, 1, 1), acquire(Ok, 2, 1, 1)]),
            ("token regression", vec![acquire(Ok, 1, 2, 1), acquire(Ok, 2, 1, 1)]),
            ("lost write", vec![first.clone(), write(Ok, 1, 1), read(&[])]),
            ("duplicate append", vec![first.clone(), write(Ok, 1, 1), read(&[1, 1])]),
            ("G1a (aborted read)", vec![acquire(Ok, 1, 1, 1), write(Fail, 1, 1), read(&[1])]),
            ("phantom value", vec![read(&[1])]),
        ] {
            assert_eq!(names(&parts, "FENCED"), [name], "{parts:?}");
        }
    }
}

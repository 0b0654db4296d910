//! What clients see of elections: `leader` and `observe`, in the form of `workload/holds.rs`. Each epoch has
//! one leader; reads are linearizable; observers receive every epoch, in order, wherever they resume.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Judgement, by_key,
    holds::{Grant, grants},
};
use crate::history::Operation;

/// A leader as a client saw it.
struct Sight<'a> {
    by: &'a Operation,
    owner: i64,
    epoch: i64,
    value: i64,
}

struct Election<'a> {
    key: String,
    operations: Vec<&'a Operation>,
    grants: Vec<Grant<'a>>,
    sights: Vec<Sight<'a>>,
}

/// Judges every election.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    for (key, operations) in by_key(operations, "key") {
        let sights = operations.iter().filter(|it| it.is_ok()).flat_map(|it| sights(it)).collect();
        let grants = grants(&operations);
        let election = Election { key, operations, grants, sights };
        election.look_at_leaders(&mut judgement);
        election.look_for_old_reads(&mut judgement);
        for observation in election.operations.iter().filter(|it| it.f == "observe" && it.is_ok()) {
            election.look_at_observation(observation, &mut judgement);
        }
    }
    judgement
}

fn messages(observation: &Operation) -> impl Iterator<Item = &Value> {
    observation.output["messages"].as_array().into_iter().flatten()
}

fn sights(by: &Operation) -> Vec<Sight<'_>> {
    let sight = |seen: &Value| {
        let part = |at: usize| seen[at].as_i64();
        Some(Sight { by, owner: part(0)?, epoch: part(1)?, value: part(2)? })
    };
    match by.f.as_str() {
        "leader" => sight(&by.output["leader"]).into_iter().collect(),
        "observe" => messages(by).filter_map(sight).collect(),
        _ => Vec::new(),
    }
}

impl Election<'_> {
    /// Each epoch has one leader, which campaigned for it, and whose value it proclaimed.
    fn look_at_leaders(&self, judgement: &mut Judgement) {
        let key = &self.key;
        let granted = self.grants.iter().filter_map(|grant| {
            let operation = grant.operation;
            Some((operation.output["token"].as_i64()?, operation.input["owner"].as_i64()?, operation.start))
        });
        let seen = self.sights.iter().map(|sight| (sight.epoch, sight.owner, sight.by.start));
        let mut leaders: BTreeMap<i64, (i64, usize)> = BTreeMap::new();
        for (epoch, owner, start) in granted.chain(seen) {
            let (other, first) = *leaders.entry(epoch).or_insert((owner, start));
            if other != owner {
                let detail = format!("election {key}: {other} and {owner} lead in epoch {epoch}");
                judgement.found("two leaders in one epoch", detail, &[first, start]);
            }
        }
        for sight in &self.sights {
            let campaign =
                self.operations.iter().find(|it| it.f == "acquire" && it.input["owner"] == sight.owner);
            let proclaimed = self.operations.iter().find(|it| {
                it.f == "proclaim" && it.input["token"] == sight.epoch && it.input["element"] == sight.value
            });
            let value = if sight.value == sight.owner { campaign } else { proclaimed };
            for (what, origin) in [("candidate", campaign), ("value", value)] {
                let detail =
                    format!("election {key}: {what} of {}, {}, {}", sight.owner, sight.epoch, sight.value);
                match origin {
                    None => judgement.found("phantom value", detail, &[sight.by.start]),
                    Some(origin) if !origin.may_have_happened() => {
                        judgement.found("G1a (aborted read)", detail, &[sight.by.start, origin.start]);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// The highest epoch known to any client before this operation began.
    fn known_before(&self, operation: &Operation) -> Option<(i64, usize)> {
        let granted = self.grants.iter().map(|grant| grant.operation);
        let granted = granted.filter_map(|grant| Some((grant.output["token"].as_i64()?, grant)));
        let seen = self.sights.iter().map(|sight| (sight.epoch, sight.by));
        let known = granted.chain(seen).filter(|(_, by)| by.end < operation.start);
        known.map(|(epoch, by)| (epoch, by.start)).max()
    }

    /// Reading the leader, or beginning to observe, must show the present leader.
    fn look_for_old_reads(&self, judgement: &mut Judgement) {
        let key = &self.key;
        for read in self.operations.iter().filter(|it| it.is_ok()) {
            let told = match read.f.as_str() {
                "leader" => Some(&read.output["leader"]),
                "observe" if read.input["from"].is_null() => messages(read).next(),
                _ => None,
            };
            let Some(told) = told else { continue };
            let known = self.known_before(read);
            if let (Some(epoch), Some((known, by))) = (told[1].as_i64(), known)
                && epoch < known
            {
                let detail = format!("election {key}: {} gave epoch {epoch} after {known}", read.f);
                judgement.found("stale read", detail, &[read.start, by]);
            }
            let leader = self.grants.iter().find(|grant| grant.holds_during(read));
            if let Some(leader) = leader.filter(|_| told.is_null()) {
                let detail =
                    format!("election {key}: {} gave nobody while {} led", read.f, leader.operation.output);
                judgement.found("stale read", detail, &[read.start, leader.operation.start]);
            }
        }
    }

    fn look_at_observation(&self, observation: &Operation, judgement: &mut Judgement) {
        let key = &self.key;
        let mut last = observation.input["from"].as_i64();
        for epoch in messages(observation).filter_map(|message| message[1].as_i64()) {
            let Some(before) = last.replace(epoch) else { continue };
            if epoch < before {
                let detail = format!("election {key}: epoch {epoch} was told after {before}");
                judgement.found("observed out of order", detail, &[observation.start]);
            }
            let missed = self.grants.iter().map(|grant| grant.operation).find(|grant| {
                grant.output["token"].as_i64().is_some_and(|granted| before < granted && granted < epoch)
            });
            if let Some(missed) = missed {
                let granted = &missed.output["token"];
                let detail = format!("election {key}: {epoch} was told after {before}, without {granted}");
                judgement.found("observation gap", detail, &[observation.start, missed.start]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::holds::tests::{Lines, acquire, act, done},
        *,
    };
    use crate::history::{
        Kind::{Fail, Info, Ok},
        operations,
        tests::history,
    };

    fn leader(told: Value) -> Lines {
        done(Ok, "leader", json!({"key": 1}), "leader", told)
    }

    fn observe(from: Value, messages: Value) -> Lines {
        done(Ok, "observe", json!({"key": 1, "from": from}), "messages", messages)
    }

    fn names(parts: &[Lines]) -> Vec<String> {
        let judgement = check(&operations(&history(&parts.concat())));
        judgement.names().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn leaders_follow_each_other() {
        let good = [
            observe(json!(null), json!([null])),
            acquire(Ok, 1, 1, 100),
            leader(json!([1, 1, 1])),
            act(Ok, "proclaim", 1, 7),
            leader(json!([1, 1, 7])),
            act(Ok, "release", 1, 0),
            leader(json!(null)),
            acquire(Info, 2, 0, 1),
            acquire(Ok, 3, 3, 1),
            observe(json!(1), json!([[1, 1, 1], [1, 1, 7], null, [2, 2, 2], null, [3, 3, 3]])),
            observe(json!(1), json!([[3, 3, 3]])),
            leader(json!(null)),
        ];
        assert_eq!(names(&good), [""; 0]);
    }

    #[test]
    fn each_anomaly_is_found_and_named() {
        let [first, second, third] = [1, 2, 3].map(|number| acquire(Ok, number, number, 1));
        let both = [first.clone(), second.clone()].concat();
        let all = [both.clone(), third].concat();
        let failed = acquire(Fail, 2, 0, 1);
        for (name, parts) in [
            (
                "two leaders in one epoch",
                vec![first.clone(), acquire(Info, 2, 0, 1), leader(json!([2, 1, 2]))],
            ),
            ("two leaders in one epoch", vec![acquire(Ok, 1, 1, 1), acquire(Ok, 2, 1, 1)]),
            ("G1a (aborted read)", vec![failed, leader(json!([2, 1, 2]))]),
            (
                "G1a (aborted read)",
                vec![first.clone(), act(Fail, "proclaim", 1, 7), leader(json!([1, 1, 7]))],
            ),
            ("phantom value", vec![leader(json!([2, 1, 2]))]),
            ("stale read", vec![both.clone(), leader(json!([1, 1, 1]))]),
            ("stale read", vec![both.clone(), observe(json!(null), json!([[1, 1, 1]]))]),
            ("stale read", vec![acquire(Ok, 1, 1, 100), leader(json!(null))]),
            ("observed out of order", vec![both.clone(), observe(json!(1), json!([[2, 2, 2], [1, 1, 1]]))]),
            ("observed out of order", vec![both, observe(json!(2), json!([[1, 1, 1]]))]),
            ("observation gap", vec![all.clone(), observe(json!(1), json!([[3, 3, 3]]))]),
            ("observation gap", vec![all, observe(json!(1), json!([[1, 1, 1], null, [3, 3, 3]]))]),
        ] {
            assert_eq!(names(&parts), [name], "{parts:?}");
        }
    }
}

//! Commands that are sent several times and must be applied once: a command is all attempts with its session
//! and number. If any was answered, it was applied; if all failed, it was not; otherwise that is unknown. All
//! its answers must be the same.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::Judgement;
use crate::history::Operation;

/// How much too early a session may expire: the slew of the log clock, and its steps of a millisecond.
const EARLY_MS: u64 = 20;

/// All attempts of a command, in the order of invocation.
struct Command<'a> {
    attempts: Vec<&'a Operation>,
}

impl<'a> Command<'a> {
    fn first(&self) -> &'a Operation {
        self.attempts[0]
    }

    fn answers(&self) -> impl Iterator<Item = &'a Operation> + '_ {
        self.attempts.iter().copied().filter(|attempt| attempt.is_ok())
    }

    fn reply(&self) -> Option<&'a Value> {
        self.answers().next().map(|answer| &answer.output["reply"])
    }

    /// When it was known to be applied.
    fn applied(&self) -> Option<usize> {
        self.answers().map(|answer| answer.end).min()
    }

    fn may_have_happened(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.may_have_happened())
    }

    fn name(&self) -> String {
        let value = &self.first().input;
        format!("command {} of session {}", value["number"], value["session"])
    }
}

struct Sessions<'a> {
    operations: &'a [Operation],
    commands: Vec<Command<'a>>,
    /// Their indexes, by function and key.
    by_key: HashMap<(&'a str, &'a Value), Vec<usize>>,
    judgement: Judgement,
}

/// Judges all sessions and what their commands wrote.
pub(crate) fn check(operations: &[Operation]) -> Judgement {
    let mut commands: BTreeMap<(u64, u64), Command<'_>> = BTreeMap::new();
    for operation in operations {
        let number = |name: &str| operation.input[name].as_u64();
        if let (Some(session), Some(number)) = (number("session"), number("number")) {
            let command = commands.entry((session, number));
            command.or_insert(Command { attempts: Vec::new() }).attempts.push(operation);
        }
    }
    let commands: Vec<Command<'_>> = commands.into_values().collect();
    let mut by_key: HashMap<(&str, &Value), Vec<usize>> = HashMap::new();
    for (place, first) in commands.iter().map(Command::first).enumerate() {
        by_key.entry((&first.f, &first.input["key"])).or_default().push(place);
    }
    let mut sessions = Sessions { operations, commands, by_key, judgement: Judgement::default() };
    sessions.look_at_answers();
    sessions.look_at_ends();
    sessions.look_at_counters();
    sessions.look_at_lists();
    sessions.look_at_registers();
    sessions.look_for_what_is_missing();
    sessions.judgement
}

fn has_said(operation: &Operation, word: &str) -> bool {
    operation.error.as_ref().is_some_and(|error| error.starts_with(word))
}

impl<'a> Sessions<'a> {
    fn commands(&self, f: &'static str, key: &'a Value) -> impl Iterator<Item = &Command<'a>> {
        let places = self.by_key.get(&(f, key)).into_iter().flatten();
        places.map(|place| &self.commands[*place])
    }

    /// All completed reads of this kind.
    fn reads(&self, kind: &'static str) -> Vec<&'a Operation> {
        let reads = self.operations.iter().filter(|read| read.f == "read" && read.is_ok());
        reads.filter(|read| read.input["kind"] == kind).collect()
    }

    fn look_at_answers(&mut self) {
        for command in &self.commands {
            let mut answers = command.answers();
            let Some(first) = answers.next() else { continue };
            let reply = |operation: &Operation| operation.output["reply"].clone();
            if let Some(other) = answers.find(|other| reply(other) != reply(first)) {
                let name = command.name();
                let detail = format!("{name} answered {} and {}", reply(first), reply(other));
                self.judgement.found("different answer", detail, &[first.start, other.start]);
            }
        }
        // No session has so many commands that it may forget one.
        let is_forgotten = |it: &&Operation| has_said(it, "FORGOTTEN") || has_said(it, "APPLIED");
        for operation in self.operations.iter().filter(is_forgotten) {
            let error = operation.error.as_deref().unwrap_or_default();
            self.judgement.found("forgotten answer", error, &[operation.start]);
        }
    }

    /// A session lives for at least its TTL, and does not come back.
    fn look_at_ends(&mut self) {
        let mut sessions: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in self.operations {
            let session = operation.input["session"].as_u64();
            session.into_iter().for_each(|session| sessions.entry(session).or_default().push(operation));
        }
        for (session, operations) in sessions {
            let used = || operations.iter().filter(|operation| operation.is_ok());
            let ends = || operations.iter().filter(|operation| has_said(operation, "NOSESSION"));
            let first_end = ends().min_by_key(|end| end.end);
            if let Some((end, use_of)) =
                first_end.and_then(|end| Some((end, used().find(|it| it.start > end.end)?)))
            {
                let detail = format!("session {session} was over, and is used again");
                self.judgement.found("resurrected session", detail, &[end.start, use_of.start]);
            }
            let ttl_ms =
                operations.iter().find(|it| it.f == "open").and_then(|it| it.input["ttl_ms"].as_u64());
            let Some(ttl_ns) = ttl_ms.map(|ms| ms * 1_000_000) else { continue };
            for end in ends() {
                let last = used().filter(|it| it.end < end.start).max_by_key(|it| it.start_ns);
                let is_early =
                    |last: &&&Operation| end.end_ns + EARLY_MS * 1_000_000 < last.start_ns + ttl_ns;
                if let Some(last) = last.filter(is_early) {
                    let detail = format!("session {session} was gone before its time");
                    self.judgement.found("expired early", detail, &[last.start, end.start]);
                }
            }
        }
    }

    /// Each command adds one: every answer is a different number, and none exceeds the number of commands.
    fn look_at_counters(&mut self) {
        let mut found = Judgement::default();
        let keys: HashSet<&Value> = self.keys("incr");
        for key in keys {
            let mut answers: HashMap<i64, &Command<'_>> = HashMap::new();
            for command in self.commands("incr", key) {
                let Some(reply) = command.reply().and_then(Value::as_i64) else { continue };
                if let Some(other) = answers.insert(reply, command) {
                    let detail = format!("{} and {} answered {reply}", command.name(), other.name());
                    found.found("lost update", detail, &[command.first().start, other.first().start]);
                }
            }
            // An answer may be as old as the first attempt.
            let span = |command: &Command<'_>| Some((command.first().start, command.applied()?));
            let seen = answers.iter().filter_map(|(reply, command)| Some((*reply, span(command)?)));
            let reads = self.reads("incr").into_iter().filter(|read| read.input["key"] == *key);
            let reads =
                reads.map(|read| (read.output["value"].as_i64().unwrap_or(0), (read.start, read.end)));
            for (value, (start, end)) in seen.chain(reads) {
                let possible = self.commands("incr", key).filter(|it| it.may_have_happened());
                let most = possible.filter(|it| it.first().start < end).count();
                let applied = self.commands("incr", key).filter_map(Command::applied);
                let least = applied.filter(|applied| *applied < start).count();
                if value > most as i64 {
                    let detail = format!("counter {key} is {value} after at most {most} commands");
                    found.found("duplicate apply or aborted read", detail, &[start]);
                }
                if value < least as i64 {
                    let detail = format!("counter {key} is {value} after at least {least} commands");
                    found.found("lost write or stale read", detail, &[start]);
                }
            }
        }
        self.judgement.findings.extend(found.findings);
    }

    /// The keys written by commands of this kind.
    fn keys(&self, f: &str) -> HashSet<&'a Value> {
        let commands = self.commands.iter().map(Command::first).filter(|first| first.f == f);
        commands.map(|first| &first.input["key"]).collect()
    }

    /// The anomaly of a value that was seen, if nobody wrote it or all attempts to write it failed.
    fn origin(&self, f: &'static str, key: &'a Value, value: &Value, by: &Operation, found: &mut Judgement) {
        match self.commands(f, key).find(|command| command.first().input["element"] == *value) {
            None => found.found("phantom value", format!("{f} {key}: nobody wrote {value}"), &[by.start]),
            Some(command) if !command.may_have_happened() => {
                let detail = format!("{f} {key}: {value} is there, but {} failed", command.name());
                found.found("G1a (aborted read)", detail, &[by.start, command.first().start]);
            }
            Some(_) => {}
        }
    }

    fn look_at_lists(&mut self) {
        let mut found = Judgement::default();
        for read in self.reads("push") {
            let key = &read.input["key"];
            let list: Vec<&Value> = read.output["value"].as_array().into_iter().flatten().collect();
            let mut seen = HashSet::new();
            for element in &list {
                if !seen.insert(*element) {
                    let detail = format!("list {key} has {element} twice");
                    found.found("duplicate apply", detail, &[read.start]);
                }
                self.origin("push", key, element, read, &mut found);
            }
            for command in self.commands("push", key) {
                let (Some(applied), Some(reply)) = (command.applied(), command.reply()) else { continue };
                let element = &command.first().input["element"];
                let place = reply.as_u64().unwrap_or_default() as usize;
                let there = place.checked_sub(1).and_then(|place| list.get(place));
                let operations = [read.start, command.first().start];
                if applied < read.start && !seen.contains(element) {
                    let detail = format!("list {key} has no {element}, which {} appended", command.name());
                    found.found("lost write", detail, &operations);
                } else if there.is_some_and(|there| *there != element) {
                    let detail = format!("{} answered {place}, where {there:?} is", command.name());
                    found.found("wrong answer", detail, &operations);
                }
            }
        }
        self.judgement.findings.extend(found.findings);
    }

    /// Each SET returns the previous value: every value precedes at most one other.
    fn look_at_registers(&mut self) {
        let mut found = Judgement::default();
        let mut successors: HashMap<(&Value, &Value), &Command<'_>> = HashMap::new();
        for command in self.commands.iter().filter(|command| command.first().f == "set") {
            let (first, Some(before)) = (command.first(), command.reply()) else { continue };
            let key = &first.input["key"];
            if let Some(other) = successors.insert((key, before), command) {
                let detail =
                    format!("register {key}: {} and {} replaced {before}", command.name(), other.name());
                found.found("lost update", detail, &[first.start, other.first().start]);
            }
            if *before == first.input["element"] {
                let detail = format!("register {key}: {} found its own value", command.name());
                found.found("duplicate apply", detail, &[first.start]);
            }
            if !before.is_null() {
                self.origin("set", key, before, first, &mut found);
            }
        }
        for read in self.reads("set").into_iter().filter(|read| !read.output["value"].is_null()) {
            self.origin("set", &read.input["key"], &read.output["value"], read, &mut found);
        }
        self.judgement.findings.extend(found.findings);
    }

    fn look_for_what_is_missing(&mut self) {
        let is_elsewhere = |command: &Command<'_>| {
            let mut nodes = command.answers().map(|answer| answer.node);
            nodes.next().is_some_and(|first| nodes.any(|node| node != first))
        };
        if !self.commands.iter().any(is_elsewhere) {
            self.judgement.missing.push("no command was answered again by another node".into());
        }
        if !self.operations.iter().any(|operation| has_said(operation, "NOSESSION")) {
            self.judgement.missing.push("no session expired".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::{
        Event,
        Kind::{self, Fail, Info, Invoke, Ok},
        operations,
        tests::history,
    };

    type Lines = Vec<(i64, Kind, &'static str, Value)>;

    fn open(ttl_ms: u64) -> Lines {
        let value = json!({"session": 1, "ttl_ms": ttl_ms});
        vec![(1, Invoke, "open", value.clone()), (1, Ok, "open", value)]
    }

    /// One attempt; its element equals its number.
    fn ask(f: &'static str, kind: Kind, number: i64, reply: Value) -> Lines {
        let input = json!({"session": 1, "number": number, "key": 1, "element": number});
        let mut output = input.clone();
        output["reply"] = reply;
        vec![(1, Invoke, f, input), (1, kind, f, output)]
    }

    fn read(kind: &str, value: Value) -> Lines {
        let input = json!({"kind": kind, "key": 1});
        let mut output = input.clone();
        output["value"] = value;
        vec![(2, Invoke, "read", input), (2, Ok, "read", output)]
    }

    /// A history in which every failure has this error.
    fn events(parts: &[Lines], error: &str) -> Vec<Event> {
        let mut events = history(&parts.concat());
        let failures = events.iter_mut().filter(|event| event.kind == Fail);
        failures.for_each(|event| event.error = Some(error.to_owned()));
        events
    }

    fn names(parts: &[Lines], error: &str) -> Vec<String> {
        let judgement = check(&operations(&events(parts, error)));
        judgement.names().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn what_was_asked_often_and_applied_once_is_right() {
        let good = [
            open(5),
            ask("push", Info, 1, json!(null)),
            ask("push", Fail, 1, json!(null)),
            ask("push", Ok, 1, json!(1)),
            ask("push", Ok, 1, json!(1)),
            ask("push", Info, 2, json!(null)),
            ask("incr", Info, 3, json!(null)),
            ask("incr", Ok, 4, json!(2)),
            ask("incr", Ok, 3, json!(1)),
            ask("set", Info, 5, json!(null)),
            ask("set", Ok, 6, json!(5)),
            ask("set", Fail, 7, json!(null)),
            read("push", json!([1])),
            read("incr", json!(2)),
            read("set", json!(6)),
            ask("push", Fail, 1, json!(null)),
        ];
        assert_eq!(names(&good, "CLUSTERDOWN no leader is known"), [""; 0]);
    }

    #[test]
    fn each_anomaly_is_found_and_named() {
        let push = |kind, number, reply: i64| ask("push", kind, number, json!(reply));
        let incr = |kind, number, reply: i64| ask("incr", kind, number, json!(reply));
        let set = |kind, number, reply: Value| ask("set", kind, number, reply);
        for (name, parts) in [
            ("different answer", vec![push(Ok, 1, 1), push(Ok, 1, 2)]),
            ("duplicate apply", vec![push(Ok, 1, 1), push(Info, 1, 0), read("push", json!([1, 1]))]),
            ("lost write", vec![push(Info, 1, 0), push(Ok, 1, 1), read("push", json!([]))]),
            ("wrong answer", vec![push(Ok, 1, 1), push(Ok, 2, 2), read("push", json!([2, 1]))]),
            ("G1a (aborted read)", vec![push(Fail, 1, 0), read("push", json!([1]))]),
            ("phantom value", vec![read("push", json!([9]))]),
            ("duplicate apply or aborted read", vec![incr(Ok, 1, 1), incr(Ok, 1, 1), read("incr", json!(2))]),
            ("duplicate apply or aborted read", vec![incr(Fail, 1, 0), read("incr", json!(1))]),
            ("duplicate apply or aborted read", vec![incr(Ok, 1, 2)]),
            ("lost write or stale read", vec![incr(Ok, 1, 1), incr(Ok, 2, 2), read("incr", json!(1))]),
            ("lost update", vec![incr(Info, 1, 0), incr(Ok, 2, 1), incr(Ok, 3, 1)]),
            ("lost update", vec![set(Ok, 1, json!(null)), set(Ok, 2, json!(1)), set(Ok, 3, json!(1))]),
            ("duplicate apply", vec![set(Ok, 1, json!(1))]),
            ("G1a (aborted read)", vec![set(Fail, 1, json!(null)), set(Ok, 2, json!(1))]),
            ("phantom value", vec![read("set", json!(8))]),
        ] {
            let found = names(&parts, "CLUSTERDOWN no leader is known");
            assert!(found.contains(&name.to_owned()), "{name}: {found:?} in {parts:?}");
        }
    }

    #[test]
    fn a_session_ends_once_and_not_before_its_time() {
        let ask = |kind| ask("incr", kind, 1, json!(1));
        let late = || (0..20).flat_map(|_| read("push", json!([]))).collect::<Lines>();
        let (end, forgotten) = ("NOSESSION there is none", "FORGOTTEN it is");
        assert_eq!(names(&[open(5), ask(Ok), late(), ask(Fail)], end), [""; 0]);
        assert_eq!(names(&[open(90), ask(Ok), late(), ask(Fail)], end), ["expired early"]);
        assert_eq!(names(&[open(5), ask(Ok), late(), ask(Fail), ask(Ok)], end), ["resurrected session"]);
        assert_eq!(names(&[open(5), ask(Ok), ask(Fail)], forgotten), ["forgotten answer"]);
    }

    #[test]
    fn a_run_without_retries_or_ends_is_not_clean() {
        let missing = |parts: &[Lines], nodes: &[u64], error: &str| {
            let mut operations = operations(&events(parts, error));
            operations.iter_mut().zip(nodes).for_each(|(operation, node)| operation.node = Some(*node));
            check(&operations).missing.len()
        };
        let ask = |kind| ask("incr", kind, 1, json!(1));
        let end = "NOSESSION there is none";
        assert_eq!(missing(&[open(5), ask(Ok)], &[1, 1], end), 2);
        assert_eq!(missing(&[open(5), ask(Ok), ask(Ok), ask(Fail)], &[1, 1, 1, 1], end), 1);
        assert_eq!(missing(&[open(5), ask(Ok), ask(Ok), ask(Fail)], &[1, 1, 2, 1], end), 0);
    }
}

//! Tests the list-append checker with one hand-made history for each anomaly, and with random valid ones.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::append::check;
use crate::history::{Event, Kind, operations, tests::history};

type Line = (i64, Kind, &'static str, Value);

/// Sequential transactions, all completed; the values hold the results of reads.
fn apart(transactions: &[Value]) -> Vec<Line> {
    let lines = transactions
        .iter()
        .map(|value| [(1, Kind::Invoke, "txn", value.clone()), (1, Kind::Ok, "txn", value.clone())]);
    lines.flatten().collect()
}

/// Concurrent transactions.
fn together(transactions: &[Value]) -> Vec<Line> {
    let all = |kind| {
        let lines = transactions.iter().enumerate();
        lines.map(move |(index, value)| (index as i64, kind, "txn", value.clone()))
    };
    all(Kind::Invoke).chain(all(Kind::Ok)).collect()
}

fn names(lines: &[Line]) -> Vec<String> {
    let judgement = check(&operations(&history(lines)));
    judgement.names().into_iter().map(str::to_owned).collect()
}

fn a(key: i64, value: i64) -> Value {
    json!([":append", key, value])
}

fn r(key: i64, values: &[i64]) -> Value {
    json!([":r", key, values])
}

#[test]
fn each_anomaly_is_found_and_named() {
    let failed = |value: Value| vec![(7, Kind::Invoke, "txn", value.clone()), (7, Kind::Fail, "txn", value)];
    let cases: Vec<(&str, Vec<Line>)> = vec![
        (
            "G0",
            together(&[
                json!([a(1, 1), a(2, 1)]),
                json!([a(1, 2), a(2, 2)]),
                json!([r(1, &[1, 2])]),
                json!([r(2, &[2, 1])]),
            ]),
        ),
        ("G1a (aborted read)", [failed(json!([a(1, 1)])), apart(&[json!([r(1, &[1])])])].concat()),
        ("G1b (intermediate read)", together(&[json!([a(1, 1), a(1, 2)]), json!([r(1, &[1])])])),
        ("G1c", together(&[json!([a(1, 1), r(2, &[2])]), json!([a(2, 2), r(1, &[1])])])),
        (
            "G-single",
            together(&[json!([a(1, 1), a(2, 1)]), json!([r(1, &[]), r(2, &[1])]), json!([r(1, &[1])])]),
        ),
        (
            "G2",
            together(&[
                json!([r(1, &[]), a(2, 1)]),
                json!([r(2, &[]), a(1, 1)]),
                json!([r(1, &[1]), r(2, &[1])]),
            ]),
        ),
        (
            "lost update",
            together(&[json!([r(1, &[]), a(1, 1)]), json!([r(1, &[]), a(1, 2)]), json!([r(1, &[1, 2])])]),
        ),
        ("stale read", apart(&[json!([a(1, 1)]), json!([r(1, &[])]), json!([r(1, &[1])])])),
        ("G-single-realtime", apart(&[json!([a(1, 1)]), json!([r(1, &[])]), json!([r(1, &[1])])])),
        ("lost write", apart(&[json!([a(1, 1)]), json!([r(1, &[])])])),
        ("duplicate append", apart(&[json!([a(1, 1)]), json!([r(1, &[1, 1])])])),
        ("phantom value", apart(&[json!([r(1, &[5])])])),
        ("internal", apart(&[json!([a(1, 1), r(1, &[])]), json!([r(1, &[1])])])),
        // The read shows its own later append.
        ("internal", apart(&[json!([r(1, &[1]), a(1, 1)])])),
        (
            "incompatible order",
            together(&[json!([a(1, 1)]), json!([a(1, 2)]), json!([r(1, &[1, 2])]), json!([r(1, &[2, 1])])]),
        ),
        // The second append precedes the first in the list, although it began after the first was completed.
        ("G0-realtime", apart(&[json!([a(1, 1)]), json!([a(1, 2)]), json!([r(1, &[2, 1])])])),
    ];
    for (name, lines) in cases {
        let names = names(&lines);
        assert!(names.iter().any(|found| found == name), "{name}: found {names:?}");
    }
}

/// A serializable history: each transaction takes effect at one moment between its invocation and its
/// completion.
fn good_history(random: &mut fastrand::Rng) -> Vec<Event> {
    let mut lists: [Vec<i64>; 3] = Default::default();
    let mut lines: Vec<Line> = Vec::new();
    let mut open: Vec<(i64, Value)> = Vec::new();
    let mut next = 0;
    for process in 0..200 {
        let count = random.usize(1..4);
        let steps: Vec<Value> = (0..count)
            .map(|_| {
                let key = random.usize(..3);
                next += 1;
                if random.bool() { a(key as i64, next) } else { json!([":r", key, null]) }
            })
            .collect();
        lines.push((process, Kind::Invoke, "txn", json!(steps)));
        let happens = random.u8(..10) > 0;
        let mut done = steps.clone();
        for step in done.iter_mut().filter(|_| happens) {
            let list = &mut lists[step[1].as_u64().unwrap() as usize];
            match step[2].as_i64() {
                Some(value) => list.push(value),
                None => step[2] = json!(list),
            }
        }
        match (happens, random.u8(..10)) {
            (true, 0) => lines.push((process, Kind::Info, "txn", json!(steps))),
            (true, _) => open.push((process, json!(done))),
            (false, 0..5) => lines.push((process, Kind::Info, "txn", json!(steps))),
            (false, _) => lines.push((process, Kind::Fail, "txn", json!(steps))),
        }
        while open.len() > random.usize(..5) {
            let (process, value) = open.swap_remove(random.usize(..open.len()));
            lines.push((process, Kind::Ok, "txn", value));
        }
    }
    history(&lines)
}

#[test]
fn good_histories_pass_and_one_wrong_read_in_them_does_not() {
    let seed = fastrand::u64(..1_000_000);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = 0;
    for _ in 0..200 {
        let mut events = good_history(&mut random);
        let judgement = check(&operations(&events));
        assert_eq!(judgement.findings, [], "seed {seed}");
        // Remove the last elements of one list, which other reads have.
        let late = events.iter_mut().rev().filter(|event| event.kind == Kind::Ok);
        let mut reads = late.flat_map(|event| event.value.as_array_mut().unwrap().iter_mut());
        if let Some(read) = reads.find(|step| step[2].as_array().is_some_and(|list| list.len() > 10)) {
            let list = read[2].as_array_mut().unwrap();
            list.truncate(list.len() / 2);
            found += usize::from(!check(&operations(&events)).findings.is_empty());
        }
    }
    assert!(found > 190, "{found} of 200 wrong reads were found");
}

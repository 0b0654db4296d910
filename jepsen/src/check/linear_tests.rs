//! Tests the linearizability checker with hand-made histories, and against an exhaustive search.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::linear::{Action, Answer, Call, Limits, check};

fn limits() -> Limits {
    Limits { deadline: Instant::now() + Duration::from_secs(60), configurations_max: 1_000_000 }
}

fn call(action: Action, start: usize, end: usize) -> Call {
    Call { action, start, end }
}

use Action::{Cas, Read, Write};

const NEVER: usize = usize::MAX;

#[test]
fn good_histories_pass() {
    for calls in [
        vec![],
        vec![call(Read(None), 0, 1)],
        vec![call(Write(1), 0, 3), call(Read(None), 1, 2)],
        vec![call(Write(1), 0, 3), call(Read(Some(1)), 1, 2)],
        vec![call(Write(1), 0, NEVER), call(Read(None), 1, 2), call(Read(Some(1)), 3, 4)],
        vec![call(Write(1), 0, 1), call(Cas(1, 2), 2, NEVER), call(Read(Some(1)), 3, 4)],
        vec![
            call(Write(1), 0, 1),
            call(Cas(1, 2), 2, NEVER),
            call(Cas(2, 3), 3, NEVER),
            call(Read(Some(3)), 4, 5),
        ],
    ] {
        assert_eq!(check(&calls, limits()), Answer::Linearizable, "{calls:?}");
    }
}

#[test]
fn bad_histories_are_found_at_the_call_that_is_impossible() {
    for (calls, culprit) in [
        // A stale read.
        (vec![call(Write(1), 0, 1), call(Write(2), 2, 3), call(Read(Some(1)), 4, 5)], 2),
        // A value that nobody wrote.
        (vec![call(Write(1), 0, 1), call(Read(Some(9)), 2, 3)], 1),
        // Two CAS from one value.
        (vec![call(Write(1), 0, 1), call(Cas(1, 2), 2, 3), call(Cas(1, 3), 4, 5)], 2),
        // A lost write.
        (vec![call(Write(1), 0, 1), call(Read(None), 2, 3)], 1),
        // A read goes back in time, after an unknown write was seen.
        (vec![call(Write(1), 0, NEVER), call(Read(Some(1)), 1, 2), call(Read(None), 3, 4)], 2),
        // Seen before it was written.
        (vec![call(Read(Some(1)), 0, 1), call(Write(1), 2, NEVER)], 0),
    ] {
        let answer = check(&calls, limits());
        assert!(
            matches!(answer, Answer::Impossible { call, .. } if call == culprit),
            "{calls:?}: {answer:?}"
        );
    }
}

/// Whether any order is possible, by exhaustive search.
fn brute_force(calls: &[Call], done: &mut Vec<bool>, value: Option<i64>) -> bool {
    if (0..calls.len()).all(|index| done[index] || calls[index].end == NEVER) {
        return true;
    }
    for index in (0..calls.len()).filter(|index| !done[*index]).collect::<Vec<_>>() {
        let is_overtaken =
            (0..calls.len()).any(|other| !done[other] && calls[other].end < calls[index].start);
        let next = match calls[index].action {
            Read(seen) => (seen == value).then_some(value),
            Write(new) => Some(Some(new)),
            Cas(old, new) => (value == Some(old)).then_some(Some(new)),
        };
        if let Some(next) = next.filter(|_| !is_overtaken) {
            done[index] = true;
            if brute_force(calls, done, next) {
                return true;
            }
            done[index] = false;
        }
    }
    false
}

/// A random history, mostly almost valid: with few values, or with distinct written values.
fn random_history(random: &mut fastrand::Rng) -> Vec<Call> {
    let count = random.usize(1..=6);
    let is_unique = random.bool();
    let mut points: Vec<usize> = (0..2 * count).collect();
    random.shuffle(&mut points);
    let mut calls = Vec::new();
    for index in 0..count {
        let (a, b) = (points[2 * index], points[2 * index + 1]);
        let value = |random: &mut fastrand::Rng| random.i64(0..3);
        let written = if is_unique { index as i64 } else { value(random) };
        let action = match random.u8(..3) {
            0 => Read(Some(value(random)).filter(|value| *value > 0)),
            1 => Write(written),
            _ => Cas(value(random), written),
        };
        let is_open = !matches!(action, Read(_)) && random.u8(..4) == 0;
        calls.push(call(action, a.min(b), if is_open { NEVER } else { a.max(b) }));
    }
    calls
}

#[test]
fn it_agrees_with_trying_everything() {
    let seed = fastrand::u64(..1_000_000);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut good = 0;
    for _ in 0..10_000 {
        let calls = random_history(&mut random);
        let expected = brute_force(&calls, &mut vec![false; calls.len()], None);
        let answer = check(&calls, limits());
        assert_eq!(answer == Answer::Linearizable, expected, "{calls:?}: {answer:?}");
        good += usize::from(expected);
    }
    assert!((300..9_700).contains(&good), "both kinds occur: {good}");
}

/// A history that a real register could have produced, with up to `clients` concurrent calls.
fn real_history(random: &mut fastrand::Rng, count: usize, clients: usize) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: Vec<(usize, bool)> = Vec::new();
    let (mut value, mut clock, mut next) = (None, 0, 0);
    while calls.len() < count || !open.is_empty() {
        clock += 1;
        if calls.len() < count && open.len() < clients && random.bool() {
            open.push((calls.len(), false));
            next += 1;
            let action = if random.bool() { Read(None) } else { Write(next) };
            calls.push(call(action, clock, NEVER));
        } else if !open.is_empty() {
            let at = random.usize(..open.len());
            let (index, is_done) = open[at];
            if !is_done {
                match &mut calls[index].action {
                    Read(seen) => *seen = value,
                    Write(new) if random.u8(..4) == 0 && value.is_some() => {
                        calls[index].action = Cas(value.unwrap(), *new);
                        value = calls[index].action.writes();
                    }
                    Write(new) => value = Some(*new),
                    Cas(..) => unreachable!("made above"),
                }
                open[at].1 = true;
            } else {
                open.swap_remove(at);
                let is_lost = !matches!(calls[index].action, Read(_)) && random.u8(..20) == 0;
                calls[index].end = if is_lost { NEVER } else { clock };
            }
        }
    }
    calls
}

#[test]
fn a_hundred_thousand_calls_are_judged_within_seconds_and_one_stale_read_among_them_is_found() {
    let seed = fastrand::u64(..1_000_000);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut calls = real_history(&mut random, 100_000, 5);
    let started = Instant::now();
    assert_eq!(check(&calls, limits()), Answer::Linearizable);
    eprintln!("judged in {:?}", started.elapsed());
    let is_late_read = |call: &&mut Call| call.start > 50_000 && matches!(call.action, Read(Some(_)));
    calls.iter_mut().find(is_late_read).unwrap().action = Read(Some(1));
    assert!(matches!(check(&calls, limits()), Answer::Impossible { .. }));
}

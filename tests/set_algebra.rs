//! Intersections, unions and differences of sets of every size and form, compared with a model.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use kvorum::store::level;
use support::alone::Alone;

type Model = BTreeSet<String>;

/// Sets in every form, small and large, which share some members. The last is missing.
fn sets(alone: &mut Alone, chance: &mut fastrand::Rng) -> Vec<(String, Model)> {
    let mut sets = Vec::new();
    for (number, (len, is_text)) in [
        (7, false),
        (300, false),
        (2_000, false),
        (9, true),
        (90, true),
        (700, true),
        (3_000, true),
        (0, true),
    ]
    .into_iter()
    .enumerate()
    {
        let name = |_| {
            let number = chance.usize(..len * 2 + 50);
            if is_text && !number.is_multiple_of(3) { format!("member:{number}") } else { number.to_string() }
        };
        let (key, members) = (format!("set:{number}"), (0..len).map(name).collect::<Model>());
        let words: Vec<&str> = members.iter().map(String::as_str).collect();
        for some in words.chunks(500) {
            alone.text(&format!("SADD {key} {}", some.join(" ")));
        }
        sets.push((key, members));
    }
    sets
}

/// The members in a reply that is an array.
fn members(reply: &str) -> Vec<String> {
    reply.split("\r\n").skip(2).step_by(2).map(str::to_owned).collect()
}

#[test]
fn algebra_of_sets_is_that_of_a_model() {
    let seed = fastrand::u64(..);
    let mut chance = fastrand::Rng::with_seed(seed);
    for level in [level::WAITS, level::LIMITS] {
        let mut alone = Alone::default();
        alone.level = level;
        let sets = sets(&mut alone, &mut chance);
        for _ in 0..120 {
            let chosen: Vec<_> = (0..chance.usize(1..6)).map(|_| &sets[chance.usize(..sets.len())]).collect();
            let keys = chosen.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(" ");
            let (first, others) = (&chosen[0].1, &chosen[1..]);
            let is_common = |member: &&String| others.iter().all(|(_, set)| set.contains(*member));
            let is_left = |member: &&String| !others.iter().any(|(_, set)| set.contains(*member));
            for (command, expected) in [
                ("SINTER", first.iter().filter(is_common).cloned().collect::<Model>()),
                ("SUNION", chosen.iter().flat_map(|(_, set)| set.iter().cloned()).collect()),
                ("SDIFF", first.iter().filter(is_left).cloned().collect()),
            ] {
                let about = format!("seed {seed}, level {level}: {command} {keys}");
                let result = members(&alone.text(&format!("{command} {keys}")));
                assert_eq!(result.len(), expected.len(), "{about}");
                assert_eq!(Model::from_iter(result), expected, "{about}");
                let size = format!(":{}\r\n", expected.len());
                assert_eq!(alone.text(&format!("{command}STORE to {keys}")), size, "{about}");
                assert_eq!(Model::from_iter(members(&alone.text("SMEMBERS to"))), expected, "{about}");
                if command == "SINTER" {
                    assert_eq!(alone.text(&format!("SINTERCARD {} {keys}", chosen.len())), size, "{about}");
                }
            }
        }
    }
}

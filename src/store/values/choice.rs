//! Random choice of several different items.
//!
//! They are drawn one by one, since usually few are wanted out of many. The number of draws is
//! bounded: after that, the rest is listed instead. So the time is bounded whatever is drawn from, and the
//! result is as uniform as the draws are.

use std::{collections::HashSet, hash::Hash};

use crate::store::hashing::Chance;

/// If more than one in this many items is wanted, all are looked at; otherwise items are drawn until enough are
/// different.
pub const LISTED_SHARE: usize = 3;

/// How many of `len` items a choice of `count` different ones looks at, about.
pub fn looked_at(len: usize, count: usize) -> usize {
    if count > len / LISTED_SHARE { len } else { count }
}

/// At the first level, draws were not bounded. Calls that ended in about a second on every node had fewer
/// draws than this, and have the same result here.
const FIRST_RULE_DRAWS_MAX: usize = 1 << 20;

/// `count` different items, out of more than that, within the bound of the level that `chance` belongs to.
/// `draw` draws one, `key` tells them apart, `all` lists them in an order that depends on content alone.
pub fn different<T, K: Eq + Hash>(
    count: usize,
    chance: &mut Chance,
    draw: impl FnMut(&mut Chance) -> Option<T>,
    key: impl Fn(&T) -> K,
    all: impl FnOnce() -> Vec<T>,
) -> Vec<T> {
    let draws_max = if chance.is_even() { 8 * count + 256 } else { 64 * count + FIRST_RULE_DRAWS_MAX };
    different_within(draws_max, count, chance, draw, key, all)
}

fn different_within<T, K: Eq + Hash>(
    draws_max: usize,
    count: usize,
    chance: &mut Chance,
    mut draw: impl FnMut(&mut Chance) -> Option<T>,
    key: impl Fn(&T) -> K,
    all: impl FnOnce() -> Vec<T>,
) -> Vec<T> {
    let (mut seen, mut chosen) = (HashSet::new(), Vec::with_capacity(count));
    for _ in 0..draws_max {
        if chosen.len() == count {
            return chosen;
        }
        chosen.extend(draw(chance).filter(|thing| seen.insert(key(thing))));
    }
    let mut left: Vec<T> = all().into_iter().filter(|thing| !seen.contains(&key(thing))).collect();
    while chosen.len() < count && !left.is_empty() {
        chosen.push(left.swap_remove(chance.below(left.len())));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Chance, different_within};

    #[test]
    fn draws_that_bring_nothing_new_come_to_an_end() {
        for count in 0..=40 {
            // Whatever the chance, only three of forty are ever drawn.
            let draw = |chance: &mut Chance| Some(chance.below(3));
            let all = || (0..40).collect();
            let chosen = different_within(100, count, &mut Chance::new(1), draw, |thing| *thing, all);
            assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), count);
            assert_eq!(chosen.len(), count);
        }
    }
}

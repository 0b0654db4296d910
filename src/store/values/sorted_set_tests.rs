//! Tests sorted sets against a model, through both forms, with checkpoints in between.

use std::collections::BTreeMap;

use super::{Edge, Form, PACKED_MEMBERS_MAX, SortedSet};
use crate::store::{Chance, Digest, Dirty, Hashing, Kind, PageId, Pages, Value, codec::Input};

/// The model of a sorted set: members with scores.
type Model = BTreeMap<Vec<u8>, f64>;

fn ordered(model: &Model) -> Vec<(Vec<u8>, f64)> {
    let mut all: Vec<_> = model.iter().map(|(member, &score)| (member.clone(), score)).collect();
    all.sort_by(|a, b| a.1.partial_cmp(&b.1).unwrap().then_with(|| a.0.cmp(&b.0)));
    all
}

fn content(set: &SortedSet) -> Vec<(Vec<u8>, f64)> {
    set.iter().map(|(member, score)| (member.to_vec(), score)).collect()
}

fn digest_of(set: &SortedSet) -> u128 {
    let mut digest = Digest::default();
    set.digest(&mut digest);
    digest.finish()
}

/// Writes the changed pages.
fn checkpoint(set: &SortedSet, dirty: &mut Dirty, disk: &mut BTreeMap<PageId, Vec<u8>>) {
    let part_of = |id| match id {
        PageId::Object { object, part } if set.object() == Some(object) => Some(part),
        _ => None,
    };
    dirty.begin(|id| part_of(id).is_some_and(|part| set.has_part(part)));
    while let Some((id, content)) = dirty.next(|id| part_of(id).and_then(|part| set.encode_part(part))) {
        match content {
            Some(content) => _ = disk.insert(id, content),
            None => _ = disk.remove(&id),
        }
    }
}

fn load(set: &SortedSet, disk: &BTreeMap<PageId, Vec<u8>>) -> Result<SortedSet, String> {
    let mut head = Vec::new();
    set.encode_head(&mut head);
    let mut input = Input::new(&head);
    let mut loaded = SortedSet::decode_head(&mut input, Hashing::PLAIN)?;
    input.end()?;
    for (id, content) in disk {
        let PageId::Object { part, .. } = *id else { unreachable!("a sorted set has no segments") };
        loaded.load_part(part, content)?;
    }
    loaded.loaded()?;
    Ok(loaded)
}

/// Checks that both have the same content and choices.
fn assert_alike(a: &SortedSet, b: &SortedSet) {
    assert_eq!((content(a), digest_of(a), a.encoding()), (content(b), digest_of(b), b.encoding()));
    for seed in 0..5 {
        assert_eq!(a.choose(&mut Chance::new(seed)), b.choose(&mut Chance::new(seed)));
        for count in [1, a.len() / 4, a.len() / 2, a.len()] {
            let chosen = a.choose_different(count, &mut Chance::new(seed));
            assert_eq!(chosen, b.choose_different(count, &mut Chance::new(seed)));
            assert_eq!(chosen.len(), count);
        }
    }
}

/// Checks ranks, ranges and edges.
fn assert_in_order(set: &SortedSet, model: &Model, chance: &mut Chance) {
    let all = ordered(model);
    assert_eq!(content(set), all);
    for _ in 0..20 {
        let score = random_score(chance);
        let before = all.iter().filter(|entry| entry.1 < score).count();
        let through = all.iter().filter(|entry| entry.1 <= score).count();
        assert_eq!(set.rank_of_edge(Edge::BeforeScore(score)), before);
        assert_eq!(set.rank_of_edge(Edge::AfterScore(score)), through);
        let (start, end) = (chance.below(all.len() + 1), chance.below(all.len() + 3));
        let expected = all.get(start..end.min(all.len())).unwrap_or_default();
        let range = |set: &SortedSet| -> Vec<_> {
            set.range(start..end).map(|(member, score)| (member.to_vec(), score)).collect()
        };
        assert_eq!(range(set), expected);
        let mut reversed: Vec<_> =
            set.range(start..end).rev().map(|(member, score)| (member.to_vec(), score)).collect();
        reversed.reverse();
        assert_eq!(reversed, expected);
        if let Some((member, score)) = all.get(start) {
            assert_eq!(set.rank(member), Some((start, *score)));
            if score == &all[0].1 {
                assert_eq!(set.rank_of_edge(Edge::BeforeMember(member)), start);
                assert_eq!(set.rank_of_edge(Edge::AfterMember(member)), start + 1);
            }
        }
    }
    assert_eq!(set.rank_of_edge(Edge::First), 0);
    assert_eq!(set.rank_of_edge(Edge::Last), all.len());
}

fn random_score(chance: &mut Chance) -> f64 {
    match chance.below(20) {
        0 => f64::INFINITY,
        1 => f64::NEG_INFINITY,
        2 => -0.0,
        3..12 => chance.below(20) as f64 - 10.0,
        _ => chance.below(1_000_000) as f64 / 1e3,
    }
}

fn run(seed: u64, range: usize, prefix: &str) {
    println!("seed {seed}, range {range}, prefix {prefix:?}");
    let (mut set, mut model, mut chance) = (SortedSet::default(), Model::new(), Chance::new(seed));
    let (mut dirty, mut next_object, mut disk) = (Dirty::default(), 1, BTreeMap::new());
    for step in 0..6_000 {
        let member = format!("{prefix}{}", chance.below(range)).into_bytes();
        let pages = &mut Pages::new(&mut dirty, &mut next_object, Hashing::PLAIN);
        // The set first grows, then shrinks.
        if chance.below(100) < if step < 4_000 { 80 } else { 5 } {
            let score = random_score(&mut chance);
            assert_eq!(set.insert(&member, score, pages), model.insert(member.clone(), score));
        } else {
            assert_eq!(set.remove(&member, pages), model.remove(&member));
        }
        assert_eq!((set.len(), set.score(&member)), (model.len(), model.get(&member).copied()));
        if step % 500 == 0 && !set.is_empty() {
            assert_in_order(&set, &model, &mut chance);
            checkpoint(&set, &mut dirty, &mut disk);
            assert_alike(&set, &load(&set, &disk).unwrap());
            let (mut dirty, mut next) = (Dirty::default(), 1);
            let Value::SortedSet(copy) = set.copy(&mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN))
            else {
                panic!()
            };
            assert_alike(&set, &copy);
        }
    }
    set.remove_pages(&mut dirty);
    set = SortedSet::default();
    checkpoint(&set, &mut dirty, &mut disk);
    assert!(disk.is_empty(), "no page stays");
}

#[test]
fn it_does_what_a_sorted_set_does_in_both_forms() {
    for seed in 0..2 {
        run(seed, 100, "");
        run(seed, 3_000, "member:");
        run(seed, 200, &"long".repeat(30));
    }
}

#[test]
fn the_same_members_have_one_digest_in_both_forms() {
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let mut build = |detour: &[u8]| {
        let mut set = SortedSet::default();
        set.insert(b"a", 1.5, pages);
        set.insert(detour, 2.0, pages);
        set.insert(b"b", f64::INFINITY, pages);
        set.remove(detour, pages);
        set
    };
    let (packed, paged) = (build(b"c"), build(&[b'c'; 65]));
    assert!(matches!((&packed.form, &paged.form), (Form::Packed(_), Form::Paged(_))));
    assert_eq!(digest_of(&packed), digest_of(&paged));
}

#[test]
fn ranks_are_found_among_many() {
    // A hundred thousand: enough for many nodes in the index.
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let mut set = SortedSet::default();
    const LEN: usize = 100_000;
    (0..LEN).for_each(|number| _ = set.insert(format!("{number:06}").as_bytes(), 0.0, pages));
    for number in (0..LEN).step_by(997) {
        assert_eq!(set.rank(format!("{number:06}").as_bytes()), Some((number, 0.0)));
        assert_eq!(set.range(number..number + 1).next().unwrap().0, format!("{number:06}").as_bytes());
    }
    // Keep only every tenth.
    for number in (0..LEN).filter(|number| number % 10 != 0) {
        set.remove(format!("{number:06}").as_bytes(), pages);
    }
    for number in (0..LEN / 10).step_by(97) {
        assert_eq!(set.rank(format!("{:06}", number * 10).as_bytes()), Some((number, 0.0)));
    }
}

#[test]
fn damaged_heads_are_errors_and_never_panics() {
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let mut set = SortedSet::default();
    for number in 0..PACKED_MEMBERS_MAX {
        set.insert(format!("m{number}").as_bytes(), number as f64 / 3.0, pages);
    }
    let (mut head, mut chance) = (Vec::new(), Chance::new(1));
    set.encode_head(&mut head);
    for len in 0..head.len() {
        assert!(SortedSet::decode_head(&mut Input::new(&head[..len]), Hashing::PLAIN).is_err());
    }
    for _ in 0..5_000 {
        let mut head = head.clone();
        let at = chance.below(head.len());
        head[at] ^= 1 << chance.below(8);
        if let Ok(mut set) = SortedSet::decode_head(&mut Input::new(&head), Hashing::PLAIN) {
            let _ = set.loaded();
            set.iter().for_each(|(member, score)| assert_eq!(set.score(member), Some(score)));
        }
    }
}

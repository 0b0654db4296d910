//! Tests sets against a model, through all forms, with checkpoints in between.

use std::collections::{BTreeMap, BTreeSet};

use super::{Form, INTEGERS_MAX, Set};
use crate::store::{Chance, Digest, Dirty, Hashing, Kind, PageId, Pages, Value, codec::Input};

fn digest_of(set: &Set) -> u128 {
    let mut digest = Digest::default();
    set.digest(&mut digest);
    digest.finish()
}

/// Writes the changed pages.
fn checkpoint(set: &Set, dirty: &mut Dirty, disk: &mut BTreeMap<PageId, Vec<u8>>) {
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

fn load(set: &Set, disk: &BTreeMap<PageId, Vec<u8>>) -> Result<Set, String> {
    let mut head = Vec::new();
    set.encode_head(&mut head);
    let mut input = Input::new(&head);
    let mut loaded = Set::decode_head(&mut input, Hashing::PLAIN)?;
    input.end()?;
    for (id, content) in disk {
        let PageId::Object { part, .. } = *id else { unreachable!("a set has no segments") };
        loaded.load_part(part, content)?;
    }
    loaded.loaded()?;
    Ok(loaded)
}

fn members(set: &Set) -> BTreeSet<Vec<u8>> {
    set.iter().map(|member| member.as_ref().to_vec()).collect()
}

/// Checks that both have the same members, pages and choices.
fn assert_alike(a: &Set, b: &Set) {
    assert_eq!((a.len(), digest_of(a), a.encoding()), (b.len(), digest_of(b), b.encoding()));
    for seed in 0..5 {
        assert_eq!(a.choose(&mut Chance::new(seed)), b.choose(&mut Chance::new(seed)));
        for count in [1, a.len() / 4, a.len() / 2, a.len()] {
            let choose = |set: &Set| -> Vec<Vec<u8>> {
                let chosen = set.choose_different(count, &mut Chance::new(seed));
                chosen.iter().map(|member| member.as_ref().to_vec()).collect()
            };
            let chosen = choose(a);
            assert_eq!(chosen, choose(b));
            assert_eq!(chosen.len(), count);
            assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), count, "all are different");
        }
    }
}

fn run(seed: u64, range: usize, prefix: &str) {
    println!("seed {seed}, range {range}, prefix {prefix:?}");
    let (mut set, mut model, mut chance) = (Set::default(), BTreeSet::new(), Chance::new(seed));
    let (mut dirty, mut next_object, mut disk) = (Dirty::default(), 1, BTreeMap::new());
    for step in 0..6_000 {
        let member = format!("{prefix}{}", chance.below(range) as i64 - range as i64 / 2).into_bytes();
        let pages = &mut Pages::new(&mut dirty, &mut next_object, Hashing::PLAIN);
        // The set first grows, then shrinks.
        if chance.below(100) < if step < 4_000 { 80 } else { 5 } {
            assert_eq!(set.insert(&member, pages), model.insert(member.clone()));
        } else {
            assert_eq!(set.remove(&member, pages), model.remove(&member));
        }
        assert_eq!((set.len(), set.contains(&member)), (model.len(), model.contains(&member)));
        if step % 500 == 0 && !set.is_empty() {
            checkpoint(&set, &mut dirty, &mut disk);
            assert_eq!(members(&set), model);
            assert_alike(&set, &load(&set, &disk).unwrap());
            let (mut dirty, mut next) = (Dirty::default(), 1);
            let Value::Set(copy) = set.copy(&mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN)) else {
                panic!()
            };
            assert_alike(&set, &copy);
        }
    }
    set.remove_pages(&mut dirty);
    set = Set::default();
    checkpoint(&set, &mut dirty, &mut disk);
    assert!(disk.is_empty(), "no page stays");
}

#[test]
fn it_does_what_a_set_does_in_every_form() {
    for seed in 0..2 {
        run(seed, 100, "");
        run(seed, 3_000, "");
        run(seed, 60, "member:");
        run(seed, 3_000, "member:");
        run(seed, 200, &"long".repeat(30));
    }
}

#[test]
fn the_same_members_have_one_digest_in_every_form() {
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let mut build = |detour: &[u8]| {
        let mut set = Set::default();
        set.insert(b"7", pages);
        set.insert(detour, pages);
        set.insert(b"-3", pages);
        set.remove(detour, pages);
        set
    };
    let (integers, packed, paged) = (build(b"1"), build(b"a"), build(&[b'a'; 65]));
    assert!(matches!(integers.form, Form::Integers(_)));
    assert!(matches!(packed.form, Form::Packed(_)));
    assert!(matches!(paged.form, Form::Paged { .. }));
    assert_eq!(digest_of(&integers), digest_of(&packed));
    assert_eq!(digest_of(&integers), digest_of(&paged));
}

#[test]
fn integers_stay_integers_up_to_the_limit() {
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let mut set = Set::default();
    for integer in [i64::MIN, i64::MAX, 0, -1].into_iter().chain(1..INTEGERS_MAX as i64 - 3) {
        assert!(set.insert(integer.to_string().as_bytes(), pages));
    }
    assert_eq!((set.len(), set.encoding()), (INTEGERS_MAX, "intset"));
    assert_alike(&set, &load(&set, &BTreeMap::new()).unwrap());
    assert!(!set.insert(b"0", pages));
    assert_eq!(set.encoding(), "intset");
    assert!(set.insert(b"1000", pages));
    assert_eq!((set.len(), set.encoding()), (INTEGERS_MAX + 1, "hashtable"));
}

#[test]
fn damaged_heads_are_errors_and_never_panics() {
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    let (mut integers, mut packed) = (Set::default(), Set::default());
    for number in 0..40 {
        integers.insert(format!("{}", number * 1_000).as_bytes(), pages);
        packed.insert(format!("m{number}").as_bytes(), pages);
    }
    let mut chance = Chance::new(1);
    for set in [integers, packed] {
        let mut head = Vec::new();
        set.encode_head(&mut head);
        for len in 0..head.len() {
            assert!(Set::decode_head(&mut Input::new(&head[..len]), Hashing::PLAIN).is_err());
        }
        for _ in 0..3_000 {
            let mut head = head.clone();
            let at = chance.below(head.len());
            head[at] ^= 1 << chance.below(8);
            if let Ok(mut set) = Set::decode_head(&mut Input::new(&head), Hashing::PLAIN) {
                let _ = set.loaded();
                set.iter().for_each(|member| assert!(set.contains(member.as_ref())));
            }
        }
    }
}

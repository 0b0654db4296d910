//! Tests lists, and the contents of their pages, against a deque.

use std::collections::VecDeque;

use crate::store::{
    Chance, Ctx, Deadline, Dirty, End, Hashing, Kind, Pages, State, StateLoader, View,
    codec::Input,
    dirty::PageId,
    list::List,
    object::{Typed, Value},
};

/// A list with the parts of a state that it needs, and a model of it.
#[derive(Default)]
struct Subject {
    list: List,
    model: VecDeque<Vec<u8>>,
    dirty: Dirty,
    next_object: u64,
}

impl Subject {
    fn change<R>(&mut self, change: impl FnOnce(&mut List, &mut Pages<'_>) -> R) -> R {
        change(&mut self.list, &mut Pages::new(&mut self.dirty, &mut self.next_object, Hashing::PLAIN))
    }

    fn check(&self) {
        self.list.invariants();
        assert_eq!(self.list.len(), self.model.len());
        assert!(self.list.iter().eq(self.model.iter().map(Vec::as_slice)));
        assert!(self.list.iter().rev().eq(self.model.iter().rev().map(Vec::as_slice)));
    }

    /// Every page as a checkpoint would write it, in the order of parts.
    fn pages(&mut self) -> Vec<(u64, Vec<u8>)> {
        let list = &self.list;
        let part_of = |id| match id {
            PageId::Object { part, object } if list.object() == Some(object) => Some(part),
            _ => None,
        };
        self.dirty.begin(|id| part_of(id).is_some_and(|part| list.has_part(part)));
        let mut pages = Vec::new();
        while let Some((id, content)) = self.dirty.next(|id| list.encode_part(part_of(id)?)) {
            pages.extend(content.and_then(|content| Some((part_of(id)?, content))));
        }
        pages
    }

    fn step(&mut self, chance: &mut Chance, grows: bool) {
        let value = element(chance);
        let index = chance.below(self.model.len() + 1);
        let end = if chance.below(2) == 0 { End::Left } else { End::Right };
        match chance.below(if grows { 8 } else { 11 }) {
            0 | 1 => {
                self.change(|list, pages| list.push(end, &value, pages));
                match end {
                    End::Left => self.model.push_front(value),
                    End::Right => self.model.push_back(value),
                }
            }
            // Repeatedly at one place, so that the gap between neighbours is used up.
            2..6 => {
                let index = if chance.below(20) > 0 { self.model.len() / 3 } else { index };
                self.change(|list, pages| list.insert(index, &value, pages));
                self.model.insert(index, value);
            }
            6 | 7 if index < self.model.len() => {
                self.change(|list, pages| list.set(index, &value, pages));
                self.model[index] = value;
            }
            8 | 9 => {
                let count = chance.below(2 + self.model.len() / 2).min(self.model.len());
                self.change(|list, pages| list.drop_end(end, count, pages));
                match end {
                    End::Left => _ = self.model.drain(..count),
                    End::Right => self.model.truncate(self.model.len() - count),
                }
            }
            10 => self.remove_equal(&value, chance.below(30), end),
            _ => {}
        }
    }

    fn remove_equal(&mut self, value: &[u8], max: usize, end: End) {
        let removed = self.change(|list, pages| list.remove_equal(value, max, end, pages));
        let mut left = max;
        let mut kept = VecDeque::new();
        while let Some(present) = match end {
            End::Left => self.model.pop_front(),
            End::Right => self.model.pop_back(),
        } {
            if present == value && left > 0 {
                left -= 1;
            } else if end == End::Left {
                kept.push_back(present);
            } else {
                kept.push_front(present);
            }
        }
        self.model = kept;
        assert_eq!(removed, max - left);
    }
}

fn element(chance: &mut Chance) -> Vec<u8> {
    let len = match chance.below(100) {
        0 => 9_000 + chance.below(8_000),
        1..20 => 500 + chance.below(3_000),
        _ => chance.below(3),
    };
    vec![b'a' + chance.below(2) as u8; len]
}

fn digest_of(list: &List) -> u128 {
    let mut digest = crate::store::Digest::default();
    list.digest(&mut digest);
    digest.finish()
}

#[test]
fn lists_do_what_a_deque_does_and_their_pages_hold_them() {
    for seed in 0..4 {
        println!("seed {seed}");
        let (mut subject, mut chance) = (Subject::default(), Chance::new(seed));
        let (mut chained, mut packed_again) = (0, 0);
        // The pages after each checkpoint: only changed ones are written.
        let mut disk = std::collections::BTreeMap::new();
        for step in 0..3_000 {
            let was_chained = subject.list.object();
            subject.step(&mut chance, step % 1_000 < 700);
            match (was_chained, subject.list.object()) {
                (None, Some(_)) => chained += 1,
                (Some(_), None) => packed_again += 1,
                _ => {}
            }
            if step % 50 > 0 {
                continue;
            }
            subject.check();
            if was_chained != subject.list.object() || step % 1_000 == 0 {
                disk.clear();
            }
            disk.extend(subject.pages());
            disk.retain(|&part, _| subject.list.has_part(part));
            for (&part, content) in &disk {
                assert_eq!(subject.list.encode_part(part).as_ref(), Some(content), "step {step}");
            }
            if subject.list.is_empty() {
                continue;
            }
            let loaded = load(&subject.list);
            assert!(loaded.iter().eq(subject.list.iter()));
            assert_eq!(digest_of(&loaded), digest_of(&subject.list));
            assert_eq!(loaded.head_bytes(), subject.list.head_bytes());
        }
        assert!(chained > 0 && packed_again > 0, "both forms were there: {chained}, {packed_again}");
    }
}

/// The list loaded from its head and all its pages.
fn load(list: &List) -> List {
    let mut head = Vec::new();
    list.encode_head(&mut head);
    let mut input = Input::new(&head);
    let mut loaded = List::decode_head(&mut input).unwrap();
    input.end().unwrap();
    for part in list.parts() {
        loaded.load_part(part, &list.encode_part(part).unwrap()).unwrap();
    }
    loaded.loaded().unwrap();
    loaded.invariants();
    loaded
}

#[test]
fn numbers_between_neighbours_do_not_run_out() {
    let (mut subject, mut disk) = (Subject::default(), std::collections::BTreeMap::new());
    let mut renumbered = 0;
    for number in 0..6_000 {
        // First create chunks on both sides, then insert everything between two of them.
        let element = format!("{number:100}").into_bytes();
        let before = subject.list.parts();
        let index = if number < 2_000 { number } else { 1_000 };
        subject.change(|list, pages| list.insert(index, &element, pages));
        subject.model.insert(index, element);
        renumbered += usize::from(!before.iter().all(|&part| subject.list.has_part(part)));
        if number % 97 == 0 {
            subject.list.invariants();
            disk.extend(subject.pages());
            disk.retain(|&part, _| subject.list.has_part(part));
            assert!(subject.list.parts().iter().eq(disk.keys()));
            assert!(disk.iter().all(|(&part, page)| subject.list.encode_part(part).as_ref() == Some(page)));
        }
    }
    subject.check();
    assert!(load(&subject.list).iter().eq(subject.list.iter()));
    assert!(renumbered > 1, "{renumbered} times");
}

#[test]
fn packed_and_chained_lists_of_the_same_content_have_equal_digests() {
    let mut subject = Subject::default();
    let (mut packed, mut dirty, mut next) = (List::default(), Dirty::default(), 100);
    for number in 0..3_000 {
        let element = format!("{number}");
        subject.change(|list, pages| list.push(End::Right, element.as_bytes(), pages));
    }
    assert!(subject.list.object().is_some());
    subject.change(|list, pages| list.drop_end(End::Left, 2_700, pages));
    for number in 2_700..3_000 {
        packed.push(
            End::Right,
            format!("{number}").as_bytes(),
            &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN),
        );
    }
    assert!(packed.object().is_none() && subject.list.object().is_some());
    assert_eq!(digest_of(&packed), digest_of(&subject.list));
    let copy = subject.list.copy(&mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN));
    assert_eq!(digest_of(List::of(&copy).unwrap()), digest_of(&packed));
    assert_ne!(List::of(&copy).unwrap().object(), subject.list.object());
}

#[test]
fn collections_in_a_state_are_loaded_from_their_pages_and_damage_is_an_error() {
    let mut state = State::new();
    let push = |state: &mut State, key: &[u8], count: usize| {
        let change = |list: &mut List, pages: &mut Pages<'_>| {
            (0..count).for_each(|number| list.push(End::Right, format!("{number:30}").as_bytes(), pages));
            Ok(())
        };
        Ctx::new(state, 0, 0).modify_or_create(key, change).unwrap();
    };
    push(&mut state, b"small", 10);
    push(&mut state, b"large", 2_000);
    let set = |state: &mut State, key: &[u8], count: usize| {
        let change = |hash: &mut crate::store::Hash, pages: &mut Pages<'_>| {
            (0..count).for_each(|number| _ = hash.set(format!("{number:30}").as_bytes(), b"v", pages));
            Ok(())
        };
        Ctx::new(state, 0, 0).modify_or_create(key, change).unwrap();
    };
    set(&mut state, b"hash", 10);
    set(&mut state, b"table", 1_000);
    Ctx::new(&mut state, 0, 0).copy(b"large", 0, b"copy");
    Ctx::new(&mut state, 0, 0).rename(b"large", b"renamed");
    state.invariants();
    let head = state.checkpoint_begin();
    let mut pages = Vec::new();
    state.checkpoint_step(usize::MAX, |id, content| pages.extend(content.map(|content| (id, content))));
    let load = |pages: &[(PageId, Vec<u8>)]| -> Result<State, String> {
        let mut loader = StateLoader::default();
        pages.iter().try_for_each(|(id, content)| loader.page(*id, content))?;
        loader.finish(&head)
    };
    let loaded = load(&pages).unwrap();
    loaded.invariants();
    assert_eq!(loaded.digest(), state.digest());
    for missing in 0..pages.len() {
        let mut pages = pages.clone();
        pages.remove(missing);
        assert!(load(&pages).is_err(), "page {missing} is missing");
    }
    let mut chance = Chance::new(1);
    for _ in 0..2_000 {
        let mut pages = pages.clone();
        let page = chance.below(pages.len());
        let content = &mut pages[page].1;
        let at = chance.below(content.len().min(2_000));
        match chance.below(3) {
            0 => content.truncate(at),
            1 => content[at] ^= 1 << chance.below(8),
            _ => content[at] = chance.below(256) as u8,
        }
        if let Ok(damaged) = load(&pages) {
            damaged.digest();
        }
    }
    for key in [&b"small"[..], b"copy", b"renamed", b"hash", b"table"] {
        assert!(Ctx::new(&mut state, 0, 0).delete(key));
    }
    let mut disk: std::collections::BTreeSet<_> = pages.into_iter().map(|(id, _)| id).collect();
    state.checkpoint_begin();
    state.checkpoint_step(usize::MAX, |id, content| {
        assert!(content.is_none());
        disk.remove(&id);
    });
    assert!(disk.is_empty(), "pages stay of what was deleted: {disk:?}");
    assert!(View::new(&state, 0, 0, 0).is_empty());
    Ctx::new(&mut state, 0, 0).put(b"empty", List::default(), Deadline::None);
    assert!(View::new(&state, 0, 0, 0).is_empty());
    assert!(matches!(List::default().into_value(), Value::List(_)));
}

//! Tests the store against a model: random changes, equal results, and the invariants after each step.

use std::collections::BTreeMap;

use super::{Chance, Ctx, Deadline, PageId, Record, State, StateLoader, View};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    value: Vec<u8>,
    deadline: Option<u64>,
}

type Model = BTreeMap<Vec<u8>, Entry>;

fn alive(model: &Model, now_ms: u64) -> Model {
    let is_alive = |entry: &Entry| entry.deadline.is_none_or(|deadline| deadline >= now_ms);
    model
        .iter()
        .filter(|(_, entry)| is_alive(entry))
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect()
}

fn content(state: &State) -> Model {
    let view = View::new(state, 0, 0, 0);
    let entry =
        |record: &Record| Entry { value: record.string().unwrap().to_vec(), deadline: record.deadline() };
    view.keys().map(|record| (record.key().to_vec(), entry(record))).collect()
}

fn step(state: &mut State, model: &mut Model, chance: &mut Chance) {
    // One hash tag: all keys are in one slot, so that its segments split and merge.
    let mut key = || format!("{{tag}}{}", chance.below(600)).into_bytes();
    let (key, other) = (key(), key());
    let value = vec![b'x'; [5, 100, 1_000, 20_000, 50_000][chance.below(100).min(40) / 10]];
    let now_ms = state.now_ms();
    let mut ctx = Ctx::new(state, 0, 0);
    match chance.below(10) {
        0..4 => {
            let deadline = (chance.below(3) == 0).then(|| now_ms + chance.below(200) as u64);
            ctx.set(&key, &value, deadline.map_or(Deadline::None, Deadline::At));
            model.insert(key, Entry { value, deadline });
        }
        4 => {
            let tail = &value[..value.len().min(3_000)];
            let len = model.get(&key).map_or(0, |entry| entry.value.len());
            ctx.write_string(&key, len, tail).unwrap();
            model.entry(key).or_insert(Entry { value: Vec::new(), deadline: None }).value.extend(tail);
        }
        5 | 6 => assert_eq!(ctx.delete(&key), model.remove(&key).is_some()),
        7 => {
            assert_eq!(ctx.rename(&key, &other), model.contains_key(&key));
            if let Some(entry) = model.remove(&key) {
                model.insert(other, entry);
            }
        }
        8 => {
            assert_eq!(ctx.set_deadline(&key, Some(now_ms + 50)), model.contains_key(&key));
            model.entry(key).and_modify(|entry| entry.deadline = Some(now_ms + 50));
        }
        _ => {
            state.advance(now_ms + chance.below(10) as u64, 1);
            *model = alive(model, state.now_ms());
            state.reap(chance.below(20));
        }
    }
}

#[test]
fn the_store_does_what_its_model_does() {
    for seed in 0..2 {
        let (mut state, mut model, mut chance) = (State::new(), Model::new(), Chance::new(seed));
        state.advance(1_000, 1);
        for number in 0..4_000 {
            step(&mut state, &mut model, &mut chance);
            if number % 100 == 0 {
                state.invariants();
                assert_eq!(content(&state), model, "seed {seed}, step {number}");
            }
        }
        Ctx::new(&mut state, 0, 0).flush_all();
        state.invariants();
        assert!(content(&state).is_empty());
    }
}

#[test]
fn no_page_stays_of_what_was_deleted() {
    let mut state = State::new();
    let keys: Vec<_> = (0..3_000).map(|number| format!("{{tag}}{number}").into_bytes()).collect();
    keys.iter().for_each(|key| Ctx::new(&mut state, 0, 0).set(key, &[0; 100], Deadline::None));
    Ctx::new(&mut state, 0, 0).set(b"long", &[1; 100_000], Deadline::None);
    let mut pages = BTreeMap::new();
    let mut checkpoint = |state: &mut State| {
        state.checkpoint_begin();
        state.checkpoint_step(usize::MAX, |id, content| match content {
            Some(content) => _ = pages.insert(id, content),
            None => _ = pages.remove(&id),
        });
        pages.len()
    };
    assert!(checkpoint(&mut state) > 20);
    keys.iter().for_each(|key| assert!(Ctx::new(&mut state, 0, 0).delete(key)));
    Ctx::new(&mut state, 0, 0).delete(b"long");
    assert_eq!(checkpoint(&mut state), 0);
}

#[test]
fn reads_see_the_dead_as_missing_and_tell_the_late() {
    let mut state = State::new();
    state.advance(1_000, 1);
    Ctx::new(&mut state, 0, 0).set(b"k", b"v", Deadline::At(1_500));
    let late = |state: &State, estimate_ms| {
        let view = View::new(state, 0, estimate_ms, 0);
        (view.exists(b"k"), view.late.get())
    };
    assert_eq!(late(&state, 1_500), (true, false));
    assert_eq!(late(&state, 1_501), (true, true));
    state.advance(1_500, 1);
    assert_eq!(late(&state, 1_500), (true, false));
    state.advance(1_501, 1);
    assert_eq!(late(&state, 1_501), (false, false));
    assert_eq!(View::new(&state, 0, 0, 0).version(b"k"), 0);
    assert_eq!(View::new(&state, 0, 0, 0).len(), 1);
    state.reap(1);
    assert_eq!(View::new(&state, 0, 0, 0).len(), 0);
}

#[test]
fn damaged_pages_are_errors_and_never_panics() {
    let mut state = State::new();
    for number in 0..300u32 {
        let deadline = Deadline::At(u64::from(number) + 1);
        Ctx::new(&mut state, 0, 0).set(format!("{{tag}}{number}").as_bytes(), &[0; 40], deadline);
    }
    Ctx::new(&mut state, 0, 0).set(b"long", &[1; 40_000], Deadline::None);
    let head = state.checkpoint_begin();
    let mut pages = Vec::new();
    state.checkpoint_step(usize::MAX, |id, content| pages.extend(content.map(|content| (id, content))));
    let load = |pages: &[(PageId, Vec<u8>)], head: &[u8]| -> Result<State, String> {
        let mut loader = StateLoader::default();
        pages.iter().try_for_each(|(id, content)| loader.page(*id, content))?;
        loader.finish(head)
    };
    assert_eq!(load(&pages, &head).unwrap().digest(), state.digest());
    for missing in 0..pages.len() {
        let mut pages = pages.clone();
        pages.remove(missing);
        assert!(load(&pages, &head).is_err(), "page {missing} is missing");
    }
    let mut chance = Chance::new(1);
    for _ in 0..3_000 {
        let mut pages = pages.clone();
        let page = chance.below(pages.len());
        let content = &mut pages[page].1;
        let at = chance.below(content.len().min(2_000));
        match chance.below(3) {
            0 => content.truncate(at),
            1 => content[at] ^= 1 << chance.below(8),
            _ => content[at] = chance.below(256) as u8,
        }
        let mut head = head.clone();
        if chance.below(4) == 0 {
            let at = chance.below(head.len());
            head[at] ^= 1 << chance.below(8);
        }
        // The change may go unnoticed here; the page store's CRC detects it.
        let _ = load(&pages, &head);
    }
}

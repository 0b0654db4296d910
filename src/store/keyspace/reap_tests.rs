//! Tests what ends many keys at once: nothing is left of it, in memory or on the disk, and where it takes several
//! entries, nobody sees what is over.

use std::collections::BTreeMap;

use crate::store::{
    Acquire, ClaimKind, Ctx, Deadline, Lease, Share, Span, State, StateLoader, Ticket, View, dirty::PageId,
    level, set::Set,
};

type Disk = BTreeMap<PageId, Vec<u8>>;

/// Takes a checkpoint, and loads a state from what is on the disk then.
fn reloaded(state: &mut State, disk: &mut Disk) -> State {
    let head = state.checkpoint_begin();
    state.checkpoint_step(usize::MAX, |id, content| match content {
        Some(content) => _ = disk.insert(id, content),
        None => _ = disk.remove(&id),
    });
    let mut loader = StateLoader::default();
    disk.iter().for_each(|(id, content)| loader.page(*id, content).unwrap());
    let mut loaded = loader.finish(&head).unwrap();
    assert_eq!(loaded.digest(), state.digest());
    loaded.enter(state.applied, state.level());
    loaded
}

fn acquire(ctx: &mut Ctx<'_>, lock: &[u8], owner: &[u8], span: Span, wait: Option<(Ticket, u64)>) {
    let (share, data, delay_ms, is_counted) = (Share::All, None, 0, true);
    let asked = Acquire { owner, share, span, data, delay_ms, wait, is_counted };
    ctx.claims_or_new(lock, ClaimKind::Lock, |claims, turn| claims.acquire(&asked, turn)).unwrap();
}

/// Keys of all kinds in a database: plain ones, with and without a deadline, large ones, leases with keys, a lock that
/// is held, waited for, and guards keys.
fn fill(state: &mut State, db: u32, count: usize) {
    let now_ms = state.now_ms();
    let mut ctx = Ctx::new(state, db, 0);
    for number in 0..count {
        let key = |kind: &str| format!("{kind}:{number}").into_bytes();
        ctx.set(&key("plain"), b"v", Deadline::None);
        ctx.set(&key("mortal"), b"v", Deadline::At(now_ms + 100 + number as u64 % 7));
        if number % 50 == 0 {
            ctx.set(&key("long"), &vec![1; 40_000], Deadline::None);
            ctx.modify_or_create(&key("set"), |set: &mut Set, pages| {
                (0..2_000).for_each(|member| _ = set.insert(format!("member:{member}").as_bytes(), pages));
                Ok(())
            })
            .unwrap();
            ctx.renew_lease(&key("lease"), Some(Lease::new(1_000))).unwrap();
            ctx.attach(&key("lease"), &key("plain"));
            acquire(&mut ctx, &key("lock"), b"a", Span::Lease(key("lease").as_slice().into()), None);
            let ticket = Ticket { node: 1, boot: u64::from(db) + 1, number: number as u64 };
            acquire(&mut ctx, &key("lock"), b"b", Span::Ms(500), Some((ticket, now_ms + 5_000)));
            ctx.guard(&key("mortal"), &key("lock")).unwrap();
        }
    }
}

#[test]
fn nothing_is_left_of_flushed_databases() {
    for (few, is_all) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut state, mut disk) = (State::new(), Disk::new());
        state.advance(1_000, 1);
        fill(&mut state, 1, if few { 51 } else { 400 });
        let alone = state.used_bytes();
        for db in [0, 2] {
            fill(&mut state, db, if few { 51 } else { 400 });
        }
        // Some is on the disk, some is not, and some is being written.
        reloaded(&mut state, &mut disk);
        Ctx::new(&mut state, 0, 0).set(b"late", &[2; 50_000], Deadline::None);
        state.invariants();
        state.take_wakes();
        let waiting = |state: &State| state.waiting_nodes().collect::<Vec<_>>();
        assert_eq!(waiting(&state), [(1, 1), (1, 2), (1, 3)]);
        if is_all {
            Ctx::new(&mut state, 2, 0).flush_all();
        } else {
            Ctx::new(&mut state, 0, 0).flush_db();
            Ctx::new(&mut state, 2, 0).flush_db();
        }
        let dbs = if is_all { 3 } else { 2 };
        assert_eq!(state.take_wakes().len(), dbs * if few { 2 } else { 8 }, "who waited is told");
        state.invariants();
        for db in [0, 2] {
            let view = View::new(&state, db, 0, 0);
            assert!(view.is_empty() && view.expires() == 0 && view.guard_of(b"mortal:0").is_none());
        }
        assert_eq!(state.used_bytes(), if is_all { 0 } else { alone });
        assert_eq!(waiting(&state), if is_all { vec![] } else { vec![(1, 2)] });
        let mut loaded = reloaded(&mut state, &mut disk);
        loaded.invariants();
        let fresh =
            disk.keys().filter(|id| !matches!(id, PageId::Segment { db: 1, .. } | PageId::Object { .. }));
        assert_eq!(fresh.count(), 0, "no page is left");
        assert_eq!(disk.is_empty(), is_all);
        // Both go on alike.
        for state in [&mut state, &mut loaded] {
            fill(state, 0, 60);
            state.advance(3_000, 1);
            (0..50).for_each(|_| state.reap(1_000));
            state.invariants();
        }
        assert_eq!(loaded.digest(), state.digest());
    }
}

const LEASES: usize = 30;
const KEYS: usize = 1_000;

fn key_of(lease: usize, number: usize) -> Vec<u8> {
    format!("{lease}:{number}").into_bytes()
}

/// Leases with keys and a lock each, all of which run out together, at a time when nothing is done for them yet.
fn run_out(level: u32) -> State {
    let mut state = State::new();
    state.enter(1, level);
    state.advance(1_000, 1);
    let mut ctx = Ctx::new(&mut state, 0, 0);
    for lease in 0..LEASES {
        let id = format!("lease:{lease}").into_bytes();
        ctx.renew_lease(&id, Some(Lease::new(500))).unwrap();
        for number in 0..KEYS {
            ctx.set(&key_of(lease, number), b"v", Deadline::None);
            ctx.attach(&id, &key_of(lease, number));
        }
        let lock = format!("lock:{lease}").into_bytes();
        acquire(&mut ctx, &lock, b"a", Span::Lease(id.as_slice().into()), None);
    }
    state.enter(2, level);
    state.advance(1_501, 1);
    state
}

#[test]
fn leases_that_run_out_together_end_in_steps_that_nobody_sees() {
    let mut state = run_out(level::LIMITS);
    let seen = |state: &State| {
        let view = View::new(state, 0, 0, 0);
        let all = (0..LEASES).flat_map(|lease| (0..KEYS).map(move |number| key_of(lease, number)));
        all.filter(|key| view.exists(key) || view.version(key) > 0 || view.string(key) != Ok(None)).count()
            + view.keys().filter(|record| record.claims().is_none()).count()
    };
    assert_eq!(seen(&state), 0, "before the first step");
    let (mut steps, mut disk) = (0, Disk::new());
    let mut loaded = reloaded(&mut state, &mut disk);
    while state.first_deadline_ms().is_some_and(|deadline| deadline < state.now_ms()) {
        let before = View::new(&state, 0, 0, 0).len();
        for state in [&mut state, &mut loaded] {
            state.reap(1_000);
        }
        assert!(before - View::new(&state, 0, 0, 0).len() <= 12 * (KEYS + 2), "a step is short");
        assert_eq!((seen(&state), loaded.digest()), (0, state.digest()));
        if steps == 0 {
            loaded = reloaded(&mut state, &mut disk);
            for state in [&mut state, &mut loaded] {
                write_between(state);
            }
            // These are no longer what the lease had.
            let view = View::new(&state, 0, 0, 0);
            assert_eq!((view.string(b"29:7"), view.exists(b"29:8")), (Ok(Some(&b"new"[..])), false));
            for key in [&b"29:7"[..], b"29:9"] {
                Ctx::new(&mut state, 0, 0).delete(key);
                Ctx::new(&mut loaded, 0, 0).delete(key);
            }
        }
        steps += 1;
    }
    assert!(steps >= 3, "{steps} steps");
    assert_eq!(View::new(&state, 0, 0, 0).len(), 1, "the lock that was taken between two steps");
    state.invariants();
}

/// A new leader gives leases more time that could not be renewed for want of a leader, but none that had run out.
#[test]
fn a_new_leader_revives_no_lease() {
    let mut state = run_out(level::LIMITS);
    state.reap(1_000);
    assert!(state.first_deadline_ms().is_some_and(|deadline| deadline < state.now_ms()), "some are left");
    let mut loaded = reloaded(&mut state, &mut Disk::new());
    for state in [&mut state, &mut loaded] {
        Ctx::new(state, 0, 0).set(b"29:7", b"new", Deadline::None);
        state.enter(3, level::LIMITS);
        state.advance(1_502, 2);
        let view = View::new(state, 0, 0, 0);
        let all = (0..LEASES).flat_map(|lease| (0..KEYS).map(move |number| key_of(lease, number)));
        assert_eq!(all.filter(|key| view.exists(key)).count(), 1, "what was written since");
        assert!((0..LEASES).all(|lease| !view.exists(format!("lease:{lease}").as_bytes())));
        state.invariants();
    }
    assert_eq!(loaded.digest(), state.digest());
    // One that was alive is extended.
    let mut state = run_out(level::LIMITS);
    Ctx::new(&mut state, 0, 0).renew_lease(b"late", Some(Lease::new(500))).unwrap();
    state.enter(3, level::LIMITS);
    state.advance(2_001, 2);
    state.enter(4, level::LIMITS);
    state.advance(2_400, 2);
    assert!(View::new(&state, 0, 0, 0).exists(b"late"));
}

/// Writes to what is left of a lease that has run out.
fn write_between(state: &mut State) {
    let mut ctx = Ctx::new(state, 0, 0);
    let keys = [&b"29:7"[..], b"29:8", b"lock:29"];
    ctx.settle(|| keys.into_iter());
    assert!(ctx.view().claims(b"lock:29", ClaimKind::Lock).unwrap().is_none(), "nobody holds it");
    assert!(!ctx.delete(b"29:8"));
    ctx.set(b"29:7", b"new", Deadline::Keep);
    assert!(!ctx.rename(b"29:9", b"elsewhere"));
    ctx.copy(b"29:10", 0, b"29:9");
    assert!(!ctx.exists(b"29:9"));
    ctx.set(b"29:9", b"new", Deadline::None);
    acquire(&mut ctx, b"lock:29", b"b", Span::Ms(60_000), None);
    state.invariants();
}

/// Below the level, as it was applied then.
#[test]
fn below_the_level_they_end_in_one_step() {
    let mut state = run_out(level::WAITS);
    assert!(View::new(&state, 0, 0, 0).exists(b"29:7"));
    state.reap(1_000);
    assert_eq!(View::new(&state, 0, 0, 0).len(), 0);
    state.invariants();
}

#[test]
fn a_lease_has_so_many_keys_from_the_level_on() {
    use crate::store::lease::LEASE_KEYS_MAX;
    let mut lease = Lease::new(1);
    let names: Vec<Vec<u8>> = (0..LEASE_KEYS_MAX + 1).map(|number| number.to_string().into_bytes()).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    assert!(lease.has_room(&names[1..], level::LIMITS) && !lease.has_room(&names, level::LIMITS));
    assert!(lease.has_room(&names, level::WAITS));
    names[1..].iter().for_each(|name| lease.attach(name));
    assert!(lease.has_room(&names[1..], level::LIMITS), "those that it has");
    assert!(!lease.has_room(&names[..1], level::LIMITS));
    let longest = vec![b'x'; 1 << 20];
    assert!(Lease::new(1).has_room(&[&longest, &longest], level::LIMITS), "named twice");
    assert!(!Lease::new(1).has_room(&[&longest, b"y"], level::LIMITS));
}

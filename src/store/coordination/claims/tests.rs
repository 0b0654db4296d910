//! Tests claims against a plain model of who asked, who was told and who holds: random owners, waits,
//! disconnects and jumps of the clock.

use std::collections::BTreeMap;

use crate::store::{
    Acquire, Answer, ClaimKind, Ctx, Lease, Outcome, Share, Span, State, Ticket, Until, View, Wake,
    claims::{CLAIMS_BYTES_MAX, row::LOOKS},
    owner::ABSENCE_MS_MAX,
};

const KEYS: [&[u8]; 3] = [b"one", b"two", b"three"];

#[derive(Clone, Debug)]
struct Wait {
    key: &'static [u8],
    owner: u8,
    share: Share,
    ttl_ms: u64,
    /// Its place in the queue: earlier places are lower.
    place: u64,
    deadline: u64,
    /// Its client is gone.
    is_absent: bool,
}

impl Wait {
    fn leave(&mut self, now: u64) {
        if !self.is_absent {
            (self.is_absent, self.deadline) = (true, self.deadline.min(now + ABSENCE_MS_MAX));
        }
    }
}

#[derive(Clone, Debug)]
struct Hold {
    token: u64,
    count: u64,
    share: Share,
    until: u64,
    ticket: Option<Ticket>,
}

/// The model.
#[derive(Default)]
struct Book {
    waits: BTreeMap<Ticket, Wait>,
    holds: BTreeMap<(&'static [u8], u8), Hold>,
    last_token: u64,
    places: u64,
    tickets: u64,
    granted_late: usize,
    timed_out: usize,
}

impl Book {
    fn granted(&mut self, token: u64) {
        assert!(token > self.last_token, "token {token} after {}", self.last_token);
        self.last_token = token;
    }

    /// Receives wakes. `may_be_gone` and `superseded` give the permitted reasons.
    fn hear(&mut self, wakes: Vec<Wake>, now: u64, may_be_gone: bool, superseded: Option<Ticket>) {
        for Wake { ticket, outcome, .. } in wakes {
            let wait = self.waits.remove(&ticket).expect("whoever waits is told once, and nobody else");
            match outcome {
                Outcome::Granted { token, remaining_ms, .. } => {
                    assert!(!wait.is_absent, "granted to nobody");
                    self.granted(token);
                    assert_eq!(remaining_ms, Some(wait.ttl_ms));
                    let before = self.waits.values().find(|other| {
                        let is_before = other.key == wait.key && other.place < wait.place;
                        is_before && other.deadline >= now && !other.is_absent
                    });
                    assert!(before.is_none(), "{wait:?} overtook {before:?}");
                    let (share, until) = (wait.share, now + wait.ttl_ms);
                    let hold = Hold { token, count: 1, share, until, ticket: Some(ticket) };
                    self.holds.insert((wait.key, wait.owner), hold);
                    self.granted_late += 1;
                }
                Outcome::TimedOut => {
                    assert!(wait.deadline < now);
                    self.timed_out += 1;
                }
                Outcome::Superseded => assert_eq!(Some(ticket), superseded),
                Outcome::Gone => assert!(may_be_gone),
                Outcome::OutOfContact | Outcome::Unknown => unreachable!("claims do not end so"),
            }
        }
    }

    /// Compares the model with the state.
    fn compare(&mut self, state: &State) {
        let now = state.now_ms();
        self.holds.retain(|_, hold| hold.until >= now);
        for key in KEYS {
            let view = View::new(state, 0, now, 0);
            let claims = view.claims(key, ClaimKind::Lock).unwrap();
            let found: BTreeMap<u8, (u64, u64, Until)> = claims
                .into_iter()
                .flat_map(|claims| claims.holders(now))
                .map(|hold| (hold.owner[0], (hold.token, hold.count, hold.until.clone())))
                .collect();
            let held = || self.holds.iter().filter(|((of, _), _)| *of == key);
            let expected: BTreeMap<u8, _> = held()
                .map(|((_, owner), hold)| (*owner, (hold.token, hold.count, Until::At(hold.until))))
                .collect();
            assert_eq!(found, expected, "who holds {}", key.escape_ascii());
            let alone = held().filter(|(_, hold)| hold.share == Share::All).count();
            assert!(alone == 0 || held().count() == 1, "held together with somebody alone");
            let waiting = self.waits.values().filter(|wait| wait.key == key && !wait.is_absent);
            let mut waiting: Vec<&Wait> = waiting.collect();
            waiting.sort_by_key(|wait| wait.place);
            let queue: Vec<u8> =
                claims.into_iter().flat_map(|claims| claims.waiting().map(|owner| owner[0])).collect();
            assert_eq!(queue, waiting.iter().map(|wait| wait.owner).collect::<Vec<_>>());
            if let Some(first) = waiting.first() {
                let fits = first.share != Share::All && alone == 0 || held().count() == 0;
                assert!(!fits, "{first:?} waits for what is free");
            }
        }
    }
}

fn acquire(state: &mut State, book: &mut Book, chance: &mut fastrand::Rng) {
    let (key, owner) = (KEYS[chance.usize(..3)], chance.u8(..6));
    let share = if chance.bool() { Share::All } else { Share::Permits(1) };
    let (ttl_ms, now) = (chance.u64(1..60), state.now_ms());
    book.tickets += 1;
    let ticket = Ticket { node: chance.u64(1..4), boot: chance.u64(1..3), number: book.tickets };
    let wait = chance.bool().then(|| (ticket, now + chance.u64(1..80)));
    let asked = Acquire {
        owner: &[owner],
        share,
        span: Span::Ms(ttl_ms),
        data: None,
        delay_ms: 0,
        wait,
        is_counted: true,
    };
    if wait.is_none() {
        book.waits.retain(|_, wait| {
            !wait.is_absent
                || (wait.key, wait.owner) != (key, owner)
                || book.holds.contains_key(&(key, owner))
        });
    }
    let before = book.waits.iter().find(|(_, wait)| (wait.key, wait.owner) == (key, owner));
    let (superseded, place) = (before.map(|(ticket, _)| *ticket), before.map(|(_, wait)| wait.place));
    let answer = Ctx::new(state, 0, 0)
        .claims_or_new(key, ClaimKind::Lock, |claims, turn| claims.acquire(&asked, turn));
    match answer {
        Ok(Answer::Held { token, until }) => {
            if !book.holds.contains_key(&(key, owner)) {
                book.granted(token);
                let waits = book.waits.values().filter(|wait| wait.key == key && !wait.is_absent).count();
                assert_eq!(waits, 0, "somebody overtook the queue");
            }
            let ticket = wait.map(|(ticket, _)| ticket);
            let hold = Hold { token, count: 0, share, until: 0, ticket };
            let hold = book.holds.entry((key, owner)).or_insert(hold);
            hold.count += 1;
            hold.until = hold.until.max(now + ttl_ms);
            if share == Share::All {
                hold.share = share;
            }
            assert_eq!((hold.token, Until::At(hold.until)), (token, until));
        }
        Ok(Answer::Queued) => {
            let deadline = wait.expect("it waits").1;
            book.places += 1;
            let place = place.unwrap_or(book.places);
            book.waits.insert(ticket, Wait { key, owner, share, ttl_ms, place, deadline, is_absent: false });
        }
        Ok(Answer::Taken) => {}
        // Two readers that both wait for exclusive access would wait for each other.
        Err(_) => assert!(wait.is_some() && share == Share::All && book.holds.contains_key(&(key, owner))),
    }
    book.hear(state.take_wakes(), now, false, superseded.filter(|_| wait.is_some()));
}

fn forget_node(state: &mut State, book: &mut Book, node: u64, boot: u64) {
    let now = state.now_ms();
    Ctx::new(state, 0, 0).forget_node(node, boot);
    // They are told so, if their node is alive after all, and keep their places for a while.
    let mut told: Vec<Ticket> = Vec::new();
    let mut rest = state.take_wakes();
    rest.retain(|wake| {
        let is_gone = wake.outcome == Outcome::Gone;
        told.extend(is_gone.then_some(wake.ticket));
        !is_gone
    });
    let meant = |ticket: &Ticket| ticket.node == node && ticket.boot != boot;
    let mut expected: Vec<Ticket> = Vec::new();
    for (ticket, wait) in book.waits.iter_mut().filter(|(ticket, wait)| meant(ticket) && !wait.is_absent) {
        expected.push(*ticket);
        wait.leave(now);
    }
    told.sort_unstable();
    assert_eq!(told, expected);
    book.hear(rest, now, false, None);
}

fn step(state: &mut State, book: &mut Book, chance: &mut fastrand::Rng) {
    let now = state.now_ms();
    let some_hold = chance.choice(book.holds.keys().copied().collect::<Vec<_>>());
    let some_wait = chance.choice(book.waits.keys().copied().collect::<Vec<_>>());
    match chance.u8(..20) {
        0..9 => return acquire(state, book, chance),
        9..12 => {
            let Some((key, owner)) = some_hold else { return };
            let left =
                Ctx::new(state, 0, 0).claims(key, ClaimKind::Lock, |claims, _| Ok(claims.release(&[owner])));
            let hold = book.holds.get_mut(&(key, owner)).unwrap();
            hold.count -= 1;
            assert_eq!(left, Ok(Some(hold.count)));
            if hold.count == 0 {
                book.holds.remove(&(key, owner));
            }
        }
        12 => {
            // The client of a wait is gone, or that of a grant that could not be delivered.
            let undelivered = book.holds.iter().find_map(|(of, hold)| Some((*of, hold.ticket?)));
            match (some_wait, undelivered) {
                (Some(ticket), _) if chance.bool() => {
                    let wait = book.waits.get_mut(&ticket).unwrap();
                    wait.leave(now);
                    let key = wait.key;
                    Ctx::new(state, 0, 0).cancel(key, ticket);
                }
                (_, Some(((key, owner), ticket))) => {
                    let hold = book.holds.get_mut(&(key, owner)).unwrap();
                    (hold.count, hold.ticket) = (hold.count - 1, None);
                    if hold.count == 0 {
                        book.holds.remove(&(key, owner));
                    }
                    Ctx::new(state, 0, 0).cancel(if chance.bool() { key } else { b"renamed" }, ticket);
                }
                _ => {}
            }
        }
        13 => {
            let Some((of, ticket)) = book.holds.iter().find_map(|(of, hold)| Some((*of, hold.ticket?)))
            else {
                return;
            };
            Ctx::new(state, 0, 0).confirm(of.0, ticket);
            book.holds.get_mut(&of).unwrap().ticket = None;
        }
        14 => {
            let key = KEYS[chance.usize(..3)];
            Ctx::new(state, 0, 0).delete(key);
            book.holds.retain(|(of, _), _| *of != key);
            book.hear(state.take_wakes(), now, true, None);
            assert!(book.waits.values().all(|wait| wait.key != key));
        }
        15 => {
            forget_node(state, book, chance.u64(1..4), chance.u64(..3));
        }
        _ => {
            state.advance(now + chance.u64(..30), 1);
            state.reap(1_000);
        }
    }
    book.hear(state.take_wakes(), state.now_ms(), false, None);
}

#[test]
fn who_waits_is_served_in_order_and_nobody_is_forgotten() {
    let seed = std::env::var("KVORUM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KVORUM_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    let (mut state, mut book) = (State::new(), Book::default());
    state.advance(1_000, 1);
    for number in 0..15_000 {
        step(&mut state, &mut book, &mut chance);
        book.compare(&state);
        if number % 50 == 0 {
            state.invariants();
        }
    }
    println!("{} granted after a wait, {} timed out", book.granted_late, book.timed_out);
    assert!(book.granted_late > 500 && book.timed_out > 50);
}

fn asked<'a>(owner: &'a [u8], span: Span, wait: Option<(Ticket, u64)>) -> Acquire<'a> {
    Acquire { owner, share: Share::All, span, data: None, delay_ms: 0, wait, is_counted: true }
}

fn lock(state: &mut State, asked: &Acquire<'_>) -> Answer {
    Ctx::new(state, 0, 0)
        .claims_or_new(b"l", ClaimKind::Lock, |claims, turn| claims.acquire(asked, turn))
        .unwrap()
}

#[test]
fn a_new_leader_extends_leases_and_no_lock() {
    let mut state = State::new();
    state.advance(1_000, 1);
    Ctx::new(&mut state, 0, 0).renew_lease(b"lease", Some(Lease::new(500))).unwrap();
    lock(&mut state, &asked(b"a", Span::Lease(b"lease"[..].into()), None));
    // Nobody could keep it alive from 1,100 to 1,490.
    state.advance(1_490, 2);
    state.advance(1_501, 2);
    state.reap(10);
    let held = |state: &State| {
        let view = View::new(state, 0, 0, 0);
        view.claims(b"l", ClaimKind::Lock)
            .unwrap()
            .is_some_and(|claims| claims.holders(view.now_ms).count() == 1)
    };
    assert!(held(&state));
    assert_eq!(View::new(&state, 0, 0, 0).deadline(b"lease"), Some(Some(1_990)));
    state.advance(1_990, 2);
    state.reap(10);
    assert!(held(&state));
    state.advance(1_991, 2);
    state.reap(10);
    assert!(!held(&state) && !View::new(&state, 0, 0, 0).exists(b"lease"));
    state.invariants();
}

#[test]
fn claims_do_not_outgrow_their_page() {
    let mut state = State::new();
    state.advance(1_000, 1);
    let data = vec![0; 100 << 10];
    let mut ask = |owner: u8| {
        let name = [owner];
        let ticket = Ticket { node: 1, boot: 1, number: owner.into() };
        let asked = Acquire { data: Some(&data), ..asked(&name, Span::Ms(1_000), Some((ticket, 2_000))) };
        Ctx::new(&mut state, 0, 0)
            .claims_or_new(b"l", ClaimKind::Lock, |claims, turn| claims.acquire(&asked, turn))
            .is_ok()
    };
    let fit = (0..20).filter(|owner| ask(*owner)).count();
    assert_eq!(fit, CLAIMS_BYTES_MAX / (100 << 10));
}

/// Renaming a key to a lease's name, or a lease to another's name, ends the replaced lease first.
#[test]
fn nothing_depends_on_a_lease_that_is_not_there() {
    let mut state = State::new();
    state.advance(1_000, 1);
    let ctx = |state: &mut State, run: &dyn Fn(&mut Ctx<'_>)| run(&mut Ctx::new(state, 0, 0));
    ctx(&mut state, &|ctx| _ = ctx.renew_lease(b"x", Some(Lease::new(500))).unwrap());
    ctx(&mut state, &|ctx| _ = ctx.renew_lease(b"y", Some(Lease::new(500))).unwrap());
    lock(&mut state, &asked(b"a", Span::Lease(b"y"[..].into()), None));
    let ticket = Ticket { node: 1, boot: 1, number: 1 };
    lock(&mut state, &asked(b"b", Span::Lease(b"x"[..].into()), Some((ticket, 1_100))));
    // The wait for the lock has timed out by now, and is ended by the end of the replaced lease.
    state.advance(1_200, 1);
    ctx(&mut state, &|ctx| assert!(ctx.rename(b"x", b"y")));
    state.invariants();
    assert!(View::new(&state, 0, 0, 0).value::<Lease>(b"y").unwrap().unwrap().keys().next().is_none());
    // A lock to the name of the lease that it is held under.
    lock(&mut state, &asked(b"a", Span::Lease(b"y"[..].into()), None));
    ctx(&mut state, &|ctx| assert!(ctx.rename(b"l", b"y")));
    state.invariants();
    assert!(!View::new(&state, 0, 0, 0).exists(b"l") && !View::new(&state, 0, 0, 0).exists(b"y"));
    // A plain key to the name of its lease.
    ctx(&mut state, &|ctx| {
        ctx.renew_lease(b"z", Some(Lease::new(500))).unwrap();
        ctx.set(b"k", b"v", crate::store::Deadline::None);
        ctx.attach(b"z", b"k");
        assert!(ctx.rename(b"k", b"z"));
    });
    state.invariants();
    assert_eq!(View::new(&state, 0, 0, 0).string(b"z"), Ok(Some(&b"v"[..])));
}

/// Notices name only the beginning of a long key; a key may have been renamed since.
#[test]
fn a_wait_is_found_by_the_beginning_of_its_key() {
    let mut state = State::new();
    state.advance(1_000, 1);
    let key_of = |number: u64| [&[b'k'; 2_000], number.to_string().as_bytes()].concat();
    let ticket_of = |number| Ticket { node: 1, boot: 1, number };
    for number in 0..50 {
        for (owner, wait) in [(&b"a"[..], None), (&b"b"[..], Some((ticket_of(number), 9_500)))] {
            let asked = asked(owner, Span::Ms(8_000), wait);
            Ctx::new(&mut state, 0, 0)
                .claims_or_new(&key_of(number), ClaimKind::Lock, |claims, turn| claims.acquire(&asked, turn))
                .unwrap();
        }
    }
    assert!(Ctx::new(&mut state, 0, 0).rename(&key_of(7), b"elsewhere"));
    let waiting = |state: &State, key: &[u8]| {
        View::new(state, 0, 0, 0).claims(key, ClaimKind::Lock).unwrap().unwrap().waiting_count()
    };
    for (number, key) in [(7, b"elsewhere".to_vec()), (30, key_of(30))] {
        assert_eq!(waiting(&state, &key), 1);
        Ctx::new(&mut state, 0, 0).cancel(&key_of(number)[..1_000], ticket_of(number));
        assert_eq!(waiting(&state, &key), 0);
    }
    assert_eq!(state.outcome_at(0, &key_of(8)[..1_000], ticket_of(8)), None);
    assert_eq!(state.outcome_at(0, b"", ticket_of(51)), Some(Outcome::Unknown));
    state.advance(9_001, 1);
    state.reap(100);
    // A wake names the key where the grant was made.
    let granted = state.take_wakes().into_iter().filter(|wake| wake.ticket == ticket_of(9));
    assert!(granted.map(|wake| wake.key.to_vec()).eq([key_of(9)]));
}

/// How many claims are looked at one after another by `change`.
fn looks(state: &mut State, change: impl FnOnce(&mut Ctx<'_>)) -> usize {
    LOOKS.set(0);
    change(&mut Ctx::new(state, 0, 0));
    LOOKS.get()
}

/// With thousands of holders and of waiters, nothing that concerns one of them looks at the others.
#[test]
fn one_of_many_is_found_without_a_look_at_the_others() {
    const MANY: u64 = 5_000;
    let mut state = State::new();
    state.advance(1_000, 1);
    let ticket_of = |number| Ticket { node: 1 + number % 2, boot: 1, number };
    let owner = |number: u64| number.to_string().into_bytes();
    let shared = |state: &mut State, number: u64, span: Span, wait: Option<u64>| {
        let (owner, share) = (owner(number), if wait.is_some() { Share::All } else { Share::Permits(1) });
        let wait = wait.map(|deadline| (ticket_of(number), deadline));
        let asked = Acquire { share, ..asked(&owner, span, wait) };
        looks(state, |ctx| {
            ctx.claims_or_new(b"l", ClaimKind::Lock, |claims, turn| claims.acquire(&asked, turn)).unwrap();
        })
    };
    for number in 0..MANY {
        let id: &[u8] = &owner(number + 1_000_000);
        looks(&mut state, |ctx| _ = ctx.renew_lease(id, Some(Lease::new(60_000))).unwrap());
        let span = if number % 2 == 0 { Span::Lease(id.into()) } else { Span::Ms(10_000 + number) };
        shared(&mut state, number, span, None);
    }
    (MANY..2 * MANY).for_each(|number| _ = shared(&mut state, number, Span::Ms(500), Some(20_000 + number)));
    let mut most = Vec::new();
    let holders = |state: &State| {
        View::new(state, 0, 0, 0).claims(b"l", ClaimKind::Lock).unwrap().unwrap().holders(0).count()
    };
    most.push(("again", shared(&mut state, 7, Span::Ms(10), None)));
    most.push(("taken", shared(&mut state, 3 * MANY, Span::Ms(10), None)));
    most.push(("waits", shared(&mut state, 3 * MANY, Span::Ms(10), Some(9_000))));
    most.push(("waits again", shared(&mut state, MANY + 5, Span::Ms(10), Some(9_000))));
    let mut change = |name, change: &dyn Fn(&mut Ctx<'_>)| most.push((name, looks(&mut state, change)));
    change("release", &|ctx| {
        assert_eq!(ctx.claims(b"l", ClaimKind::Lock, |claims, _| Ok(claims.release(&owner(9)))), Ok(Some(0)));
    });
    change("renew", &|ctx| {
        ctx.claims(b"l", ClaimKind::Lock, |claims, _| claims.renew(&owner(11), 15_000)).unwrap();
    });
    change("cancel", &|ctx| ctx.cancel(b"l", ticket_of(MANY + 20)));
    change("cancel elsewhere", &|ctx| ctx.cancel(b"renamed", ticket_of(MANY + 21)));
    change("confirm in vain", &|ctx| ctx.confirm(b"l", ticket_of(1)));
    change("end of a lease", &|ctx| assert!(ctx.delete(&owner(1_000_010))));
    change("renamed lease", &|ctx| assert!(ctx.rename(&owner(1_000_012), b"elsewhere")));
    change("look", &|ctx| {
        let view = ctx.view();
        let claims = view.claims(b"l", ClaimKind::Lock).unwrap().unwrap();
        let token = claims.of_owner(&owner(13), view.now_ms).unwrap().token;
        assert!(claims.has_token(token, view.now_ms) && claims.waiting_count() > 4_000);
        assert!(view.exists(b"l") && view.deadline(b"l") == Some(None));
    });
    state.advance(11_002, 1);
    most.push(("expiry", looks(&mut state, |ctx| ctx.state.reap(10))));
    assert!(state.outcome_of(ticket_of(MANY + 22)).is_none() && state.waiting_nodes().count() == 2);
    for (name, looks) in most {
        assert!(looks <= 4, "{name}: {looks} looks");
    }
    assert_eq!(holders(&state), MANY as usize - 3);
    state.invariants();
}

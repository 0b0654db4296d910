//! A real cluster of three processes under load from the `redis` crate, while nodes are killed with -9: the
//! leader, a follower, a majority, all at once. Whatever was acknowledged is there afterwards, whatever was refused is
//! not, and what is unknown happened once or not at all.
//!
//! `KVORUM_SEED=n` replays the choices of a run; the timing of processes is not part of a seed.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::{Commands as _, ConnectionLike as _, RedisError};
use support::{process::Cluster, seed};

/// Small, so that checkpoints, purges and snapshots happen under way.
const OPTIONS: &[&str] =
    &["--checkpoint-log-bytes", "128kb", "--log-entries-kept", "50", "--request-timeout-ms", "1000"];
const WORKERS: usize = 6;
const COUNTERS: usize = 3;
/// The longest time to the next acknowledged write after a kill that passes.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// What a worker waits between two writes: the machine has others to serve.
const PAUSE: Duration = Duration::from_millis(2);

/// What a client knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Acknowledged,
    Refused,
    Unknown,
}

/// Where a write went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    /// SET of a key of its own; the value is the key.
    Set(String),
    /// INCR.
    Incr(String),
    /// APPEND or RPUSH of a token of its own.
    Add(String, String),
}

type History = Vec<(Write, Outcome)>;

/// What the cluster holds afterwards: keys of SET, counters, and lists as tokens in their order.
#[derive(Default)]
struct Held {
    keys: HashMap<String, Option<String>>,
    counters: BTreeMap<String, u64>,
    lists: BTreeMap<String, Vec<String>>,
}

/// What is wrong with what is held, after these histories, one a client.
fn faults(histories: &[History], held: &Held) -> Vec<String> {
    let mut faults = Vec::new();
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut places: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
    for (list, tokens) in &held.lists {
        for (place, token) in tokens.iter().enumerate() {
            places.entry((list, token)).or_default().push(place);
        }
    }
    for history in histories {
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (write, outcome) in history {
            match write {
                Write::Set(key) => faults.extend(fault_of_set(key, *outcome, held.keys.get(key))),
                Write::Incr(key) => {
                    let (acknowledged, unknown) = counts.entry(key).or_default();
                    *acknowledged += u64::from(*outcome == Outcome::Acknowledged);
                    *unknown += u64::from(*outcome == Outcome::Unknown);
                }
                Write::Add(list, token) => {
                    let found = places.remove(&(list, token)).unwrap_or_default();
                    let fits = match outcome {
                        Outcome::Acknowledged => found.len() == 1,
                        Outcome::Refused => found.is_empty(),
                        Outcome::Unknown => found.len() < 2,
                    };
                    if !fits {
                        faults
                            .push(format!("{list}: {token} is {outcome:?} and there {} times", found.len()));
                    }
                    if *outcome == Outcome::Acknowledged
                        && let [place] = found[..]
                        && last.insert(list, place).is_some_and(|before| before > place)
                    {
                        faults.push(format!("{list}: {token} stands before what was acknowledged earlier"));
                    }
                }
            }
        }
    }
    for (key, (acknowledged, unknown)) in counts {
        let value = held.counters.get(key).copied().unwrap_or(0);
        if !(acknowledged..=acknowledged + unknown).contains(&value) {
            faults.push(format!("{key} is {value}; {acknowledged} acknowledged, {unknown} unknown"));
        }
    }
    faults.extend(places.keys().map(|(list, token)| format!("{list}: nobody added {token}")));
    faults
}

fn fault_of_set(key: &str, outcome: Outcome, value: Option<&Option<String>>) -> Option<String> {
    let value = value.and_then(Option::as_deref);
    let fits = match outcome {
        Outcome::Acknowledged => value == Some(key),
        Outcome::Refused => value.is_none(),
        Outcome::Unknown => value.is_none_or(|value| value == key),
    };
    (!fits).then(|| format!("{key} is {outcome:?} and holds {value:?}"))
}

/// What workers and the one who kills share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// When the last kill was, and when a write that began after it was first acknowledged.
    kill: Mutex<(Option<Instant>, Option<Duration>)>,
}

impl Shared {
    fn acknowledged(&self, began: Instant) {
        let mut kill = self.kill.lock().unwrap();
        if let (Some(at), None) = *kill
            && began > at
        {
            kill.1 = Some(at.elapsed());
        }
    }

    fn killed(&self) {
        *self.kill.lock().unwrap() = (Some(Instant::now()), None);
    }

    /// Waits for the next acknowledged write; gives the time since the kill.
    fn silence(&self) -> Duration {
        loop {
            let (at, first) = *self.kill.lock().unwrap();
            if let Some(first) = first {
                return first;
            }
            let silence = at.expect("somebody was killed").elapsed();
            assert!(silence < SILENCE_MAX, "no write was acknowledged for {silence:?} after the kill");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A client that writes to one node at a time, and goes to another when its connection breaks.
struct Worker {
    id: usize,
    addresses: Vec<String>,
    random: fastrand::Rng,
    history: History,
    connection: Option<redis::Connection>,
    last_set: Option<String>,
}

fn connect(address: &str) -> Result<redis::Connection, RedisError> {
    let client = redis::Client::open(format!("redis://{address}/"))?;
    let connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_secs(8)))?;
    Ok(connection)
}

fn outcome_of(error: &RedisError) -> Outcome {
    match error.code() {
        None | Some("UNCERTAIN") => Outcome::Unknown,
        Some(_) => Outcome::Refused,
    }
}

impl Worker {
    fn run(mut self, shared: &Shared) -> History {
        let mut number = 0;
        let mut node = self.id % self.addresses.len();
        while !shared.stop.load(Relaxed) {
            std::thread::sleep(PAUSE);
            let Some(connection) = &mut self.connection else {
                self.connection = connect(&self.addresses[node]).ok();
                node = (node + 1) % self.addresses.len();
                continue;
            };
            if let Some(key) = self.last_set.take_if(|_| self.random.u8(..8) == 0)
                && let Ok(value) = connection.get::<_, Option<String>>(&key)
            {
                assert_eq!(value.as_deref(), Some(&key[..]), "an acknowledged write was not read back");
            }
            number += 1;
            let write = choose(self.id, number, &mut self.random);
            let began = Instant::now();
            let result = match &write {
                Write::Set(key) => connection.set::<_, _, ()>(key, key),
                Write::Incr(key) => connection.incr::<_, _, ()>(key, 1),
                Write::Add(list, token) if list.starts_with("append") => {
                    connection.append::<_, _, ()>(list, format!("{token},"))
                }
                Write::Add(list, token) => connection.rpush::<_, _, ()>(list, token),
            };
            let outcome = match &result {
                Ok(()) => Outcome::Acknowledged,
                Err(error) => outcome_of(error),
            };
            if outcome == Outcome::Acknowledged {
                shared.acknowledged(began);
                if let Write::Set(key) = &write {
                    self.last_set = Some(key.clone());
                }
            }
            let is_lost = result.is_err_and(|error| error.code().is_none()) || !connection.is_open();
            self.connection.take_if(|_| is_lost);
            self.history.push((write, outcome));
        }
        self.history
    }
}

fn choose(id: usize, number: u32, random: &mut fastrand::Rng) -> Write {
    let token = format!("{id}.{number}");
    match random.u8(..10) {
        0..5 => Write::Set(format!("set:{token}")),
        5..7 => Write::Incr(format!("counter:{}", random.usize(..COUNTERS))),
        7 => Write::Add(format!("append:{}", id % 2), token),
        _ => Write::Add(format!("list:{}", id % 2), token),
    }
}

/// Reads through one node all that the histories speak of.
fn read(address: &str, histories: &[History]) -> Held {
    let mut connection = connect(address).unwrap();
    let mut held = Held::default();
    let mut keys = Vec::new();
    for (write, _) in histories.iter().flatten() {
        match write {
            Write::Set(key) => keys.push(key),
            Write::Incr(key) if !held.counters.contains_key(key) => {
                let value: Option<u64> = connection.get(key).unwrap();
                held.counters.insert(key.clone(), value.unwrap_or(0));
            }
            Write::Add(list, _) if !held.lists.contains_key(list) => {
                let tokens: Vec<String> = if list.starts_with("append") {
                    let text: Option<String> = connection.get(list).unwrap();
                    text.unwrap_or_default().split_terminator(',').map(str::to_owned).collect()
                } else {
                    connection.lrange(list, 0, -1).unwrap()
                };
                held.lists.insert(list.clone(), tokens);
            }
            Write::Incr(_) | Write::Add(..) => {}
        }
    }
    for keys in keys.chunks(500) {
        let values: Vec<Option<String>> = connection.mget(keys).unwrap();
        held.keys.extend(keys.iter().map(|key| (*key).clone()).zip(values));
    }
    held
}

/// Kills nodes, and brings them back after a while.
fn round(cluster: &mut Cluster, shared: &Shared, random: &mut fastrand::Rng, who: &str) {
    std::thread::sleep(Duration::from_millis(random.u64(300..900)));
    let leader = cluster.leader();
    let victims: Vec<usize> = match who {
        "leader" => vec![leader],
        "follower" => vec![(leader + random.usize(1..3)) % 3],
        "majority" => vec![leader, (leader + 1) % 3],
        _ => vec![0, 1, 2],
    };
    let is_fatal = victims.len() > 1;
    shared.killed();
    victims.iter().for_each(|node| cluster.kill(*node));
    if is_fatal {
        // Long enough for the one that is left, if one is, to refuse what it cannot do.
        std::thread::sleep(Duration::from_millis(random.u64(1_500..2_000)));
        shared.killed();
    } else {
        eprintln!("{who} killed: next acknowledged write after {:?}", shared.silence());
        std::thread::sleep(Duration::from_millis(random.u64(..500)));
    }
    victims.iter().for_each(|node| cluster.start_node(*node));
    victims.iter().for_each(|node| cluster.wait_ready(*node));
    if is_fatal {
        eprintln!("{who} killed and started: next acknowledged write after {:?}", shared.silence());
    }
}

fn verify(addresses: &[String], histories: &[History]) {
    for address in addresses {
        let faults = faults(histories, &read(address, histories));
        assert!(faults.is_empty(), "{address}: {} faults:\n{}", faults.len(), faults.join("\n"));
    }
}

#[test]
fn no_acknowledged_write_is_lost() {
    let seed = seed("survives_kills");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(3, OPTIONS);
    let addresses: Vec<String> = cluster.addresses.iter().map(|address| address.resp.clone()).collect();
    let shared = Arc::new(Shared::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|id| {
            let worker = Worker {
                id,
                addresses: addresses.clone(),
                random: random.fork(),
                history: Vec::new(),
                connection: None,
                last_set: None,
            };
            let shared = shared.clone();
            std::thread::spawn(move || worker.run(&shared))
        })
        .collect();
    let mut rounds = ["leader", "follower", "all", "leader", "majority", "all"];
    random.shuffle(&mut rounds);
    for who in rounds {
        round(&mut cluster, &shared, &mut random, who);
    }
    std::thread::sleep(Duration::from_millis(300));
    shared.stop.store(true, Relaxed);
    let histories: Vec<History> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let count = |wanted| histories.iter().flatten().filter(|(_, outcome)| *outcome == wanted).count();
    let acknowledged = count(Outcome::Acknowledged);
    eprintln!(
        "{acknowledged} acknowledged, {} unknown, {} refused",
        count(Outcome::Unknown),
        count(Outcome::Refused)
    );
    assert!(acknowledged > 500, "there was load");
    verify(&addresses, &histories);

    // The log's beginning is purged, so a new node needs a snapshot.
    for node in 0..3 {
        cluster.purge(node);
    }
    let fourth = cluster.join(0);
    cluster.wait_ready(fourth);
    cluster.wait_voter(fourth);
    verify(&[cluster.addresses[fourth].resp.clone()], &histories);
    let mut logs = (0..3).map(|node| std::fs::read_to_string(cluster.log_of(node)).unwrap());
    assert!(logs.any(|log| log.contains("sending a snapshot")), "the new node got the whole log");
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let set = |outcome| vec![vec![(Write::Set("a".into()), outcome)]];
    let holds = |value: Option<&str>| Held {
        keys: [("a".into(), value.map(str::to_owned))].into(),
        ..Held::default()
    };
    let good = [
        (Outcome::Acknowledged, Some("a")),
        (Outcome::Refused, None),
        (Outcome::Unknown, None),
        (Outcome::Unknown, Some("a")),
    ];
    for (outcome, value) in good {
        assert!(faults(&set(outcome), &holds(value)).is_empty(), "{outcome:?} {value:?}");
    }
    let bad = [
        (Outcome::Acknowledged, None),
        (Outcome::Acknowledged, Some("b")),
        (Outcome::Refused, Some("a")),
        (Outcome::Unknown, Some("b")),
    ];
    for (outcome, value) in bad {
        assert_eq!(faults(&set(outcome), &holds(value)).len(), 1, "{outcome:?} {value:?}");
    }

    let incr = |outcome| (Write::Incr("c".into()), outcome);
    let history = [vec![incr(Outcome::Acknowledged), incr(Outcome::Unknown), incr(Outcome::Refused)]];
    for (value, is_good) in [(0, false), (1, true), (2, true), (3, false)] {
        let held = Held { counters: [("c".into(), value)].into(), ..Held::default() };
        assert_eq!(faults(&history, &held).is_empty(), is_good, "counter {value}");
    }

    let add = |token: &str, outcome| (Write::Add("l".into(), token.into()), outcome);
    let history = [vec![
        add("1", Outcome::Acknowledged),
        add("2", Outcome::Unknown),
        add("3", Outcome::Acknowledged),
        add("4", Outcome::Refused),
    ]];
    for (tokens, is_good) in [
        ("1 3", true),
        ("1 2 3", true),
        ("1 3 2", true),
        ("3 1", false),
        ("1", false),
        ("1 2 2 3", false),
        ("1 1 3", false),
        ("1 3 4", false),
        ("1 3 5", false),
    ] {
        let tokens = tokens.split(' ').map(str::to_owned).collect();
        let held = Held { lists: [("l".into(), tokens)].into(), ..Held::default() };
        assert_eq!(faults(&history, &held).is_empty(), is_good, "{:?}", held.lists);
    }
}

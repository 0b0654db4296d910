//! Whether `/readyz` is true (docs/admin-api.md): each node is asked whether it is ready, to do a linearizable
//! read, and again whether it is ready, over and over. A node notices within two seconds what it can do, so
//! only a contradiction that lasts for longer, while no fault begins, ends or goes on changing things, is found.
//!
//! Nodes are asked at their own addresses: a node is not less ready because a proxy keeps clients from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    check::Judgement,
    client::{Connection, Failure},
    cluster::agent_with,
    history::{Event, NEMESIS},
    nemesis::{Env, Shadow, is_steady},
    watch::silence,
};

/// The name in the history.
const EVENT: &str = "readiness";
/// The pause between two rounds on a node.
const EVERY: Duration = Duration::from_millis(600);
const POLL: Duration = Duration::from_millis(100);
/// How long `/readyz` may take: it answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a read may take: a node answers when a failover should be over, after 1.8 s, and later by this many
/// times the round trip beyond 25 ms (docs/distance.md).
const READ_MAX: Duration = Duration::from_millis(2_500);
const READ_ROUND_TRIPS: u32 = 18;
const NEAR: Duration = Duration::from_millis(25);
/// It reads a key of no workload.
const READ: [&str; 2] = ["GET", "readiness"];
/// A contradiction is found when it lasts for longer, plus this many round trips, ...
const LASTS_MS_MAX: u64 = 3_000;
const LASTS_ROUND_TRIPS: u64 = 4;
/// ... was seen this often ...
const SEEN_MIN: usize = 2;
/// ... without a longer gap.
const GAP_MS_MAX: u64 = 4_000;
/// A node that is not ready may answer what had waited: only a quick answer contradicts it.
const AT_ONCE_MS: u64 = 500;
/// Such nodes serve reads all the same: what they cannot do is write (docs/disk-space.md), or answer for their
/// disk.
const OF_DISKS: &str = "the disk";

/// Asks until the run is over.
pub(crate) fn watch(
    env: &Env,
    round_trip: Duration,
    reach: &(dyn Fn(u64) -> Option<SocketAddr> + Sync),
    is_over: &(dyn Fn() -> bool + Sync),
) {
    let read_max = READ_MAX + READ_ROUND_TRIPS * round_trip.saturating_sub(NEAR);
    std::thread::scope(|scope| {
        let mut watched = BTreeSet::new();
        while !is_over() {
            for node in env.cluster.ids().into_iter().filter(|node| watched.insert(*node)) {
                scope.spawn(move || {
                    let agent = agent_with(ANSWER_MAX);
                    while !is_over() && env.cluster.ids().contains(&node) {
                        compare(env, node, &agent, reach(node), read_max);
                        std::thread::sleep(EVERY);
                    }
                });
            }
            std::thread::sleep(POLL);
        }
    });
}

/// Asks one node, and records what it says and does. A node that says nothing is down, or paused.
fn compare(env: &Env, node: u64, agent: &ureq::Agent, address: Option<SocketAddr>, read_max: Duration) {
    let began = Instant::now();
    let Some(before) = env.cluster.readiness(node, agent) else { return };
    let asked = Instant::now();
    let opened = address.ok_or("no address".to_owned());
    let opened = opened.and_then(|address| Connection::open(node, address, read_max));
    let read = opened.map_err(Failure::Info).and_then(|mut open| open.call(&READ));
    let read_ms = asked.elapsed().as_millis() as u64;
    let Some(after) = env.cluster.readiness(node, agent) else { return };
    let said = |(status, text): (u16, String)| if status == 200 { "ready".to_owned() } else { text };
    let read = match read {
        Ok(_) => "ok".to_owned(),
        Err(Failure::Fail(why) | Failure::Info(why)) => why,
    };
    let ms = began.elapsed().as_millis() as u64;
    env.record(
        EVENT,
        json!({"node": node, "before": said(before), "read": read, "read_ms": read_ms, "after": said(after),
            "ms": ms}),
    );
}

/// How a node contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contradiction {
    ReadyAndRefuses,
    NotReadyAndServes,
}

impl Contradiction {
    fn name(self) -> &'static str {
        match self {
            Contradiction::ReadyAndRefuses => "ready and does not serve",
            Contradiction::NotReadyAndServes => "not ready and serves",
        }
    }

    fn of(event: &Event) -> Option<Contradiction> {
        let text = |name: &str| event.value[name].as_str().unwrap_or_default();
        let (before, after) = (text("before"), text("after"));
        let is_read = text("read") == "ok";
        let is_unready = |said: &str| said != "ready" && !said.starts_with(OF_DISKS);
        if before == "ready" && after == "ready" && !is_read {
            return Some(Contradiction::ReadyAndRefuses);
        }
        let is_quick = event.value["read_ms"].as_u64().is_some_and(|ms| ms < AT_ONCE_MS);
        (is_unready(before) && is_unready(after) && is_read && is_quick)
            .then_some(Contradiction::NotReadyAndServes)
    }
}

/// The same contradiction, seen again and again on one node.
struct Row<'a> {
    contradiction: Contradiction,
    from_ns: u64,
    to_ns: u64,
    seen: usize,
    last: &'a Event,
}

impl Row<'_> {
    fn lasts_ms(&self) -> u64 {
        (self.to_ns - self.from_ns) / 1_000_000
    }
}

/// What is known of a run, for its verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) times: usize,
    /// How often the node was not ready.
    pub(crate) not_ready: usize,
    /// The longest contradiction in a steady time.
    pub(crate) longest_ms: u64,
}

/// The time of a comparison.
fn span(event: &Event) -> (u64, u64) {
    let ms = event.value["ms"].as_u64().unwrap_or(0);
    (event.time_ns.saturating_sub(ms * 1_000_000), event.time_ns)
}

/// Whether no fault began, ended, or went on changing things meanwhile.
fn is_calm((from_ns, to_ns): (u64, u64), shadows: &[Shadow]) -> bool {
    let is_within = |at: u64| (from_ns..=to_ns).contains(&at);
    shadows.iter().all(|shadow| {
        let overlaps = shadow.from_ns <= to_ns && shadow.to_ns >= from_ns;
        !(is_within(shadow.from_ns) || is_within(shadow.to_ns) || overlaps && !is_steady(&shadow.fault))
    })
}

/// The contradictions of each node, each as long as it lasted in one calm time.
fn rows<'a>(compared: &[&'a Event], shadows: &[Shadow]) -> Vec<(u64, Row<'a>)> {
    let mut open: BTreeMap<u64, Row<'a>> = BTreeMap::new();
    let mut rows = Vec::new();
    for event in compared {
        let node = event.value["node"].as_u64().unwrap_or_default();
        let (from_ns, to_ns) = span(event);
        let seen = Contradiction::of(event).filter(|_| is_calm((from_ns, to_ns), shadows));
        if let (Some(row), Some(seen)) = (open.get_mut(&node), seen)
            && row.contradiction == seen
            && from_ns.saturating_sub(row.to_ns) < GAP_MS_MAX * 1_000_000
            && is_calm((row.from_ns, to_ns), shadows)
        {
            (row.to_ns, row.seen, row.last) = (to_ns, row.seen + 1, event);
            continue;
        }
        rows.extend(open.remove(&node).map(|row| (node, row)));
        if let Some(contradiction) = seen {
            open.insert(node, Row { contradiction, from_ns, to_ns, seen: 1, last: event });
        }
    }
    rows.extend(open);
    rows
}

/// Finds contradictions that last.
pub(crate) fn judge(events: &[Event], shadows: &[Shadow], round_trip_ms: u64) -> (Judgement, Compared) {
    let mut judgement = Judgement::default();
    let compared: Vec<&Event> =
        events.iter().filter(|event| event.process == NEMESIS && event.f == EVENT).collect();
    let rows = rows(&compared, shadows);
    let kept_ms = silence::kept_waiting_ms(events);
    let limit_ms = LASTS_MS_MAX + LASTS_ROUND_TRIPS * round_trip_ms;
    for (node, row) in rows.iter().filter(|(_, row)| row.seen >= SEEN_MIN && row.lasts_ms() > limit_ms) {
        let detail = format!(
            "node {node} for {} ms from {} ms on, seen {} times; the last time it said {:?} and a read gave {:?}",
            row.lasts_ms(),
            row.from_ns / 1_000_000,
            row.seen,
            row.last.value["after"].as_str().unwrap_or_default(),
            row.last.value["read"].as_str().unwrap_or_default()
        );
        if kept_ms > silence::KEPT_WAITING_MS_MAX {
            judgement
                .missing
                .push(format!("{detail}; the machine kept the harness waiting for {kept_ms} ms"));
        } else {
            judgement.found(row.contradiction.name(), detail, &[]);
        }
    }
    let unready = |event: &&&Event| event.value["before"] != "ready";
    let seen = Compared {
        times: compared.len(),
        not_ready: compared.iter().filter(unready).count(),
        longest_ms: rows.iter().map(|(_, row)| row.lasts_ms()).max().unwrap_or(0),
    };
    (judgement, seen)
}

/// What a verdict says about it.
pub(crate) fn told(compared: &Compared) -> Value {
    json!({"times": compared.times, "not_ready": compared.not_ready, "longest_ms": compared.longest_ms})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, tests::history};

    const READY: &str = "ready";
    const NO_LEADER: &str = "no leader is known";
    const REFUSED: &str = "CLUSTERDOWN no leader is known";

    /// A comparison a second, each of which takes 100 ms.
    fn events(times: usize, said: &str, read: &str) -> Vec<Event> {
        let value = json!({"node": 2, "before": said, "read": read, "read_ms": 90, "after": said, "ms": 100});
        let mut events = history(&vec![(NEMESIS, Kind::Info, EVENT, value); times]);
        (0..).zip(&mut events).for_each(|(at, event)| event.time_ns = (at + 1) * 1_000_000_000);
        events
    }

    fn found(times: usize, said: &str, read: &str, shadows: &[Shadow]) -> Vec<String> {
        let findings = judge(&events(times, said, read), shadows, 0).0.findings;
        findings.into_iter().map(|finding| finding.anomaly).collect()
    }

    fn shadow(fault: &str, from_ms: u64, to_ms: u64) -> Shadow {
        let (from_ns, to_ns) = (from_ms * 1_000_000, to_ms * 1_000_000);
        Shadow {
            nemesis: fault.into(),
            fault: fault.into(),
            from_ns,
            to_ns,
            effect: true,
            detail: Value::Null,
        }
    }

    #[test]
    fn a_contradiction_that_lasts_is_found() {
        assert_eq!(found(5, READY, REFUSED, &[]), ["ready and does not serve"]);
        assert_eq!(found(5, NO_LEADER, "ok", &[]), ["not ready and serves"]);
        assert_eq!(found(3, READY, REFUSED, &[]), [""; 0]);
        assert_eq!(found(9, READY, "ok", &[]), [""; 0]);
        assert_eq!(found(9, NO_LEADER, REFUSED, &[]), [""; 0]);
        assert_eq!(found(9, "the disk is nearly full: ...", "ok", &[]), [""; 0]);
        // Over a distance it takes longer to notice.
        assert_eq!(judge(&events(5, READY, REFUSED), &[], 300).0.findings.len(), 0);
    }

    #[test]
    fn a_fault_that_begins_ends_or_goes_on_explains_it() {
        assert_eq!(found(5, READY, REFUSED, &[shadow("kill-one", 2_500, 9_000)]), [""; 0]);
        assert_eq!(found(5, READY, REFUSED, &[shadow("kill-one", 100, 3_500)]), [""; 0]);
        assert_eq!(found(5, READY, REFUSED, &[shadow("transfer", 100, 9_000)]), [""; 0]);
        assert_eq!(found(5, READY, REFUSED, &[shadow("kill-one", 100, 9_000)]).len(), 1);
        // What was seen before and after it is judged separately.
        assert_eq!(found(9, READY, REFUSED, &[shadow("kill-one", 3_500, 3_600)]).len(), 1);
    }

    #[test]
    fn a_busy_machine_proves_nothing() {
        let mut events = events(5, READY, REFUSED);
        events.extend(history(&[(NEMESIS, Kind::Info, "kept waiting", json!({"ms": 900}))]));
        let (judgement, compared) = judge(&events, &[], 0);
        assert_eq!((judgement.findings.len(), judgement.missing.len()), (0, 1));
        assert_eq!(compared, Compared { times: 5, not_ready: 0, longest_ms: 4_100 });
    }
}

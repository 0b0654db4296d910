//! A bare majority makes progress: when the faults end, at first only as many nodes come back as must agree,
//! whichever they are. The others are killed, or cut off from their peers. Every node of the majority must
//! serve within a bound, and again after a while; only then is everything healed.
//!
//! The history shows it as a fault of its own ([`FAULT`]), with the time that each node took.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    check::Judgement,
    client::Connection,
    cluster::{Cluster, State, agent_with, network::Weather},
    history::{Event, NEMESIS},
    nemesis::{Env, Shadow},
    watch::silence,
};

/// The names in the history.
pub(crate) const NEMESIS_NAME: &str = "end of the faults";
pub(crate) const FAULT: &str = "bare-majority";

/// How long the others stay off, in milliseconds.
const OFF_MS: std::ops::Range<u64> = 2_000..6_000;
/// What is done this soon may have been confirmed before the others were off.
const EARLY: Duration = Duration::from_millis(500);
/// How long it may take until each node serves: processes start, and elect. Plus this many round trips.
const SERVES_MAX: Duration = Duration::from_secs(15);
const SERVES_ROUND_TRIPS: u32 = 40;
/// The pause between two attempts on a node, and how long one may take.
const PAUSE: Duration = Duration::from_millis(200);
const ATTEMPT_MAX: Duration = Duration::from_secs(3);
/// The key belongs to no workload.
const WRITE: [&str; 3] = ["SET", "probe", "1"];
const READ: [&str; 2] = ["GET", "probe"];

/// Who comes back, and who does not.
pub(crate) struct Majority {
    chosen: Vec<u64>,
    others: Vec<u64>,
    /// The others are cut off; if not, killed.
    are_cut: bool,
    off: Duration,
    limit: Duration,
}

impl Majority {
    /// Chooses while the faults go on: from now on the others are cut off, or stay down when they are down.
    pub(crate) fn begin(env: &Env, random: &mut fastrand::Rng, round_trip: Duration) -> Majority {
        let mut chosen = env.cluster.ids();
        random.shuffle(&mut chosen);
        let others = chosen.split_off(chosen.len() / 2 + 1);
        let majority = Majority {
            chosen,
            others,
            are_cut: random.bool(),
            off: Duration::from_millis(random.u64(OFF_MS)),
            limit: SERVES_MAX + SERVES_ROUND_TRIPS * round_trip,
        };
        env.record("start", json!({"nemesis": NEMESIS_NAME, "fault": FAULT}));
        if majority.are_cut {
            majority.change_links(&env.cluster, |weather| {
                weather.blocked += 1;
                weather.refused += 1;
                weather.cuts += 1;
            });
        } else {
            env.cluster.keep_off(&majority.others);
        }
        majority
    }

    fn change_links(&self, cluster: &Cluster, change: impl Fn(&mut Weather)) {
        let pairs = self.chosen.iter().flat_map(|one| self.others.iter().map(move |other| (*one, *other)));
        let links: Vec<(u64, u64)> = pairs.flat_map(|(one, other)| [(one, other), (other, one)]).collect();
        cluster.network.change(&links, change);
    }

    /// When the faults have ended: has each node of the majority serve while the others are off.
    pub(crate) fn stand_alone(
        &self,
        env: &Env,
        mend: impl Fn(u64),
        reach: &(dyn Fn(u64) -> Option<SocketAddr> + Sync),
    ) {
        let off: Vec<u64> = if self.are_cut { Vec::new() } else { self.others.clone() };
        let killed: Vec<u64> =
            off.iter().copied().filter(|node| env.cluster.state(*node) != State::Down).collect();
        if let Err(error) = env.cluster.kill_together(&killed) {
            env.record("finding", json!({"anomaly": "unexpected exit", "detail": format!("{error:#}")}));
        }
        let on = env.cluster.ids().into_iter().filter(|node| !off.contains(node));
        on.for_each(mend);
        let began = Instant::now();
        let (first, late) = self.served(env, reach);
        let (again, later) = if first.values().any(Value::is_null) {
            Default::default()
        } else {
            std::thread::sleep(self.off.saturating_sub(began.elapsed()));
            self.served(env, reach)
        };
        let detail = json!({
            "nodes": self.chosen,
            "off": self.others,
            "how": if self.are_cut { "cut off" } else { "killed" },
            "served_ms": first,
            "again_ms": again,
            "limit_ms": self.limit.as_millis() as u64,
            "kept_waiting_ms": late.max(later).as_millis() as u64,
            "not_ready": self.not_ready(env),
        });
        env.record(
            "stop",
            json!({"nemesis": NEMESIS_NAME, "fault": FAULT, "effect": true, "detail": detail}),
        );
        self.end(env);
    }

    /// Lets the others come back.
    pub(crate) fn end(&self, env: &Env) {
        env.cluster.keep_off(&[]);
    }

    /// After how many milliseconds each node of the majority wrote and read; null if it did not in time. And for
    /// how long this thread was not scheduled.
    fn served(
        &self,
        env: &Env,
        reach: &(dyn Fn(u64) -> Option<SocketAddr> + Sync),
    ) -> (BTreeMap<u64, Value>, Duration) {
        std::thread::sleep(EARLY);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let asks = |node: u64| {
                scope.spawn(move || {
                    while began.elapsed() < self.limit {
                        if reach(node).is_some_and(|address| serves(node, address)) {
                            return json!(began.elapsed().as_millis() as u64);
                        }
                        std::thread::sleep(PAUSE);
                    }
                    Value::Null
                })
            };
            let asking: Vec<_> = self.chosen.iter().map(|node| (*node, asks(*node))).collect();
            let mut late = Duration::ZERO;
            while !asking.iter().all(|(_, ask)| ask.is_finished()) {
                let slept = Instant::now();
                std::thread::sleep(PAUSE);
                late = late.max(slept.elapsed().saturating_sub(PAUSE));
                env.look_for_exits();
            }
            let served = asking.into_iter().map(|(node, ask)| (node, ask.join().unwrap_or(Value::Null)));
            (served.collect(), late)
        })
    }

    /// What nodes of the majority say that are not ready.
    fn not_ready(&self, env: &Env) -> BTreeMap<u64, String> {
        let agent = agent_with(ATTEMPT_MAX);
        let said = self.chosen.iter().filter_map(|node| {
            let (status, text) = env.cluster.readiness(*node, &agent).unwrap_or((0, "silent".into()));
            (status != 200).then_some((*node, text))
        });
        said.collect()
    }
}

/// Whether a node writes and reads.
fn serves(node: u64, address: SocketAddr) -> bool {
    Connection::open(node, address, ATTEMPT_MAX)
        .is_ok_and(|mut open| open.call(&WRITE).is_ok() && open.call(&READ).is_ok())
}

/// How it was, if the faults of a run ended so.
pub(crate) fn told(shadows: &[Shadow]) -> Option<&Value> {
    shadows.iter().rfind(|shadow| shadow.fault == FAULT).map(|shadow| &shadow.detail)
}

/// Every node of the majority must have served, both times.
pub(crate) fn judge(events: &[Event], shadows: &[Shadow]) -> Judgement {
    let mut judgement = Judgement::default();
    let begun = events.iter().any(|event| event.process == NEMESIS && event.value["fault"] == FAULT);
    let Some(told) = told(shadows) else {
        if begun {
            judgement.missing.push("nobody saw whether a bare majority serves".into());
        }
        return judgement;
    };
    let kept_ms = told["kept_waiting_ms"].as_u64().unwrap_or(0);
    for when in ["served_ms", "again_ms"] {
        let nodes = told[when].as_object().into_iter().flatten();
        let idle: Vec<&str> = nodes.filter(|(_, ms)| ms.is_null()).map(|(node, _)| node.as_str()).collect();
        if idle.is_empty() {
            continue;
        }
        let detail = format!(
            "of nodes {} alone, with {} {}, {idle:?} did not serve within {} ms; not ready: {}",
            told["nodes"],
            told["off"],
            told["how"].as_str().unwrap_or_default(),
            told["limit_ms"],
            told["not_ready"]
        );
        if kept_ms > silence::KEPT_WAITING_MS_MAX {
            judgement
                .missing
                .push(format!("{detail}; the machine kept the harness waiting for {kept_ms} ms"));
        } else {
            judgement.found("no progress with a majority", detail, &[]);
        }
        break;
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{Kind, tests::history},
        nemesis::shadows,
    };

    /// What is found, and missing, if node 2 served after this time, and again after that.
    fn judged(served: Value, again: Value, kept_ms: u64) -> (usize, usize) {
        let detail = json!({"nodes": [1, 2], "off": [3], "how": "killed", "limit_ms": 15_000, "not_ready": {},
            "served_ms": {"1": 3, "2": served}, "again_ms": {"1": 3, "2": again},
            "kept_waiting_ms": kept_ms});
        let of = |detail: Value| json!({"nemesis": NEMESIS_NAME, "fault": FAULT, "effect": true, "detail": detail});
        let events = history(&[
            (NEMESIS, Kind::Info, "start", of(Value::Null)),
            (NEMESIS, Kind::Info, "stop", of(detail)),
        ]);
        let judgement = judge(&events, &shadows(&events));
        (judgement.findings.len(), judgement.missing.len())
    }

    #[test]
    fn every_node_of_the_majority_must_serve_for_as_long_as_it_is_alone() {
        assert_eq!(judged(json!(900), json!(3), 0), (0, 0));
        assert_eq!(judged(Value::Null, Value::Null, 0), (1, 0));
        assert_eq!(judged(json!(900), Value::Null, 0), (1, 0));
        assert_eq!(judged(Value::Null, json!(3), 900), (0, 1));
    }

    #[test]
    fn what_was_begun_and_not_seen_is_missing() {
        let start = json!({"nemesis": NEMESIS_NAME, "fault": FAULT});
        let events = history(&[(NEMESIS, Kind::Info, "start", start)]);
        assert_eq!(judge(&events, &shadows(&events)).missing.len(), 1);
        assert_eq!(judge(&[], &[]).missing.len(), 0);
    }
}

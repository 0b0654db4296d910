//! An operator hands the leadership to a node that died or stands still since a moment ago: it is refused, the leader stays,
//! and clients notice nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

/// An election would take 950 ms at least.
const GAP_MAX: Duration = Duration::from_millis(700);

/// Hands the leadership over. Gives the status and the detail.
fn hand_over(cluster: &Cluster, asked: usize, to: usize) -> (u16, String) {
    let url = format!("http://{}/v1/cluster/leader", cluster.addresses[asked].http);
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let body = format!("{{\"id\":{}}}", to + 1);
    let mut answer = ureq::Agent::from(config).post(&url).send(body).unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

/// The longest time between two acknowledged writes at `node`, while `meanwhile` runs and for a moment after it.
fn longest_gap(cluster: &Cluster, node: usize, meanwhile: impl FnOnce()) -> Duration {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut client = Client::connect(&cluster.addresses[node].resp).unwrap();
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !stop.load(Relaxed) {
                assert_eq!(client.run("SET k v").unwrap(), "+OK\n");
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest
        });
        thread::sleep(Duration::from_millis(200));
        meanwhile();
        thread::sleep(Duration::from_millis(400));
        stop.store(true, Relaxed);
        writing.join().unwrap()
    })
}

#[test]
fn whoever_cannot_take_over_is_not_handed_the_leadership() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let (target, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let gap = longest_gap(&cluster, third, || {
        cluster.freeze(target);
        let (status, text) = hand_over(&cluster, third, target);
        assert!(status == 409 && text.contains("cannot be reached"), "{status}: {text}");
        cluster.thaw(target);
    });
    assert!(gap < GAP_MAX, "frozen: {gap:?}");
    assert_eq!(cluster.leader(), leader);
    cluster.wait_ready(target);
    cluster.kill(target);
    let gap = longest_gap(&cluster, third, || {
        let asked = Instant::now();
        let (status, text) = hand_over(&cluster, leader, target);
        assert!(status == 409 && text.contains("cannot be reached"), "{status}: {text}");
        assert!(asked.elapsed() < GAP_MAX, "{:?}", asked.elapsed());
    });
    assert!(gap < GAP_MAX, "dead: {gap:?}");
    assert_eq!(cluster.leader(), leader);
    cluster.start_bare(target);
    cluster.wait_ready(target);
    let (status, text) = hand_over(&cluster, third, target);
    assert_eq!(status, 200, "{text}");
}

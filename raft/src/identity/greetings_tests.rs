//! What is believed of a greeting, and of whom.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::*;
use crate::{
    Platform,
    clock::Clock,
    identity::{DISK_ENDPOINT, Introduction, lives::Lives, witness::Begun},
    net::{handshake::UNTOLD, horizon::Horizon},
    types::{LogId, MemberNode},
};

/// A peer's greeting in one start of its disk.
fn greeting(number: u64, boot: u64, index: u64) -> Hello {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Clock::new(Arc::new(|| 0)));
    let peer = Identity::open(dir.path(), 2, Introduction::default(), &clock, &Platform::system()).unwrap();
    let names = (1..=number).collect();
    let lives = Lives { number, names, is_met: true };
    let with = Held { last: Some((1, index)), voted: 1 };
    Hello { disk_id: "disk".into(), begun: Begun { lives, boot, with }, ..peer.hello(1) }
}

#[tokio::test]
async fn a_disk_is_judged_by_what_was_committed_and_by_the_start_that_had_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Clock::new(Arc::new(|| 0)));
    let identity =
        Identity::open(dir.path(), 1, Introduction::default(), &clock, &Platform::system()).unwrap();
    let matched = Arc::new(AtomicU64::new(0));
    let told = matched.clone();
    let matched_to = move |_| Some(LogId::new_term_index(1, told.load(Ordering::Relaxed)));
    identity.judge_by(matched_to, || Horizon::at(1, 100));
    let welcome = async |hello: &Hello| {
        assert_eq!(identity.judge(hello), None);
        identity.learn(hello).await.unwrap();
    };
    welcome(&greeting(1, 7, 90)).await;
    // Entries that were not committed may be truncated.
    welcome(&greeting(2, 8, 50)).await;
    matched.store(60, Ordering::Relaxed);
    // It has acknowledged these since: it need not have begun with them.
    welcome(&greeting(2, 8, 50)).await;
    assert!(identity.judge(&greeting(3, 9, 59)).unwrap().contains("had acknowledged 60"));
    welcome(&greeting(3, 9, 60)).await;
    // What is reported of another start of the same life changes nothing.
    let other = Known { boot: 10, ..identity.witness.newest(2).unwrap() };
    identity.witness.hear(2, &other);
    matched.store(70, Ordering::Relaxed);
    welcome(&greeting(3, 9, 60)).await;
    // A connection of an earlier start is judged anew: what follows from that is not said of this one.
    assert!(identity.judge(&greeting(2, 8, 50)).is_some());
    assert!(identity.old_disk_of(&greeting(2, 8, 50)).is_some());
    assert_eq!(identity.old_disk_of(&greeting(3, 9, 60)), None);
}

/// The wall clock of the nodes here: in the year 2023.
const NOW_MS: u64 = 1_700_000_000_000;

const DAY_MS: u64 = 24 * 3600 * 1000;

fn node(dir: &Path, id: NodeId, first_members: Vec<NodeId>) -> (Identity, Arc<Clock>) {
    let clock = Arc::new(Clock::new(Arc::new(|| NOW_MS * 1000)));
    let introduction = Introduction { first_members, apply_level_max: 1 };
    let identity = Identity::open(dir, id, introduction, &clock, &Platform::system()).unwrap();
    identity.judge_by(|_| None, || Horizon::at(5, 100));
    (identity, clock)
}

/// A member of a cluster of three, whose disks are called `disk-1` and so on.
fn member(dir: &Path) -> (Identity, Arc<Clock>) {
    let (identity, clock) = node(dir, 1, vec![1, 2, 3]);
    identity.form_cluster().unwrap();
    let of = |id: NodeId| MemberNode {
        peer: format!("n{id}:1"),
        endpoints: BTreeMap::from([(DISK_ENDPOINT.to_owned(), format!("disk-{id}"))]),
    };
    let members: BTreeMap<NodeId, MemberNode> = (1..=3).map(|id| (id, of(id))).collect();
    identity.learn_members(members.iter());
    (identity, clock)
}

/// What a stranger can say at most: all that `identity` does not keep to itself, and of all the highest.
fn exaggerated(identity: &Identity, id: NodeId, disk: &str) -> Hello {
    let names = vec![7];
    Hello {
        node_id: id,
        to: 1,
        disk_id: disk.into(),
        clock_ms: Some(1 << 60),
        begun: Begun {
            lives: Lives { number: 1 << 60, names, is_met: true },
            boot: 7,
            with: Held { last: Some((1 << 60, 1 << 60)), voted: 1 << 60 },
        },
        address: "evil:1".into(),
        wall_ms: 1,
        ..identity.hello(id)
    }
}

#[tokio::test]
async fn nothing_is_taken_from_a_node_that_no_membership_names() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, clock) = member(dir.path());
    let stranger = exaggerated(&identity, 9, "disk-9");
    assert_eq!(identity.judge_caller(&stranger), None, "it may be a member that this node has not heard of");
    identity.learn(&stranger).await.unwrap();
    assert_eq!(clock.live_ms(), None);
    assert!(identity.seen(9).is_none() && identity.witness.newest(9).is_none());
    assert!(identity.file.look(|content| content.met.is_empty()));
    identity.with_told_address(9, |told| assert_eq!(told, None));
    identity.parted(&stranger, &Hello { went_back: "really".into(), ..stranger.clone() });
    assert_eq!(identity.went_back(), None);
    // Nor of one that has a member's id and not its disk, which is refused.
    let thief = exaggerated(&identity, 2, "disk-9");
    assert!(identity.judge_caller(&thief).unwrap().contains("another disk"));
    identity.parted(&thief, &Hello { went_back: "really".into(), ..thief.clone() });
    assert_eq!(identity.went_back(), None);
}

#[tokio::test]
async fn callers_do_not_end_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, _) = member(dir.path());
    let ours = identity.cluster_id().unwrap();
    for id in [2, 3] {
        let caller = Hello {
            cluster_id: "elsewhere".into(),
            former_clusters: vec![ours.clone()],
            ..exaggerated(&identity, id, &format!("disk-{id}"))
        };
        assert!(identity.judge_caller(&caller).unwrap().contains("another cluster"));
    }
    let caller = Hello { apply_level: 9, ..exaggerated(&identity, 9, "disk-9") };
    assert!(identity.judge_caller(&caller).unwrap().contains("apply level 9"));
    let caller = Hello { apply_level: 9, refusal: "no".into(), ..exaggerated(&identity, 2, "disk-9") };
    assert!(identity.judge_caller(&caller).is_some());
    assert_eq!((identity.stranger(2), identity.successor(), identity.outgrown()), (None, None, None));
    // What peers answer, whom this node has called, counts.
    for id in [2, 3] {
        let answer = Hello {
            cluster_id: UNTOLD.into(),
            former_clusters: Vec::new(),
            disk_id: String::new(),
            refusal: "no".into(),
            ..exaggerated(&identity, id, "")
        };
        identity.greeted(&answer).await.unwrap_err();
    }
    assert_eq!(identity.stranger(2), Some(2));
    let later = Hello { apply_level: 9, ..exaggerated(&identity, 2, "disk-2") };
    identity.greeted(&later).await.unwrap_err();
    assert!(identity.outgrown().is_some());
}

#[tokio::test]
async fn a_member_is_believed_within_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, clock) = member(dir.path());
    let beyond = exaggerated(&identity, 2, "disk-2");
    assert_eq!(identity.judge(&beyond), None);
    identity.learn(&beyond).await.unwrap();
    assert_eq!(clock.live_ms(), None, "a clock ten days ahead is none");
    assert!(identity.witness.newest(2).is_none(), "what no disk can hold would refuse this one for ever");
    let life = beyond.begun.lives.present().unwrap();
    let known = Known { disk_id: "disk-3".into(), life, boot: 1, held: beyond.begun.with };
    identity.hear_of_disk(2, 3, &known);
    identity.hear_of_disk(2, 9, &Known { held: Held::default(), ..known.clone() });
    assert!(identity.witness.newest(3).is_none() && identity.witness.newest(9).is_none());
    let sane = Hello {
        clock_ms: Some(NOW_MS + 9 * DAY_MS),
        begun: Begun { with: Held { last: Some((4, 90)), voted: 6 }, ..beyond.begun.clone() },
        ..beyond
    };
    identity.learn(&sane).await.unwrap();
    assert!(clock.live_ms().unwrap() >= NOW_MS + 9 * DAY_MS);
    assert_eq!(identity.witness.newest(2).unwrap().held.voted, 6);
    identity.with_told_address(2, |told| assert_eq!(told, Some("evil:1")));
}

#[tokio::test]
async fn before_there_is_a_membership_the_first_members_are_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, clock) = node(dir.path(), 1, vec![1, 2, 3]);
    let hello = |id| Hello { clock_ms: Some(NOW_MS), ..exaggerated(&identity, id, "disk") };
    identity.learn(&hello(9)).await.unwrap();
    assert_eq!((clock.live_ms(), identity.file.look(|content| content.met.len())), (None, 0));
    identity.learn(&hello(2)).await.unwrap();
    assert!(clock.live_ms().is_some());
    assert_eq!(identity.file.look(|content| content.met.len()), 1);
}

#[test]
fn a_node_that_joins_remembers_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let (identity, _) = node(dir.path(), 1, Vec::new());
    for id in 2..2 * PEERS_MAX as NodeId {
        assert_eq!(identity.judge_caller(&exaggerated(&identity, id, "disk")), None);
    }
    assert!(identity.seen(2).is_some() && identity.seen(2 * PEERS_MAX as NodeId - 1).is_none());
}

//! An entry is applied by the rule of its level, whatever this build has learned since: a log of level 1 leaves the
//! state and the replies that were recorded when there was no other level. What a mend changes it changes from its level
//! on; what this build cannot apply it does not skip.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum::{
    machine::{APPLY_LEVEL_MAX, Machine},
    proposal::{Call, Pipeline, Requests, Step, put_call, put_transaction},
    resp::{Protocol, Replies},
    store::{Digest, level},
};
use kvorum_raft::{Batch, Machine as _, Proposal};
use support::{
    alone::{Alone, HASH_KEY, apply_at},
    random_log::{self, random_log},
};
use tokio::sync::oneshot;

const BATCHES: u64 = 300;

/// Seeds of logs, with the digests of their bytes, and of the state and the replies that the first version made of them
/// (commit acf1f0f). Where a log is drawn in another way they have to be recorded by that version.
const RECORDED: [(u64, u128, u128, u128); 3] = [
    (
        1,
        0xb637ec581f17175f555767e870baf4dd,
        0x27b4a9164b6d4a7b5491e8bf14da1122,
        0xd3eddc6dd09fe8532c847f3bde7ab97c,
    ),
    (
        2,
        0x2b64717f3d538384cc319eb6331ba85c,
        0x7c0f806d98e486fee0ed34444a5c8680,
        0x167e6ce81cc7cb16c3f2d8a7d8abc4b3,
    ),
    (
        3,
        0xbe8f69615921e23b9019c7263bece8b7,
        0xf2347e405943d7cc4097b0ec2f5e0a19,
        0xbed5db38cfea586be679f939c20a339e,
    ),
];

/// Choices of members and fields, inside a transaction: their replies come from apply.
fn put_choices(chance: &mut fastrand::Rng, out: &mut Vec<u8>) {
    let (set, hash) = (format!("set:{}", chance.u8(..6)), format!("hash:{}", chance.u8(..6)));
    let count = chance.i8(-20..60).to_string();
    let argvs: [&[&str]; 5] = [
        &["SRANDMEMBER", &set],
        &["SRANDMEMBER", &set, &count],
        &["HRANDFIELD", &hash],
        &["HRANDFIELD", &hash, &count],
        &["SPOP", &set, "7"],
    ];
    let calls: Vec<_> = argvs
        .iter()
        .map(|argv| Call { db: 0, argv: argv.iter().map(|word| word.as_bytes()).collect() })
        .collect();
    put_transaction(out, &[], &calls);
}

/// A log that draws, with the digest of all its bytes.
fn log(seed: u64) -> (Vec<random_log::Batch>, u128) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut log = random_log(&mut chance, BATCHES);
    let mut digest = Digest::default();
    for batch in &mut log {
        batch.proposals.iter_mut().for_each(|proposal| put_choices(&mut chance, proposal));
        [batch.index, batch.stamp_ms, batch.term].into_iter().for_each(|number| digest.number(number));
        batch.proposals.iter().for_each(|proposal| digest.bytes(proposal));
    }
    (log, digest.finish())
}

/// Applies an entry, every request of which is answered on this node; feeds the replies.
fn apply(machine: &Machine, batch: &random_log::Batch, replies: &mut Digest) {
    let mut waiting = Vec::new();
    let proposals = batch.proposals.iter().map(|bytes| {
        let (done, answered) = oneshot::channel();
        waiting.push(answered);
        let steps = Requests::new(bytes).map(|_| Step::Write).collect();
        let pipeline =
            Pipeline { steps, protocol: Protocol::Resp3, chance: 0, replies: Replies::default(), done };
        Proposal { bytes, local: Some(pipeline) }
    });
    let proposals = proposals.collect();
    let random_log::Batch { index, stamp_ms, term, level, raised, .. } = *batch;
    machine.apply(Batch { index, stamp_ms, ahead_ms: 0, term, level, raised, proposals });
    waiting.iter_mut().for_each(|answered| replies.bytes(&answered.try_recv().unwrap().replies.into_bytes()));
}

/// The digest of all that would be on a disk: content and forms, page by page, and the numbers of the head.
fn image(machine: &Machine) -> u128 {
    let mut digest = Digest::default();
    digest.bytes(&machine.checkpoint_begin());
    let mut pages = Vec::new();
    while machine.checkpoint_step(usize::MAX, &mut pages) {}
    for page in pages {
        if let Some(content) = page.content {
            digest.bytes(&page.id);
            digest.bytes(&content);
        }
    }
    digest.finish()
}

/// The same logs, raised to level 2 by an entry: by the first, as in a new cluster, or in their middle. Recorded when
/// level 2 came: it may not change either.
const RECORDED_RAISED: [(u64, u64, u128, u128); 3] = [
    (1, 1, 0x505a6ae31bac72458444911757c4a483, 0x52a0a9757b6065a2b2b61ef73b5e74fc),
    (2, 1, 0xa9778899c23a51bde148f0fed7cda307, 0xb9185d9ea4d36eabe200542eda12cf93),
    (3, 150, 0xe9c9e0101d99b719f00a590284a543c7, 0x1bf060d7ec4a02577f725ec7c1140637),
];

#[test]
fn a_log_that_is_raised_is_applied_so_again() {
    for (seed, raised_at, state, said) in RECORDED_RAISED {
        let (mut log, _) = log(seed);
        random_log::raise(&mut log, raised_at, level::BOUNDED);
        let (machine, mut replies) = (Machine::new(16), Digest::default());
        log.iter().for_each(|batch| apply(&machine, batch, &mut replies));
        assert_eq!(image(&machine), state, "seed {seed}: another state");
        assert_eq!(replies.finish(), said, "seed {seed}: other replies");
    }
}

#[test]
fn what_was_applied_once_is_applied_so_again() {
    for (seed, bytes, state, said) in RECORDED {
        let (log, drawn) = log(seed);
        assert_eq!(drawn, bytes, "another log is drawn than was recorded");
        let (machine, mut replies) = (Machine::new(16), Digest::default());
        log.iter().for_each(|batch| apply(&machine, batch, &mut replies));
        assert_eq!(image(&machine), state, "seed {seed}: another state");
        assert_eq!(replies.finish(), said, "seed {seed}: other replies");
    }
}

/// A server whose entries have a level.
fn at_level(level: u32) -> Alone {
    let mut alone = Alone::without_hash_key();
    alone.level = level;
    alone
}

#[test]
fn a_refused_claim_changes_nothing_from_level_2_on() {
    for (level, kind, permits) in [(level::FIRST, "semaphore", "7"), (level::BOUNDED, "lock", "")] {
        let mut alone = at_level(level);
        alone.line("FENCE.GUARD data lk");
        let data = "x".repeat(1_100_000);
        let refused = alone.text(&format!("SEM.ACQUIRE lk me PERMITS 1 OF 7 PX 1000 DATA {data}"));
        assert!(refused.starts_with("-ERR what is said at one key may take"), "{refused}");
        assert_eq!(alone.text("TYPE lk"), format!("+{kind}\r\n"));
        assert!(alone.text("SEM.INFO lk").contains(&format!(":{permits}")) == (level == level::FIRST));
    }
}

#[test]
fn locks_are_not_guarded_from_level_2_on() {
    for level in [level::FIRST, level::BOUNDED] {
        let (mut alone, is_old) = (at_level(level), level == level::FIRST);
        let refused = "-ERR a lock, semaphore or election can not be guarded\r\n";
        assert_eq!(alone.text("FENCE.GUARD k k") == refused, !is_old);
        alone.line("FENCE.GUARD a lock");
        assert_eq!(alone.text("FENCE.GUARD lock a") == refused, !is_old);
        assert_eq!(alone.text("LOCK.ACQUIRE lock me PX 1000").starts_with('*'), !is_old);
    }
}

#[test]
fn a_lease_is_kept_alive_by_its_binding_from_level_2_on() {
    for level in [level::FIRST, level::BOUNDED] {
        let mut alone = at_level(level);
        alone.line("LEASE.GRANT PX 1000 ID l");
        let binding = alone.text("LEASE.BINDING l");
        let binding = binding.trim().trim_start_matches(':');
        alone.now_ms += 900;
        let refused = "-ERR wrong number of arguments for 'lease.keepalive' command\r\n";
        let kept = alone.text(&format!("LEASE.KEEPALIVE l BINDING {binding}"));
        assert_eq!(kept == refused, level == level::FIRST, "{kept}");
        alone.now_ms += 900;
        assert_eq!(alone.text("EXISTS l") == ":0\r\n", level == level::FIRST);
    }
}

#[test]
fn there_is_chance_behind_a_fence_from_level_2_on() {
    for level in [level::FIRST, level::BOUNDED] {
        let mut alone = at_level(level);
        let members = (0..100).map(|number| format!(" m{number}")).collect::<String>();
        alone.line(&format!("SADD s{members}"));
        let token = alone.text("LOCK.ACQUIRE l me PX 100000");
        let token = token.split(':').nth(1).unwrap().split('\r').next().unwrap().to_string();
        let drawn = (0..30).map(|_| alone.text(&format!("FENCE l {token} SRANDMEMBER s")));
        let different = drawn.collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(different == 1, level == level::FIRST);
    }
}

#[test]
fn nothing_waits_for_keys_below_level_4() {
    for level in [level::WALL_TIMES, level::WAITS] {
        let mut alone = at_level(level);
        alone.line("RPUSH l a");
        let popped = alone.text("BLPOP l 0");
        assert_eq!(popped.starts_with("-ERR unknown command 'BLPOP'"), level < level::WAITS, "{popped}");
        let left = if level < level::WAITS { ":1\r\n" } else { ":0\r\n" };
        assert_eq!(alone.text("LLEN l"), left);
    }
}

/// Whether its checkpoints have a hash key.
fn has_hash_key(machine: &Machine) -> bool {
    machine.checkpoint_begin();
    let mut pages = Vec::new();
    while machine.checkpoint_step(usize::MAX, &mut pages) {}
    pages.iter().any(|page| page.id == [0])
}

#[test]
fn a_hash_key_is_taken_only_where_there_are_no_names() {
    let mut set = Vec::new();
    put_call(&mut set, 3, &[b"SET", b"k", b"v"]);
    let mut flush = Vec::new();
    put_call(&mut flush, 0, &[b"FLUSHALL"]);
    let old = (level::FIRST, None);
    let raised = (level::BOUNDED, Some(HASH_KEY));
    for (before, is_keyed) in [(vec![], true), (vec![&set], false), (vec![&set, &flush], true)] {
        let machine = Machine::new(16);
        let mut index = 0;
        let mut apply = |rule, bytes: &[Vec<u8>]| {
            index += 1;
            apply_at(&machine, index, 1, 1, rule, bytes);
        };
        before.into_iter().for_each(|bytes| apply(old, std::slice::from_ref(bytes)));
        apply(raised, &[set.clone()]);
        // Only one entry raises it; another key would be another order.
        apply((level::BOUNDED, None), &[]);
        assert_eq!(has_hash_key(&machine), is_keyed);
        assert!(machine.read(3, 1, 0, |view| view.exists(b"k")));
    }
}

/// What `apply` says when it cannot go on.
fn panic_of(level: u32, proposal: Vec<u8>) -> Option<String> {
    let machine = Machine::new(16);
    let applied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        apply_at(&machine, 5, 1, 1, (level, None), &[proposal]);
    }));
    applied.err().map(|panic| *panic.downcast::<String>().unwrap())
}

#[test]
fn what_is_not_known_is_not_skipped() {
    let mut bytes = Vec::new();
    put_call(&mut bytes, 0, &[b"SET", b"k", b"v"]);
    assert_eq!(panic_of(level::BOUNDED, bytes.clone()), None);
    let unknown = [&bytes[..], &[99]].concat();
    for level in [level::FIRST, level::BOUNDED, APPLY_LEVEL_MAX] {
        let said = panic_of(level, unknown.clone()).unwrap();
        assert_eq!(
            said,
            "log entry 5 has a request of kind 99, which this version does not know: start a later one"
        );
    }
    let said = panic_of(APPLY_LEVEL_MAX + 1, bytes.clone()).unwrap();
    let expected = format!(
        "log entry 5 is of apply level {}, and this version knows levels up to {APPLY_LEVEL_MAX}",
        APPLY_LEVEL_MAX + 1
    );
    assert!(said.starts_with(&expected), "{said}");
    bytes.pop();
    assert_eq!(panic_of(level::FIRST, bytes.clone()), None);
    assert_eq!(panic_of(level::BOUNDED, bytes).unwrap(), "log entry 5 has a malformed request");
}

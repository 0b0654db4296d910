//! Times that clients name, and are shown, are of the wall clock, however far the log's clock is from it. Times to live and
//! claims are measured by the log's clock alone.
#![allow(clippy::unwrap_used)]

mod support;

use support::alone::Alone;

const DAY_MS: i64 = 86_400_000;
/// Ahead and behind, near and as far as numbers go.
const DISTANCES: [i64; 7] = [0, 3, -3, DAY_MS, -DAY_MS, 900 * DAY_MS, -900 * DAY_MS];

/// One whose log's clock is so far ahead of the wall clock, and the wall clock.
fn apart(ahead_ms: i64) -> (Alone, i64) {
    let mut alone = Alone::ahead(ahead_ms);
    alone.apply(&[]);
    let wall_ms = i64::try_from(alone.now_ms).unwrap() - ahead_ms;
    (alone, wall_ms)
}

#[test]
fn a_deadline_is_the_time_that_was_named() {
    for ahead_ms in DISTANCES {
        let (mut alone, wall_ms) = apart(ahead_ms);
        let (at_ms, at_s) = (wall_ms + 5_000, wall_ms / 1000 + 5);
        alone.line("SET k v");
        alone.line("MSET a v b v c v d v");
        for (command, key, named_ms) in [
            (format!("PEXPIREAT k {at_ms}"), "k", at_ms),
            (format!("EXPIREAT a {at_s}"), "a", at_s * 1000),
            (format!("SET b v PXAT {at_ms}"), "b", at_ms),
            (format!("SET c v EXAT {at_s}"), "c", at_s * 1000),
            (format!("GETEX d PXAT {at_ms}"), "d", at_ms),
            (format!("INCREX i PXAT {at_ms}"), "i", at_ms),
        ] {
            assert!(!alone.text(&command).starts_with('-'), "{command}");
            assert_eq!(alone.text(&format!("PEXPIRETIME {key}")), format!(":{named_ms}\r\n"), "{ahead_ms}");
            let seconds = (named_ms + 500) / 1000;
            assert_eq!(alone.text(&format!("EXPIRETIME {key}")), format!(":{seconds}\r\n"), "{ahead_ms}");
            assert_eq!(alone.text(&format!("PTTL {key}")), format!(":{}\r\n", named_ms - wall_ms));
        }
        alone.now_ms += 5_000;
        assert_eq!(alone.text("EXISTS k b d i"), ":4\r\n");
        alone.now_ms += 1;
        assert_eq!(alone.text("EXISTS k a b c d i"), ":0\r\n");
    }
}

#[test]
fn a_time_that_has_passed_deletes_and_one_to_come_does_not() {
    for ahead_ms in DISTANCES {
        let (mut alone, wall_ms) = apart(ahead_ms);
        for command in
            [format!("PEXPIREAT k {wall_ms}"), format!("SET k v PXAT {wall_ms}"), "EXPIREAT k 1".into()]
        {
            alone.line("SET k v");
            alone.line(&command);
            assert_eq!(alone.text("EXISTS k"), ":0\r\n", "{command} at {ahead_ms}");
            let next = command.replace(&wall_ms.to_string(), &(wall_ms + 1).to_string());
            alone.line("SET k v");
            alone.line(&next);
            assert_eq!(alone.text("EXISTS k") == ":1\r\n", next != command, "{next} at {ahead_ms}");
        }
        // By relative times nothing is different.
        alone.line("SET k v PX 1000");
        assert_eq!(alone.text("PTTL k"), ":1000\r\n");
        assert_eq!(alone.text("PEXPIRETIME k"), format!(":{}\r\n", wall_ms + 1000));
        assert_eq!(alone.text(&format!("PEXPIREAT k {} GT", wall_ms + 1000)), ":0\r\n");
        assert_eq!(alone.text(&format!("PEXPIREAT k {} GT", wall_ms + 1001)), ":1\r\n");
        assert_eq!(alone.text(&format!("PEXPIREAT k {} LT", wall_ms + 1001)), ":0\r\n");
    }
}

#[test]
fn no_time_is_too_far_for_a_distance() {
    for ahead_ms in [i64::MIN, -DAY_MS, DAY_MS, i64::MAX] {
        let (mut alone, _) = apart(0);
        alone.ahead_ms = ahead_ms;
        for at in ["1", "9223372036854775807", "-9223372036854775808", "4000000000000"] {
            for command in
                [format!("PEXPIREAT k {at}"), format!("SET k v PXAT {at}"), format!("GETEX k PXAT {at}")]
            {
                alone.line("SET k v");
                alone.line(&command);
                for shown in ["PEXPIRETIME k", "EXPIRETIME k"] {
                    let said = alone.text(shown);
                    let number: i64 = said.trim().trim_start_matches(':').parse().unwrap();
                    assert!(number >= -2, "{command} at {ahead_ms}: {said}");
                }
            }
        }
        assert_eq!(
            alone.text("SET k v EXAT 9223372036854775807"),
            "-ERR invalid expire time in 'set' command\r\n"
        );
        assert_eq!(alone.text("SET k v PXAT 0"), "-ERR invalid expire time in 'set' command\r\n");
    }
}

#[test]
fn what_is_measured_by_the_log_s_clock_does_not_depend_on_a_wall_clock() {
    let mut said = Vec::new();
    for jumps in [[0, 0, 0], [DAY_MS, -DAY_MS, 5], [-900 * DAY_MS, 7, 900 * DAY_MS]] {
        let (mut alone, mut replies) = (Alone::default(), Vec::new());
        for ahead_ms in jumps {
            alone.ahead_ms = ahead_ms;
            for line in [
                "LOCK.ACQUIRE l a PX 1000",
                "LOCK.INFO l",
                "LEASE.GRANT PX 900 ID x",
                "ELECT.CAMPAIGN e a PX 500",
                "CL.THROTTLE t 3 10 1",
                "SET k v PX 700",
                "PTTL k",
                "EXISTS k",
            ] {
                replies.push(alone.text(line));
            }
            alone.now_ms += 400;
        }
        said.push(replies);
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0], said[2]);
}

//! The limit for the elements that one call may touch: what would pass it is refused before it begins, by all nodes
//! alike.
#![allow(clippy::unwrap_used)]

mod support;

use kvorum::{
    proposal::{Setting, put_setting},
    store::{ClusterSetting, level},
};
use support::{alone::Alone, process::Cluster, resp::Client};

fn set(alone: &mut Alone, max: u64) {
    let (mut proposal, digits) = (Vec::new(), max.to_string());
    let name = ClusterSetting::CallElementsMax.name().as_bytes();
    put_setting(&mut proposal, &Setting { name, digits: digits.as_bytes(), is_default: false });
    alone.apply(&[proposal]);
}

fn numbers(count: usize) -> String {
    (0..count).map(|number| format!("{number} {number} ")).collect::<String>().trim_end().to_owned()
}

/// Collections of 100 elements, and another set of 60.
fn filled() -> Alone {
    let mut alone = Alone::default();
    let some = numbers(60).replace("59 59", "59 x");
    for line in [
        format!("HSET h {}", numbers(100)),
        format!("ZADD z {}", numbers(100)),
        format!("RPUSH l {}", numbers(50)),
        format!("SADD s {}", numbers(100)),
        format!("SADD t {some}"),
    ] {
        assert!(alone.text(&line).starts_with(':'), "{line}");
    }
    alone
}

fn refused(count: u64, max: u64) -> String {
    format!(
        "-ERR the call would touch {count} elements, and call-elements-max is {max}: nothing was done. Ask for less at \
         once\r\n"
    )
}

/// Each call, and how many elements it touches.
#[test]
fn what_touches_too_many_elements_is_refused_and_changes_nothing() {
    for (line, count) in [
        ("HGETALL h", 100),
        ("HKEYS h", 100),
        ("HVALS h", 100),
        ("HSCAN h 0 COUNT 99", 99),
        ("HSCAN h 0 COUNT 1000", 100),
        ("HRANDFIELD h 30", 30),
        ("HRANDFIELD h 90", 100),
        ("HRANDFIELD h -200 WITHVALUES", 200),
        ("SMEMBERS s", 100),
        ("SSCAN s 0 COUNT 1000", 100),
        ("SRANDMEMBER s 33", 33),
        ("SRANDMEMBER s 40", 100),
        ("SRANDMEMBER s -40", 40),
        ("SINTER s t", 122),
        ("SINTER s none", 0),
        ("SINTERCARD 2 s t LIMIT 1", 122),
        ("SUNION s t s t", 161),
        ("SDIFF s t", 100),
        ("SDIFF s t h none", 0),
        ("ZRANGE z 10 29", 20),
        ("ZREVRANGE z 0 -1 WITHSCORES", 100),
        ("ZRANGEBYSCORE z 10 (60 LIMIT 10 20", 20),
        ("ZRANGEBYLEX z - + LIMIT 0 30", 30),
        ("ZRANDMEMBER z 30", 30),
        ("ZSCAN z 0 COUNT 50", 50),
        ("LRANGE l 10 59", 50),
        ("LPOS l 99", 100),
        ("LPOS l 99 MAXLEN 30", 30),
        ("KEYS *", 5),
        ("SCAN 0 COUNT 1000", 5),
    ] {
        let mut alone = filled();
        // Reads of this connection run in the order of its writes, and each counts by itself.
        check(&mut alone, line, count);
    }
    for (line, count, arguments) in [
        ("SINTERSTORE d s t", 122, 4),
        ("SUNIONSTORE d s t", 161, 4),
        ("SDIFFSTORE d s t", 100, 4),
        ("SPOP s 30", 30, 3),
        ("SPOP s 50", 100, 3),
        ("ZRANGESTORE d z 10 29", 20, 5),
        ("ZREMRANGEBYRANK z 0 39", 40, 4),
        ("ZREMRANGEBYSCORE z 10 39", 30, 4),
        ("ZREMRANGEBYLEX z - +", 100, 4),
        ("ZPOPMIN z 30", 30, 3),
        ("ZPOPMAX z 1000", 100, 3),
        ("LPOP l 20", 20, 3),
        ("RPOP l 2000", 100, 3),
        ("LMPOP 2 none l LEFT COUNT 30", 30, 7),
        ("LINSERT l BEFORE 99 x", 100, 5),
        ("LREM l 1 99", 100, 4),
        ("LTRIM l 0 69", 30, 4),
        ("COPY z y", 100, 3),
        ("RPUSH l 1 2 3 4 5", 0, 7),
        ("FENCE.GUARD none h", 0, 3),
    ] {
        let mut alone = filled();
        check(&mut alone, line, count + arguments);
    }
}

/// A call is refused with a limit that is one too low, changes nothing then, and runs with the limit that it needs.
fn check(alone: &mut Alone, line: &str, count: u64) {
    if count > 1 {
        set(alone, count - 1);
        let before = alone.machine.digest();
        assert_eq!(alone.text(line), refused(count, count - 1), "{line}");
        assert_eq!(alone.machine.digest(), before, "{line}");
    }
    set(alone, count);
    let reply = alone.text(line);
    assert!(!reply.contains("call-elements-max"), "{line}: {reply}");
}

/// The calls of a transaction count together, the reads apart from the writes: they run only where the client is.
#[test]
fn the_calls_of_a_transaction_count_together() {
    let values = filled().text("HVALS h");
    let run = |max: u64| {
        let mut alone = filled();
        set(&mut alone, max);
        for line in ["MULTI", "HVALS h", "ZRANGESTORE d z 10 29", "HVALS h", "SADD s y"] {
            alone.text(line);
        }
        alone.text("EXEC")
    };
    assert_eq!(run(200), format!("*4\r\n{values}:20\r\n{values}:1\r\n"));
    assert_eq!(run(199), format!("*4\r\n{values}:20\r\n{}:1\r\n", refused(200, 199)));
    // The writes are 5 arguments, 20 elements and 3 arguments.
    assert_eq!(run(28), format!("*4\r\n{}:20\r\n{}:1\r\n", refused(100, 28), refused(100, 28)));
    let all = [refused(100, 27), ":20\r\n".to_owned(), refused(100, 27), refused(28, 27)];
    assert_eq!(run(27), format!("*4\r\n{}", all.concat()));
}

/// Few bytes that would make much work, or take much memory.
#[test]
fn what_a_call_does_with_bytes_counts_too() {
    let mut alone = Alone::default();
    alone.text("SETBIT big 800000000 1");
    alone.text("SETRANGE mid 1048575 x");
    alone.text(&format!("RPUSH l {}", "a ".repeat(1_000)));
    alone.text("ZADD z 1 m");
    for line in [
        "BITCOUNT big".to_owned(),
        "BITPOS big 1".to_owned(),
        "COPY big other".to_owned(),
        "SETRANGE new 100000000 x".to_owned(),
        "BITFIELD new SET u8 800000000 1".to_owned(),
        "BITOP NOT d big".to_owned(),
        format!("SORT l BY {}* STORE d", "p".repeat(100_000)),
        format!("SORT_RO l GET {}*", "p".repeat(100_000)),
    ] {
        set(&mut alone, 100_000);
        let (name, before) = (line.split(' ').next().unwrap(), alone.machine.digest());
        assert!(alone.text(&line).contains("call-elements-max"), "{name}");
        assert_eq!(alone.machine.digest(), before, "{name}");
    }
    set(&mut alone, 0);
    // A short string ends a conjunction at once, however often it is named.
    assert_eq!(alone.text(&format!("BITOP AND d mid {}", "missing ".repeat(100_000))), ":1048576\r\n");
    assert_eq!(alone.text("BITCOUNT d"), ":0\r\n");
    // What is looked up a thousand times is not copied before it fits.
    let (mut proposal, name) = (Vec::new(), ClusterSetting::Maxmemory.name().as_bytes());
    put_setting(&mut proposal, &Setting { name, digits: b"300000000", is_default: false });
    alone.apply(&[proposal]);
    assert_eq!(alone.text("SORT l BY nosort GET mi* STORE d"), ":1000\r\n", "there is no such key");
    alone.text("RENAME mid xa");
    assert!(alone.text("SORT l BY nosort GET x* STORE d").starts_with("-OOM"));
}

/// What an entry deletes is dropped after it, and counts until then.
#[test]
fn what_was_just_deleted_takes_memory_still() {
    let mut alone = Alone::default();
    let (mut proposal, name) = (Vec::new(), ClusterSetting::Maxmemory.name().as_bytes());
    put_setting(&mut proposal, &Setting { name, digits: b"100000000", is_default: false });
    alone.apply(&[proposal]);
    alone.text("MULTI");
    for _ in 0..10 {
        alone.text("SETRANGE k 49999999 x");
        alone.text("DEL k");
    }
    let replies = alone.text("EXEC");
    assert!(replies.starts_with("*20\r\n:50000000\r\n:1\r\n:50000000\r\n:1\r\n-OOM"), "{replies}");
    assert_eq!(alone.text("SETRANGE k 49999999 x"), ":50000000\r\n");
}

#[test]
fn zero_is_no_limit_and_older_entries_have_none() {
    let mut alone = filled();
    set(&mut alone, 0);
    assert_eq!(alone.text("SUNIONSTORE d s t"), ":101\r\n");
    set(&mut alone, 5);
    assert!(alone.text("SUNIONSTORE d s t").starts_with("-ERR the call would touch"));
    alone.level = level::WAITS;
    assert_eq!(alone.text("SUNIONSTORE d s t"), ":101\r\n");
}

#[test]
fn it_is_one_setting_for_all_nodes() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let client = |cluster: &Cluster, node: usize| Client::connect(&cluster.addresses[node].resp).unwrap();
    let mut first = client(&cluster, (leader + 1) % 3);
    let shown = |max: u64| format!("*2\n  $\"call-elements-max\"\n  $\"{max}\"\n");
    assert_eq!(first.run("CONFIG GET call-elements-max").unwrap(), shown(10_000_000));
    let error = first.run("CONFIG SET call-elements-max 1mb").unwrap();
    assert!(error.contains("argument couldn't be parsed into an integer"), "{error}");
    assert_eq!(first.run("CONFIG SET call-elements-max 1000 maxmemory 100mb timeout 0").unwrap(), "+OK\n");
    let error = first.run("CONFIG SET call-elements-max 5").unwrap();
    assert!(error.contains("argument must be 0 or at least 1000"), "{error}");
    let (few, many) = (format!("RPUSH l {}", numbers(300)), format!("RPUSH l {}", numbers(500)));
    assert_eq!(first.run(&few).unwrap(), ":600\n");
    assert!(first.run(&many).unwrap().contains("call-elements-max"));
    for node in 0..3 {
        cluster.kill(node);
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    let leader = cluster.leader();
    for node in 0..3 {
        let mut client = client(&cluster, node);
        assert_eq!(client.run("LLEN l").unwrap(), ":600\n");
        assert_eq!(client.run("CONFIG GET call-elements-max").unwrap(), shown(1_000));
        assert!(client.run("CONFIG GET maxmemory").unwrap().contains("104857600"));
    }
    let mut client = client(&cluster, leader);
    assert!(client.run(&many).unwrap().contains("call-elements-max"));
}

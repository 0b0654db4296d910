//! Observers of elections hear of their own election, whatever else happens in the same entries of the log and however
//! much before.
#![allow(clippy::unwrap_used)]

mod support;

use std::{thread, time::Duration};

use support::{
    process::Cluster,
    resp::{Client, Value, encode, split},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// An observer, and who leads at first.
fn observe(cluster: &Cluster, node: usize, lines: &[&str]) -> (Client, Option<(String, u64)>) {
    let mut client = client(cluster, node);
    for line in lines {
        assert_eq!(client.run(line).unwrap(), "+OK\n", "{line}");
    }
    let first = next(&mut client);
    (client, first)
}

/// Who leads after the next change, and with which epoch.
fn next(client: &mut Client) -> Option<(String, u64)> {
    let message = client.receive().unwrap();
    let Value::Aggregate(_, Some(parts)) = &message else { panic!("no message: {}", message.show()) };
    match &parts[2] {
        Value::Aggregate(_, None) => None,
        Value::Aggregate(_, Some(leader)) => {
            let (Value::Bulk(_, Some(candidate)), Value::Line(b':', epoch)) = (&leader[0], &leader[1]) else {
                panic!("no leader: {}", message.show())
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            Some((text(candidate), text(epoch).parse().unwrap()))
        }
        _ => panic!("no leader: {}", message.show()),
    }
}

/// Runs a transaction.
fn transaction(client: &mut Client, lines: &[&str]) {
    client.run("MULTI").unwrap();
    for line in lines {
        assert_eq!(client.run(line).unwrap(), "+QUEUED\n");
    }
    assert!(client.run("EXEC").unwrap().starts_with('*'));
}

#[test]
fn an_entry_may_be_about_another_database_too() {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    let mut writer = client(&cluster, leader);
    let observe = |name: &str| observe(&cluster, (leader + 1) % 3, &[&format!("ELECT.OBSERVE {name}")]);
    let (mut observer, nobody) = observe("e");
    assert_eq!(nobody, None);
    let campaigns =
        ["SELECT 0", "ELECT.CAMPAIGN e zero PX 60000", "SELECT 1", "ELECT.CAMPAIGN e one PX 60000"];
    transaction(&mut writer, &campaigns);
    assert_eq!(next(&mut observer).unwrap().0, "zero");
    // An event about all keys of another database is not about this election.
    let (mut observer, nobody) = observe("f");
    assert_eq!(nobody, None);
    for line in ["SELECT 5", "SET key value"] {
        assert_eq!(writer.run(line).unwrap(), "+OK\n");
    }
    transaction(&mut writer, &["SELECT 0", "ELECT.CAMPAIGN f zero PX 60000", "SELECT 5", "FLUSHDB"]);
    assert_eq!(next(&mut observer).unwrap().0, "zero");
    // One about all keys of this database is.
    assert_eq!(writer.run("SELECT 0").unwrap(), "+OK\n");
    assert_eq!(writer.run("FLUSHDB").unwrap(), "+OK\n");
    assert_eq!(next(&mut observer), None);
}

/// Clients in three databases campaign and resign at once, so that entries hold the changes of several.
#[test]
fn elections_of_one_name_in_many_databases_do_not_mix() {
    const TERMS: usize = 200;
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader();
    thread::scope(|scope| {
        for db in 0..3 {
            let cluster = &cluster;
            let select = format!("SELECT {db}");
            let (mut observer, nobody) = observe(cluster, (leader + 1) % 3, &[&select, "ELECT.OBSERVE e"]);
            assert_eq!(nobody, None);
            scope.spawn(move || {
                let (candidate, mut known) = (format!("of:{db}"), 0);
                loop {
                    match next(&mut observer) {
                        Some((told, epoch)) => {
                            assert!(told == candidate || told == "last", "db {db} was told of {told}");
                            assert!(epoch > known, "epoch {epoch} after {known}");
                            known = epoch;
                            if told == "last" {
                                break;
                            }
                        }
                        None => assert!(known > 0, "nobody led, and that was known"),
                    }
                }
            });
            scope.spawn(move || {
                let mut client = client(cluster, (leader + db) % 3);
                assert_eq!(client.run(&format!("SELECT {db}")).unwrap(), "+OK\n");
                for _ in 0..TERMS {
                    let won = client.call(&split(&format!("ELECT.CAMPAIGN e of:{db} PX 60000"))).unwrap();
                    let Value::Aggregate(_, Some(parts)) = &won else { panic!("{}", won.show()) };
                    let epoch = parts[1].show();
                    let resign = format!("ELECT.RESIGN e of:{db} {}", epoch.trim().trim_start_matches(':'));
                    assert_eq!(client.run(&resign).unwrap(), "+OK\n");
                }
                client.run("ELECT.CAMPAIGN e last PX 60000").unwrap();
            });
        }
    });
}

/// The history holds far more than this election's few changes.
#[test]
fn an_observer_goes_on_from_an_epoch_behind_much_else() {
    let cluster = Cluster::start(1, &[]);
    let mut writer = client(&cluster, 0);
    let value = "x".repeat(3_900);
    for _ in 0..10 {
        for _ in 0..110 {
            writer.send(&encode(&["SET", "other", &value])).unwrap();
        }
        for _ in 0..110 {
            assert_eq!(writer.receive().unwrap().show(), "+OK\n");
        }
    }
    let won = writer.call(&split("ELECT.CAMPAIGN s a PX 60000")).unwrap();
    let Value::Aggregate(_, Some(parts)) = &won else { panic!("{}", won.show()) };
    let epoch = parts[1].show().trim().trim_start_matches(':').to_owned();
    assert_eq!(writer.run(&format!("ELECT.RESIGN s a {epoch}")).unwrap(), "+OK\n");
    writer.run("ELECT.CAMPAIGN s b PX 60000").unwrap();
    let line = format!("ELECT.OBSERVE s FROM {epoch}");
    let (mut observer, first) = observe(&cluster, 0, &[&line]);
    assert_eq!(first, Some(("a".into(), epoch.parse().unwrap())));
    assert_eq!(next(&mut observer), None);
    assert_eq!(next(&mut observer).unwrap().0, "b");
}

#[test]
fn elections_are_observed_where_the_change_feed_is_off() {
    let cluster = Cluster::start(3, &["--feed-history-bytes", "0"]);
    let mut other = client(&cluster, 0);
    assert_eq!(
        other.run("FEED.SUBSCRIBE").unwrap().split(':').next().unwrap(),
        "-ERR the change feed is off on this node"
    );
    for round in 0..2 {
        let (mut observer, first) = observe(&cluster, 1, &["ELECT.OBSERVE e"]);
        assert_eq!(first, None, "round {round}");
        let won = other.run("ELECT.CAMPAIGN e a PX 60000").unwrap();
        let (candidate, epoch) = next(&mut observer).unwrap();
        assert_eq!(candidate, "a");
        assert!(won.contains(&format!(":{epoch}\n")), "{won}");
        assert_eq!(other.run(&format!("ELECT.RESIGN e a {epoch}")).unwrap(), "+OK\n");
        assert_eq!(next(&mut observer), None);
        // What happens while nobody observes is not recorded, and missed by nobody.
        drop(observer);
        for number in 0..100 {
            other.run(&format!("SET k{number} v")).unwrap();
        }
    }
}

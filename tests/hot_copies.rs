//! What docs/recovery.md says of copies of a running node's directory: `kvorum recover` either refuses one, or makes a cluster of
//! it that has everything that was acknowledged before the copy was begun, and of what came later no part without all before.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use support::{process::Cluster, resp::Client};

const PATIENCE: Duration = Duration::from_secs(30);

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, Duration::from_secs(20)).unwrap()
}

/// As `cp -r` does it, file after file, whatever the node does meanwhile.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            // It may be gone by now.
            let _ = fs::copy(entry.path(), to);
        }
    }
}

fn recover(data: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    let output = command.args(["recover", "--data"]).arg(data).args(more).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A copy, of which node, and how many writes were acknowledged before it was begun.
struct Copied {
    node: usize,
    data: PathBuf,
    acknowledged: u64,
}

/// Writes key after key over the leader while copies of nodes are made, some of them while checkpoints are written.
fn copies_under_load(cluster: &Cluster, leader: usize) -> (Vec<Copied>, u64) {
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut client = client(cluster, leader);
            while !stop.load(Relaxed) {
                let number = acknowledged.load(Relaxed);
                assert_eq!(client.run(&format!("SET w{number} {number}")).unwrap(), "+OK\n");
                acknowledged.store(number + 1, Relaxed);
            }
        });
        let wait_for_more = || {
            let (before, since) = (acknowledged.load(Relaxed), Instant::now());
            while acknowledged.load(Relaxed) < before + 100 {
                assert!(since.elapsed() < PATIENCE && !writing.is_finished(), "nothing is written");
                thread::sleep(Duration::from_millis(5));
            }
        };
        let follower = (leader + 1) % 3;
        let copied = [(leader, false), (follower, false), (leader, true)].map(|(node, with_checkpoint)| {
            wait_for_more();
            let data = cluster.data_of(node).with_extension(format!("copy-{with_checkpoint}"));
            let acknowledged = acknowledged.load(Relaxed);
            thread::scope(|scope| {
                if with_checkpoint {
                    let url = format!("http://{}/v1/checkpoint", cluster.addresses[node].http);
                    scope.spawn(move || ureq::post(&url).send_empty().unwrap());
                }
                copy(&cluster.data_of(node), &data);
            });
            Copied { node, data, acknowledged }
        });
        wait_for_more();
        stop.store(true, Relaxed);
        (copied.into(), acknowledged.load(Relaxed))
    })
}

#[test]
fn a_hot_copy_is_refused_or_is_a_state_that_the_node_had() {
    let mut cluster = Cluster::start(3, &["--log-segment-bytes", "4mb"]);
    let leader = cluster.leader();
    let (copies, written) = copies_under_load(&cluster, leader);
    (0..3).for_each(|node| cluster.kill(node));
    let mut usable = 0;
    for Copied { node, data, acknowledged } in copies {
        let (is_good, text) = recover(&data, &[]);
        if !is_good {
            let says_why = text.contains("DAMAGED") || text.contains("cannot be recovered");
            assert!(says_why || text.contains("nothing can be recovered"), "{text}");
            continue;
        }
        let confirmed = ["--as-new-cluster", "--yes-i-may-lose-acknowledged-writes"];
        let (is_made, text) = recover(&data, &confirmed);
        assert!(is_made, "{text}");
        cluster.put_data(node, data);
        cluster.start_bare(node);
        cluster.wait_ready(node);
        let mut client = client(&cluster, node);
        let present: Vec<bool> = (0..written)
            .map(|number| client.run(&format!("GET w{number}")).unwrap() == format!("$\"{number}\"\n"))
            .collect();
        let whole = present.iter().take_while(|is_there| **is_there).count();
        // A follower has acknowledged what it has, and that may be less than the leader has.
        assert!(node != leader || whole as u64 >= acknowledged, "{whole} of {acknowledged}");
        assert!(whole > 100, "{whole}");
        assert!(present[whole..].iter().all(|is_there| !is_there), "there is a gap at {whole}");
        cluster.kill(node);
        usable += 1;
    }
    assert!(usable > 0, "none of the copies is of any use");
}

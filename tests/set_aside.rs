//! A node whose pages cannot be read, and that has nobody to ask, says where they are and how to put others in their place.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use support::{process::Cluster, resp::Client};

fn client(cluster: &Cluster) -> Client {
    Client::connect(&cluster.addresses[0].resp).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn damage(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
        } else {
            fs::write(&path, b"not what was there").unwrap();
        }
    }
}

/// Runs a verb of the program. Gives what it wrote to either output.
fn kvorum(args: &[&str]) -> String {
    let command =
        Command::new(env!("CARGO_BIN_EXE_kvorum")).args(args).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&command.stdout).into_owned() + &String::from_utf8_lossy(&command.stderr)
}

#[test]
fn unreadable_pages_are_named_and_replaced_by_whole_ones() {
    let small = ["--log-segment-bytes", "64kb", "--checkpoint-log-bytes", "64kb", "--log-entries-kept", "10"];
    let mut cluster = Cluster::start(1, &small);
    let mut writer = client(&cluster);
    for number in 0..200 {
        assert_eq!(writer.run(&format!("SET k{number} {}", "v".repeat(1000))).unwrap(), "+OK\n");
    }
    cluster.purge(0);
    cluster.kill(0);
    let data = cluster.data_of(0);
    let (live, good) = (data.join("pages"), data.join("good"));
    copy(&live, &good);
    damage(&live);
    cluster.start_node(0);
    let (code, log) = cluster.wait_end(0);
    let aside = data.join("pages.unreadable-1");
    assert!(code == Some(6) && !live.exists() && aside.exists(), "{code:?}: {log}");
    for part in [&*aside.display().to_string(), "start it again", "pages.unreadable-N with the highest N"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    // Nothing more is set aside at the next starts: there is nothing.
    cluster.start_node(0);
    assert_eq!(cluster.wait_end(0).0, Some(6));
    assert!(!data.join("pages.unreadable-2").exists());
    let looked_at = kvorum(&["recover", "--data", data.to_str().unwrap()]);
    assert!(looked_at.contains("set aside") && looked_at.contains("start the node once"), "{looked_at}");
    // As the message says.
    fs::rename(&good, data.join("pages.unreadable-2")).unwrap();
    let looked_at = kvorum(&["recover", "--data", data.to_str().unwrap()]);
    assert!(looked_at.contains("pages.unreadable-2: start the node once"), "{looked_at}");
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert!(live.exists() && aside.exists() && !data.join("pages.unreadable-2").exists());
    assert_eq!(client(&cluster).run("DBSIZE").unwrap(), ":200\n");
    let status = kvorum(&["status", "--http", &cluster.addresses[0].http]);
    let told = format!("node 1 has pages set aside in {}: they could not be read", aside.display());
    assert!(status.contains(&told), "{status}");
    fs::remove_dir_all(&aside).unwrap();
    let status = kvorum(&["status", "--http", &cluster.addresses[0].http]);
    assert!(!status.contains("set aside"), "{status}");
}

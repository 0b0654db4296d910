//! What goes wrong at a start ends the process with a code of its own and a message that names the culprit.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use support::process::{Cluster, free_address};

/// Runs `kvorum serve` to its end. Gives the exit code and what it wrote to stderr.
fn serve(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kvorum"))
        .arg("serve")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The same with a complete command line: one node with its data in `data`, and `more`.
fn serve_in(data: &Path, more: &[&str]) -> (i32, String) {
    let (resp, http, peer) = (free_address(), free_address(), free_address());
    let mut args = vec!["--data", data.to_str().unwrap(), "--http", &http, "--peer", &peer];
    for (option, value) in [("--id", "1"), ("--resp", resp.as_str())] {
        if !more.contains(&option) {
            args.extend([option, value]);
        }
    }
    args.extend(more);
    serve(&args)
}

#[test]
fn configurations_that_make_no_sense_are_refused_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    for (text, parts) in [
        ("id = 1\ndatabases = ]", &["line 2"][..]),
        ("id = 1\nno-such-key = 3\n", &["line 2", "no-such-key"]),
        ("id = \"one\"\n", &["line 1", "id"]),
        ("id = 1\n\nproto-max-bulk-len = \"5xb\"\n", &["line 3", "proto-max-bulk-len", "5xb"]),
        ("id = 1\nresp = \"nowhere\"\n", &["line 2", "resp"]),
        ("id = 1\npeers = \"1=a:1,2=a:1\"\n", &["line 2", "peers", "another node has this address"]),
        ("id = 1\npeers = \"1=a:1,9007199254740992=b:1\"\n", &["line 2", "peers", "up to 9007199254740991"]),
        ("id = 9007199254740992\n", &["line 1", "id", "up to 9007199254740991"]),
        ("id = 1\nadvertise-peer = \"10.0.0.1\"\n", &["line 2", "advertise-peer", "the port is missing"]),
        ("id = 1\nadvertise-resp = \"a b:1\"\n", &["line 2", "advertise-resp", "HOST:PORT"]),
    ] {
        let file = dir.path().join("kvorum.toml");
        fs::write(&file, format!("{text}\ndata = \"d\"\n")).unwrap();
        let (code, message) = serve(&["--config", file.to_str().unwrap()]);
        assert_eq!(code, 2, "{text}: {message}");
        assert!(message.contains("kvorum.toml"), "{text}: {message}");
        parts.iter().for_each(|part| assert!(message.contains(part), "{text}: no {part} in {message}"));
    }
    let (code, message) = serve(&["--config", "/does/not/exist"]);
    assert!(code == 2 && message.contains("/does/not/exist"), "{message}");
}

#[test]
fn what_is_taken_or_belongs_to_others_is_refused() {
    let mut cluster = Cluster::start(1, &[]);
    let data = cluster.data_of(0);
    let taken = cluster.addresses[0].resp.clone();
    let elsewhere = tempfile::tempdir().unwrap();
    let (code, message) = serve_in(elsewhere.path(), &["--resp", &taken]);
    assert!(code == 3 && message.contains(&taken), "{code}: {message}");
    let (code, message) = serve_in(&data, &[]);
    assert!(code == 4 && message.contains("used by another process"), "{code}: {message}");
    // It is written down soon after the node is one.
    let is_member = || fs::read_to_string(data.join("identity.json")).unwrap().contains("\"has_log\": true");
    while !is_member() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    cluster.kill(0);
    let (code, message) = serve_in(&data, &["--id", "7"]);
    assert!(code == 5 && message.contains("belongs to node 1"), "{code}: {message}");
    // The log of a member is gone: it has forgotten its votes.
    fs::remove_dir_all(data.join("log")).unwrap();
    let (code, message) = serve_in(&data, &[]);
    assert!(code == 6 && message.contains("the log is corrupted"), "{code}: {message}");
    assert!(message.contains("--join"), "it says how to rejoin: {message}");
}

/// Ports that cannot be are refused before anything is started.
#[test]
fn a_cluster_whose_ports_overlap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (ports, why) in [
        (["7000", "7002"], "overlap"),
        (["7002", "7000"], "overlap"),
        (["0", "7000"], "--port"),
        (["7000", "0"], "--http-port"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_kvorum"))
            .args(["dev", "--port", ports[0], "--http-port", ports[1], "--data"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{ports:?}: {message}");
        assert!(message.contains(why), "{ports:?}: {message}");
        assert!(!dir.path().join("data").exists(), "{ports:?}");
    }
}

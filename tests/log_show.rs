//! `kvorum log show` on the directories of real nodes: what was proposed is there to read, as text and as JSON; nothing
//! is changed; a running node's directory is refused; and of a damaged log all is shown but what is damaged.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use serde_json::{Value, json};
use support::process::Cluster;

/// Exit code, stdout, stderr.
fn show(dir: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    command.args(["log", "show"]).arg(dir).args(more).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The objects of `--json`: that of the log, and those of the entries.
fn show_json(dir: &Path, more: &[&str], code: i32) -> (Value, Vec<Value>) {
    let (ended, out, error) = show(dir, &[&["--json"], more].concat());
    assert_eq!(ended, code, "{error}");
    let mut objects = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let head = objects.next().unwrap();
    assert_eq!(head["kind"], "log");
    (head, objects.collect())
}

/// All files and directories below a directory, with their content and when they were changed.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let changed = path.metadata().unwrap().modified().unwrap();
        if path.is_dir() {
            found.append(&mut files(&path));
            found.insert(path, (Vec::new(), changed));
        } else {
            found.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    found
}

fn connect(cluster: &Cluster, node: usize) -> redis::Connection {
    let client = redis::Client::open(format!("redis://{}/", cluster.addresses[node].resp)).unwrap();
    client.get_connection().unwrap()
}

fn indexes(entries: &[Value]) -> Vec<u64> {
    entries.iter().map(|entry| entry["index"].as_u64().unwrap()).collect()
}

/// The requests of all entries, with the node that proposed them.
fn requests(entries: &[Value]) -> Vec<(u64, Value)> {
    let proposals = entries.iter().flat_map(|entry| entry["proposals"].as_array().into_iter().flatten());
    proposals
        .flat_map(|proposal| {
            let node = proposal["node_id"].as_u64().unwrap();
            assert_eq!(proposal["unreadable"], Value::Null);
            proposal["requests"].as_array().unwrap().iter().map(move |request| (node, request.clone()))
        })
        .collect()
}

fn call(argv: &[Value]) -> Value {
    json!({ "kind": "call", "db": 0, "argv": argv })
}

/// What `log show` needs of a directory.
fn copy_without_lock(data: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("log")).unwrap();
    fs::copy(data.join("identity.json"), copy.path().join("identity.json")).unwrap();
    for file in fs::read_dir(data.join("log")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join("log").join(file.file_name())).unwrap();
    }
    copy
}

/// The text has what `what_was_proposed_is_there_to_read_and_nothing_is_changed` writes.
fn assert_readable(text: &str, origin: u64) {
    for part in [
        "\nnode       3\n",
        "\npurged     nothing\n",
        "membership, voters 1, 2, 3\n",
        "asks all nodes to raise the apply level to",
        &format!("    node {origin}  db 0  SET greeting \"hello, world\"\n"),
        "  SET bytes \"\\xff\\x00\\n\"\n",
        &format!("  SET long \"{}\"...(5000 bytes)\n", "x".repeat(64)),
        &format!("    node {origin}  MULTI\n    node {origin}    db 0  INCRBY n 1\n"),
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn what_was_proposed_is_there_to_read_and_nothing_is_changed() {
    let mut cluster = Cluster::start(3, &[]);
    let (leader, data) = (cluster.leader(), cluster.data_of(2));
    let other = (0..3).find(|node| *node != leader).unwrap();
    let (code, out, error) = show(&data, &[]);
    assert!(code == 4 && out.is_empty() && error.contains("used by another process"), "{code}: {error}");

    let mut connection = connect(&cluster, other);
    let long = "x".repeat(5000);
    redis::cmd("SET").arg("greeting").arg("hello, world").exec(&mut connection).unwrap();
    redis::cmd("SET").arg("bytes").arg(&[0xff, 0, b'\n']).exec(&mut connection).unwrap();
    redis::cmd("SET").arg("long").arg(&long).exec(&mut connection).unwrap();
    redis::pipe().atomic().incr("n", 1).incr("n", 2).exec(&mut connection).unwrap();
    // A follower has it when it answers.
    redis::cmd("GET").arg("n").exec(&mut connect(&cluster, 2)).unwrap();
    (0..3).for_each(|node| cluster.kill(node));

    let before = files(&data);
    let (code, text, error) = show(&data, &[]);
    assert_eq!(code, 0, "{error}");
    let (head, entries) = show_json(&data, &[], 0);
    assert!(files(&data) == before, "a look has changed something");

    let found = indexes(&entries);
    assert_eq!((head["node_id"].as_u64(), head["damage"].clone()), (Some(3), Value::Null));
    assert_eq!(head["first"]["index"].as_u64(), found.first().copied());
    assert_eq!(head["last"]["index"].as_u64(), found.last().copied());
    assert!(found.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{found:?}");
    assert!(entries.iter().any(|entry| entry["kind"] == "blank"));
    let members = entries.iter().rfind(|entry| entry["kind"] == "membership").unwrap();
    assert_eq!(members["voters"], json!([[1, 2, 3]]));
    assert_eq!(members["members"]["1"]["peer"], cluster.addresses[0].peer);
    let origin = other as u64 + 1;
    let proposed = requests(&entries);
    for expected in [
        call(&["SET".into(), "greeting".into(), "hello, world".into()]),
        call(&["SET".into(), "bytes".into(), json!({ "base64": "/wAK" })]),
        call(&["SET".into(), "long".into(), long.into()]),
        json!({ "kind": "transaction", "watched": [], "calls": [
            { "db": 0, "argv": ["INCRBY", "n", "1"] }, { "db": 0, "argv": ["INCRBY", "n", "2"] },
        ]}),
    ] {
        assert!(proposed.contains(&(origin, expected.clone())), "{expected} is not in {text}");
    }
    // The first entry of a new cluster raises its level.
    let last = entries.iter().rfind(|entry| entry["kind"] == "commands").unwrap();
    assert!(last["level"].as_u64() > Some(1) && last["bytes"].as_u64() > Some(0), "{last}");
    assert!(last["time"].as_str().unwrap().ends_with('Z'), "{last}");

    assert_readable(&text, origin);
    // A part of it, and a copy without the lock.
    let (from, to) = (found[1].to_string(), found[2].to_string());
    assert_eq!(indexes(&show_json(&data, &["--from", &from, "--to", &to], 0).1), found[1..3]);
    let copy = copy_without_lock(&data);
    assert_eq!(show_json(copy.path(), &[], 0).1, entries);
    assert!(!copy.path().join("LOCK").exists());
    let (code, _, error) = show(&copy.path().join("log"), &[]);
    assert!(code == 5 && error.contains("not the data directory of a node"), "{code}: {error}");
}

/// One node's directory, with a log of several segments.
fn segments() -> (Cluster, Vec<PathBuf>) {
    let mut cluster = Cluster::start(1, &["--log-segment-bytes", "64kb"]);
    let mut connection = connect(&cluster, 0);
    for number in 0..30 {
        redis::cmd("SET").arg(format!("key:{number}")).arg("x".repeat(9000)).exec(&mut connection).unwrap();
    }
    cluster.stop(0);
    let names = fs::read_dir(cluster.data_of(0).join("log")).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<PathBuf> =
        names.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    segments.sort();
    assert!(segments.len() > 3, "{segments:?}");
    (cluster, segments)
}

#[test]
fn of_a_damaged_log_all_is_shown_but_what_is_damaged() {
    let (cluster, segments) = segments();
    let data = cluster.data_of(0);
    let (whole, entries) = show_json(&data, &[], 0);
    let content = fs::read(&segments[1]).unwrap();
    let place = content.windows(4).position(|bytes| bytes == b"key:").unwrap();
    let digits = content[place + 4..].iter().take_while(|byte| byte.is_ascii_digit());
    let key: String = "key:".chars().chain(digits.map(|byte| char::from(*byte))).collect();
    let mut flipped = content.clone();
    flipped[place] ^= 0x10;
    fs::write(&segments[1], flipped).unwrap();

    let before = files(&data);
    let (head, found) = show_json(&data, &[], 6);
    let (code, text, error) = show(&data, &[]);
    assert!(files(&data) == before, "a look has changed something");
    let name = segments[1].file_name().unwrap().to_str().unwrap();
    assert!(code == 6 && error.contains(name) && error.contains("is corrupted at offset"), "{code}: {error}");
    assert!(head["damage"].as_str().unwrap().contains(name), "{head}");
    assert!(head["unreadable"][0].as_str().unwrap().starts_with("bytes "), "{head}");
    assert_eq!((&head["first"], &head["last"]), (&whole["first"], &whole["last"]));
    let found = indexes(&found);
    let lost: Vec<&Value> =
        entries.iter().filter(|entry| !found.contains(&entry["index"].as_u64().unwrap())).collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0]["proposals"][0]["requests"][0]["argv"][1], key);
    let index = &lost[0]["index"];
    assert!(text.contains(&format!("\n-- entries {index} to {index} cannot be read --\n")), "{text}");
    assert!(text.contains("DAMAGED    ") && text.contains("key:0 ") && text.contains("key:29 "), "{text}");
    // Behind it nobody knows whether the level was raised.
    assert!(text.contains("level ?"), "{text}");

    fs::write(&segments[1], content).unwrap();
    fs::remove_file(&segments[2]).unwrap();
    let (head, found) = show_json(&data, &[], 6);
    assert!(head["damage"].as_str().unwrap().contains("the segment is missing"), "{head}");
    assert!(found.len() > 10 && found.len() < entries.len() - 2, "{}", found.len());
    assert!(found.iter().all(|entry| entry["level"].is_null() || entries.contains(entry)));
}

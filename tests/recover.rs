//! A majority is lost with its disks, under load: `kvorum recover` makes the survivor with the longest log a cluster of
//! its own, and all that was in its log is there. What would lose more is refused, a look changes no byte, and a crash
//! in between leaves the old node or one that does not start.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use redis::Commands as _;
use support::process::{Addresses, Cluster, free_address, get};

const PATIENCE: Duration = Duration::from_secs(120);
const WRITERS: usize = 4;
const CONFIRMED: [&str; 2] = ["--as-new-cluster", "--yes-i-may-lose-acknowledged-writes"];

fn recover(dirs: &[&Path], more: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    command.arg("recover");
    for dir in dirs {
        command.arg("--data").arg(dir);
    }
    let output = command.args(more).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Writes a key of its own, over and over; gives those that were acknowledged.
fn write(id: usize, address: &str, stop: &AtomicBool, count: &AtomicUsize) -> Vec<String> {
    let client = redis::Client::open(format!("redis://{address}/")).unwrap();
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let key = format!("write:{id}:{number:06}.");
        match connection.set::<_, _, ()>(&key, &key) {
            Ok(()) => {
                acknowledged.push(key);
                count.fetch_add(1, Relaxed);
            }
            Err(error) if error.code().is_none() => break,
            Err(_) => {}
        }
        if stop.load(Relaxed) {
            break;
        }
    }
    acknowledged
}

/// Loads the nodes until some hundred writes are acknowledged and `end` has done its work; gives what was acknowledged.
fn under_load(cluster: &mut Cluster, nodes: &[usize], end: impl FnOnce(&mut Cluster)) -> Vec<String> {
    let addresses: Vec<String> = nodes.iter().map(|node| cluster.addresses[*node].resp.clone()).collect();
    let addresses = vec![addresses; WRITERS].concat();
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, count) = (&stop, &count);
        let writers: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(id, address)| scope.spawn(move || write(id, address, stop, count)))
            .collect();
        wait_for("writes to be acknowledged", || count.load(Relaxed) > 400);
        end(cluster);
        stop.store(true, Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Those of the keys whose text stands in the node's log.
fn in_log<'a>(data: &Path, keys: &'a [String]) -> Vec<&'a String> {
    let mut content = Vec::new();
    for (path, bytes) in files(&data.join("log")) {
        if path.extension().is_some_and(|extension| extension == "log") {
            content.extend(bytes);
        }
    }
    let text = String::from_utf8_lossy(&content);
    let found: std::collections::HashSet<&str> =
        text.match_indices("write:").filter_map(|(at, _)| text[at..].split_inclusive('.').next()).collect();
    keys.iter().filter(|key| found.contains(key.as_str())).collect()
}

/// All files below a directory but LOCK, with what is in them.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn assert_held(address: &str, keys: &[&String]) {
    let client = redis::Client::open(format!("redis://{address}/")).unwrap();
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).unwrap();
    for keys in keys.chunks(500) {
        let values: Vec<Option<String>> = connection.mget(keys).unwrap();
        for (key, value) in keys.iter().zip(values) {
            assert_eq!(value.as_ref(), Some(*key), "an acknowledged write of the survivor's log is gone");
        }
    }
}

fn set(address: &str, key: &str) {
    let client = redis::Client::open(format!("redis://{address}/")).unwrap();
    client.get_connection_with_timeout(Duration::from_secs(5)).unwrap().set::<_, _, ()>(key, key).unwrap();
}

#[test]
fn one_of_three_that_is_left_becomes_a_cluster_with_all_that_it_has() {
    // Small, so that a part of the data is in the checkpoint only.
    let options =
        ["--checkpoint-log-bytes", "64kb", "--log-entries-kept", "5", "--log-segment-bytes", "256kb"];
    let mut cluster = Cluster::start(3, &options);
    let early = under_load(&mut cluster, &[0, 1, 2], |_| ());
    cluster.purge(2);
    let old_cluster = cluster.status(2).unwrap()["cluster_id"].clone();
    let data = cluster.data_of(2);
    let (code, text) = recover(&[&data], &CONFIRMED);
    assert!(code == 4 && text.contains("used by another process"), "{code}: {text}");
    let late = under_load(&mut cluster, &[0, 1, 2], |cluster| (0..3).for_each(|node| cluster.kill(node)));
    let held: Vec<&String> = early.iter().chain(in_log(&data, &late)).collect();
    assert!(early.len() > 100 && held.len() > early.len(), "there was load: {} {}", early.len(), late.len());

    let before = files(&data);
    let (code, text) = recover(&[&data], &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("node 1 at") && text.contains("pages are good"), "{text}");
    assert!(text.contains("--as-new-cluster --yes-i-may-lose-acknowledged-writes"), "{text}");
    let (code, text) = recover(&[&data], &["--as-new-cluster"]);
    assert!(code == 2 && text.contains("--yes-i-may-lose"), "{code}: {text}");
    let majority: Vec<PathBuf> = (1..3).map(|node| cluster.data_of(node)).collect();
    let (code, text) = recover(
        &majority.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        &[&CONFIRMED[..], &["--choose", "3"]].concat(),
    );
    assert!(code == 1 && text.contains("a majority of the voters is there"), "{code}: {text}");
    assert!(files(&data) == before, "a look, or a refusal, has changed something");

    // Node 1 lost its disk; that of node 2 turns up again later.
    fs::remove_dir_all(cluster.data_of(0)).unwrap();
    let (code, text) = recover(&[&data], &CONFIRMED);
    assert_eq!(code, 0, "{text}");
    let backup = data.join("before-recovery-1");
    let kept = files(&backup);
    for (path, bytes) in &before {
        let is_state = path.starts_with(data.join("log")) || path.starts_with(data.join("pages"));
        if is_state || path.ends_with("identity.json") {
            let copy = backup.join(path.strip_prefix(&data).unwrap());
            assert!(kept.get(&copy) == Some(bytes), "{} is not kept as it was", path.display());
        }
    }
    cluster.start_bare(2);
    cluster.wait_ready(2);
    let status = cluster.status(2).unwrap();
    assert_ne!(status["cluster_id"], old_cluster);
    assert_eq!(status["members"].as_array().unwrap().len(), 1, "{status}");
    assert_held(&cluster.addresses[2].resp, &held);
    set(&cluster.addresses[2].resp, "after");

    let fourth = cluster.join(2);
    cluster.wait_ready(fourth);
    cluster.wait_voter(fourth);
    assert_held(&cluster.addresses[fourth].resp, &held);
    cluster.start_bare(1);
    let (code, log) = cluster.wait_end(1);
    assert!(code == Some(5) && log.contains("was recovered as cluster"), "{code:?}: {log}");
    // It restarts like any other, and has nothing to be recovered from any more.
    cluster.kill(2);
    let (code, text) = recover(&[&data], &[]);
    assert!(code == 0 && !text.contains("A majority of the voters is here"), "{text}");
    cluster.start_bare(2);
    cluster.wait_ready(2);
    assert_held(&cluster.addresses[2].resp, &[&"after".to_owned()]);
}

/// The commands of a section of the guide, with the directories and addresses of this cluster. Nodes stand there as
/// 10.0.0.N with their directory as /srv/nodeN.
fn commands(section: &str, places: &[(PathBuf, Addresses)]) -> Vec<Vec<String>> {
    let guide = include_str!("../docs/recovery.md");
    let (_, rest) = guide.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let mut commands = Vec::new();
    for block in section.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap().replace("\\\n", " ");
        for line in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
            let mut line = line.to_owned();
            for (node, (data, addresses)) in places.iter().enumerate() {
                let id = node + 1;
                line = line
                    .replace(&format!("/srv/node{id}"), data.to_str().unwrap())
                    .replace(&format!("10.0.0.{id}:6379"), &addresses.resp)
                    .replace(&format!("10.0.0.{id}:8379"), &addresses.http)
                    .replace(&format!("10.0.0.{id}:7379"), &addresses.peer);
            }
            commands.push(line.split_whitespace().map(str::to_owned).collect());
        }
    }
    commands
}

/// A process that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_ready(http: &str) {
    wait_for("a node to be ready", || {
        get(&format!("http://{http}/readyz")).is_some_and(|(status, _)| status == 200)
    });
}

/// The way of docs/recovery.md, command by command.
#[test]
fn of_two_of_five_that_are_left_the_longest_log_is_recovered_as_the_guide_says() {
    let mut cluster = Cluster::start(5, &[]);
    let url = format!("http://{}/v1/cluster/leader", cluster.addresses[0].http);
    wait_for("node 2 to lead", || ureq::post(&url).send_json(serde_json::json!({ "id": 2 })).is_ok());
    let acknowledged = under_load(&mut cluster, &[0, 1, 2], |cluster| {
        // Node 5 stays behind.
        cluster.freeze(4);
        std::thread::sleep(Duration::from_millis(700));
        (0..5).for_each(|node| cluster.kill(node));
    });
    let (longer, shorter) = (cluster.data_of(1), cluster.data_of(4));
    let held = in_log(&longer, &acknowledged);
    assert!(held.len() > in_log(&shorter, &acknowledged).len() && held.len() > 100, "{}", held.len());
    for node in [0, 2, 3] {
        fs::remove_dir_all(cluster.data_of(node)).unwrap();
    }
    let before = (files(&longer), files(&shorter));
    let both = [longer.as_path(), shorter.as_path()];
    let (code, text) = recover(&both, &CONFIRMED);
    assert!(code == 1 && text.contains("--choose"), "{code}: {text}");
    let (code, text) = recover(&both, &[&CONFIRMED[..], &["--choose", "5"]].concat());
    assert!(code == 1 && text.contains("node 2 has more"), "{code}: {text}");

    let mut places: Vec<(PathBuf, Addresses)> =
        (0..5).map(|node| (cluster.data_of(node), cluster.addresses[node].clone())).collect();
    let new = Addresses { resp: free_address(), http: free_address(), peer: free_address() };
    places.push((longer.parent().unwrap().join("node6"), new));
    let commands = commands("A majority is lost", &places);
    assert_eq!(commands.len(), 5, "{commands:?}");
    let mut running = Vec::new();
    for (place, words) in commands.iter().enumerate() {
        assert_eq!(words[0], "kvorum");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
        command.args(&words[1..]).stdin(Stdio::null());
        if words[1] == "serve" {
            let log = fs::File::create(longer.parent().unwrap().join(format!("command{place}.log"))).unwrap();
            running.push(Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap()));
            wait_ready(&words[words.iter().position(|word| word == "--http").unwrap() + 1]);
            continue;
        }
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{words:?}: {text}");
        if place == 0 {
            assert!(text.contains("Node 2 has the longest log"), "{text}");
            let advised = text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(advised.contains(&commands[1].join(" ")), "the guide and the program differ: {text}");
            assert!((files(&longer), files(&shorter)) == before, "a look has changed something");
        }
    }
    assert!(files(&shorter) == before.1, "the other survivor's directory is not touched");
    assert_held(&places[1].1.resp, &held);
    assert_held(&places[5].1.resp, &held);
    let voters = || {
        let (_, body) = get(&format!("http://{}/v1/cluster", places[1].1.http)).unwrap();
        body.matches("\"voter\"").count()
    };
    wait_for("the new node to vote", || voters() == 2);
    cluster.start_bare(4);
    let (code, log) = cluster.wait_end(4);
    assert!(code == Some(5) && log.contains("set ") && log.contains("--join"), "{code:?}: {log}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { _ = fs::copy(entry.path(), to).unwrap() }
    }
}

#[test]
fn a_crash_in_the_middle_leaves_the_old_node_or_one_that_does_not_start() {
    let mut cluster = Cluster::start(3, &["--log-segment-bytes", "1mb"]);
    let acknowledged =
        under_load(&mut cluster, &[0, 1, 2], |cluster| (0..3).for_each(|node| cluster.kill(node)));
    let held = in_log(&cluster.data_of(0), &acknowledged);
    let scratch = tempfile::tempdir().unwrap();
    for step in ["copied", "begun", "voted", "appended", "extended"] {
        let data = scratch.path().join(step);
        copy(&cluster.data_of(0), &data);
        let crashed = Command::new(env!("CARGO_BIN_EXE_kvorum"))
            .args(["recover", "--data", data.to_str().unwrap()])
            .args(CONFIRMED)
            .env("KVORUM_TEST_CRASH_AFTER", step)
            .output()
            .unwrap();
        assert_eq!(crashed.status.signal(), Some(libc::SIGABRT), "{step}");
        let addresses = Addresses { resp: free_address(), http: free_address(), peer: free_address() };
        let serve = || {
            let log = fs::File::create(data.join("serve.log")).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
            command.args(["serve", "--id", "1", "--data", data.to_str().unwrap(), "--resp", &addresses.resp]);
            command.args(["--http", &addresses.http, "--peer", &addresses.peer]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
        };
        if step == "copied" {
            let _old = Running(serve());
            wait_for("the old node to serve", || {
                get(&format!("http://{}/healthz", addresses.http)).is_some()
            });
            let (status, why) = get(&format!("http://{}/readyz", addresses.http)).unwrap();
            assert!(status == 503 && why.contains("no leader"), "{why}");
        } else {
            let code = serve().wait().unwrap().code();
            let log = fs::read_to_string(data.join("serve.log")).unwrap();
            assert!(code == Some(1) && log.contains("begun and not finished"), "{step}: {code:?}: {log}");
            let (code, text) = recover(&[&data], &[]);
            assert!(code == 0 && text.contains("UNFINISHED"), "{step}: {code}: {text}");
        }
        let (code, text) = recover(&[&data], &CONFIRMED);
        assert_eq!(code, 0, "{step}: {text}");
        let _new = Running(serve());
        wait_ready(&addresses.http);
        assert_held(&addresses.resp, &held);
    }
}

#[test]
fn what_is_no_data_and_what_is_damaged_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    let (code, text) = recover(&[empty.path()], &[]);
    assert!(code == 5 && text.contains("not the data directory"), "{code}: {text}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is left there");
    let mut cluster = Cluster::start(1, &[]);
    set(&cluster.addresses[0].resp, "key");
    cluster.kill(0);
    let data = cluster.data_of(0);
    let (code, text) = recover(&[&data], &CONFIRMED);
    assert!(code == 1 && text.contains("a majority of the voters is there"), "{code}: {text}");
    let (path, mut bytes) = files(&data.join("log"))
        .into_iter()
        .find(|(path, _)| path.ends_with("0000000000000001.log"))
        .unwrap();
    bytes[60] ^= 1;
    fs::write(path, bytes).unwrap();
    let (code, text) = recover(&[&data], &[]);
    assert!(code == 6 && text.contains("is damaged"), "{code}: {text}");
}

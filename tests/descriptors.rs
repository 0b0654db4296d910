//! File descriptors that run out end no node, and lose nothing: a start without enough is refused and moves nothing, clients
//! cannot take those of the node, and a log for which there are none waits.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use support::{
    process::{Cluster, get},
    resp::{Client, Value},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// As `kvorum_raft::descriptors::NEEDED`.
const NEEDED: u64 = kvorum_raft::descriptors::NEEDED;
const SMALL: [&str; 6] =
    ["--log-segment-bytes", "1mb", "--checkpoint-log-bytes", "256kb", "--log-entries-kept", "10"];

fn client(cluster: &Cluster, node: usize) -> Client {
    Client::connect_for(&cluster.addresses[node].resp, PATIENCE).unwrap()
}

/// All names below a directory.
fn names(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            found.append(&mut names(&path));
        }
    }
    found
}

fn value_of(number: usize, bytes: usize) -> Vec<u8> {
    format!("{number}:").into_bytes().into_iter().cycle().take(bytes).collect()
}

fn set(client: &mut Client, number: usize, bytes: usize) -> String {
    let key = format!("k{number}");
    client.call(&[b"SET", key.as_bytes(), &value_of(number, bytes)]).unwrap().show()
}

fn assert_held(client: &mut Client, numbers: impl IntoIterator<Item = usize>, bytes: usize) {
    for number in numbers {
        let value = client.call(&["GET", &format!("k{number}")]).unwrap();
        assert_eq!(value, Value::Bulk(b'$', Some(value_of(number, bytes))), "k{number}");
    }
}

/// What a node says to a client that says nothing, before it hangs up.
fn told_at_once(cluster: &Cluster, node: usize) -> String {
    let mut stream = TcpStream::connect(&cluster.addresses[node].resp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).unwrap();
    told
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn metric(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[node].http)).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.rsplit_once(' ')).unwrap().1.parse().unwrap()
}

#[test]
fn a_start_without_descriptors_is_refused_and_moves_nothing() {
    let mut cluster = Cluster::start(3, &SMALL);
    let mut any = client(&cluster, 0);
    (0..400).for_each(|number| assert_eq!(set(&mut any, number, 1000), "+OK\n"));
    (0..3).for_each(|node| cluster.purge(node));
    (0..3).for_each(|node| cluster.kill(node));
    let before: Vec<_> = (0..3).map(|node| names(&cluster.data_of(node))).collect();
    for limit in [48, 64, 96, NEEDED - 1] {
        for (node, before) in before.iter().enumerate() {
            cluster.limit_files(node, Some((limit, limit)));
            cluster.start_node(node);
            let (code, log) = cluster.wait_end(node);
            assert_eq!(code, Some(8), "{log}");
            let told =
                format!("this process may have {limit} open files, and a node needs at least {NEEDED}");
            for part in [told.as_str(), "Nothing is lost", "ulimit -n", "LimitNOFILE="] {
                assert!(log.contains(part), "no {part:?} in\n{log}");
            }
            assert_eq!(names(&cluster.data_of(node)), *before, "with {limit}");
        }
    }
    (0..3).for_each(|node| cluster.limit_files(node, None));
    cluster.start_all();
    assert_held(&mut client(&cluster, 1), 0..400, 1000);
    for node in 0..3 {
        let aside = names(&cluster.data_of(node)).into_iter().filter(|name| name.contains("unreadable"));
        assert_eq!(aside.count(), 0);
        assert_eq!(cluster.status(node).unwrap()["set_aside"], serde_json::json!([]));
    }
}

/// With a limit of its own, of which nothing can be had for a moment.
fn limit_running(cluster: &Cluster, node: usize, files: u64) {
    let pid = i32::try_from(cluster.pid(node).unwrap()).unwrap();
    let limit = libc::rlimit { rlim_cur: files, rlim_max: 4096 };
    // SAFETY: it reads one value that lives as long as the call, and writes none.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn the_fewest_descriptors_are_enough_for_a_node_and_few_clients() {
    let mut cluster = Cluster::off(1, &SMALL);
    cluster.limit_files(0, Some((100, NEEDED)));
    cluster.start_all();
    let mut first = client(&cluster, 0);
    let info = first.run("INFO clients").unwrap();
    let field = |name: &str| -> u64 {
        let rest = info.split(&format!("{name}:")).nth(1).unwrap();
        rest.split(|char: char| !char.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let most = field("maxclients");
    assert!((16..=NEEDED).contains(&most), "{info}");
    assert_eq!(field("max_file_descriptors"), NEEDED, "the soft limit was raised");
    assert_eq!(
        first.run("CONFIG GET maxclients").unwrap(),
        format!("*2\n  $\"maxclients\"\n  $\"{most}\"\n")
    );
    let log = fs::read_to_string(cluster.log_of(0)).unwrap();
    assert!(log.contains(&format!("maxclients has been reduced to {most} to compensate")), "{log}");
    assert_eq!(
        first.run(&format!("CONFIG SET maxclients {}", most + 1)).unwrap(),
        format!(
            "-ERR CONFIG SET failed (possibly related to argument 'maxclients') - The operating system is not able to handle the \
             specified number of clients, try with {most}\n"
        )
    );
    assert_eq!(first.run(&format!("CONFIG SET maxclients {most}")).unwrap(), "+OK\n");
    let others: Vec<Client> = (1..most).map(|_| client(&cluster, 0)).collect();
    wait_for("all to be clients", || metric(&cluster, 0, "kvorum_clients") == most);
    assert_eq!(told_at_once(&cluster, 0), "-ERR max number of clients reached\r\n");
    // The node goes on: segments, checkpoints, and the admin API.
    for number in 0..400 {
        assert_eq!(set(&mut first, number, 20_000), "+OK\n");
    }
    cluster.purge(0);
    let open = metric(&cluster, 0, "process_open_fds");
    assert!(open > others.len() as u64 && open < NEEDED, "{open}");
    assert_held(&mut first, 0..400, 20_000);
}

#[test]
fn a_log_for_which_there_are_no_descriptors_waits() {
    const BYTES: usize = 50_000;
    let mut cluster = Cluster::off(3, &["--log-segment-bytes", "1mb", "--checkpoint-log-bytes", "64mb"]);
    (0..3).for_each(|node| cluster.limit_files(node, Some((4096, 4096))));
    cluster.start_all();
    // All that they need to talk to each other and to be asked is open before nothing more can be opened.
    let mut clients: Vec<Client> = (0..3).map(|node| client(&cluster, node)).collect();
    let mut observers: Vec<Client> = (0..3).map(|node| client(&cluster, node)).collect();
    let mut numbers = 0..;
    let mut acknowledged = Vec::new();
    let mut write = |client: &mut Client, acknowledged: &mut Vec<usize>| {
        let number = numbers.next().unwrap();
        let reply = set(client, number, BYTES);
        if reply == "+OK\n" {
            acknowledged.push(number);
        } else {
            assert!(reply.starts_with("-UNCERTAIN") || reply.starts_with("-CLUSTERDOWN"), "{reply}");
        }
    };
    let mut is_waiting =
        |node: usize| observers[node].run("INFO replication").unwrap().contains("waits for file descriptors");
    for _ in 0..10 {
        clients.iter_mut().for_each(|client| write(client, &mut acknowledged));
    }
    assert_eq!(acknowledged.len(), 30);
    // One of three is harmless, also the leader.
    let leader = cluster.leader();
    let other = (leader + 1) % 3;
    limit_running(&cluster, leader, 20);
    wait_for("the log of the leader to wait", || {
        write(&mut clients[leader], &mut acknowledged);
        is_waiting(leader)
    });
    let before = acknowledged.len();
    wait_for("the others to take writes", || {
        write(&mut clients[other], &mut acknowledged);
        acknowledged.len() > before + 20
    });
    limit_running(&cluster, leader, 4096);
    cluster.wait_ready(leader);
    // Nor do all of them end.
    let leader = cluster.leader();
    (0..3).for_each(|node| limit_running(&cluster, node, 20));
    wait_for("the log of the leader to wait", || {
        write(&mut clients[leader], &mut acknowledged);
        is_waiting(leader)
    });
    for node in 0..3 {
        assert!(cluster.is_running(node), "node {} has ended", node + 1);
        limit_running(&cluster, node, 4096);
    }
    (0..3).for_each(|node| cluster.wait_ready(node));
    for client in &mut clients {
        let before = acknowledged.len();
        wait_for("writes to be taken", || {
            write(client, &mut acknowledged);
            acknowledged.len() > before
        });
    }
    assert_held(&mut clients[other], acknowledged, BYTES);
    (0..3).for_each(|node| assert!(cluster.is_running(node), "node {} has ended", node + 1));
}

/// As many as the test needs, and then some.
fn raise_own_limit(needed: u64) {
    let limit = kvorum_raft::descriptors::raise();
    assert!(limit >= needed, "this test needs {needed} open files, and the limit is {limit}");
}

#[test]
fn idle_clients_take_nothing_that_the_node_needs() {
    const IDLE: usize = 1_100;
    raise_own_limit(4_000);
    let mut cluster = Cluster::off(3, &[]);
    (0..3).for_each(|node| cluster.limit_files(node, Some((1024, 4096))));
    cluster.start_all();
    let idle: Vec<Vec<Client>> =
        (0..3).map(|node| (0..IDLE).map(|_| client(&cluster, node)).collect()).collect();
    let leader = cluster.leader();
    let mut writer = client(&cluster, leader);
    for number in 0..700 {
        assert_eq!(set(&mut writer, number, 100_000), "+OK\n", "k{number}");
    }
    for node in 0..3 {
        assert!(cluster.is_running(node), "node {} has ended", node + 1);
        assert!(metric(&cluster, node, "process_open_fds") > IDLE as u64);
        assert_eq!(metric(&cluster, node, "process_max_fds"), 4096);
        let log = fs::read_to_string(cluster.log_of(node)).unwrap();
        assert!(log.contains("maxclients has been reduced to"), "{log}");
        assert_eq!(metric(&cluster, node, "kvorum_clients"), (IDLE + usize::from(node == leader)) as u64);
    }
    assert_held(&mut client(&cluster, (leader + 1) % 3), (0..700).step_by(50), 100_000);
    assert_eq!(writer.run(&format!("CONFIG SET maxclients {}", IDLE + 1)).unwrap(), "+OK\n");
    assert_eq!(metric(&cluster, leader, "kvorum_clients_max"), IDLE as u64 + 1);
    assert_eq!(told_at_once(&cluster, leader), "-ERR max number of clients reached\r\n");
    drop(idle);
    wait_for("the place to be free", || {
        client(&cluster, leader).run("PING").is_ok_and(|reply| reply == "+PONG\n")
    });
}

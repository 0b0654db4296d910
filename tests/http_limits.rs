//! The HTTP API answers for whom it is meant: not another site's page, not without end for requests that never arrive,
//! and however many connections somebody opens.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use support::{
    crowd::{has_ended, raise_file_limit, wait_end},
    process::{Cluster, get},
};

/// Heads and bodies have 10 s each; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(16);

fn connect(cluster: &Cluster) -> TcpStream {
    let stream = TcpStream::connect(&cluster.addresses[0].http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request line with these header lines; gives the answer up to its end, or to its first event.
fn ask(cluster: &Cluster, line: &str, headers: &[&str]) -> String {
    let mut stream = connect(cluster);
    let close = if line.ends_with("HTTP/1.1") { "connection: close\r\n" } else { "" };
    write!(stream, "{line}\r\n{close}").unwrap();
    headers.iter().for_each(|header| write!(stream, "{header}\r\n").unwrap());
    stream.write_all(b"\r\n").unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.windows(5).any(|window| window == b"data:") {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            len => answer.extend_from_slice(&piece[..len]),
        }
    }
    String::from_utf8(answer).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap()
}

fn http_connections(cluster: &Cluster) -> u64 {
    let (_, text) = get(&format!("http://{}/metrics", cluster.addresses[0].http)).unwrap();
    let line = text.lines().find(|line| line.starts_with("kvorum_http_connections ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_page_of_another_site_is_refused_also_by_another_name() {
    let cluster = Cluster::start(1, &["--http-hosts", "kv.example.com,proxy"]);
    let here = format!("host: {}", cluster.addresses[0].http);
    let port = cluster.addresses[0].http.rsplit_once(':').unwrap().1;
    let (localhost, named) = (format!("host: localhost:{port}"), "host: kv.example.com".to_owned());
    let changes = ["POST /v1/checkpoint HTTP/1.1", "GET /v1/feed HTTP/1.1", "GET /v1/cluster HTTP/1.1"];
    for host in [&here, &localhost, &named] {
        let own = format!("origin: http://{}", host.trim_start_matches("host: "));
        for line in changes {
            assert_eq!(status(&ask(&cluster, line, &[host])), 200, "{line} {host}");
            assert_eq!(status(&ask(&cluster, line, &[host, &own])), 200, "{line} {host} {own}");
            let none = "sec-fetch-site: none";
            assert_eq!(status(&ask(&cluster, line, &[host, none])), 200, "{line} {host} {none}");
        }
    }
    assert_eq!(status(&ask(&cluster, changes[0], &[&here, "origin: https://proxy"])), 200);
    // The page's own name, which it has made to stand for this node.
    let rebound = format!("host: evil.example:{port}");
    let rebound_origin = format!("origin: http://evil.example:{port}");
    for line in changes {
        for headers in [
            vec![rebound.as_str()],
            vec![&rebound, &rebound_origin],
            vec![&here, "origin: http://evil.example"],
            vec![&here, "origin: null"],
            vec![&here, "sec-fetch-site: cross-site"],
        ] {
            let answer = ask(&cluster, line, &headers);
            assert_eq!(status(&answer), 403, "{line} {headers:?}: {answer}");
            assert!(answer.contains("application/problem+json") && answer.contains("http-hosts"), "{answer}");
        }
    }
    // Probes and monitors ask by any name; what is older than Host is no browser.
    for path in ["/healthz", "/readyz", "/metrics"] {
        let line = format!("GET {path} HTTP/1.1");
        assert_eq!(status(&ask(&cluster, &line, &["host: kvorum.monitoring.svc"])), 200, "{path}");
    }
    assert_eq!(status(&ask(&cluster, "GET /v1/cluster HTTP/1.0", &[])), 200);
    assert_eq!(status(&ask(&cluster, "GET /v1/cluster HTTP/1.1", &[])), 400);
}

#[test]
fn slow_requests_are_cut_off_and_a_feed_is_not() {
    let mut cluster = Cluster::start(1, &[]);
    let mut feed = connect(&cluster);
    write!(feed, "GET /v1/feed HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let started = Instant::now();
    let heads: Vec<TcpStream> = (0..100).map(|_| connect(&cluster)).collect();
    let bodies: Vec<TcpStream> = (0..100).map(|_| connect(&cluster)).collect();
    let mut idle = connect(&cluster);
    write!(idle, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let head = "POST /v1/locks/l HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n";
    for mut stream in &bodies {
        write!(stream, "{head}\r\n{{").unwrap();
    }
    while http_connections(&cluster) < 202 {
        assert!(started.elapsed() < LIMIT, "not all were accepted");
    }
    // A byte now and then does not help.
    for byte in head.bytes().cycle().take(70) {
        if started.elapsed() > LIMIT {
            break;
        }
        for mut stream in heads.iter().chain(&bodies) {
            let _ = stream.write_all(&[byte]);
        }
        thread::sleep(Duration::from_millis(150));
    }
    for mut stream in heads {
        wait_end(&mut stream, PATIENCE.saturating_sub(started.elapsed()).max(Duration::from_millis(1)));
    }
    for mut stream in bodies {
        let left = PATIENCE.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
        let (_, answer) = wait_end(&mut stream, left);
        assert_eq!(status(&String::from_utf8_lossy(&answer)), 408, "{}", answer.escape_ascii());
    }
    let (elapsed, answer) = wait_end(&mut idle, PATIENCE);
    assert!(answer.starts_with(b"HTTP/1.1 200") && elapsed < PATIENCE);
    assert!(http_connections(&cluster) < 10);
    // The feed goes on.
    let mut client = support::resp::Client::connect(&cluster.addresses[0].resp).unwrap();
    client.run("SET fed 1").unwrap();
    let (mut told, mut piece) = (Vec::new(), [0; 4096]);
    while !told.windows(5).any(|window| window == b"\"fed\"") {
        let len = feed.read(&mut piece).unwrap();
        assert!(len > 0, "the feed has ended: {}", told.escape_ascii());
        told.extend_from_slice(&piece[..len]);
    }
    assert!(cluster.is_running(0));
}

#[test]
fn an_operator_gets_in_however_many_connections_somebody_opens() {
    raise_file_limit(8192);
    let mut cluster = Cluster::start(1, &[]);
    let url = |path: &str| format!("http://{}{path}", cluster.addresses[0].http);
    let mut open = Vec::new();
    for number in 0..3000 {
        let mut stream = connect(&cluster);
        let _ = stream.write_all(b"GET /v1/cluster HTTP/1.1\r\nhost: loc");
        open.push(stream);
        if number % 500 == 0 {
            let asked = Instant::now();
            assert_eq!(get(&url("/healthz")).unwrap().0, 200);
            assert_eq!(get(&url("/v1/cluster")).unwrap().0, 200);
            assert!(asked.elapsed() < Duration::from_secs(3));
        }
    }
    assert!(http_connections(&cluster) <= 1000);
    let left = open.iter_mut().map(has_ended).filter(|has_ended| !has_ended).count();
    assert!(left <= 1000, "{left} are open");
    drop(open);
    // Those that are being answered are not put out: there is a limit to them.
    let mut feeds = Vec::new();
    for _ in 0..1000 {
        let mut stream = connect(&cluster);
        write!(stream, "GET /v1/feed HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        feeds.push(stream);
    }
    let answer = ask(&cluster, "GET /v1/cluster HTTP/1.1", &["host: localhost"]);
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    let ended = feeds.iter_mut().map(has_ended).filter(|has_ended| *has_ended).count();
    assert_eq!(ended, 0);
    drop(feeds);
    let deadline = Instant::now() + PATIENCE;
    while get(&url("/v1/cluster")).is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "nobody gets in");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(cluster.is_running(0));
}

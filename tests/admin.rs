//! The HTTP API of a cluster of three: what it answers, and what it refuses and why.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::process::Cluster;

struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{}: {error}", self.body))
    }

    /// Checks that it is a problem with this status; gives its detail.
    fn problem(&self, status: u16) -> String {
        assert_eq!(
            (self.status, self.content_type.as_str()),
            (status, "application/problem+json"),
            "{}",
            self.body
        );
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["type"].is_string() && problem["title"].is_string());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

fn ask(method: &str, url: &str, body: Option<&str>, origin: Option<&str>) -> Answer {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        .build();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    let request = request.body(body.unwrap_or_default().to_owned()).unwrap();
    let mut answer = ureq::Agent::from(config).run(request).unwrap();
    let content_type = answer.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: answer.status().as_u16(),
        content_type: content_type.unwrap_or_default(),
        body: answer.body_mut().read_to_string().unwrap(),
    }
}

#[test]
fn operators_are_answered() {
    let cluster = Cluster::start(3, &[]);
    let url = |node: usize, path: &str| format!("http://{}{path}", cluster.addresses[node].http);
    for node in 0..3 {
        let deadline = Instant::now() + Duration::from_secs(30);
        while ask("GET", &url(node, "/readyz"), None, None).status != 200 {
            assert!(Instant::now() < deadline, "node {} does not get ready", node + 1);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(ask("GET", &url(node, "/healthz"), None, None).status, 200);
        let metrics = ask("GET", &url(node, "/metrics"), None, None);
        assert!(
            metrics.body.contains("kvorum_raft_applied_index{group=\"0\"}")
                && metrics.body.ends_with("# EOF\n")
        );
        let view = ask("GET", &url(node, "/v1/cluster"), None, None).json();
        assert_eq!(view["node_id"], node + 1);
        assert_eq!(view["cluster_id"].as_str().unwrap().len(), 32);
        assert_eq!(view["members"].as_array().unwrap().len(), 3);
        assert!(view["committed_index"].as_u64() >= view["applied_index"].as_u64());
    }
    let checkpoint = ask("POST", &url(0, "/v1/checkpoint"), None, None).json();
    assert!(checkpoint["checkpoint_index"].as_u64().unwrap() > 0);
    for (asked, to) in [(0, 2), (1, 3), (2, 1)] {
        let answer =
            ask("POST", &url(asked, "/v1/cluster/leader"), Some(&json!({ "id": to }).to_string()), None);
        assert_eq!(answer.json()["leader_id"], to, "{}", answer.body);
    }
}

#[test]
fn what_cannot_be_done_is_a_problem_with_a_reason() {
    let cluster = Cluster::start(1, &[]);
    let url = |path: &str| format!("http://{}{path}", cluster.addresses[0].http);
    let refused = |method: &str, path: &str, body: Option<&str>, status: u16, why: &str| {
        let detail = ask(method, &url(path), body, None).problem(status);
        assert!(detail.contains(why), "{method} {path} {body:?}: {detail}");
    };
    refused("GET", "/v2", None, 404, "no such resource");
    refused("PUT", "/v1/checkpoint", None, 405, "method");
    refused("POST", "/v1/cluster/members", Some("{"), 400, "EOF");
    refused("POST", "/v1/cluster/members", Some("{\"id\":4}"), 422, "peer");
    refused("POST", "/v1/cluster/members", Some("{\"id\":0,\"peer\":\"a:1\"}"), 422, "from 1 on");
    refused("POST", "/v1/cluster/members", Some("{\"id\":4,\"peer\":\"nowhere\"}"), 422, "HOST:PORT");
    for (id, peer, disk, why) in [
        ("18446744073709551615", "a:1", "0f", "up to 9007199254740991"),
        ("9007199254740992", "a:1", "0f", "up to 9007199254740991"),
        ("4", "a:0", "0f", "between 1 and 65535"),
        ("4", "a\\nb:1", "0f", "HOST:PORT"),
        ("4", "a b:1", "0f", "HOST:PORT"),
        ("4", "::1:7379", "0f", "brackets"),
        ("4", &format!("{}:1", "x".repeat(60_000)), "0f", "between 1 and 255"),
        ("4", "a:1", "0\\nf", "no endpoint"),
        ("4", "a:1", &"0".repeat(60_000), "no endpoint"),
    ] {
        let body = format!("{{\"id\":{id},\"peer\":\"{peer}\",\"disk\":\"{disk}\"}}");
        refused("POST", "/v1/cluster/members", Some(&body), 422, why);
    }
    refused("POST", "/v1/cluster/members", Some("{\"id\":1,\"peer\":\"a:1\"}"), 409, "is a member already");
    refused("DELETE", "/v1/cluster/members/1", None, 409, "last voter");
    refused("DELETE", "/v1/cluster/members/9", None, 404, "not a member");
    refused("DELETE", "/v1/cluster/members/x", None, 404, "no member");
    refused("POST", "/v1/cluster/leader", Some("{\"id\":9}"), 404, "not a member");
    let other_site = ask("POST", &url("/v1/checkpoint"), None, Some("http://elsewhere.example"));
    assert!(other_site.problem(403).contains("other sites"));
    let own = url("").trim_end_matches('/').to_owned();
    assert_eq!(ask("POST", &url("/v1/checkpoint"), None, Some(&own)).status, 200);
}

#[test]
fn locks_and_elections_are_had_over_http() {
    let cluster = Cluster::start(3, &[]);
    let url = |node: usize, path: &str| format!("http://{}{path}", cluster.addresses[node].http);
    let post =
        |node: usize, path: &str, body: Value| ask("POST", &url(node, path), Some(&body.to_string()), None);
    let lock = "/v1/locks/job%2F1";
    let granted = post(0, lock, json!({ "owner": "a", "ttl_ms": 60_000, "data": "x" })).json();
    let token = granted["token"].as_u64().unwrap();
    assert_eq!(granted["remaining_ms"], 60_000);
    let taken = post(1, lock, json!({ "owner": "b", "ttl_ms": 60_000 }));
    assert_eq!(taken.problem(409), "others hold it");
    let waits = std::thread::scope(|scope| {
        let waiter = scope
            .spawn(|| post(2, lock, json!({ "owner": "c", "ttl_ms": 60_000, "wait_ms": 25_000 })).json());
        let deadline = Instant::now() + Duration::from_secs(20);
        while ask("GET", &url(1, lock), None, None).json()["waiting"] != json!(["c"]) {
            assert!(Instant::now() < deadline, "nobody waits");
            std::thread::sleep(Duration::from_millis(20));
        }
        let listed = ask("GET", &url(0, "/v1/locks?match=job*"), None, None).json();
        assert_eq!(listed["items"][0]["key"], "job/1");
        assert_eq!(listed["items"][0]["holders"][0]["owner"], "a");
        let longer = post(0, lock, json!({ "owner": "a", "token": token, "ttl_ms": 70_000 })).json();
        assert_eq!(longer["remaining_ms"], 70_000);
        let path = format!("{lock}?owner=a&token={token}");
        assert_eq!(ask("DELETE", &url(1, &path), None, None).json(), json!({ "left": 0 }));
        assert!(ask("DELETE", &url(1, &path), None, None).problem(409).starts_with("NOTOWNER"));
        waiter.join().unwrap()
    });
    assert!(waits["token"].as_u64().unwrap() > token);

    let election = "/v1/elections/e";
    assert_eq!(ask("GET", &url(0, election), None, None).problem(404), "nobody holds it");
    let leads = post(0, election, json!({ "candidate": "n1", "ttl_ms": 60_000, "value": "one" })).json();
    let epoch = leads["epoch"].as_u64().unwrap();
    assert_eq!(post(1, election, json!({ "candidate": "n1", "epoch": epoch, "value": "two" })).status, 200);
    let leader = ask("GET", &url(2, election), None, None).json();
    assert_eq!((&leader["candidate"], &leader["value"]), (&json!("n1"), &json!("two")));
    assert_eq!(ask("GET", &url(0, "/v1/elections"), None, None).json()["items"][0]["epoch"], epoch);
    for (field, value) in
        [("wait_ms", json!(1)), ("delay_ms", json!(1)), ("lease", json!("x")), ("shared", json!(true))]
    {
        let mut wish = json!({ "owner": "a", "token": token, "ttl_ms": 60_000 });
        wish[field] = value;
        assert!(post(0, lock, wish).problem(422).contains("for who has no token yet"), "{field}");
    }
    let resign = format!("{election}?candidate=n1&epoch={epoch}");
    assert_eq!(ask("DELETE", &url(2, &resign), None, None).status, 200);
    assert_eq!(post(0, election, json!({ "candidate": "n1" })).problem(422), "ttl_ms or lease is missing");
    assert_eq!(
        post(0, lock, json!({ "owner": "a", "lease": "none" })).problem(404),
        "NOLEASE there is no such lease"
    );
}

/// Keys are bytes. Those that are no text can be seen and released by whoever finds them.
#[test]
fn locks_whose_names_are_no_text_are_had_over_http() {
    let cluster = Cluster::start(1, &[]);
    let url = |path: &str| format!("http://{}{path}", cluster.addresses[0].http);
    let mut client = support::resp::Client::connect(&cluster.addresses[0].resp).unwrap();
    assert!(client.run("LOCK.ACQUIRE \"bin\\xff\" a PX 60000").unwrap().contains("token"));
    assert!(client.run("LOCK.ACQUIRE \"100%41\" a PX 60000").unwrap().contains("token"));
    let listed = ask("GET", &url("/v1/locks"), None, None).json();
    let items = listed["items"].as_array().unwrap();
    let key = items.iter().find(|item| item["key"] == json!({ "base64": "Ymlu/w==" }));
    let token = key.unwrap()["holders"][0]["token"].as_u64().unwrap();
    assert!(items.iter().any(|item| item["key"] == "100%41"));
    assert_eq!(ask("GET", &url("/v1/locks/100%2541"), None, None).status, 200);
    assert_eq!(ask("GET", &url("/v1/locks/100A"), None, None).problem(404), "nobody holds it");
    assert_eq!(ask("GET", &url("/v1/locks/bin%FF"), None, None).json()["holders"][0]["token"], token);
    let release = format!("/v1/locks/bin%ff?owner=a&token={token}");
    assert_eq!(ask("DELETE", &url(&release), None, None).json(), json!({ "left": 0 }));
    let wish = json!({ "owner": "b", "ttl_ms": 60_000 }).to_string();
    assert_eq!(ask("POST", &url("/v1/locks/bin%FF"), Some(&wish), None).status, 200);
    assert_eq!(client.run("EXISTS \"bin\\xff\"").unwrap(), ":1\n");
}

#[test]
fn the_status_says_when_nobody_leads() {
    let mut cluster = Cluster::start(3, &[]);
    let status = |cluster: &Cluster, node: usize| {
        let address = &cluster.addresses[node].http;
        let output =
            Command::new(env!("CARGO_BIN_EXE_kvorum")).args(["status", "--http", address]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let leader = cluster.leader();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // A member's addresses are known a moment after it has become one.
        let (is_well, table, message) = status(&cluster, (leader + 1) % 3);
        if is_well && table.contains("leader") && table.lines().count() == 5 {
            break;
        }
        assert!(Instant::now() < deadline, "{table}{message}");
    }
    cluster.kill(leader);
    cluster.kill((leader + 1) % 3);
    let (is_well, table, message) = status(&cluster, (leader + 2) % 3);
    assert!(!is_well && table.contains("unreachable"), "{table}");
    assert!(message.contains("no member that answers leads"), "{message}");
}

#[test]
fn a_lock_whose_time_is_over_is_not_shown() {
    let cluster = Cluster::start(1, &[]);
    let url = format!("http://{}/v1/locks/l", cluster.addresses[0].http);
    let wish = json!({ "owner": "late", "ttl_ms": 5 }).to_string();
    for round in 0..20 {
        // Where nothing is due to end, the leader looks only now and then.
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(ask("POST", &url, Some(&wish), None).status, 200);
        std::thread::sleep(Duration::from_millis(10));
        let answer = ask("GET", &url, None, None);
        assert_eq!(answer.problem(404), "nobody holds it", "round {round}");
    }
}

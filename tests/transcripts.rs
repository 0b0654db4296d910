//! Runs the transcripts in `tests/scripts`: against the machine alone, against one server, and against a
//! cluster of three whose connections are spread over the nodes.
//!
//! `BLESS=1 REDIS=127.0.0.1:PORT cargo test --test transcripts` records the replies of that redis-server. It
//! calls FLUSHALL there. `BLESS=ours` records what is Kvorum's own, from a Kvorum: to be read before it is believed.
//! `SCRIPT=string/set` runs or records only the scripts whose path contains it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{
    alone::Alone,
    process::Cluster,
    resp::{Client, Value, split},
    transcript::{Ask, Connections, Script, all},
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");

fn scripts() -> Vec<std::path::PathBuf> {
    let only = std::env::var("SCRIPT").unwrap_or_default();
    all(Path::new(SCRIPTS)).into_iter().filter(|path| path.to_string_lossy().contains(&only)).collect()
}

fn flush(address: &str) {
    let mut client = Client::connect(address).unwrap();
    assert_eq!(client.call(&["FLUSHALL"]).unwrap(), Value::Line(b'+', b"OK".to_vec()));
}

/// Runs every script on what `begin` gives for it; None leaves the script out.
fn check<A: FnMut(&str, Ask<'_>) -> Option<Value>>(mut begin: impl FnMut(&Script) -> Option<A>) {
    if std::env::var_os("BLESS").is_some() {
        return;
    }
    let mut failures = Vec::new();
    let scripts = scripts();
    for path in &scripts {
        let script = Script::read(path);
        let Some(ask) = begin(&script) else { continue };
        let differences = script.check(ask);
        if !differences.is_empty() {
            failures.push(format!("{}\n{}", path.display(), differences.join("\n")));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} scripts differ:\n{}",
        failures.len(),
        scripts.len(),
        failures.join("\n")
    );
}

fn check_servers(addresses: &[String]) {
    check(|_| {
        flush(&addresses[0]);
        let mut connections = Connections::new(addresses.to_vec());
        Some(move |client: &str, ask: Ask<'_>| connections.ask(client, ask))
    });
}

#[test]
fn the_machine_alone_answers_as_redis_does() {
    check(|script| {
        let mut machine = Alone::default();
        let ask = move |_: &str, ask: Ask<'_>| {
            let Ask::Call(line) = ask else { panic!("a script with @later needs a session") };
            let argv = split(line);
            let reply = machine.run(&argv.iter().map(Vec::as_slice).collect::<Vec<_>>());
            Some(Value::read(&mut &reply[..]).unwrap_or_else(|error| panic!("{line}: {error}")))
        };
        (!script.needs_session()).then_some(ask)
    });
}

#[test]
fn one_server_answers_as_redis_does() {
    let cluster = Cluster::start(1, &[]);
    check_servers(&[cluster.addresses[0].resp.clone()]);
}

#[test]
fn a_cluster_of_three_answers_as_redis_does() {
    let cluster = Cluster::start(3, &[]);
    check_servers(&cluster.addresses.iter().map(|addresses| addresses.resp.clone()).collect::<Vec<_>>());
}

/// Records, when asked to; else there is nothing to do.
#[test]
fn record_the_replies_of_a_real_redis() {
    let Some(bless) = std::env::var_os("BLESS") else { return };
    let ours = bless == "ours";
    let address = std::env::var("REDIS").expect("BLESS=1 needs REDIS=host:port");
    for path in scripts() {
        flush(&address);
        let mut connections = Connections::new(vec![address.clone()]);
        let mut script = Script::read(&path);
        script.record(ours, |client, ask| connections.ask(client, ask));
        std::fs::write(&path, script.write()).unwrap();
    }
}

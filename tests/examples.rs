//! The examples of docs/coordination.md, in Python with redis-py and in Node with ioredis, against a new cluster.
//!
//! `KVORUM_CLIENTS` names the directory where both libraries are: `.ci/run` puts them there. Without it there is nothing
//! to run.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use support::process::{Addresses, Cluster};

const DOCUMENT: &str = include_str!("../docs/coordination.md");

/// The programs of a language in the document.
fn programs(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let blocks = DOCUMENT.split(fence.as_str()).skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

/// A program with the addresses of this cluster in the place of those in the document.
fn placed(program: &str, addresses: &[Addresses]) -> String {
    let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
    addresses.iter().enumerate().fold(program.to_owned(), |text, (node, addresses)| {
        let text = text.replace(&(6379 + node).to_string(), &port(&addresses.resp));
        text.replace(&(8379 + node).to_string(), &port(&addresses.http))
    })
}

fn check(program: &str, mark: &str, output: &Output) {
    let expected: Vec<&str> = program.lines().filter_map(|line| line.strip_prefix(mark)).collect();
    assert!(!expected.is_empty(), "the program does not say what it prints:\n{program}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}\n{printed}\n{errors}");
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{program}\n{errors}");
}

#[test]
fn the_examples_do_what_they_say() {
    let Some(clients) = std::env::var_os("KVORUM_CLIENTS").map(PathBuf::from) else {
        println!("left out: KVORUM_CLIENTS does not say where redis-py and ioredis are");
        return;
    };
    let cluster = Cluster::start(3, &[]);
    let (python, node) = (programs("python"), programs("js"));
    assert_eq!((python.len(), node.len()), (5, 5));
    for (python, node) in python.into_iter().zip(node) {
        let (python, node) = (placed(python, &cluster.addresses), placed(node, &cluster.addresses));
        let output =
            Command::new("python3").args(["-c", &python]).env("PYTHONPATH", clients.join("python")).output();
        check(&python, "# prints: ", &output.unwrap());
        let output = Command::new("node")
            .args(["-e", &node])
            .env("NODE_PATH", clients.join("node/node_modules"))
            .output();
        check(&node, "// prints: ", &output.unwrap());
    }
}

//! The conversations with a cluster in the README and in docs, word by word: every client shows what stands there.
#![allow(clippy::unwrap_used)]

mod support;

use support::{
    process::Cluster,
    resp::{Client, Value, escape, split},
};

/// As redis-cli shows a reply.
fn show(value: &Value) -> String {
    match value {
        Value::Line(b':', text) => format!("(integer) {}", escape(text)),
        Value::Line(b'-', text) => format!("(error) {}", escape(text)),
        Value::Line(_, text) => escape(text),
        Value::Bulk(_, None) | Value::Aggregate(_, None) => "(nil)".into(),
        Value::Bulk(_, Some(bytes)) => format!("\"{}\"", escape(bytes)),
        Value::Aggregate(_, Some(elements)) => {
            let lines = elements.iter().enumerate();
            lines
                .map(|(index, element)| format!("{}) {}", index + 1, show(element)))
                .collect::<Vec<_>>()
                .join("\n")
        }
    }
}

/// Has the first conversation of a document with a new cluster. Its nodes stand in the document as on 6379, 6380
/// and 6381.
fn converse(document: &str) {
    let (_, rest) = document.split_once("```redis\n").unwrap();
    let (conversation, _) = rest.split_once("```").unwrap();
    let cluster = Cluster::start(3, &[]);
    let mut asked = 0;
    let mut lines = conversation.lines().peekable();
    while let Some(line) = lines.next() {
        let (address, command) = line.split_once("> ").expect("a command after a prompt");
        let port: usize = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let mut client = Client::connect(&cluster.addresses[port - 6379].resp).unwrap();
        let reply = show(&client.call(&split(command)).unwrap());
        let mut expected = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("127.0.0.1:")) {
            expected.push(line);
        }
        assert_eq!(reply, expected.join("\n"), "{line}");
        asked += 1;
    }
    assert!(asked >= 5);
}

#[test]
fn the_conversation_in_the_readme_is_true() {
    converse(include_str!("../README.md"));
}

#[test]
fn the_conversation_about_locks_is_true() {
    converse(include_str!("../docs/coordination.md"));
}

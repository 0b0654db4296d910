//! The conversations with a cluster in the README and in docs, word by word: every client shows what stands there.
#![allow(clippy::unwrap_used)]

mod support;

use support::{
    process::Cluster,
    resp::{Client, Value, encode, escape, split},
    transcript::is_empty_message,
};

/// As redis-cli shows a reply.
fn show(value: &Value) -> String {
    match value {
        Value::Line(b':', text) => format!("(integer) {}", escape(text)),
        Value::Line(b'-', text) => format!("(error) {}", escape(text)),
        Value::Line(b'_', _) | Value::Bulk(_, None) | Value::Aggregate(_, None) => "(nil)".into(),
        Value::Line(_, text) => escape(text),
        Value::Bulk(_, Some(bytes)) => format!("\"{}\"", escape(bytes)),
        Value::Aggregate(_, Some(elements)) => {
            let lines = elements.iter().enumerate();
            let indented = |element| show(element).replace('\n', "\n   ");
            lines
                .map(|(index, element)| format!("{}) {}", index + 1, indented(element)))
                .collect::<Vec<_>>()
                .join("\n")
        }
    }
}

/// Has the first conversation of a document with a new cluster. Its nodes stand in the document as on 6379, 6380
/// and 6381. A message that is shown before a reply has come before the command is sent.
fn converse(document: &str, options: &Options) {
    let (_, rest) = document.split_once("```redis\n").unwrap();
    let (conversation, _) = rest.split_once("```").unwrap();
    let cluster = Cluster::start(3, &[]);
    let mut clients: Vec<Client> =
        cluster.addresses.iter().map(|address| Client::connect(&address.resp).unwrap()).collect();
    if options.resp3 {
        clients.iter_mut().for_each(|client| _ = client.run("HELLO 3").unwrap());
    }
    let mut asked = 0;
    let mut lines = conversation.lines().peekable();
    while let Some(line) = lines.next() {
        let (address, command) = line.split_once("> ").expect("a command after a prompt");
        let port: usize = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let client = &mut clients[port - 6379];
        let mut expected = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("127.0.0.1:")) {
            expected.push(line);
        }
        let mut shown = String::new();
        if expected.first() == Some(&"1) \"feed\"") {
            shown = show(&message(client)) + "\n";
        }
        client.send(&encode(&split(command))).unwrap();
        shown += &show(&message(client));
        let (mut shown, mut expected) = (shown, expected.join("\n"));
        if !options.same_indexes {
            (shown, expected) = (without_integers(&shown), without_integers(&expected));
        }
        assert_eq!(shown, expected, "{line}");
        asked += 1;
    }
    assert!(asked >= 5);
}

/// How a conversation is had.
struct Options {
    resp3: bool,
    /// Integers are compared too: none of them is a log index.
    same_indexes: bool,
}

/// What comes next, but for messages that only say how far the log is.
fn message(client: &mut Client) -> Value {
    std::iter::repeat_with(|| client.receive().unwrap()).find(|value| !is_empty_message(value)).unwrap()
}

fn without_integers(text: &str) -> String {
    let mut parts = text.split("(integer) ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| {
        out + "(integer)" + part.trim_start_matches(|char: char| char.is_ascii_digit())
    })
}

#[test]
fn the_conversation_in_the_readme_is_true() {
    converse(include_str!("../README.md"), &Options { resp3: false, same_indexes: true });
}

#[test]
fn the_conversation_about_locks_is_true() {
    converse(include_str!("../docs/coordination.md"), &Options { resp3: false, same_indexes: true });
}

#[test]
fn the_conversation_about_doing_things_once_is_true() {
    converse(include_str!("../docs/exactly-once.md"), &Options { resp3: false, same_indexes: true });
}

#[test]
fn the_conversation_about_read_levels_is_true() {
    converse(include_str!("../docs/consistency.md"), &Options { resp3: false, same_indexes: true });
}

#[test]
fn the_conversation_about_the_feed_is_true() {
    converse(include_str!("../docs/change-feed.md"), &Options { resp3: true, same_indexes: false });
}

//! Transcripts: commands and the replies that a real Redis gave.
//!
//! ```text
//! # What must hold, in a sentence.
//! > SET key value
//! +OK
//! > GET key
//! $"value"
//! ```
//!
//! A reply is written as it is on the wire, a line for each part, elements indented under their header, bulk
//! strings quoted. Lines that start with `@` say how to read what follows:
//! - `@ours <why>`: the next reply is Kvorum's own; Redis is not asked when replies are recorded.
//! - `@unordered`: the order of the elements of the next reply is not promised.
//! - `@shape`: of the next reply only the shape counts: digits may differ.
//! - `@let <name>`: the first integer of the next reply stands for `{name}`, there and in what follows.
//! - `@later`: the next command is sent and not waited for. Its reply, on the connection `a`, stands further below,
//!   after a line `< a`.
//! - `@client <name>`: what follows is sent on the connection of this name; the first is `a`.
//! - `@sleep <ms>`: waits.
//! - `@receive`: what follows comes unasked. Messages of the change feed without events are left out, wherever
//!   they come: when they come is not promised.
//! - `@needs session`: not for the machine alone; stands at the top.
//!
//! Every script begins with an empty database.

use std::{collections::HashMap, fmt::Write as _, path::Path, time::Duration};

use super::resp::{Client, Value, encode, split};

#[derive(Clone, Debug)]
pub enum Line {
    /// A comment or an empty line, kept when a script is recorded.
    Text(String),
    Ours(String),
    Unordered,
    Shape,
    Let(String),
    Later,
    Client(String),
    Sleep(u64),
    NeedsSession,
    /// A command and its reply; without a command, a message.
    Command {
        number: usize,
        line: String,
        reply: String,
    },
    /// A reply that comes late.
    Reply {
        number: usize,
        client: String,
        reply: String,
    },
}

/// What a script asks of whoever runs it.
pub enum Ask<'a> {
    /// Send this and read the reply.
    Call(&'a str),
    /// Send this.
    Send(&'a str),
    /// Read the reply to what was sent.
    Receive,
}

pub struct Script {
    pub lines: Vec<Line>,
}

impl Script {
    pub fn parse(text: &str) -> Script {
        let mut lines: Vec<Line> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if let Some(command) = line.strip_prefix("> ") {
                lines.push(Line::Command { number: index + 1, line: command.into(), reply: String::new() });
            } else if let Some(client) = line.strip_prefix("< ") {
                lines.push(Line::Reply { number: index + 1, client: client.into(), reply: String::new() });
            } else if let Some(directive) = line.strip_prefix('@') {
                let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
                lines.push(match word {
                    "ours" => Line::Ours(rest.into()),
                    "unordered" => Line::Unordered,
                    "shape" => Line::Shape,
                    "let" => Line::Let(rest.into()),
                    "later" => Line::Later,
                    "client" => Line::Client(rest.into()),
                    "receive" => {
                        Line::Command { number: index + 1, line: String::new(), reply: String::new() }
                    }
                    "sleep" => Line::Sleep(rest.parse().expect("milliseconds after @sleep")),
                    "needs" if rest == "session" => Line::NeedsSession,
                    _ => panic!("line {}: unknown directive @{word}", index + 1),
                });
            } else if line.is_empty() || line.starts_with('#') {
                lines.push(Line::Text(line.into()));
            } else {
                match lines.last_mut() {
                    Some(Line::Command { reply, .. } | Line::Reply { reply, .. }) => {
                        reply.push_str(line);
                        reply.push('\n');
                    }
                    _ => panic!("line {}: a reply without a command: {line}", index + 1),
                }
            }
        }
        Script { lines }
    }

    pub fn read(path: &Path) -> Script {
        Script::parse(
            &std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        )
    }

    pub fn needs_session(&self) -> bool {
        self.lines.iter().any(|line| matches!(line, Line::NeedsSession))
    }

    /// The file's text.
    pub fn write(&self) -> String {
        self.lines.iter().fold(String::new(), |mut out, line| {
            let _ = match line {
                Line::Text(text) => writeln!(out, "{text}"),
                Line::Ours(why) => writeln!(out, "@ours {why}"),
                Line::Unordered => writeln!(out, "@unordered"),
                Line::Shape => writeln!(out, "@shape"),
                Line::Let(name) => writeln!(out, "@let {name}"),
                Line::Later => writeln!(out, "@later"),
                Line::Client(name) => writeln!(out, "@client {name}"),
                Line::Sleep(ms) => writeln!(out, "@sleep {ms}"),
                Line::NeedsSession => writeln!(out, "@needs session"),
                Line::Command { line, reply, .. } if line.is_empty() => write!(out, "@receive\n{reply}"),
                Line::Command { line, reply, .. } => write!(out, "> {line}\n{reply}"),
                Line::Reply { client, reply, .. } => write!(out, "< {client}\n{reply}"),
            };
            out
        })
    }

    /// Runs the script; `ask` does what is asked on a named connection, and gives the reply if there is one. Returns
    /// what differs.
    pub fn check(&self, mut ask: impl FnMut(&str, Ask<'_>) -> Option<Value>) -> Vec<String> {
        let mut differences = Vec::new();
        let mut names: Vec<(String, String)> = Vec::new();
        self.walk(|client, number, line, expected, how| {
            let line = named(line, &names);
            let Some(reply) = ask(client, how.ask(&line)) else { return };
            let reply = reply.show();
            how.note(&reply, &mut names);
            let expected = how.normal(&named(expected, &names));
            let reply = how.normal(&reply);
            if reply != expected {
                differences.push(format!("line {number}: > {line}\nexpected:\n{expected}got:\n{reply}"));
            }
        });
        differences
    }

    /// Asks a real Redis and keeps its replies, except to what is marked as ours; or, if `ours`, asks Kvorum and keeps
    /// its replies to just that.
    pub fn record(&mut self, ours: bool, mut ask: impl FnMut(&str, Ask<'_>) -> Option<Value>) {
        let mut recorded = HashMap::new();
        let mut names: Vec<(String, String)> = Vec::new();
        self.walk(|client, number, line, _, how| {
            if how.ours && !ours {
                return;
            }
            let line = named(line, &names);
            let Some(reply) = ask(client, how.ask(&line)) else { return };
            let reply = reply.show();
            how.note(&reply, &mut names);
            if how.ours == ours {
                let lines = reply.lines().map(|line| with_names(line, &names) + "\n");
                recorded.insert(number, lines.collect());
            }
        });
        for line in &mut self.lines {
            if let Line::Command { number, reply, .. } | Line::Reply { number, reply, .. } = line
                && let Some(new) = recorded.remove(number)
            {
                *reply = new;
            }
        }
    }

    fn walk(&self, mut visit: impl FnMut(&str, usize, &str, &str, How<'_>)) {
        let mut client = "a";
        let mut how = How::default();
        for line in &self.lines {
            match line {
                Line::Text(_) | Line::NeedsSession => {}
                Line::Ours(_) => how.ours = true,
                Line::Unordered => how.unordered = true,
                Line::Shape => how.shape = true,
                Line::Let(name) => how.name = Some(name),
                Line::Later => how.later = true,
                Line::Client(name) => client = name,
                Line::Sleep(ms) => std::thread::sleep(Duration::from_millis(*ms)),
                Line::Command { number, line, reply } => {
                    visit(client, *number, line, reply, std::mem::take(&mut how));
                }
                Line::Reply { number, client, reply } => {
                    how.receives = true;
                    visit(client, *number, "", reply, std::mem::take(&mut how));
                }
            }
        }
    }
}

/// How the next reply is compared.
#[derive(Clone, Copy, Default)]
struct How<'a> {
    ours: bool,
    unordered: bool,
    shape: bool,
    name: Option<&'a str>,
    later: bool,
    receives: bool,
}

/// A line of a reply with names for the integers that they stand for: those that are a reply, or end an error.
fn with_names(line: &str, names: &[(String, String)]) -> String {
    let ends_so = |value: &str| {
        let integer = line.trim_start() == format!(":{value}");
        integer || line.starts_with('-') && line.ends_with(&format!(" {value}"))
    };
    match names.iter().find(|(_, value)| ends_so(value)) {
        Some((name, value)) => line[..line.len() - value.len()].to_owned() + name,
        None => line.to_owned(),
    }
}

/// `text` with what the names stand for.
fn named(text: &str, names: &[(String, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (name, integer)| text.replace(name, integer))
}

impl How<'_> {
    fn ask(self, line: &str) -> Ask<'_> {
        match (self.receives || line.is_empty(), self.later) {
            (true, _) => Ask::Receive,
            (_, true) => Ask::Send(line),
            _ => Ask::Call(line),
        }
    }

    /// Keeps the integer that a name stands for.
    fn note(self, reply: &str, names: &mut Vec<(String, String)>) {
        if let Some(name) = self.name {
            let integer = reply.lines().find_map(|line| line.trim_start().strip_prefix(':'));
            names.push((format!("{{{name}}}"), integer.unwrap_or("no integer").to_owned()));
        }
    }

    fn normal(self, reply: &str) -> String {
        let mut reply = reply.to_owned();
        if self.shape {
            let mut out = String::new();
            for byte in reply.chars() {
                if !byte.is_ascii_digit() {
                    out.push(byte);
                } else if !out.ends_with('0') {
                    out.push('0');
                }
            }
            reply = out;
        }
        if self.unordered {
            let mut lines: Vec<&str> = reply.lines().collect();
            lines.sort_unstable();
            reply = lines.join("\n") + "\n";
        }
        reply
    }
}

/// Named connections to a cluster: each new name goes to the next node.
pub struct Connections {
    addresses: Vec<String>,
    clients: HashMap<String, Client>,
}

impl Connections {
    pub fn new(addresses: Vec<String>) -> Connections {
        Connections { addresses, clients: HashMap::new() }
    }

    pub fn ask(&mut self, name: &str, ask: Ask<'_>) -> Option<Value> {
        let address = &self.addresses[self.clients.len() % self.addresses.len()];
        let client =
            self.clients.entry(name.into()).or_insert_with(|| Client::connect(address).expect("a server"));
        let sent = match ask {
            Ask::Call(line) | Ask::Send(line) => client.send(&encode(&split(line))),
            Ask::Receive => Ok(()),
        };
        sent.unwrap_or_else(|error| panic!("{name}: {error}"));
        if matches!(ask, Ask::Send(_)) {
            return None;
        }
        loop {
            let value = client.receive().unwrap_or_else(|error| panic!("{name}: {error}"));
            if !is_empty_message(&value) {
                return Some(value);
            }
        }
    }
}

/// Whether this is a message of the change feed that only says how far the log is.
pub fn is_empty_message(value: &Value) -> bool {
    match value {
        Value::Aggregate(_, Some(parts)) => {
            matches!(&parts[..], [Value::Bulk(_, Some(name)), _, Value::Aggregate(_, Some(events))]
                if name == b"feed" && events.is_empty())
        }
        _ => false,
    }
}

/// Every script below `dir`, in order.
pub fn all(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the scripts are there") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            found.append(&mut all(&path));
        } else if path.extension().is_some_and(|extension| extension == "redis") {
            found.push(path);
        }
    }
    found.sort();
    found
}

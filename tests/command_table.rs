//! COMMAND and its subcommands answer as a redis-server of series 7.0 does, for every command that both have.
//! Exceptions stand in a list, which may only shrink.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{
    process::Cluster,
    redis_server::RedisServer,
    resp::{Client, Value},
};

/// What differs, as command and part: the option WITHSCORE is of 7.2.
const EXCEPTIONS: &[(&str, &str)] = &[("zrank", "arity"), ("zrevrank", "arity")];

/// What Redis 7.0 does not know yet.
const LATER: &[&str] = &["7.2.0", "7.4.0", "8.0.0", "8.1.0", "8.2.0", "8.4.0", "8.8.0", "9.0.0"];

/// A reply without what RESP distinguishes and clients do not: bulk and simple strings, sets and their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Text(String),
    List(Vec<Tree>),
    Set(BTreeSet<Tree>),
    Map(BTreeMap<String, Tree>),
}

impl Tree {
    fn of(value: Value) -> Tree {
        match value {
            Value::Line(_, text) => Tree::Text(String::from_utf8(text).unwrap()),
            Value::Bulk(_, text) => Tree::Text(String::from_utf8(text.unwrap_or_default()).unwrap()),
            Value::Aggregate(b'%', elements) => {
                let elements = elements.unwrap_or_default();
                let pairs =
                    elements.chunks(2).map(|pair| (Tree::of(pair[0].clone()), Tree::of(pair[1].clone())));
                Tree::Map(pairs.map(|(name, value)| (name.text().to_owned(), value)).collect())
            }
            Value::Aggregate(b'~', elements) => {
                Tree::Set(elements.unwrap_or_default().into_iter().map(Tree::of).collect())
            }
            Value::Aggregate(_, elements) => {
                Tree::List(elements.unwrap_or_default().into_iter().map(Tree::of).collect())
            }
        }
    }

    fn text(&self) -> &str {
        match self {
            Tree::Text(text) => text,
            _ => "",
        }
    }

    fn list(&self) -> &[Tree] {
        match self {
            Tree::List(elements) => elements,
            _ => &[],
        }
    }

    fn get(&self, name: &str) -> Tree {
        match self {
            Tree::Map(map) => map.get(name).cloned().unwrap_or(Tree::List(Vec::new())),
            _ => Tree::List(Vec::new()),
        }
    }

    /// Arguments without those that came after Redis 7.0.
    fn seen_by_7_0(self) -> Tree {
        match self {
            Tree::List(elements) => {
                let is_later = |element: &Tree| LATER.contains(&element.get("since").text());
                Tree::List(elements.into_iter().filter(|it| !is_later(it)).map(Tree::seen_by_7_0).collect())
            }
            Tree::Map(map) => {
                Tree::Map(map.into_iter().map(|(name, value)| (name, value.seen_by_7_0())).collect())
            }
            other => other,
        }
    }
}

fn ask(client: &mut Client, words: &[&str]) -> Tree {
    Tree::of(client.call(words).unwrap())
}

fn names(client: &mut Client, filter: &[&str]) -> BTreeSet<String> {
    let words = [&["COMMAND", "LIST"], filter].concat();
    ask(client, &words).list().iter().map(|name| name.text().to_owned()).collect()
}

/// What is compared of a command: each part under its name.
fn described(client: &mut Client, name: &str) -> BTreeMap<&'static str, Tree> {
    let info = ask(client, &["COMMAND", "INFO", name]);
    let info = info.list()[0].list().to_vec();
    let docs = ask(client, &["COMMAND", "DOCS", name]).get(name);
    let of_info =
        ["name", "arity", "flags", "first key", "last key", "step", "categories", "tips", "key specs"];
    let mut parts: BTreeMap<_, _> = of_info.into_iter().zip(info).collect();
    for part in ["since", "group", "arguments", "deprecated_since", "replaced_by", "doc_flags"] {
        parts.insert(part, docs.get(part).seen_by_7_0());
    }
    parts
}

/// Calls whose keys are asked for.
const CALLS: &[&str] = &[
    "GET a",
    "SET a 1",
    "SET a 1 GET",
    "MSET a 1 b 2",
    "DEL a b c",
    "LMPOP 2 a b LEFT",
    "SINTERCARD 2 a b LIMIT 1",
    "COPY a b",
    "LMOVE a b LEFT RIGHT",
    "ZRANGESTORE a b 0 1",
    "SUNIONSTORE a b c",
    "OBJECT ENCODING a",
    "LCS a b IDX",
    "PING",
    "SINTERCARD 0 a b",
    "GET",
    "NOTHING a",
];

#[test]
fn the_command_table_is_that_of_redis() {
    let Some(redis) = RedisServer::start() else { return };
    let cluster = Cluster::start(1, &[]);
    let mut ours = Client::connect(&cluster.addresses[0].resp).unwrap();
    let mut theirs = Client::connect(&redis.address).unwrap();
    for client in [&mut ours, &mut theirs] {
        client.call(&["HELLO", "3"]).unwrap();
    }
    let mut differing = BTreeMap::new();
    let common: BTreeSet<String> =
        names(&mut ours, &[]).intersection(&names(&mut theirs, &[])).cloned().collect();
    assert!(common.len() > 150, "{common:?}");
    for name in &common {
        let expected = described(&mut theirs, name);
        for (part, given) in described(&mut ours, name) {
            // Subcommands are compared one by one.
            if given != expected[part] {
                let text = format!("{given:?}\n    where Redis says {:?}", expected[part]);
                differing.insert(format!("{name} {part}"), text);
            }
        }
    }
    let filters =
        ["@read", "@write", "@keyspace", "@dangerous", "@fast", "@slow", "@connection", "@transaction"];
    let filters = filters.map(|category| vec!["FILTERBY", "ACLCAT", &category[1..]]);
    let patterns = ["*get*", "client*", "x?y"].map(|pattern| vec!["FILTERBY", "PATTERN", pattern]);
    for filter in filters.iter().chain(&patterns).chain([&vec!["FILTERBY", "MODULE", "nothing"]]) {
        let shown = |client: &mut Client| -> BTreeSet<String> {
            names(client, filter).intersection(&common).cloned().collect()
        };
        assert_eq!(shown(&mut ours), shown(&mut theirs), "{filter:?}");
    }
    for call in CALLS {
        for asked in ["GETKEYS", "GETKEYSANDFLAGS"] {
            let words: Vec<&str> = ["COMMAND", asked].into_iter().chain(call.split(' ')).collect();
            let (given, expected) = (ask(&mut ours, &words), ask(&mut theirs, &words));
            assert_eq!(given, expected, "{asked} {call}");
        }
    }
    let count: usize = ask(&mut ours, &["COMMAND", "COUNT"]).text().parse().unwrap();
    assert_eq!(count, names(&mut ours, &[]).iter().filter(|name| !name.contains('|')).count());
    let known: BTreeSet<String> = EXCEPTIONS.iter().map(|(name, part)| format!("{name} {part}")).collect();
    let gone: Vec<_> = known.iter().filter(|known| !differing.contains_key(*known)).collect();
    assert!(gone.is_empty(), "these do not differ any more: {gone:#?}");
    differing.retain(|what, _| !known.contains(what));
    let text: Vec<String> = differing.iter().map(|(what, text)| format!("{what}: {text}")).collect();
    assert!(text.is_empty(), "{} differ:\n{}", text.len(), text.join("\n"));
}

//! COMMAND: the table as clients and tools query it, in the format of Redis 7. Everything is derived from the
//! rows.

use crate::connection::{
    Connection,
    table::{self, Row},
    verb::{Verb, flags as verb_flags, groups},
};
use crate::{
    args::Args,
    commands::{
        Call, Origin, Spec,
        keys::{Begin, Find, KeySpec},
        syntax::{self, Argument},
    },
    error::{Error, Result},
    resp::Reply,
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::now(
    Spec::connection("COMMAND", -1)
        .about(verb_flags::LOADING, groups::SERVER, "2.8.13", "Get array of Redis command details")
        .complexity("O(N) where N is the total number of Redis commands")
        .acl(&["connection"])
        .tips(&["nondeterministic_output_order"]),
    command,
)
.with(&[
    Verb::now(
        Spec::connection("COMMAND|COUNT", 2)
            .about(verb_flags::LOADING, groups::SERVER, "2.8.13", "Get total number of Redis commands")
            .complexity("O(1)")
            .acl(&["connection"]),
        count,
    ),
    Verb::now(
        Spec::connection("COMMAND|DOCS", -2)
            .about(
                verb_flags::LOADING,
                groups::SERVER,
                "7.0.0",
                "Get array of specific Redis command documentation",
            )
            .syntax("[command-name...]")
            .complexity("O(N) where N is the number of commands to look up")
            .acl(&["connection"])
            .tips(&["nondeterministic_output_order"]),
        docs,
    ),
    Verb::now(
        Spec::connection("COMMAND|GETKEYS", -4)
            .about(verb_flags::LOADING, groups::SERVER, "2.8.13", "Extract keys given a full Redis command")
            .complexity("O(N) where N is the number of arguments to the command")
            .acl(&["connection"]),
        getkeys,
    ),
    Verb::now(
        Spec::connection("COMMAND|GETKEYSANDFLAGS", -4)
            .about(
                verb_flags::LOADING,
                groups::SERVER,
                "7.0.0",
                "Extract keys and access flags given a full Redis command",
            )
            .complexity("O(N) where N is the number of arguments to the command")
            .acl(&["connection"]),
        getkeysandflags,
    ),
    Verb::now(
        Spec::connection("COMMAND|HELP", 2)
            .about(
                verb_flags::LOADING,
                groups::SERVER,
                "5.0.0",
                "Show helpful text about the different subcommands",
            )
            .complexity("O(1)")
            .acl(&["connection"]),
        crate::connection::help,
    ),
    Verb::now(
        Spec::connection("COMMAND|INFO", -2)
            .about(
                verb_flags::LOADING,
                groups::SERVER,
                "2.8.13",
                "Get array of specific Redis command details, or all when no argument is given.",
            )
            .syntax("[command-name...]")
            .complexity("O(N) where N is the number of commands to look up")
            .acl(&["connection"])
            .tips(&["nondeterministic_output_order"]),
        info,
    ),
    Verb::now(
        Spec::connection("COMMAND|LIST", -2)
            .about(verb_flags::LOADING, groups::SERVER, "7.0.0", "Get an array of Redis command names")
            .syntax("[FILTERBY filterby=<MODULE module-name|ACLCAT category|PATTERN pattern:pattern>]")
            .complexity("O(N) where N is the total number of Redis commands")
            .acl(&["connection"])
            .tips(&["nondeterministic_output_order"]),
        list,
    ),
])];

/// The rows that are commands, not subcommands.
fn commands() -> impl Iterator<Item = &'static Row> {
    table::rows().iter().filter(|row| !row.name.contains('|'))
}

pub(in crate::connection) fn command(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.array(commands().count());
    commands().for_each(|row| describe(row, reply));
    Ok(())
}

pub(in crate::connection) fn count(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(commands().count());
    Ok(())
}

pub(in crate::connection) fn info(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    if args.len() == 2 {
        return command(connection, args, reply);
    }
    reply.array(args.len() - 2);
    for name in args.from(2) {
        match table::by_full_name(name) {
            Some(row) => describe(row, reply),
            None => reply.null(),
        }
    }
    Ok(())
}

pub(in crate::connection) fn list(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let rows = table::rows().iter();
    let shown: Vec<&Row> = match args.get(4) {
        None if args.len() == 2 => rows.collect(),
        Some(wanted) if args.len() == 5 && args.is(2, "FILTERBY") => {
            let text = String::from_utf8_lossy(wanted).to_ascii_lowercase();
            match () {
                () if args.is(3, "PATTERN") => {
                    rows.filter(|row| crate::connection::fits(wanted, &row.name)).collect()
                }
                () if args.is(3, "ACLCAT") => {
                    rows.filter(|row| row.spec.categories().contains(&text.as_str())).collect()
                }
                () if args.is(3, "MODULE") => {
                    rows.filter(|row| module_of(row.spec).is_some_and(|name| name == text)).collect()
                }
                () => return Err(Error::Syntax),
            }
        }
        _ => return Err(Error::Syntax),
    };
    reply.array(shown.len());
    shown.iter().for_each(|row| reply.bulk(row.name.as_bytes()));
    Ok(())
}

/// What Redis would call the module that a command belongs to.
fn module_of(spec: &Spec) -> Option<&'static str> {
    match spec.origin {
        Origin::Redis | Origin::Valkey => None,
        Origin::Module(name) => Some(name),
        Origin::Kvorum => Some("kvorum"),
    }
}

pub(in crate::connection) fn docs(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let shown: Vec<&Row> = if args.len() == 2 {
        commands().collect()
    } else {
        args.from(2).iter().filter_map(|name| table::by_full_name(name)).collect()
    };
    reply.map(shown.len());
    for row in shown {
        reply.bulk(row.name.as_bytes());
        document(row, reply);
    }
    Ok(())
}

/// Text under a name, in a map.
fn pair(name: &str, value: &str, reply: &mut Reply) {
    reply.bulk(name.as_bytes());
    reply.bulk(value.as_bytes());
}

/// The value of COMMAND DOCS for one command.
fn document(row: &Row, reply: &mut Reply) {
    let spec = row.spec;
    let texts = [
        ("summary", Some(spec.summary)),
        ("since", Some(spec.since)),
        ("group", Some(spec.group)),
        ("module", module_of(spec)),
        ("complexity", Some(spec.complexity).filter(|text| !text.is_empty())),
        ("deprecated_since", spec.deprecated.map(|(since, _)| since)),
        ("replaced_by", spec.deprecated.map(|(_, by)| by)),
    ];
    let texts: Vec<_> = texts.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
    let arguments = syntax::parse(spec.syntax).unwrap_or_default();
    let history = history(&arguments);
    let doc_flags = [(spec.deprecated.is_some(), "deprecated"), (spec.is_internal, "syscmd")];
    let doc_flags: Vec<_> = doc_flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).collect();
    let lists =
        [!doc_flags.is_empty(), !history.is_empty(), !arguments.is_empty(), !row.subcommands.is_empty()];
    reply.map(texts.len() + lists.into_iter().filter(|is_there| *is_there).count());
    texts.iter().for_each(|(name, text)| pair(name, text, reply));
    if !doc_flags.is_empty() {
        reply.bulk(b"doc_flags");
        reply.set(doc_flags.len());
        doc_flags.iter().for_each(|flag| reply.simple(flag));
    }
    if !history.is_empty() {
        reply.bulk(b"history");
        reply.set(history.len());
        for (version, change) in &history {
            reply.array(2);
            reply.bulk(version.as_bytes());
            reply.bulk(change.as_bytes());
        }
    }
    if !arguments.is_empty() {
        reply.bulk(b"arguments");
        document_arguments(&arguments, spec, reply);
    }
    if !row.subcommands.is_empty() {
        reply.bulk(b"subcommands");
        reply.map(row.subcommands.len());
        for subcommand in subcommands(row) {
            reply.bulk(subcommand.name.as_bytes());
            document(subcommand, reply);
        }
    }
}

/// The versions that brought or deprecated arguments.
fn history(arguments: &[Argument]) -> Vec<(String, String)> {
    let mut history = Vec::new();
    for argument in arguments {
        let what = argument.token.as_ref().unwrap_or(&argument.name);
        history.extend(argument.since.iter().map(|since| (since.clone(), format!("Added {what}."))));
        let deprecated = argument.deprecated_since.iter();
        history.extend(deprecated.map(|since| (since.clone(), format!("Deprecated {what}."))));
        history.extend(self::history(&argument.arguments));
    }
    history
}

fn document_arguments(arguments: &[Argument], spec: &Spec, reply: &mut Reply) {
    reply.array(arguments.len());
    for argument in arguments {
        let texts = [
            ("token", &argument.token),
            ("since", &argument.since),
            ("deprecated_since", &argument.deprecated_since),
        ];
        let texts: Vec<_> =
            texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))).collect();
        let flags = argument.flags();
        let more = [argument.key_spec.is_some(), !flags.is_empty(), !argument.arguments.is_empty()];
        reply.map(2 + texts.len() + more.into_iter().filter(|is_there| *is_there).count());
        pair("name", &argument.name, reply);
        pair("type", &argument.kind, reply);
        if let Some(index) = argument.key_spec {
            reply.bulk(b"key_spec_index");
            // The last specification may be of several keys.
            reply.size(index.min(spec.keys.len().saturating_sub(1)));
        }
        texts.iter().for_each(|(name, text)| pair(name, text, reply));
        if !flags.is_empty() {
            reply.bulk(b"flags");
            simple_set(&flags, reply);
        }
        if !argument.arguments.is_empty() {
            reply.bulk(b"arguments");
            document_arguments(&argument.arguments, spec, reply);
        }
    }
}

fn simple_set(words: &[&str], reply: &mut Reply) {
    reply.set(words.len());
    words.iter().for_each(|word| reply.simple(word));
}

fn subcommands(row: &Row) -> impl Iterator<Item = &'static Row> {
    row.subcommands.iter().filter_map(|&index| table::row(index))
}

/// Redis's flags, with the one that follows from the keys.
fn flags(spec: &Spec) -> Vec<&'static str> {
    let is_movable =
        |keys: &KeySpec| !matches!(keys.find, Find::Range { .. }) || matches!(keys.begin, Begin::Keyword(..));
    let has_movable = spec.keys.iter().any(is_movable);
    spec.flags.iter().copied().chain(has_movable.then_some("movablekeys")).collect()
}

/// The positions of the first and the last key and their distance, as old clients read them.
fn positions(spec: &Spec) -> (i64, i64, i64) {
    let ranges = spec.keys.iter().map_while(|keys| match (keys.begin, keys.find) {
        (Begin::Index(first), Find::Range { last, step, .. }) => {
            let last = if last < 0 { last as i64 } else { first as i64 + last as i64 };
            Some((first as i64, last, step as i64))
        }
        _ => None,
    });
    let join = |whole: (i64, i64, i64), next: (i64, i64, i64)| {
        let last = if whole.1 < 0 || next.1 < 0 { whole.1.min(next.1) } else { whole.1.max(next.1) };
        (whole.0, last, whole.2)
    };
    // Keys that do not follow the ones before are not among them.
    let mut whole = (0, 0, 0);
    for range in ranges {
        match whole {
            (0, ..) => whole = range,
            (_, last, 1) if range.0 == last + 1 && range.2 == 1 => whole = join(whole, range),
            _ => break,
        }
    }
    whole
}

/// The ten elements of COMMAND INFO.
fn describe(row: &Row, reply: &mut Reply) {
    let spec = row.spec;
    reply.array(10);
    reply.bulk(row.name.as_bytes());
    reply.integer(i64::from(spec.arity));
    simple_set(&flags(spec), reply);
    let (first, last, step) = positions(spec);
    for position in [first, last, step] {
        reply.integer(position);
    }
    let categories = spec.categories();
    reply.set(categories.len());
    categories.iter().for_each(|category| reply.simple(&format!("@{category}")));
    reply.set(spec.tips.len());
    spec.tips.iter().for_each(|tip| reply.bulk(tip.as_bytes()));
    reply.set(spec.keys.len());
    spec.keys.iter().for_each(|keys| describe_keys(keys, reply));
    if row.subcommands.is_empty() {
        reply.set(0);
    } else {
        reply.array(row.subcommands.len());
        subcommands(row).for_each(|subcommand| describe(subcommand, reply));
    }
}

fn key_flags(keys: &KeySpec) -> Vec<&'static str> {
    std::iter::once(keys.access.name()).chain(keys.uses.split_whitespace()).collect()
}

fn describe_keys(keys: &KeySpec, reply: &mut Reply) {
    reply.map(3 + usize::from(!keys.notes.is_empty()));
    if !keys.notes.is_empty() {
        pair("notes", keys.notes, reply);
    }
    reply.bulk(b"flags");
    simple_set(&key_flags(keys), reply);
    let begin: (_, Vec<(&str, i64)>) = match keys.begin {
        Begin::Index(at) => ("index", vec![("index", at as i64)]),
        Begin::Keyword(_, from) => ("keyword", vec![("startfrom", from as i64)]),
        Begin::Unknown => ("unknown", Vec::new()),
    };
    let find: (_, Vec<(&str, i64)>) = match keys.find {
        Find::Range { last, step, limit } => {
            ("range", vec![("lastkey", last as i64), ("keystep", step as i64), ("limit", limit as i64)])
        }
        Find::Count => ("keynum", vec![("keynumidx", 0), ("firstkey", 1), ("keystep", 1)]),
        Find::Unknown => ("unknown", Vec::new()),
    };
    let keyword = match keys.begin {
        Begin::Keyword(word, _) => Some(word),
        _ => None,
    };
    for (what, (kind, numbers), word) in [("begin_search", begin, keyword), ("find_keys", find, None)] {
        reply.bulk(what.as_bytes());
        reply.map(2);
        pair("type", kind, reply);
        reply.bulk(b"spec");
        reply.map(numbers.len() + usize::from(word.is_some()));
        if let Some(word) = word {
            pair("keyword", word, reply);
        }
        for (name, number) in numbers {
            reply.bulk(name.as_bytes());
            reply.integer(number);
        }
    }
}

/// The keys of the command in `args` from the third argument on, each with its flags.
fn keys<'a>(args: &Args<'a>) -> Result<Vec<(&'a [u8], KeySpec)>> {
    let argv = args.from(2);
    let call = Args::new(argv);
    let mut row = table::command(call.at(0)).ok_or_else(|| Error::err("Invalid command specified"))?;
    if let Some(subcommand) = call.get(1).and_then(|name| table::subcommand(row, name)) {
        row = subcommand;
    }
    if row.spec.keys.is_empty() {
        return Err(Error::err("The command has no key arguments"));
    }
    if !row.spec.arity_fits(call.len()) {
        return Err(Error::err("Invalid number of arguments specified for command"));
    }
    let found: Vec<_> = Call::of(row.spec, argv).keys();
    if found.is_empty() {
        return Err(Error::err("Invalid arguments specified for command"));
    }
    Ok(found)
}

pub(in crate::connection) fn getkeys(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let keys = keys(args)?;
    reply.array(keys.len());
    keys.iter().for_each(|(key, _)| reply.bulk(key));
    Ok(())
}

pub(in crate::connection) fn getkeysandflags(
    _: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let keys = keys(args)?;
    reply.array(keys.len());
    for (key, spec) in keys {
        reply.array(2);
        reply.bulk(key);
        simple_set(&key_flags(&spec), reply);
    }
    Ok(())
}

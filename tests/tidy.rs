//! The house rules that a machine can check. Each is a ratchet: what breaks a rule stands in a list here with
//! a number, and the number may only fall. Whoever makes one fall, lowers it here; nobody raises one.
//!
//! Reads the source as text, as rustfmt lays it out: a function ends at the first `}` of its own indentation.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where Rust files are.
const PLACES: &[&str] = &[
    "src",
    "raft/src",
    "raft/tests",
    "fuzz/src",
    "jepsen/src",
    "jepsen/tests",
    "jepsen/disk-faults/src",
    "tests",
];
/// The places whose code runs in production.
const PRODUCTION: &[&str] = &["src/", "raft/src/"];

/// Most lines of a file before its tests, and of a function.
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that are longer, with their lines before their tests.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions that are longer, as `file::function`, with their lines.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];
/// Files with a bare `unwrap` outside tests, and how many.
const UNWRAPS: &[(&str, usize)] = &[];
/// Imports that go up, as `file -> module`, and how often.
const UPWARD_IMPORTS: &[(&str, usize)] = &[];

/// The floors of docs/design.md. An import names its own floor or one below; `kvorum_raft` is below all.
const FLOORS: &[(&str, u32)] = &[
    ("main", 6),
    ("lib", 6),
    ("cli", 5),
    ("config", 5),
    ("server", 5),
    ("simulation", 5),
    ("admin", 5),
    ("connection", 4),
    ("cluster_settings", 4),
    ("maxmemory", 4),
    ("router", 4),
    ("wake", 4),
    ("machine", 3),
    ("commands", 2),
    ("effects", 2),
    ("feed", 2),
    ("proposal", 1),
    ("store", 1),
    ("resp", 1),
    ("args", 1),
    ("error", 1),
    ("extended", 1),
    ("glob", 1),
];
/// Imports within a floor that are not wanted either: importer, imported.
const SIDEWAYS: &[(&str, &str)] = &[
    ("connection", "admin"),
    ("router", "connection"),
    ("wake", "connection"),
    ("effects", "feed"),
    ("store", "resp"),
    ("store", "proposal"),
    ("resp", "store"),
    ("config", "admin"),
    ("config", "server"),
    ("config", "cli"),
    ("server", "cli"),
    ("admin", "cli"),
];

/// Modules of raft/ in a circle of imports, with the size of that circle.
const CIRCLES: &[(&str, usize)] = &[];

/// Most files of a folder, without those that are only tests.
const FOLDER_FILES_MAX: usize = 15;
/// Folders with more, and how many.
const LARGE_FOLDERS: &[(&str, usize)] = &[];

/// What nothing below the connection's floor may ask: the state is the same on every node.
const CLOCKS_AND_DICE: &[&str] =
    &["Instant::now", "SystemTime::now", ".elapsed()", "fastrand::", "RandomState"];
/// Places of these floors, ...
const REPLICATED: &[&str] = &["src/store/", "src/commands/", "src/effects/", "src/machine/", "src/extended"];
/// ... and files that ask all the same, how often: the machine, where a simulation switches a safeguard off.
const DICE: &[(&str, usize)] = &[("src/machine/mod.rs", 1)];

/// A source file: its path from the root, with `/`, and its text.
struct File {
    path: String,
    text: String,
    /// All of it is tests.
    is_test: bool,
}

impl File {
    /// The lines that are not tests: up to the file's test module, if it has one.
    fn production(&self) -> Vec<&str> {
        if self.is_test {
            return Vec::new();
        }
        let lines: Vec<&str> = self.text.lines().collect();
        let end = lines.windows(2).position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        });
        lines[..end.unwrap_or(lines.len())].to_vec()
    }
}

/// A line without its comment. A `//` after a colon is taken for an address.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.find(" // ").map_or(line, |at| &line[..at])
}

fn collect(dir: &Path, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(ROOT).unwrap().to_string_lossy().replace('\\', "/");
            files.push(File { is_test: !is_production(&path), path, text });
        }
    }
}

fn is_production(path: &str) -> bool {
    PRODUCTION.iter().any(|place| path.starts_with(place))
}

/// Every Rust file, each marked when it is only compiled for tests.
fn files() -> Vec<File> {
    let mut files = Vec::new();
    for place in PLACES {
        collect(&Path::new(ROOT).join(place), &mut files);
    }
    let mut tests = BTreeSet::new();
    for file in &files {
        let dir = file.path.rsplit_once('/').unwrap().0;
        let stem = file.path.rsplit('/').next().unwrap().trim_end_matches(".rs");
        let below = if matches!(stem, "mod" | "lib" | "main") { dir.into() } else { format!("{dir}/{stem}") };
        let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
            let item = lines[index + 1..].iter().find(|line| !line.starts_with("#["));
            let name =
                item.and_then(|item| item.strip_suffix(';')).and_then(|item| item.split("mod ").nth(1));
            let renamed =
                lines[index + 1].strip_prefix("#[path = \"").and_then(|rest| rest.split('"').next());
            if let Some(name) = name {
                tests.insert(format!("{below}/{name}.rs"));
                tests.insert(format!("{below}/{name}/mod.rs"));
            }
            tests.extend(renamed.map(|path| format!("{dir}/{path}")));
        }
    }
    for file in &mut files {
        file.is_test |= tests.contains(&file.path);
    }
    assert!(files.len() > 50, "the source is not where this test looks for it");
    files
}

/// Compares what was found with the exceptions that are known: more is a fault, fewer asks to lower the number.
fn ratchet(rule: &str, list: &str, found: &BTreeMap<String, usize>, known: &[(&str, usize)]) {
    let known: BTreeMap<&str, usize> = known.iter().copied().collect();
    let mut faults = Vec::new();
    for (what, count) in found {
        match known.get(what.as_str()) {
            None => faults.push(format!("{what}: {count}, and no exception is known")),
            Some(most) if count > most => faults.push(format!("{what}: {count}, where {most} are known")),
            Some(most) if count < most => {
                faults.push(format!("{what}: only {count}; lower {most} in {list}"))
            }
            Some(_) => {}
        }
    }
    for what in known.keys().filter(|what| !found.contains_key(**what)) {
        faults.push(format!("{what}: keeps the rule; remove it from {list}"));
    }
    assert!(faults.is_empty(), "{rule}\n  {}", faults.join("\n  "));
}

#[test]
fn every_file_says_what_it_is_for() {
    let bare: Vec<_> =
        files().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path).collect();
    assert!(bare.is_empty(), "A file opens with `//!` and what it is for (docs/style.md 6): {bare:?}");
}

#[test]
fn files_are_not_too_long() {
    let lines = |file: &File| if file.is_test { file.text.lines().count() } else { file.production().len() };
    let found = files().into_iter().map(|file| (file.path.clone(), lines(&file)));
    let found = found.filter(|(_, lines)| *lines > FILE_LINES_MAX).collect();
    let rule = "A file has at most 600 lines before its tests (docs/style.md 16).";
    ratchet(rule, "LONG_FILES", &found, LONG_FILES);
}

#[test]
fn folders_are_not_too_large() {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    let counts = |file: &&File| !file.is_test || file.path.starts_with("jepsen/src");
    for file in files().iter().filter(counts) {
        let (folder, _) = file.path.rsplit_once('/').unwrap();
        *found.entry(folder.to_owned()).or_insert(0) += 1;
    }
    found.retain(|_, count| *count > FOLDER_FILES_MAX);
    ratchet("A folder has at most 15 files.", "LARGE_FOLDERS", &found, LARGE_FOLDERS);
}

#[test]
fn what_is_replicated_asks_no_clock_and_rolls_no_dice() {
    let asks = |line: &&&str| CLOCKS_AND_DICE.iter().any(|word| code(line).contains(word));
    let count = |file: &File| file.production().iter().filter(asks).count();
    let is_replicated = |file: &&File| REPLICATED.iter().any(|place| file.path.starts_with(place));
    let files = files();
    let found = files.iter().filter(is_replicated).map(|file| (file.path.clone(), count(file)));
    let rule = "Below the connection's floor nobody reads a clock or rolls dice (docs/style.md 30).";
    ratchet(rule, "DICE", &found.filter(|(_, count)| *count > 0).collect(), DICE);
}

/// The functions of a file with their lines, the signature included.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let words = line.split(['(', '<']).next().unwrap();
        let is_function = words.trim_start().starts_with("fn ") || words.contains(" fn ");
        if !is_function || !code(line).contains("fn ") || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let end = lines[start + 1..].iter().position(|line| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || rest.starts_with(')') && rest.ends_with(';'))
        });
        let name = words.split("fn ").nth(1).unwrap_or_default().to_owned();
        functions.extend(end.map(|end| (name, end + 2)));
    }
    functions
}

#[test]
fn functions_are_not_too_long() {
    let found = files().into_iter().flat_map(|file| {
        let path = file.path.clone();
        functions(&file.text).into_iter().map(move |(name, lines)| (format!("{path}::{name}"), lines))
    });
    let found = found.filter(|(_, lines)| *lines > FUNCTION_LINES_MAX).collect();
    let rule = "A function has at most 70 lines (docs/style.md 16).";
    ratchet(rule, "LONG_FUNCTIONS", &found, LONG_FUNCTIONS);
}

#[test]
fn what_cannot_fail_says_why() {
    let count =
        |file: &File| file.production().iter().filter(|line| code(line).contains(".unwrap()")).count();
    let found =
        files().into_iter().map(|file| (file.path.clone(), count(&file))).filter(|(_, count)| *count > 0);
    let rule = "No bare `unwrap` outside tests: `expect` says why it cannot fail (docs/style.md 24).";
    ratchet(rule, "UNWRAPS", &found.collect(), UNWRAPS);
}

/// The paths that code names after `crate::`, those in `{...}` one by one.
fn paths(lines: &[&str]) -> Vec<String> {
    let text: String = lines.iter().flat_map(|line| [code(line), "\n"]).collect();
    let mut paths = Vec::new();
    for rest in text.split("crate::").skip(1) {
        // The beginnings before the braces that are open.
        let (mut path, mut open) = (String::new(), Vec::new());
        for char in rest.chars() {
            match char {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | ':' => path.push(char),
                '{' => open.push(path.clone()),
                ',' | '}' if !open.is_empty() => {
                    paths.push(std::mem::take(&mut path));
                    if char == '}' {
                        open.pop();
                    }
                    path.extend(open.last().cloned());
                }
                _ if char.is_whitespace() && !open.is_empty() => {}
                _ => break,
            }
        }
        paths.push(path);
    }
    paths.retain(|path| !path.is_empty() && !path.ends_with(':'));
    paths
}

/// The modules that code names as `crate::module` or in `crate::{module, ...}`.
fn imported(lines: &[&str]) -> Vec<String> {
    let mut modules: Vec<_> =
        paths(lines).iter().map(|path| path.split(':').next().unwrap().to_owned()).collect();
    modules.retain(|module| module.starts_with(char::is_lowercase));
    modules.dedup();
    modules
}

#[test]
fn imports_go_down_the_floors() {
    let floor = |module: &str| FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor);
    let mut found = BTreeMap::new();
    for file in files().iter().filter(|file| file.path.starts_with("src/")) {
        let importer = file.path["src/".len()..].split(['/', '.']).next().unwrap();
        let own = floor(importer);
        let own =
            own.unwrap_or_else(|| panic!("{}: add module {importer} to FLOORS in tests/tidy.rs", file.path));
        for module in imported(&file.production()) {
            let sideways = SIDEWAYS.contains(&(importer, module.as_str()));
            if sideways || floor(&module).is_some_and(|floor| floor > own) {
                *found.entry(format!("{} -> {module}", file.path)).or_insert(0) += 1;
            }
        }
    }
    let rule = "Imports go down the floors of docs/design.md (docs/style.md 17).";
    ratchet(rule, "UPWARD_IMPORTS", &found, UPWARD_IMPORTS);
}

/// Which modules each module of raft/ imports by `crate::`; what lib.rs re-exports is nobody's.
fn imports_of_raft() -> BTreeMap<String, BTreeSet<String>> {
    let files = files();
    let module = |file: &File| {
        let path = file.path.strip_prefix("raft/src/")?.strip_suffix(".rs")?;
        Some(path.strip_suffix("/mod").unwrap_or(path).replace('/', "::"))
    };
    let modules: BTreeMap<String, &File> =
        files.iter().filter(|file| !file.is_test).filter_map(|file| Some((module(file)?, file))).collect();
    let of = |path: &str| {
        let ends = path.match_indices("::").map(|(at, _)| at).chain([path.len()]);
        ends.map(|end| &path[..end]).filter(|path| modules.contains_key(*path)).last().map(str::to_owned)
    };
    let imports = |file: &File| paths(&file.production()).iter().filter_map(|path| of(path)).collect();
    modules.iter().map(|(module, file)| (module.clone(), imports(file))).collect()
}

/// The modules that a module imports, and those that these import, and so on.
fn reached<'a>(imports: &'a BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'a str> {
    let (mut reached, mut left) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = left.pop() {
        for next in imports[&module].iter().filter(|next| **next != module) {
            if reached.insert(next.as_str()) {
                left.push(next.clone());
            }
        }
    }
    reached
}

/// The modules that stand in a circle of imports, with the size of that circle.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, usize> {
    let reached: BTreeMap<&str, _> =
        imports.keys().map(|module| (module.as_str(), reached(imports, module))).collect();
    let size =
        |module: &str| reached[module].iter().filter(|other| reached[**other].contains(module)).count();
    let found = imports.keys().map(|module| (module.clone(), size(module)));
    found.filter(|(_, size)| *size > 0).collect()
}

#[test]
fn modules_of_raft_do_not_import_in_circles() {
    let imports = imports_of_raft();
    assert!(imports["node"].contains("node::core"), "the modules are not where this test looks for them");
    let rule = "Modules of raft/ do not import each other in a circle (docs/style.md 17).";
    ratchet(rule, "CIRCLES", &circles(&imports), CIRCLES);
}

/// Lines of production code in files whose path starts with `place` that contain one of `words`.
fn lines_with(place: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files().iter().filter(|file| file.path.starts_with(place)) {
        for (index, line) in file.text.lines().enumerate() {
            if words.iter().any(|word| code(line).contains(word)) {
                found.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn consensus_and_server_know_each_other_by_one_border() {
    let consensus = lines_with("raft/", &["kvorum::", "use kvorum;", "redis_protocol"]);
    assert!(consensus.is_empty(), "raft names nothing of the server: {consensus:#?}");
    for place in ["src/", "jepsen/", "tests/support/"] {
        let server = lines_with(place, &["openraft::", "use openraft", "sled::", "use sled"]);
        assert!(server.is_empty(), "openraft and sled are named in raft/ only: {server:#?}");
    }
    for manifest in ["Cargo.toml", "jepsen/Cargo.toml"] {
        let text = fs::read_to_string(Path::new(ROOT).join(manifest)).unwrap();
        let dependencies = text.split("\n[").filter(|section| {
            let header = section.lines().next().unwrap_or_default();
            header.contains("dependencies]") && !header.starts_with("workspace")
        });
        let named = dependencies.flat_map(str::lines).any(|line| {
            line.split(['.', ' ', '=']).next().is_some_and(|name| matches!(name, "openraft" | "sled"))
        });
        assert!(!named, "{manifest}: openraft and sled are dependencies of raft only");
    }
}

/// The names of all commands, from their rows, and the files with rows.
fn command_names() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for file in files().iter().filter(|file| file.path.starts_with("src/")) {
        for kind in ["read(", "write(", "connection("] {
            let constructor = format!("Spec::{kind}");
            let rows = file.text.split(&constructor).skip(1);
            let rows = rows.filter_map(|row| row.trim_start().strip_prefix('"')?.split('"').next());
            let before = names.len();
            names.extend(rows.map(str::to_owned));
            if names.len() > before {
                places.insert(file.path.clone());
            }
        }
    }
    assert!(names.len() > 200, "the rows are not where this test looks for them");
    (names, places)
}

#[test]
fn no_command_is_asked_for_by_its_name() {
    let (names, own) = command_names();
    let mut found = Vec::new();
    for file in files().iter().filter(|file| file.path.starts_with("src/")) {
        for line in file.production() {
            let line = code(line);
            let asks_row =
                ["spec.name ==", "spec.name !=", "match spec.name", "match row.name", "matches!(spec.name"];
            let asks = asks_row.iter().any(|text| line.contains(text)) && !line.contains("== NAME");
            let words = line.split('"').skip(1).step_by(2);
            let is_pattern = |word: &str| {
                let literal = format!("\"{word}\"");
                let after = line.split(&literal).nth(1).unwrap_or_default().trim_start();
                let before = line.split(&literal).next().unwrap_or_default().trim_end();
                let before = before.trim_end_matches('b').trim_end();
                after.starts_with("=>")
                    || after.starts_with('|')
                    || before.ends_with("==")
                    || before.ends_with('|')
            };
            let mut named = words.filter(|word| names.contains(*word));
            if asks || !own.contains(&file.path) && named.any(is_pattern) {
                found.push(format!("{}: {}", file.path, line.trim()));
            }
        }
    }
    let rule =
        "What is true of a command is in its row; only its own file may ask for its name (docs/style.md 22)";
    assert!(found.is_empty(), "{rule}: {found:#?}");
}

#[test]
fn nothing_unfinished_is_left() {
    let words = [
        concat!("to", "do!("),
        concat!("dbg", "!("),
        concat!("unimple", "mented!("),
        concat!("#[ign", "ore"),
    ];
    let found: Vec<_> = PLACES.iter().flat_map(|place| lines_with(&format!("{place}/"), &words)).collect();
    assert!(
        found.is_empty(),
        "Unfinished code, traces and skipped tests stay out (docs/style.md 23): {found:#?}"
    );
}

#[test]
fn the_readme_names_its_two_commands() {
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap_or_default();
    if readme.is_empty() {
        return;
    }
    for command in ["cargo run --release -- dev", "cargo test --workspace"] {
        assert!(readme.contains(command), "README.md does not name `{command}`");
    }
}

#[test]
fn the_rules_bite() {
    assert_eq!(
        imported(&["use crate::{", "    args::{Args, x},", "    store,", "};", "crate::router::f();"]),
        ["args", "store", "router"]
    );
    assert_eq!(
        paths(&["use crate::{", "    a::{self, b::{C, d}, E},", "    f,", "};", "crate::g::h();"]),
        ["a::self", "a::b::C", "a::b::d", "a::E", "f", "g::h"]
    );
    let imports = [("a", "b"), ("b", "c"), ("c", "b"), ("d", "d")];
    let imports = imports.map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])));
    assert_eq!(circles(&imports.into()), [("b".to_owned(), 2), ("c".to_owned(), 2)].into());
    let long = format!(
        "impl X {{\n    pub fn f(\n        a: u8,\n    ) {{\n{}    }}\n}}\n",
        "        x;\n".repeat(70)
    );
    assert_eq!(functions(&long), [("f".to_owned(), 74)]);
    let file = File {
        path: "src/x.rs".into(),
        text: "a();\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\n".into(),
        is_test: false,
    };
    assert_eq!(file.production(), ["a();"]);
}

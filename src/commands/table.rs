//! Finding the row of a call.

use std::sync::{LazyLock, OnceLock};

use super::{FAMILIES, Spec};
use crate::{
    error::{Error, Result},
    store::hash_of,
};

/// Every command with a function in a family, in the order of the families.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().flat_map(|rows| rows.iter())
}

/// The longest name in any table; longer names are unknown without a lookup.
const NAME_BYTES_MAX: usize = 32;
/// Slots of the hash table of names: many more than names, so that most are found at the first probe.
const PLACES: usize = 2048;

/// Names, in upper case, with what they stand for. Names are found in any case.
pub struct Names<T>(Vec<Option<(&'static str, T)>>);

impl<T: Copy> Names<T> {
    /// Of these names.
    pub fn new(names: impl Iterator<Item = (&'static str, T)>) -> Names<T> {
        let mut table = vec![None; PLACES];
        for (name, value) in names {
            let place = places_of(name.as_bytes()).find(|&place| table[place].is_none());
            table[place.expect("there are more places than commands")] = Some((name, value));
        }
        Names(table)
    }

    /// What a name stands for.
    pub fn get(&self, name: &[u8]) -> Option<T> {
        let mut upper = [0; NAME_BYTES_MAX];
        let upper = upper.get_mut(..name.len())?;
        upper.copy_from_slice(name);
        upper.make_ascii_uppercase();
        let mut found = places_of(upper).map_while(|place| self.0[place]);
        found.find(|(name, _)| name.as_bytes() == upper).map(|(_, value)| value)
    }
}

/// The slots where a name may be, in probing order.
fn places_of(upper: &[u8]) -> impl Iterator<Item = usize> {
    let first = hash_of(upper) as usize;
    (0..PLACES).map(move |offset| first.wrapping_add(offset) % PLACES)
}

/// The connection's commands. They never run on the state, but a call of one is no call of an unknown command.
static VERBS: OnceLock<Names<&'static Spec>> = OnceLock::new();

/// Makes the connection's commands known, once and before the first entry is applied: replies depend on it.
pub fn know_verbs(verbs: Vec<&'static Spec>) {
    VERBS.get_or_init(|| Names::new(verbs.into_iter().map(|spec| (spec.name, spec))));
}

/// The row of a command by name, ignoring case. A container's row has subcommands.
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    static NAMES: LazyLock<Names<&'static Spec>> =
        LazyLock::new(|| Names::new(all().map(|spec| (spec.name, spec))));
    NAMES.get(name).or_else(|| VERBS.get()?.get(name))
}

impl Spec {
    /// Its subcommand of this name, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Spec> {
        let is_it = |sub: &&Spec| sub.own_name().as_bytes().eq_ignore_ascii_case(name);
        self.subcommands.iter().find(is_it)
    }

    /// The name without that of its container.
    pub fn own_name(&self) -> &'static str {
        self.name.split_once('|').map_or(self.name, |(_, name)| name)
    }
}

/// The row of a call, or of its subcommand, with the arity checked; otherwise Redis's error. By the rules of an apply
/// level: what came later is unknown.
pub fn resolve(argv: &[&[u8]], level: u32) -> Result<&'static Spec> {
    let is_known = |spec: &&'static Spec| spec.level <= level;
    let spec = lookup(argv[0]).filter(is_known).ok_or_else(|| unknown_command(argv))?;
    let spec = match argv.get(1) {
        Some(name) if !spec.subcommands.is_empty() => {
            spec.subcommand(name).filter(is_known).ok_or_else(|| unknown_subcommand(spec, name))?
        }
        _ => spec,
    };
    if !spec.arity_fits_at(argv.len(), level) {
        return Err(Error::Arity(spec.name.to_ascii_lowercase().into()));
    }
    Ok(spec)
}

/// How many bytes of an unknown command Redis quotes.
const QUOTED_BYTES_MAX: usize = 128;

/// The beginning of a text, for an error message.
fn quoted(text: &[u8], max: usize) -> String {
    String::from_utf8_lossy(&text[..text.len().min(max)]).into_owned()
}

/// The error for a name that no command has.
fn unknown_command(argv: &[&[u8]]) -> Error {
    let mut arguments = String::new();
    for argument in &argv[1..] {
        if arguments.len() >= QUOTED_BYTES_MAX {
            break;
        }
        arguments += &format!("'{}' ", quoted(argument, QUOTED_BYTES_MAX - arguments.len()));
    }
    Error::err(format!(
        "unknown command '{}', with args beginning with: {arguments}",
        quoted(argv[0], QUOTED_BYTES_MAX)
    ))
}

/// The error for a name that no subcommand of a container has.
fn unknown_subcommand(container: &Spec, name: &[u8]) -> Error {
    let name = quoted(name, QUOTED_BYTES_MAX);
    Error::err(format!("unknown subcommand '{name}'. Try {} HELP.", container.name))
}

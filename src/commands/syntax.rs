//! The notation in which a row gives its command's arguments, close to that of manuals, and what COMMAND DOCS
//! says about them.
//!
//! ```text
//! key value [condition=<NX|XX>@2.6.12] [expiration=<EX seconds:integer|KEEPTTL@6.0.0>]
//! key field_value=(field value)...
//! ```
//!
//! - `name:type` is a value; a name without a type is a string, but `key` is a key.
//! - A word in capitals before a value is its token; alone it is an argument of its own (`name=TOKEN` if the
//!   name is not the word in small letters).
//! - `name=<a|b>` is one of several, `name=(a b)` a block of several in order.
//! - `[...]` may be left out, `...` may be repeated, `...*` with its token each time.
//! - `name:type#2` belongs to the third of the key specifications; otherwise the n-th key belongs to the n-th.
//! - `@` precedes the version that brought it, `~` the one that deprecated it.

/// One argument, as COMMAND DOCS describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// `key`, `string`, `integer`, `double`, `pattern`, `unix-time`, `pure-token`, `oneof` or `block`.
    pub kind: String,
    /// The word that precedes it, or that it is.
    pub token: Option<String>,
    /// Which of the command's key specifications it belongs to.
    pub key_spec: Option<usize>,
    /// The version that brought it, if it is later than the command.
    pub since: Option<String>,
    /// The version that deprecated it.
    pub deprecated_since: Option<String>,
    /// It may be left out.
    pub is_optional: bool,
    /// It may be repeated.
    pub is_multiple: bool,
    /// Its token is repeated with it.
    pub is_multiple_token: bool,
    /// What it consists of, or may be.
    pub arguments: Vec<Argument>,
}

/// The arguments of a row. An error if the notation is wrong, with the rest from there on.
pub fn parse(syntax: &str) -> Result<Vec<Argument>, String> {
    let mut parser = Parser { rest: syntax, keys: 0 };
    let arguments = parser.sequence()?;
    match parser.rest {
        "" => Ok(arguments),
        rest => Err(rest.to_owned()),
    }
}

struct Parser<'a> {
    rest: &'a str,
    /// How many keys there were.
    keys: usize,
}

/// What ends a word.
const MARKS: &[char] = &[' ', '[', ']', '<', '>', '(', ')', '|', '@', '~', '=', ':', '#'];

fn is_token(word: &str) -> bool {
    !word.contains(char::is_lowercase)
}

impl<'a> Parser<'a> {
    fn takes(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.takes(text) { Ok(()) } else { Err(self.rest.to_owned()) }
    }

    fn word(&mut self) -> Result<&'a str, String> {
        let end = self.rest.find(MARKS).unwrap_or(self.rest.len());
        let end = self.rest[..end].find("...").unwrap_or(end);
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(self.rest.to_owned());
        }
        self.rest = rest;
        Ok(word)
    }

    fn sequence(&mut self) -> Result<Vec<Argument>, String> {
        let mut arguments = Vec::new();
        while !self.rest.is_empty() && !self.rest.starts_with(['|', '>', ')', ']']) {
            arguments.push(self.argument()?);
            self.takes(" ");
        }
        Ok(arguments)
    }

    fn argument(&mut self) -> Result<Argument, String> {
        if self.takes("[") {
            let argument = Argument { is_optional: true, ..self.argument()? };
            self.expect("]")?;
            return Ok(argument);
        }
        let word = self.word()?;
        let mut argument = if self.rest.starts_with(['=', ':']) || !is_token(word) {
            self.named(word)?
        } else if self.rest.strip_prefix(' ').is_some_and(|rest| rest.starts_with(char::is_lowercase)) {
            self.expect(" ")?;
            let name = self.word()?;
            Argument { token: Some(word.to_owned()), ..self.named(name)? }
        } else {
            pure_token(word.to_ascii_lowercase(), word)
        };
        argument.is_multiple = self.takes("...");
        argument.is_multiple_token = argument.is_multiple && self.takes("*");
        argument.since = self.version("@")?;
        argument.deprecated_since = self.version("~")?;
        Ok(argument)
    }

    /// What follows a name.
    fn named(&mut self, name: &str) -> Result<Argument, String> {
        if self.takes(":") {
            // CLIENT KILL has an argument named `ip:port`.
            let kind = self.word()?;
            return Ok(match kind {
                "port" => value(&format!("{name}:{kind}"), "string", None),
                kind => value(name, kind, self.key_spec(kind)?),
            });
        }
        let (kind, close) = match () {
            () if self.takes("=<") => ("oneof", ">"),
            () if self.takes("=(") => ("block", ")"),
            () if self.takes("=") => {
                let token = self.word()?;
                return Ok(pure_token(name.to_owned(), token));
            }
            () => {
                let kind = if name == "key" { "key" } else { "string" };
                return Ok(value(name, kind, self.key_spec(kind)?));
            }
        };
        let mut arguments = self.sequence()?;
        while self.takes("|") {
            arguments.extend(self.sequence()?);
        }
        self.expect(close)?;
        Ok(Argument { name: name.to_owned(), kind: kind.to_owned(), arguments, ..Argument::default() })
    }

    /// Which key specification the value belongs to whose type was just read.
    fn key_spec(&mut self, kind: &str) -> Result<Option<usize>, String> {
        if self.takes("#") {
            return self.word()?.parse().map(Some).map_err(|_| self.rest.to_owned());
        }
        let key_spec = (kind == "key").then_some(self.keys);
        self.keys += usize::from(key_spec.is_some());
        Ok(key_spec)
    }

    fn version(&mut self, mark: &str) -> Result<Option<String>, String> {
        if self.takes(mark) { Ok(Some(self.word()?.to_owned())) } else { Ok(None) }
    }
}

fn value(name: &str, kind: &str, key_spec: Option<usize>) -> Argument {
    Argument { name: name.to_owned(), kind: kind.to_owned(), key_spec, ..Argument::default() }
}

fn pure_token(name: String, token: &str) -> Argument {
    Argument { name, kind: "pure-token".to_owned(), token: Some(token.to_owned()), ..Argument::default() }
}

impl Argument {
    /// Its flags in COMMAND DOCS.
    pub fn flags(&self) -> Vec<&'static str> {
        let flags = [
            ("optional", self.is_optional),
            ("multiple", self.is_multiple),
            ("multiple_token", self.is_multiple_token),
        ];
        flags.into_iter().filter_map(|(name, applies)| applies.then_some(name)).collect()
    }

    /// As a manual shows it: `[EX seconds | PX milliseconds]`.
    fn usage(&self) -> String {
        let parts = || self.arguments.iter().map(Argument::usage).collect::<Vec<_>>();
        let value = match self.kind.as_str() {
            "pure-token" => self.token.clone().unwrap_or_default(),
            "oneof" => parts().join("|"),
            "block" => parts().join(" "),
            _ => format!("<{}>", self.name),
        };
        let whole = match &self.token {
            Some(token) if self.kind != "pure-token" => format!("{token} {value}"),
            _ => value,
        };
        let again = match (self.is_multiple, self.kind.as_str()) {
            (false, _) => String::new(),
            // What may be chosen is not said twice.
            (true, "oneof") => " ...".to_owned(),
            (true, _) => format!(" [{whole} ...]"),
        };
        if self.is_optional { format!("[{whole}{again}]") } else { whole + &again }
    }
}

/// How many words a call has at least for its arguments.
pub fn least(arguments: &[Argument]) -> usize {
    let needed = arguments.iter().filter(|argument| !argument.is_optional);
    let of_one = |argument: &Argument| {
        let token = usize::from(argument.token.is_some() && argument.kind != "pure-token");
        let each = argument.arguments.iter().map(|part| least(std::slice::from_ref(part)));
        token
            + match argument.kind.as_str() {
                "oneof" => each.min().unwrap_or(0),
                "block" => each.sum(),
                _ => 1,
            }
    };
    needed.map(of_one).sum()
}

/// A command's arguments as a manual shows them.
pub fn usage(syntax: &str) -> String {
    let arguments = parse(syntax).unwrap_or_default();
    arguments.iter().map(Argument::usage).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Argument, parse, usage};

    #[test]
    fn the_notation_says_what_the_manual_says() {
        for (syntax, expected) in [
            ("", ""),
            ("key value", "<key> <value>"),
            ("key...", "<key> [<key> ...]"),
            ("[section...]", "[<section> [<section> ...]]"),
            ("key [expiration=<EX seconds:integer@2.6.12|KEEPTTL@6.0.0>]", "<key> [EX <seconds>|KEEPTTL]"),
            ("key [LIMIT offset_count=(offset:integer count:integer)]", "<key> [LIMIT <offset> <count>]"),
            ("field_value=(field value)...", "<field> <value> [<field> <value> ...]"),
            ("[change=CH@3.0.2]", "[CH]"),
            ("[ADDR ip:port]", "[ADDR <ip:port>]"),
        ] {
            assert_eq!(usage(syntax), expected, "{syntax}");
        }
    }

    #[test]
    fn keys_are_numbered_and_versions_kept() {
        let arguments = parse("source:key destination:key [GET@6.2.0] [BY pattern...*~7.0.0]").unwrap();
        let specs: Vec<_> = arguments.iter().map(|argument| argument.key_spec).collect();
        assert_eq!(specs, [Some(0), Some(1), None, None]);
        assert_eq!(arguments[2].since.as_deref(), Some("6.2.0"));
        assert_eq!(arguments[2].flags(), ["optional"]);
        assert_eq!(
            arguments[3],
            Argument {
                name: "pattern".into(),
                kind: "string".into(),
                token: Some("BY".into()),
                deprecated_since: Some("7.0.0".into()),
                is_optional: true,
                is_multiple: true,
                is_multiple_token: true,
                ..Argument::default()
            }
        );
    }

    #[test]
    fn what_is_wrong_is_shown_from_there_on() {
        for (syntax, rest) in [("key [GET", ""), ("a=<b", ""), ("a]", "]"), ("a: b", " b")] {
            assert_eq!(parse(syntax), Err(rest.to_owned()), "{syntax}");
        }
    }
}

//! Commands that may wait: where a call says for how long, what it waits for, and what it replies when the time is
//! over.

use crate::{
    args::{Args, parse_float, parse_integer},
    error::{Error, Result},
    resp::Reply,
};

/// Where a command that blocks is told for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// It does not block.
    None,
    /// Milliseconds, behind this word among the options from an argument on; without it nothing blocks.
    OptionMs {
        /// The word.
        word: &'static str,
        /// The first option.
        from: usize,
        /// Options that are a single word; all others have one argument.
        single: &'static [&'static str],
    },
    /// Milliseconds at an argument, 0 for ever.
    ArgumentMs(usize),
    /// Seconds with a fraction at an argument, 0 for ever.
    Seconds(usize),
    /// The same at the last argument.
    LastSeconds,
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It is granted what it asks for; who waits is told by what it waits for.
    Granted,
    /// One of the keys that it reads holds a value of this type, in which there is something for it.
    Holds(&'static str),
}

/// What there is to know of a command on the state that may wait.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// What its calls wait for.
    pub until: Until,
    /// Replies when the time is over.
    pub at_timeout: fn(&mut Reply),
}

/// How long a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// At most this many milliseconds.
    Ms(u64),
    /// As long as its client is there.
    Forever,
}

impl Timeout {
    /// How long a call waits, if it does. One whose timeout is invalid is refused when it runs.
    pub fn patience(self, args: &Args<'_>) -> Option<Patience> {
        let ms_or_forever = |ms: u64| if ms == 0 { Patience::Forever } else { Patience::Ms(ms) };
        match self {
            Timeout::None => None,
            Timeout::OptionMs { word, .. } => {
                let ms = self.option(args, word).filter(|ms| *ms != b"0")?;
                Some(Patience::Ms(milliseconds(ms).unwrap_or(0)))
            }
            Timeout::ArgumentMs(at) => milliseconds(args.get(at)?).map(ms_or_forever),
            Timeout::Seconds(_) | Timeout::LastSeconds => self.seconds(args).ok().map(ms_or_forever),
        }
    }

    /// The seconds of a call, in milliseconds; or Redis's error.
    pub fn seconds(self, args: &Args<'_>) -> Result<u64> {
        let at = match self {
            Timeout::Seconds(at) => at,
            _ => args.len() - 1,
        };
        let seconds = args.get(at).and_then(parse_float);
        let ms = seconds.ok_or(Error::err("timeout is not a float or out of range"))? * 1000.0;
        match () {
            () if ms >= MS_MAX => Err(Error::err("timeout is out of range")),
            () if ms.ceil() < 0.0 => Err(Error::err("timeout is negative")),
            () => Ok(ms.ceil() as u64),
        }
    }

    /// The argument of an option of the call; empty if it is missing.
    pub fn option<'a>(self, args: &Args<'a>, word: &str) -> Option<&'a [u8]> {
        let Timeout::OptionMs { from, single, .. } = self else { return None };
        let mut at = from;
        while at < args.len() {
            if args.is(at, word) {
                return args.get(at + 1).or(Some(b""));
            }
            at += if single.iter().any(|word| args.is(at, word)) { 1 } else { 2 };
        }
        None
    }
}

/// The longest timeout in milliseconds that Redis accepts, about: 300 million years.
const MS_MAX: f64 = i64::MAX as f64;

fn milliseconds(text: &[u8]) -> Option<u64> {
    parse_integer(text).and_then(|ms| u64::try_from(ms).ok())
}

#[cfg(test)]
mod tests {
    use super::{Patience, Timeout};
    use crate::args::Args;

    fn argv(line: &str) -> Vec<&[u8]> {
        line.split(' ').map(str::as_bytes).collect()
    }

    #[test]
    fn a_timeout_is_found_where_the_row_says() {
        let option = Timeout::OptionMs { word: "WAIT", from: 3, single: &["SHARED"] };
        for (timeout, line, expected) in [
            (option, "L k o PX 10", None),
            (option, "L k WAIT PX 10", None),
            (option, "L k o SHARED WAIT 5", Some(Patience::Ms(5))),
            (option, "L k o PX 10 WAIT 0", None),
            (option, "L k o PX 10 WAIT", Some(Patience::Ms(0))),
            (Timeout::LastSeconds, "B k k2 0", Some(Patience::Forever)),
            (Timeout::LastSeconds, "B k 0.0001", Some(Patience::Ms(1))),
            (Timeout::LastSeconds, "B k -1", None),
            (Timeout::Seconds(1), "B 2.5 1 k LEFT", Some(Patience::Ms(2_500))),
            (Timeout::Seconds(1), "B x 1 k LEFT", None),
            (Timeout::ArgumentMs(2), "W 1 0", Some(Patience::Forever)),
            (Timeout::None, "GET k", None),
        ] {
            assert_eq!(timeout.patience(&Args::new(&argv(line))), expected, "{line}");
        }
    }

    #[test]
    fn invalid_seconds_are_refused_as_redis_refuses_them() {
        for (text, error) in [
            ("x", "ERR timeout is not a float or out of range"),
            ("nan", "ERR timeout is not a float or out of range"),
            ("-0.002", "ERR timeout is negative"),
            ("-inf", "ERR timeout is negative"),
            ("1e30", "ERR timeout is out of range"),
            ("inf", "ERR timeout is out of range"),
        ] {
            let result = Timeout::LastSeconds.seconds(&Args::new(&argv(&format!("BLPOP k {text}"))));
            assert_eq!(result.unwrap_err().to_string(), error, "{text}");
        }
    }
}

//! The arguments of a command, and how Redis reads numbers and options from them.

use crate::error::{Error, Result};

/// A command's arguments, the name first.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    argv: &'a [&'a [u8]],
}

impl<'a> Args<'a> {
    /// `argv[0]` is the command's name.
    pub fn new(argv: &'a [&'a [u8]]) -> Args<'a> {
        Args { argv }
    }

    /// The number of arguments, the name included, as Redis counts an arity.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.argv.len()
    }

    /// The argument at `index`. Panics past the end: call it only for what the arity check guarantees.
    pub fn at(&self, index: usize) -> &'a [u8] {
        self.argv[index]
    }

    /// The argument at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.argv.get(index).copied()
    }

    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> &'a [&'a [u8]] {
        self.argv.get(index..).unwrap_or(&[])
    }

    /// The argument at `index` as an integer.
    pub fn integer(&self, index: usize) -> Result<i64> {
        parse_integer(self.at(index)).ok_or(Error::NotInteger)
    }

    /// The argument at `index` as a number of at least 1; `what` names it in the error.
    pub fn positive(&self, index: usize, what: &str) -> Result<usize> {
        let number = parse_integer(self.at(index)).and_then(|number| usize::try_from(number).ok());
        number
            .filter(|&number| number > 0)
            .ok_or_else(|| Error::err(format!("{what} should be greater than 0")))
    }

    /// The argument at `index` as a floating-point number.
    pub fn float(&self, index: usize) -> Result<f64> {
        parse_float(self.at(index)).ok_or(Error::NotFloat)
    }

    /// Whether the argument at `index` is this word, in any case. False past the end.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).is_some_and(|argument| argument.eq_ignore_ascii_case(word.as_bytes()))
    }
}

/// Redis's `string2ll`: decimal, no sign but `-`, no leading zeros or spaces, within i64.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] => return (!negative).then_some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// A float as Redis's `string2d` reads it: `inf` and `infinity` are accepted; NaN, spaces and values out of
/// range are not. Hexadecimal is accepted for integers only.
pub fn parse_float(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(digits) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        let is_hexadecimal = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let value = is_hexadecimal.then(|| u64::from_str_radix(digits, 16).ok())?? as f64;
        return Some(if text.starts_with('-') { -value } else { value });
    }
    let value = text.parse::<f64>().ok().filter(|value| !value.is_nan())?;
    let is_word = unsigned.starts_with(['i', 'I']);
    let mantissa = unsigned.split(['e', 'E']).next()?;
    let is_out_of_range = (value.is_infinite() && !is_word)
        || (value == 0.0 && mantissa.bytes().any(|digit| matches!(digit, b'1'..=b'9')));
    (!is_out_of_range).then_some(value)
}

/// Significant digits of a float in replies.
const DOUBLE_DIGITS: i32 = 17;

/// A float as Redis 7.0 writes it in replies: C's `%.17g`.
pub fn format_double(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if value == value.trunc() && value.abs() < 1e17 && (value != 0.0 || value.is_sign_positive()) {
        return itoa::Buffer::new().format(value as i64).to_owned();
    }
    // Like C's, Rust's exponent form is exact and rounds to nearest.
    let text = format!("{:.*e}", DOUBLE_DIGITS as usize - 1, value);
    let (digits, exponent) = text.split_once('e').expect("the exponent form has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is an integer");
    if !(-4..DOUBLE_DIGITS).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = format!("{:.*}", (DOUBLE_DIGITS - 1 - exponent) as usize, value);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{format_double, parse_float, parse_integer};

    /// The texts were recorded from redis-server 7.0.15.
    #[test]
    fn doubles_are_written_as_redis_writes_them() {
        for (value, text) in [
            (0.1, "0.10000000000000001"),
            (1e17, "1e+17"),
            (1e16, "10000000000000000"),
            (123456789012345678.0, "1.2345678901234568e+17"),
            (1e-5, "1.0000000000000001e-05"),
            (0.0001, "0.0001"),
            (1.5e300, "1.5000000000000001e+300"),
            (7.14159265358979, "7.1415926535897896"),
            (17179869184.5, "17179869184.5"),
            (-0.0, "-0"),
            (-2.5, "-2.5"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(format_double(value), text);
        }
    }

    #[test]
    fn floats_are_read_as_redis_reads_them() {
        for (text, value) in [
            ("0x1f", 31.0),
            ("infinity", f64::INFINITY),
            (".5", 0.5),
            ("5.", 5.0),
            ("+5", 5.0),
            ("-0x10", -16.0),
        ] {
            assert_eq!(parse_float(text.as_bytes()), Some(value), "{text}");
        }
        for text in ["", " 1", "1 ", "nan", "1e400", "1e-400", "abc", "0x"] {
            assert_eq!(parse_float(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn integers_are_read_as_redis_reads_them() {
        for (text, value) in [("0", 0), ("-9223372036854775808", i64::MIN), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(parse_integer(text.as_bytes()), Some(value));
        }
        for text in ["", "-", "-0", "01", "+1", " 1", "9223372036854775808", "-9223372036854775809", "1a"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text}");
        }
    }
}

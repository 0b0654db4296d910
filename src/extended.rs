//! 80-bit floating-point numbers, like the `long double` of x86-64, with which Redis computes INCRBYFLOAT and
//! HINCRBYFLOAT. So 0.1 + 0.2 is 0.3 here, digit for digit what Redis replies.
//!
//! Not the whole type: no infinities, no NaN, no subnormal numbers (they print as 0 anyway), no hexadecimal
//! text. Integer arithmetic only, so every node computes the same result on any processor.

mod big;
#[cfg(test)]
mod by_the_book;
mod scaled;

use std::cmp::Ordering;

use big::Big;
use scaled::Scaled;

/// The largest exponent of 2 that the leading bit can have.
const EXPONENT_MAX: i32 = 16_383;
/// Digits printed after the decimal point, at most.
const FRACTION_DIGITS: usize = 17;
/// Longer texts are refused, as Redis does. The longest that `format` writes has 4,934 bytes.
const TEXT_BYTES_MAX: usize = 5_119;
/// The highest power of ten of a number's leading digit, with some room.
const DECIMAL_EXPONENT_MAX: i32 = 5_000;

/// Half of the last bit kept, when 128 bits are rounded to a mantissa of 64.
const HALF: u64 = 1 << 63;

/// A number.
///
/// Invariant: the top bit of `mantissa` is set, or the number is 0 and `mantissa` is 0. The value is
/// `mantissa * 2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    is_negative: bool,
    mantissa: u64,
    exponent: i32,
}

impl Extended {
    /// Zero.
    pub const ZERO: Extended = Extended { is_negative: false, mantissa: 0, exponent: 0 };
    /// The largest.
    pub const MAX: Extended =
        Extended { is_negative: false, mantissa: u64::MAX, exponent: EXPONENT_MAX - 63 };
    /// The lowest.
    pub const MIN: Extended = Extended { is_negative: true, ..Extended::MAX };

    /// Reads decimal text as `strtold` does, rounding to the nearest. None for what Redis refuses: anything
    /// else, spaces, and what is out of range.
    pub fn parse(text: &[u8]) -> Option<Extended> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if let [b'0', b'x' | b'X', hexadecimal @ ..] = text {
            let number = std::str::from_utf8(hexadecimal).ok().filter(|digits| !digits.starts_with('+'));
            let number = u64::from_str_radix(number?, 16).ok()?;
            let number = Extended::parse(itoa::Buffer::new().format(number).as_bytes())?;
            return Some(Extended { is_negative, ..number });
        }
        let (digits, mut exponent) = split_decimal(text)?;
        let zeros = digits.iter().take_while(|&&digit| digit == 0).count();
        let mut digits = &digits[zeros..];
        if digits.is_empty() {
            return Some(Extended { is_negative, ..Extended::ZERO });
        }
        if (digits.len() as i32 + exponent).abs() > DECIMAL_EXPONENT_MAX {
            return None;
        }
        while let [rest @ .., 0] = digits {
            (digits, exponent) = (rest, exponent + 1);
        }
        let kept = &digits[..digits.len().min(scaled::DIGITS)];
        let value = kept.iter().fold(0, |value, &digit| value * 10 + u128::from(digit));
        let near = Scaled::of(value).times_power_of_ten(exponent + (digits.len() - kept.len()) as i32);
        let (mantissa, exponent_2) = ((near.mantissa >> 64) as u64, near.exponent + 64);
        let mut lost = (near.mantissa as u64).cmp(&HALF);
        if (near.mantissa as u64).abs_diff(HALF) <= scaled::ERROR_MAX {
            lost = compare_with_half(digits, exponent, mantissa, exponent_2);
        }
        Extended::normal(is_negative, round(mantissa, lost, false), exponent_2)
    }

    /// Normalizes a rounded mantissa, which may have carried into a 65th bit. None if out of range.
    fn normal(is_negative: bool, mantissa: Rounded, exponent: i32) -> Option<Extended> {
        let (mantissa, exponent) = match mantissa {
            Rounded::Bits(mantissa) => (mantissa, exponent),
            Rounded::Carried => (1 << 63, exponent + 1),
        };
        match exponent + 63 {
            leading if !(-EXPONENT_MAX..=EXPONENT_MAX).contains(&leading) => None,
            _ => Some(Extended { is_negative, mantissa, exponent }),
        }
    }

    /// The sum, rounded to the nearest. None if out of range.
    pub fn checked_add(self, other: Extended) -> Option<Extended> {
        if self.mantissa == 0 || other.mantissa == 0 {
            return Some(if self.mantissa == 0 { other } else { self });
        }
        let (high, low) = if self.exponent >= other.exponent { (self, other) } else { (other, self) };
        // 62 spare bits below the mantissas; anything lower is reduced to "not zero" (sticky).
        let distance = (high.exponent - low.exponent) as u32;
        let a = u128::from(high.mantissa) << 62;
        let low_bits = u128::from(low.mantissa) << 62;
        let (b, sticky) = match low_bits.checked_shr(distance) {
            Some(bits) => (bits, bits << distance != low_bits),
            None => (0, true),
        };
        let exponent = high.exponent - 62;
        let (is_negative, sum) = match (high.is_negative == low.is_negative, a.cmp(&b)) {
            (true, _) => (high.is_negative, a + b),
            (false, Ordering::Equal) if !sticky => return Some(Extended::ZERO),
            // What was cut off is subtracted too: one less, and the remainder is nonzero.
            (false, Ordering::Greater) => (high.is_negative, a - b - u128::from(sticky)),
            (false, _) => (low.is_negative, b - a),
        };
        let extra = u128::BITS - sum.leading_zeros();
        let shift = extra as i32 - 64;
        if shift <= 0 {
            return Extended::normal(is_negative, Rounded::Bits((sum as u64) << -shift), exponent + shift);
        }
        let lost = sum & ((1 << shift) - 1);
        let mantissa = round((sum >> shift) as u64, lost.cmp(&(1 << (shift - 1))), sticky);
        Extended::normal(is_negative, mantissa, exponent + shift)
    }

    /// The sum, and whether it overflowed: then it is the largest number of its sign. A sum too small to be
    /// represented is 0.
    pub fn saturating_add(self, other: Extended) -> (Extended, bool) {
        match self.checked_add(other) {
            Some(sum) => (sum, false),
            // Only the sum of numbers of the same sign can overflow.
            None if self.is_negative != other.is_negative => (Extended::ZERO, false),
            None => (if self.is_negative { Extended::MIN } else { Extended::MAX }, true),
        }
    }

    /// The same number with the other sign.
    pub fn negated(self) -> Extended {
        Extended { is_negative: !self.is_negative, ..self }
    }

    /// The order of two numbers. Both zeros compare equal, which `==` does not say.
    pub fn compare(self, other: Extended) -> Ordering {
        let sign = |number: Extended| match (number.mantissa, number.is_negative) {
            (0, _) => 0,
            (_, true) => -1,
            (_, false) => 1,
        };
        let magnitudes = || (self.exponent, self.mantissa).cmp(&(other.exponent, other.mantissa));
        sign(self).cmp(&sign(other)).then_with(|| match sign(self) {
            0 => Ordering::Equal,
            1 => magnitudes(),
            _ => magnitudes().reverse(),
        })
    }

    /// As Redis prints it for people: up to 17 digits after the point, no zeros at the end, no exponent.
    pub fn format(self) -> String {
        let mut digits = if self.exponent >= 0 {
            big::digits_of(self.mantissa, self.exponent as u32) + &"0".repeat(FRACTION_DIGITS)
        } else {
            // In units of the last printed digit, rounded half to even.
            let scaled = u128::from(self.mantissa) * 10u128.pow(FRACTION_DIGITS as u32);
            let shift = -self.exponent as u32;
            let whole = scaled.checked_shr(shift).unwrap_or(0);
            let lost = scaled - whole.checked_shl(shift).unwrap_or(0);
            let up = match 1u128.checked_shl(shift - 1) {
                Some(half) => lost > half || (lost == half && whole % 2 == 1),
                None => false,
            };
            format!("{:0>width$}", whole + u128::from(up), width = FRACTION_DIGITS + 1)
        };
        digits.insert(digits.len() - FRACTION_DIGITS, '.');
        let trimmed = digits.trim_end_matches('0').trim_end_matches('.');
        let sign = if self.is_negative && trimmed != "0" { "-" } else { "" };
        format!("{sign}{trimmed}")
    }
}

/// Compares the decimal number `digits * 10^exponent` with the midpoint between a mantissa and the next.
fn compare_with_half(digits: &[u8], exponent: i32, mantissa: u64, exponent_2: i32) -> Ordering {
    let mut number = Big::from_digits(digits);
    let mut middle = Big::of(u128::from(mantissa) * 2 + 1);
    let fives = exponent.unsigned_abs();
    if exponent < 0 {
        middle.multiply_by_power_of_five(fives);
    } else {
        number.multiply_by_power_of_five(fives);
    }
    let distance = exponent - (exponent_2 - 1);
    if distance < 0 {
        middle.shift_left(distance.unsigned_abs());
    } else {
        number.shift_left(distance.unsigned_abs());
    }
    number.compare(&middle)
}

/// Splits a decimal number into its digits without the point, and the power of ten of the last digit.
fn split_decimal(text: &[u8]) -> Option<(Vec<u8>, i32)> {
    let end = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let (number, mut exponent) = match end {
        None => (text, 0),
        Some(end) => (&text[..end], parse_exponent(&text[end + 1..])?),
    };
    let mut digits = Vec::with_capacity(number.len());
    let mut point = None;
    for &byte in number {
        match byte {
            b'0'..=b'9' => digits.push(byte - b'0'),
            b'.' if point.is_none() => point = Some(digits.len()),
            _ => return None,
        }
    }
    if digits.is_empty() {
        return None;
    }
    exponent -= point.map_or(0, |point| digits.len() - point) as i32;
    Some((digits, exponent))
}

fn parse_exponent(text: &[u8]) -> Option<i32> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value =
        digits.iter().fold(0i32, |value, digit| (value * 10 + i32::from(digit - b'0')).min(1_000_000));
    Some(sign * value)
}

/// A mantissa after rounding.
enum Rounded {
    Bits(u64),
    /// All bits were set, and rounding up carried out of the top.
    Carried,
}

/// Rounds half to even. `lost` is what was cut off compared with half of the last bit; `sticky` says that
/// more nonzero digits follow.
fn round(mantissa: u64, lost: Ordering, sticky: bool) -> Rounded {
    let up = match lost {
        Ordering::Less => false,
        Ordering::Equal => sticky || mantissa & 1 == 1,
        Ordering::Greater => true,
    };
    match mantissa.checked_add(u64::from(up)) {
        Some(mantissa) => Rounded::Bits(mantissa),
        None => Rounded::Carried,
    }
}

#[cfg(test)]
mod tests {
    use super::Extended;

    fn add(a: &str, b: &str) -> String {
        let [a, b] = [a, b].map(|text| Extended::parse(text.as_bytes()).unwrap());
        a.checked_add(b).unwrap().format()
    }

    /// The sums were recorded from redis-server 7.0.15.
    #[test]
    fn sums_are_those_of_redis() {
        let large = "99999999999999999996685879655845645660560099847415567207797047994921734868838061872100126921888539320446747225054013223152134749593960583597420814430196418767959100019603190778663109604507106667939153395788938914560543563061268364901618630217086589253444881623791300855757318142424510452728255046343928578048";
        for (a, b, sum) in [
            ("0.1", "0.2", "0.3"),
            ("3.0e3", "200", "3200"),
            ("10.5", "0.1", "10.6"),
            ("0", "1e20", "100000000000000000000"),
            ("0", "1.23456789012345678901", "1.23456789012345679"),
            ("0", "1e-10", "0.0000000001"),
            ("0", "1e308", large),
            ("0", "123456789.123", "123456789.12299999999959255"),
            ("0", "-0.0", "0"),
            ("0", "1e-20", "0"),
            ("0", "5e-324", "0"),
            ("1", "-1", "0"),
            ("1", "-3.5", "-2.5"),
        ] {
            assert_eq!(add(a, b), sum, "{a} + {b}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "abc", " 1", "1 ", "1e", ".", "--1", "1e5000", "1.2.3", "1e-5000", "inf", "nan"] {
            assert_eq!(Extended::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_largest_number_is_read_as_it_is_written() {
        for number in [Extended::MAX, Extended::MIN] {
            let text = number.format();
            assert_eq!(Extended::parse(text.as_bytes()), Some(number));
            assert_eq!(number.checked_add(number), None);
            assert_eq!(number.saturating_add(number), (number, true));
            assert_eq!(number.saturating_add(number.negated()), (Extended::ZERO, false));
        }
    }

    #[test]
    fn numbers_are_in_order() {
        let texts = ["-1e4932", "-20", "-3", "-1e-7", "0", "1e-20", "0.5", "0.75", "1", "3", "1e20"];
        let numbers = texts.map(|text| Extended::parse(text.as_bytes()).unwrap());
        for (at, a) in numbers.iter().enumerate() {
            for (other, b) in numbers.iter().enumerate() {
                assert_eq!(a.compare(*b), at.cmp(&other), "{} and {}", texts[at], texts[other]);
            }
        }
        assert!(Extended::ZERO.compare(Extended::ZERO.negated()).is_eq());
    }
}

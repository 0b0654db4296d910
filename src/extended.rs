//! Floating-point numbers of 80 bits, as the `long double` of x86-64: what INCRBYFLOAT and HINCRBYFLOAT compute
//! with in Redis. So 0.1 + 0.2 is 0.3 here, digit for digit what Redis replies.
//!
//! Not the whole type: no infinities, no NaN, no subnormal numbers (they print as 0 anyway), no hexadecimal
//! text. Integer arithmetic only, so every node computes the same on any processor.

use std::cmp::Ordering;

/// The highest exponent of 2 of the leading bit.
const EXPONENT_MAX: i32 = 16_383;
/// Digits after the point that are printed.
const FRACTION_DIGITS: usize = 17;
/// Longer texts are refused, as Redis does. The longest that `format` writes has 4,934 bytes.
const TEXT_BYTES_MAX: usize = 5_119;
/// The highest power of ten of a number's leading digit, with some room.
const DECIMAL_EXPONENT_MAX: i32 = 5_000;

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
        let (digits, exponent) = split_decimal(text)?;
        let (mut big, mut exponent_2, mut sticky) = (Big::from_digits(&digits), 0, false);
        if big.is_zero() {
            return Some(Extended { is_negative, ..Extended::ZERO });
        }
        let significant = digits.iter().skip_while(|&&digit| digit == 0).count() as i32;
        if (significant + exponent).abs() > DECIMAL_EXPONENT_MAX {
            return None;
        }
        if exponent >= 0 {
            powers_of_ten(exponent).for_each(|power| big.multiply_add(power, 0));
        } else {
            // Bits enough that 64 are left when all is divided, and what is lost only matters as "not zero".
            let shift = (-exponent as u32 * 10 / 3 + 80).next_multiple_of(32);
            big.shift_left(shift);
            exponent_2 = -(shift as i32);
            powers_of_ten(-exponent).for_each(|power| sticky |= big.divide(power) != 0);
        }
        let (mantissa, shift) = big.top_bits(sticky);
        Extended::normal(is_negative, mantissa, exponent_2 + shift)
    }

    /// Of a mantissa of 64 bits or, after rounding up, of one that lost its top bit. None if out of range.
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
        // 62 bits of room below, and the rest as "not zero".
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
            // What was cut off is taken away as well: one less, and then something.
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

    /// The sum, and whether it is too large: then it is the largest number of its sign. One that is too small to
    /// be held is 0.
    pub fn saturating_add(self, other: Extended) -> (Extended, bool) {
        match self.checked_add(other) {
            Some(sum) => (sum, false),
            // Only numbers of one sign grow.
            None if self.is_negative != other.is_negative => (Extended::ZERO, false),
            None => (if self.is_negative { Extended::MIN } else { Extended::MAX }, true),
        }
    }

    /// The same number with the other sign.
    pub fn negated(self) -> Extended {
        Extended { is_negative: !self.is_negative, ..self }
    }

    /// How two numbers compare. Both zeros are the same, which `==` does not say.
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
            let mut big = Big::from_u64(self.mantissa);
            big.shift_left(self.exponent as u32);
            big.into_decimal() + &"0".repeat(FRACTION_DIGITS)
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

/// Factors whose product is this power of ten.
fn powers_of_ten(exponent: i32) -> impl Iterator<Item = u32> {
    let rest = 10u32.pow(exponent as u32 % 9);
    std::iter::repeat_n(1_000_000_000, exponent as usize / 9).chain([rest])
}

/// The digits of a decimal number without its point, and the power of ten of the last one.
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
    /// All bits were set and one came on top.
    Carried,
}

/// Rounds half to even. `lost` compares what was cut off with half of the last bit; `sticky`: there is more.
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

/// An integer of any size; 32 bits a limb, the lowest first, no zeros on top.
struct Big(Vec<u32>);

impl Big {
    fn from_u64(value: u64) -> Big {
        let mut big = Big(vec![value as u32, (value >> 32) as u32]);
        big.trim();
        big
    }

    fn from_digits(digits: &[u8]) -> Big {
        let mut big = Big(Vec::new());
        // As many digits at a time as fit into a limb.
        for part in digits.chunks(9) {
            let value = part.iter().fold(0, |value, &digit| value * 10 + u32::from(digit));
            big.multiply_add(10u32.pow(part.len() as u32), value);
        }
        big
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn multiply_add(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for limb in &mut self.0 {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    /// Divides; gives the remainder.
    fn divide(&mut self, divisor: u32) -> u32 {
        let mut rest = 0;
        for limb in self.0.iter_mut().rev() {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / u64::from(divisor)) as u32;
            rest = value % u64::from(divisor);
        }
        self.trim();
        rest as u32
    }

    fn shift_left(&mut self, bits: u32) {
        if self.is_zero() {
            return;
        }
        let part = bits % 32;
        if part > 0 {
            self.multiply_add(1 << part, 0);
        }
        self.0.splice(0..0, (0..bits / 32).map(|_| 0));
    }

    /// The highest 64 bits, rounded, and how far they were shifted down. Not for zero.
    fn top_bits(&self, sticky: bool) -> (Rounded, i32) {
        let limb = |index: usize| self.0.len().checked_sub(1 + index).map_or(0, |index| self.0[index]);
        let top = (0..4).fold(0u128, |bits, index| bits << 32 | u128::from(limb(index)));
        let zeros = top.leading_zeros();
        let top = top << zeros;
        let below = self.0.len().saturating_sub(4);
        let sticky = sticky || self.0[..below].iter().any(|&limb| limb != 0);
        let lost = (top as u64).cmp(&(1 << 63));
        let shift = self.0.len() as i32 * 32 - zeros as i32 - 64;
        (round((top >> 64) as u64, lost, sticky), shift)
    }

    fn into_decimal(mut self) -> String {
        let mut parts = Vec::new();
        while !self.is_zero() {
            parts.push(self.divide(1_000_000_000));
        }
        let mut parts = parts.iter().rev();
        let mut out = parts.next().map_or("0".into(), u32::to_string);
        parts.for_each(|part| out += &format!("{part:09}"));
        out
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

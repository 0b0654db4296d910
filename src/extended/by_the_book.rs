//! Parsing and formatting by long arithmetic alone, a digit group at a time: slow, simple, and the reference
//! that the fast versions must agree with, near every tie.

use super::{DECIMAL_EXPONENT_MAX, Extended, Rounded, round, split_decimal};

fn parse(text: &str) -> Option<Extended> {
    let (is_negative, text) = (text.starts_with('-'), text.trim_start_matches('-'));
    let (digits, exponent) = split_decimal(text.as_bytes())?;
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
        // Enough bits that 64 are left after all divisions, and what is lost matters only as "not zero".
        let shift = (-exponent as u32 * 10 / 3 + 80).next_multiple_of(32);
        big.shift_left(shift);
        exponent_2 = -(shift as i32);
        powers_of_ten(-exponent).for_each(|power| sticky |= big.divide(power) != 0);
    }
    let (mantissa, shift) = big.top_bits(sticky);
    Extended::normal(is_negative, mantissa, exponent_2 + shift)
}

/// For numbers without a fraction.
fn format(number: Extended) -> String {
    let mut big = Big::from_u64(number.mantissa);
    big.shift_left(number.exponent as u32);
    big.into_decimal()
}

/// The decimal text of the midpoint between this number and the next larger one, or of a number just above or
/// below it.
fn near_the_middle(number: Extended, chance: &mut fastrand::Rng) -> String {
    let (mut digits, exponent) = if number.exponent > 0 {
        let mut big = Big::from_u64(number.mantissa);
        big.multiply_add(2, 1);
        big.shift_left(number.exponent as u32 - 1);
        (big.into_decimal(), 0)
    } else {
        // One half is five tenths.
        let fives = 1 - number.exponent;
        let mut big = Big::from_u64(number.mantissa);
        big.multiply_add(2, 1);
        (0..fives).for_each(|_| big.multiply_add(5, 0));
        (big.into_decimal(), -fives)
    };
    match chance.u8(..4) {
        0 => {
            let zeros = chance.usize(..9);
            digits.push_str(&"0".repeat(zeros));
            digits.push('1');
            return format!("{digits}e{}", exponent - 1 - zeros as i32);
        }
        1 => {
            // The last digit of a midpoint is never 0 if it has a fraction.
            let last = digits.pop().unwrap();
            digits.push((last as u8).saturating_sub(1).max(b'0') as char);
        }
        2 => digits.truncate(digits.len().max(2) - 1),
        _ => {}
    }
    format!("{digits}e{exponent}")
}

fn any(chance: &mut fastrand::Rng, exponent_max: i32) -> Extended {
    let mantissa = match chance.u8(..4) {
        0 => 1 << 63,
        1 => u64::MAX - chance.u64(..3),
        _ => chance.u64(..) | 1 << 63,
    };
    Extended { is_negative: false, mantissa, exponent: chance.i32(-exponent_max..exponent_max) }
}

#[test]
fn reading_agrees() {
    let mut chance = fastrand::Rng::with_seed(1);
    for number in 0..600 {
        let exponent_max = [70, 300, 3_000][number % 3];
        let any = any(&mut chance, exponent_max);
        let text = match chance.u8(..3) {
            0 => {
                let digits: String = (0..chance.usize(1..60)).map(|_| chance.digit(10)).collect();
                format!("{digits}e{}", chance.i32(-5_100..5_100))
            }
            _ => near_the_middle(any, &mut chance),
        };
        assert_eq!(Extended::parse(text.as_bytes()), parse(&text), "{text}");
    }
}

#[test]
fn writing_agrees() {
    let mut chance = fastrand::Rng::with_seed(2);
    for _ in 0..300 {
        let number = Extended { exponent: chance.i32(0..16_320), ..any(&mut chance, 1) };
        assert_eq!(number.format(), format(number));
    }
}

/// Factors whose product is this power of ten.
fn powers_of_ten(exponent: i32) -> impl Iterator<Item = u32> {
    let rest = 10u32.pow(exponent as u32 % 9);
    std::iter::repeat_n(1_000_000_000, exponent as usize / 9).chain([rest])
}

/// An integer in limbs of 32 bits, the lowest first, without leading zeros.
struct Big(Vec<u32>);

impl Big {
    fn from_u64(value: u64) -> Big {
        let mut big = Big(vec![value as u32, (value >> 32) as u32]);
        big.trim();
        big
    }

    fn from_digits(digits: &[u8]) -> Big {
        let mut big = Big(Vec::new());
        // As many digits at a time as fit a limb.
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

    /// Divides; returns the remainder.
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

    /// The highest 64 bits, rounded, and by how much they were shifted down. Not for zero.
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

//! Integers of any size, as far as long decimal numbers need them: an exact comparison when the approximation
//! of `scaled.rs` cannot decide the rounding, and the digits of large numbers. Both take quadratic time in
//! the length, over limbs of 64 bits and of nine digits: some tens of microseconds for the longest possible
//! number.

use std::{cmp::Ordering, sync::LazyLock};

/// The highest power of five that fits a limb.
const FIVES: u32 = 27;
/// Decimal digits that fit a binary limb.
const DIGITS: usize = 19;

/// An integer in limbs of 64 bits, the lowest first, without leading zeros.
pub(super) struct Big(Vec<u64>);

impl Big {
    pub fn of(value: u128) -> Big {
        let mut big = Big(vec![value as u64, (value >> 64) as u64]);
        while big.0.last() == Some(&0) {
            big.0.pop();
        }
        big
    }

    /// From decimal digits, the highest first.
    pub fn from_digits(digits: &[u8]) -> Big {
        let mut big = Big(Vec::new());
        for part in digits.chunks(DIGITS) {
            let value = part.iter().fold(0, |value, &digit| value * 10 + u64::from(digit));
            big.multiply_add(10u64.pow(part.len() as u32), value);
        }
        big
    }

    fn multiply_add(&mut self, factor: u64, addend: u64) {
        let mut carry = u128::from(addend);
        for limb in &mut self.0 {
            carry += u128::from(*limb) * u128::from(factor);
            *limb = carry as u64;
            carry >>= 64;
        }
        if carry > 0 {
            self.0.push(carry as u64);
        }
    }

    pub fn multiply_by_power_of_five(&mut self, exponent: u32) {
        (0..exponent / FIVES).for_each(|_| self.multiply_add(5u64.pow(FIVES), 0));
        self.multiply_add(5u64.pow(exponent % FIVES), 0);
    }

    pub fn shift_left(&mut self, bits: u32) {
        self.multiply_add(1 << (bits % 64), 0);
        self.0.splice(0..0, std::iter::repeat_n(0, bits as usize / 64));
    }

    pub fn compare(&self, other: &Big) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

/// The base of decimal limbs: nine digits each, the lowest first.
const LIMB: u64 = 1_000_000_000;
/// The distance between the powers of two that are stored in decimal form.
const POWER_STEP: u32 = 512;
/// How many are stored: enough for the largest 80-bit number.
const POWERS: usize = 32;

/// `2^(POWER_STEP * i)` in decimal limbs.
static POWERS_OF_TWO: LazyLock<Vec<Vec<u32>>> = LazyLock::new(|| {
    let mut power = vec![1];
    let powers = (0..POWERS).map(|_| {
        let this = power.clone();
        double(&mut power, POWER_STEP);
        this
    });
    powers.collect()
});

/// Multiplies decimal limbs by a power of two.
fn double(limbs: &mut Vec<u32>, mut times: u32) {
    while times > 0 {
        let (step, mut carry) = (times.min(32), 0);
        for limb in limbs.iter_mut() {
            carry += u64::from(*limb) << step;
            *limb = (carry % LIMB) as u32;
            carry /= LIMB;
        }
        while carry > 0 {
            limbs.push((carry % LIMB) as u32);
            carry /= LIMB;
        }
        times -= step;
    }
}

/// The decimal digits of `mantissa * 2^exponent`.
pub(super) fn digits_of(mantissa: u64, exponent: u32) -> String {
    let mut factor: Vec<u32> = [mantissa % LIMB, mantissa / LIMB % LIMB, mantissa / LIMB / LIMB]
        .into_iter()
        .map(|limb| limb as u32)
        .collect();
    double(&mut factor, exponent % POWER_STEP);
    let power = &POWERS_OF_TWO[(exponent / POWER_STEP) as usize];
    let mut product = vec![0u32; factor.len() + power.len()];
    for (shift, &digit) in factor.iter().enumerate() {
        let mut carry = 0;
        for (limb, &other) in product[shift..].iter_mut().zip(power.iter().chain(std::iter::repeat(&0))) {
            carry += u64::from(*limb) + u64::from(digit) * u64::from(other);
            *limb = (carry % LIMB) as u32;
            carry /= LIMB;
        }
    }
    while product.last() == Some(&0) {
        product.pop();
    }
    let mut limbs = product.iter().rev();
    let mut out = limbs.next().map_or("0".into(), u32::to_string);
    limbs.for_each(|limb| out += &format!("{limb:09}"));
    out
}

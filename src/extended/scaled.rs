//! Powers of ten with 128 bits: precise enough to round a decimal number to 64 bits in all cases except those
//! constructed to be hard, in constant time.
//!
//! Errors are relative, in units of 2^-127. A product has the sum of both errors, plus at most 1 for
//! truncation. `TENS` are exact up to 10^32 and squares from there on, so their errors are 1, 3, 7 ... 127;
//! those of `TENTHS` are larger by 1. The product of all of either has an error below 300, and [`ERROR_MAX`]
//! leaves a margin.

/// The error bound of a mantissa, in units of its last place.
pub(super) const ERROR_MAX: u64 = 1 << 16;
/// Decimal digits that are taken into account: as many as fit. The rest is less than 2^-122.
pub(super) const DIGITS: usize = 38;

/// The number of powers of two below the highest power of ten needed.
const BITS: usize = 13;

/// The value is about `mantissa * 2^exponent`; the top bit of `mantissa` is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaled {
    pub mantissa: u128,
    pub exponent: i32,
}

/// `10^(2^i)`.
const TENS: [Scaled; BITS] = {
    let mut powers = [Scaled::of(10); BITS];
    let mut index = 1;
    while index < BITS {
        powers[index] = powers[index - 1].times(powers[index - 1]);
        index += 1;
    }
    powers
};

/// `10^-(2^i)`.
const TENTHS: [Scaled; BITS] = {
    let mut powers = TENS;
    let mut index = 0;
    while index < BITS {
        powers[index] = powers[index].reciprocal();
        index += 1;
    }
    powers
};

impl Scaled {
    /// Exactly `value`, which must not be 0.
    pub const fn of(value: u128) -> Scaled {
        let zeros = value.leading_zeros();
        Scaled { mantissa: value << zeros, exponent: -(zeros as i32) }
    }

    const fn times(self, other: Scaled) -> Scaled {
        const LOW: u128 = u64::MAX as u128;
        let ([a, b], [c, d]) =
            ([self.mantissa >> 64, self.mantissa & LOW], [other.mantissa >> 64, other.mantissa & LOW]);
        let middle = ((b * d) >> 64) + ((a * d) & LOW) + ((b * c) & LOW);
        let high = a * c + ((a * d) >> 64) + ((b * c) >> 64) + (middle >> 64);
        let exponent = self.exponent + other.exponent + 128;
        if high >> 127 == 1 {
            Scaled { mantissa: high, exponent }
        } else {
            Scaled { mantissa: high << 1 | (middle >> 63 & 1), exponent: exponent - 1 }
        }
    }

    /// Requires that the number is not a power of two.
    const fn reciprocal(self) -> Scaled {
        // 2^255 divided by the mantissa, bit by bit.
        let (mut quotient, mut rest, mut bits) = (0u128, 1u128 << 127, 0);
        while bits < 128 {
            let overflows = rest >> 127 == 1;
            rest <<= 1;
            quotient <<= 1;
            if overflows || rest >= self.mantissa {
                rest = rest.wrapping_sub(self.mantissa);
                quotient |= 1;
            }
            bits += 1;
        }
        Scaled { mantissa: quotient, exponent: -255 - self.exponent }
    }

    /// Times a power of ten, from 10^-8191 to 10^8191.
    pub fn times_power_of_ten(self, exponent: i32) -> Scaled {
        let powers = if exponent < 0 { &TENTHS } else { &TENS };
        let bits = exponent.unsigned_abs();
        let factors = (0..).zip(powers).filter(|(bit, _)| bits >> bit & 1 == 1);
        factors.fold(self, |product, (_, power)| product.times(*power))
    }
}

//! A HyperLogLog as Redis stores it: a string of a header and 16,384 registers, dense (6 bits each) or, while most of
//! them are 0, sparse (runs). A string made here is one that Redis reads, and the other way round.
//!
//! The sparse form is a sequence of opcodes: `00xxxxxx` is a run of up to 64 zeros, `01xxxxxx yyyyyyyy` one of up to
//! 16,384, and `1vvvvvxx` a run of up to 4 registers with a value of up to 32.

use std::fmt;

use crate::error::{Error, Result};

/// How many registers there are, and how many bits of a hash choose one.
pub(super) const REGISTERS: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 14;
/// How many bits of a hash are left to be counted.
const COUNTED_BITS: usize = 64 - INDEX_BITS as usize;
const REGISTER_BITS: usize = 6;

const MAGIC: &[u8] = b"HYLL";
const DENSE: u8 = 0;
const SPARSE: u8 = 1;
/// The magic, the encoding, three bytes without a meaning, and the last count.
const HEADER_BYTES: usize = 16;
const ENCODING_AT: usize = 4;
/// The highest byte of the last count; its highest bit says that registers have changed since.
const STALE_AT: usize = 15;
const STALE: u8 = 0x80;
/// The size of the dense form.
pub(super) const DENSE_BYTES: usize = HEADER_BYTES + REGISTERS * REGISTER_BITS / 8;
/// Redis's `hll-sparse-max-bytes`: a sparse form that would become larger becomes dense.
const SPARSE_BYTES_MAX: usize = 3_000;

/// No sparse form is larger: a run for each register, in the longer form of a run.
const RUNS_BYTES_MAX: usize = HEADER_BYTES + 2 * REGISTERS;

const ZERO_LEN_MAX: usize = 64;
const VALUE_MAX: u8 = 32;
const VALUE_LEN_MAX: usize = 4;

/// Elements are hashed with this seed.
const SEED: u64 = 0xadc8_3b19;
/// 0.5 / ln 2.
const ALPHA: f64 = 0.721_347_520_444_481_7;

/// All registers.
pub(super) type Registers = [u8; REGISTERS];

/// The error for a string that is none.
fn not_one() -> Error {
    Error::Other("WRONGTYPE Key is not a valid HyperLogLog string value.".into())
}

fn corrupted() -> Error {
    Error::Other("INVALIDOBJ Corrupted HLL object detected".into())
}

/// A run of registers with the same value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Zeros, in one byte.
    Zeros(usize),
    /// Zeros, in two bytes.
    ManyZeros(usize),
    Values {
        value: u8,
        len: usize,
    },
}

impl Run {
    fn zeros(len: usize) -> Run {
        if len > ZERO_LEN_MAX { Run::ManyZeros(len) } else { Run::Zeros(len) }
    }

    /// The run that an opcode stands for; the slice is not empty. None if its second byte is missing.
    fn decode(bytes: &[u8]) -> Option<Run> {
        let first = bytes[0];
        Some(match first >> 6 {
            0 => Run::Zeros(usize::from(first & 0x3f) + 1),
            1 => Run::ManyZeros((usize::from(first & 0x3f) << 8 | usize::from(*bytes.get(1)?)) + 1),
            _ => Run::Values { value: (first >> 2 & 0x1f) + 1, len: usize::from(first & 3) + 1 },
        })
    }

    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Run::Zeros(len) => out.push(len as u8 - 1),
            Run::ManyZeros(len) => out.extend(((len - 1) as u16 | 0x4000).to_be_bytes()),
            Run::Values { value, len } => out.push(0x80 | (value - 1) << 2 | (len as u8 - 1)),
        }
    }

    /// The number of its registers.
    fn len(self) -> usize {
        match self {
            Run::Zeros(len) | Run::ManyZeros(len) | Run::Values { len, .. } => len,
        }
    }

    fn value(self) -> u8 {
        match self {
            Run::Zeros(_) | Run::ManyZeros(_) => 0,
            Run::Values { value, .. } => value,
        }
    }

    /// The size of its opcode.
    fn bytes(self) -> usize {
        if let Run::ManyZeros(_) = self { 2 } else { 1 }
    }
}

impl fmt::Display for Run {
    /// As PFDEBUG DECODE shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Zeros(len) => write!(f, "z:{len}"),
            Run::ManyZeros(len) => write!(f, "Z:{len}"),
            Run::Values { value, len } => write!(f, "v:{value},{len}"),
        }
    }
}

/// Checks that a string may be a HyperLogLog. The runs of a sparse one are not looked at.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let is_one = bytes.len() >= HEADER_BYTES
        && bytes.starts_with(MAGIC)
        && (bytes[ENCODING_AT] == SPARSE || bytes[ENCODING_AT] == DENSE && bytes.len() == DENSE_BYTES);
    match is_one {
        false => Err(not_one()),
        true if bytes.len() > RUNS_BYTES_MAX => Err(corrupted()),
        true => Ok(()),
    }
}

/// Whether a string that was checked has the dense form.
pub(super) fn is_dense(bytes: &[u8]) -> bool {
    bytes[ENCODING_AT] == DENSE
}

/// The runs of the sparse form.
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = Result<Run>> {
    let mut rest = &bytes[HEADER_BYTES..];
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(run) = Run::decode(rest) else {
            rest = &[];
            return Some(Err(corrupted()));
        };
        rest = &rest[run.bytes()..];
        Some(Ok(run))
    })
}

/// Raises registers to those of a string, which was checked.
pub(super) fn merge(bytes: &[u8], registers: &mut Registers) -> Result<()> {
    if is_dense(bytes) {
        let dense = &bytes[HEADER_BYTES..];
        for (index, register) in registers.iter_mut().enumerate() {
            *register = (*register).max(dense_get(dense, index));
        }
        return Ok(());
    }
    let mut index = 0;
    for run in runs(bytes) {
        let run = run?;
        let covered = registers.get_mut(index..index + run.len()).ok_or_else(corrupted)?;
        if run.value() > 0 {
            covered.iter_mut().for_each(|register| *register = (*register).max(run.value()));
        }
        index += run.len();
    }
    if index == REGISTERS { Ok(()) } else { Err(corrupted()) }
}

fn dense_get(dense: &[u8], index: usize) -> u8 {
    let (byte, shift) = (index * REGISTER_BITS / 8, index * REGISTER_BITS % 8);
    let pair = u16::from(dense[byte]) | u16::from(dense.get(byte + 1).copied().unwrap_or(0)) << 8;
    (pair >> shift) as u8 & 0x3f
}

fn dense_set(dense: &mut [u8], index: usize, value: u8) {
    let (byte, shift) = (index * REGISTER_BITS / 8, index * REGISTER_BITS % 8);
    let (mask, value) = (0x3f_u16 << shift, u16::from(value) << shift);
    dense[byte] = dense[byte] & !(mask as u8) | value as u8;
    if let Some(next) = dense.get_mut(byte + 1) {
        *next = *next & !((mask >> 8) as u8) | (value >> 8) as u8;
    }
}

/// A HyperLogLog that is being changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sketch {
    bytes: Vec<u8>,
}

impl Sketch {
    /// An empty one.
    pub(super) fn empty() -> Sketch {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[ENCODING_AT] = SPARSE;
        Run::ManyZeros(REGISTERS).encode(&mut bytes);
        Sketch { bytes }
    }

    /// The one that a string is.
    pub(super) fn of(bytes: &[u8]) -> Result<Sketch> {
        check(bytes)?;
        Ok(Sketch { bytes: bytes.to_vec() })
    }

    /// As it is stored.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The count that is kept in the header does not hold any more.
    pub(super) fn forget_count(&mut self) {
        self.bytes[STALE_AT] |= STALE;
    }

    /// Adds an element. True if that changed a register.
    pub(super) fn add(&mut self, element: &[u8]) -> Result<bool> {
        let (index, count) = place_of(element);
        self.raise(index, count)
    }

    /// Raises a register to at least this value. True if it was lower.
    pub(super) fn raise(&mut self, index: usize, value: u8) -> Result<bool> {
        if !is_dense(&self.bytes)
            && self.bytes.len() <= SPARSE_BYTES_MAX
            && let Some(result) = self.raise_in_runs(index, value)?
        {
            return Ok(result);
        }
        self.make_dense()?;
        let dense = &mut self.bytes[HEADER_BYTES..];
        let is_lower = dense_get(dense, index) < value;
        if is_lower {
            dense_set(dense, index, value);
        }
        Ok(is_lower)
    }

    /// As `raise`, in the sparse form; None if it must become dense for that.
    fn raise_in_runs(&mut self, index: usize, value: u8) -> Result<Option<bool>> {
        if value > VALUE_MAX {
            return Ok(None);
        }
        // The run that covers the register, where it begins, and where the one before it does.
        let (mut at, mut first, mut previous) = (HEADER_BYTES, 0, HEADER_BYTES);
        let run = loop {
            let rest = self.bytes.get(at..).filter(|rest| !rest.is_empty()).ok_or_else(corrupted)?;
            let run = Run::decode(rest).ok_or_else(corrupted)?;
            if index < first + run.len() {
                break run;
            }
            (previous, at, first) = (at, at + run.bytes(), first + run.len());
        };
        if run.value() >= value {
            return Ok(Some(false));
        }
        let (before, after) = (index - first, first + run.len() - 1 - index);
        let part = |len: usize| match run {
            Run::Values { value, .. } => Run::Values { value, len },
            _ => Run::zeros(len),
        };
        let mut parts = Vec::with_capacity(5);
        if before > 0 {
            part(before).encode(&mut parts);
        }
        Run::Values { value, len: 1 }.encode(&mut parts);
        if after > 0 {
            part(after).encode(&mut parts);
        }
        if parts.len() > run.bytes() && self.bytes.len() + parts.len() - run.bytes() > SPARSE_BYTES_MAX {
            return Ok(None);
        }
        self.bytes.splice(at..at + run.bytes(), parts);
        self.join_runs(previous);
        self.forget_count();
        Ok(Some(true))
    }

    /// Joins neighbouring runs of the same value, among the next few from `at` on.
    fn join_runs(&mut self, mut at: usize) {
        for _ in 0..5 {
            let Some(run) = self.bytes.get(at..).filter(|rest| !rest.is_empty()).and_then(Run::decode) else {
                break;
            };
            let next = self.bytes.get(at + 1..).filter(|rest| !rest.is_empty()).and_then(Run::decode);
            if let (Run::Values { value, len }, Some(Run::Values { value: other, len: more })) = (run, next)
                && value == other
                && len + more <= VALUE_LEN_MAX
            {
                let mut joined = Vec::new();
                Run::Values { value, len: len + more }.encode(&mut joined);
                self.bytes.splice(at..at + 2, joined);
            } else {
                at += run.bytes();
            }
        }
    }

    /// Gives it the dense form.
    pub(super) fn make_dense(&mut self) -> Result<()> {
        if is_dense(&self.bytes) {
            return Ok(());
        }
        let mut registers = [0; REGISTERS];
        merge(&self.bytes, &mut registers)?;
        self.bytes[ENCODING_AT] = DENSE;
        self.bytes.truncate(HEADER_BYTES);
        self.bytes.resize(DENSE_BYTES, 0);
        for (index, &value) in registers.iter().enumerate().filter(|(_, value)| **value > 0) {
            dense_set(&mut self.bytes[HEADER_BYTES..], index, value);
        }
        Ok(())
    }
}

/// The register of an element, and the value that the element raises it to.
fn place_of(element: &[u8]) -> (usize, u8) {
    let hash = murmur(element);
    let counted = hash >> INDEX_BITS | 1 << COUNTED_BITS;
    (hash as usize & (REGISTERS - 1), counted.trailing_zeros() as u8 + 1)
}

/// MurmurHash64A, by Austin Appleby, who placed it in the public domain.
fn murmur(key: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(M);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word).wrapping_mul(M);
        hash = (hash ^ (word ^ word >> 47).wrapping_mul(M)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |last, &byte| last << 8 | u64::from(byte));
        hash = (hash ^ last).wrapping_mul(M);
    }
    hash = (hash ^ hash >> 47).wrapping_mul(M);
    hash ^ hash >> 47
}

/// How many different elements raised the registers so: Otmar Ertl's estimator ("New cardinality estimation
/// algorithms for HyperLogLog sketches", 2017), as Redis has it.
pub(super) fn count(registers: &Registers) -> u64 {
    let mut histogram = [0u32; COUNTED_BITS + 2];
    for &register in registers {
        // A corrupted string may have higher ones.
        histogram[usize::from(register).min(COUNTED_BITS + 1)] += 1;
    }
    let all = REGISTERS as f64;
    let mut sum = all * tau((all - f64::from(histogram[COUNTED_BITS + 1])) / all);
    for &registers in histogram[1..=COUNTED_BITS].iter().rev() {
        sum = (sum + f64::from(registers)) * 0.5;
    }
    sum += all * sigma(f64::from(histogram[0]) / all);
    (ALPHA * all * all / sum).round() as u64
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if before == z {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if before == z {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DENSE_BYTES, REGISTERS, SPARSE_BYTES_MAX, Sketch, check, count, is_dense, merge, place_of};

    fn registers_of(sketch: &Sketch) -> Box<[u8; REGISTERS]> {
        let mut registers = Box::new([0; REGISTERS]);
        merge(sketch.bytes(), &mut registers).unwrap();
        registers
    }

    #[test]
    fn the_hash_is_that_of_redis() {
        // As PFDEBUG DECODE of redis-server 7.0.15 shows.
        for (element, place) in
            [("", (5_938, 2)), ("a", (12_711, 2)), ("hello", (9_216, 1)), ("12345678", (10_579, 3))]
        {
            assert_eq!(place_of(element.as_bytes()), place, "{element}");
        }
    }

    #[test]
    fn both_forms_have_the_same_registers() {
        let mut chance = fastrand::Rng::with_seed(1);
        for _ in 0..20 {
            let (mut sparse, mut dense) = (Sketch::empty(), Sketch::empty());
            dense.make_dense().unwrap();
            let mut model = [0; REGISTERS];
            let spread = [40, 1_000, REGISTERS][chance.usize(..3)];
            for _ in 0..4_000 {
                let (index, value) = (chance.usize(..spread), 1 + chance.u8(..6) * chance.u8(..6));
                let is_higher = value > model[index];
                model[index] = model[index].max(value);
                assert_eq!(sparse.raise(index, value).unwrap(), is_higher);
                assert_eq!(dense.raise(index, value).unwrap(), is_higher);
                check(sparse.bytes()).unwrap();
                assert!(is_dense(sparse.bytes()) || sparse.bytes().len() <= SPARSE_BYTES_MAX);
            }
            assert_eq!(*registers_of(&sparse), model);
            assert_eq!(*registers_of(&dense), model);
            sparse.make_dense().unwrap();
            assert_eq!(sparse.bytes()[16..], dense.bytes()[16..]);
            assert_eq!(sparse.bytes().len(), DENSE_BYTES);
        }
    }

    #[test]
    fn counts_are_within_two_percent() {
        let mut sketch = Sketch::empty();
        for number in 1..=200_000u64 {
            sketch.add(&number.to_le_bytes()).unwrap();
            if [10, 100, 1_000, 10_000, 50_000, 200_000].contains(&number) {
                let counted = count(&registers_of(&sketch)) as f64;
                assert!((counted - number as f64).abs() <= number as f64 * 0.02, "{number}: {counted}");
            }
        }
        assert_eq!(count(&[0; REGISTERS]), 0);
    }

    /// Anybody may SET a string that begins like one.
    #[test]
    fn damaged_strings_are_errors_and_never_panics() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut whole = Sketch::empty();
        (0..200u64).for_each(|number| _ = whole.add(&number.to_le_bytes()).unwrap());
        let mut dense = whole.clone();
        dense.make_dense().unwrap();
        for _ in 0..20_000 {
            let mut bytes = if chance.bool() { whole.bytes().to_vec() } else { dense.bytes().to_vec() };
            match chance.u8(..3) {
                0 => bytes.truncate(chance.usize(..=bytes.len())),
                1 => bytes.extend((0..chance.usize(..5)).map(|_| chance.u8(..))),
                _ => {}
            }
            for _ in 0..chance.usize(..4) {
                if !bytes.is_empty() {
                    let at = chance.usize(..bytes.len());
                    bytes[at] = chance.u8(..);
                }
            }
            let Ok(mut sketch) = Sketch::of(&bytes) else { continue };
            let mut registers = [0; REGISTERS];
            if merge(sketch.bytes(), &mut registers).is_ok() {
                count(&registers);
            }
            let _ = sketch.raise(chance.usize(..REGISTERS), 1 + chance.u8(..50));
            let _ = sketch.make_dense();
        }
    }
}

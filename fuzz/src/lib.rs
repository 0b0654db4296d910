//! Gives bytes that were never written like this to what decodes bytes from disks and networks. A target is a test of
//! the crate that decodes, because most decoders are private; here are the inputs, the time and the memory limit.
//!
//! Inputs are seeds with a few changes: seeds that the test records, and the files in `corpus/TARGET/`, which are run
//! as they are too. On a panic the input is written to `target/fuzz-failures/`; as a file in the corpus it stays a test
//! for ever. A target runs for two seconds, or for `KVORUM_FUZZ_SECONDS`.
//!
//! There is no feedback from coverage: this runs with every toolchain and in every test run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use arbtest::arbitrary::{Result, Unstructured};

/// How long a target runs, if nothing else is asked for.
const SECONDS: u64 = 2;

/// Most changes made to a seed.
const CHANGES_MAX: usize = 6;

/// Most random bytes from which an input is made.
const ENTROPY_BYTES_MAX: u32 = 4096;

/// Runs `check` on all seeds and files of the target as they are, then on changed ones until the time is up. It panics
/// where something is wrong.
pub fn fuzz(target: &str, seeds: Vec<Vec<u8>>, check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut seeds = seeds;
    seeds.extend(files(&corpus));
    assert!(!seeds.is_empty(), "{target} has no seeds");
    let attempt = |input: &[u8]| {
        let blame = Blame { target, input };
        check(input);
        std::mem::forget(blame);
    };
    seeds.iter().for_each(|seed| attempt(seed));
    let seconds = std::env::var("KVORUM_FUZZ_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("KVORUM_FUZZ_SECONDS is a number"));
    let mut count = 0u64;
    arbtest::arbtest(|entropy| {
        let input = input(entropy, &seeds)?;
        attempt(&input);
        count += 1;
        Ok(())
    })
    .size_max(ENTROPY_BYTES_MAX)
    .budget(Duration::from_secs(seconds))
    .run();
    println!("{target}: {count} inputs from {} seeds", seeds.len());
}

/// Runs `decode` on an input of so many bytes, and panics if it had more than `per_byte` for each of them, and `fixed`
/// bytes besides, allocated at once.
pub fn bounded<R>(input_bytes: usize, per_byte: usize, fixed: usize, decode: impl FnOnce() -> R) -> R {
    let mut result = None;
    let used = allocation_counter::measure(|| result = Some(decode())).bytes_max;
    let limit = (input_bytes * per_byte + fixed) as u64;
    assert!(used <= limit, "{used} bytes were allocated for {input_bytes} bytes, and {limit} may be");
    result.expect("it was run")
}

/// The files in a directory, which may be missing.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let Ok(listed) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = listed.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file of the corpus can be read")).collect()
}

/// Names the input when it is dropped by a panic.
struct Blame<'a> {
    target: &'a str,
    input: &'a [u8],
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz-failures");
        // The same failure has the same name.
        let hash = self.input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let path = dir.join(format!("{}-{hash:016x}", self.target));
        match fs::create_dir_all(&dir).and_then(|()| fs::write(&path, self.input)) {
            Ok(()) => {
                eprintln!("the input is in {}; to keep it: fuzz/corpus/{}/", path.display(), self.target)
            }
            Err(error) => eprintln!("the input cannot be written ({error}): {}", self.input.escape_ascii()),
        }
    }
}

/// A seed with some changes, or bytes without any form.
fn input(entropy: &mut Unstructured<'_>, seeds: &[Vec<u8>]) -> Result<Vec<u8>> {
    if entropy.ratio(1, 16)? {
        return entropy.arbitrary();
    }
    let mut bytes = entropy.choose(seeds)?.clone();
    for _ in 0..entropy.int_in_range(1..=CHANGES_MAX)? {
        change(entropy, &mut bytes, seeds)?;
    }
    Ok(bytes)
}

fn change(entropy: &mut Unstructured<'_>, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) -> Result<()> {
    let at = entropy.int_in_range(0..=bytes.len().saturating_sub(1))?;
    let rest = bytes.len() - at;
    match entropy.int_in_range(0..=7)? {
        0 if rest > 0 => bytes[at] ^= 1 << entropy.int_in_range(0..=7)?,
        1 if rest > 0 => bytes[at] = *entropy.choose(&[0, 1, 0x7f, 0x80, 0xff, b'*', b'$', b'\r', b'\n'])?,
        2 => put_number(entropy, &mut bytes[at..], rest)?,
        3 => {
            bytes.truncate(at);
        }
        4 => {
            let end = at + entropy.int_in_range(0..=rest.min(64))?;
            bytes.drain(at..end);
        }
        5 => {
            let end = at + entropy.int_in_range(0..=rest.min(64))?;
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let other = entropy.choose(seeds)?;
            let from = entropy.int_in_range(0..=other.len())?;
            let to = from + entropy.int_in_range(0..=(other.len() - from).min(256))?;
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        _ => {
            let more = entropy.int_in_range(1..=16)?;
            let more = entropy.bytes(more)?.to_vec();
            bytes.splice(at..at, more);
        }
    }
    Ok(())
}

/// Writes a number that a length or a count might be, as decoders read numbers.
fn put_number(entropy: &mut Unstructured<'_>, place: &mut [u8], rest: usize) -> Result<()> {
    let rest = rest as u64;
    let numbers = [
        0,
        1,
        rest.saturating_sub(4),
        rest + 1,
        0x7fff_ffff,
        0x8000_0000,
        u64::from(u32::MAX),
        u64::MAX - 1,
        u64::MAX,
    ];
    let number = *entropy.choose(&numbers)?;
    let mut written = match entropy.int_in_range(0..=3)? {
        0 => (number as u32).to_le_bytes().to_vec(),
        1 => number.to_le_bytes().to_vec(),
        2 => number.to_string().into_bytes(),
        _ => varint(number),
    };
    written.truncate(place.len());
    place[..written.len()].copy_from_slice(&written);
    Ok(())
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

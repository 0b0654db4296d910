//! Names that somebody chose against the hash: XXH3 without a seed, which DIGEST tells.

use std::sync::LazyLock;

use kvorum::store::hash_of;

/// Names whose hashes begin with three zeros: an eighth of all that are tried. A set of 120 of them needs 3 bits to tell
/// its members apart, and has them all in one place.
pub fn lopsided(number: usize) -> Vec<u8> {
    static NAMES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let names = (0..).map(|number| format!("member:{number}").into_bytes());
        names.filter(|name| hash_of(name) >> 61 == 0).take(2_000).collect()
    });
    NAMES[number].clone()
}

/// The bytes of XXH3's public secret that the first half of a name of 32 bytes is mixed with: equal to it, the product is
/// 0 whatever the next eight bytes are.
const SECRET: [u8; 8] = [0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe];

/// Names with one hash and one slot, any number of them.
pub fn colliding(number: usize) -> Vec<u8> {
    let mut name = SECRET.to_vec();
    name.extend_from_slice(format!("{number:08}").as_bytes());
    name.extend_from_slice(b"{slot}..........");
    name
}

/// Numbers at which something takes another form, or at which a draw was without end.
const THRESHOLDS: &[usize] = &[1, 2, 8, 31, 32, 33, 40, 41, 63, 64, 65, 127, 128, 129, 130, 255, 256, 257];
/// Lengths at which a value is kept in another form.
const LENGTHS: &[usize] = &[0, 1, 63, 64, 65, 1_023, 1_024, 1_025, 4_095, 4_096, 4_097, 16_384, 16_385];
/// Numbers that are far away, short, or at a tie.
pub const FLOATS: &[&str] =
    &["1e-4900", "1e4900", "-1e4900", "18446744073709551617", "0.5", "9007199254740993e-300", "1e-9999999"];

/// One of a list.
pub fn one_of<'a, T: ?Sized>(list: &[&'a T], chance: &mut fastrand::Rng) -> &'a T {
    list[chance.usize(..list.len())]
}

/// A number near where something changes.
pub fn threshold(chance: &mut fastrand::Rng) -> usize {
    THRESHOLDS[chance.usize(..THRESHOLDS.len())]
}

/// A number of names, in a row, all of one kind.
pub fn names(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let (first, count) = (chance.usize(..60), threshold(chance));
    let name = match chance.u8(..3) {
        0 => lopsided,
        1 => colliding,
        _ => |number: usize| number.to_string().into_bytes(),
    };
    (first..first + count).map(name).collect()
}

fn value(chance: &mut fastrand::Rng) -> Vec<u8> {
    vec![b'v'; LENGTHS[chance.usize(..LENGTHS.len())]]
}

fn call(first: &[&str], rest: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    first.iter().map(|word| word.as_bytes().to_vec()).chain(rest).collect()
}

/// Commands of one who knows how things are kept.
pub fn hostile_argv(chance: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let number = chance.u8(..3);
    let key = |kind: &str| format!("{kind}:hostile:{number}");
    let (set, hash, sorted, list) = (key("set"), key("hash"), key("zset"), key("list"));
    let other = format!("set:hostile:{}", chance.u8(..3));
    let count = threshold(chance).to_string();
    let deadline = format!("{}", 1_700_000_000_000u64 + chance.u64(..8) * 10_000);
    let (name, lease) = (colliding(chance.usize(..3_000)), format!("lease:{}", chance.u8(..200)));
    match chance.u8(..26) {
        0..3 => call(&["SADD", &set], names(chance)),
        3..5 => call(&["SREM", &set], names(chance)),
        5..7 => call(&["SPOP", &set, &count], Vec::new()),
        7 => call(
            &[one_of(&["SUNIONSTORE", "SINTERSTORE", "SDIFFSTORE"], chance), &other, &set, &other],
            vec![],
        ),
        8..10 => {
            let fields = names(chance).into_iter().flat_map(|name| [name, vec![b'v'; chance.usize(60..68)]]);
            call(&["HSET", &hash], fields.collect())
        }
        10 => call(&["HDEL", &hash], names(chance)),
        11 => {
            let scored = names(chance).into_iter().flat_map(|name| [b"1".to_vec(), name]);
            call(&["ZADD", &sorted], scored.collect())
        }
        12 => call(&["ZREM", &sorted], names(chance)),
        13 | 14 => call(&["SET"], vec![name, value(chance), b"PXAT".into(), deadline.into()]),
        15 => call(
            &[one_of(&["DEL", "PERSIST", "APPEND"], chance)],
            match chance.bool() {
                true => vec![name],
                false => vec![name, b"x".into()],
            },
        ),
        16 => call(&["RPUSH", &list], vec![value(chance), value(chance)]),
        17 => call(&["LTRIM", &list, "1", "-2"], Vec::new()),
        18 => call(&["INCRBYFLOAT", "float:hostile", one_of(FLOATS, chance)], Vec::new()),
        19 => call(&["HINCRBYFLOAT", "hash:floats", "f", one_of(FLOATS, chance)], Vec::new()),
        20 => call(&["LEASE.GRANT", "PX", "4000", "ID", &lease], Vec::new()),
        21 | 22 => call(&["LOCK.ACQUIRE", "lock:hostile", &lease, "LEASE", &lease, "SHARED"], Vec::new()),
        23 => {
            call(&["FENCE.GUARD", one_of(&["lock:hostile", "lock:1", "k"], chance), "lock:hostile"], vec![])
        }
        24 => call(&["COPY", &set, &other, "REPLACE"], Vec::new()),
        _ => call(&["SRANDMEMBER", &set, &format!("-{count}")], Vec::new()),
    }
}

/// A transaction of reads that cost most.
pub fn hostile_reads(chance: &mut fastrand::Rng) -> Vec<Vec<Vec<u8>>> {
    let pattern = format!("*{}b", "a".repeat(chance.usize(..2_000)));
    let (set, hash) = ("set:hostile:1", "hash:hostile:1");
    let count = threshold(chance).to_string();
    vec![
        call(&["SRANDMEMBER", set, "-131072"], Vec::new()),
        call(&["SRANDMEMBER", set, &count], Vec::new()),
        call(&["HRANDFIELD", hash, &count], Vec::new()),
        call(&["HSCAN", hash, "0", "COUNT", &count, "MATCH", &pattern], Vec::new()),
        call(&["KEYS", &pattern], Vec::new()),
        call(&["LCS", "float:hostile", "float:hostile", "LEN"], Vec::new()),
    ]
}

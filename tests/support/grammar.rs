//! Random commands from a weighted grammar. A rule is a command line in which
//! - `[ ... ]` stands there or not, `( ... )` one to four times, `{ a | b c | d }` is one of these;
//! - a word `<name>` is a random thing of that kind, as [`Grammar::word`] knows them.
//!
//! `<y>` is a sorted set whose members all have the score 0: BYLEX is not defined for others.
//! SET gets no deadline in the past (`<later>`): Redis counts such a key in DBSIZE until it comes across it.
//! LCS gets short strings: of long ones, Redis 7.0.15 allocates gigabytes where later versions refuse.
//! `<w>` is a string that is watched and never deleted: a watched key that was missing, came and went has
//! changed for Redis, and has not for Kvorum.
//!
//! `<names>`, `<pairs>` and `<scored>` are many words: names chosen against the hash, as many as bring a collection to where
//! it takes another form; `<count>` is a number near there.
//!
//! What is drawn stays comparable between two servers: no deadline that comes within a test's time, no reply
//! that chance decides, no argument that makes a server allocate hundreds of megabytes.

use super::hostile;

/// A weight and a rule.
pub type Rule = (u32, &'static str);

/// Every rule, by family.
pub const RULES: &[&[Rule]] =
    &[STRINGS, BITMAPS, PLACES, KEYS, CONNECTION, LISTS, HASHES, SETS, SORTED_SETS, HOSTILE];

const STRINGS: &[Rule] = &[
    (
        12,
        "SET <s> <v> [ { NX | XX } ] [ GET ] [ { EX <far> | PX <farms> | EXAT <later> | PXAT <laterms> | KEEPTTL } ]",
    ),
    (4, "SET <s> <v>"),
    (2, "SET <s> { <i> | <f> }"),
    (10, "GET <s>"),
    (3, "MGET ( <k> )"),
    (3, "MSET ( <s> <v> )"),
    (2, "MSETNX ( <s> <v> )"),
    (2, "SETNX <s> <v>"),
    (2, "SETEX <s> <far> <v>"),
    (2, "PSETEX <s> <farms> <v>"),
    (2, "GETSET <s> <v>"),
    (2, "GETDEL <s>"),
    (3, "GETEX <s> [ { EX <far> | PX <farms> | EXAT <at> | PXAT <atms> | PERSIST } ]"),
    (4, "APPEND <s> <v>"),
    (3, "STRLEN <s>"),
    (4, "SETRANGE <s> <offset> <v>"),
    (4, "{ GETRANGE | SUBSTR } <s> <n> <n>"),
    (4, "{ INCR | DECR } <s>"),
    (4, "{ INCRBY | DECRBY } <s> <i>"),
    (4, "INCRBYFLOAT <s> <f>"),
    (1, "MSET a1 { ohmytext | ababab | m1m2m3 } a2 { mynewtext | bababa | m3m1 }"),
    (2, "LCS { a1 | a2 | missing | l0 } { a1 | a2 } [ LEN ] [ IDX ] [ MINMATCHLEN <n> ] [ WITHMATCHLEN ]"),
];

/// A HyperLogLog has keys of its own: Redis keeps its last count in it, which GET would show. Numbers for BITFIELD are not
/// the lowest of 64 bits, which Redis 7.0 saturates at the wrong end.
const BITMAPS: &[Rule] = &[
    (4, "SETBIT <s> <bit> { 0 | 1 | 1 | 2 }"),
    (3, "GETBIT <s> <bit>"),
    (3, "BITCOUNT <s> [ <n> <n> [ { BYTE | BIT | WORD } ] ]"),
    (3, "BITPOS <s> { 0 | 1 | 1 | 2 } [ <n> [ <n> [ { BYTE | BIT | WORD } ] ] ]"),
    (4, "BITOP { AND | OR | XOR | NOT | NAND } <s> ( <s> )"),
    (
        4,
        "BITFIELD <s> ( { GET <field> <bit> | SET <field> <bit> <fitting> | INCRBY <field> <bit> <fitting> | \
         OVERFLOW { WRAP | SAT | FAIL } | GET u8 | SET u8 0 x } )",
    ),
    (2, "BITFIELD_RO <s> ( GET <field> <bit> )"),
    (4, "PFADD { p0 | p1 | p2 } [ ( { <v> | <m> } ) ]"),
    (3, "PFCOUNT ( { p0 | p1 | p2 | missing | <k> } )"),
    (2, "PFMERGE { p0 | p1 | p2 } [ ( { p0 | p1 | p2 | missing | <k> } ) ]"),
    (2, "PFDEBUG { DECODE | ENCODING | NOSUCH } { p0 | p1 | p2 | missing | <k> }"),
];

/// What is found at the same distance has no order in Redis; so few members are placed in few places, and each search has
/// a radius that takes all of them or one.
const PLACES: &[Rule] = &[
    (
        4,
        "GEOADD { g0 | g1 } [ { NX | XX } ] [ CH ] ( { 1 1 a | 2 2 b | -3 40 c | 120.5 -33.25 d | 1.5 1 a | 200 1 a } )",
    ),
    (2, "GEODIST { g0 | g1 } { a | b | c | d } { a | b | x } [ { m | KM | ft | mi | yd } ]"),
    (2, "{ GEOPOS | GEOHASH } { g0 | g1 | <z> | missing } ( { a | b | x } )"),
    (
        4,
        "GEOSEARCH { g0 | g1 } { FROMLONLAT 0.5 0.25 | FROMMEMBER a | FROMMEMBER x } { BYRADIUS <km> { km | mi | yd } | \
         BYBOX <km> <km> { km | m } } ASC [ COUNT <n> ] [ WITHDIST ] [ WITHCOORD ] [ WITHHASH ]",
    ),
    (2, "GEORADIUS { g0 | g1 } 0.5 0.25 <km> km ASC [ COUNT <n> ] [ { STORE | WITHDIST } g2 ]"),
    (1, "GEORADIUSBYMEMBER { g0 | g1 } { a | b | x } <km> km DESC [ COUNT <n> ]"),
    (1, "GEOSEARCHSTORE g2 { g0 | g1 } FROMMEMBER { a | b } BYRADIUS <km> km"),
    (1, "ZRANGE g2 0 -1 WITHSCORES"),
];

const KEYS: &[Rule] = &[
    (4, "{ DEL | UNLINK } ( <k> )"),
    (4, "{ EXISTS | TOUCH } ( <k> )"),
    (3, "TYPE <k>"),
    (3, "{ RENAME | RENAMENX } <k> <k>"),
    (3, "COPY <k> <k> [ DB <todb> ] [ REPLACE ]"),
    (2, "MOVE <k> <todb>"),
    (2, "DBSIZE"),
    (
        3,
        "SORT { <l> | <t> | <z> } [ LIMIT <n> <n> ] [ GET # ] [ GET s* ] [ { ASC | DESC } ] ALPHA [ STORE <l> ]",
    ),
    (2, "SORT_RO <l> ALPHA [ { ASC | DESC } ]"),
    (1, "KEYS <pattern>"),
    (1, "SCAN 0 COUNT 100000 [ MATCH <pattern> ] [ TYPE { string | list | hash | set | zset | none } ]"),
    (1, "SCAN <i> [ COUNT <n> ]"),
    (3, "EXPIRE <k> <far> [ { NX | XX | GT | LT | NX XX | GT LT | XX GT } ]"),
    (2, "PEXPIRE <k> <farms> [ { NX | XX | GT | LT } ]"),
    (2, "EXPIREAT <k> <at> [ { NX | XX | GT | LT } ]"),
    (2, "PEXPIREAT <k> <atms> [ { NX | XX | GT | LT } ]"),
    (4, "{ TTL | PTTL | EXPIRETIME | PEXPIRETIME } <k>"),
    (2, "PERSIST <k>"),
    (1, "{ FLUSHDB | FLUSHALL } { NOW | ASYNC SYNC }"),
    (1, "OBJECT { NOSUCH <k> | FREQ <k> | REFCOUNT missing }"),
];

const CONNECTION: &[Rule] = &[
    (2, "SELECT <db>"),
    (4, "SELECT 0"),
    (1, "PING [ <v> ]"),
    (1, "ECHO <v>"),
    (3, "MULTI"),
    (9, "EXEC"),
    (1, "DISCARD"),
    (3, "WATCH ( <w> )"),
    (4, "SET <w> <v>"),
    (2, "{ GET | STRLEN | PERSIST } <w>"),
    (2, "{ APPEND | GETSET | SETNX } <w> <v>"),
    (2, "EXPIRE <w> 10000"),
    (1, "UNWATCH"),
    (1, "HELLO { 2 | 3 }"),
    (1, "HELLO { 1 | 4 | x | 3 AUTH | 2 SETNAME | 3 NOSUCH }"),
    (1, "RESET"),
    (1, "CLIENT { GETNAME | SETNAME <m> | NOSUCH | NO-EVICT { on | off | x } | SETNAME }"),
    (1, "{ NOSUCH | GE | <v> } [ ( <v> ) ]"),
    (1, "{ WAIT 0 0 | WAIT 0 -1 | WAIT x 0 | READONLYX | AUTH x | AUTH a b c }"),
    (1, "COMMAND { GETKEYS GET k | GETKEYS MSET a 1 b 2 | GETKEYS PING | GETKEYS NOSUCH | INFO nosuch }"),
];

const LISTS: &[Rule] = &[
    (10, "{ LPUSH | RPUSH } <l> ( <e> )"),
    (2, "{ LPUSHX | RPUSHX } <l> ( <e> )"),
    (4, "{ LPOP | RPOP } <l> [ <n> ]"),
    (2, "LMPOP <numkeys> ( <l> ) { LEFT | RIGHT | UP } [ COUNT <n> ]"),
    (3, "LLEN <l>"),
    (6, "LRANGE <l> <n> <n>"),
    (3, "LINDEX <l> <n>"),
    (3, "LSET <l> <n> <e>"),
    (3, "LINSERT <l> { BEFORE | AFTER | AT } <e> <e>"),
    (3, "LREM <l> <n> <e>"),
    (2, "LTRIM <l> <n> <n>"),
    (3, "LPOS <l> <e> [ RANK <rank> ] [ COUNT <n> ] [ MAXLEN <n> ]"),
    (2, "LMOVE <l> <l> { LEFT | RIGHT | X } { LEFT | RIGHT }"),
    (2, "RPOPLPUSH <l> <l>"),
];

const HASHES: &[Rule] = &[
    (10, "{ HSET | HMSET } <h> ( <m> <v> )"),
    (3, "HSETNX <h> <m> <v>"),
    (4, "HGET <h> <m>"),
    (3, "HMGET <h> ( <m> )"),
    (4, "HGETALL <h>"),
    (3, "HDEL <h> ( <m> )"),
    (2, "{ HEXISTS | HSTRLEN } <h> <m>"),
    (2, "HLEN <h>"),
    (2, "{ HKEYS | HVALS } <h>"),
    (4, "HINCRBY <h> <m> <i>"),
    (4, "HINCRBYFLOAT <h> <m> <f>"),
    (1, "HSCAN <h> 0 COUNT 100000 [ MATCH <pattern> ]"),
    (1, "HRANDFIELD { missing | <s> } [ { 0 | 3 | -3 | x } [ WITHVALUES ] ]"),
];

const SETS: &[Rule] = &[
    (10, "SADD <t> ( { <m> | <i> } )"),
    (4, "SREM <t> ( { <m> | <i> } )"),
    (3, "SISMEMBER <t> { <m> | <i> }"),
    (2, "SMISMEMBER <t> ( <m> )"),
    (4, "SMEMBERS <t>"),
    (2, "SCARD <t>"),
    (3, "{ SINTER | SUNION | SDIFF } ( <t> )"),
    (3, "{ SINTERSTORE | SUNIONSTORE | SDIFFSTORE } <t> ( <t> )"),
    (2, "SINTERCARD <numkeys> ( <t> ) [ LIMIT <n> ]"),
    (2, "SMOVE <t> <t> <m>"),
    (1, "SPOP <t> { 0 | -1 | x | 100000 }"),
    (1, "SRANDMEMBER { missing | <s> } [ { 0 | 3 | -3 | x } ]"),
    (1, "SSCAN <t> 0 COUNT 100000 [ MATCH <pattern> ]"),
];

const SORTED_SETS: &[Rule] = &[
    (4, "ZADD <y> ( 0 <m> )"),
    (2, "ZREM <y> ( <m> )"),
    (2, "ZRANGESTORE <y> <y> <lex> <lex> BYLEX [ REV ] [ LIMIT <n> <n> ]"),
    (12, "ZADD <z> [ { NX | XX } ] [ { GT | LT } ] [ CH ] ( <score> <m> )"),
    (2, "ZADD <z> [ { NX | XX } ] INCR <score> <m>"),
    (
        3,
        "{ ZUNION | ZINTER } <numkeys> ( { <z> | <t> } ) [ WEIGHTS ( <weight> ) ] [ AGGREGATE { SUM | MIN | MAX | AVG } ] \
         [ WITHSCORES ]",
    ),
    (2, "ZDIFF <numkeys> ( { <z> | <t> } ) [ WITHSCORES ]"),
    (
        3,
        "{ ZUNIONSTORE | ZINTERSTORE } <z> <numkeys> ( { <z> | <t> } ) [ WEIGHTS ( <weight> ) ] [ AGGREGATE { SUM | MIN \
         | MAX | AVG } ]",
    ),
    (2, "ZDIFFSTORE <z> <numkeys> ( { <z> | <t> } )"),
    (2, "ZINTERCARD <numkeys> ( { <z> | <t> } ) [ LIMIT <n> ]"),
    (2, "ZMPOP <numkeys> ( <z> ) { MIN | MAX | MID } [ COUNT <n> ]"),
    (3, "ZINCRBY <z> <score> <m>"),
    (3, "ZREM <z> ( <m> )"),
    (2, "ZCARD <z>"),
    (3, "ZSCORE <z> <m>"),
    (2, "ZMSCORE <z> ( <m> )"),
    (3, "{ ZRANK | ZREVRANK } <z> <m>"),
    (3, "{ ZPOPMIN | ZPOPMAX } <z> [ <n> ]"),
    (4, "ZRANGE <z> <n> <n> [ REV ] [ WITHSCORES ]"),
    (3, "ZRANGE <z> <bound> <bound> BYSCORE [ REV ] [ LIMIT <n> <n> ] [ WITHSCORES ]"),
    (3, "ZRANGE <y> <lex> <lex> BYLEX [ REV ] [ LIMIT <n> <n> ] [ WITHSCORES ]"),
    (2, "ZREVRANGE <z> <n> <n> [ WITHSCORES ]"),
    (3, "{ ZRANGEBYSCORE | ZREVRANGEBYSCORE } <z> <bound> <bound> [ WITHSCORES ] [ LIMIT <n> <n> ]"),
    (2, "{ ZRANGEBYLEX | ZREVRANGEBYLEX } <y> <lex> <lex> [ LIMIT <n> <n> ]"),
    (2, "ZRANGESTORE <z> <z> { <n> <n> | <bound> <bound> BYSCORE } [ REV ] [ LIMIT <n> <n> ]"),
    (2, "ZCOUNT <z> <bound> <bound>"),
    (2, "ZLEXCOUNT <y> <lex> <lex>"),
    (1, "ZREMRANGEBYRANK <z> <n> <n>"),
    (1, "ZREMRANGEBYSCORE <z> <bound> <bound>"),
    (1, "ZREMRANGEBYLEX <y> <lex> <lex>"),
    (1, "ZSCAN <y> 0 COUNT 100000 [ MATCH <pattern> ]"),
    (1, "ZRANDMEMBER { missing | <s> } [ { 0 | 3 | -3 | x } [ WITHSCORES ] ]"),
];

const HOSTILE: &[Rule] = &[
    (3, "SADD <t> <names>"),
    (2, "SREM <t> <names>"),
    (2, "SRANDMEMBER <t> [ <count> ]"),
    (1, "{ SINTER | SUNION | SDIFF } <t> <t>"),
    (3, "HSET <h> <pairs>"),
    (2, "HDEL <h> <names>"),
    (2, "HRANDFIELD <h> [ <count> ]"),
    (2, "ZADD <z> <scored>"),
    (1, "ZREM <z> <names>"),
    (2, "ZRANDMEMBER <z> [ <count> ]"),
    (2, "INCRBYFLOAT <s> <extreme>"),
    (1, "HINCRBYFLOAT <h> <m> <extreme>"),
];

/// Numbers at the edges of what is one. None is a small positive one: as a ttl it would end within the test.
const EDGES: &[&str] = &[
    "0",
    "-0",
    "-1",
    "-2147483649",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "9007199254740993",
    "",
    " 1",
    "1 ",
    "+1",
    "01",
    "1.0",
    "0b1",
    "x",
];
const FLOATS: &[&str] = &[
    "0",
    "-0",
    "0.1",
    "0.2",
    "-0.3",
    "1.5",
    "3.0e3",
    "1e-7",
    "1e17",
    "1e21",
    "1e300",
    "-1e300",
    "1e-300",
    "inf",
    "-inf",
    "+inf",
    "nan",
    "infinity",
    "1e400",
    "5e-324",
    "0b1",
    ".5",
    "5.",
    " 1",
    "1 ",
    "",
    "1,5",
    "3.14159265358979",
    "100000000000000000000",
    "9007199254740993",
    "0.30000000000000004",
    "1e",
    "--1",
];

/// Commands that are sent as drawn: one argument less would leave SPOP to chance, one more is understood by
/// Redis 7.2 and Kvorum, but not by Redis 7.0. MOVE and COPY into databases beyond the last one are errors in
/// Redis only.
const UNCHANGED: &[&str] = &[
    "SPOP",
    "BITFIELD",
    "GEOADD",
    "GEOSEARCH",
    "GEOSEARCHSTORE",
    "GEORADIUS",
    "GEORADIUSBYMEMBER",
    "ZRANK",
    "ZREVRANK",
    "MOVE",
    "COPY",
    "WATCH",
    "FLUSHDB",
    "FLUSHALL",
    "LPOS",
    "COMMAND",
    "SRANDMEMBER",
    "HRANDFIELD",
    "ZRANDMEMBER",
];

/// Draws commands; the same seed draws the same.
pub struct Grammar {
    pub random: fastrand::Rng,
    rules: Vec<Rule>,
    weights: u32,
}

impl Grammar {
    pub fn new(seed: u64) -> Grammar {
        let rules: Vec<Rule> = RULES.iter().flat_map(|rules| rules.iter().copied()).collect();
        let weights = rules.iter().map(|(weight, _)| weight).sum();
        Grammar { random: fastrand::Rng::with_seed(seed), rules, weights }
    }

    /// A command, now and then with something wrong in it.
    pub fn command(&mut self) -> Vec<Vec<u8>> {
        let mut at = self.random.u32(..self.weights);
        let rule = self.rules.iter().find(|(weight, _)| {
            let is_it = at < *weight;
            at = at.wrapping_sub(*weight);
            is_it
        });
        let words: Vec<&str> = rule.expect("the weights cover the rules").1.split(' ').collect();
        let mut argv = Vec::new();
        self.expand(&words, &mut argv);
        let is_special = argv.get(1).is_some_and(|key| key.starts_with(b"y") || key.starts_with(b"w"));
        if is_special || UNCHANGED.contains(&String::from_utf8_lossy(&argv[0]).as_ref()) {
            return argv;
        }
        match self.random.u8(..100) {
            0 if argv.len() > 1 => _ = argv.remove(self.random.usize(1..argv.len())),
            1 => argv.push(self.edge()),
            2 => argv.push(self.word("v")),
            3 | 4 if argv.len() > 1 => {
                let at = self.random.usize(1..argv.len());
                argv[at] = self.edge();
            }
            5 => argv[0].make_ascii_lowercase(),
            _ => {}
        }
        if argv[0].eq_ignore_ascii_case(b"WAIT") && argv.len() == 3 {
            // More replicas than there are, without a time limit: both would wait for ever.
            argv[1] = if argv[1] == b"x" { b"x".into() } else { b"0".into() };
        }
        argv
    }

    fn expand(&mut self, words: &[&str], argv: &mut Vec<Vec<u8>>) {
        let mut at = 0;
        while at < words.len() {
            let close = match words[at] {
                "[" => "]",
                "(" => ")",
                "{" => "}",
                word => {
                    let drawn = match word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
                        Some(kind @ ("names" | "pairs" | "scored")) => {
                            for name in hostile::names(&mut self.random) {
                                argv.extend((kind == "scored").then(|| self.word("i")));
                                argv.push(name);
                                argv.extend((kind == "pairs").then(|| self.value()));
                            }
                            at += 1;
                            continue;
                        }
                        Some(kind) => self.word(kind),
                        None => word.as_bytes().to_vec(),
                    };
                    argv.push(drawn);
                    at += 1;
                    continue;
                }
            };
            let end = at + matching(&words[at..], words[at], close);
            let inner = &words[at + 1..end];
            match close {
                "]" if self.random.bool() => self.expand(inner, argv),
                ")" => (0..self.random.u8(1..=4)).for_each(|_| self.expand(inner, argv)),
                "}" => {
                    let choices = choices(inner);
                    let choice = choices[self.random.usize(..choices.len())];
                    self.expand(choice, argv);
                }
                _ => {}
            }
            at = end + 1;
        }
    }

    fn edge(&mut self) -> Vec<u8> {
        EDGES[self.random.usize(..EDGES.len())].into()
    }

    /// A key of a family; one in ten is of another, which is the wrong type.
    fn key(&mut self, family: u8) -> Vec<u8> {
        let family = if self.random.u8(..10) == 0 { b"slhtz"[self.random.usize(..5)] } else { family };
        format!("{}{}", family as char, self.random.u8(..4)).into_bytes()
    }

    /// A random thing of a kind.
    fn word(&mut self, kind: &str) -> Vec<u8> {
        let small = self.random.i32(-6..12);
        match kind {
            "w" => return format!("w{}", self.random.u8(..3)).into(),
            "y" if small > 0 => return b"y0".to_vec(),
            "y" => return b"y1".to_vec(),
            "s" | "l" | "h" | "t" | "z" => return self.key(kind.as_bytes()[0]),
            "k" => {
                let family = b"slhtz"[self.random.usize(..5)];
                return self.key(family);
            }
            "v" | "e" => return self.value(),
            "m" => return format!("m{}", self.random.u8(..12)).into(),
            "i" | "n" | "offset" | "numkeys" if self.random.u8(..12) == 0 => return self.edge(),
            "i" => small.to_string(),
            "n" => small.to_string(),
            "count" if self.random.bool() => format!("-{}", hostile::threshold(&mut self.random)),
            "count" => hostile::threshold(&mut self.random).to_string(),
            "extreme" => hostile::one_of(hostile::FLOATS, &mut self.random).into(),
            // None makes -0 of a score: Redis stores it in large sets, and 0 in small ones.
            "weight" => ["0.5", "1", "2", "3", "inf", "1e300", "1e400", "nan", "x", ""]
                [self.random.usize(..10)]
            .into(),
            "bit" => self.random.i32(-1..200).to_string(),
            "field" => {
                ["u1", "u8", "u63", "i1", "i8", "i13", "i64", "u64", "x"][self.random.usize(..9)].into()
            }
            "fitting" => {
                ["0", "1", "-1", "100", "255", "-129", "9223372036854775807"][self.random.usize(..7)].into()
            }
            "km" => ["0", "50", "200.5", "5000", "30000", "-1", "x"][self.random.usize(..7)].into(),
            "rank" => self.random.i32(-4..5).to_string(),
            "offset" => self.random.i32(-1..60).to_string(),
            "numkeys" => self.random.u8(..4).to_string(),
            "db" => ["0", "1", "2", "3", "15", "16", "-1", "x"][self.random.usize(..8)].into(),
            "todb" => ["0", "1", "2", "15", "-1", "x"][self.random.usize(..6)].into(),
            "f" => FLOATS[self.random.usize(..FLOATS.len())].into(),
            "score" if self.random.bool() => small.to_string(),
            "score" => FLOATS[self.random.usize(..FLOATS.len())].into(),
            "bound" => self.bound(),
            "lex" => self.lex(),
            "far" => self.far(1),
            "farms" => self.far(1000),
            "at" => self.at(1),
            "atms" => self.at(1000),
            "later" => self.random.u64(4_000_000_000..4_000_000_010).to_string(),
            "laterms" => self.random.u64(4_000_000_000_000..4_000_000_010_000).to_string(),
            "pattern" => ["*", "?", "??", "[sl]*", "[^s]?", "*1", "s[0-2]", "m1*", "\\*", "[", ""]
                [self.random.usize(..11)]
            .into(),
            _ => panic!("the grammar knows no <{kind}>"),
        }
        .into_bytes()
    }

    fn value(&mut self) -> Vec<u8> {
        match self.random.u8(..20) {
            0 => Vec::new(),
            1 => vec![0, 255, b'\r', b'\n', 128],
            2 => vec![b'x'; self.random.usize(..300)],
            3 if self.random.u8(..10) == 0 => vec![b'y'; self.random.usize(..20_000)],
            4 => self.edge(),
            5 => FLOATS[self.random.usize(..FLOATS.len())].into(),
            6..10 => self.random.i32(-20..200).to_string().into_bytes(),
            _ => format!("v{}", self.random.u8(..30)).into_bytes(),
        }
    }

    fn bound(&mut self) -> String {
        let open = if self.random.u8(..3) == 0 { "(" } else { "" };
        match self.random.u8(..10) {
            0 => format!("{open}-inf"),
            1 => format!("{open}+inf"),
            2 => format!("{open}{}", FLOATS[self.random.usize(..FLOATS.len())]),
            _ => format!("{open}{}", self.random.i32(-6..12)),
        }
    }

    fn lex(&mut self) -> String {
        match self.random.u8(..12) {
            0..3 => "-".into(),
            3..6 => "+".into(),
            6 => "m".into(),
            7 => "(".into(),
            at => format!("{}m{}", if at.is_multiple_of(2) { "[" } else { "(" }, self.random.u8(..12)),
        }
    }

    /// A length of time that is over at once, never in this test, or no such thing.
    fn far(&mut self, unit: u64) -> String {
        match self.random.u8(..12) {
            0 => [
                "0",
                "-1",
                "-100",
                "9223372036854775807",
                "-9223372036854775808",
                "9223372036854775",
                "x",
                "",
            ][self.random.usize(..8)]
            .into(),
            _ => (self.random.u64(10_000..10_010) * unit).to_string(),
        }
    }

    fn at(&mut self, unit: u64) -> String {
        match self.random.u8(..12) {
            0 => ["0", "-1", "1", "1000000000", "9223372036854775807", "x"][self.random.usize(..6)].into(),
            _ => (self.random.u64(4_000_000_000..4_000_000_010) * unit).to_string(),
        }
    }
}

/// Where the bracket that opens `words` closes.
fn matching(words: &[&str], open: &str, close: &str) -> usize {
    let mut depth = 0;
    for (at, word) in words.iter().enumerate() {
        depth += i32::from(*word == open) - i32::from(*word == close);
        if depth == 0 {
            return at;
        }
    }
    panic!("no {close} in {words:?}");
}

/// What stands between the bars of a `{ }`, those of inner brackets left alone.
fn choices<'a, 'b>(words: &'b [&'a str]) -> Vec<&'b [&'a str]> {
    let (mut depth, mut start, mut choices) = (0, 0, Vec::new());
    for (at, word) in words.iter().enumerate() {
        depth += i32::from(matches!(*word, "{" | "[" | "(")) - i32::from(matches!(*word, "}" | "]" | ")"));
        if depth == 0 && *word == "|" {
            choices.push(&words[start..at]);
            start = at + 1;
        }
    }
    choices.push(&words[start..]);
    choices
}

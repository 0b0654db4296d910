//! A data directory that an earlier version left when it was killed opens, with all that was in its last checkpoint and in the log
//! behind it. The directory in `tests/fixtures` is of the version that brought apply level 3.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, process::Command, time::Duration};

use support::{process::Cluster, resp::Client};

fn unpack(name: &str, to: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::create_dir_all(to).unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(to).status().unwrap();
    assert!(unpacked.success());
}

#[test]
fn data_of_apply_level_3_opens() {
    let mut cluster = Cluster::off(1, &[]);
    unpack("data-apply-level-3.tar.gz", &cluster.data_of(0));
    cluster.start_node(0);
    // The second time with what this version has made of it.
    for round in 0..2 {
        cluster.wait_ready(0);
        let mut client = Client::connect_for(&cluster.addresses[0].resp, Duration::from_secs(20)).unwrap();
        let mut run = |line: &str| client.run(line).unwrap();
        for (line, expected) in [
            ("GET string", "$\"value\"\n"),
            ("STRLEN long", ":40000\n"),
            ("GETRANGE holes 4999 -1", "$\"\\x00end\"\n"),
            ("LRANGE list:small 0 1", "*2\n  $\"head\"\n  $\"0\"\n"),
            ("LLEN list:large", ":1200\n"),
            ("LINDEX list:large 777", "$\"element-00777\"\n"),
            ("SCARD set:integers", ":100\n"),
            ("SISMEMBER set:integers 297", ":1\n"),
            ("SCARD set:large", ":500\n"),
            ("SISMEMBER set:large member-00499", ":1\n"),
            ("HLEN hash:large", ":300\n"),
            ("HGET hash:large field-0123", "$\"value-0123\"\n"),
            ("HGET hash:small g", "$\"2\"\n"),
            ("SCARD set:small", ":3\n"),
            ("ZRANK zset:large member-0042", ":42\n"),
            ("ZSCORE zset:small c", "$\"inf\"\n"),
            ("EXPIRETIME expires", ":4102444800\n"),
            ("EXISTS gone key:0000", ":0\n"),
            ("GET after", "$\"the checkpoint\"\n"),
            ("GET key:0299", "$\"value-299\"\n"),
        ] {
            assert_eq!(run(line), expected, "{line}");
        }
        assert_eq!(run("GET integer"), format!("$\"{}\"\n", 43 + round));
        assert_eq!(run("INCR integer"), format!(":{}\n", 44 + round));
        assert_eq!(run("GET once"), "$\"1\"\n");
        // Tokens go on from where they were.
        let granted = run(&format!("LOCK.ACQUIRE another-{round} owner PX 60000"));
        assert!(granted.contains(&format!(":{}\n", 4 + round)), "{granted}");
        run("SELECT 3");
        assert_eq!(run("GET other"), "$\"database\"\n");
        cluster.kill(0);
        cluster.start_node(0);
    }
}

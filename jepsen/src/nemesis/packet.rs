//! Packet faults, which TCP has to repair: nftables drops or duplicates packets at random, and a queueing
//! discipline on the loopback delays some of them, so that later ones overtake them. Only in the run's own
//! network namespace.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::Env;
use crate::cluster::namespace;

/// What happens to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Doubled,
    /// Sent through a separate slow queue.
    Late,
}

/// The maximum packet size: with the loopback's own 64 KiB, most messages would be one packet.
const MTU: u32 = 1_500;
/// The rate of the slow queue: a full packet takes 12 ms, and those behind it wait.
const SLOW_RATE: &str = "1mbit";
/// How long packets may take to leave the slow queue when the fault ends; the rest is lost.
const DRAIN: Duration = Duration::from_millis(100);

fn run(program: &str, words: &str, input: &str) -> Result<String> {
    let child = Command::new(program)
        .args(words.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.with_context(|| format!("there is no {program}"))?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {words}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Fate {
    /// The nftables table of this fault alone.
    fn table(self) -> &'static str {
        match self {
            Fate::Lost => "kvorum_lost",
            Fate::Doubled => "kvorum_doubled",
            Fate::Late => "kvorum_late",
        }
    }

    /// The rule for every packet between nodes, clients and proxies. Packets are dropped on arrival: dropping
    /// them on departure would report an error to the sender.
    fn rules(self, percent: u32, ports: &str) -> String {
        let (hook, action) = match self {
            Fate::Lost => ("input", "drop"),
            Fate::Doubled => ("output", "dup to 127.0.0.1 device \"lo\""),
            Fate::Late => ("output", "meta priority set 1:20"),
        };
        let rule = |side: &str| {
            format!(
                "    tcp {side} {{ {ports} }} numgen random mod 100 < {percent} counter name hit {action}\n"
            )
        };
        format!(
            "table ip {table} {{\n  counter hit {{}}\n  chain {hook} {{\n    type filter hook {hook} priority 0;\n\
             {to}{from}  }}\n}}\n",
            table = self.table(),
            to = rule("dport"),
            from = rule("sport"),
        )
    }

    fn begin(self, percent: u32, ports: &str) -> Result<()> {
        run("ip", &format!("link set lo mtu {MTU}"), "")?;
        if self == Fate::Late {
            run("tc", "qdisc add dev lo root handle 1: htb default 10 r2q 10000", "")?;
            run("tc", "class add dev lo parent 1: classid 1:10 htb rate 10gbit quantum 60000", "")?;
            run(
                "tc",
                &format!(
                    "class add dev lo parent 1: classid 1:20 htb rate {SLOW_RATE} burst {MTU} quantum {MTU}"
                ),
                "",
            )?;
        }
        run("nft", "-f -", &self.rules(percent, ports)).map(drop)
    }

    /// Ends the fault; returns how many packets it affected.
    fn end(self) -> Result<u64> {
        let table = self.table();
        let counters = run("nft", &format!("-j list counters table ip {table}"), "")?;
        run("nft", &format!("delete table ip {table}"), "")?;
        if self == Fate::Late {
            std::thread::sleep(DRAIN);
            run("tc", "qdisc del dev lo root", "")?;
        }
        let counters: Value = serde_json::from_str(&counters).context("what nft says of its counters")?;
        let counter = counters["nftables"].as_array().into_iter().flatten().find_map(|it| it.get("counter"));
        counter.and_then(|it| it["packets"].as_u64()).context("nft has lost its counter")
    }
}

/// A share of all packets has this fate until the fault ends.
pub(super) fn meet(env: &Env, random: &mut fastrand::Rng, hold: Duration, fate: Fate) -> Result<Value> {
    namespace::is_own().map_err(|why| anyhow!(why))?;
    let percent = match fate {
        Fate::Lost => random.u32(2..20),
        Fate::Doubled | Fate::Late => random.u32(10..60),
    };
    let ports: Vec<String> = env.cluster.ports().iter().map(u16::to_string).collect();
    let begun = fate.begin(percent, &ports.join(", "));
    if begun.is_ok() {
        env.sleep(hold);
    }
    let met = fate.end();
    begun?;
    let met = met?;
    ensure!(met > 0, "no packet was met");
    Ok(json!({"percent": percent, "packets": met}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_looks_at_both_directions() {
        let rules = Fate::Lost.rules(7, "11001, 11002");
        assert!(
            rules.contains("tcp dport { 11001, 11002 } numgen random mod 100 < 7 counter name hit drop"),
            "{rules}"
        );
        assert!(rules.contains("tcp sport { 11001, 11002 } numgen"), "{rules}");
    }
}

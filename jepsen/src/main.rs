//! The black-box harness. Its place is reserved here; workloads, nemeses and checkers are not built yet. What
//! stands in for them at present: `tests/survives_kills.rs` of the root package and `raft/tests/cluster.rs`.

fn main() {
    eprintln!("kvorum-jepsen has no workloads yet; see jepsen/README.md");
    std::process::exit(2);
}

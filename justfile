# Recipes for https://just.systems. CONTRIBUTING.md says when to use which.

# Lists the recipes
default:
    @just --list

# Checks formatting, lints and documentation; writes nothing but build output
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Formats the code, and lets clippy repair what it can
fix:
    cargo clippy --fix --workspace --all-targets --locked --allow-dirty --allow-staged
    cargo fmt --all

# Runs all tests
test:
    cargo test --workspace --locked

# Compares with redis-server, and with etcd where it is installed; the directory bench-data is used and removed
bench:
    deploy/bench/run.sh

# Compares replies with a real redis-server on random commands: `just fuzz`, or `just fuzz 7` for seed 7 again
fuzz seed="":
    {{ if seed == "" { "" } else { "KVORUM_SEED=" + seed } }} cargo test --release --locked --test differential -- --nocapture

# Simulates clusters that break: `just sim 1000`, `just sim 1 --from 442`
sim seeds="1000" *options:
    cargo run --release --locked -p kvorum-jepsen -- sim --seeds {{ seeds }} {{ options }}

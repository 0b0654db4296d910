#!/usr/bin/env bash
# Compares a Kvorum cluster of three with the peers that are installed: redis-server without persistence,
# redis-server with appendfsync always, etcd. All run on this machine, on loopback, on the same disk, with the
# client beside them; each workload drives them by turns, three times, and the table holds the medians.
#
#   deploy/bench/run.sh [DIR]      DIR: where the data goes [default: ./bench-data]; removed before and after
#
# KVORUM=path of the binary [default: target/release/kvorum, built when missing]
# REQUESTS=100000 requests of a run without pipelining; ten times as many with it
# CLIENTS=50, SIZE=64 bytes a value, KEYS=100000 random keys
#
# Kvorum's writes are acknowledged when they are fdatasynced on two of three nodes, its reads are linearizable.
# Read the ratios, not the absolute figures: everything shares the cores. So each node has one worker thread, as
# redis-server has. Memory, restart, failover and sustained writes: deploy/bench/limits.py.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=${1:-./bench-data}
kvorum=${KVORUM:-target/release/kvorum}
requests=${REQUESTS:-100000}
clients=${CLIENTS:-50}
size=${SIZE:-64}
keys=${KEYS:-100000}
pids=()

stop_all() {
    for pid in "${pids[@]}"; do
        disown "$pid" 2>/dev/null || true
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap stop_all EXIT

for tool in redis-benchmark redis-cli redis-server python3; do
    command -v "$tool" >/dev/null || { echo "$tool is needed (Debian: redis-tools, redis-server, python3)" >&2; exit 1; }
done
[ -x "$kvorum" ] || cargo build --release
cargo bench -q --bench coordination --no-run
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

wait_for() { # what, command...
    local what=$1; shift
    for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    echo "$what did not start" >&2; exit 1
}

http_get() { python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read().decode())' "$1"; }

start_kvorum() {
    read -r -a p <<<"$(free_ports 9)"
    local peers="1=127.0.0.1:${p[6]},2=127.0.0.1:${p[7]},3=127.0.0.1:${p[8]}"
    for i in 0 1 2; do
        "$kvorum" serve --id $((i + 1)) --data "$dir/kvorum$i" --resp "127.0.0.1:${p[i]}" \
            --http "127.0.0.1:${p[i + 3]}" --peer "127.0.0.1:${p[i + 6]}" --peers "$peers" \
            --threads 1 2>"$dir/kvorum$i.log" &
        pids+=($!)
    done
    for i in 0 1 2; do wait_for "kvorum node $((i + 1))" http_get "http://127.0.0.1:${p[i + 3]}/readyz"; done
    local leader
    leader=$(http_get "http://127.0.0.1:${p[3]}/v1/cluster" | python3 -c 'import json, sys; print(json.load(sys.stdin)["leader_id"])')
    kvorum_port=${p[leader - 1]}
}

start_redis() { # name, options...
    local name=$1; shift
    mkdir -p "$dir/$name"
    started_port=$(free_ports 1)
    redis-server --port "$started_port" --bind 127.0.0.1 --dir "$dir/$name" --save '' "$@" >"$dir/$name.log" &
    pids+=($!)
    wait_for "$name" redis-cli -p "$started_port" ping
}

start_etcd() {
    read -r -a p <<<"$(free_ports 2)"
    etcd --data-dir "$dir/etcd" --listen-client-urls "http://127.0.0.1:${p[0]}" \
        --advertise-client-urls "http://127.0.0.1:${p[0]}" --listen-peer-urls "http://127.0.0.1:${p[1]}" \
        --initial-advertise-peer-urls "http://127.0.0.1:${p[1]}" \
        --initial-cluster "default=http://127.0.0.1:${p[1]}" >"$dir/etcd.log" 2>&1 &
    pids+=($!)
    etcd_port=${p[0]}
    wait_for etcd env ETCDCTL_API=3 etcdctl --endpoints "127.0.0.1:$etcd_port" endpoint health
}

rate() { # port, test, pipeline
    local n=$((requests * ($3 > 1 ? 10 : 1)))
    timeout 300 redis-benchmark -p "$1" -t "$2" -P "$3" -n "$n" -c "$clients" -d "$size" -r "$keys" -q --csv |
        tail -n 1 | cut -d, -f2 | tr -d '"'
}

etcd_rate() { # etcd's own load generator through its client: a fixed 10 s of puts, one node, fsynced
    ETCDCTL_API=3 timeout 120 etcdctl --endpoints "127.0.0.1:$etcd_port" check perf --load=l 2>&1 |
        sed -n 's/.*Throughput[^0-9]*\([0-9][0-9]*\) writes.*/\1/p' | tail -n 1
}

median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }
ratio() { python3 -c 'import sys; a, b = map(float, sys.argv[1:]); print(f"{a / b:.2f}")' "$1" "$2"; }

start_kvorum
start_redis memory; memory_port=$started_port
start_redis always --appendonly yes --appendfsync always; always_port=$started_port
etcd_port=
if command -v etcd >/dev/null && command -v etcdctl >/dev/null; then start_etcd; fi

printf '%-28s %12s %16s %16s %10s %10s\n' "$clients clients, $size bytes" "kvorum (3)" "redis, no fsync" \
    "redis, always" "/ no fsync" "/ always"
for workload in "set 1" "set 16" "get 1" "get 16"; do
    read -r test pipeline <<<"$workload"
    k=() m=() a=()
    for _ in 1 2 3; do
        k+=("$(rate "$kvorum_port" "$test" "$pipeline")")
        m+=("$(rate "$memory_port" "$test" "$pipeline")")
        a+=("$(rate "$always_port" "$test" "$pipeline")")
    done
    kvorum_rate=$(median "${k[@]}") memory_rate=$(median "${m[@]}") always_rate=$(median "${a[@]}")
    printf '%-28s %12s %16s %16s %10s %10s\n' "${test^^}, pipeline $pipeline" "$kvorum_rate" "$memory_rate" \
        "$always_rate" "$(ratio "$kvorum_rate" "$memory_rate")" "$(ratio "$kvorum_rate" "$always_rate")"
done
# How fast locks are.
KVORUM="127.0.0.1:$kvorum_port" REDIS="127.0.0.1:$memory_port" ${etcd_port:+ETCD="127.0.0.1:$etcd_port"} \
    cargo bench -q --bench coordination
if [ -n "$etcd_port" ]; then
    echo "etcd (one node, etcdctl check perf --load=l, which offers at most 8000 writes/s): $(etcd_rate) writes/s"
fi

#!/usr/bin/env python3
"""What deploy/bench/run.sh does not measure: memory, restart, failover, whether writes stay fast, and what leases and
readers of the change feed cost while nothing happens.

    deploy/bench/limits.py [DIR]      DIR: where the data goes [default: ./bench-data]; removed before and after

Needs redis-server, redis-cli and redis-benchmark. KVORUM is the binary's path [default: target/release/kvorum].
Everything shares the cores: read the ratios, and repeat what looks odd.
"""

import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

KVORUM = os.environ.get("KVORUM", "target/release/kvorum")
KEYS = 1_000_000
SUSTAINED_S = 60
LEASES = 100_000
FEED_READERS = 10_000
IDLE_S = 20


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(what, ask, limit_s=60):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if ask():
                return
        except OSError:
            pass
        time.sleep(0.005)
    sys.exit(f"waited in vain for {what}")


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


class Cluster:
    """Three nodes, one worker thread each, as they share the cores."""

    def __init__(self, directory):
        self.directory = directory
        ports = free_ports(9)
        self.resp, self.http, self.peer = ports[:3], ports[3:6], ports[6:]
        self.nodes = [None] * 3
        for node in range(3):
            self.start(node)
        for node in range(3):
            self.wait_ready(node)

    def start(self, node):
        peers = ",".join(f"{i + 1}=127.0.0.1:{port}" for i, port in enumerate(self.peer))
        command = [KVORUM, "serve", "--id", str(node + 1), "--data", f"{self.directory}/{node}", "--threads", "1"]
        for option, port in (("--resp", self.resp), ("--http", self.http), ("--peer", self.peer)):
            command += [option, f"127.0.0.1:{port[node]}"]
        with open(f"{self.directory}/{node}.log", "a", encoding="utf-8") as log:
            self.nodes[node] = subprocess.Popen(command + ["--peers", peers], stdout=log, stderr=log)

    def wait_ready(self, node):
        wait_for(f"node {node + 1}", lambda: get(self.http[node], "/readyz")[0] == 200)

    def leader(self):
        return json.loads(get(self.http[0], "/v1/cluster")[1])["leader_id"] - 1

    def kill(self, node):
        self.nodes[node].send_signal(signal.SIGKILL)
        self.nodes[node].wait()

    def stop(self):
        for node in range(3):
            self.kill(node)


def load(port):
    """A million keys of 16 bytes with values of 64."""
    chance = random.Random(1)
    client = subprocess.Popen(["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for first in range(0, KEYS, 5000):
        commands = []
        for key in range(first, first + 5000):
            head = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$64\r\n" % key
            commands.append(head + chance.randbytes(64) + b"\r\n")
        client.stdin.write(b"".join(commands))
    client.stdin.close()
    if client.wait() != 0:
        sys.exit("redis-cli --pipe failed")


def resident_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def redis_memory(directory):
    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for("redis-server", lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None)
    load(port)
    time.sleep(2)
    memory = resident_mb(server.pid)
    server.kill()
    server.wait()
    return memory


def checkpoint_all(cluster):
    for port in cluster.http:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/checkpoint")
        connection.getresponse().read()


def benchmark(port, *options):
    command = ["redis-benchmark", "-p", str(port), "-t", "set", "-d", "64", "-c", "50", "-q", "--csv", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def until_next_write_ms(cluster, leader):
    """Kills the leader while another node is under load, and writes through that one until it is acknowledged."""
    other = (leader + 1) % 3
    under_load = benchmark(cluster.resp[other], "-n", "1000000", "-r", "100000")
    time.sleep(1)
    client = socket.create_connection(("127.0.0.1", cluster.resp[other]), 10)
    cluster.kill(leader)
    killed = time.monotonic()
    while True:
        client.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\nprobe\r\n$1\r\n1\r\n")
        if client.recv(4096).startswith(b"+OK"):
            break
        time.sleep(0.002)
    taken = time.monotonic() - killed
    under_load.kill()
    under_load.wait()
    cluster.start(leader)
    cluster.wait_ready(leader)
    return taken * 1000


def restart_ms(cluster, node):
    cluster.kill(node)
    started = time.monotonic()
    cluster.start(node)
    cluster.wait_ready(node)
    return (time.monotonic() - started) * 1000


def sustained(cluster):
    """Rates over SUSTAINED_S seconds and more of random writes over five million keys."""
    port, rates, started = cluster.resp[cluster.leader()], [], time.monotonic()
    while time.monotonic() - started < SUSTAINED_S:
        rows = benchmark(port, "-n", "1000000", "-P", "16", "-r", "5000000").communicate()[0].splitlines()
        rates.append(float(rows[-1].split('","')[1]))
    return rates


def cpu_percent(cluster):
    """CPU of the three nodes together over IDLE_S seconds, in percent of one core."""

    def ticks():
        stats = [Path(f"/proc/{node.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split() for node in cluster.nodes]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats)

    before, started = ticks(), time.monotonic()
    time.sleep(IDLE_S)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started) * 100


def encode(*argv):
    parts = [b"*%d\r\n" % len(argv)]
    for argument in argv:
        argument = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(argument), argument))
    return b"".join(parts)


def grant_leases(port):
    client = subprocess.Popen(["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for lease in range(LEASES):
        client.stdin.write(encode("LEASE.GRANT", "PX", 3_600_000 + lease, "ID", f"lease:{lease}"))
    client.stdin.close()
    if client.wait() != 0:
        sys.exit("redis-cli --pipe failed")


def subscribe_readers(cluster):
    """FEED_READERS of the change feed, spread over the nodes, each of a prefix of its own."""
    readers = []
    for reader in range(FEED_READERS):
        connection = socket.create_connection(("127.0.0.1", cluster.resp[reader % 3]), 10)
        connection.sendall(encode("FEED.SUBSCRIBE", "PREFIX", f"reader:{reader}:"))
        readers.append(connection)
    for connection in readers:
        if not connection.recv(100).startswith(b":"):
            sys.exit("FEED.SUBSCRIBE was refused")
    return readers


def coordination(cluster):
    leader = cluster.resp[cluster.leader()]
    time.sleep(5)
    idle = cpu_percent(cluster)
    grant_leases(leader)
    checkpoint_all(cluster)
    time.sleep(5)
    print(f"CPU of three idle nodes: {idle:.1f} %; with {LEASES:,} leases: {cpu_percent(cluster):.1f} %")
    readers = subscribe_readers(cluster)
    time.sleep(5)
    quiet = cpu_percent(cluster)
    told, client = readers[: FEED_READERS : 100], socket.create_connection(("127.0.0.1", leader), 10)
    started = time.monotonic()
    for number in range(0, FEED_READERS, 100):
        client.sendall(encode("SET", f"reader:{number}:key", "value"))
        client.recv(100)
    for number, connection in zip(range(0, FEED_READERS, 100), told):
        received = b""
        while f"reader:{number}:key".encode() not in received:
            received += connection.recv(4096)
    taken = (time.monotonic() - started) * 1000
    memory = [resident_mb(node.pid) for node in cluster.nodes]
    print(f"{FEED_READERS:,} readers of the feed: CPU {quiet:.1f} %, memory {figures(memory)} MiB a node")
    print(f"{len(told)} writes one after the other, until the last of their {len(told)} readers had its own: {taken:.0f} ms")
    for connection in readers:
        connection.close()


def figures(values):
    return ", ".join(f"{value:,.0f}" for value in values)


def main():
    # A socket for each reader, here and in the nodes, which inherit this.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "./bench-data").absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    cluster = None
    try:
        redis_mb = redis_memory(directory)
        cluster = Cluster(directory)
        load(cluster.resp[cluster.leader()])
        checkpoint_all(cluster)
        checkpoint_all(cluster)
        time.sleep(5)
        nodes_mb = [resident_mb(node.pid) for node in cluster.nodes]
        ratio = max(nodes_mb) / redis_mb
        print(f"memory with {KEYS:,} keys: {figures(nodes_mb)} MiB a node, redis-server {redis_mb:,.0f}: {ratio:.2f} x")
        print(f"restart after kill -9, until /readyz: {figures(restart_ms(cluster, node) for node in range(3))} ms")
        times = [until_next_write_ms(cluster, cluster.leader()) for _ in range(3)]
        print(f"leader killed under load, until the next acknowledged write: {figures(times)} ms")
        cluster.stop()
        for node in range(3):
            shutil.rmtree(directory / str(node))
        cluster = Cluster(directory)
        rates = sustained(cluster)
        third = max(1, len(rates) // 3)
        ratio = statistics.mean(rates[-third:]) / statistics.mean(rates[:third])
        print(f"random writes over 5 M keys, pipeline 16, runs of 1 M: {figures(rates)} /s")
        print(f"last third / first third: {ratio:.2f} x")
        cluster.stop()
        for node in range(3):
            shutil.rmtree(directory / str(node))
        cluster = Cluster(directory)
        coordination(cluster)
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

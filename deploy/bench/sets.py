#!/usr/bin/env python3
"""Set algebra compared with redis-server: sets.py KVORUM_PORT REDIS_PORT [MEMBERS]

Fills both servers with four sets, which overlap by half, and runs each command three times on each in turn. Prints the
medians in seconds, and their ratio. Empties both servers first. For a fair comparison Kvorum has one node
(`kvorum dev --nodes 1`): three would share the processors.
"""

import random
import socket
import statistics
import sys
import time

ROUNDS = 3
COMMANDS = [
    "SUNIONSTORE d a b",
    "SINTERSTORE d a b",
    "SDIFFSTORE d a b",
    "SUNIONSTORE d i j",
    "SINTERSTORE d i j",
    "SUNIONSTORE d a b a b a b a b",
    "SINTERCARD 2 a b",
    "SUNION a b",
    "SDIFF a b",
]


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", int(port)))
        self.replies = self.socket.makefile("rb")

    def call(self, *words):
        words = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        self.skip_reply()

    def skip_reply(self):
        line = self.replies.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"$" and int(rest) >= 0:
            self.replies.read(int(rest) + 2)
        if kind == b"*":
            for _ in range(int(rest)):
                self.skip_reply()


def sets(members):
    chance = random.Random(1)
    for key, begins, name in [("a", 0, "member:%d"), ("b", 1, "member:%d"), ("i", 0, "%d"), ("j", 1, "%d")]:
        first = begins * members // 2
        names = [name % number for number in range(first, first + members)]
        chance.shuffle(names)
        yield key, names


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    servers = {"kvorum": Client(sys.argv[1]), "redis-server": Client(sys.argv[2])}
    members = int(sys.argv[3]) if len(sys.argv) > 3 else 1_000_000
    for client in servers.values():
        client.call("FLUSHALL")
    for key, names in sets(members):
        for client in servers.values():
            for at in range(0, members, 5_000):
                client.call("SADD", key, *names[at : at + 5_000])
    for command in COMMANDS:
        times = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, client in servers.items():
                begin = time.monotonic()
                client.call(*command.split())
                times[name].append(time.monotonic() - begin)
        ours, theirs = (statistics.median(times[name]) for name in servers)
        print(f"{command:32} kvorum {ours:.3f} s, redis-server {theirs:.3f} s: {ours / theirs:.2f} x", flush=True)


if __name__ == "__main__":
    main()
